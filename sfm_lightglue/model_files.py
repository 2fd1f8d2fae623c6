"""The files of a COLMAP model: reads a model after a check that its binary files are whole.

COLMAP itself does not notice a cut file: it reads wrong cameras from it, or fills the memory.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pycolmap

BINARY_FILES = ("cameras.bin", "images.bin", "points3D.bin", "rigs.bin", "frames.bin")
TEXT_FILES = tuple(name.replace(".bin", ".txt") for name in BINARY_FILES)
COPIES = (*TEXT_FILES, "points.ply")
"""Files that `write_copies` makes from the binary ones."""
POSE = 7 * 8
"""Bytes of a pose: a quaternion and a translation, float64."""


def read_model(folder: Path | str) -> pycolmap.Reconstruction:
    """The COLMAP model in a folder, binary or text.

    Raises:
        FileNotFoundError: The folder does not exist.
        ValueError: A file is missing or damaged.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"the COLMAP model {folder} does not exist: expected a folder of cameras, images and points")
    problem = find_damage(folder) if any((folder / name).exists() for name in BINARY_FILES) else ""
    if not problem:
        try:
            return pycolmap.Reconstruction(folder)
        except (ValueError, IndexError, RuntimeError, MemoryError) as error:
            problem = str(error).splitlines()[0]
    raise ValueError(f"the COLMAP model {folder} is damaged ({problem}): run the stage reconstruct again, or remove it")


@dataclass(frozen=True)
class Observations:
    """What a registered photo sees of its model."""

    errors_px: np.ndarray
    """float64 (m,): distance of each observed point, projected into the photo, from its keypoint, px of the photo. Points behind
    the camera are left out."""
    has_point: np.ndarray
    """bool (n,): whether each keypoint of the photo observes a point."""


def observations_of(model: pycolmap.Reconstruction) -> dict[str, Observations]:
    """What each registered photo of a model sees, by name, sorted."""
    ids = np.array(sorted(model.point3D_ids()), np.uint64)
    positions = np.array([model.point3D(int(point)).xyz for point in ids]).reshape(-1, 3)
    found = {}
    for image_id in model.reg_image_ids():
        image, camera = model.image(image_id), model.camera(model.image(image_id).camera_id)
        points = image.get_observation_points2D()
        rows = np.searchsorted(ids, np.array([point.point3D_id for point in points], np.uint64))
        keypoints = np.array([point.xy for point in points]).reshape(-1, 2)
        projected = camera.img_from_cam(image.cam_from_world() * positions[rows])
        errors_px = np.linalg.norm(projected - keypoints, axis=1)
        has_point = np.zeros(image.num_points2D(), bool)
        has_point[image.get_observation_point2D_idxs()] = True
        found[image.name] = Observations(errors_px[np.isfinite(errors_px)], has_point)
    return dict(sorted(found.items()))


def write_copies(model: pycolmap.Reconstruction, folder: Path) -> None:
    """Writes a model as text and as `points.ply`."""
    model.write_text(folder)
    model.export_PLY(folder / "points.ply")


def find_damage(folder: Path) -> str:
    """What is wrong with the binary files of a model; empty if they are whole.

    Models of COLMAP 3 have neither `rigs.bin` nor `frames.bin`.
    """
    present = [name for name in BINARY_FILES if (folder / name).is_file()]
    if missing := [name for name in BINARY_FILES if name not in present and not (len(present) == 3 and name in BINARY_FILES[3:])]:
        return f"{missing[0]} is missing"
    for name in present:
        data = (folder / name).read_bytes()
        try:
            end = _ends[name](data)
        except (struct.error, ValueError, KeyError, OverflowError):
            end = -1
        if end != len(data):
            return f"{name} is cut"
    return ""


def _end_of_cameras(data: bytes) -> int:
    (count,), place = struct.unpack_from("<Q", data), 8
    for _ in range(count):
        _, model = struct.unpack_from("<Ii", data, place)
        place += 24 + 8 * _num_params(model)
    return place


@functools.cache
def _num_params(model: int) -> int:
    """Number of parameters of a camera model. Raises: KeyError for an unknown number."""
    names = {int(number): name for name, number in pycolmap.CameraModelId.__members__.items() if name != "INVALID"}
    return len(pycolmap.Camera.create_from_model_name(1, names[model], 1.0, 2, 2).params)


def _end_of_images(data: bytes) -> int:
    (count,), place = struct.unpack_from("<Q", data), 8
    for _ in range(count):
        place = data.index(b"\0", place + 4 + POSE + 4) + 1  # id, pose, camera, name
        (num_points,) = struct.unpack_from("<Q", data, place)
        place += 8 + 24 * num_points
    return place


def _end_of_points(data: bytes) -> int:
    (count,), place = struct.unpack_from("<Q", data), 8
    length = struct.Struct("<Q")
    for _ in range(count):
        (track,) = length.unpack_from(data, place + 43)  # id, xyz, rgb, error
        place += 51 + 8 * track
    return place


def _end_of_rigs(data: bytes) -> int:
    (count,), place = struct.unpack_from("<Q", data), 8
    for _ in range(count):
        _, num_sensors = struct.unpack_from("<II", data, place)
        place += 8 + (8 if num_sensors else 0)
        for _ in range(num_sensors - 1):
            (has_pose,) = struct.unpack_from("<?", data, place + 8)
            place += 9 + has_pose * POSE
    return place


def _end_of_frames(data: bytes) -> int:
    (count,), place = struct.unpack_from("<Q", data), 8
    for _ in range(count):
        (num_images,) = struct.unpack_from("<I", data, place + 8 + POSE)
        place += 12 + POSE + 16 * num_images
    return place


_ends: dict[str, Callable[[bytes], int]] = dict(
    zip(BINARY_FILES, (_end_of_cameras, _end_of_images, _end_of_points, _end_of_rigs, _end_of_frames), strict=True)
)
"""Functions that walk through a file and return where its last record ends. A cut file ends before or inside a record."""
