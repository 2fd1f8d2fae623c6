"""The default executor: threads on one device, one process for each device if there are several."""

from __future__ import annotations

from sfm_lightglue.execution.devices import chosen_devices
from sfm_lightglue.execution.executor import ExecutionOptions, Executor
from sfm_lightglue.execution.processes import ProcessExecutor
from sfm_lightglue.execution.threads import ThreadExecutor


class LocalExecutor:
    """Chooses an executor of this machine; there are no instances of it."""

    @classmethod
    def create(cls, options: ExecutionOptions) -> Executor:
        """Raises: ValueError if torch cannot use one of the devices."""
        devices = chosen_devices(options.device)
        if len(devices) == 1:
            return ThreadExecutor(options.num_workers, devices[0])
        return ProcessExecutor(devices, options.num_workers)
