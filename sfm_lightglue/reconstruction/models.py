"""The models in the folder `reconstruction`: which are kept, their numbers, and their statistics."""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path

import pycolmap

logger = logging.getLogger(__name__)

MIN_POINTS = 10
"""Models with fewer points are discarded. The global mapper returns them if the matches do not fit together."""


@dataclass(frozen=True)
class ModelReport:
    """Statistics of one model."""

    folder: str
    """Name of the folder: `0` to `n`."""
    num_images: int
    """Registered images."""
    num_points: int
    """3D points."""
    num_observations: int
    """Keypoints that belong to points, in all images together."""
    mean_track_length: float
    """Observations per point."""
    mean_reprojection_error_px: float
    """Mean distance of keypoints from their projected points, px of the photos."""
    registered: list[str]
    """Names of the registered images."""


@dataclass(frozen=True)
class ReconstructionReport:
    """The models of a scene."""

    models: list[ModelReport]
    """In the order of their folders; empty if nothing could be reconstructed."""
    largest: str | None
    """Folder of the model with most images; None without models."""
    num_images: int
    """Images in the database."""
    unregistered: list[str]
    """Names of the images that are not in the largest model, sorted."""


def describe_models(output: Path, names: list[str]) -> ReconstructionReport:
    """Statistics of the models in the folder `output`; `names` are all images of the database."""
    models = []
    for folder in sorted((path for path in output.iterdir() if path.name.isdigit()), key=lambda path: int(path.name)):
        model = pycolmap.Reconstruction(folder)
        registered = sorted(model.image(image_id).name for image_id in model.reg_image_ids())
        models.append(
            ModelReport(
                folder.name,
                len(registered),
                model.num_points3D(),
                model.compute_num_observations(),
                model.compute_mean_track_length(),
                model.compute_mean_reprojection_error(),
                registered,
            )
        )
    largest = max(models, key=lambda model: model.num_images, default=None)
    unregistered = sorted(set(names) - set(largest.registered if largest else ()))
    return ReconstructionReport(models, largest.folder if largest else None, len(names), unregistered)


def write_models(output: Path) -> None:
    """Writes text and PLY files beside the binary files. Models with fewer than MIN_POINTS points are deleted, and the others are
    numbered from 0."""
    folders = sorted((path for path in output.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))
    kept = 0
    for folder in folders:
        model = pycolmap.Reconstruction(folder)
        if model.num_points3D() < MIN_POINTS:
            logger.warning("a model with %d images and %d points is discarded", model.num_reg_images(), model.num_points3D())
            shutil.rmtree(folder)
            continue
        model.write_text(folder)
        model.export_PLY(folder / "points.ply")
        if folder.name != str(kept):
            folder.rename(output / str(kept))
        kept += 1
