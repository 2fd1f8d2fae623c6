"""Where a reader finds results: in one HDF5 file, or in the segments that stand for it."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import h5py
import numpy as np

from sfm_lightglue.files import FOLDER_MARK
from sfm_lightglue.products import Pair
from sfm_lightglue.storage.columns import TEXT, Table
from sfm_lightglue.storage.file_groups import FileAttributes, FileGroup, find_group
from sfm_lightglue.storage.hashes import KEY_SEPARATOR, code_pairs, hash_pairs, hash_texts
from sfm_lightglue.storage.layout import explained_damage
from sfm_lightglue.storage.safety import Readable, check_file, leaf_groups
from sfm_lightglue.storage.segment_folder import GroupFile, folder_of, list_segments, open_segment
from sfm_lightglue.storage.segment_index import SegmentIndex
from sfm_lightglue.storage.segments import Segment


class Source(Protocol):
    """Results by key."""

    @property
    def attrs(self) -> Mapping[str, Any]:
        """Attributes of the file: settings, as JSON, and their fingerprint."""

    def find(self, key: str) -> Any | None:
        """The group or `Record` of a key; None if there is none. Raises: RefusedFile."""

    def keys(self) -> list[str]:
        """All keys, sorted."""

    def check(self) -> None:
        """Checks all links and datasets, without reading the numbers. Raises: RefusedFile."""

    def close(self) -> None: ...


def open_source(path: Path) -> Source:
    """Opens a file of results, or its segments if they stand for it.

    Raises: FileNotFoundError if neither is there, ValueError if a file is damaged.
    """
    folder = folder_of(path)
    for _ in range(10):
        if not (folder / FOLDER_MARK).exists():
            break
        with contextlib.suppress(FileNotFoundError):  # another process has joined segments since they were listed
            return SegmentSource(list_segments(folder))
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: run the stage that writes it first")
    return FileSource(path)


def pairs_in_segments(path: Path, pairs: Sequence[Pair]) -> np.ndarray:
    """bool (n,): the pairs that are in the segments of a file, also of a stage that was interrupted or ran in shards."""
    with contextlib.closing(SegmentSource(list_segments(folder_of(path)))) as source:
        return source.pair_entries(pairs) >= 0


class FileSource:
    """One HDF5 file with a group for each result, see `Source`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with explained_damage(path):
            about = path.stat()
            self.version = str(path.absolute()), about.st_ino, about.st_size, about.st_mtime_ns  # another one after any change
            self.file = h5py.File(path, "r")
            try:
                self.attrs = FileAttributes(self.file["/"].id, Readable(path))
            except BaseException:
                self.file.close()
                raise

    def find(self, key: str) -> FileGroup | None:
        return find_group(self.file, key)

    def keys(self) -> list[str]:
        return sorted(leaf_groups(self.file))

    def check(self) -> None:
        check_file(self.file)

    def close(self) -> None:
        self.file.close()


class SegmentSource:
    """Segments, see `Source`."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._segments: list[Segment | GroupFile] = []
        try:
            for path in paths:
                self._segments.append(open_segment(path))
            self.index = SegmentIndex(self._segments)
        except BaseException:
            self.close()
            raise
        newest = self._segments[-1] if self._segments else None
        self.attrs = {} if newest is None else {"fingerprint": newest.fingerprint, "settings": newest.settings_text}

    def find(self, key: str) -> Any | None:
        entry = self.index.find_key(key)
        return None if entry < 0 else self.index.record(entry)

    def keys(self) -> list[str]:
        return sorted(self.index.texts(self.index.live(), "key"))

    def check(self) -> None:
        for segment in self._segments:
            segment.check()

    def close(self) -> None:
        for segment in self._segments:
            segment.close()

    # --- many results at once ---

    def entries(self, keys: Sequence[str]) -> np.ndarray:
        """int64 (n,): the entry of each key in the index; -1 if it is not stored."""
        return self.index.find(hash_texts(keys, KEY_SEPARATOR))

    def pair_entries(self, pairs: Sequence[Pair]) -> np.ndarray:
        """As `entries`, for the keys of pairs."""
        names, firsts, seconds = code_pairs(pairs)
        return self.index.find(hash_pairs([name.replace("/", "-") for name in names], firsts, seconds))

    def numbers(self, entries: np.ndarray, attribute: str, default: float) -> np.ndarray:
        """float64 (n,): an attribute of the results; `default` for entries -1, and NaN for results without it."""
        found = np.full(len(entries), np.nan)
        found[entries < 0] = default
        for _, table, at, rows in self.index.tables(entries):
            number = _attribute(table, attribute)
            if number is not None and table.schema.attributes[number][2:] != (TEXT, ()):
                found[at] = table.columns[f"a{number}"][:].reshape(table.num_rows, -1)[rows, 0]
        return found

    def has_groups(self, entries: np.ndarray) -> bool:
        """Whether some results are in files with a group for each, whose index does not have all attributes of the datasets."""
        return any(isinstance(segment, GroupFile) for segment, *_ in self.index.tables(entries))

    def attribute_texts(self, entries: np.ndarray, attribute: str) -> list[str]:
        """A text attribute of the results; empty if it is missing."""
        found = [""] * len(entries)
        for _, table, at, rows in self.index.tables(entries):
            number = _attribute(table, attribute)
            if number is not None and table.schema.attributes[number][2] == TEXT:
                texts = table.texts(f"a{number}")
                for position, row in zip(at.tolist(), rows.tolist(), strict=True):
                    found[position] = texts[row]
        return found

    def lengths(self, entries: np.ndarray, dataset: str) -> np.ndarray:
        """int64 (n,): the first side of a dataset of the results, such as the number of keypoints; -1 if it is missing."""
        found = np.full(len(entries), -1, np.int64)
        for segment, table, at, rows in self.index.tables(entries):
            number = next((i for i, (name, _, _) in enumerate(table.schema.datasets) if name == dataset), None)
            if isinstance(segment, GroupFile):
                stored = [self.index.record(int(entry)).find(dataset) for entry in entries[at]]
                found[at] = [-1 if each is None else each.shape[0] for each in stored]
            elif number is not None and table.schema.datasets[number][2] == 1:
                found[at] = np.diff(table.columns[f"d{number}.ends"][:], prepend=0)[rows]
            elif number is not None and table.schema.datasets[number][2] > 1:
                found[at] = table.columns[f"d{number}.shape"][:][rows, 0]
        return found


def _attribute(table: Table, name: str) -> int | None:
    return next((i for i, (of, found, _, _) in enumerate(table.schema.attributes) if (of, found) == ("", name)), None)
