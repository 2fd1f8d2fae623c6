"""Many independent jobs in several processes of one machine, such as one for each GPU: threads would wait for one interpreter."""

from __future__ import annotations

import contextlib
import multiprocessing
import pickle
import signal
import threading
import traceback
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from sfm_lightglue.execution.threads import run_jobs, torch_threads

Key = TypeVar("Key", bound=Hashable)
Result = TypeVar("Result")

Recipe = Callable[[], AbstractContextManager[Callable[[Key], Result]]]
"""Opens, in the process that is to do the jobs, the function that does one."""

END = None
"""What a process is sent after its last key."""
SECONDS_TO_STOP = 10


def run_jobs_in_processes(
    recipes: Sequence[Recipe[Key, Result]], keys: Sequence[Key], num_workers: int
) -> Iterator[tuple[Key, Result | Exception]]:
    """Each key with its result, or the exception it raised, in order of completion: from one process for each recipe.

    Recipes, keys and results must be picklable, keys not None. Each process works with `num_workers` threads and has at most two
    jobs a thread in flight. Where the loop over the results ends early (Ctrl-C, an error), the processes are ended in the midst
    of their jobs; where this process is killed, they end by themselves after the jobs in work.

    Raises: ChildProcessError where a process dies, and what a recipe raises.
    """
    todo, recipes = iter(keys), recipes[: len(keys)]
    workers: list[_Worker] = []
    try:
        for recipe in recipes:
            workers.append(_Worker(recipe, num_workers, len(recipes) * num_workers))
        for _ in range(2 * num_workers):
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
    """A process and the connection to it, as its parent sees them."""

    def __init__(self, recipe: Recipe, num_workers: int, num_threads: int) -> None:
        context = multiprocessing.get_context("spawn")  # a forked process cannot use CUDA, nor locks that threads held
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(recipe, theirs, num_workers, num_threads), daemon=True)
        with _interrupts_ignored():
            self.process.start()
        theirs.close()  # with the process's own the only one, so that its death ends the connection
        self.num_running, self.has_end = 0, False

    def give(self, todo: Iterator[Any]) -> None:
        """Sends the next key, or that there is none."""
        if self.has_end:
            return
        key = next(todo, END)
        self.has_end = key is END
        self.num_running += key is not END
        with contextlib.suppress(OSError):  # of a dead process: `receive` tells
            self.connection.send(key)

    def receive(self) -> tuple[Any, Any]:
        """A key and its result. Raises: ChildProcessError where the process is dead, and what its recipe raised."""
        try:
            key, result = self.connection.recv()
        except (EOFError, OSError):
            raise ChildProcessError(self._death()) from None
        if key is END:
            raise result
        self.num_running -= 1
        return key, result

    def stop(self) -> None:
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
        return f"a worker process {how}{hint}: what was computed is kept, the same command goes on from there"


def _work(recipe: Recipe, connection: Connection, num_workers: int, num_threads: int) -> None:
    """What a process does: the jobs whose keys it is sent, until the last or until its parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all processes, the parent ends this one
    with contextlib.suppress(EOFError, OSError):  # the parent is gone
        try:
            with recipe() as function, torch_threads(num_threads):
                for key, result in run_jobs(function, iter(connection.recv, END), num_workers):
                    connection.send((key, _portable(result)))
        except Exception as error:
            connection.send((END, _portable(error)))


def _portable(result: Any) -> Any:
    """The result; an exception with its traceback as a note, and replaced by another where it cannot be pickled."""
    if not isinstance(result, Exception):
        return result
    text = "".join(traceback.format_exception(type(result), result, result.__traceback__))
    result.__notes__ = [f"in a worker process:\n{text}"]  # type: ignore[attr-defined]  # Python 3.11 and later print it
    try:
        return pickle.loads(pickle.dumps(result))
    except Exception:  # pickling calls code of the exception's class, which may raise anything
        return RuntimeError(f"{type(result).__name__}: {result}")


@contextlib.contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """A process that is started meanwhile ignores Ctrl-C from its first moment on; outside the main thread, without effect."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
