"""Gaussian splatting: undistorted photos and a model with PINHOLE cameras, laid out as 3DGS, gsplat and nerfstudio read them."""

from __future__ import annotations

import logging
from pathlib import Path

from sfm_lightglue.exports.pictures import Pictures, write_pictures
from sfm_lightglue.exports.source import ExportOptions, Source
from sfm_lightglue.exports.target import Target
from sfm_lightglue.exports.undistortion import off_center_px, undistort_model

logger = logging.getLogger(__name__)

MAX_OFF_CENTER_PX = 1.0
"""From this distance of the principal point from the middle of the photo on, a warning is given."""


def write(source: Source, target: Target, options: ExportOptions) -> str:
    """Writes `images`, `sparse/0` and, if photos have masks, `masks`; with factors also `images_2` and so on.

    The loader of 3DGS takes the principal point to be in the middle of the photo. A warning says if it is not.
    """
    pictures = write_undistorted(source, target.folder, options)
    off_center = off_center_px(source.cameras())
    if off_center > MAX_OFF_CENTER_PX:
        logger.warning(
            "the principal point is up to %.1f px from the middle of the photo: gsplat and nerfstudio use it, the loader of 3DGS "
            "does not",
            off_center,
        )
    model = target.folder / "sparse" / "0"
    model.mkdir(parents=True)
    for image in source.reconstruction.images.values():
        image.name = pictures.files.get(image.name, image.name)
    source.reconstruction.write(model)
    source.copy_georeference(model)
    mask_option = " --masks-path masks" if pictures.masks else ""
    return (
        f"{source}\n3DGS: python train.py -s {target.path}\n"
        f"gsplat: python simple_trainer.py default --data_dir {target.path} --data_factor 1\n"
        f"nerfstudio: ns-train splatfacto --data {target.path} colmap --colmap-path sparse/0{mask_option}"
    )


def write_undistorted(source: Source, target: Path, options: ExportOptions) -> Pictures:
    """Writes undistorted photos, and changes the model of the source to theirs. Names of photos in the model stay."""
    undistortions = undistort_model(source.reconstruction, max(options.factors, default=1))
    return write_pictures(source, target, options, undistortions)
