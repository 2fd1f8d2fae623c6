"""Pure geometry on arrays: pixel conventions, homography warps, epipolar errors. No files, no configuration."""

from __future__ import annotations

import numpy as np


def keypoints_to_full_image(keypoints: np.ndarray, size: tuple[int, int], full_size: tuple[int, int]) -> np.ndarray:
    """float32 (n, 2) keypoints of the full image, from keypoints (n, 2) of its resized copy.

    Both use (x, y) with the centre of the top-left pixel at (0, 0), sizes are (width, height). The scale of each axis is that
    of the rounded sizes, so no part of a pixel is lost: (k + 0.5) * full / size - 0.5.
    """
    scale = np.asarray(full_size, np.float64) / np.asarray(size, np.float64)
    return ((np.asarray(keypoints, np.float64).reshape(-1, 2) + 0.5) * scale - 0.5).astype(np.float32)


def warp_points(homography: np.ndarray, points: np.ndarray) -> np.ndarray:
    """float64 (n, 2): points (n, 2) mapped by a (3, 3) homography."""
    warped = np.asarray(points, np.float64).reshape(-1, 2) @ homography[:, :2].T + homography[:, 2]
    return warped[:, :2] / warped[:, 2:]


def cross_matrix(vector: np.ndarray) -> np.ndarray:
    """(3, 3) matrix M with M @ x = vector x x."""
    x, y, z = vector
    return np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]], np.float64)


def essential_matrix(rotation: np.ndarray, translation: np.ndarray) -> np.ndarray:
    """(3, 3) essential matrix of cam1_from_cam0 = (rotation, translation): x1.T @ E @ x0 = 0."""
    return cross_matrix(translation) @ rotation


def sampson_error(fundamental: np.ndarray, points0: np.ndarray, points1: np.ndarray) -> np.ndarray:
    """float64 (n,): Sampson distance (not squared) of correspondences (n, 2), (n, 2), in their unit.

    Source: Hartley and Zisserman, Multiple View Geometry, section 11.4.3.
    """
    x0 = np.column_stack([points0, np.ones(len(points0))])
    x1 = np.column_stack([points1, np.ones(len(points1))])
    line1, line0 = x0 @ fundamental.T, x1 @ fundamental
    residual = np.sum(x1 * line1, axis=1)
    norm = np.sqrt(line1[:, 0] ** 2 + line1[:, 1] ** 2 + line0[:, 0] ** 2 + line0[:, 1] ** 2)
    return np.abs(residual) / np.maximum(norm, 1e-12)
