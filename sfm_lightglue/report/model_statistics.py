"""Statistics of a model for a report: track lengths, reprojection errors, triangulation angles, and error maps of each camera."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pycolmap

from sfm_lightglue.mistakes import count_of, shortened
from sfm_lightglue.report.packing import packed
from sfm_lightglue.report.scene_data import sample_ids

MAX_POINTS = 8_000
"""Points whose tracks and triangulation angles are measured; of a larger model a random sample."""
MAX_OBSERVATIONS = 120_000
"""Observations whose errors are measured, spread evenly over the photos."""
OBSERVATIONS_PER_CELL = 12
"""Observations that a cell of an error map should have on average."""
MAX_COLUMNS = 24
MAX_CAMERAS = 24
"""Cameras with an error map, those with most observations."""


@dataclass(frozen=True)
class Residuals:
    """Reprojection errors of observations, n in all."""

    camera: np.ndarray
    """int64 (n,): id of the camera."""
    place: np.ndarray
    """float64 (n, 2): where the keypoint is, px of the photo."""
    error: np.ndarray
    """float64 (n, 2): keypoint - projected point, px of the photo."""
    pixel_scale: np.ndarray
    """float64 (n,): size of a pixel of the detector, px of the photo."""


def measure_residuals(
    model: pycolmap.Reconstruction, pixel_scale: Callable[[str], float], limit: int = MAX_OBSERVATIONS
) -> Residuals:
    """Errors of at most about `limit` observations of a model. `pixel_scale` is asked with the name of each photo."""
    ids = sorted(model.reg_image_ids())
    step = max(1, len(ids) * 200 // max(limit, 1))  # 200 observations or more of each photo that is measured
    per_image = max(1, limit // max(1, len(ids[::step])))
    parts = [part for image_id in ids[::step] if (part := _residuals_of(model, image_id, per_image, pixel_scale)) is not None]
    if not parts:
        return Residuals(np.zeros(0, np.int64), np.zeros((0, 2)), np.zeros((0, 2)), np.zeros(0))
    camera, place, error, scale = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Residuals(camera, place, error, scale)


def _residuals_of(
    model: pycolmap.Reconstruction, image_id: int, limit: int, pixel_scale: Callable[[str], float]
) -> tuple[np.ndarray, ...] | None:
    image = model.image(image_id)
    observed = image.get_observation_points2D()
    observed = observed[:: max(1, -(-len(observed) // limit))]
    if not observed:
        return None
    keypoints = np.array([point.xy for point in observed])
    points = np.array([model.point3D(point.point3D_id).xyz for point in observed])
    pose = image.cam_from_world().matrix()
    projected = np.asarray(model.camera(image.camera_id).img_from_cam(points @ pose[:, :3].T + pose[:, 3]))
    error = keypoints - projected
    is_finite = np.isfinite(error).all(axis=1)
    count = int(is_finite.sum())
    scale = pixel_scale(image.name)
    return np.full(count, image.camera_id), keypoints[is_finite], error[is_finite], np.full(count, scale)


def measure_points(model: pycolmap.Reconstruction, limit: int = MAX_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """int64 (n,) track lengths and float64 (n,) largest triangulation angles in degrees, of at most `limit` points."""
    centers = {image_id: model.image(image_id).projection_center() for image_id in model.reg_image_ids()}
    lengths, angles = [], []
    for number in sample_ids(model, limit):
        point = model.point3D(number)
        seen = sorted({element.image_id for element in point.track.elements})
        lengths.append(point.track.length())
        rays = np.array([centers[image_id] for image_id in seen if image_id in centers]).reshape(-1, 3) - point.xyz
        angles.append(_largest_angle(rays))
    return np.array(lengths, np.int64), np.array(angles, np.float64)


def _largest_angle(rays: np.ndarray) -> float:
    """The largest angle between two of the rays (n, 3), degrees; NaN for fewer than two."""
    if len(rays) < 2:
        return float("nan")
    if len(rays) > 40:
        rays = rays[:: -(-len(rays) // 40)]
    directions = rays / np.maximum(np.linalg.norm(rays, axis=1, keepdims=True), 1e-12)
    return float(np.rad2deg(np.arccos(np.clip((directions @ directions.T).min(), -1, 1))))


def residual_maps(residuals: Residuals, model: pycolmap.Reconstruction) -> list[dict[str, Any]]:
    """The mean error vectors of each camera on a grid, for `web/charts.js`; the cameras with most observations first."""
    cameras, counts = np.unique(residuals.camera, return_counts=True)
    photos: dict[int, list[str]] = {}
    for image_id in sorted(model.reg_image_ids()):
        photos.setdefault(model.image(image_id).camera_id, []).append(model.image(image_id).name)
    order = np.argsort(-counts, kind="stable")[:MAX_CAMERAS]
    return [_residual_map(residuals, model.camera(int(cameras[i])), photos.get(int(cameras[i]), [])) for i in order]


def _residual_map(residuals: Residuals, camera: pycolmap.Camera, photos: list[str]) -> dict[str, Any]:
    mine = residuals.camera == camera.camera_id
    place, error = residuals.place[mine], residuals.error[mine]
    columns = int(np.clip(np.sqrt(mine.sum() / OBSERVATIONS_PER_CELL * camera.width / camera.height), 4, MAX_COLUMNS))
    rows = max(3, round(columns * camera.height / camera.width))
    column = np.clip((place[:, 0] / camera.width * columns).astype(int), 0, columns - 1)
    row = np.clip((place[:, 1] / camera.height * rows).astype(int), 0, rows - 1)
    cell, num_cells = row * columns + column, rows * columns
    count = np.bincount(cell, minlength=num_cells)
    mean = [np.bincount(cell, error[:, axis], num_cells) / np.maximum(count, 1) for axis in (0, 1)]
    error_px = np.median(np.linalg.norm(error, axis=1))
    lens = "" if camera.is_spherical() else f"; focal length {camera.mean_focal_length():.0f} px, {_named_params(camera)}"
    return {
        "title": f"Camera {camera.camera_id}: {camera.model.name}, {camera.width} x {camera.height} px",
        "size": [camera.width, camera.height],
        "columns": columns,
        "rows": rows,
        "x": packed(mean[0].astype(np.float32)),
        "y": packed(mean[1].astype(np.float32)),
        "count": packed(count.astype(np.uint32)),
        "note": f"{count_of(len(photos), 'photo')}: {shortened(photos)}. {len(error)} observations, "
        f"median error {error_px:.2f} px{lens}",
    }


def _named_params(camera: pycolmap.Camera) -> str:
    """The distortion of a camera in words: `k=-0.0123`."""
    names = [name.strip() for name in camera.params_info.split(",")]
    distortion = [(name, value) for name, value in zip(names, camera.params, strict=False) if name[0] not in "fc"]
    return ", ".join(f"{name}={value:.4f}" for name, value in distortion) or "no distortion"


def pixel_scales(known: Mapping[str, float]) -> Callable[[str], float]:
    """The pixel scale of a photo by its name; 1 if it is not known."""
    return lambda name: known.get(name, 1.0)
