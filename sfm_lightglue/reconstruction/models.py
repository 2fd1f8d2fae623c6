"""The models in the folder `reconstruction`: which are kept, their numbers, and their statistics."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pycolmap

from sfm_lightglue.model_files import read_model, write_copies
from sfm_lightglue.reconstruction.colors import color_points

logger = logging.getLogger(__name__)

MIN_POINTS = 10
"""Models with fewer points are discarded. The global mapper returns them if the matches do not fit together."""


@dataclass(frozen=True)
class ModelReport:
    """Statistics of one model."""

    folder: str
    """Name of the folder: `0` to `n`, the largest model first."""
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
    registered: list[str] = field(default_factory=list)
    """Names of the registered images. summary.json does not have them, `photos.tsv` does."""


@dataclass(frozen=True)
class ReconstructionReport:
    """The models of a scene."""

    models: list[ModelReport]
    """In the order of their folders; empty if nothing could be reconstructed."""
    largest: str | None
    """Folder of the largest model: `0`; None without models."""
    num_images: int
    """Images in the database."""
    unregistered: list[str]
    """Names of the images that are not in the largest model, sorted."""
    joining: list[str] = field(default_factory=list)
    """A sentence about each attempt to join models or to continue one, with the reason if it was refused."""
    discarded: list[str] = field(default_factory=list)
    """A sentence about each model that was discarded, with the reason."""
    cameras: list[str] = field(default_factory=list)
    """A sentence about each camera whose parameters the final adjustment looked for: what was chosen, and why. And sentences
    about the models: how precise their poses are, and whether verified pairs contradict them."""
    doubtful: list[str] = field(default_factory=list)
    """Names of the photos whose verified pairs contradict the models, sorted; empty unless this puts the models in doubt, see
    `contradictions`."""


def model_folders(output: Path) -> list[Path]:
    """Folders of the models in the folder `output`, in the order of their numbers."""
    return sorted((path for path in output.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))


def describe_models(output: Path, names: list[str]) -> ReconstructionReport:
    """Statistics of the models in the folder `output`; `names` are all images of the database."""
    models = []
    for folder in model_folders(output):
        model = read_model(folder)
        registered = registered_names(model)
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
    largest = min(models, key=lambda model: (*_rank(model.num_images, model.num_points), int(model.folder)), default=None)
    unregistered = sorted(set(names) - set(largest.registered if largest else ()))
    return ReconstructionReport(models, largest.folder if largest else None, len(names), unregistered)


def registered_names(model: pycolmap.Reconstruction) -> list[str]:
    """Names of the registered images of a model, sorted."""
    return sorted(model.image(image_id).name for image_id in model.reg_image_ids())


def rank_of(model: pycolmap.Reconstruction) -> tuple[int, int]:
    """Key of a model: see `_rank`."""
    return _rank(model.num_reg_images(), model.num_points3D())


def _rank(num_images: int, num_points: int) -> tuple[int, int]:
    """Key of a model: the model with most images comes first, with equal numbers the one with most points."""
    return -num_images, -num_points


def number_models(output: Path, min_images: int) -> list[str]:
    """Numbers the models in the folder `output` from 0 by size: images, then points, then the names of the images.

    Models with fewer than `min_images` images or MIN_POINTS points are deleted, each with a warning. Returns these warnings.
    """
    ranked, discarded = [], []
    for folder in model_folders(output):
        model = read_model(folder)
        num_images, num_points = model.num_reg_images(), model.num_points3D()
        if num_points < MIN_POINTS or num_images < min_images:
            reason = f" and {num_points} points is discarded"
            if num_points >= MIN_POINTS:
                reason = f" is discarded: reconstruction.min_model_size={min_images}"
            discarded.append(f"a model with {num_images} images{reason}")
            logger.warning("%s", discarded[-1])
            shutil.rmtree(folder)
        else:
            ranked.append((_rank(num_images, num_points), registered_names(model), folder.rename(output / f"{folder.name}.tmp")))
    for number, (_, _, folder) in enumerate(sorted(ranked)):
        folder.rename(output / str(number))
    return discarded


def write_models(output: Path, images: Path | None, orientations: Mapping[str, int]) -> None:
    """Colours the points of the models in the folder `output`, and writes text and PLY files beside the binary files.

    `images` is the folder of the photos. Without it the points stay black. `orientations`: see `color_points`.
    """
    for folder in model_folders(output):
        model = read_model(folder)
        if images is not None:
            color_points(model, images, orientations)
            model.write(folder)
        write_copies(model, folder)
