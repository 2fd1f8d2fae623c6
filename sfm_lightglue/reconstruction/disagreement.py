"""How much parts of the photos disagree about their cameras: a measure of the errors that photos have in common.

A covariance takes the errors of points as independent. Errors of the camera model, a lens that focuses, a rolling shutter and
surfaces that all photos see alike are not, and make an estimate far more certain than it is.
"""

from __future__ import annotations

import numpy as np

from sfm_lightglue.reconstruction.normal_equations import NormalEquations

NUM_SPLITS = 3
"""Ways of dividing the photos of a camera in two, see `_part_of`."""
MIN_PHOTOS = 4
"""A camera with fewer photos is not divided."""


def disagreement(equations: NormalEquations) -> float:
    """How much larger the variance of the cameras' parameters is than their covariance says; at least 1.

    The photos of each camera are divided into two parts with cameras of their own. The square of their difference, by its
    covariance, is 1 for each parameter if errors are independent. The mean over NUM_SPLITS is returned; 1 if no camera has enough
    photos.
    """
    camera_ids = np.array(equations.camera_ids)
    ratios = [ratio for split in range(NUM_SPLITS) if (ratio := _ratio(equations, camera_ids, split)) is not None]
    return max(1.0, float(np.mean(ratios))) if ratios else 1.0


def _ratio(equations: NormalEquations, camera_ids: np.ndarray, split: int) -> float | None:
    """Square of the difference between two parts of the photos / its covariance, for each parameter; None if there is none."""
    groups, starts, num_groups, start = np.zeros(len(camera_ids), int), list[tuple[int, int]](), 0, 0
    for camera_id in np.unique(camera_ids):
        rows, size = np.flatnonzero(camera_ids == camera_id), equations.num_free[int(camera_id)]
        is_divided = len(rows) >= MIN_PHOTOS and size > 0
        groups[rows] = num_groups + is_divided * _part_of(np.arange(len(rows)), split)
        if is_divided:
            starts.append((start, size))
        num_groups, start = num_groups + 1 + is_divided, start + size * (1 + is_divided)
    found = equations.cameras(groups.tolist()) if starts else None
    if found is None:
        return None
    total = 0.0
    for start, size in starts:
        first, second = slice(start, start + size), slice(start + size, start + 2 * size)
        difference, cross = found.step[first] - found.step[second], found.covariance[first, second]
        covariance = found.covariance[first, first] + found.covariance[second, second] - cross - cross.T
        try:
            total += difference @ np.linalg.solve(covariance, difference)
        except np.linalg.LinAlgError:  # a few points: one part of the photos decides nothing of its own
            return None
    return float(total / sum(size for _, size in starts))


def _part_of(places: np.ndarray, split: int) -> np.ndarray:
    """0 or 1 for each photo, by its place in the order of names: every second photo, every second pair of photos, or halves."""
    parts: np.ndarray = (places % 2, places // 2 % 2, 2 * places // len(places))[split]
    return parts
