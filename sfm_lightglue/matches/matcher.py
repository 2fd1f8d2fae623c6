"""What a matcher is: the whole contract of a plug-in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from sfm_lightglue.networks.weights import WeightsRecord
from sfm_lightglue.products import Features, Matches


class Matcher(Protocol):
    """Built once, by its `create(options, device)`; called from several threads at a time.

    Its options are kept as `options`: with `weights` they tell results of other settings apart (docs/architecture.md).
    """

    weights: tuple[WeightsRecord, ...]
    """What was loaded; empty for a matcher without weights."""

    def __call__(self, features0: Features, features1: Features) -> Matches:
        """Correspondences of two images; none where an image has no keypoints."""
        ...


class PreparedImage(Protocol):
    """What a batched matcher keeps of an image."""

    num_bytes: int
    """Memory it takes."""


@runtime_checkable
class BatchedMatcher(Protocol):
    """What a matcher may offer beside its contract: the stage then prepares each image once, and hands over many pairs."""

    batch_size: int
    """Pairs that it wants at a time."""

    def prepare(self, features: Features) -> Any:
        """A `PreparedImage`: everything of an image that does not depend on its partner."""
        ...

    def match_many(self, pairs: Sequence[tuple[Any, Any]]) -> list[Matches]:
        """The same matches as if each pair were given alone."""
        ...
