"""Early acceptance: pairs that already have many matches end before nearly all of their points are certain.

LightGlue stops when 95 % of the points of a pair are certain that later layers will not change their prediction (section 3.3).
Most of the uncertain points have no match. A pair under hard light, or with little overlap, needs the later layers for its few
matches. A pair that has hundreds of certain matches does not: its geometry is as exact without the last of them.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float32, Int
from torch import Tensor

from sfm_lightglue.engine.batch import Batch
from sfm_lightglue.engine.rules import EarlyAcceptance as EarlyAcceptance


def flag_matchable(
    matchability: Float32[Tensor, " T"], is_certain: Bool[Tensor, " T"], rule: EarlyAcceptance
) -> Bool[Tensor, " T"]:
    """A flag of the certain points with a match."""
    return (matchability >= rule.min_matchability) & is_certain


def judge_matches(
    batch: Batch, num_uncertain: Int[np.ndarray, "2 p"], num_matchable: Int[np.ndarray, "2 p"], rule: EarlyAcceptance
) -> Bool[np.ndarray, " p"]:
    """Which pairs of a batch are accepted.

    Args:
        batch: the pairs in play.
        num_uncertain: of each image.
        num_matchable: points with the flag of `flag_matchable`, of each image.
        rule: the limits.
    """
    certain = 1 - num_uncertain.sum(axis=0) / batch.num_points
    return (certain > rule.depth_confidence) & (num_matchable >= rule.min_matchable).all(axis=0)
