"""The contract of a matcher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from sfm_lightglue.networks.weights import WeightsRecord
from sfm_lightglue.products import Features, Matches


class Matcher(Protocol):
    """Matches the features of two images.

    - Each process builds it once, by its classmethod `create(options, device)`, and calls it from several threads.
    - It keeps its options as the attribute `options`. Options and `weights` are stored with the results, so that results of
      other settings are recognised (docs/architecture.md). Another process creates it again from class and options.
    - The stage gives it features of the upright photos (`orientation.upright_features`).
    """

    weights: tuple[WeightsRecord, ...]
    """The loaded weights; empty for a matcher without weights."""

    def __call__(self, features0: Features, features1: Features) -> Matches:
        """The matches of two images; an empty result if an image has no keypoints."""
        ...


class PreparedImage(Protocol):
    """An image as a batched matcher keeps it."""

    num_bytes: int
    """Memory that it takes, bytes."""


@runtime_checkable
class BatchedMatcher(Protocol):
    """Optional methods of a matcher. The stage then prepares each image once, and gives the matcher many pairs at a time."""

    batch_size: int
    """Number of pairs that it takes at a time."""

    def prepare(self, features: Features) -> Any:
        """A `PreparedImage`: everything that can be computed from one image alone."""
        ...

    def match_many(self, pairs: Sequence[tuple[Any, Any]]) -> list[Matches]:
        """Matches of each pair, the same as for the pair alone."""
        ...
