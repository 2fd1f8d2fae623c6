"""Files of numpy arrays from other people. Arrays of objects are pickled; only arrays, texts and numbers are accepted in them."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np

ALLOWED = frozenset(
    (
        *(("numpy", "ndarray"), ("numpy", "dtype")),
        *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
        *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
    )
)
"""What a pickle of arrays needs; everything else could run code."""


class _ArraysOnly(pickle.Unpickler):
    """Reads pickles of arrays and refuses all others."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it holds {module}.{name}, which is no array")
        return super().find_class(module, name)


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file by name, arrays of objects included. No code in the file is run.

    Raises: FileNotFoundError; ValueError if the file is damaged or holds other things than arrays.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: is the set complete?")
    try:
        with zipfile.ZipFile(path) as archive:
            arrays = {}
            for name in archive.namelist():
                with archive.open(name) as file:
                    arrays[name.removesuffix(".npy")] = _read_array(file)
            return arrays
    except (zipfile.BadZipFile, pickle.UnpicklingError, ValueError, EOFError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def _read_array(file: IO[bytes]) -> np.ndarray:
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, is_fortran, dtype = read_header(file)
    if dtype.hasobject:
        array = np.asarray(_ArraysOnly(file).load())
        return array.reshape(shape, order="F" if is_fortran else "C")
    data = np.frombuffer(file.read(), dtype)
    return data.reshape(shape, order="F" if is_fortran else "C")
