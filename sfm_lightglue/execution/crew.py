"""A crew of workers on several machines: hands out chunks of keys, replaces workers that die, and helps slow ones.

It does not know how workers are started and reached: `Machines` does. So it can be tested without any machine.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Generator, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from sfm_lightglue.execution.portable import Failure
from sfm_lightglue.execution.sharing import Chunk, SharedKeys

logger = logging.getLogger(__name__)

CHUNK_S = 1.0
"""Time that a chunk should take, s. Reaching a worker takes some milliseconds."""
CHUNK_BYTES = 16_000_000
"""Size that the results of a chunk should not exceed."""
MAX_CHUNK = 1024
CHUNKS_OF_A_WORKER = 2
"""One that it works on, and one that it takes next."""
WAIT_S, LOOK_S, TELL_S = 1.0, 10.0, 30.0
"""The crew waits for results for at most this time, looks for more room this often, and says this often how it goes, s."""
SLOW_S, SLOW_FACTOR = 20.0, 5.0
"""A chunk is given to an idle worker too if it takes longer than both this time, s, and this multiple of the usual time."""


class WorkerLost(Exception):
    """A worker died before it gave its result. The text says why."""


@dataclass(frozen=True)
class Worked:
    """What a worker sends after a chunk."""

    results: list[Any]
    """The result of each key, or a `Failure`."""
    seconds: float
    """Time that the chunk took, s."""
    num_bytes: int
    """Size of the results."""


class Machines(Protocol):
    """Starts workers and reaches them. A ticket stands for an answer that will come."""

    def room(self) -> int:
        """How many workers the machines have room for, with those that run."""

    def start(self) -> tuple[Any, Hashable]:
        """A new worker, and the ticket for the name of its machine. The worker may have to wait until there is room."""

    def give(self, worker: Any, keys: list[Any]) -> Hashable:
        """Gives keys to a worker; the ticket for `Worked`. It does them in the order in which it gets them."""

    def wait(self, tickets: Sequence[Hashable], seconds: float) -> Sequence[Hashable]:
        """Tickets whose answer has come, at least one unless none comes in the given time."""

    def answer(self, ticket: Hashable) -> Any:
        """The answer. Raises: WorkerLost; any other error ends the work."""

    def stop(self, workers: Sequence[Any]) -> None:
        """Ends the workers, in the middle of a chunk if necessary. Returns when they have ended."""

    def describe(self) -> str:
        """What a worker needs and what the machines have, for messages."""


@dataclass(frozen=True)
class CrewOptions:
    """How the crew works."""

    num_workers: int = 0
    """Number of workers; 0 = as many as the machines have room for, also if more machines come."""
    chunk_size: int = 0
    """Keys of a chunk; 0 = as many as take about a second."""
    max_restarts: int = 3
    """How often in a row a worker is replaced that has finished no chunk; -1 = always."""
    max_task_retries: int = 3
    """How often a chunk is given again after its worker died."""


@dataclass(eq=False)
class _Worker:
    handle: Any
    place: int
    """Number of its place in the crew; its replacement gets the same."""
    machine: str = ""
    """Name of its machine; empty until it is ready."""
    chunks: deque[tuple[Chunk[Any], Hashable, float]] = field(default_factory=deque)
    """Its chunks with their tickets and the times when they were given. It works on the first one."""


class Crew:
    """Runs the keys of one stage. Use it once.

    Args:
        machines: Where the workers run.
        options: How the crew works.
        num_threads: Number of keys that a worker works on at a time.
    """

    def __init__(self, machines: Machines, options: CrewOptions, num_threads: int = 1) -> None:
        self.machines, self.options, self.num_threads = machines, options, num_threads
        self.num_lost, self.num_given_again, self.num_done = 0, 0, 0
        self._workers: dict[Hashable, _Worker] = {}  # by ticket
        self._crew: list[_Worker] = []
        self._failures: dict[int, int] = {}  # place -> workers in a row that finished nothing
        self._seconds, self._bytes = 0.0, 0.0  # of a key, the mean of the last chunks
        self._room, self._looked, self._told, self._begin = 0, -math.inf, time.monotonic(), time.monotonic()

    def results(self, keys: Iterable[Any]) -> Generator[tuple[Any, Any], None, None]:
        """Each key once with its result, or with an error. See `executor.Executor`.

        Raises: ChildProcessError if all workers are lost; what the recipe or `Machines` raises.
        """
        work: SharedKeys[Any] = SharedKeys(keys, self.options.max_task_retries)
        try:
            while work.num_waiting or work.running:
                self._hire(work)
                self._hand_out(work)
                for ticket in self.machines.wait(list(self._workers), WAIT_S):
                    if ticket in self._workers:  # else its worker was lost with an earlier ticket
                        yield from self._receive(ticket, work)
                self._tell(work)
        finally:
            self.machines.stop([worker.handle for worker in self._crew])

    # --- workers ---------------------------------------------------------------------------------------------------------

    def _hire(self, work: SharedKeys[Any]) -> None:
        """Starts workers for which there is room and work. Raises: ChildProcessError if none may be started any more."""
        now = time.monotonic()
        if now - self._looked > LOOK_S:
            self._looked, self._room = now, self.options.num_workers or self.machines.room()
        occupied = {worker.place for worker in self._crew}
        limit = self.options.max_restarts
        most = max(1, self._room)
        places = [place for place in range(most) if limit < 0 or self._failures.get(place, 0) <= limit]
        if not places and not self._crew:
            raise ChildProcessError(
                f"all workers were lost, {self.num_lost} in all, the last ones before they finished anything: the results so far "
                "are kept, and the same command continues from there"
            )
        for place in places:
            if place not in occupied and len(self._crew) < min(most, work.num_waiting + len(work.running)):
                handle, ticket = self.machines.start()
                worker = _Worker(handle, place)
                self._crew.append(worker)
                self._workers[ticket] = worker

    def _lose(self, worker: _Worker, reason: str, work: SharedKeys[Any]) -> list[tuple[Any, Exception]]:
        """Takes a dead worker out of the crew. Returns the keys that are given up, with an error."""
        self.num_lost += 1
        self._failures[worker.place] = self._failures.get(worker.place, 0) + 1
        self._crew.remove(worker)
        self._workers = {ticket: other for ticket, other in self._workers.items() if other is not worker}
        self.machines.stop([worker.handle])
        waiting = work.num_waiting
        given_up = work.lose(worker, worker.chunks[0][0] if worker.chunks else None)
        self.num_given_again += sum(len(chunk.keys) for chunk, _, _ in worker.chunks) - len(given_up)
        self._looked = -math.inf  # its machine may be gone
        logger.warning(
            "a worker%s was lost: %s. Its %d jobs are given to others",
            *(f" on {worker.machine}" if worker.machine else "", reason, max(0, work.num_waiting - waiting)),
        )
        error = f"{self.options.max_task_retries + 1} workers died at this job, the last one because {reason}"
        return [(key, ChildProcessError(error)) for key in given_up]

    # --- chunks ----------------------------------------------------------------------------------------------------------

    def _hand_out(self, work: SharedKeys[Any]) -> None:
        ready = [worker for worker in self._crew if worker.machine]
        for count in range(1, CHUNKS_OF_A_WORKER + 1):  # all get a first one before any gets a second one
            for worker in ready:
                if len(worker.chunks) < count and (chunk := work.next_chunk(worker, self._chunk_size(work))):
                    self._give(worker, chunk)
        for worker in ready:
            if not worker.chunks and (chunk := self._slow_chunk(work)):
                work.give_too(worker, chunk)
                self._give(worker, chunk)

    def _give(self, worker: _Worker, chunk: Chunk[Any]) -> None:
        ticket = self.machines.give(worker.handle, chunk.keys)
        worker.chunks.append((chunk, ticket, time.monotonic()))
        self._workers[ticket] = worker

    def _chunk_size(self, work: SharedKeys[Any]) -> int:
        if self.options.chunk_size:
            return self.options.chunk_size
        if not self._seconds:
            return self.num_threads
        size = min(CHUNK_S / self._seconds, CHUNK_BYTES / max(1.0, self._bytes), MAX_CHUNK)
        last = work.num_waiting / (CHUNKS_OF_A_WORKER * max(1, len(self._crew)))  # so that all end together
        return max(self.num_threads, math.ceil(min(size, last)))

    def _slow_chunk(self, work: SharedKeys[Any]) -> Chunk[Any] | None:
        """The oldest chunk that takes too long, if only one worker has it."""
        now = time.monotonic()
        for chunk in work.running:
            if len(chunk.holders) == 1:
                usual = CHUNKS_OF_A_WORKER * self._seconds * len(chunk.keys)
                given = next(at for worker in self._crew for other, _, at in worker.chunks if other is chunk)
                if now - given > max(SLOW_S, SLOW_FACTOR * usual):
                    return chunk
        return None

    def _receive(self, ticket: Hashable, work: SharedKeys[Any]) -> Generator[tuple[Any, Any], None, None]:
        """Takes the answer of a worker: it is ready, or has done a chunk, or is dead."""
        worker = self._workers.pop(ticket)
        try:
            answer = self.machines.answer(ticket)
        except WorkerLost as lost:
            yield from self._lose(worker, str(lost), work)
            return
        if not isinstance(answer, Worked):
            worker.machine = str(answer)
            return
        self._failures[worker.place] = 0
        chunk = next(chunk for chunk, other, _ in worker.chunks if other == ticket)
        worker.chunks = deque(entry for entry in worker.chunks if entry[1] != ticket)
        if work.finish(chunk):
            self._learn(answer, len(chunk.keys))
            for key, result in zip(chunk.keys, answer.results, strict=True):
                yield key, result.error if isinstance(result, Failure) else result

    def _learn(self, answer: Worked, count: int) -> None:
        """Updates what is known about a key. A tenth comes from the last chunk."""
        share = 0.1 if self._seconds else 1.0
        self._seconds += share * (max(answer.seconds, 1e-6) / count - self._seconds)
        self._bytes += share * (answer.num_bytes / count - self._bytes)
        self.num_done += count

    def _tell(self, work: SharedKeys[Any]) -> None:
        """Says how it goes, now and then."""
        now = time.monotonic()
        if now - self._told < TELL_S:
            return
        self._told = now
        ready = [worker.machine for worker in self._crew if worker.machine]
        if not ready:
            logger.warning("no worker is ready after %.0f s. %s", now - self._begin, self.machines.describe())
            return
        logger.info("%s", self.status(work))

    def status(self, work: SharedKeys[Any]) -> str:
        """Workers, rate, and jobs that wait, run, or were given again."""
        ready = [worker.machine for worker in self._crew if worker.machine]
        parts = [
            f"{len(ready)} workers on {len({*ready})} machines",
            f"{self.num_done / max(1e-3, time.monotonic() - self._begin):.3g} jobs/s",
            f"{work.num_waiting} jobs wait, {work.num_running} run",
        ]
        if self.num_lost:
            parts.append(f"{self.num_lost} workers lost, {self.num_given_again} jobs given again")
        return ", ".join(parts)
