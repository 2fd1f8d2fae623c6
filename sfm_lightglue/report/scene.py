"""A picture of a reconstruction: coloured points and cameras, seen from behind and above the cameras."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image as PILImage
from PIL import ImageDraw

from sfm_lightglue.model_files import read_model
from sfm_lightglue.orientation import UPRIGHT, camera_upright_from_stored
from sfm_lightglue.report.draw import save

if TYPE_CHECKING:
    import pycolmap

SIZE = (1600, 1000)
"""(width, height) px of the picture. It is drawn at twice this size and then reduced, for smooth edges."""
CAMERA_COLOR = (200, 30, 30)
ELEVATION_DEG, FIELD_OF_VIEW_DEG = 28.0, 45.0
EDGES = ((0, 1), (0, 2), (0, 3), (0, 4), (1, 2), (2, 3), (3, 4), (4, 1))
"""Edges of a camera's pyramid: from its centre to the image plane, then around it."""


@dataclass(frozen=True)
class View:
    """The viewpoint: x_view = rotation @ x_world + translation (x right, y down, z forward), focal length in px."""

    rotation: np.ndarray
    translation: np.ndarray
    focal: float
    centre: np.ndarray

    def project(self, points_in_world: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pixels (n, 2) and depths (n,) of points (n, 3)."""
        x, y, depth = (points_in_world @ self.rotation.T + self.translation).T
        safe = np.maximum(depth, 1e-6)
        return np.stack([x, y], axis=1) / safe[:, None] * self.focal + self.centre, depth


def draw_reconstruction(model: Path, path: Path, orientations: Mapping[str, int] | None = None) -> None:
    """Draws the COLMAP model in the folder `model` to the picture `path`. A model without points is not drawn.

    `orientations` are the codes of EXIF by image name, which say what is up in a photo; by default all photos are upright.
    """
    reconstruction = read_model(model)
    points, colors = points_of(reconstruction)
    if not len(points):
        return
    poses = upright_poses(reconstruction, orientations)
    view = choose_view(points, poses)
    picture = PILImage.new("RGB", (2 * SIZE[0], 2 * SIZE[1]), "white")
    draw = ImageDraw.Draw(picture)
    pixels, depths = view.project(points)
    typical = float(np.median(depths))
    for index in np.argsort(-depths, kind="stable"):  # the farthest first, so that near points cover them
        if depths[index] > 0.05 * typical:
            x, y = pixels[index]
            radius = float(np.clip(4 * typical / depths[index], 2, 8))
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=tuple(int(value) for value in colors[index]))
    size = camera_size(points)
    for pose in poses:
        _draw_camera(draw, view, pose, size)
    save(picture.resize(SIZE, PILImage.Resampling.LANCZOS), path)


def points_of(reconstruction: pycolmap.Reconstruction) -> tuple[np.ndarray, np.ndarray]:
    """Points float64 (n, 3) in the world and their colours uint8 (n, 3), in the order of the model."""
    points = [(point.xyz, point.color) for point in reconstruction.points3D.values()]
    return np.array([xyz for xyz, _ in points]).reshape(-1, 3), np.array([color for _, color in points], np.uint8).reshape(-1, 3)


def upright_poses(reconstruction: pycolmap.Reconstruction, orientations: Mapping[str, int] | None = None) -> np.ndarray:
    """Poses float64 (k, 3, 4), cam_from_world, of the registered images as if stored upright, in the order of their ids.

    `orientations` are the codes of EXIF by image name; images without one are upright.
    """
    images = [reconstruction.image(image_id) for image_id in sorted(reconstruction.reg_image_ids())]
    turns = [camera_upright_from_stored((orientations or {}).get(image.name, UPRIGHT)) for image in images]
    poses = [turn @ image.cam_from_world().matrix() for turn, image in zip(turns, images, strict=True)]
    return np.array(poses).reshape(-1, 3, 4)


def camera_size(points: np.ndarray) -> float:
    """Depth of the pyramids that stand for cameras, in the unit of the points (n, 3)."""
    return 0.15 * float(np.median(np.linalg.norm(points - np.median(points, axis=0), axis=1)))


def choose_view(
    points: np.ndarray,
    poses: np.ndarray,
    *,
    size: tuple[int, int] = SIZE,
    elevation_deg: float = ELEVATION_DEG,
    azimuth_deg: float = 0.0,
) -> View:
    """A view that shows all cameras and nine tenths of the points.

    Args:
        points: (n, 3), in the world.
        poses: cam_from_world (k, 3, 4) of upright cameras.
        size: (width, height) of the picture, of which only the ratio counts: coordinates of the view span twice `size`.
        elevation_deg: How far from above; 0 looks in the mean direction of the cameras, 90 straight down.
        azimuth_deg: Turn about the vertical, counted from behind the cameras; 90 looks from their left.
    """
    down = _unit(poses[:, 1, :3].mean(axis=0))
    forward = poses[:, 2, :3].mean(axis=0)
    forward = _unit(forward - forward @ down * down)
    right = np.cross(down, forward)
    turn, angle = np.deg2rad(azimuth_deg), np.deg2rad(elevation_deg)
    forward = np.cos(turn) * forward + np.sin(turn) * right
    axis_z = np.cos(angle) * forward + np.sin(angle) * down
    axis_y = np.cos(angle) * down - np.sin(angle) * forward
    rotation = np.stack([np.cross(axis_y, axis_z), axis_y, axis_z])
    centers = -np.einsum("nij,ni->nj", poses[:, :, :3], poses[:, :, 3])
    distances = np.linalg.norm(points - np.median(points, axis=0), axis=1)
    near = points[np.argsort(distances)[: max(1, 9 * len(points) // 10)]]
    seen = np.concatenate([near, centers]) @ rotation.T
    low, high = seen.min(axis=0), seen.max(axis=0)
    slopes = np.tan(np.deg2rad(FIELD_OF_VIEW_DEG / 2)) * np.array([1, size[1] / size[0]])
    middle = (low + high)[:2] / 2
    # The nearest viewpoint from which everything is inside the frame. The factor 0.88 leaves a margin for the drawn cameras.
    back = float(((np.abs(seen[:, :2] - middle) / (0.88 * slopes)).max(axis=1) - seen[:, 2]).max())
    return View(rotation, np.array([*-middle, back]), size[0] / slopes[0], np.array(size, np.float64))


def pyramid(pose: np.ndarray, size: float) -> np.ndarray:
    """The corners (5, 3), in the world, of a camera with pose cam_from_world (3, 4): its centre, then its image plane."""
    corners = size * np.array([[0, 0, 0], [-0.6, -0.45, 1], [0.6, -0.45, 1], [0.6, 0.45, 1], [-0.6, 0.45, 1]])
    in_world: np.ndarray = (corners - pose[:, 3]) @ pose[:, :3]
    return in_world


def _draw_camera(draw: ImageDraw.ImageDraw, view: View, pose: np.ndarray, size: float) -> None:
    """Draws the pyramid of a camera with pose cam_from_world (3, 4), `size` units of the world deep."""
    pixels, depths = view.project(pyramid(pose, size))
    if (depths <= 0).any():
        return
    for first, second in EDGES:
        draw.line([*pixels[first], *pixels[second]], fill=CAMERA_COLOR, width=3)


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)
