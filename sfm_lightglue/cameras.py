"""Cameras: which photos share a camera, and the intrinsics of each camera, given (see `intrinsics.py`) or estimated.

Model names, the order of the parameters and pixel coordinates follow COLMAP: the centre of the top-left pixel is at (0.5, 0.5).
"""

from __future__ import annotations

import collections
import contextlib
import logging
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pycolmap

from sfm_lightglue.images import PhotoHeader, UnreadableImage, find_panoramas, read_header
from sfm_lightglue.intrinsics import MODELS as MODELS
from sfm_lightglue.intrinsics import Camera as Camera
from sfm_lightglue.intrinsics import find_camera_of_photos, parse_camera, read_given_cameras, wrong_size
from sfm_lightglue.mistakes import shortened
from sfm_lightglue.poses import PosedCamera
from sfm_lightglue.registry import closest

logger = logging.getLogger(__name__)

GUESSED_FOCAL_FACTOR = 1.2
"""COLMAP's guess of an unknown focal length, as a multiple of the longest side: a field of view of 45 degrees."""
STARTING_MODEL = "SIMPLE_RADIAL"
"""The model of estimated cameras with `camera_model=auto`: the mapper needs few parameters. The final adjustment adds others."""
PANORAMA = "EQUIRECTANGULAR"
"""The model of panoramas of the whole sphere. It has no parameters but the size."""
SHARING = ("auto", "exif", "single", "per_folder", "per_image")
"""Values of `intrinsics` that estimate the focal length. They say which photos share a camera."""
MIN_SHARE = 1 / 3
"""Photos without a focal length in EXIF may share a camera if at least this share of them has the same size. Photos of many
people, and scans, rarely have."""
MIN_FOLDER = 10
"""Photos without a focal length share a camera across folders, unless each folder has at least this many of them."""

MIN_SAME_LENS = 3
"""A lens is looked for among the photos of one camera if they are so many, else among all photos of their size."""


@dataclass(frozen=True)
class CameraAssignment:
    """The camera of each image, and which images share a camera."""

    cameras: Mapping[str, Camera]
    """Camera by image name."""
    groups: Mapping[str, str]
    """Group by image name: images of one group share one camera."""
    unsure: frozenset[str] = frozenset()
    """Images in groups that were made by their sizes alone: `view_graph.calibrate` tests these groups."""
    undecided: Mapping[str, str] = field(default_factory=dict)
    """Images whose lens is found from their matches, and images that have the same one, see `geometries.lenses`."""

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
            `auto`: focal length from EXIF. Photos with the same camera, lens and focal length in EXIF and the same size share a
            camera. Photos without a focal length share one if their sizes are equal, see `_auto_groups`.
            `exif`: focal length from EXIF. Photos with the same make, model, focal length and size share a camera; a photo
            without EXIF data has its own.
            `single`, `per_folder`, `per_image`: one camera for all photos, for each folder, for each photo. Its focal length is
            from EXIF, or guessed.
            `poses`: the cameras in `known`. Images with equal cameras share one.
            a camera `MODEL,param,param,...` or `fx,fy,cx,cy`, shared by all photos, see `intrinsics.parse_camera`.
            a file with lines `name MODEL width height param param ...`, COLMAP's `cameras.txt`, or the folder of a COLMAP model,
            see `intrinsics.read_given_cameras`. Images with equal cameras share one.
        camera_model: COLMAP's model of estimated cameras; `auto` is STARTING_MODEL, and PANORAMA for photos of the whole sphere.
        known: cameras by image name, for `intrinsics="poses"`.

    Raises: ValueError if an image has no intrinsics, if they are for another image size, or if a choice does not exist.
    """
    if camera_model not in ("auto", *MODELS):
        raise ValueError(f"database.camera_model={camera_model!r} does not exist. {closest(camera_model, ('auto', *MODELS))}")
    if intrinsics in SHARING:
        return _estimated_cameras(images, sizes, intrinsics, camera_model)
    if intrinsics == "poses":
        if not known:
            raise ValueError("database.intrinsics=poses takes the intrinsics from a file of poses: give dataset.poses=FILE")
        cameras = find_camera_of_photos(known, sizes, images)
    elif os.path.exists(intrinsics):  # noqa: PTH110 - Path.exists raises if the text is longer than a file name
        given = read_given_cameras(Path(intrinsics))
        cameras = find_camera_of_photos(given, sizes, images)
        if given and sizes and not cameras:
            raise ValueError(
                f"database.intrinsics={intrinsics} names other photos, such as {shortened(sorted(given))}, and none of the "
                f"{len(sizes)} photos, such as {shortened(sorted(sizes))}: names are paths below the photo folder, folders or "
                "patterns (* for all photos)"
            )
    elif _is_meant_as_file(intrinsics):
        raise FileNotFoundError(f"database.intrinsics={intrinsics} does not exist")
    else:
        cameras = _single_camera(intrinsics, sizes)
    _check_given(cameras, sizes, intrinsics)
    chosen = {name: cameras[name] for name in sizes}
    return CameraAssignment(chosen, {name: repr(camera) for name, camera in chosen.items()})


def check_intrinsics(images: Path, names: Iterable[str], intrinsics: str, camera_model: str, known: Mapping[str, Camera]) -> None:
    """Raises the errors of `choose_cameras` before features are extracted. It reads the headers of the photos, not the pixels.

    Args:
        images: folder of the photos.
        names: the photos; those that cannot be read are left out, as a run skips them.
        intrinsics: see `choose_cameras`, as `camera_model` and `known`.
    """
    sizes = {}
    for name in [] if intrinsics in SHARING and camera_model != PANORAMA else names:
        with contextlib.suppress(UnreadableImage):
            sizes[name] = read_header(images / name).size
    choose_cameras(images, sizes, intrinsics, camera_model, known)


def cameras_of_poses(poses: Mapping[str, PosedCamera]) -> dict[str, Camera]:
    """Pinhole cameras without distortion by image name, from the intrinsics of a file of poses."""
    cameras = {}
    for name, pose in poses.items():
        matrix = pose.camera_matrix
        params = (matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2])
        cameras[name] = Camera("PINHOLE", pose.size, tuple(float(value) for value in params), True)
    return cameras


def _single_camera(intrinsics: str, sizes: Mapping[str, tuple[int, int]]) -> dict[str, Camera]:
    """The camera on the command line for each photo. Raises: ValueError if it is none, or the photos have several sizes."""
    camera = parse_camera(intrinsics)
    if camera is None:
        choices = (*SHARING, "poses", "a camera such as PINHOLE:fx:fy:cx:cy", "a file of intrinsics")
        raise ValueError(f"database.intrinsics={intrinsics!r} is not known. {closest(intrinsics, choices)}")
    counts = collections.Counter(sizes.values())
    if len(counts) > 1:
        shown = ", ".join(f"{width} x {height} px ({count})" for (width, height), count in counts.most_common(3))
        raise ValueError(
            f"one camera is given for all photos, but they have {len(counts)} sizes: {shown}. Give a file of intrinsics with a "
            "line for each folder or pattern"
        )
    return {name: Camera(camera.model, size, camera.params, True) for name, size in sizes.items()}


def _is_meant_as_file(intrinsics: str) -> bool:
    """Whether the text is the path of a file, by its form: a slash in it, or the extension of a text file or a model."""
    return bool(re.search(r"[/\\]|\.(txt|csv|bin|json|yaml|yml|xml|db|dat|tsv)$", intrinsics, re.IGNORECASE))


def _check_given(cameras: Mapping[str, Camera], sizes: Mapping[str, tuple[int, int]], intrinsics: str) -> None:
    """Raises: ValueError if an image has no camera, a camera for another size, or wrong parameters."""
    missing = [name for name in sizes if name not in cameras]
    if missing:
        default = "" if intrinsics == "poses" else "; a line `* MODEL width height param ...` gives a camera to all others"
        raise ValueError(f"{len(missing)} of {len(sizes)} images have no intrinsics, the first is {missing[0]!r}{default}")
    for name, size in sizes.items():
        if cameras[name].size != size:
            raise ValueError(wrong_size(name, cameras[name], size))
        cameras[name].to_colmap()


def _estimated_cameras(images: Path, sizes: Mapping[str, tuple[int, int]], sharing: str, camera_model: str) -> CameraAssignment:
    """Cameras with the focal length from EXIF or guessed, the principal point in the middle and no distortion."""
    headers = {name: read_header(images / name) for name in sizes}
    panoramas = _panoramas(images, sizes, camera_model)
    is_given, camera_model = camera_model != "auto", STARTING_MODEL if camera_model == "auto" else camera_model
    keys = {name: header.camera_key for name, header in headers.items()}
    groups = {
        "auto": _auto_groups(headers),
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
    undecided = {} if is_given else _lens_groups(groups, sizes)
    for name, size in sizes.items():
        groups[name] = f"{groups[name]} {size}"  # photos of different sizes cannot share a camera
        focal = focal_of_group.get(groups[name])
        if name in panoramas:
            groups[name], cameras[name] = f"{PANORAMA} {size}", Camera(PANORAMA, size, (float(size[0]), float(size[1])), True)
        else:
            cameras[name] = _simple_camera(camera_model, size, focal, True) if focal else _guessed_camera(camera_model, size)
    if sharing == "single" and len(set(groups.values())) > 1:
        logger.warning("the photos have %d sizes, so there is one camera for each size", len(set(groups.values())))
    _warn_of_fisheye(sorted(name for name in sizes if groups[name] not in focal_of_group), len(sizes), camera_model)
    unknown = {name for name, camera in cameras.items() if not camera.has_prior_focal_length}
    undecided = {name: group for name, group in undecided.items() if name not in panoramas}
    return CameraAssignment(cameras, groups, frozenset(unknown) if sharing == "auto" else frozenset(), undecided)


def _panoramas(images: Path, sizes: Mapping[str, tuple[int, int]], camera_model: str) -> frozenset[str]:
    """The photos that show the whole sphere and get the model PANORAMA; says which. None if the user gave another model.

    Raises: ValueError if the user gave the model PANORAMA, and a photo has not its shape.
    """
    if camera_model == PANORAMA:
        if wrong := [name for name, (width, height) in sorted(sizes.items()) if width != 2 * height]:
            width, height = sizes[wrong[0]]
            raise ValueError(
                f"database.camera_model={PANORAMA} is for panoramas twice as wide as high, but {len(wrong)} of {len(sizes)} "
                f"photos have another shape, such as {wrong[0]!r} ({width} x {height} px): leave the option out"
            )
        return frozenset(sizes)
    found = find_panoramas(images, sizes)
    if not found:
        return frozenset()
    said = f"{len(found)} of {len(sizes)} photos, such as {found[0]!r}, are panoramas of the whole sphere"
    if camera_model != "auto":
        logger.warning("%s, but get the camera model %s, as database.camera_model says", said, camera_model)
        return frozenset()
    logger.info("%s: their camera model is %s", said, PANORAMA)
    return frozenset(found)


def _auto_groups(headers: Mapping[str, PhotoHeader]) -> dict[str, str]:
    """Group of each photo: what EXIF says about camera and lens; without a focal length, the size of the photo.

    A size makes a group if at least MIN_SHARE of the photos without a focal length have it, upright or turned by 90 degrees. All
    other photos have a group of their own.
    """
    groups = {name: header.lens_key or name for name, header in headers.items()}
    unknown = [name for name, header in headers.items() if not header.lens_key]
    shapes = {name: f"{max(headers[name].size)} x {min(headers[name].size)} px" for name in unknown}
    for shape, count in collections.Counter(shapes.values()).items():
        if count < max(2, MIN_SHARE * len(unknown)):
            continue
        members = [name for name in unknown if shapes[name] == shape]
        folders = collections.Counter(name.rpartition("/")[0] for name in members)
        is_split = min(folders.values()) >= MIN_FOLDER
        groups |= {name: f"{shape} {name.rpartition('/')[0] if is_split else ''}".strip() for name in members}
    return groups


def _lens_groups(groups: Mapping[str, str], sizes: Mapping[str, tuple[int, int]]) -> dict[str, str]:
    """Which photos have the same lens: those of a camera, upright or turned by 90 degrees; small groups by their size alone."""
    shapes = {name: f"{max(size)} x {min(size)} px" for name, size in sizes.items()}
    counts = collections.Counter((groups[name], shapes[name]) for name in sizes)
    return {
        name: f"{shape} {groups[name]}" if counts[groups[name], shape] >= MIN_SAME_LENS else shape
        for name, shape in shapes.items()
    }


def _is_fisheye(camera_model: str) -> bool:
    """Whether the model is for fisheye lenses. COLMAP verifies no pair of their photos without a known focal length."""
    return bool(pycolmap.Camera.create_from_model_name(1, camera_model, 1.0, 2, 2).is_perspective_fisheye())


def _guessed_camera(model: str, size: tuple[int, int]) -> Camera:
    """A camera with a guessed focal length. A fisheye lens counts as known: it sees 180 degrees along the diagonal."""
    if _is_fisheye(model):
        return _simple_camera(model, size, float(np.hypot(*size)) / np.pi, True)
    return _simple_camera(model, size, GUESSED_FOCAL_FACTOR * max(size), False)


def _warn_of_fisheye(names: list[str], num_photos: int, camera_model: str) -> None:
    """Warns of photos of a fisheye lens whose focal length is guessed."""
    if names and _is_fisheye(camera_model):
        logger.warning(
            "EXIF has no focal length for %d of %d photos, such as %r: the fisheye lens is assumed to see 180 degrees along the "
            "diagonal. If it does not, give the camera, roughly: database.intrinsics=%s:%s reconstruction.refine_intrinsics=true",
            *(len(names), num_photos, names[0], camera_model),
            ":".join(pycolmap.Camera.create_from_model_name(1, camera_model, 1.0, 2, 2).params_info.split(", ")),
        )


def _simple_camera(model: str, size: tuple[int, int], focal_px: float, known: bool) -> Camera:
    """A camera of the model without distortion; `known`: whether the focal length is known."""
    camera = pycolmap.Camera.create_from_model_name(1, model, focal_px, *size)
    return Camera(model, size, tuple(float(value) for value in camera.params), known)
