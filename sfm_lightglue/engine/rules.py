"""When a pair ends early, as numbers. This module does not import torch: a run with nothing to do needs the numbers alone."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EarlyAcceptance:
    """When a pair with many matches ends; the values are calibrated for each kind of feature."""

    depth_confidence: float
    """The fraction of certain points from which on such a pair ends, instead of the `depth_confidence` of the network."""
    min_matchable: int
    """Certain points with a match that both images need."""
    min_matchability: float
    """Smallest matchability of a point that counts as one with a match."""


@dataclass(frozen=True)
class EarlyRejection:
    """When to reject a pair; the values are calibrated for each kind of feature.

    "Distinct neighbours" are mutual nearest neighbours that pass the ratio test.
    """

    min_distinct: int
    """Pairs with fewer distinct neighbours are rejected before the first layer."""
    enough_distinct: int
    """Pairs with at least this many distinct neighbours are never rejected. Pairs between the two limits are doubtful."""
    min_matchability: tuple[float, ...]
    """One limit for each of the first layers. A doubtful pair is rejected after the layer if one of its images has fewer than
    `early_rejection.RANK` points with a matchability of at least the limit."""
