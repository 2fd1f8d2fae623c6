"""Finds results in several segments: the newest result of each key."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from sfm_lightglue.storage.columns import Table
from sfm_lightglue.storage.hashes import KEY_SEPARATOR, hash_text

NONE = -1
"""Entry of a key that is not stored."""
DELETED = np.int64(1) << 62
"""This bit of a place says that the key was deleted there."""


class Indexed(Protocol):
    """A file with results and an index: a `Segment` or a `GroupFile`."""

    path: Path
    tables: list[Table]
    num_rows: int

    def index(self) -> dict[str, np.ndarray]: ...

    def record(self, table: int, row: int) -> Any: ...


class SegmentIndex:
    """Where the results in some segments are: a place is a number that stands for segment, table and row.

    A million results take 32 MB.

    Args:
        segments: The segments, the oldest first.
    """

    def __init__(self, segments: Sequence[Indexed]) -> None:
        self.segments = list(segments)
        columns: dict[str, list[np.ndarray]] = {name: [] for name in ("high", "low", "stamp", "place")}
        for number in reversed(range(len(self.segments))):
            found = self.segments[number].index()
            is_deletion = np.array([table.schema.is_deletion for table in self.segments[number].tables], bool)
            place = (number << 48) | (found["table"].astype(np.int64) << 32) | found["row"].astype(np.int64)
            if is_deletion.any():
                place[is_deletion[found["table"]]] |= DELETED
            for name in ("high", "low", "stamp"):
                columns[name].append(found[name])
            columns["place"].append(place)
        if not columns["place"]:
            columns = {name: [np.zeros(0, np.uint64)] for name in ("high", "low", "stamp")} | {"place": [np.zeros(0, np.int64)]}
        joined = {name: arrays[0] if len(arrays) == 1 else np.concatenate(arrays) for name, arrays in columns.items()}
        high, low = joined["high"], joined["low"]
        order = np.argsort(high, kind="stable")  # the newest of equal keys is first
        if (np.diff(low[order]).astype(bool) & (np.diff(high[order]) == 0)).any():  # half of the hash of two keys is equal
            order = np.lexsort((low, high))
        self.high, self.low, self.stamp, self.place = high[order], low[order], joined["stamp"][order], joined["place"][order]
        self.is_newest = np.ones(len(high), bool)
        """bool (n,): which entries are the newest of their key."""
        self.is_newest[1:] = (self.high[1:] != self.high[:-1]) | (self.low[1:] != self.low[:-1])

    def __len__(self) -> int:
        return len(self.live())

    def find(self, keys: np.ndarray) -> np.ndarray:
        """int64 (n,): for hashes of keys uint64 (n, 2) the positions of their entries, -1 if they are not stored."""
        found = np.full(len(keys), NONE, np.int64)
        if not len(self.high):
            return found
        order = np.argsort(keys[:, 0], kind="stable")  # in this order, a search of the memory is four times faster
        start = np.searchsorted(self.high, keys[order, 0])
        todo = np.arange(len(keys))
        while len(todo):
            at = np.minimum(start[todo], len(self.high) - 1)
            wanted = keys[order[todo]]
            same_half = (self.high[at] == wanted[:, 0]) & (start[todo] < len(self.high))
            same = same_half & (self.low[at] == wanted[:, 1])
            found[order[todo[same]]] = np.where(self.place[at[same]] & DELETED, NONE, at[same])
            todo = todo[same_half & ~same]
            start[todo] += 1
        return found

    def find_key(self, key: str) -> int:
        """As `find`, for one key."""
        high, low = hash_text(key, KEY_SEPARATOR)
        at = int(np.searchsorted(self.high, np.uint64(high)))
        while at < len(self.high) and int(self.high[at]) == high:
            if int(self.low[at]) == low:
                return NONE if self.place[at] & DELETED else at
            at += 1
        return NONE

    def record(self, entry: int) -> Any:
        """The result at a position, see `find`."""
        segment, table, row = self.split(self.place[entry : entry + 1])
        return self.segments[int(segment[0])].record(int(table[0]), int(row[0]))

    def path(self, entry: int) -> Path:
        """The file with the result at a position, see `find`."""
        return self.segments[int(self.split(self.place[entry : entry + 1])[0][0])].path

    def split(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Numbers of segment, table and row of some `place`."""
        return (places & ~DELETED) >> 48, (places >> 32) & 0xFFFF, places & 0xFFFFFFFF

    def tables(self, entries: np.ndarray) -> list[tuple[Indexed, Table, np.ndarray, np.ndarray]]:
        """For entries (n,): segment, table, the positions in `entries` that are there, and their rows."""
        segments, tables, rows = self.split(self.place[entries])
        groups = []
        codes = (segments << 16) | tables
        for code in np.unique(codes[entries >= 0]):
            at = np.flatnonzero((codes == code) & (entries >= 0))
            segment = self.segments[int(code) >> 16]
            groups.append((segment, segment.tables[int(code) & 0xFFFF], at, rows[at]))
        return groups

    def texts(self, entries: np.ndarray, column: str) -> list[str]:
        """The keys (`key`) or stamps (`stamp`) of entries (n,); empty for -1."""
        found = [""] * len(entries)
        for _, table, at, rows in self.tables(entries):
            texts = table.texts(column)
            for position, row in zip(at.tolist(), rows.tolist(), strict=True):
                found[position] = texts[row]
        return found

    def live(self) -> np.ndarray:
        """Positions of all entries that are the newest of their key and not deleted."""
        return np.flatnonzero(self.is_newest & (self.place & DELETED == 0))
