"""Calibration files of the Image Matching Challenge: a few small arrays by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np

from sfm_lightglue.storage.layout import explained_damage, required_dataset


def read_calibration(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The arrays of these names, float64. Raises: FileNotFoundError; KeyError if one is missing; ValueError for damage."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: is the set complete?")
    with explained_damage(path, (OSError, RuntimeError)), h5py.File(path) as file:
        return {name: np.asarray(required_dataset(file, name, path.name)[()], np.float64) for name in names}
