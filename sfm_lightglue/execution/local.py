"""The default executor: threads on one device, one process for each device if there are several."""

from __future__ import annotations

from sfm_lightglue.execution.devices import chosen_devices
from sfm_lightglue.execution.executor import ExecutionOptions, Executor
from sfm_lightglue.execution.processes import ProcessExecutor
from sfm_lightglue.execution.threads import ThreadExecutor


class LocalExecutor:
    """Creates the executor that suits the chosen devices. It has no instances."""

    @classmethod
    def create(cls, options: ExecutionOptions) -> Executor:
        """Threads for one device, processes for several. Raises: ValueError if torch cannot use one of the devices."""
        devices = chosen_devices(options.device)
        if len(devices) == 1:
            return ThreadExecutor(options.num_workers, devices[0])
        return ProcessExecutor(devices, options.num_workers)
