"""A segment: one immutable HDF5 file with many results as columns, see `columns.py`.

Datasets of a segment are plain blocks. A result is read at its place in the file, without HDF5 and its lock. The dataset `about`
(JSON) gives the place, type, shape and CRC-32 of each block. The blocks `index.*` list the results in the order of the hashes of
their keys. Places outside of the file and positions that do not fit together are refused: a segment may be damaged or forged.
"""

from __future__ import annotations

import functools
import json
import math
import os
import threading
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np

from sfm_lightglue.storage.columns import MATCHES, SCORES, TEXT, Column, Schema, Table
from sfm_lightglue.storage.record import Record
from sfm_lightglue.storage.safety import RefusedFile, find_dataset, max_bytes

VERSION = 1
ABOUT = "about"
SMALL_BYTES = 256_000
"""Files up to this size are read at once, which needs no open file."""
AHEAD_BYTES = 4096
"""Bytes of a column that are read together if only a few are asked for."""
INDEX = {"high": "<u8", "low": "<u8", "stamp": "<u8", "table": "<u2", "row": "<u4"}
"""Columns of the index: the two halves of the hash of a key, half of the hash of its stamp, and where the result is."""


class FileBytes:
    """The bytes of a file. Several threads may read. `close` ends it."""

    def __init__(self, path: Path) -> None:
        self.path, self.size, self._lock = path, path.stat().st_size, threading.Lock()
        self._data = path.read_bytes() if self.size <= SMALL_BYTES else None
        self._file = path.open("rb", buffering=0) if self._data is None else None

    def read(self, start: int, size: int) -> bytes:
        """Raises: ValueError if the file is shorter, or was closed."""
        if self._file is None:
            data = (self._data or b"")[start : start + size]
        else:
            data = self._read_at(start, size)
            while len(data) < size and (more := self._read_at(start + len(data), size - len(data))):
                data += more  # the system reads at most 2 GB at a time
        if len(data) != size:
            raise ValueError(f"{self.path} ends before byte {start + size}")
        return data

    def _read_at(self, start: int, size: int) -> bytes:
        assert self._file is not None
        if hasattr(os, "pread"):
            return os.pread(self._file.fileno(), size, start)
        with self._lock:  # Windows
            self._file.seek(start)
            return self._file.read(size) or b""

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class FileColumn:
    """A block of numbers in a file. Several threads may read.

    If a few rows are asked for, their neighbours are read too and kept until others are: the next result mostly lies there.
    """

    def __init__(self, file: FileBytes, offset: int, dtype: np.dtype, shape: tuple[int, ...]) -> None:
        self.bytes, self.offset, self.dtype, self.shape = file, offset, dtype, shape
        self._row_bytes = math.prod(shape[1:]) * dtype.itemsize
        self._rows_ahead = AHEAD_BYTES // max(1, self._row_bytes)
        self._kept = 0, np.zeros((0, *shape[1:]), dtype)  # first row, and the rows

    def __getitem__(self, rows: slice) -> np.ndarray:
        start, stop, _ = rows.indices(self.shape[0])
        stop = max(start, stop)
        first, kept = self._kept
        if first <= start and stop <= first + len(kept):
            return kept[start - first : stop - first]
        if 2 * (stop - start) > self._rows_ahead:
            return self._read(start, stop)
        kept = self._read(start, min(self.shape[0], start + self._rows_ahead))
        self._kept = start, kept
        return kept[: stop - start]

    def _read(self, start: int, stop: int) -> np.ndarray:
        if (size := (stop - start) * self._row_bytes) > max_bytes():
            raise RefusedFile(f"{self.bytes.path} has a block of {size} bytes, too many for the memory")
        data = self.bytes.read(self.offset + start * self._row_bytes, size)
        if self.dtype == bool:
            data = (np.frombuffer(data, np.uint8) != 0).tobytes()
        found: np.ndarray = np.frombuffer(data, self.dtype).reshape(stop - start, *self.shape[1:])
        return found


class Segment:
    """A segment, open for reading.

    Args:
        path: The file.

    Raises: ValueError if the file is damaged or forged; OSError.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with h5py.File(path, "r") as file:
            self.fingerprint, self.settings_text = (str(file.attrs.get(name, "")) for name in ("fingerprint", "settings"))
            about = find_dataset(file, ABOUT)
            content = b"" if about is None else about[()].tobytes()
            if zlib.crc32(content) != file.attrs.get("about_crc32", 0) or not content:
                raise ValueError("its list of contents is damaged")
        self._about = json.loads(content)
        if self._about["version"] != VERSION:
            raise ValueError(f"it is a segment of version {self._about['version']}, version {VERSION} is read")
        self.bytes = FileBytes(path)
        self.tables = [
            Table(Schema.from_json(schema), int(num_rows), self._columns(number, Schema.from_json(schema), int(num_rows)))
            for number, (schema, num_rows) in enumerate(self._about["tables"])
        ]
        self.num_rows = sum(table.num_rows for table in self.tables)
        self._index = {name: self._column(f"index.{name}", dtype, (self.num_rows,)) for name, dtype in INDEX.items()}

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that the results were made with."""
        return dict(json.loads(self.settings_text or "{}"))

    @property
    def source(self) -> list[int]:
        """Size and time of the file of which this is the index; empty if it holds the results itself."""
        return list(self._about.get("source", []))

    def index(self) -> dict[str, np.ndarray]:
        """The columns of `INDEX`, sorted by `high`. Raises: ValueError if they do not fit to the tables."""
        found = {name: column[:] for name, column in self._index.items()}
        sizes = np.array([table.num_rows for table in self.tables], np.int64)
        if self.num_rows and (found["table"].max() >= len(sizes) or (found["row"] >= sizes[found["table"]]).any()):
            raise RefusedFile(f"{self.path} has an index that does not fit to its results")
        return found

    def record(self, table: int, row: int) -> StoredRecord:
        """A result."""
        return StoredRecord(self, self.tables[table], row)

    def check(self) -> None:
        """Reads all blocks. Raises: ValueError if one has another checksum than when it was written."""
        for name, (offset, dtype, shape, checksum) in self._about["columns"].items():
            size, found = math.prod(shape) * np.dtype(dtype).itemsize, 0
            for start in range(0, size, 1 << 22):
                found = zlib.crc32(self.bytes.read(offset + start, min(1 << 22, size - start)), found)
            if found != checksum:
                raise ValueError(f"the checksum of {name} is wrong")

    def close(self) -> None:
        self.bytes.close()

    def _columns(self, number: int, schema: Schema, num_rows: int) -> dict[str, Column]:
        columns: dict[str, Column] = {}
        for name, (dtype, tail) in schema.fixed().items():
            columns[name] = self._column(f"{number}.{name}", dtype, (num_rows, *tail))
        for ends, names in schema.ragged().items():
            columns[ends] = self._column(f"{number}.{ends}", "<i8", (num_rows,))
            for name, dtype in names.items():
                columns[name] = self._column(f"{number}.{name}", dtype, None)
        return columns

    def _column(self, name: str, dtype: str, shape: tuple[int, ...] | None) -> FileColumn:
        """The block `name`; any length if `shape` is None. Raises: RefusedFile if it is another one, or not in the file."""
        offset, found_dtype, found_shape, _ = self._about["columns"].get(name, (0, "", (), 0))
        size = math.prod(found_shape) * np.dtype(dtype).itemsize
        is_expected = len(found_shape) == 1 if shape is None else tuple(found_shape) == shape
        if found_dtype != dtype or not is_expected or min(found_shape) < 0 or not 0 <= offset <= self.bytes.size - size:
            raise RefusedFile(f"{self.path} has no block {name} of type {dtype} and shape {shape or '(n,)'} inside the file")
        return FileColumn(self.bytes, offset, np.dtype(dtype), tuple(found_shape))


class StoredRecord(Record):
    """A result in a segment. Its arrays are read when they are asked for."""

    def __init__(self, segment: Segment, table: Table, row: int) -> None:
        self.file, self._table, self._row = SimpleNamespace(filename=str(segment.path)), table, row
        self._names = {name: i for i, (name, _, _) in enumerate(table.schema.datasets)}

    @functools.cached_property
    def name(self) -> str:  # type: ignore[override]
        return f"/{self._text('key')}"

    @functools.cached_property
    def attrs(self) -> Mapping[str, Any]:  # type: ignore[override]
        return dict(sorted({**self._attributes_of(""), "stamp": self._text("stamp")}.items()))

    def __iter__(self) -> Iterator[str]:
        return iter(sorted([*self._names, *([MATCHES, SCORES] if self._table.schema.matches else [])]))

    def has(self, name: str) -> bool:
        """See `Record`."""
        return name in self._names or (bool(self._table.schema.matches) and name in (MATCHES, SCORES))

    def find(self, name: str) -> StoredDataset | None:
        """See `Record`."""
        if (number := self._names.get(name)) is None:
            if self._table.schema.matches and name in (MATCHES, SCORES):
                return self._dense(name)
            return None
        dtype, ndim = self._table.schema.datasets[number][1:]
        start, stop = self._span(f"d{number}.ends", f"d{number}")
        shape = (stop - start,) if ndim == 1 else tuple(self._fixed(f"d{number}.shape").tolist())
        if min(shape, default=0) < 0 or math.prod(shape) != stop - start:
            raise RefusedFile(f"{self.file.filename}: {self.name[1:]} has {name} of shape {shape} in {stop - start} numbers")
        column = self._table.columns[f"d{number}"]
        return StoredDataset(np.dtype(dtype), shape, self._attributes_of(name), lambda: column[start:stop].reshape(shape))

    def numeric(self) -> Iterator[tuple[str, StoredDataset | None]]:
        """See `Record`."""
        return ((name, self.find(name)) for name in self)

    def matches(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Indices int64 (k, 2) and scores (k,) of matches that are stored as a list; None if they are not.

        Raises: RefusedFile if the indices of image 0 do not ascend below the number of keypoints.
        """
        if not self._table.schema.matches:
            return None
        start, stop = self._span("m.ends", "m.index0")
        index0, index1, scores = (self._table.columns[f"m.{name}"][start:stop] for name in ("index0", "index1", "score"))
        rows = np.stack([index0, index1], axis=1, dtype=np.int64)
        if len(rows) and not (rows[0, 0] >= 0 and rows[-1, 0] < self._num_keypoints0 and (np.diff(rows[:, 0]) > 0).all()):
            raise RefusedFile(f"{self.file.filename}: {self.name[1:]} has indices of image 0 that do not ascend")
        return rows, scores

    @functools.cached_property
    def _num_keypoints0(self) -> int:
        return int(self._fixed("m.size"))

    def _dense(self, name: str) -> StoredDataset:
        """`matches0` or `matching_scores0` as hloc stores them."""
        size, types = self._num_keypoints0, self._table.schema.matches
        dtype, empty, column = (np.dtype(types[1]), -1, 0) if name == MATCHES else (np.dtype(types[2]), 0, 1)
        if not 0 <= size * dtype.itemsize <= max_bytes():
            raise RefusedFile(f"{self.file.filename}: {self.name[1:]} has {name} of length {size}, too long for the memory")

        def read() -> np.ndarray:
            rows, scores = self.matches() or (np.zeros((0, 2), np.int64), np.zeros(0))
            dense = np.full(size, empty, dtype)
            dense[rows[:, 0]] = (rows[:, 1], scores)[column]
            return dense

        return StoredDataset(dtype, (size,), self._attributes_of(name), read)

    def _attributes_of(self, target: str) -> dict[str, Any]:
        attributes = enumerate(self._table.schema.attributes)
        return {
            name: self._text(f"a{i}") if dtype == TEXT else self._fixed(f"a{i}")[()]
            for i, (of, name, dtype, _) in attributes
            if of == target
        }

    def _fixed(self, column: str) -> Any:
        return self._table.columns[column][self._row : self._row + 1][0]

    def _span(self, ends: str, column: str) -> tuple[int, int]:
        """Where the array of this result begins and ends in a column. Raises: RefusedFile if that is not inside."""
        first = max(0, self._row - 1)
        found = self._table.columns[ends][first : self._row + 1].tolist()
        start, stop = (0 if self._row == 0 else found[0]), found[-1]
        if not 0 <= start <= stop <= self._table.columns[column].shape[0]:
            raise RefusedFile(f"{self.file.filename} has a result from {start} to {stop} in {column}, which is not inside")
        return start, stop

    def _text(self, column: str) -> str:
        start, stop = self._span(f"{column}.ends", column)
        return self._table.columns[column][start:stop].tobytes().decode("utf-8", "surrogatepass")


@dataclass(frozen=True)
class StoredDataset:
    """An array of a result, with the names of an HDF5 dataset."""

    dtype: np.dtype
    shape: tuple[int, ...]
    attrs: Mapping[str, Any]
    _read: Any

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def __getitem__(self, everything: tuple[()]) -> np.ndarray:
        array: np.ndarray = self._read()
        return array
