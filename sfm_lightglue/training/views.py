"""Training examples of SuperPoint: pairs of views of a photo, with the teacher's keypoints in both.

A batch is a function of the seed and the step alone: training can stop and go on anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from sfm_lightglue.geometry import warp_points
from sfm_lightglue.images import load_image, resize_longest, to_grey
from sfm_lightglue.networks.superpoint import CELL
from sfm_lightglue.training.homographies import HomographyRange, random_homography, warp_photo
from sfm_lightglue.training.photometric import PhotometricRange, change_photo
from sfm_lightglue.training.teacher import read_lesson


@dataclass(frozen=True)
class ViewOptions:
    """Options; the values stand in configs/training."""

    width: int
    """Of a view, px, a multiple of 8."""
    height: int
    pairs: int
    """In a batch."""
    max_points: int
    """Keypoints, of those in both views of a pair, at which descriptors are compared."""
    border: int
    """px at the edge of a view, where no keypoint is looked for."""
    homographies: HomographyRange
    photometric: PhotometricRange

    def __post_init__(self) -> None:
        if self.width % CELL or self.height % CELL:
            raise ValueError(f"training.views must be multiples of {CELL} px wide and high, found {self.width} x {self.height}")
        if self.border < 1:  # the pixel of a point nearer to the edge may lie outside
            raise ValueError(f"training.views.border must be 1 px or more, found {self.border}")

    @property
    def size(self) -> tuple[int, int]:
        return self.width, self.height


class PairsOfViews(Dataset[dict[str, Tensor]]):
    """Item `step` is the batch of that step, as a dict; b = 2 * pairs views, first those of all pairs, then their partners.

    views        float32 (b, 1, h, w) in 0..1
    targets      float32 (b, 65, hc, wc): probabilities of the classes of each cell, see `cell_targets`
    cell_weights float32 (b, hc, wc): 1 for cells within the photo, else 0
    points       float32 (b, n, 2): px of the view; row i of a view and row i of its partner are one point of the photo
    is_point     bool (pairs, n): False for rows that fill up
    teacher      float32 (pairs, n, d): the teacher's descriptors of the points
    """

    def __init__(
        self, images: Path, names: Sequence[str], lessons: Mapping[str, Path], photo_size: int, options: ViewOptions, seed: int
    ) -> None:
        self.images, self.names, self.lessons = images, sorted(names), lessons
        self.photo_size, self.options, self.seed = photo_size, options, seed

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([self.seed, step])
        pairs = [self._pair(self._name(step * self.options.pairs + i), rng) for i in range(self.options.pairs)]
        joined = {key: torch.stack([pair[key] for pair in pairs]) for key in pairs[0]}
        for key in ("views", "targets", "cell_weights", "points"):
            joined[key] = joined[key].transpose(0, 1).flatten(0, 1)  # pairs 2 ... -> 2*pairs ...
        return joined

    def _name(self, index: int) -> str:
        """Photos come in a new random order in each epoch."""
        epoch, position = divmod(index, len(self.names))
        return self.names[np.random.default_rng([self.seed, 1, epoch]).permutation(len(self.names))[position]]

    def _pair(self, name: str, rng: np.random.Generator) -> dict[str, Tensor]:
        options = self.options
        width, height = options.size
        grey = to_grey(resize_longest(load_image(self.images, name).pixels, self.photo_size))
        lesson = read_lesson(self.lessons[name])
        photo, size = torch.from_numpy(grey)[None], (grey.shape[1], grey.shape[0])
        views, targets, weights, points, inside = [], [], [], [], []
        for _ in range(2):
            homography = random_homography(rng, size, options.size, options.homographies)
            view, visible = warp_photo(photo, homography, options.size)
            views.append(change_photo(view[0], rng, options.photometric)[None])
            points.append(warp_points(homography, lesson.keypoints))
            inside.append(_is_inside(points[-1], visible.numpy(), options.border))
            targets.append(cell_targets(points[-1][inside[-1]], lesson.repeatability[inside[-1]], options.size))
            weights.append(visible.view(height // CELL, CELL, width // CELL, CELL).permute(0, 2, 1, 3).flatten(2).all(dim=2))
        both = np.flatnonzero(inside[0] & inside[1])
        if len(both) > options.max_points:
            both = np.sort(rng.choice(both, options.max_points, replace=False))
        padded = np.zeros((2, options.max_points, 2), np.float32)
        teacher = np.zeros((options.max_points, lesson.descriptors.shape[1]), np.float32)
        padded[:, : len(both)] = np.stack(points)[:, both]
        teacher[: len(both)] = lesson.descriptors[both]
        return {
            "views": torch.stack(views),
            "targets": torch.from_numpy(np.stack(targets)),
            "cell_weights": torch.stack(weights).float(),
            "points": torch.from_numpy(padded),
            "is_point": torch.arange(options.max_points) < len(both),
            "teacher": torch.from_numpy(teacher),
        }


def cell_targets(points: np.ndarray, repeatability: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """float32 (65, hc, wc): for each cell of a view, the probabilities of its 64 pixels (row by row), then of "no keypoint".

    A point (x, y) gives its repeatability to the four pixels around it, by the shares of bilinear interpolation: the expected
    position over them is the point itself, so the network learns positions finer than a pixel.
    """
    width, height = size
    columns = width // CELL
    mass = np.zeros((height // CELL * columns, CELL**2 + 1), np.float32)
    first = np.floor(points).astype(np.int64)
    for step in ((0, 0), (1, 0), (0, 1), (1, 1)):
        x, y = (first + step).T
        share = np.prod(1 - np.abs(points - (first + step)), axis=1) * repeatability
        inside = (x >= 0) & (x < columns * CELL) & (y >= 0) & (y < height // CELL * CELL)
        x, y, share = x[inside], y[inside], share[inside]
        np.add.at(mass, (y // CELL * columns + x // CELL, y % CELL * CELL + x % CELL), share.astype(np.float32))
    total = mass.sum(axis=1, keepdims=True)
    mass /= np.maximum(total, 1)
    mass[:, -1] = 1 - np.minimum(total[:, 0], 1)
    return np.ascontiguousarray(mass.T).reshape(CELL**2 + 1, -1, columns)


def _is_inside(points: np.ndarray, visible: np.ndarray, border: int) -> np.ndarray:
    """bool (n,): whether points (n, 2) lie in the view, `border` px from its edge, where it shows the photo."""
    height, width = visible.shape
    x, y = points.T
    inside = (x >= border) & (x < width - border) & (y >= border) & (y < height - border)
    inside[inside] = visible[np.rint(y[inside]).astype(int), np.rint(x[inside]).astype(int)]
    return inside
