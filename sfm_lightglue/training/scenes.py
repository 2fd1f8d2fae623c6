"""Training examples of LightGlue: two views of photos on planes in space, and the true position of each point in the other view.

Homographies of one photo (the first training of arXiv 2306.13643) have neither parallax nor occlusion. Here a scene has a
background and some pieces of other photos in front of it. Each piece lies on its own plane, and the camera moves and turns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Generator, Tensor
from torch.utils.data import Dataset

from sfm_lightglue.geometry import warp_points
from sfm_lightglue.networks.superpoint import CELL
from sfm_lightglue.training.homographies import HomographyRange, invert, pixel_grid, random_homography, warp, warp_photos
from sfm_lightglue.training.matching import TruePositions
from sfm_lightglue.training.photometric import PhotometricRange, change_photos
from sfm_lightglue.training.photos import read_index, read_photo, row_of, stack_photos

NUM_WAVES = 4
"""Number of waves in the outline of a piece. The outline is a radius as a function of the direction."""


@dataclass(frozen=True)
class SceneOptions:
    """Options; configs/training holds the values."""

    width: int
    """Width of a view, px, a multiple of 8."""
    height: int
    """Height of a view, px, a multiple of 8."""
    pairs: int
    """Number of pairs in a batch."""
    unrelated: int
    """Number of pairs in a batch whose two views show different scenes: 0 or at least 2."""
    pieces: int
    """Maximum number of pieces in front of the background."""
    turn_deg: float
    """Standard deviation of the camera's yaw and of its pitch."""
    movement: float
    """Maximum movement of the camera, relative to the distance of the background."""
    tilt_deg: float
    """Maximum angle between a plane and the image plane."""
    homographies: HomographyRange
    """Ranges for the position of photos in the first view, and for the rotation and magnification of the second view in its
    plane."""
    photometric: PhotometricRange

    def __post_init__(self) -> None:
        if self.width % CELL or self.height % CELL:
            raise ValueError(f"training.scenes needs sides that are multiples of {CELL} px, found {self.width} x {self.height}")
        if not (self.unrelated == 0 or 2 <= self.unrelated <= self.pairs):
            raise ValueError(f"training.scenes.unrelated must be 0 or 2 to {self.pairs}, found {self.unrelated}")

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of a view, px."""
        return self.width, self.height


class Scenes(Dataset[dict[str, Tensor]]):
    """Item `step` holds the data of the batch of that step. There are l = 1 + pieces layers, the background first.

    photos        uint8 (l, pairs, 1, side, side): photos in the upper left corner
    sizes         int64 (l, pairs, 2): their (width, height)
    homographies  float64 (l, 2, pairs, 3, 3): from a photo to the two views
    outlines      float32 (l, pairs, 3 + 2 * NUM_WAVES): outlines of pieces, px of the photo: the centre (2 values), the radius (0
                  for a missing piece), the relative heights of the waves of the radius, and their phases
    """

    def __init__(self, index: Path, photo_size: int, options: SceneOptions, seed: int) -> None:
        self.index, self.photo_size, self.options, self.seed = index, photo_size, options, seed

    @cached_property
    def files(self) -> list[list[Path]]:
        """Each row holds the file of one photo. Each process that makes batches reads the index."""
        return read_index(self.index)

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([self.seed, step])
        options, num_layers = self.options, 1 + self.options.pieces
        places = range(step * options.pairs * num_layers, (step + 1) * options.pairs * num_layers)
        chosen = [self.files[row_of(len(self.files), place, self.seed)][0] for place in places]
        photos, sizes = stack_photos([read_photo(photo) for photo in chosen], self.photo_size)
        sizes = sizes.unflatten(0, (num_layers, -1))
        planes = [random_planes(rng, sizes[:, i].numpy(), options) for i in range(options.pairs)]
        return {
            "photos": photos.unflatten(0, (num_layers, -1)),
            "sizes": sizes,
            "homographies": torch.from_numpy(np.stack([homographies for homographies, _ in planes], axis=2)),
            "outlines": torch.from_numpy(np.stack([outlines for _, outlines in planes], axis=1)).float(),
        }


def random_planes(rng: np.random.Generator, sizes: np.ndarray, options: SceneOptions) -> tuple[np.ndarray, np.ndarray]:
    """Homographies float64 (l, 2, 3, 3) and outlines (l, 3 + 2 * NUM_WAVES) of a random scene of photos of `sizes` (l, 2).

    Sizes are (width, height) px, the background first.

    The first camera looks along z, and the background has depth 1 on its axis. For the plane n^T X = d,
    x1 ~ K (R + t n^T / d) K^-1 x0.
    """
    width, height = options.size
    focal = width * rng.uniform(0.8, 1.6)
    intrinsics = np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]])
    rotation, translation = _random_motion(rng, options)
    in_plane = random_homography(rng, options.size, options.size, replace(options.homographies, perspective=0.0))
    depths = np.append(1.0, np.sort(rng.uniform(0.4, 0.9, len(sizes) - 1))[::-1])  # nearer pieces hide farther ones
    homographies, outlines = [], []
    for i, (size, depth) in enumerate(zip(sizes, depths, strict=True)):
        first = random_homography(rng, (int(size[0]), int(size[1])), options.size, options.homographies)
        tilt, azimuth = np.deg2rad(rng.uniform(0, options.tilt_deg)), rng.uniform(0, 2 * np.pi)
        normal = np.array([np.sin(tilt) * np.cos(azimuth), np.sin(tilt) * np.sin(azimuth), np.cos(tilt)])
        moved = rotation + np.outer(translation, normal) / (depth * normal[2])
        second = in_plane @ intrinsics @ moved @ np.linalg.inv(intrinsics) @ first
        homographies.append((first, second))
        outlines.append(_random_outline(rng, first, options) if i else np.zeros(3 + 2 * NUM_WAVES))
    for outline in outlines[1 + rng.integers(0, len(sizes)) :]:
        outline[2] = 0  # the scene has fewer pieces
    return np.array(homographies), np.array(outlines)


def _random_motion(rng: np.random.Generator, options: SceneOptions) -> tuple[np.ndarray, np.ndarray]:
    """Rotation (3, 3) and translation (3,) from the first camera to the second. One camera in four only turns."""
    direction = rng.standard_normal(3)
    translation = direction / np.linalg.norm(direction) * rng.uniform(0, options.movement) * (rng.random() > 0.25)
    # The camera turns back, more or less, towards what it saw before.
    back = -np.arctan2(translation[:2], 1 + translation[2]) * rng.uniform(0, 1.2)
    yaw, pitch = back + np.deg2rad(rng.normal(0, options.turn_deg, 2))
    around_y = np.array([[math.cos(yaw), 0, math.sin(yaw)], [0, 1, 0], [-math.sin(yaw), 0, math.cos(yaw)]])
    around_x = np.array([[1, 0, 0], [0, math.cos(pitch), math.sin(pitch)], [0, -math.sin(pitch), math.cos(pitch)]])
    return around_x @ around_y, translation


def _random_outline(rng: np.random.Generator, homography: np.ndarray, options: SceneOptions) -> np.ndarray:
    """(3 + 2 * NUM_WAVES,): a random outline, as in `Scenes`, of a piece somewhere in the first view."""
    centre = rng.uniform(0, options.size)
    radius = rng.uniform(0.1, 0.35) * options.height
    x, along = warp_points(np.linalg.inv(homography), centre + np.array([[0, 0], [1, 0]]))
    waves = np.stack([rng.uniform(0, 0.2, NUM_WAVES), rng.uniform(0, 2 * np.pi, NUM_WAVES)])
    return np.concatenate([x, [radius * np.linalg.norm(along - x)], waves.ravel()])


@dataclass(frozen=True)
class SceneViews:
    """b = 2 * pairs views: the first views of all pairs, then their partners."""

    views: Tensor
    """float32 (b, 1, h, w) in 0..1."""
    layers: Tensor
    """int64 (b, h, w): the layer that each pixel shows, or -1 for pixels outside all photos."""
    homographies: Tensor
    """float64 (b, l, 3, 3): homography of each layer, from a view to its partner."""
    related: Tensor
    """bool (b,): True if both views show the same scene."""

    def find(self, keypoints: Tensor, scales: Tensor) -> tuple[TruePositions, TruePositions]:
        """True positions in the partner views, for the first and the second views; keypoints (b, n, 2) px, scales (b, n) px."""
        own = self._layers_at(keypoints, self.layers)
        chosen = self.homographies.gather(1, own.clamp(min=0)[:, :, None, None].expand(-1, -1, 3, 3))  # b n 3 3
        ones = torch.cat([keypoints.double(), torch.ones_like(keypoints[..., :1])], dim=2)
        mapped = (chosen @ ones[..., None])[..., 0]
        positions = (mapped[..., :2] / mapped[..., 2:]).float()
        # The Jacobian of a homography has the homography's determinant, divided by the cube of the third coordinate.
        magnified = scales * (torch.linalg.det(chosen) / mapped[..., 2] ** 3).abs().sqrt().float()
        partners = torch.cat(self.layers.chunk(2)[::-1])
        visible = (own >= 0) & (mapped[..., 2] > 0) & (self._layers_at(positions, partners) == own) & self.related[:, None]
        sides = zip(*(each.chunk(2) for each in (keypoints, positions, visible, own >= 0, scales, magnified)), strict=True)
        first, second = (TruePositions(*side) for side in sides)
        return first, second

    def _layers_at(self, points: Tensor, layers: Tensor) -> Tensor:
        """int64 (b, n): the values of `layers` (b, h, w) at points (b, n, 2); -1 outside the view."""
        height, width = layers.shape[1:]
        x, y = points.nan_to_num(-1, -1, -1).round().clamp(-1, max(width, height)).long().unbind(2)
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        found = layers.flatten(1).gather(1, y.clamp(0, height - 1) * width + x.clamp(0, width - 1))
        return found.where(inside, -1)


def make_scenes(item: Mapping[str, Tensor], options: SceneOptions, generator: Generator) -> SceneViews:
    """The views of a batch, made from an item of `Scenes`.

    The last `unrelated` pairs exchange their second views. `generator` is on the item's device.
    """
    homographies = item["homographies"].flatten(1, 2)  # l b 3 3
    views = torch.zeros((), device=homographies.device)
    layers = torch.full((1, 1, 1), -1, device=homographies.device)
    for i, of_layer in enumerate(homographies):
        photos, sizes = item["photos"][i].repeat(2, 1, 1, 1).float() / 255, item["sizes"][i].repeat(2, 1)
        view, inside = warp_photos(photos, sizes, of_layer, options.size)
        if i:
            share = _pieces(of_layer, item["outlines"][i].repeat(2, 1), options.size) * inside
            views, layers = views + share[:, None] * (view - views), torch.where(share > 0.5, i, layers)
        else:
            views, layers = view, torch.where(inside, 0, layers)
    first, second = homographies.chunk(2, dim=1)
    between = torch.stack([second @ invert(first), first @ invert(second)]).transpose(1, 2).flatten(0, 1)  # b l 3 3
    related = torch.arange(len(views), device=views.device) % options.pairs < options.pairs - options.unrelated
    order = torch.arange(len(views), device=views.device)
    order[len(order) - options.unrelated :] = order[len(order) - options.unrelated :].roll(1)
    return SceneViews(change_photos(views[order], generator, options.photometric), layers[order], between, related)


def _pieces(homographies: Tensor, outlines: Tensor, size: tuple[int, int]) -> Tensor:
    """(b, h, w): the share of each pixel of a view that its piece covers."""
    pixels = pixel_grid(size, outlines)
    inverse = invert(homographies).float()
    offsets = warp(inverse, pixels.expand(len(outlines), -1, -1)) - outlines[:, None, :2]
    direction = torch.atan2(offsets[..., 1], offsets[..., 0])
    heights, phases = outlines[:, 3 : 3 + NUM_WAVES], outlines[:, 3 + NUM_WAVES :]
    numbers = torch.arange(1, NUM_WAVES + 1, device=outlines.device)
    waves = (heights[:, None] * (numbers * direction[..., None] + phases[:, None]).cos()).sum(dim=2)
    radius = outlines[:, 2:3]
    within = radius * (1 + waves) - offsets.norm(dim=2)
    return ((within + 0.5).clamp(0, 1) * (radius > 0)).unflatten(1, size[::-1])
