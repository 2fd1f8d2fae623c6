"""Which camera took which photo, and what is known of its intrinsics.

Parameters follow COLMAP: its model names and order of parameters, pixels with the centre of the top-left pixel at (0.5, 0.5).
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pycolmap

from sfm_lightglue.images import read_header
from sfm_lightglue.registry import closest

logger = logging.getLogger(__name__)

GUESSED_FOCAL_FACTOR = 1.2
"""Focal length over longest side where nothing is known: COLMAP's guess, a 45 degree view."""
MODELS = tuple(model for model in pycolmap.CameraModelId.__members__ if model != "INVALID")
SHARING = ("exif", "single", "per_folder", "per_image")


@dataclass(frozen=True)
class Camera:
    """Intrinsics as COLMAP has them."""

    model: str
    """COLMAP's model name, such as SIMPLE_RADIAL."""
    size: tuple[int, int]
    """(width, height) px."""
    params: tuple[float, ...]
    """In the model's order."""
    has_prior_focal_length: bool
    """Whether the focal length is known (given or from EXIF) rather than guessed."""

    def to_colmap(self) -> pycolmap.Camera:
        """Raises: ValueError where the number of parameters is not the model's, or one of them is no sensible number."""
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
            raise ValueError(f"the parameters of a camera must be finite and its focal length positive, found {self.params}")
        return camera


def choose_cameras(
    images: Path, sizes: Mapping[str, tuple[int, int]], intrinsics: str, camera_model: str, known: Mapping[str, Camera]
) -> tuple[dict[str, Camera], dict[str, str]]:
    """The camera of each image, and the group it is shared in: images of a group have one camera between them.

    `sizes` are (width, height) px by image name. `intrinsics` is one of
    - `exif`: focal length from EXIF; photos of one make, model, focal length and size share a camera, others have their own;
    - `single`, `per_folder`, `per_image`: one camera for all, each folder, each photo, with EXIF's focal length or a guess;
    - `poses`: those of `known`, by image name; equal ones are shared;
    - a camera: `MODEL,param,param,...` (or `:` or blanks between them), shared by all;
    - a file of lines `name MODEL width height param param ...`; equal ones are shared.

    Raises: ValueError where intrinsics are missing for an image or made for another image size, or a choice is not known.
    """
    if camera_model not in MODELS:
        raise ValueError(f"database.camera_model={camera_model!r} does not exist. {closest(camera_model, MODELS)}")
    if intrinsics in SHARING:
        return _estimated_cameras(images, sizes, intrinsics, camera_model)
    if intrinsics == "poses":
        if not known:
            raise ValueError("database.intrinsics=poses needs the file of poses that holds them: dataset.poses=FILE")
        cameras = dict(known)
    elif os.path.isfile(intrinsics):  # noqa: PTH113 - Path.is_file raises where a camera is longer than a file name may be
        cameras = read_intrinsics(Path(intrinsics))
    else:
        camera = _parse_camera(intrinsics)
        cameras = {name: Camera(camera.model, size, camera.params, True) for name, size in sizes.items()}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"one camera is given for all photos, but they have {len(set(sizes.values()))} sizes")
    _check_given(cameras, sizes)
    chosen = {name: cameras[name] for name in sizes}
    return chosen, {name: repr(camera) for name, camera in chosen.items()}


def read_intrinsics(path: Path) -> dict[str, Camera]:
    """Cameras by image name from lines `name MODEL width height param param ...` (hloc's lists of queries with intrinsics).

    Raises: ValueError for a line that is not understood, or that gives an image another camera than a line before.
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
            raise ValueError(f"{path}:{number}: {name!r} has another camera in a line before: leave one of them")
    return cameras


def _parse_camera(text: str) -> Camera:
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
    missing = [name for name in sizes if name not in cameras]
    if missing:
        raise ValueError(f"no intrinsics are given for {len(missing)} of {len(sizes)} images, the first is {missing[0]!r}")
    for name, size in sizes.items():
        if cameras[name].size != size:
            raise ValueError(f"the intrinsics of {name!r} are for {cameras[name].size} px, but the photo has {size} px")
        cameras[name].to_colmap()


def _estimated_cameras(
    images: Path, sizes: Mapping[str, tuple[int, int]], sharing: str, camera_model: str
) -> tuple[dict[str, Camera], dict[str, str]]:
    """Cameras with EXIF's focal length or a guess, principal point in the middle, no distortion."""
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
    for name in sorted(sizes):  # the first photo with a focal length speaks for its group
        if focal := headers[name].focal_length_px:
            focal_of_group.setdefault(f"{groups[name]} {sizes[name]}", focal)
    for name, size in sizes.items():
        groups[name] = f"{groups[name]} {size}"  # photos of another size cannot share a camera
        focal = focal_of_group.get(groups[name])
        cameras[name] = _simple_camera(camera_model, size, focal or GUESSED_FOCAL_FACTOR * max(size), focal is not None)
    if sharing == "single" and len(set(groups.values())) > 1:
        logger.warning("the photos have %d sizes, so there is one camera for each size", len(set(groups.values())))
    return cameras, groups


def _simple_camera(model: str, size: tuple[int, int], focal_px: float, known: bool) -> Camera:
    camera = pycolmap.Camera.create_from_model_name(1, model, focal_px, *size)
    return Camera(model, size, tuple(float(value) for value in camera.params), known)


def unique_cameras(cameras: Mapping[str, Camera], groups: Mapping[str, str], names: Sequence[str]) -> dict[str, int]:
    """The number of each image's camera, from 1, in the order in which `names` first show a group."""
    numbers: dict[str, int] = {}
    return {name: numbers.setdefault(groups[name], len(numbers) + 1) for name in names}
