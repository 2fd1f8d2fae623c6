"""Writes segments: new results, and the results of several segments together."""

from __future__ import annotations

import itertools
import json
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from sfm_lightglue.storage.columns import Column, Schema, Table, tables_of
from sfm_lightglue.storage.group_writer import DatasetWriter
from sfm_lightglue.storage.hashes import KEY_SEPARATOR, STAMP_SEPARATOR, hash_texts
from sfm_lightglue.storage.record import GroupData
from sfm_lightglue.storage.segments import ABOUT, INDEX, VERSION

LIBVER = ("v110", "v110")
"""The format of HDF5 1.10, with checksums. HDF5 2.0 would write a newer format by default, which HDF5 1.14 cannot read."""
BLOCK_BYTES = 1 << 23
"""Columns are copied in pieces of about this size."""


@dataclass(frozen=True)
class Part:
    """Rows of a table that are written to a segment."""

    table: Table
    keys: np.ndarray
    """uint64 (n, 2): hashes of the keys."""
    stamps: np.ndarray
    """uint64 (n,): first halves of the hashes of the stamps."""
    runs: Sequence[tuple[int, int]]
    """First row and end of each run of rows that are kept."""

    @property
    def num_rows(self) -> int:
        return sum(stop - start for start, stop in self.runs)


def parts_of(records: Iterable[tuple[str, str, GroupData | None]]) -> list[Part]:
    """The parts of new results, see `columns.tables_of`."""
    return [Part(table, *hashes_of(table), [(0, table.num_rows)]) for table in tables_of(records)]


def hashes_of(table: Table) -> tuple[np.ndarray, np.ndarray]:
    """The hashes of the keys uint64 (n, 2) and of the stamps uint64 (n,) in a table."""
    keys = hash_texts(table.texts("key"), KEY_SEPARATOR)
    if table.schema.is_deletion:
        return keys, np.zeros(len(keys), np.uint64)
    return keys, hash_texts(table.texts("stamp"), STAMP_SEPARATOR)[:, 0]


def runs_of(is_kept: np.ndarray) -> list[tuple[int, int]]:
    """First and end of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], is_kept, [False]]).astype(np.int8)))
    return [(int(start), int(stop)) for start, stop in edges.reshape(-1, 2)]


def write_segment(
    path: Path, attributes: Mapping[str, str], parts: Sequence[Part], source: Sequence[int] | None = None
) -> dict[str, np.ndarray]:
    """Writes a segment to the new file `path` and returns its index. Raises: OSError, RuntimeError (h5py raises either).

    Args:
        path: The file.
        attributes: Settings and fingerprint.
        parts: Results; later ones replace earlier ones with the same key.
        source: Size and time of the file whose results these are, if the segment is only an index.
    """
    by_schema: dict[Schema, list[Part]] = {}
    for part in parts:
        by_schema.setdefault(part.table.schema, []).append(part)
    index = _index(list(by_schema.values()))
    with h5py.File(path, "w", libver=LIBVER) as file:
        file.attrs.update(attributes)
        columns: dict[str, Any] = {}
        writer = DatasetWriter()
        for name, array in index.items():
            columns[f"index.{name}"] = _write(writer, file, f"index.{name}", array.dtype.str, array.shape, [array])
        for number, (schema, group) in enumerate(by_schema.items()):
            for name, dtype, shape, blocks in _columns(schema, group):
                columns[f"{number}.{name}"] = _write(writer, file, f"{number}.{name}", dtype, shape, blocks)
        tables = [(schema.to_json(), sum(part.num_rows for part in group)) for schema, group in by_schema.items()]
        about: dict[str, Any] = {"version": VERSION, "tables": tables, "columns": columns}
        content = json.dumps(about | ({} if source is None else {"source": list(source)})).encode()
        file.create_dataset(ABOUT, data=np.frombuffer(content, np.uint8))
        file.attrs["about_crc32"] = zlib.crc32(content)
    return index


def _index(groups: Sequence[Sequence[Part]]) -> dict[str, np.ndarray]:
    """The columns of `segments.INDEX` for the tables that consist of these parts. Of equal keys, the last is kept first."""
    keys, stamps, tables, rows = [np.zeros((0, 2), "<u8")], [np.zeros(0, "<u8")], [np.zeros(0, "<u2")], [np.zeros(0, "<u4")]
    for number, parts in enumerate(groups):
        num_rows = 0
        for part in parts:
            for start, stop in part.runs:
                keys.append(part.keys[start:stop])
                stamps.append(part.stamps[start:stop])
                tables.append(np.full(stop - start, number, "<u2"))
                rows.append(np.arange(num_rows, num_rows := num_rows + stop - start, dtype="<u4"))
    both = np.concatenate(keys)
    order = np.argsort(both[:, 0], kind="stable")
    found = {"high": both[:, 0], "low": both[:, 1]}
    found |= {"stamp": np.concatenate(stamps), "table": np.concatenate(tables), "row": np.concatenate(rows)}
    return {name: np.ascontiguousarray(found[name][order], dtype) for name, dtype in INDEX.items()}


def _columns(schema: Schema, parts: Sequence[Part]) -> Iterator[tuple[str, str, tuple[int, ...], Iterator[np.ndarray]]]:
    """Name, type, shape and content of each column of the joined parts."""
    num_rows = sum(part.num_rows for part in parts)
    for name, (dtype, tail) in schema.fixed().items():
        runs = [(part.table.columns[name], start, stop) for part in parts for start, stop in part.runs]
        yield name, dtype, (num_rows, *tail), (block for run in runs for block in _blocks(*run))
    for ends, names in schema.ragged().items():
        spans, lengths = [], [np.zeros(0, np.int64)]
        for part in parts:
            stored = np.concatenate([[0], part.table.columns[ends][:]])
            for start, stop in part.runs:
                spans.append((part.table, int(stored[start]), int(stored[stop])))
                lengths.append(np.diff(stored[start : stop + 1]))
        total = sum(stop - start for _, start, stop in spans)
        yield ends, "<i8", (num_rows,), iter([np.cumsum(np.concatenate(lengths))])
        for name, dtype in names.items():
            yield name, dtype, (total,), (block for table, *span in spans for block in _blocks(table.columns[name], *span))


def _blocks(column: Column, start: int, stop: int) -> Iterator[np.ndarray]:
    step = max(1, BLOCK_BYTES // max(1, column.dtype.itemsize * math.prod(column.shape[1:])))
    for first in range(start, stop, step):
        yield column[first : min(stop, first + step)]


def _write(
    writer: DatasetWriter, file: h5py.File, name: str, dtype: str, shape: tuple[int, ...], blocks: Iterable[np.ndarray]
) -> list[Any]:
    """Writes a block. Returns its place, type, shape and checksum, as `about` lists them."""
    first = next(blocks := iter(blocks), np.zeros((0, *shape[1:]), dtype))
    if first.shape == shape:  # all of it
        array = np.ascontiguousarray(first, dtype)
        return [writer.write(file, name, array), dtype, list(shape), zlib.crc32(array.tobytes()) if array.size else 0]
    dataset, row, checksum, blocks = file.create_dataset(name, shape, dtype), 0, 0, itertools.chain([first], blocks)
    for block in blocks:
        if block.size:
            block = np.ascontiguousarray(block, dtype)
            dataset[row : row + len(block)] = block
            checksum = zlib.crc32(block.tobytes(), checksum)
        row += len(block)
    return [dataset.id.get_offset() or 0, dtype, list(shape), checksum]
