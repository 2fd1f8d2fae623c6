"""Content ids of photos and masks: the first 16 digits of their SHA-256, remembered from run to run.

A file is known again by its size, its time of change and a hash of three samples of its content. Only if one of these differs is
the whole file read. The ids are in `features.h5.photos.json` beside the file of features; a run without it reads all photos.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from sfm_lightglue.execution.devices import num_cores
from sfm_lightglue.files import read_own_json, remove_stale, sha256_of, written_whole

SAMPLE_BYTES = 4096
RECENT_NS = 2_000_000_000
"""A file that changed so shortly before is not remembered: it may change again without another time (FAT counts 2 s)."""
NUM_READERS = 16
"""Least number of files that are read at the same time: disks and network drives answer several requests at once."""


def ids_file(features: Path | str) -> Path:
    """The file that remembers the content ids of the photos of a file of features."""
    return Path(f"{features}.photos.json")


class ContentIds:
    """Content ids by name, remembered in a file.

    Args:
        path: The file. A damaged file counts as missing.

    Raises: ValueError if there is a file that no run has written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        content = read_own_json(path, ('{"photos":',)) if os.path.lexists(path) else None
        known = content.get("photos") if content else None
        self._known: dict[str, Any] = known if isinstance(known, dict) else {}
        self._used: dict[str, list[Any]] = {}

    def of_files(self, files: Iterable[tuple[str, Path]]) -> dict[str, str | OSError]:
        """The content id of each file by name, or the error of a file that cannot be read."""
        files = list(files)
        with ThreadPoolExecutor(max(NUM_READERS, num_cores())) as pool:
            return dict(zip((name for name, _ in files), pool.map(lambda file: self._attempt(*file), files), strict=True))

    def of_file(self, name: str, path: Path) -> str:
        """The content id of a file: 16 hexadecimal digits. Several threads may call it. Raises: OSError."""
        about = path.stat()
        state = [about.st_size, about.st_mtime_ns, _sample(path, about.st_size)]
        known = self._known.get(name)
        if isinstance(known, list) and known[:3] == state and len(known) == 4:
            content_id = str(known[3])
        else:
            content_id = sha256_of(path)[:16]
            if time.time_ns() - about.st_mtime_ns < RECENT_NS:
                return content_id
        self._used[name] = [*state, content_id]
        return content_id

    def save(self) -> None:
        """Remembers the ids of the files that were asked for, and of those that the file had before."""
        if all(self._known.get(name) == entry for name, entry in self._used.items()):
            return
        remove_stale(self.path)
        content = json.dumps({"photos": dict(sorted({**self._known, **self._used}.items()))}, ensure_ascii=True)
        with written_whole(self.path) as temporary:
            temporary.write_text(content, encoding="ascii")

    def _attempt(self, name: str, path: Path) -> str | OSError:
        try:
            return self.of_file(name, path)
        except OSError as error:
            return error


def _sample(path: Path, size: int) -> str:
    """A hash of the beginning, the middle and the end of a file."""
    digest = hashlib.blake2b(digest_size=8)
    with path.open("rb", buffering=0) as file:
        for start in sorted({0, max(0, (size - SAMPLE_BYTES) // 2), max(0, size - SAMPLE_BYTES)}):
            file.seek(start)
            digest.update(file.read(SAMPLE_BYTES) or b"")
    return digest.hexdigest()
