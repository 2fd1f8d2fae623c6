"""Matching by nearest neighbours of descriptors, the classic matcher."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from sfm_lightglue.networks.weights import WeightsRecord
from sfm_lightglue.products import Features, Matches

BLOCK = 512
"""Descriptors of image 0 that are compared at a time: 16 MB for 8192 keypoints, where all similarities would take 268 MB."""


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
    """Compares all descriptors of two images. Scores are cosine similarities, at least 0."""

    weights: tuple[WeightsRecord, ...] = ()

    def __init__(self, options: NearestNeighborOptions, device: str = "cpu") -> None:
        self.options, self.device = options, device

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
        descriptors0, descriptors1 = (
            torch.nn.functional.normalize(torch.as_tensor(features.descriptors.astype(np.float32), device=self.device), dim=1)
            for features in (features0, features1)
        )
        to1, to0 = _two_nearest(descriptors0, descriptors1)
        matches0 = self._passing(to1)
        if self.options.mutual:
            back = self._passing(to0)
            index0 = torch.arange(len(matches0), device=matches0.device)
            matches0 = torch.where((matches0 > -1) & (back[matches0.clamp(min=0)] == index0), matches0, -1)
        return Matches.from_dense(matches0.cpu().numpy(), to1.best.clamp(min=0).cpu().numpy())

    def _passing(self, nearest: _Nearest) -> torch.Tensor:
        """int64 (n,): the nearest neighbour of each descriptor, -1 if it does not pass the tests."""
        distance, second = ((2 - 2 * similarity).clamp(min=0).sqrt() for similarity in (nearest.best, nearest.second))
        valid = torch.ones_like(nearest.index, dtype=torch.bool)
        if self.options.max_ratio is not None:
            valid &= distance <= self.options.max_ratio * second
        if self.options.max_distance is not None:
            valid &= distance <= self.options.max_distance
        return torch.where(valid, nearest.index, -1)


@dataclass(frozen=True)
class _Nearest:
    """The nearest neighbour of each of n descriptors."""

    best: torch.Tensor
    """float32 (n,): its cosine similarity."""
    index: torch.Tensor
    """int64 (n,)."""
    second: torch.Tensor
    """float32 (n,): similarity of the second nearest; -inf if there is none."""


def _two_nearest(descriptors0: torch.Tensor, descriptors1: torch.Tensor) -> tuple[_Nearest, _Nearest]:
    """The neighbours in image 1 of the descriptors (n0, d) of image 0, and those in image 0 of the descriptors (n1, d)."""
    columns, rows = descriptors1.T.contiguous(), list[_Nearest]()
    to0: _Nearest | None = None
    for start in range(0, len(descriptors0), BLOCK):
        similarity = descriptors0[start : start + BLOCK] @ columns  # block n1
        rows.append(_two_largest(similarity, 1))
        block = _two_largest(similarity, 0)
        to0 = block if to0 is None else _better(to0, block, start)
    assert to0 is not None
    whole = (torch.cat([getattr(part, name) for part in rows]) for name in ("best", "index", "second"))
    return _Nearest(*whole), to0


def _better(former: _Nearest, block: _Nearest, start: int) -> _Nearest:
    """The nearest among those of former blocks and of a block whose first row is `start`."""
    second = torch.maximum(torch.maximum(former.second, block.second), torch.minimum(former.best, block.best))
    index = torch.where(block.best > former.best, block.index + start, former.index)
    return _Nearest(torch.maximum(former.best, block.best), index, second)


def _two_largest(similarity: torch.Tensor, dim: int) -> _Nearest:
    """The two largest values along a dimension. The tensor is changed, and restored."""
    best, index = similarity.max(dim=dim)
    places = index.unsqueeze(dim)
    second = similarity.scatter_(dim, places, -torch.inf).amax(dim=dim)
    similarity.scatter_(dim, places, best.unsqueeze(dim))
    return _Nearest(best, index, second)
