"""How much memory this machine has, or the container in which the process runs."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Iterator
from pathlib import Path

CGROUP_FILES = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Limit of the memory of a container, in the versions 2 and 1 of Linux's control groups."""
UNKNOWN_MEMORY = 8 << 30
"""Memory that is assumed if the system does not tell, bytes."""


@functools.cache
def memory_bytes() -> int:
    """Memory of this machine, or of the container if it has a limit, bytes."""
    sizes = []
    with contextlib.suppress(ValueError, OSError, AttributeError):  # Windows has no sysconf
        sizes.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for path in CGROUP_FILES:
        with contextlib.suppress(ValueError, OSError):  # `max`, or not in a container
            sizes.append(int(path.read_text()))
    return min((size for size in sizes if size > 0), default=UNKNOWN_MEMORY)


class MemoryBudget:
    """Memory that the threads of this process share for large steps. A step waits until there is enough, or until it is alone."""

    def __init__(self, num_bytes: int) -> None:
        self.num_bytes, self.taken = num_bytes, 0
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def reserved(self, num_bytes: int) -> Iterator[None]:
        """Takes memory for a step, and gives it back at the end of the block."""
        with self._changed:
            self._changed.wait_for(lambda: not self.taken or self.taken + num_bytes <= self.num_bytes)
            self.taken += num_bytes
        try:
            yield
        finally:
            with self._changed:
                self.taken -= num_bytes
                self._changed.notify_all()
