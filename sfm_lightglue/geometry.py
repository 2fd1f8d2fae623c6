"""Pure geometry on arrays: pixel conventions, homography warps, epipolar errors. No files, no configuration.

Pixels are (x, y), with the centre of the top-left pixel at (0, 0).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, Float64, Num


def keypoints_to_full_image(
    keypoints: Num[np.ndarray, "n 2"], size: tuple[int, int], full_size: tuple[int, int]
) -> Float32[np.ndarray, "n 2"]:
    """Keypoints in px of the full image, from keypoints in px of its resized copy: (k + 0.5) * full / size - 0.5.

    Args:
        keypoints: in the resized copy.
        size: (width, height) px of the resized copy. The scale of each axis comes from these rounded sizes, so it is exact.
        full_size: (width, height) px of the full image.
    """
    scale = np.asarray(full_size, np.float64) / np.asarray(size, np.float64)
    return ((np.asarray(keypoints, np.float64).reshape(-1, 2) + 0.5) * scale - 0.5).astype(np.float32)


def warp_points(homography: Num[np.ndarray, "3 3"], points: Num[np.ndarray, "n 2"]) -> Float64[np.ndarray, "n 2"]:
    """The points mapped by a homography."""
    warped = np.asarray(points, np.float64).reshape(-1, 2) @ homography[:, :2].T + homography[:, 2]
    return warped[:, :2] / warped[:, 2:]


def cross_matrix(vector: Num[np.ndarray, " 3"]) -> Float64[np.ndarray, "3 3"]:
    """The matrix M for which M @ x is the cross product of the vector and x."""
    x, y, z = vector
    return np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]], np.float64)


def essential_matrix(rotation: Num[np.ndarray, "3 3"], translation: Num[np.ndarray, " 3"]) -> Float64[np.ndarray, "3 3"]:
    """The essential matrix E of cam1_from_cam0 = (rotation, translation): x1.T @ E @ x0 = 0."""
    return cross_matrix(translation) @ rotation


def sampson_error(
    fundamental: Num[np.ndarray, "3 3"], points0: Num[np.ndarray, "n 2"], points1: Num[np.ndarray, "n 2"]
) -> Float64[np.ndarray, " n"]:
    """The Sampson distance (not squared) of correspondences, in the unit of the points.

    Args:
        fundamental: F with x1.T @ F @ x0 = 0; for normalised points, the essential matrix.
        points0, points1: corresponding points.

    Source: Hartley and Zisserman, Multiple View Geometry, section 11.4.3.
    """
    x0 = np.column_stack([points0, np.ones(len(points0))])
    x1 = np.column_stack([points1, np.ones(len(points1))])
    line1, line0 = x0 @ fundamental.T, x1 @ fundamental
    residual = np.sum(x1 * line1, axis=1)
    norm = np.sqrt(line1[:, 0] ** 2 + line1[:, 1] ** 2 + line0[:, 0] ** 2 + line0[:, 1] ** 2)
    return np.abs(residual) / np.maximum(norm, 1e-12)
