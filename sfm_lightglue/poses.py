"""Camera poses: the only reader and writer of pose files, and angles between rotations and between directions.

A pose file has one line `name qw qx qy qz tx ty tz fx fy cx cy width height` per image; lines that start with # are comments.
Commas or semicolons may stand between the columns, and the file may have any encoding of `text_files.py`.
Poses are world-to-camera, x_cam = R(q) X + t, with COLMAP's axes: x right, y down, z forward. Intrinsics describe a pinhole
camera without distortion, in COLMAP's pixels: the centre of the top-left pixel is at (0.5, 0.5).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sfm_lightglue.files import written_whole
from sfm_lightglue.geometry import essential_matrix
from sfm_lightglue.text_files import content_lines, split_name_and_values

NUM_VALUES = 13
"""Number of values after the name in a line of the file."""
HEADER = "# name qw qx qy qz tx ty tz fx fy cx cy width height   (world-to-camera, COLMAP axes; pixel centre at 0.5)"


@dataclass(frozen=True)
class Pose:
    """Position and orientation of a camera: x_cam = rotation @ x_world + translation."""

    rotation: np.ndarray
    """float64 (3, 3), cam_from_world."""
    translation: np.ndarray
    """float64 (3,), cam_from_world, in the unit of the world."""

    @property
    def center(self) -> np.ndarray:
        """float64 (3,): centre of the camera in the world."""
        return -self.rotation.T @ self.translation

    @property
    def cam_from_world(self) -> np.ndarray:
        """float64 (3, 4): rotation and translation side by side."""
        return np.column_stack([self.rotation, self.translation])


@dataclass(frozen=True)
class PosedCamera(Pose):
    """A pose with the intrinsics of the camera."""

    camera_matrix: np.ndarray
    """float64 (3, 3), px, with the centre of the top-left pixel at (0.5, 0.5)."""
    size: tuple[int, int]
    """(width, height) px."""


def read_poses(path: Path | str) -> dict[str, PosedCamera]:
    """The cameras of a pose file by image name, in the order of the file. Quaternions are normalised.

    Raises: FileNotFoundError; ValueError with the line number if a line has another form or names an image a second time.
    """
    cameras: dict[str, PosedCamera] = {}
    for number, line in content_lines(path, "pose file"):
        try:
            name, camera = _parse_line(line)
            if name in cameras:
                raise ValueError(f"a second pose of {name}")
        except ValueError as error:
            raise ValueError(
                f"{path}:{number}: {error}; expected `name qw qx qy qz tx ty tz fx fy cx cy width height`"
            ) from error
        cameras[name] = camera
    return cameras


def write_poses(path: Path | str, cameras: Mapping[str, PosedCamera]) -> None:
    """Writes a pose file with the cameras in the given order, whole or not at all; numbers have 12 significant digits."""
    lines = [HEADER]
    for name, camera in cameras.items():
        matrix = camera.camera_matrix
        intrinsics = (matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2])
        values = (*quaternion_from_rotation(camera.rotation), *camera.translation, *intrinsics)
        lines.append(" ".join([name, *(f"{value:.12g}" for value in values), *map(str, camera.size)]))
    with written_whole(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def fundamental_matrix(camera0: PosedCamera, camera1: PosedCamera) -> np.ndarray:
    """float64 (3, 3): x1.T @ F @ x0 = 0, in COLMAP's pixels."""
    rotation = camera1.rotation @ camera0.rotation.T
    essential = essential_matrix(rotation, camera1.translation - rotation @ camera0.translation)
    return np.linalg.inv(camera1.camera_matrix).T @ essential @ np.linalg.inv(camera0.camera_matrix)


def rotation_from_quaternion(quaternion: np.ndarray) -> np.ndarray:
    """float64 (3, 3) rotation of a quaternion (w, x, y, z) of any length except zero."""
    import pycolmap  # here, because listing the datasets imports this module and must not wait for pycolmap

    w, x, y, z = quaternion / np.linalg.norm(quaternion)
    return pycolmap.Rotation3d(np.array([x, y, z, w])).matrix()


def quaternion_from_rotation(rotation: np.ndarray) -> np.ndarray:
    """float64 (4,) unit quaternion (w, x, y, z) with w >= 0 of a (3, 3) rotation."""
    import pycolmap  # see rotation_from_quaternion

    x, y, z, w = pycolmap.Rotation3d(rotation).quat
    return np.array([w, x, y, z]) / np.copysign(np.linalg.norm([w, x, y, z]), w)


def nearest_rotation(matrix: np.ndarray) -> np.ndarray:
    """float64 (3, 3): the rotation that is closest to a (3, 3) matrix in Frobenius norm, never a reflection.

    For a sum of rotations it is their chordal mean.
    Source: Hartley, Trumpf, Dai and Li, Rotation Averaging, IJCV 2013, section 5.3.
    """
    u, _, vt = np.linalg.svd(matrix)
    return u @ np.diag([1, 1, np.sign(np.linalg.det(u @ vt))]) @ vt


def rotation_angle_deg(rotation: np.ndarray) -> np.ndarray:
    """float64 (...): angles in 0..180 degrees of rotations (..., 3, 3).

    The angle is computed from the distance to the identity, which is exact for small angles. The arc cosine of the trace has an
    error of 1e-6 degrees there.
    """
    chord = np.linalg.norm(rotation - np.eye(3), axis=(-2, -1)) / np.sqrt(8)
    return np.degrees(2 * np.arcsin(np.clip(chord, 0, 1)))


def direction_angle_deg(vector0: np.ndarray, vector1: np.ndarray) -> np.ndarray:
    """float64 (...): angles in 0..180 degrees between vectors (..., 3); 180 if a vector is zero or not finite."""
    cross, dot = np.linalg.norm(np.cross(vector0, vector1), axis=-1), np.sum(vector0 * vector1, axis=-1)
    defined = np.isfinite(dot) & (np.any(vector0 != 0, axis=-1) & np.any(vector1 != 0, axis=-1))
    return np.where(defined, np.degrees(np.arctan2(cross, dot)), 180.0)


def _parse_line(line: str) -> tuple[str, PosedCamera]:
    """Image name, which may contain blanks, and camera. Raises: ValueError with the reason."""
    name, fields = split_name_and_values(line, NUM_VALUES)
    if len(fields) != NUM_VALUES:
        raise ValueError(f"found {len(fields)} values after the name")
    values = np.array([float(field) for field in fields])
    quaternion, translation, (fx, fy, cx, cy, width, height) = values[:4], values[4:7], values[7:]
    if not np.isfinite(values).all() or not quaternion.any():
        raise ValueError("a value is not finite or the quaternion is zero")
    if min(fx, fy, width, height) <= 0 or width % 1 or height % 1:
        raise ValueError("focal lengths must be positive, width and height positive whole numbers")
    camera_matrix = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
    return name, PosedCamera(rotation_from_quaternion(quaternion), translation, camera_matrix, (int(width), int(height)))
