"""Writes groups of an HDF5 file by h5py's low-level functions, which takes less than half of the time. The bytes are the same.

Each kind of dataset is written once by h5py, and the others get the property list of the first. So this file knows nothing about
how HDF5 stores things.
"""

from __future__ import annotations

from typing import Any

import h5py
import numpy as np

from sfm_lightglue.storage.record import GroupData

COMPRESSED = ("matches0", "matching_scores0")
"""Datasets that are compressed. gzip makes matches (mostly -1) three times smaller and takes 0.2 ms a pair. Features would become
7 % smaller and take 33 ms an image."""
MIN_COMPRESSED = 65
"""Number of values from which they are."""


class DatasetWriter:
    """Writes datasets of the same kinds again and again, to one file."""

    def __init__(self) -> None:
        self._properties: dict[tuple[Any, ...], tuple[Any, Any]] = {}  # type and property list of each kind

    def write(self, group: h5py.Group, name: str, array: np.ndarray, *, is_compressed: bool = False) -> int:
        """Writes an array as the new dataset `name` of a group. Returns its place in the file, or 0 if it has none."""
        array = np.asarray(array, order="C")
        kind = array.dtype, array.shape if is_compressed else (), is_compressed
        if kind not in self._properties or not name.isascii():
            made = group.create_dataset(name, data=array, **({"compression": 1} if is_compressed else {})).id
            self._properties[kind] = made.get_type(), made.get_create_plist()
        else:
            dtype, properties = self._properties[kind]
            made = h5py.h5d.create(group.id, name.encode(), dtype, h5py.h5s.create_simple(array.shape), dcpl=properties)
            made.write(h5py.h5s.ALL, h5py.h5s.ALL, array)
        return made.get_offset() or 0  # HDF5 compresses when the dataset is closed, here


class GroupWriter:
    """Writes groups to an open file.

    Args:
        file: The file.
    """

    def __init__(self, file: h5py.File) -> None:
        self._file, self._datasets = file, DatasetWriter()
        self._types: dict[np.dtype, tuple[Any, Any]] = {}  # of attributes: in the file, and in memory
        self._scalar = h5py.h5s.create_simple(())

    def write(self, key: str, content: GroupData) -> None:
        """Creates the group `key`. Datasets are written in the order of their names, so that equal content gives equal bytes."""
        group = self._file.require_group(key)
        for name in sorted(content.datasets):
            array = content.datasets[name]
            self._datasets.write(group, name, array, is_compressed=name in COMPRESSED and array.size >= MIN_COMPRESSED)
        for target, values in content.attributes.items():
            owner = h5py.h5d.open(group.id, target.encode()) if target else group.id
            for name, value in values.items():
                self._write_attribute(owner, name, value)

    def _write_attribute(self, owner: Any, name: str, value: Any) -> None:
        array = np.asarray(value)
        if array.shape != () or array.dtype.kind not in "iufbU" or h5py.h5a.exists(owner, name.encode()):
            h5py.AttributeManager(_Owner(owner))[name] = value
            return
        if array.dtype.kind == "U":
            array = np.array(str(value), h5py.string_dtype())
        if array.dtype not in self._types:
            self._types[array.dtype] = h5py.h5t.py_create(array.dtype, logical=True), h5py.h5t.py_create(array.dtype)
        in_file, in_memory = self._types[array.dtype]
        h5py.h5a.create(owner, name.encode(), in_file, self._scalar).write(array, mtype=in_memory)


class _Owner:
    """What h5py's attributes belong to."""

    def __init__(self, id: Any) -> None:
        self.id = id
