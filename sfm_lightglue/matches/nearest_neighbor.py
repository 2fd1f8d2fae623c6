"""Matching by nearest neighbours of descriptors, the classic matcher."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from sfm_lightglue.engine.kernel_calls import MAX_COLUMNS
from sfm_lightglue.engine.kernels import load_kernels
from sfm_lightglue.networks.weights import WeightsRecord
from sfm_lightglue.products import Features, Matches

BLOCK = 512
"""Descriptors of image 0 that torch compares at a time: 16 MB for 8192 keypoints, where all similarities would take 268 MB."""


@dataclass(frozen=True)
class NearestNeighborOptions:
    """Options. Their default values are in configs/matches/nearest_neighbor.yaml."""

    name: str
    mutual: bool
    """Keep a match only if each keypoint is the nearest neighbour of the other."""
    max_ratio: float | None
    """Largest ratio in Lowe's ratio test (IJCV 2004, section 7.1), of Euclidean distances, 0..1; in both directions if mutual."""
    max_distance: float | None
    """Largest Euclidean distance of unit-length descriptors, 0..2."""

    def __post_init__(self) -> None:
        if self.max_ratio is not None and not 0 < self.max_ratio <= 1:
            raise ValueError(f"matches.max_ratio must be in (0, 1] or null, found {self.max_ratio}")
        if self.max_distance is not None and not 0 < self.max_distance <= 2:
            raise ValueError(f"matches.max_distance must be in (0, 2] or null, found {self.max_distance}")


class NearestNeighborMatcher:
    """Compares all descriptors of two images, with compiled kernels if there are any. Scores are cosine similarities, at least 0.

    Descriptors that 16 bits hold exactly, such as SIFT's, are multiplied in 16 bits: their products and sums are exact too.
    """

    weights: tuple[WeightsRecord, ...] = ()

    def __init__(self, options: NearestNeighborOptions, device: str = "cpu") -> None:
        self.options, self.device = options, device
        self.kernels = load_kernels(may_compile=True) if device == "cpu" else None

    @classmethod
    def create(cls, options: NearestNeighborOptions, device: str) -> NearestNeighborMatcher:
        """The matcher; it has no weights."""
        return cls(options, device)

    @torch.inference_mode()
    def __call__(self, features0: Features, features1: Features) -> Matches:
        """The matches of two images. Raises: ValueError if an image has keypoints without descriptors."""
        if len(features0) == 0 or len(features1) == 0:
            return Matches.from_dense(np.full(len(features0), -1), np.zeros(len(features0)))
        for features in (features0, features1):
            if not features.descriptors.shape[1]:
                raise ValueError(f"the features of {features.name!r} have no descriptors to compare: use matches=imported")
        found = self._two_nearest(self._descriptors(features0), self._descriptors(features1))
        matches0 = torch.where(self._passes(found.best0, found.second0), found.index0, -1)
        if self.options.mutual:
            chosen = found.best0.new_full((len(features1),), -torch.inf)
            best = chosen.scatter_reduce(0, found.index0, found.best0, "amax")
            is_mutual = (found.best0 == best[found.index0]) & (best >= found.best1)[found.index0]
            is_mutual &= self._passes(found.best1, found.second1)[found.index0]
            matches0 = _first_of_each(torch.where(is_mutual, matches0, -1), len(features1))
        return Matches.from_dense(matches0.cpu().numpy(), found.best0.clamp(min=0).cpu().numpy())

    def _descriptors(self, features: Features) -> torch.Tensor:
        return torch.as_tensor(features.descriptors.astype(np.float32), device=self.device).contiguous()

    def _two_nearest(self, descriptors0: torch.Tensor, descriptors1: torch.Tensor) -> Nearest:
        """The nearest neighbours of descriptors (n0, d) and (n1, d) of any length in each other."""
        if self.kernels is None or descriptors0.shape[1] % 32 or len(descriptors1) >= MAX_COLUMNS:
            return two_nearest(*(torch.nn.functional.normalize(each, dim=1) for each in (descriptors0, descriptors1)))
        factors = [1 / each.norm(dim=1).clamp(min=1e-12) for each in (descriptors0, descriptors1)]
        halved = [each.to(torch.bfloat16) for each in (descriptors0, descriptors1)]
        is_exact = all(torch.equal(half.float(), each) for half, each in zip(halved, (descriptors0, descriptors1), strict=True))
        if self.kernels.supports_bfloat16 and is_exact:
            descriptors0, descriptors1 = halved
        return Nearest(*self.kernels.two_nearest(descriptors0, factors[0], descriptors1, factors[1]))

    def _passes(self, best: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """bool (n,): whether nearest neighbours with these cosine similarities, and those of the second, pass the tests."""
        distance, distance_to_second = ((2 - 2 * similarity).clamp(min=0).sqrt() for similarity in (best, second))
        passes = torch.ones_like(best, dtype=torch.bool)
        if self.options.max_ratio is not None:
            passes &= distance <= self.options.max_ratio * distance_to_second
        if self.options.max_distance is not None:
            passes &= distance <= self.options.max_distance
        return passes


@dataclass(frozen=True)
class Nearest:
    """The nearest neighbours of n0 and n1 descriptors in each other, by cosine similarity."""

    best0: torch.Tensor
    """float32 (n0,): similarity of the nearest."""
    index0: torch.Tensor
    """int64 (n0,): the nearest."""
    second0: torch.Tensor
    """float32 (n0,): similarity of the second nearest; -inf if there is none."""
    best1: torch.Tensor
    """float32 (n1,)."""
    second1: torch.Tensor
    """float32 (n1,)."""


def two_nearest(descriptors0: torch.Tensor, descriptors1: torch.Tensor) -> Nearest:
    """The nearest neighbours of descriptors (n0, d) and (n1, d) of length 1 in each other.

    A column's largest is the best of the rows that have their largest there, or of the others. The largest of the others is
    quickly found: where a row has its largest, -inf takes its place.
    """
    columns, parts = descriptors1.T.contiguous(), list[tuple[torch.Tensor, ...]]()
    others = descriptors0.new_full((len(descriptors1),), -torch.inf)
    for start in range(0, len(descriptors0), BLOCK):
        similarity = descriptors0[start : start + BLOCK] @ columns  # block n1
        best, index = similarity.max(dim=1)
        similarity.scatter_(1, index[:, None], -torch.inf)
        parts.append((best, index, similarity.amax(dim=1)))
        others = torch.maximum(others, similarity.amax(dim=0))
    best0, index0, second0 = (torch.cat(each) for each in zip(*parts, strict=True))
    nothing = torch.full_like(others, -torch.inf)
    chosen = nothing.scatter_reduce(0, index0, best0, "amax")
    is_first = _first_of_each(torch.where(best0 == chosen[index0], index0, -1), len(others)) >= 0
    next_chosen = nothing.scatter_reduce(0, index0, torch.where(is_first, -torch.inf, best0), "amax")
    best1, second1 = torch.maximum(chosen, others), torch.maximum(torch.minimum(chosen, others), next_chosen)
    return Nearest(best0, index0, second0, best1, second1)


def _first_of_each(index: torch.Tensor, count: int) -> torch.Tensor:
    """`index`, values -1 to count - 1, with -1 where the same value stands before."""
    order, group = torch.arange(len(index), device=index.device), index.clamp(min=0)
    places = torch.where(index < 0, len(index), order)
    first = order.new_full((count,), len(index)).scatter_reduce(0, group, places, "amin")
    return torch.where(first[group] == order, index, -1)
