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


@dataclass(frozen=True)
class HomographyRange:
    """Ranges of random homographies; configs/training holds the values."""

    rotation_deg: float
    """Standard deviation of four in five rotations in the image plane."""
    large_rotation_deg: float
    """Maximum of the other rotations, one in five, which are uniform."""
    min_scale: float
    """Smallest magnification, relative to the one at which the photo just fills the view."""
    max_scale: float
    """Largest magnification."""
    perspective: float
    """Maximum movement of each corner of the photo, as a share of the view's sides."""
    shift: float
    """Maximum distance between the centre of the photo and the point that the view's centre shows, as a share of the photo's
    sides."""


def random_homography(
    rng: np.random.Generator, size: tuple[int, int], view_size: tuple[int, int], ranges: HomographyRange
) -> np.ndarray:
    """A random homography float64 (3, 3) from a photo of `size` to a view of `view_size`, both (width, height).

    It combines a rotation, magnification, shift and perspective, drawn by `rng` from `ranges`.
    """
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


def warp_photos(photos: Tensor, sizes: Tensor, homographies: Tensor, view_size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Views (b, c, h, w) of photos through homographies (b, 3, 3), and bool (b, h, w): the pixels that show the photo.

    A photo fills the first (width, height) = `sizes` (b, 2) px of its (c, h', w'). A view has `view_size` (width, height).
    Beyond its edges a view shows the photo mirrored, because black would shift the statistics of batch normalisation. Each
    pixel is the mean of four samples. The samples spread out as the photo gets smaller in the view, up to one sample for each
    quarter of the pixel at half size or less. A single sample would skip pixels of the photo.
    """
    width, height = view_size
    sizes = sizes.to(photos)
    inverse = invert(homographies).to(photos)
    pixels = pixel_grid(view_size, inverse)
    centre = photos.new_tensor([[width - 1, height - 1]]) / 2
    middle = warp(inverse, (centre + photos.new_tensor([[0, 0], [1, 0], [0, 1]])).expand(len(photos), -1, -1))
    shrink = torch.linalg.det(middle[:, 1:] - middle[:, :1]).abs().sqrt()  # px of the photo per px of the view
    spread = (shrink - 1).clamp(0, 1)[:, None, None] / 4
    view = torch.zeros((), device=photos.device)
    for side in ((-1, -1), (1, -1), (-1, 1), (1, 1)):
        positions = warp(inverse, pixels + spread * photos.new_tensor(side))
        grid = (2 * _mirrored(positions, sizes[:, None]) + 1) / photos.new_tensor([photos.shape[3], photos.shape[2]]) - 1
        grid = grid.unflatten(1, (height, width))
        view = view + F.grid_sample(photos, grid, mode="bilinear", padding_mode="border", align_corners=False) / 4
    return view, shown_pixels(homographies, sizes, view_size)


def shown_pixels(homographies: Tensor, sizes: Tensor, view_size: tuple[int, int]) -> Tensor:
    """bool (b, h, w): True for pixels of a view that show the photo of `sizes` (b, 2), through homographies (b, 3, 3)."""
    inverse = invert(homographies).float()
    pixels = pixel_grid(view_size, inverse)
    centre = inverse.new_tensor([[view_size[0] - 1, view_size[1] - 1]]) / 2
    positions = warp(inverse, pixels.expand(len(inverse), -1, -1))
    inside = ((positions >= -0.5) & (positions <= sizes[:, None] - 0.5)).all(dim=2)
    # Behind the horizon of a strong homography depths have the other sign; the photo would appear folded over.
    inside &= _depths(inverse, pixels) * _depths(inverse, centre[None]) > 0
    return inside.unflatten(1, view_size[::-1])


def pixel_grid(size: tuple[int, int], like: Tensor) -> Tensor:
    """(1, h*w, 2): (x, y) of all pixels, row by row, with dtype and device of `like`."""
    columns, rows = (torch.arange(length, device=like.device, dtype=like.dtype) for length in size)
    return torch.cartesian_prod(rows, columns).flip(1)[None]


def invert(homographies: Tensor) -> Tensor:
    """The inverse homographies, float64 (..., 3, 3)."""
    return torch.linalg.inv_ex(homographies.double())[0]  # inv would wait for the GPU


def warp(homographies: Tensor, points: Tensor) -> Tensor:
    """(b, n, 2): points (b, n, 2) mapped by homographies (b, 3, 3)."""
    mapped = points @ homographies[:, :, :2].mT + homographies[:, None, :, 2]
    return mapped[..., :2] / mapped[..., 2:]


def _depths(homographies: Tensor, points: Tensor) -> Tensor:
    """(b, n): the third homogeneous coordinates of mapped points (1, n, 2), by which they are divided."""
    return (points * homographies[:, 2:, :2]).sum(dim=2) + homographies[:, 2, 2:]


def _mirrored(positions: Tensor, sizes: Tensor) -> Tensor:
    """Positions (..., 2), mirrored into images of `sizes`. The centre of the first pixel is at 0."""
    turned = (positions + 0.5).remainder(2 * sizes)
    return torch.minimum(turned, 2 * sizes - turned).clamp(min=0.5).minimum(sizes - 0.5) - 0.5


def _through_corners(corners: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The homography that maps four points (4, 2) to four others."""
    rows = []
    for (x, y), (u, v) in zip(corners, targets, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
    solution = np.linalg.solve(np.array(rows), targets.ravel())
    return np.append(solution, 1.0).reshape(3, 3)
