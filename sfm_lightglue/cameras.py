"""Cameras: which photos share a camera, and the intrinsics of each camera.

Model names, the order of the parameters and pixel coordinates follow COLMAP: the centre of the top-left pixel is at (0.5, 0.5).
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pycolmap

from sfm_lightglue.images import read_header
from sfm_lightglue.registry import closest

logger = logging.getLogger(__name__)

GUESSED_FOCAL_FACTOR = 1.2
"""COLMAP's guess of an unknown focal length, as a multiple of the longest side: a field of view of 45 degrees."""
MODELS = tuple(model for model in pycolmap.CameraModelId.__members__ if model != "INVALID")
"""COLMAP's names of camera models."""
SHARING = ("exif", "single", "per_folder", "per_image")
"""Values of `intrinsics` that estimate the focal length. They say which photos share a camera."""


@dataclass(frozen=True)
class Camera:
    """Intrinsics of a camera, in COLMAP's conventions."""

    model: str
    """COLMAP's model name, such as SIMPLE_RADIAL."""
    size: tuple[int, int]
    """(width, height) px."""
    params: tuple[float, ...]
    """Parameters in the order of the model; lengths in px."""
    has_prior_focal_length: bool
    """Whether the focal length is known (given, or from EXIF), not guessed."""

    def to_colmap(self) -> pycolmap.Camera:
        """COLMAP's record of the camera.

        Raises: ValueError if the model does not exist, the number of parameters is wrong, a parameter is not finite, or a focal
        length is not positive.
        """
        if self.model not in MODELS:
            raise ValueError(f"there is no camera model {self.model!r}. {closest(self.model, MODELS)}")
        camera = pycolmap.Camera(
            model=self.model,
            width=self.size[0],
            height=self.size[1],
            params=list(self.params),
            has_prior_focal_length=self.has_prior_focal_length,
        )
        if not camera.verify_params():
            expected = pycolmap.Camera.create_from_model_name(1, self.model, 1.0, 2, 2).params_info
            raise ValueError(f"camera model {self.model} takes the parameters {expected}, but {len(self.params)} were given")
        if not np.isfinite(self.params).all() or any(self.params[index] <= 0 for index in camera.focal_length_idxs()):
            raise ValueError(f"camera parameters must be finite and focal lengths positive, found {self.params}")
        return camera


@dataclass(frozen=True)
class CameraAssignment:
    """The camera of each image, and which images share a camera."""

    cameras: Mapping[str, Camera]
    """Camera by image name."""
    groups: Mapping[str, str]
    """Group by image name: images of one group share one camera."""

    def camera_ids(self, names: Iterable[str]) -> dict[str, int]:
        """Number of the camera of each image, in the order of `names`. Groups are numbered from 1 as they occur in `names`."""
        numbers: dict[str, int] = {}
        return {name: numbers.setdefault(self.groups[name], len(numbers) + 1) for name in names}


def choose_cameras(
    images: Path, sizes: Mapping[str, tuple[int, int]], intrinsics: str, camera_model: str, known: Mapping[str, Camera]
) -> CameraAssignment:
    """The camera of each image in `sizes`.

    Args:
        images: folder of the photos; their EXIF data is read if intrinsics are estimated.
        sizes: (width, height) px by image name.
        intrinsics: one of
            `exif`: focal length from EXIF. Photos with the same make, model, focal length and size share a camera; a photo
            without EXIF data has its own.
            `single`, `per_folder`, `per_image`: one camera for all photos, for each folder, for each photo. Its focal length is
            from EXIF, or guessed.
            `poses`: the cameras in `known`. Images with equal cameras share one.
            a camera `MODEL,param,param,...` (`:` or a blank may replace the comma), shared by all photos.
            a file with lines `name MODEL width height param param ...`. Images with equal cameras share one.
        camera_model: COLMAP's model of estimated cameras.
        known: cameras by image name, for `intrinsics="poses"`.

    Raises: ValueError if an image has no intrinsics, if they are for another image size, or if a choice does not exist.
    """
    if camera_model not in MODELS:
        raise ValueError(f"database.camera_model={camera_model!r} does not exist. {closest(camera_model, MODELS)}")
    if intrinsics in SHARING:
        return _estimated_cameras(images, sizes, intrinsics, camera_model)
    if intrinsics == "poses":
        if not known:
            raise ValueError("database.intrinsics=poses takes the intrinsics from a file of poses: give dataset.poses=FILE")
        cameras = dict(known)
    elif os.path.isfile(intrinsics):  # noqa: PTH113 - Path.is_file raises if the text is longer than a file name
        cameras = read_intrinsics(Path(intrinsics))
    else:
        camera = _parse_camera(intrinsics)
        cameras = {name: Camera(camera.model, size, camera.params, True) for name, size in sizes.items()}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"one camera is given for all photos, but they have {len(set(sizes.values()))} sizes")
    _check_given(cameras, sizes)
    chosen = {name: cameras[name] for name in sizes}
    return CameraAssignment(chosen, {name: repr(camera) for name, camera in chosen.items()})


def read_intrinsics(path: Path) -> dict[str, Camera]:
    """Cameras by image name from a file with lines `name MODEL width height param param ...`, hloc's format of query lists.

    Blank lines and lines that start with # are skipped.

    Raises: ValueError if a line has another form, or gives an image a second camera that differs.
    """
    cameras: dict[str, Camera] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = re.fullmatch(r"(.+?)\s+([A-Z_]+)\s+(\d+)\s+(\d+)((?:\s+[-+.\deE]+)+)", line.strip())
        if match is None:
            raise ValueError(f"{path}:{number}: expected `name MODEL width height param param ...`, found {line!r}")
        name, model, width, height, params = match.groups()
        camera = Camera(model, (int(width), int(height)), tuple(float(value) for value in params.split()), True)
        if cameras.setdefault(name, camera) != camera:
            raise ValueError(f"{path}:{number}: {name!r} has another camera in an earlier line: remove one of them")
    return cameras


def _parse_camera(text: str) -> Camera:
    """A camera of size (1, 1) from `MODEL,param,param,...`. Raises: ValueError."""
    match = re.fullmatch(r"([A-Z_]+)(?:\s*[,:\s]\s*(.+))?", text.strip())
    if match is None:
        choices = (*SHARING, "poses", "a camera such as PINHOLE:fx:fy:cx:cy", "a file of intrinsics")
        raise ValueError(f"database.intrinsics={text!r} is not known. {closest(text, choices)}")
    try:
        params = [float(value) for value in re.split(r"\s*[,:]\s*|\s+", match[2])] if match[2] else []
    except ValueError as error:
        raise ValueError(f"database.intrinsics={text!r}: the parameters of a camera must be numbers") from error
    camera = Camera(match[1], (1, 1), tuple(params), True)
    camera.to_colmap()
    return camera


def _check_given(cameras: Mapping[str, Camera], sizes: Mapping[str, tuple[int, int]]) -> None:
    """Raises: ValueError if an image has no camera, a camera for another size, or wrong parameters."""
    missing = [name for name in sizes if name not in cameras]
    if missing:
        raise ValueError(f"{len(missing)} of {len(sizes)} images have no intrinsics, the first is {missing[0]!r}")
    for name, size in sizes.items():
        if cameras[name].size != size:
            raise ValueError(f"the intrinsics of {name!r} are for {cameras[name].size} px, but the photo has {size} px")
        cameras[name].to_colmap()


def _estimated_cameras(images: Path, sizes: Mapping[str, tuple[int, int]], sharing: str, camera_model: str) -> CameraAssignment:
    """Cameras with the focal length from EXIF or guessed, the principal point in the middle and no distortion."""
    headers = {name: read_header(images / name) for name in sizes}
    keys = {name: header.camera_key for name, header in headers.items()}
    groups = {
        "exif": {name: keys[name] or name for name in sizes},
        "single": dict.fromkeys(sizes, "single"),
        "per_folder": {name: name.rpartition("/")[0] for name in sizes},
        "per_image": {name: name for name in sizes},
    }[sharing]
    cameras: dict[str, Camera] = {}
    focal_of_group: dict[str, float] = {}
    for name in sorted(sizes):  # a group gets the focal length of its first photo that has one
        if focal := headers[name].focal_length_px:
            focal_of_group.setdefault(f"{groups[name]} {sizes[name]}", focal)
    for name, size in sizes.items():
        groups[name] = f"{groups[name]} {size}"  # photos of different sizes cannot share a camera
        focal = focal_of_group.get(groups[name])
        cameras[name] = _simple_camera(camera_model, size, focal or GUESSED_FOCAL_FACTOR * max(size), focal is not None)
    if sharing == "single" and len(set(groups.values())) > 1:
        logger.warning("the photos have %d sizes, so there is one camera for each size", len(set(groups.values())))
    return CameraAssignment(cameras, groups)


def _simple_camera(model: str, size: tuple[int, int], focal_px: float, known: bool) -> Camera:
    """A camera of the model without distortion; `known`: whether the focal length is known."""
    camera = pycolmap.Camera.create_from_model_name(1, model, focal_px, *size)
    return Camera(model, size, tuple(float(value) for value in camera.params), known)
