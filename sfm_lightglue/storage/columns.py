"""Many results as a few long arrays: the content of a segment, see `segments.py`.

Results with datasets and attributes of the same names and types form a table. A column of the table holds one value of each
result, or, end to end, one array of each result with the positions where they end. Matches are stored as a list of matches, not
as hloc's array with an entry for each keypoint, if nothing is lost: 2 kB instead of 10 kB a pair.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from sfm_lightglue.storage.record import GroupData

MATCHES, SCORES = "matches0", "matching_scores0"
TEXT = "text"


class Column(Protocol):
    """An array in memory or in a file, of which rows are read."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype: ...

    def __getitem__(self, rows: slice) -> np.ndarray: ...


@dataclass(frozen=True)
class Schema:
    """What the results of a table have in common."""

    datasets: tuple[tuple[str, str, int], ...] = ()
    """Name, type and number of dimensions of each dataset, sorted; without those of `matches`."""
    attributes: tuple[tuple[str, str, str, tuple[int, ...]], ...] = ()
    """Dataset or "" for the group, name, type (or `text`) and shape of each attribute, sorted."""
    matches: tuple[str, ...] = ()
    """Types of an index of image 0, of `matches0` and of `matching_scores0` if these are stored as a list of matches."""
    is_deletion: bool = False
    """Whether the keys of this table were deleted: older results with these keys do not count."""

    def fixed(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Type and shape of a value of each column with one value for each result."""
        columns: dict[str, tuple[str, tuple[int, ...]]] = {
            f"d{i}.shape": ("<i8", (ndim,)) for i, (_, _, ndim) in enumerate(self.datasets) if ndim != 1
        }
        columns |= {f"a{i}": (dtype, shape) for i, (_, _, dtype, shape) in enumerate(self.attributes) if dtype != TEXT}
        return columns | ({"m.size": ("<i8", ())} if self.matches else {})

    def ragged(self) -> dict[str, dict[str, str]]:
        """Column of ends -> the columns that end there and their types."""
        columns = {"key.ends": {"key": "|u1"}}
        if not self.is_deletion:
            columns |= {"stamp.ends": {"stamp": "|u1"}}
        columns |= {f"d{i}.ends": {f"d{i}": dtype} for i, (_, dtype, _) in enumerate(self.datasets)}
        columns |= {f"a{i}.ends": {f"a{i}": "|u1"} for i, (_, _, dtype, _) in enumerate(self.attributes) if dtype == TEXT}
        if self.matches:
            columns |= {"m.ends": dict(zip(("m.index0", "m.index1", "m.score"), self.matches, strict=True))}
        return columns

    def to_json(self) -> list[Any]:
        return [self.datasets, self.attributes, self.matches, self.is_deletion]

    @staticmethod
    def from_json(content: Any) -> Schema:
        """Raises: TypeError, ValueError for anything but the result of `to_json`."""
        datasets, attributes, matches, is_deletion = content
        return Schema(
            tuple((str(name), _number_type(dtype), int(ndim)) for name, dtype, ndim in datasets),
            tuple(
                (str(target), str(name), dtype if dtype == TEXT else _number_type(dtype), tuple(int(side) for side in shape))
                for target, name, dtype, shape in attributes
            ),
            tuple(map(_number_type, matches)),
            bool(is_deletion),
        )


def _number_type(text: str) -> str:
    if np.dtype(text).kind not in "iufb" or np.dtype(text).str != text:
        raise ValueError(f"{text!r} is no type of numbers")
    return text


@dataclass(frozen=True)
class Table:
    """Results with the same schema."""

    schema: Schema
    num_rows: int
    columns: Mapping[str, Column]
    """Columns by name, see `Schema.fixed` and `Schema.ragged`."""

    def texts(self, column: str) -> list[str]:
        """All texts of a column."""
        ends = np.asarray(self.columns[f"{column}.ends"][:]).tolist()
        text = self.columns[column][:].tobytes()
        return [text[start:end].decode("utf-8", "surrogatepass") for start, end in zip([0, *ends], ends, strict=False)]

    def text(self, column: str, row: int) -> str:
        """One text of a column."""
        ends = self.columns[f"{column}.ends"][max(0, row - 1) : row + 1].tolist()
        text = self.columns[column][0 if row == 0 else ends[0] : ends[-1]]
        return text.tobytes().decode("utf-8", "surrogatepass")


def tables_of(records: Iterable[tuple[str, str, GroupData | None]]) -> list[Table]:
    """The tables of results in memory, each with its rows in the order of `records`.

    Args:
        records: Key, stamp and content of each result; None for a key that is deleted.
    """
    rows: dict[Schema, list[dict[str, Any]]] = {}
    for key, stamp, content in records:
        schema, row = (Schema(is_deletion=True), {}) if content is None else _encode(content)
        row |= {"key": _bytes(key)} | ({} if content is None else {"stamp": _bytes(stamp)})
        rows.setdefault(schema, []).append(row)
    return [_stack(schema, rows[schema]) for schema in rows]


def _stack(schema: Schema, rows: list[dict[str, Any]]) -> Table:
    columns: dict[str, Column] = {}
    for name, (dtype, shape) in schema.fixed().items():
        columns[name] = np.array([row[name] for row in rows], dtype).reshape(len(rows), *shape)
    for ends, names in schema.ragged().items():
        for name, dtype in names.items():
            columns[name] = np.concatenate([row[name] for row in rows]).astype(dtype, copy=False)
        columns[ends] = np.cumsum([len(row[name]) for row in rows], dtype=np.int64)
    return Table(schema, len(rows), columns)


def _bytes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8)


def _encode(content: GroupData) -> tuple[Schema, dict[str, Any]]:
    """The schema of a result, and its value in each column."""
    arrays = {name: _plain(content.datasets[name]) for name in sorted(content.datasets)}
    row = _encode_matches(arrays)
    matches = tuple(row[name].dtype.str for name in ("m.index0", "m.index1", "m.score")) if row else ()
    others = {name: array for name, array in arrays.items() if not (row and name in (MATCHES, SCORES))}
    for i, array in enumerate(others.values()):
        row |= {f"d{i}": array.reshape(-1)} | ({f"d{i}.shape": array.shape} if array.ndim != 1 else {})
    attributes = []
    for i, (target, name, value) in enumerate(_attributes(content)):
        if isinstance(value, str):
            row[f"a{i}"] = _bytes(value)
            attributes.append((target, name, TEXT, ()))
        else:
            row[f"a{i}"] = number = _plain(np.asarray(value))
            attributes.append((target, name, number.dtype.str, number.shape))
    datasets = tuple((name, array.dtype.str, array.ndim) for name, array in others.items())
    return Schema(datasets, tuple(attributes), matches), row


def _attributes(content: GroupData) -> list[tuple[str, str, Any]]:
    """Dataset, name and value of each attribute, sorted, without the stamp."""
    found = [(target, name, value) for target, values in content.attributes.items() for name, value in values.items()]
    return sorted((item for item in found if item[:2] != ("", "stamp")), key=lambda item: item[:2])


def _plain(array: np.ndarray) -> np.ndarray:
    """The array in little-endian order. Raises: TypeError if it holds no numbers."""
    if array.dtype.kind not in "iufb":
        raise TypeError(f"values of type {array.dtype} cannot be stored, expected numbers or text")
    return array.astype(array.dtype.newbyteorder("<"), order="C", copy=False)


def _encode_matches(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The columns of a list of matches; empty if a list would lose something of the arrays."""
    matches0, scores = arrays.get(MATCHES), arrays.get(SCORES)
    if matches0 is None or scores is None or matches0.ndim != 1 or matches0.shape != scores.shape:
        return {}
    if matches0.dtype.kind != "i" or scores.dtype.kind != "f":
        return {}
    is_matched = matches0 != -1
    if scores.view(f"u{scores.itemsize}")[~is_matched].any():  # a score without a match, or -0.0
        return {}
    index0 = np.flatnonzero(is_matched).astype("<u2" if len(matches0) <= 1 << 16 else "<i4")
    return {"m.index0": index0, "m.index1": matches0[is_matched], "m.score": scores[is_matched], "m.size": len(matches0)}
