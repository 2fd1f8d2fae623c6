"""The folder of segments beside a file of results: `matches.h5.shards/`.

    000012.h5, 000012-NAME.h5    segments; a higher number is newer; NAME is their writer if several write at once
    base.h5, base.h5.index       a former `matches.h5`, older than all segments, and its index
    complete.json                there if the segments stand for the whole file; which of them were checked

Earlier versions wrote segments with a group for each result. They are read too.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from sfm_lightglue.files import FOLDER_MARK, written_whole
from sfm_lightglue.storage.columns import Table
from sfm_lightglue.storage.file_groups import FileGroup, find_group
from sfm_lightglue.storage.layout import explained_damage, read_group
from sfm_lightglue.storage.record import GroupData
from sfm_lightglue.storage.safety import has_member, leaf_groups
from sfm_lightglue.storage.segment_writer import Part, parts_of, write_segment
from sfm_lightglue.storage.segments import ABOUT, INDEX, Segment

SEGMENT = re.compile(r"(\d{6,9})(?:-([A-Za-z0-9_-]{1,64}))?\.h5")
BASE = re.compile(r"base(?:-(\d+))?\.h5")
OTHERS = re.compile(rf"{FOLDER_MARK}|{BASE.pattern}\.index")
TEMPORARY = re.compile(rf"(?:{SEGMENT.pattern}|{OTHERS.pattern})\.\d+\.tmp")


def folder_of(path: Path) -> Path:
    """The folder of segments of a file."""
    return Path(f"{path}.shards")


def is_ours(name: str) -> bool:
    """Whether a file in a folder of segments has a name that a run gives."""
    return any(pattern.fullmatch(name) for pattern in (SEGMENT, BASE, OTHERS, TEMPORARY))


def age(path: Path) -> tuple[int, str]:
    """Sorts segments, the oldest first."""
    if name := SEGMENT.fullmatch(path.name):
        return int(name[1]), path.name
    name = BASE.fullmatch(path.name)
    return -1 - int(name[1] or 0) if name else 0, path.name


def list_segments(folder: Path) -> list[Path]:
    """All segments of a folder, the oldest first; none if there is no folder."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return sorted((path for path in folder.iterdir() if SEGMENT.fullmatch(path.name) or BASE.fullmatch(path.name)), key=age)
    return []


def free_base(folder: Path) -> Path:
    """The name that a merged file gets as the oldest segment of a folder."""
    bases = [path for path in list_segments(folder) if BASE.fullmatch(path.name)]
    return folder / (f"base-{-age(bases[0])[0]}.h5" if bases else "base.h5")


def state_of(path: Path) -> list[int]:
    """Size and time of a file: they are others when it was changed. Empty if there is no file."""
    with contextlib.suppress(FileNotFoundError):
        about = path.stat()
        return [about.st_size, about.st_mtime_ns]
    return []


def read_mark(folder: Path) -> dict[str, list[int]]:
    """The state of each segment that was checked, by name; empty if there is no mark or it is damaged."""
    with contextlib.suppress(OSError, ValueError, AttributeError, TypeError):
        return dict(json.loads((folder / FOLDER_MARK).read_bytes())["checked"])
    return {}


def open_segment(path: Path) -> Segment | GroupFile:
    """Raises: ValueError if the file is damaged, see `explained_damage`; FileNotFoundError."""
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    with explained_damage(path):
        with h5py.File(path, "r") as file:
            has_columns = has_member(file, ABOUT) and isinstance(file[ABOUT], h5py.Dataset)
        return Segment(path) if has_columns else GroupFile(path)


class GroupFile:
    """A file with a group for each result, as hloc reads it, open for reading.

    Its index is in memory, or, for a `base.h5`, in the file `base.h5.index`.

    Args:
        path: The file.
        stored: Keys and stamps of its results, if they are known; they are read if not.

    Raises: ValueError, RefusedFile and others for a damaged file.
    """

    def __init__(self, path: Path, stored: Iterable[tuple[str, str]] | None = None) -> None:
        self.path, self._file = path, h5py.File(path, "r")
        self.fingerprint, self.settings_text = (str(self._file.attrs.get(name, "")) for name in ("fingerprint", "settings"))
        self.settings = dict(json.loads(self.settings_text or "{}"))
        self._index: Segment | None = None
        self._parts: list[Part] = []
        if BASE.fullmatch(path.name):
            self._index = self._open_index() or self._write_index()
        else:
            keys = self._stamps() if stored is None else stored
            known = ((key, stamp, GroupData({})) for key, stamp in keys)
            self._parts = parts_of(self._records() if SEGMENT.fullmatch(path.name) else known)
        self.tables: list[Table] = self._index.tables if self._index else [part.table for part in self._parts]
        self.num_rows = sum(table.num_rows for table in self.tables)

    def index(self) -> dict[str, np.ndarray]:
        """As `Segment.index`."""
        if self._index:
            return self._index.index()
        order = np.zeros(0, np.int64)
        columns: dict[str, Any] = {name: [np.zeros(0, dtype)] for name, dtype in INDEX.items()}
        for number, part in enumerate(self._parts):
            columns["high"].append(part.keys[:, 0])
            columns["low"].append(part.keys[:, 1])
            columns["stamp"].append(part.stamps)
            columns["table"].append(np.full(len(part.keys), number, "<u2"))
            columns["row"].append(np.arange(len(part.keys), dtype="<u4"))
        found = {name: np.concatenate(arrays) for name, arrays in columns.items()}
        order = np.argsort(found["high"], kind="stable")
        return {name: array[order] for name, array in found.items()}

    def record(self, table: int, row: int) -> FileGroup | None:
        """A result."""
        with explained_damage(self.path):
            return find_group(self._file, self.tables[table].text("key", row))

    def check(self) -> None:
        """Reads all results. Raises: ValueError and others for a damaged file."""
        for key in leaf_groups(self._file):
            read_group(self._file[key])

    def close(self) -> None:
        self._file.close()
        if self._index:
            self._index.close()

    def _stamps(self) -> Iterator[tuple[str, str]]:
        """Key and stamp of each result: all that a store needs of the merged file. All attributes take twice as long."""
        for key in leaf_groups(self._file):
            group = find_group(self._file, key)
            yield key, "" if group is None else str(group.attrs.get("stamp", ""))

    def _records(self) -> Iterator[tuple[str, str, GroupData]]:
        """Key, stamp and attributes of each result."""
        for key in leaf_groups(self._file):
            attributes = dict(self._file[key].attrs)
            stamp = str(attributes.pop("stamp", ""))
            simple = {name: value for name, value in attributes.items() if isinstance(value, (str, np.number, np.bool_))}
            yield key, stamp, GroupData({}, {"": simple})

    def _open_index(self) -> Segment | None:
        """The stored index; None if there is none, or if it is damaged or of another file: it is made again."""
        with contextlib.suppress(Exception):
            index = Segment(Path(f"{self.path}.index"))
            index.check()
            if index.source == state_of(self.path):
                return index
        return None

    def _write_index(self) -> Segment:
        path, settings = Path(f"{self.path}.index"), json.dumps(self.settings, sort_keys=True)
        with written_whole(path) as temporary:
            attributes = {"settings": settings, "fingerprint": self.fingerprint}
            write_segment(temporary, attributes, parts_of(self._records()), source=state_of(self.path))
        return Segment(path)
