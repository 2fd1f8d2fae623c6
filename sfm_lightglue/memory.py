"""How much memory this machine has, or the container in which the process runs."""

from __future__ import annotations

import contextlib
import functools
import os
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
