"""Training examples of SuperPoint: pairs of views of a photo, with the teacher's keypoints in both.

A batch depends only on the seed and the step, so a training can stop and resume at any step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Generator, Tensor
from torch.utils.data import Dataset

from sfm_lightglue.networks.superpoint import CELL
from sfm_lightglue.training.homographies import HomographyRange, invert, random_homography, warp, warp_photos
from sfm_lightglue.training.photometric import PhotometricRange, change_photos
from sfm_lightglue.training.photos import read_index, read_photo, row_of, stack_photos
from sfm_lightglue.training.teacher import TeacherOptions, read_targets


@dataclass(frozen=True)
class ViewOptions:
    """Options; configs/training holds the values."""

    width: int
    """Width of a view, px, a multiple of 8."""
    height: int
    pairs: int
    """Number of pairs in a batch."""
    max_points: int
    """Maximum number of keypoints of a pair at which descriptors are compared. Both views show these keypoints."""
    border: int
    """Margin at the edge of a view, px, in which keypoints do not count."""
    homographies: HomographyRange
    photometric: PhotometricRange
    natural_pairs: int
    """Number of natural pairs, the first ones of a batch. Their views look like photos, because `natural_homographies` and
    `natural_photometric` are weak. The teacher describes these views themselves instead of the photo. It does not describe
    strongly changed views, because it knows photos and is no better than the student there."""
    natural_homographies: HomographyRange
    natural_photometric: PhotometricRange

    def __post_init__(self) -> None:
        if self.width % CELL or self.height % CELL:
            raise ValueError(f"training.views needs sides that are multiples of {CELL} px, found {self.width} x {self.height}")
        if self.border < 1:  # a point nearer to the edge may have its pixel outside
            raise ValueError(f"training.views.border must be 1 px or more, found {self.border}")
        if not 0 <= self.natural_pairs <= self.pairs:
            raise ValueError(f"training.views.natural_pairs must be 0 to {self.pairs}, found {self.natural_pairs}")

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of a view, px."""
        return self.width, self.height


class PairsOfViews(Dataset[dict[str, Tensor]]):
    """Item `step` holds the data of the batch of that step. `make_views` makes the batch, on the device.

    photos        uint8 (pairs, 1, side, side): photos in the upper left corner
    sizes         int64 (pairs, 2): their (width, height)
    homographies  float64 (2, pairs, 3, 3): from a photo to its two views
    keypoints     float32 (pairs, n, 2): the teacher's, px of the photo
    repeatability float32 (pairs, n): 0 for rows that only fill the array
    descriptors   float16 (pairs, n, d)
    """

    def __init__(self, index: Path, teacher: TeacherOptions, options: ViewOptions, seed: int) -> None:
        self.index, self.teacher, self.options, self.seed = index, teacher, options, seed

    @cached_property
    def files(self) -> list[list[Path]]:
        """Each row holds the files of a photo and its targets. Each process that makes batches reads the index."""
        return read_index(self.index)

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        options = self.options
        rng = np.random.default_rng([self.seed, step])
        places = range(step * options.pairs, (step + 1) * options.pairs)
        files = [self.files[row_of(len(self.files), place, self.seed)] for place in places]
        photos, sizes = stack_photos([read_photo(photo) for photo, _ in files], self.teacher.photo_size)
        num_others = options.pairs - options.natural_pairs
        ranges = [options.natural_homographies] * options.natural_pairs + [options.homographies] * num_others
        homographies = [
            [random_homography(rng, tuple(size), options.size, each) for size, each in zip(sizes.tolist(), ranges, strict=True)]
            for _ in "01"
        ]
        targets = [read_targets(path) for _, path in files]
        return {
            "photos": photos,
            "sizes": sizes,
            "homographies": torch.from_numpy(np.array(homographies)),
            "keypoints": self._stack([each.keypoints for each in targets]),
            "repeatability": self._stack([each.repeatability for each in targets]),
            "descriptors": self._stack([each.descriptors for each in targets]),
        }

    def _stack(self, arrays: Sequence[np.ndarray]) -> Tensor:
        """The arrays stacked to (pairs, n, ...), padded with zeros."""
        stacked = np.zeros((len(arrays), self.teacher.max_keypoints, *arrays[0].shape[1:]), arrays[0].dtype)
        for place, array in zip(stacked, arrays, strict=True):
            place[: len(array)] = array
        return torch.from_numpy(stacked)


def make_views(batch: Mapping[str, Tensor], options: ViewOptions, generator: Generator) -> dict[str, Tensor]:
    """A batch, made from an item of `PairsOfViews`. Its b = 2 * pairs views: the first views of all pairs, then their partners.

    views        float32 (b, 1, h, w) in 0..1
    targets      float32 (b, 65, hc, wc): probabilities of the classes of each cell, as in `cell_targets`
    cell_weights float32 (b, hc, wc): 1 for cells within the photo, else 0
    points       float32 (b, n, 2): px of the view; row i of a view and row i of its partner show one point of the photo
    is_point     bool (pairs, n): False for rows that only fill the array
    teacher      float32 (b, n, d): the teacher's descriptors of the points in the photo
    between      float32 (pairs, 3, 3): homographies from each view to its partner
    is_natural   bool (pairs,): True for natural pairs, see `ViewOptions.natural_pairs`

    All random numbers come from `generator`, which is on the device of the batch.
    """
    homographies = batch["homographies"].flatten(0, 1)
    photos, sizes = (batch[key].repeat(2, *[1] * (batch[key].ndim - 1)) for key in ("photos", "sizes"))
    views, visible = warp_photos(photos.float() / 255, sizes, homographies, options.size)
    keypoints, repeatability = batch["keypoints"].repeat(2, 1, 1), batch["repeatability"].repeat(2, 1)
    points = warp(homographies, keypoints.double()).float()
    inside = _are_inside(points, visible, options.border) & (repeatability > 0)
    cells = visible.unflatten(1, (-1, CELL)).unflatten(3, (-1, CELL))  # b hc 8 wc 8
    both = inside.unflatten(0, (2, -1)).all(dim=0)  # pairs n
    priority = torch.rand(both.shape, generator=generator, device=both.device).masked_fill(~both, -1)
    chosen = priority.topk(min(options.max_points, both.shape[1]), dim=1).indices
    descriptors = batch["descriptors"].gather(1, chosen[..., None].expand(-1, -1, batch["descriptors"].shape[2]))
    is_natural = torch.arange(options.pairs, device=both.device) < options.natural_pairs
    changed, natural = change_photos(views, generator, options.photometric), is_natural.repeat(2)
    if options.natural_pairs:
        changed[natural] = change_photos(views[natural], generator, options.natural_photometric)
    return {
        "views": changed,
        "targets": cell_targets(points, repeatability * inside, options.size),
        "cell_weights": cells.all(dim=4).all(dim=2).float(),
        "points": points.gather(1, chosen.repeat(2, 1)[..., None].expand(-1, -1, 2)),
        "is_point": both.gather(1, chosen),
        "teacher": descriptors.repeat(2, 1, 1).float(),
        "between": (batch["homographies"][1] @ invert(batch["homographies"][0])).float(),
        "is_natural": is_natural,
    }


def cell_targets(points: Tensor, repeatability: Tensor, size: tuple[int, int]) -> Tensor:
    """float32 (b, 65, hc, wc): for each cell of a view, the probabilities of its 64 pixels (row by row), then of "no keypoint".

    The view has `size` (width, height) px. Each of the points (b, n, 2) px shares its repeatability (b, n) among the four
    pixels around it, with the weights of bilinear interpolation. The expected position over these pixels is the point itself,
    so the network learns positions finer than a pixel.
    """
    width, height = size
    rows, columns = height // CELL, width // CELL
    mass = torch.zeros(len(points), CELL**2 * rows * columns, device=points.device)
    first = points.floor()
    for step in ((0, 0), (1, 0), (0, 1), (1, 1)):
        pixels = first + points.new_tensor(step)
        share = (1 - (points - pixels).abs()).prod(dim=2) * repeatability
        x, y = pixels.long().unbind(2)
        inside = (x >= 0) & (x < columns * CELL) & (y >= 0) & (y < rows * CELL)
        place = ((y % CELL * CELL + x % CELL) * rows + y // CELL) * columns + x // CELL
        mass.scatter_add_(1, place.where(inside, 0), share * inside)
    mass = mass.view(-1, CELL**2, rows, columns)
    total = mass.sum(dim=1, keepdim=True)
    return torch.cat([mass / total.clamp(min=1), 1 - total.clamp(max=1)], dim=1)


def _are_inside(points: Tensor, visible: Tensor, border: int) -> Tensor:
    """bool (b, n): True for points (b, n, 2) that are at least `border` px inside the view and on pixels that show the photo."""
    height, width = visible.shape[1:]
    x, y = points.unbind(2)
    inside = (x >= border) & (x < width - border) & (y >= border) & (y < height - border)
    pixels = y.round().long().clamp(0, height - 1) * width + x.round().long().clamp(0, width - 1)
    return inside & visible.flatten(1).gather(1, pixels)
