"""Files that are written whole or not at all, and locks between processes."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def written_whole(path: Path | str) -> Iterator[Path]:
    """Yields a temporary path in the folder of `path`. When the block ends, the file that was written there becomes `path`.

    The file reaches the disk before it is renamed, so `path` is never half a file, even after a power cut. If the block raises,
    `path` keeps its old content. A killed process leaves `NAME.PID.tmp` behind; `remove_stale` deletes it.
    """
    path = Path(path)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("r+b") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_stale(path: Path | str) -> None:
    """Deletes the temporary files that killed processes left beside `path`. Call it only while no other process writes `path`."""
    path = Path(path)
    for stale in path.parent.glob("*.tmp"):
        if stale.name == f"{path.name}.tmp" or stale.name.startswith(f"{path.name}."):
            stale.unlink(missing_ok=True)


def write_json(path: Path | str, content: Mapping[str, Any]) -> None:
    """Writes `content` as indented UTF-8 JSON, whole or not at all. Raises: ValueError for NaN and infinity."""
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False), encoding="utf-8")


@contextlib.contextmanager
def locked(path: Path | str, *, wait: bool = True) -> Iterator[None]:
    """Holds the lock file `path` during the block, so that only one process at a time is inside. A killed process frees it.

    On file systems without locks (some network drives) it logs a warning and goes on.

    Raises: BlockingIOError if `wait` is False and another process holds the lock.
    """
    # A soft lock, which filelock would fall back to, is only a file: a killed process would leave it behind.
    lock = filelock.FileLock(path, timeout=-1 if wait else 0, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise BlockingIOError(f"another process holds the lock {path}") from error
    except (OSError, NotImplementedError) as error:
        logger.warning("%s cannot be locked (%s): do not start a second process there", path, error)
        yield
        return
    try:
        yield
    finally:
        lock.release()
