"""What a matcher is: the whole contract of a plug-in."""

from __future__ import annotations

from typing import Protocol

from sfm_lightglue.networks.weights import WeightsRecord
from sfm_lightglue.products import Features, Matches


class Matcher(Protocol):
    """Built once; called from several threads at a time."""

    weights: tuple[WeightsRecord, ...]
    """What was loaded; empty for a matcher without weights."""

    def __call__(self, features0: Features, features1: Features) -> Matches:
        """Correspondences of two images; none where an image has no keypoints."""
        ...
