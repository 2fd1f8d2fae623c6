"""Random homographies, and photos seen through them.

Pixels are (x, y), centre of the top-left pixel at (0, 0). A homography maps px of the photo to px of the view.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sfm_lightglue.geometry import warp_points

ANTIALIAS_FROM = 1.2
"""A photo that the view shows this many times smaller is made smaller first: bilinear sampling alone would skip pixels."""


@dataclass(frozen=True)
class HomographyRange:
    """What random homographies are drawn from; the values stand in configs/training."""

    rotation_deg: float
    """Standard deviation of most rotations in the image plane."""
    large_rotation_deg: float
    """The others, one in five, are uniform up to this."""
    min_scale: float
    """Smallest magnification, relative to the one at which the photo just fills the view."""
    max_scale: float
    perspective: float
    """How far each corner of the photo moves at most, as a share of the view's sides."""
    shift: float
    """How far the point of the photo at the view's centre is from the photo's centre at most, as a share of the photo's sides."""


def random_homography(
    rng: np.random.Generator, size: tuple[int, int], view_size: tuple[int, int], ranges: HomographyRange
) -> np.ndarray:
    """float64 (3, 3): a rotation, magnification, shift and perspective from a photo of `size` to a view, both (width, height)."""
    photo, view = np.array(size, np.float64), np.array(view_size, np.float64)
    if rng.random() < 0.8:
        angle = np.deg2rad(rng.normal(0, ranges.rotation_deg))
    else:
        angle = np.deg2rad(rng.uniform(-ranges.large_rotation_deg, ranges.large_rotation_deg))
    scale = math.exp(rng.uniform(math.log(ranges.min_scale), math.log(ranges.max_scale))) * float(np.max(view / photo))
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    centre = photo * (0.5 + rng.uniform(-ranges.shift, ranges.shift, 2))
    corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * photo - 0.5
    targets = (corners + 0.5 - centre) @ turn.T + view / 2 - 0.5
    targets += rng.uniform(-ranges.perspective, ranges.perspective, (4, 2)) * view
    return _through_corners(corners, targets)


def warp_photo(photo: Tensor, homography: np.ndarray, view_size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The view (c, h, w) of a photo (c, h', w'), and where it shows the photo, bool (h, w).

    Elsewhere it shows the photo mirrored at its edges: black would shift the statistics of batch normalisation.
    """
    height, width = photo.shape[1:]
    inverse = np.linalg.inv(homography)
    centre = (np.array(view_size) - 1) / 2
    around = warp_points(inverse, centre + np.array([[0, 0], [1, 0], [0, 1]]))
    shrink = math.sqrt(abs(np.linalg.det(around[1:] - around[0])))  # px of the photo that become one of the view
    small = (max(2, round(height / shrink)), max(2, round(width / shrink))) if shrink > ANTIALIAS_FROM else (height, width)
    if small != (height, width):
        photo = F.interpolate(photo[None], small, mode="bilinear", antialias=True)[0]
    rows, columns = np.mgrid[: view_size[1], : view_size[0]]
    positions = warp_points(inverse, np.stack([columns.ravel(), rows.ravel()], axis=1))
    grid = torch.from_numpy(((2 * positions + 1) / [width, height] - 1).astype(np.float32)).view(1, *rows.shape, 2)
    inside = (grid.abs() <= 1).all(dim=-1)[0]
    # Nothing folds over: behind the horizon of a strong homography the signs of the depths differ.
    depth = torch.from_numpy(columns * inverse[2, 0] + rows * inverse[2, 1] + inverse[2, 2])
    inside &= depth * float(inverse[2, :2] @ centre + inverse[2, 2]) > 0
    view = F.grid_sample(photo[None], grid, mode="bilinear", padding_mode="reflection", align_corners=False)[0]
    return view, inside


def _through_corners(corners: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The homography that maps four points (4, 2) to four others."""
    rows = []
    for (x, y), (u, v) in zip(corners, targets, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
    solution = np.linalg.solve(np.array(rows), targets.ravel())
    return np.append(solution, 1.0).reshape(3, 3)
