"""Colours of the points of a model, from our own decoder. COLMAP cannot read WebP, AVIF, JPEG 2000, GIF and HEIC photos."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pycolmap

from sfm_lightglue.execution.devices import num_cores
from sfm_lightglue.images import UnreadableImage, camera_ranges, load_image
from sfm_lightglue.orientation import MIRRORED

logger = logging.getLogger(__name__)

MAX_MEGAPIXELS = 200
"""Photos that are decoded at the same time have at most this size together, or are a single photo."""


def color_points(model: pycolmap.Reconstruction, images: Path, orientations: Mapping[str, int] | None = None) -> None:
    """Gives each point of `model` the mean colour of its observations, interpolated bilinearly in the photos.

    Each photo is read once. Points that no readable photo observes become black, as in COLMAP.

    Args:
        model: The model; its points are changed.
        images: Folder of the photos. A photo that is missing, unreadable or of another size than its camera is left out, with
            a warning.
        orientations: `Features.orientation` by name of the photo, with which the database was built. The keypoints of mirrored
            photos are flipped, see `orientation.colmap_keypoints`. Photos that are missing here are not mirrored, whatever EXIF
            says.
    """
    ids = np.array(sorted(model.point3D_ids()), np.uint64)
    sums, counts = np.zeros((len(ids), 3)), np.zeros(len(ids))
    for observed, colors in _observed_colors(model, images, orientations or {}):
        rows = np.searchsorted(ids, observed)
        np.add.at(sums, rows, colors)
        np.add.at(counts, rows, 1)
    means = np.rint(sums / np.maximum(counts, 1)[:, None]).astype(np.uint8)
    for point_id, mean in zip(ids.tolist(), means, strict=True):
        model.point3D(point_id).color = mean


def _observed_colors(
    model: pycolmap.Reconstruction, images: Path, orientations: Mapping[str, int]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each photo: ids of the points it observes, uint64 (n,), and their colours in it, float64 (n, 3), in 0..255."""

    def observe(image_id: int) -> tuple[np.ndarray, np.ndarray] | None:
        image = model.image(image_id)
        points = image.get_observation_points2D()
        if not points:
            return None
        keypoints = np.array([point.xy for point in points]) - 0.5  # COLMAP's top-left pixel centre is at (0.5, 0.5)
        try:
            photo = load_image(images, image.name, use_alpha=False, ranges=ranges)
        except UnreadableImage as error:
            logger.warning("%s gives no colours to the points: %s", image.name, error)
            return None
        pixels = photo.pixels[:, ::-1] if orientations.get(image.name) in MIRRORED else photo.pixels
        size, camera = (pixels.shape[1], pixels.shape[0]), model.camera(image.camera_id)
        if size != (camera.width, camera.height):
            logger.warning(
                "%s gives no colours to the points: it has %d x %d px, its camera %d x %d px",
                *(image.name, *size, camera.width, camera.height),
            )
            return None
        return np.array([point.point3D_id for point in points], np.uint64), interpolate(pixels, keypoints)

    ranges = camera_ranges(images, [model.image(image_id).name for image_id in model.reg_image_ids()])
    largest = max((camera.width * camera.height for camera in model.cameras.values()), default=1)
    num_threads = max(1, min(num_cores(), int(MAX_MEGAPIXELS * 1e6) // largest))
    with ThreadPoolExecutor(num_threads) as pool:
        yield from (found for found in pool.map(observe, sorted(model.reg_image_ids())) if found is not None)


def interpolate(pixels: np.ndarray, points: np.ndarray) -> np.ndarray:
    """float64 (n, 3): bilinear colours of uint8 pixels (h, w, 3) at points (n, 2), (x, y) px, top-left pixel centre at (0, 0).

    Points outside take the colour of the nearest pixel of the edge.
    """
    edge = np.array([pixels.shape[1], pixels.shape[0]]) - 1
    points = np.clip(points, 0, edge)
    low = np.minimum(np.floor(points).astype(int), np.maximum(edge - 1, 0))
    high = np.minimum(low + 1, edge)
    (x, y), (x0, y0), (x1, y1) = (points - low).T, low.T, high.T
    x, y = x[:, None], y[:, None]
    upper = pixels[y0, x0] * (1 - x) + pixels[y0, x1] * x
    lower = pixels[y1, x0] * (1 - x) + pixels[y1, x1] * x
    blended: np.ndarray = upper * (1 - y) + lower * y
    return blended
