"""Early rejection: pairs that do not overlap end before or soon after the first layer, without matches.

Most candidate pairs of a photo collection do not overlap, and the network need not spend all its layers on them.
- Before the first layer the descriptors alone are compared. Most pairs without overlap have hardly any mutual nearest neighbours
  that are clearly nearer than the second nearest. These pairs end at once.
- Pairs with few neighbours of this kind are doubtful. They may be pairs under strong changes of light or viewpoint, which the
  network can match. A doubtful pair ends after one of the first layers if the network finds few matchable points in an image.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from sfm_lightglue.engine.assignment import BLOCK_ENTRIES
from sfm_lightglue.engine.batch import Batch, ImageState
from sfm_lightglue.engine.rules import EarlyRejection as EarlyRejection

MAX_RATIO = 0.85
"""Ratio test: the largest ratio of the distances to the nearest and to the second nearest descriptor."""
RANK = 32
"""Number of matchable points that an image needs. Pairs with fewer keypoints in an image are never rejected."""


def judge_descriptors(
    pairs: Sequence[tuple[ImageState, ImageState]], rule: EarlyRejection | None
) -> tuple[Bool[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """Which pairs are rejected by their descriptors, and which are doubtful.

    The rejected pairs count as doubtful too. Without a rule no pair is either. Waits for the device once, for all pairs.
    """
    num_distinct, judged, counts = np.full(len(pairs), np.inf), [], []
    for i, (image0, image1) in enumerate(pairs if rule else ()):
        if image0.descriptors is not None and image1.descriptors is not None and min(len(image0), len(image1)) >= RANK:
            judged.append(i)
            counts.append(count_distinct(image0.descriptors, image1.descriptors))
    if judged:
        num_distinct[judged] = torch.stack(counts).cpu().numpy()
    limits = (rule.min_distinct, rule.enough_distinct) if rule else (0, 0)
    return num_distinct < limits[0], num_distinct < limits[1]


def judge_matchability(
    batch: Batch,
    matchability: Float32[Tensor, " T"],
    is_doubtful: Bool[np.ndarray, " p"],
    rule: EarlyRejection | None,
    i: int,
) -> Bool[np.ndarray, " p"]:
    """Which pairs of a batch are rejected after layer i (from 0).

    Args:
        batch: the pairs in play.
        matchability: of each token after layer i.
        is_doubtful: see `judge_descriptors`.
        rule: None rejects no pair.
        i: the layer.
    """
    limits = rule.min_matchability if rule else ()
    if i >= len(limits) or not is_doubtful.any():
        return np.zeros(len(batch), dtype=bool)
    (num_matchable,) = batch.count(matchability[None] >= limits[i])  # 2 p
    return (num_matchable < RANK).any(axis=0) & is_doubtful


def count_distinct(descriptors0: Float32[Tensor, "m c"], descriptors1: Float32[Tensor, "n c"]) -> Int64[Tensor, ""]:
    """The number of distinct neighbours. Descriptors have unit length; n > 1."""
    step = max(1, BLOCK_ENTRIES // len(descriptors1) if descriptors0.is_cpu else len(descriptors0))
    similarities, nearest, best1 = [], [], descriptors1.new_full((len(descriptors1),), -1.0)
    for start in range(0, len(descriptors0), step):
        similarity = descriptors0[start : start + step] @ descriptors1.T
        two = similarity.topk(2, dim=1)
        similarities.append(two.values)
        nearest.append(two.indices[:, 0])
        best1 = torch.maximum(best1, similarity.amax(dim=0))
    best0, second0 = torch.cat(similarities).unbind(dim=1)
    is_mutual = best0 == best1[torch.cat(nearest)]
    return (is_mutual & (1 - best0 < MAX_RATIO**2 * (1 - second0))).sum()  # the square of a distance is 2 - 2 similarity
