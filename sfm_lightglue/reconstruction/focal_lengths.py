"""Other focal lengths for scenes that the mapper cannot map because those of the database are wrong guesses, see `fallbacks`."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pycolmap

from sfm_lightglue.colmap import colmap_log

FACTORS = (0.75, 1.8, 0.55, 2.6)
"""Focal lengths that are tried, as multiples of the longest side: fields of view of 67, 31, 84 and 22 degrees."""


def other_focal_lengths(database: Path, folder: Path) -> Iterator[tuple[str, Path]]:
    """Copies of the database with other focal lengths, in `folder`, and what each one has. Each replaces the one before.

    First all focal lengths come from view-graph calibration, then guessed ones are replaced by FACTORS. Cameras with known focal
    lengths keep them. Nothing is copied if there are no guesses.
    """
    guessed = _guessed_cameras(database)
    for factor in (None, *FACTORS) if guessed else ():
        copy = folder / "database.db"
        shutil.copyfile(database, copy)
        if factor is not None:
            _set_focal_lengths(copy, guessed, factor)
            yield f"the focal length of {factor} times the longest side", copy
        elif _calibrate(copy):
            yield "focal lengths of the view graph", copy


def _guessed_cameras(database: Path) -> Mapping[int, tuple[int, int]]:
    """(width, height) px of the cameras whose focal length is a guess, by id."""
    with pycolmap.Database.open(database) as rows:
        cameras = rows.read_all_cameras()
    return {
        camera.camera_id: (camera.width, camera.height)
        for camera in cameras
        if not camera.has_prior_focal_length and camera.focal_length_idxs()
    }


def _calibrate(database: Path) -> bool:
    """Replaces the guessed focal lengths in the database by those of the view graph; False if it does not determine them."""
    options = pycolmap.ViewGraphCalibrationOptions()
    options.random_seed, options.cross_validate_prior_focal_lengths = 0, False
    with colmap_log(None):
        before = len(_guessed_cameras(database))
        return pycolmap.calibrate_view_graph(database, options) and len(_guessed_cameras(database)) < before


def _set_focal_lengths(database: Path, guessed: Mapping[int, tuple[int, int]], factor: float) -> None:
    with pycolmap.Database.open(database) as rows, pycolmap.DatabaseTransaction(rows):
        for camera_id, size in guessed.items():
            camera = rows.read_camera(camera_id)
            params = np.array(camera.params)
            params[list(camera.focal_length_idxs())] = factor * max(size)
            camera.params = params.tolist()
            rows.update_camera(camera)
