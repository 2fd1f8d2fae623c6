"""The executor `threads`: many independent jobs in the threads of this process.

Threads suffice because torch, PIL and pycolmap's estimators release the GIL (Python's global lock).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import chain, islice

from sfm_lightglue.execution.devices import chosen_devices, num_cores, suitable_num_workers
from sfm_lightglue.execution.executor import ExecutionOptions, Key, Recipe, Result


class ThreadExecutor:
    """Runs jobs in `num_workers` threads of this process (0: one per core, two on a GPU), with one worker on `device`.

    An extractor or matcher of this process is used as it is, on its own device.
    """

    def __init__(self, num_workers: int = 0, device: str = "cpu") -> None:
        self.num_workers, self.device = num_workers or suitable_num_workers(device), device

    @classmethod
    def create(cls, options: ExecutionOptions) -> ThreadExecutor:
        """Threads on the chosen device. Raises: ValueError if several devices are chosen, or one that torch cannot use."""
        device, *others = chosen_devices(options.device)
        if others:
            raise ValueError(
                f"execution=threads computes on one device, found execution.device={options.device!r}: choose one device, or "
                "execution=local (one process for each device)"
            )
        return cls(options.num_workers, device)

    def __call__(self, recipe: Recipe[Key, Result], keys: Iterable[Key]) -> Generator[tuple[Key, Result | Exception], None, None]:
        """See `Executor`."""
        todo = iter(keys)
        if (first := next(todo, None)) is None:
            return
        with recipe(self.device) as worker, torch_threads(self.num_workers):
            yield from run_jobs(worker, chain([first], todo), self.num_workers)


def run_jobs(
    function: Callable[[Key], Result], keys: Iterable[Key], num_workers: int
) -> Iterator[tuple[Key, Result | Exception]]:
    """Each key with its result, or with the exception it raised, in order of completion.

    At most two jobs per worker are in flight, so memory does not grow with the number of keys. If the loop over the results
    ends early (Ctrl-C, an error), jobs that have not begun are dropped, and running jobs are waited for.

    Args:
        function: Does the job of a key; it is called from several threads.
        keys: The jobs.
        num_workers: Number of threads.

    Raises: an exception of a job that is no `Exception`, such as KeyboardInterrupt.
    """
    todo = iter(keys)
    with ThreadPoolExecutor(num_workers) as pool:
        running: dict[Future[Result], Key] = {}
        try:
            while True:
                for key in islice(todo, 2 * num_workers - len(running)):
                    running[pool.submit(function, key)] = key
                if not running:
                    return
                finished, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in [future for future in running if future in finished]:  # in the order of the keys
                    error = future.exception()
                    if error is not None and not isinstance(error, Exception):
                        raise error
                    yield running.pop(future), future.result() if error is None else error
        finally:
            pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def torch_threads(num_workers: int) -> Iterator[None]:
    """Gives each of `num_workers` threads that compute with torch an equal share of the cores.

    Several threads with one core each are faster than one thread with all cores, because a LightGlue layer is too small to fill
    two cores (2 cores, 512 keypoints: 11.9 pairs/s as two threads of one core, 9.2 pairs/s as one thread of two).
    """
    import torch  # here, not at the top: a run with nothing to do does not need it

    before = torch.get_num_threads()
    torch.set_num_threads(max(1, num_cores() // num_workers))
    try:
        yield
    finally:
        torch.set_num_threads(before)
