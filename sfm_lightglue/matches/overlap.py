"""The test whether two images overlap: do matches that lie near each other in one image do so in the other one too?

Nearest neighbours of the descriptors of two images without overlap lie anywhere. Even if only one in ten of them is right, the
right ones stand out: their neighbourhoods are the same in both images, turned and scaled by the same amount. So
- the mutual nearest neighbours that are a little better than the second nearest are counted if they are coherent. That takes a
  thirtieth of the time of the network. Nearly all pairs with overlap pass;
- pairs that fail may be taken under another light or from far apart. The network matches their strongest keypoints, and these
  matches must be coherent. The keypoints are those of the last pass of guided matching.

Source: neighbourhoods of right and of wrong matches: GMS (CVPR 2017), section 3. Turn and scale of the neighbourhood: the spatial
consistency of Schmid and Mohr (PAMI 1997), section 4.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from sfm_lightglue.engine.kernel_calls import MAX_COLUMNS, Kernels
from sfm_lightglue.engine.rules import OverlapTest
from sfm_lightglue.matches.nearest_neighbor import Nearest, two_nearest

NUM_NEAREST = 10
"""Two matches are neighbours if each is among this many nearest ones of the other's surroundings, in both images."""
NUM_TURNS, NUM_SCALES, SCALE_STEP = 12, 16, 0.5
"""Bins of the turn, 30 degrees, and of the logarithm to base 2 of the scale, from -4 to 4. A count is over two by two bins."""
MAX_RATIO = 0.97
"""Ratio test of the nearest neighbours, in both directions: a loose one, because wrong neighbours are rarely coherent."""
MAX_NEIGHBORS = 512
"""Nearest neighbours of descriptors that are compared, the best ones: 300 are usual without overlap."""


@dataclass(frozen=True)
class Appearance:
    """What the test needs to know about an image."""

    keypoints: np.ndarray
    """float64 (n, 2), in any unit."""
    descriptors: torch.Tensor
    """(n, c), unit length, float32 or bfloat16, on the matcher's device."""


@dataclass(frozen=True)
class Neighbors:
    """What the nearest neighbours of the descriptors say about a pair."""

    mutual: float
    """Share of the keypoints, of the image with fewer ones, that are mutual nearest neighbours, 0..1."""
    num_coherent: int
    """Coherent ones among the neighbours that pass the ratio test."""

    def may_overlap(self, test: OverlapTest) -> bool:
        """Whether enough neighbours are coherent, or too few are mutual for an answer."""
        return self.mutual < test.min_mutual or self.num_coherent >= test.min_coherent_neighbors


def compare(image0: Appearance, image1: Appearance, kernels: Kernels | None) -> Neighbors:
    """Compares all descriptors of two images, each with a keypoint or more."""
    index0, index1, ratio = mutual_neighbors(image0.descriptors, image1.descriptors, kernels)
    is_clear = ratio < MAX_RATIO
    best = np.flatnonzero(is_clear)[np.argsort(ratio[is_clear], kind="stable")[:MAX_NEIGHBORS]]
    mutual = len(index0) / min(len(image0.keypoints), len(image1.keypoints))
    return Neighbors(mutual, count_coherent(image0.keypoints[index0[best]], image1.keypoints[index1[best]]))


@torch.inference_mode()
def mutual_neighbors(
    descriptors0: torch.Tensor, descriptors1: torch.Tensor, kernels: Kernels | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Descriptors that are the nearest neighbours of each other.

    Returns: int64 (k,) their indices among (n0, c) and (n1, c), ascending by the first, and float32 (k,) the ratio of their
        distance to the distance of the second nearest neighbour, the larger one of both directions.
    """
    found = _two_nearest(descriptors0, descriptors1, kernels)
    chosen = found.best0.new_full((len(found.best1),), -1.0).scatter_reduce(0, found.index0, found.best0, "amax")
    is_mutual = (found.best0 == chosen[found.index0]) & (found.best0 >= found.best1[found.index0])
    second = torch.maximum(found.second0, found.second1[found.index0])
    ratio = ((1 - found.best0).clamp(min=0) / (1 - second).clamp(min=1e-9)).sqrt()  # of distances: their squares are 2 - 2 cosine
    index0 = torch.where(is_mutual)[0]
    return index0.cpu().numpy(), found.index0[index0].cpu().numpy(), ratio[index0].cpu().numpy()


def _two_nearest(descriptors0: torch.Tensor, descriptors1: torch.Tensor, kernels: Kernels | None) -> Nearest:
    if kernels is None or descriptors0.shape[1] % 32 or len(descriptors1) >= MAX_COLUMNS:
        return two_nearest(descriptors0.float(), descriptors1.float())
    ones = [torch.ones(len(each)) for each in (descriptors0, descriptors1)]
    return Nearest(*kernels.two_nearest(descriptors0, ones[0], descriptors1, ones[1]))


def count_coherent(points0: np.ndarray, points1: np.ndarray) -> int:
    """The number of pairs of neighbouring matches with the most frequent turn and scale between the images.

    Does not depend on the turn, scale or unit of the images. Matches at random places give about 10 for any number of them.

    Args:
        points0, points1: (k, 2), matched points in the same rows. Up to `NUM_NEAREST` matches give 0.
    """
    if len(points0) <= NUM_NEAREST:
        return 0
    is_near = np.zeros((2, len(points0), len(points0)), bool)
    for side, points in enumerate((points0, points1)):
        np.put_along_axis(is_near[side], _nearest(points), True, axis=1)
    first, second = np.nonzero(is_near.all(axis=0))
    steps0, steps1 = ((points[second] - points[first]) @ (1, 1j) for points in (points0, points1))
    moves = (steps0 != 0) & (steps1 != 0)
    change = np.log(steps1[moves] / steps0[moves])  # logarithm of the scale + i turn
    turn = ((change.imag / (2 * np.pi) + 0.5) * NUM_TURNS).astype(int) % NUM_TURNS
    scale = (change.real / np.log(2) / SCALE_STEP + NUM_SCALES / 2).clip(0, NUM_SCALES - 1).astype(int)
    counts = np.bincount(turn * NUM_SCALES + scale, minlength=NUM_TURNS * NUM_SCALES).reshape(NUM_TURNS, NUM_SCALES)
    counts = counts + np.roll(counts, 1, axis=0)
    return int((counts[:, 1:] + counts[:, :-1]).max())


def _nearest(points: np.ndarray) -> np.ndarray:
    """int64 (k, NUM_NEAREST): the nearest other points of each, in any order."""
    squared = (points[:, None, 0] - points[None, :, 0]) ** 2 + (points[:, None, 1] - points[None, :, 1]) ** 2
    np.fill_diagonal(squared, np.inf)
    return np.argpartition(squared, NUM_NEAREST - 1, axis=1)[:, :NUM_NEAREST]
