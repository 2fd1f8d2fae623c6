"""Groups of an HDF5 file as records: our results and those of other programs in one file.

They are read by h5py's low-level functions, which take about a third of the time: a pair has two to four small arrays and up to
ten attributes, and a run reads all pairs several times. What these functions do not know is left to h5py's usual classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import h5py
import numpy as np

from sfm_lightglue.storage.record import Record
from sfm_lightglue.storage.safety import Readable, RefusedFile, check_dataset, has_link, has_member, numeric_datasets


def find_group(file: h5py.File, key: str) -> FileGroup | None:
    """The group `key`, or None if there is none. No link leads out of the file.

    Raises: RefusedFile for a link on the way that is soft or external, if `key` is a dataset, or if the file is damaged.
    """
    with Readable(file.filename) as readable:
        end = key.find("/")
        while True:
            part = key if end < 0 else key[:end]
            if not has_member(file, part):
                return None
            if end < 0:
                break
            end = key.find("/", end + 1)
        found = h5py.h5o.open(file.id, key.encode())
        if not isinstance(found, h5py.h5g.GroupID):
            raise RefusedFile(f"{file.filename}: {key!r} is no group, expected a group with datasets")
        return FileGroup(file, found, key, readable)


class FileGroup(Record):
    """A group of a file. Links out of the file, and datasets that exhaust the memory, are refused; see `safety.py`."""

    def __init__(self, file: h5py.File, group: h5py.h5g.GroupID, key: str, readable: Readable) -> None:
        self.file, self.id, self.name, self.attrs = file, group, f"/{key}", FileAttributes(group, readable)
        self._readable = readable

    def has(self, name: str) -> bool:
        """See `Record`. Raises: RefusedFile if it is a soft or an external link, or damaged."""
        with self._readable:
            return has_link(self, self.id, name)

    def find(self, name: str) -> FileDataset | None:
        """See `Record`. Raises: RefusedFile if `name` is a group, or a dataset that `safety.check_dataset` refuses."""
        if not self.has(name):
            return None
        with self._readable:
            found = h5py.h5o.open(self.id, name.encode())
            if not isinstance(found, h5py.h5d.DatasetID):
                raise RefusedFile(f"{self.file.filename}: {self.name[1:]}/{name} is a group, expected a dataset")
            dataset = FileDataset(found, self._readable)
            check_dataset(dataset, self, name)
            return dataset

    def numeric(self) -> Iterator[tuple[str, h5py.Dataset]]:
        """See `Record`."""
        with self._readable:
            yield from numeric_datasets(h5py.Group(self.id))

    def matches(self) -> None:
        """See `Record`."""
        return

    def __iter__(self) -> Iterator[str]:
        return (name if isinstance(name, str) else repr(name) for name in h5py.Group(self.id))


class FileDataset:
    """A dataset of a file, with the names of `h5py.Dataset`."""

    def __init__(self, dataset: h5py.h5d.DatasetID, readable: Readable) -> None:
        self.id, self.dtype, self.shape, self._readable = dataset, dataset.dtype, dataset.shape, readable

    @property
    def attrs(self) -> FileAttributes:
        return FileAttributes(self.id, self._readable)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def __getitem__(self, everything: tuple[()]) -> Any:
        if self.shape is None or 0 in self.shape:
            return h5py.Dataset(self.id)[()]
        array = np.empty(self.shape, self.dtype)
        with self._readable:
            self.id.read(h5py.h5s.ALL, h5py.h5s.ALL, array)
        return array[()]


class FileAttributes(Mapping[str, Any]):
    """The attributes of a group or dataset, read when they are asked for, with the values that h5py gives them."""

    def __init__(self, id: Any, readable: Readable) -> None:
        self.id, self._readable = id, readable

    def __getitem__(self, name: str) -> Any:
        """Raises: KeyError if there is no such attribute, RefusedFile if it is damaged or has a type that h5py does not know."""
        with self._readable:
            if h5py.h5a.exists(self.id, name.encode()):
                return self._read(name)
        raise KeyError(name)

    def _read(self, name: str) -> Any:
        encoded = name.encode()
        attribute = h5py.h5a.open(self.id, encoded)
        dtype = attribute.dtype
        is_text = dtype.kind == "O" and h5py.check_string_dtype(dtype) is not None
        if attribute.shape != () or dtype.subdtype is not None or not (is_text or dtype.kind in "iufb"):
            return h5py.AttributeManager(self)[name]
        value: Any = np.empty((), dtype)
        attribute.read(value)
        return value[()].decode("utf-8", "surrogateescape") if is_text else value[()]

    def __iter__(self) -> Iterator[str]:
        return iter(h5py.AttributeManager(self))

    def __len__(self) -> int:
        return len(h5py.AttributeManager(self))
