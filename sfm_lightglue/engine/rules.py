"""When a pair ends early or is guided, as numbers.

This module does not import torch: a run with nothing to do needs the numbers alone.
"""

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


@dataclass(frozen=True)
class OverlapTest:
    """When a pair that no pass of guided matching completes is rejected; the values are calibrated for each kind of feature.

    "Coherent" matches are counted by `overlap.count_coherent`, and neighbours by `overlap.compare`.
    """

    min_mutual: float
    """Share of the keypoints, 0..1, of the image with fewer ones, that must be mutual nearest neighbours. Pairs with fewer are
    not rejected: strong light, or few distinct points, make descriptors unreliable."""
    min_coherent_neighbors: int
    """Pairs with at least this many coherent nearest neighbours of descriptors are not rejected."""
    num_layers: int
    """Layers of the network that match the keypoints of the last pass of the other pairs."""
    min_coherent_matches: int
    """Pairs with fewer coherent matches of these keypoints are rejected."""


@dataclass(frozen=True)
class GuidedPass:
    """When a pair is matched by its strongest keypoints."""

    share: float
    """Share of the keypoints of an image that the network matches, 0..1."""
    min_keypoints: int
    """The least number of these. Images with less than twice this number do not take part."""
    num_layers: int
    """Layers of the network."""
    min_distinct: int
    """Distinct neighbours (`EarlyRejection`) among the keypoints of the first pass that a pair needs."""
    min_coherent: int
    """Coherent nearest neighbours (`OverlapTest`) among all keypoints that a pair needs. 0: they are not counted."""
    min_seeds: int
    """Matches that the network must find, the seeds."""
    min_agreeing: float
    """Fraction of the seeds, 0..1, that must agree with one fundamental matrix."""
    min_mean_score: float
    """Smallest mean score of the agreeing seeds, 0..1."""
    min_share: float
    """Smallest share of all keypoints that find a match, relative to the share of the keypoints of the pass that did. Few matches
    mean that the surfaces or the descriptors differ too much between the views."""
    keeps_seeds: bool
    """The agreeing seeds are matches; if not, only what the search finds, the seeds included."""


@dataclass(frozen=True)
class GuidedMatching:
    """How pairs are matched by their strongest keypoints; the values are calibrated for each kind of feature."""

    passes: tuple[GuidedPass, ...]
    """Tried in turn, from few keypoints to many. The network takes all keypoints of a pair for which all passes fail."""
