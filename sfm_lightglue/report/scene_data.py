"""The 3D view of a report: points, cameras and GPS positions of the models, and maps of their reprojection errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap

from sfm_lightglue.georeference import read_georeference
from sfm_lightglue.mistakes import count_of
from sfm_lightglue.orientation import UPRIGHT, camera_upright_from_stored
from sfm_lightglue.positions import GeoPosition
from sfm_lightglue.report.packing import packed

MAX_POINTS = 60_000
"""Points of a model in the 3D view; of a larger model a random sample."""
NEAR = 0.9
"""Part of the points that the first view shows. The others may be far away."""
FAR = 30.0
"""Points farther from the middle than this many radii of the near points are left out."""


def scene_of(
    name: str,
    model: pycolmap.Reconstruction,
    folder: Path,
    photos: Mapping[str, int],
    orientations: Mapping[str, int],
    positions: Mapping[str, GeoPosition],
    *,
    max_points: int = MAX_POINTS,
) -> dict[str, Any]:
    """One model for `web/scene.js`.

    Args:
        name: Name of its folder.
        model: The model.
        folder: Its folder, which may hold `georeference.json`.
        photos: Number of each photo in the report, by name.
        orientations: EXIF codes of the photos, which say what is up.
        positions: GPS positions of the photos. They are shown if the model is georeferenced.
        max_points: Points to keep.
    """
    images = [model.image(image_id) for image_id in sorted(model.reg_image_ids())]
    images = [image for image in images if image.name in photos]
    points, colors = sample_points(model, max_points)
    centers = np.array([image.projection_center() for image in images]).reshape(-1, 3)
    middle, radius = _extent(points, centers)
    is_near = np.linalg.norm(points - middle, axis=1) < FAR * radius
    points, colors = points[is_near], colors[is_near]
    low = points.min(axis=0, initial=np.inf) if len(points) else middle
    step = max(float(np.ptp(points, axis=0).max()) / 65535, 1e-12) if len(points) else 1.0
    up, forward = _directions(images, orientations)
    georeference = read_georeference(folder)
    return {
        "name": name,
        "about": "Georeferenced: up is up." if georeference else "",
        "num_points": model.num_points3D(),
        "points": packed(((points - low) / step).round().clip(0, 65535).astype(np.uint16)),
        "colors": packed(colors),
        "low": low.tolist(),
        "step": step,
        "photos": packed(np.array([photos[image.name] for image in images], np.uint32)),
        "poses": packed(np.array([_pose(image) for image in images], np.float32).reshape(-1, 7)),
        "extents": packed(np.array([_extents(model.camera(image.camera_id)) for image in images], np.float32).reshape(-1, 4)),
        "up": [0.0, 0.0, 1.0] if georeference else up,
        "forward": forward,
        "middle": middle.tolist(),
        "radius": radius,
        "camera_size": _camera_size(centers, radius),
        "point_size": radius * float(np.clip(1.0 / max(1, len(points)) ** 0.5, 0.004, 0.02)),
        "gps": None if georeference is None else _gps(georeference, positions, photos),
    }


def sample_points(model: pycolmap.Reconstruction, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """float64 (n, 3) positions and uint8 (n, 3) colours of at most `limit` points, always the same ones."""
    chosen = [model.point3D(number) for number in sample_ids(model, limit)]
    points = np.array([point.xyz for point in chosen]).reshape(-1, 3)
    colors = np.array([point.color for point in chosen], np.uint8).reshape(-1, 3)
    is_finite = np.isfinite(points).all(axis=1)
    return points[is_finite], colors[is_finite]


def sample_ids(model: pycolmap.Reconstruction, limit: int) -> list[int]:
    """At most `limit` ids of points, sorted; a random choice, always the same."""
    numbers = np.sort(np.fromiter(model.point3D_ids(), np.int64))
    if len(numbers) > limit:
        numbers = np.sort(np.random.default_rng(0).choice(numbers, limit, replace=False))
    found: list[int] = numbers.tolist()
    return found


def _pose(image: pycolmap.Image) -> list[float]:
    """Quaternion w, x, y, z of world_from_cam, and the centre of the camera."""
    x, y, z, w = image.cam_from_world().rotation.inverse().quat
    return [w, x, y, z, *image.projection_center()]


def _extents(camera: pycolmap.Camera) -> list[float]:
    """Left, top, right and bottom end of the picture at depth 1, without distortion; a panorama is shown as one of 90 degrees."""
    if camera.is_spherical():
        return [-1.0, -0.5, 1.0, 0.5]
    focal_x, focal_y, x, y = camera.focal_length_x, camera.focal_length_y, camera.principal_point_x, camera.principal_point_y
    return [-x / focal_x, -y / focal_y, (camera.width - x) / focal_x, (camera.height - y) / focal_y]


def _extent(points: np.ndarray, centers: np.ndarray) -> tuple[np.ndarray, float]:
    """The middle (3,) of the near points and the cameras, and the radius of a sphere around them."""
    everything = np.concatenate([points, centers])
    if not len(everything):
        return np.zeros(3), 1.0
    heart = np.median(points if len(points) else centers, axis=0)
    distances = np.linalg.norm(points - heart, axis=1)
    near = points[np.argsort(distances, kind="stable")[: max(1, int(NEAR * len(points)))]]
    seen = np.concatenate([near, centers])
    middle = (seen.min(axis=0) + seen.max(axis=0)) / 2
    return middle, max(float(np.linalg.norm(seen - middle, axis=1).max()), 1e-9)


def _camera_size(centers: np.ndarray, radius: float) -> float:
    """Depth of the drawn pyramids: small beside the model, and about the distance of neighbouring cameras."""
    if len(centers) < 2:
        return 0.08 * radius
    few = centers[:: max(1, len(centers) // 500)]
    distances = np.linalg.norm(few[:, None] - centers[None], axis=2) if len(centers) <= 20_000 else np.full((1, 2), np.inf)
    distances[distances == 0] = np.inf
    nearest = distances.min(axis=1)
    typical = float(np.median(nearest[np.isfinite(nearest)])) if np.isfinite(nearest).any() else radius
    return float(np.clip(0.7 * typical, 0.015 * radius, 0.09 * radius))


def _directions(images: Sequence[pycolmap.Image], orientations: Mapping[str, int]) -> tuple[list[float], list[float]]:
    """The mean upward and viewing directions of the cameras in the world."""
    up, forward = np.zeros(3), np.zeros(3)
    for image in images:
        turn = camera_upright_from_stored(orientations.get(image.name, UPRIGHT))
        rotation = turn @ image.cam_from_world().rotation.matrix()
        up -= rotation[1]
        forward += rotation[2]
    if np.linalg.norm(up) < 1e-6:
        up = np.array([0.0, -1, 0])
    if np.linalg.norm(np.cross(up, forward)) < 1e-3 * np.linalg.norm(up):  # cameras all around, or looking down
        forward = np.cross(up, [1.0, 0, 0] if abs(up[0]) < 0.9 * np.linalg.norm(up) else [0, 1.0, 0])
    return (up / np.linalg.norm(up)).tolist(), (forward / np.linalg.norm(forward)).tolist()


def _gps(georeference: Any, positions: Mapping[str, GeoPosition], photos: Mapping[str, int]) -> dict[str, Any] | None:
    """The GPS positions of the photos in the coordinates of the model; None if there are none."""
    known = [name for name in sorted(positions) if name in photos and np.isfinite(positions[name].altitude_m)]
    if not known:
        return None
    places = [(positions[name].latitude_deg, positions[name].longitude_deg, positions[name].altitude_m) for name in known]
    return {
        "photos": packed(np.array([photos[name] for name in known], np.uint32)),
        "positions": packed(georeference.to_local(places).astype(np.float32)),
    }


def about_models(models: Sequence[pycolmap.Reconstruction]) -> str:
    """The models in words: `1 model of 11 photos`."""
    sizes = ", ".join(str(model.num_reg_images()) for model in models)
    return f"{count_of(len(models), 'model')} of {sizes} photos" if models else "no model"
