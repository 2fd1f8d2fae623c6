"""Divides keys among workers that come and go: parts of neighbours, chunk by chunk, and lost chunks again. Starts nothing."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)

WINDOW = 100_000
"""Keys that are held in memory at a time."""


@dataclass(eq=False)
class Chunk(Generic[Key]):
    """A few keys that a worker gets together."""

    keys: list[Key]
    losses: int = 0
    """How many workers died while they worked on it."""
    is_done: bool = False
    holders: set[Hashable] = field(default_factory=set)
    """The workers that have it now. There are two if a slow worker's chunk was given to another one too."""


class _Part(Generic[Key]):
    """Neighbouring keys that no worker has taken yet."""

    def __init__(self, keys: list[Key], start: int, stop: int) -> None:
        self.keys, self.start, self.stop = keys, start, stop

    def __len__(self) -> int:
        return self.stop - self.start

    def take(self, count: int) -> list[Key]:
        start, self.start = self.start, min(self.start + count, self.stop)
        return self.keys[start : self.start]

    def split(self) -> _Part[Key]:
        """The second half, which is removed; all of it if there is only one key."""
        middle, stop = (self.start + self.stop) // 2, self.stop
        self.stop = middle
        return _Part(self.keys, middle, stop)


class SharedKeys(Generic[Key]):
    """The keys of a stage while workers take them.

    Neighbouring keys share images, which a worker keeps in its cache. Each worker therefore gets a part of neighbours and takes
    chunks from its beginning. A worker without a part takes the second half of the largest one, so that all end together.

    Args:
        keys: The keys. They are read as workers need them.
        max_losses: How many workers may die at a chunk. Its keys are given up after one more.
    """

    def __init__(self, keys: Iterable[Key], max_losses: int = 3) -> None:
        self.max_losses = max_losses
        self.running: list[Chunk[Key]] = []
        """Chunks that workers have now, the oldest first."""
        self._source = iter(keys)
        self._lost: deque[Chunk[Key]] = deque()
        self._free: list[_Part[Key]] = []
        self._parts: dict[Hashable, _Part[Key]] = {}
        self._fill()

    @property
    def num_waiting(self) -> int:
        """Keys in memory that no worker has."""
        parts = sum(len(part) for part in (*self._free, *self._parts.values()))
        return parts + sum(len(chunk.keys) for chunk in self._lost)

    @property
    def num_running(self) -> int:
        """Keys that workers have now."""
        return sum(len(chunk.keys) for chunk in self.running)

    def next_chunk(self, worker: Hashable, size: int) -> Chunk[Key] | None:
        """The next keys for a worker, at most `size`; None if all keys are taken. Lost chunks come first."""
        if self._lost:
            chunk = self._lost.popleft()
        else:
            part = self._part_of(worker)
            if part is None:
                return None
            chunk = Chunk(part.take(max(1, size)))
        self.running.append(chunk)
        chunk.holders.add(worker)
        return chunk

    def give_too(self, worker: Hashable, chunk: Chunk[Key]) -> None:
        """Gives a running chunk to one more worker. The first result counts."""
        chunk.holders.add(worker)

    def finish(self, chunk: Chunk[Key]) -> bool:
        """Marks a chunk as done. False if another worker has done it before."""
        if chunk.is_done:
            return False
        chunk.is_done = True
        chunk.holders.clear()
        self.running.remove(chunk)
        return True

    def lose(self, worker: Hashable, begun: Chunk[Key] | None = None) -> list[Key]:
        """Takes everything back from a worker that died, and returns the keys that are given up.

        Args:
            worker: The worker.
            begun: The chunk that it was working on. Only this one may be the reason of its death.
        """
        if part := self._parts.pop(worker, None):
            self._free.append(part)
        given_up: list[Key] = []
        for chunk in [chunk for chunk in self.running if worker in chunk.holders]:
            chunk.holders.remove(worker)
            chunk.losses += chunk is begun
            if chunk.holders:  # another worker has it too
                continue
            self.running.remove(chunk)
            if chunk.losses > self.max_losses:
                given_up += chunk.keys
            elif chunk.losses > 1:  # one of its keys may kill workers: the others must not be lost with it
                self._lost.extend(Chunk([key], chunk.losses) for key in chunk.keys)
            else:
                self._lost.append(chunk)
        return given_up

    def _part_of(self, worker: Hashable) -> _Part[Key] | None:
        """The part of a worker, with at least one key; None if there are no more keys."""
        part = self._parts.get(worker)
        if part is None or not part:
            if not self._free:
                self._fill()
            others = [other for other in (*self._free, *self._parts.values()) if other]
            if not others:
                return None
            largest = max(others, key=len)
            if largest in self._free:
                self._free.remove(largest)
                part = largest
            else:
                part = largest.split()
            self._parts[worker] = part
        return part

    def _fill(self) -> None:
        """Reads more keys if few are left."""
        if sum(len(part) for part in self._parts.values()) < WINDOW // 2 and (keys := list(islice(self._source, WINDOW))):
            self._free.append(_Part(keys, 0, len(keys)))
