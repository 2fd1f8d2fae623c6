"""The executor `processes`: many independent jobs in several processes of this machine, for example one for each GPU.

Threads of one process would wait for each other, because one Python interpreter cannot feed several GPUs. Only this module of
the package `execution` starts processes.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import chain, islice
from multiprocessing.connection import Connection, wait
from typing import Any

from sfm_lightglue.execution.devices import chosen_devices, num_cores, suitable_num_workers
from sfm_lightglue.execution.executor import ExecutionOptions, Key, Recipe, Result
from sfm_lightglue.execution.portable import Failure
from sfm_lightglue.execution.threads import run_jobs, torch_threads

END = None
"""Message to a process after its last key."""
SECONDS_TO_STOP = 10
"""A process that is still alive after this time is killed."""

OpenWorker = Callable[[], AbstractContextManager[Callable[[Any], Any]]]
"""A recipe with its device."""


@dataclass(frozen=True)
class ProcessOptions(ExecutionOptions):
    """Options; configs/execution/processes.yaml holds the values."""

    num_processes: int
    """Processes on each device; 0 = one on a GPU, one per core if only the CPU is chosen."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_processes < 0:
            raise ValueError(f"execution.num_processes must be 0 (chosen by the device) or more, found {self.num_processes}")


class ProcessExecutor:
    """Runs jobs in one process for each entry of `devices`, with `num_workers` threads in each.

    Without a number of threads, processes on the CPU share the cores, and a process on a GPU has two threads.
    """

    def __init__(self, devices: Sequence[str], num_workers: int = 0) -> None:
        self.devices = list(devices)
        self.num_workers = num_workers or suitable_num_workers(self.devices[0], len(self.devices))

    @classmethod
    def create(cls, options: ProcessOptions) -> ProcessExecutor:
        """`num_processes` processes on each chosen device. Raises: ValueError if torch cannot use one of the devices."""
        devices = chosen_devices(options.device)
        count = options.num_processes or (num_cores() if devices == ["cpu"] else 1)
        return cls([device for device in devices for _ in range(count)], options.num_workers)

    def __call__(self, recipe: Recipe[Key, Result], keys: Iterable[Key]) -> Generator[tuple[Key, Result | Exception], None, None]:
        """See `Executor`. No more processes are started than there are keys; each has at most two jobs per thread in flight.

        If the loop over the results ends early, the processes are ended in the middle of their jobs. If this process is killed,
        they end by themselves after their current jobs.
        """
        todo = iter(keys)
        first = list(islice(todo, len(self.devices)))
        todo = chain(first, todo)
        workers: list[_Worker] = []
        try:
            for device in self.devices[: len(first)]:
                workers.append(_Worker(functools.partial(recipe, device), self.num_workers, len(first) * self.num_workers))
            for _ in range(2 * self.num_workers):
                for worker in workers:
                    worker.give(todo)
            while running := {worker.connection: worker for worker in workers if worker.num_running}:
                for connection in wait(list(running)):
                    worker = running[connection]  # type: ignore[index]
                    key, result = worker.receive()
                    worker.give(todo)
                    yield key, result
        finally:
            for worker in workers:
                worker.stop()


class _Worker:
    """A worker process and the connection to it, seen from the parent process."""

    def __init__(self, open_worker: OpenWorker, num_workers: int, num_threads: int) -> None:
        context = multiprocessing.get_context("spawn")  # a forked process cannot use CUDA, nor locks that threads held
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(open_worker, theirs, num_workers, num_threads), daemon=True)
        with _interrupts_ignored():
            self.process.start()
        theirs.close()  # now only the worker process has this end, so the connection ends when the process dies
        self.num_running, self.has_end = 0, False

    def give(self, todo: Iterator[Any]) -> None:
        """Sends the next key, or `END` if there is none."""
        if self.has_end:
            return
        key = next(todo, END)
        self.has_end = key is END
        self.num_running += key is not END
        with contextlib.suppress(OSError):  # if the process is dead, `receive` says so
            self.connection.send(key)

    def receive(self) -> tuple[Any, Any]:
        """A key and its result. Raises: ChildProcessError if the process is dead, or the error that its recipe raised."""
        try:
            key, result = self.connection.recv()
        except (EOFError, OSError):
            raise ChildProcessError(self._death()) from None
        if isinstance(result, Failure):
            result = result.error
        if key is END:
            raise result
        self.num_running -= 1
        return key, result

    def stop(self) -> None:
        """Ends the process, in the middle of a job if necessary."""
        self.connection.close()
        self.process.terminate()
        self.process.join(SECONDS_TO_STOP)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()

    def _death(self) -> str:
        self.process.join(SECONDS_TO_STOP)
        code = self.process.exitcode
        how = f"was killed by {signal.Signals(-code).name}" if code is not None and code < 0 else f"ended with status {code}"
        hint = " (has the machine run out of memory?)" if code == -9 else ""
        return f"a worker process {how}{hint}: all results so far are kept, and the same command continues from there"


def _work(open_worker: OpenWorker, connection: Connection, num_workers: int, num_threads: int) -> None:
    """Runs in a worker process: does the job of each key that it receives, until the last key or until its parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all processes; the parent ends this one
    with contextlib.suppress(EOFError, OSError):  # the parent is gone
        try:
            with open_worker() as function, torch_threads(num_threads):
                _end_quietly()
                for key, result in run_jobs(function, iter(connection.recv, END), num_workers):
                    _end_quietly()  # the job may have imported pycolmap
                    connection.send((key, Failure(result) if isinstance(result, Exception) else result))
        except Exception as error:
            connection.send((END, Failure(error)))


def _end_quietly() -> None:
    """Removes pycolmap's handler, which prints where the process was when the parent ends it. Importing pycolmap sets it."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextlib.contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Makes a process that is started inside ignore Ctrl-C from its first moment on. Has no effect outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
