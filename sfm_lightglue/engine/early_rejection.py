"""Which pairs do not overlap: most candidate pairs of a photo collection, and not worth all layers of the network.

Descriptors are compared without the network: most pairs that do not overlap have next to no mutual nearest neighbours that are
clearly nearer than the second nearest, and end before the first layer. Of those that have few, such as pairs under strong changes
of light or viewpoint, which the network matches, end those of which it holds few points for matchable after the first layers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sfm_lightglue.engine.assignment import BLOCK_ENTRIES

MAX_RATIO = 0.85
"""Of the distances to the nearest and to the second nearest descriptor."""
RANK = 32
"""The point, by matchability, at which an image is judged; pairs with fewer points in an image are never ended."""


@dataclass(frozen=True)
class EarlyRejection:
    """When to end a pair; calibrated for each kind of feature."""

    min_distinct: int
    """Pairs with fewer distinct mutual nearest neighbours end before the first layer."""
    enough_distinct: int
    """Pairs with as many are never ended."""
    min_matchability: tuple[float, ...]
    """For each of the first layers: end a pair where the 32nd highest matchability of one image is below this."""


def count_distinct(descriptors0: Tensor, descriptors1: Tensor) -> Tensor:
    """How many of (m, c) have a mutual nearest neighbour among (n, c) that passes the ratio test; all of unit length, n > 1."""
    step = max(1, len(descriptors0) if descriptors0.is_cuda else BLOCK_ENTRIES // len(descriptors1))
    similarities, nearest, best1 = [], [], descriptors1.new_full((len(descriptors1),), -1.0)
    for start in range(0, len(descriptors0), step):
        similarity = descriptors0[start : start + step] @ descriptors1.T
        two = similarity.topk(2, dim=1)
        similarities.append(two.values)
        nearest.append(two.indices[:, 0])
        best1 = torch.maximum(best1, similarity.amax(dim=0))
    best0, second0 = torch.cat(similarities).unbind(dim=1)
    is_mutual = best0 == best1[torch.cat(nearest)]
    return (is_mutual & (1 - best0 < MAX_RATIO**2 * (1 - second0))).sum()  # distances squared are 2 - 2 similarity
