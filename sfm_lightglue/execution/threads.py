"""Many independent jobs in the threads of this process: since torch, PIL and pycolmap's estimators release the GIL."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import TypeVar

import torch

from sfm_lightglue.execution.devices import num_cores

Key = TypeVar("Key", bound=Hashable)
Result = TypeVar("Result")


def run_jobs(
    function: Callable[[Key], Result], keys: Iterable[Key], num_workers: int
) -> Iterator[tuple[Key, Result | Exception]]:
    """Each key with its result, or the exception it raised, in order of completion.

    At most two jobs a worker are in flight, so memory does not grow with the number of keys. Where the loop over the results
    ends early (Ctrl-C, an error), jobs that have not begun are dropped and running ones are waited for.
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
                for future in finished:
                    error = future.exception()
                    if error is not None and not isinstance(error, Exception):
                        raise error
                    yield running.pop(future), future.result() if error is None else error
        finally:
            pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def torch_threads(num_workers: int) -> Iterator[None]:
    """Shares the cores among `num_workers` threads that all compute with torch.

    One core each is faster than all cores for one: a LightGlue layer is too small to fill two (measured on 2 cores, 512
    keypoints: 11.9 pairs/s as two threads of one core, 9.2 as one of two).
    """
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, num_cores() // num_workers))
    try:
        yield
    finally:
        torch.set_num_threads(before)
