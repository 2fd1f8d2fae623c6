"""Matching by nearest neighbours of descriptors, the classic matcher."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from sfm_lightglue.networks.weights import WeightsRecord
from sfm_lightglue.products import Features, Matches


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
        similarity = descriptors0 @ descriptors1.T  # n0 n1
        matches0, scores0 = self._nearest(similarity)
        if self.options.mutual:
            back, _ = self._nearest(similarity.T)
            index0 = torch.arange(len(matches0), device=matches0.device)
            matches0 = torch.where((matches0 > -1) & (back[matches0.clamp(min=0)] == index0), matches0, -1)
        return Matches.from_dense(matches0.cpu().numpy(), scores0.clamp(min=0).cpu().numpy())

    def _nearest(self, similarity: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The nearest neighbour of each row, int64 (n,), -1 if none passes the tests, and its similarity float32 (n,)."""
        top, index = similarity.topk(min(2, similarity.shape[1]), dim=1)
        distance = (2 - 2 * top).clamp(min=0).sqrt()
        valid = torch.ones_like(index[:, 0], dtype=torch.bool)
        if self.options.max_ratio is not None and top.shape[1] == 2:
            valid &= distance[:, 0] <= self.options.max_ratio * distance[:, 1]
        if self.options.max_distance is not None:
            valid &= distance[:, 0] <= self.options.max_distance
        return torch.where(valid, index[:, 0], -1), top[:, 0]
