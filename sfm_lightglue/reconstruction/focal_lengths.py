"""Other focal lengths for scenes in which the mapper finds no first pair, because those of the database are wrong guesses."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pycolmap

from sfm_lightglue.colmap import colmap_log

logger = logging.getLogger(__name__)

FACTORS = (0.75, 1.8, 0.55, 2.6)
"""Focal lengths that are tried, as multiples of the longest side: fields of view of 67, 31, 84 and 22 degrees."""


def map_with_other_focal_lengths(database: Path, output: Path, run: Callable[[Path], bool]) -> tuple[list[str], bool]:
    """Runs a mapper on copies of the database with other focal lengths, until it finds a model.

    First all focal lengths come from view-graph calibration, then guessed ones are replaced by FACTORS. Cameras with known focal
    lengths keep them. Returns a sentence about what helped, none if nothing did; and whether Ctrl-C was pressed. Logs it.

    Args:
        database: COLMAP database. It is not changed.
        output: folder of the models, without any.
        run: maps a database into `output`; returns whether Ctrl-C was pressed.
    """
    guessed = _guessed_cameras(database)
    if not guessed:
        return [], False
    with tempfile.TemporaryDirectory(dir=output.parent) as folder:
        for factor in (None, *FACTORS):
            copy = Path(folder) / "database.db"
            shutil.copy(database, copy)
            how = "the view graph" if factor is None else f"the guess of {factor} times the longest side"
            if not (_calibrate(copy) if factor is None else _set_focal_lengths(copy, guessed, factor)):
                continue
            interrupted = run(copy)
            if interrupted or any(path.name.isdigit() for path in output.iterdir()):
                note = f"no first pair was found with the guessed focal lengths; those of {how} gave a model"
                logger.warning("%s", note)
                return [note], interrupted
    return [], False


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


def _set_focal_lengths(database: Path, guessed: Mapping[int, tuple[int, int]], factor: float) -> bool:
    with pycolmap.Database.open(database) as rows, pycolmap.DatabaseTransaction(rows):
        for camera_id, size in guessed.items():
            camera = rows.read_camera(camera_id)
            params = np.array(camera.params)
            params[list(camera.focal_length_idxs())] = factor * max(size)
            camera.params = params.tolist()
            rows.update_camera(camera)
    return True
