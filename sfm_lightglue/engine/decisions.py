"""What happens after a layer: which pairs stop, which end without matches, and which points are dropped (section 3.3)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int
from torch import Tensor

from sfm_lightglue.engine.batch import Batch
from sfm_lightglue.engine.early_acceptance import EarlyAcceptance, flag_matchable, judge_matches
from sfm_lightglue.networks.lightglue_settings import LightGlueSettings


@dataclass(frozen=True)
class Decision:
    """Adaptive depth and width for the p pairs and T tokens of a batch."""

    is_done: Bool[np.ndarray, " p"]
    """Enough points of the pair are confident, so this layer is its last."""
    keep: Bool[Tensor, " T"]
    """The point stays if its pair goes on."""
    num_kept: Int[np.ndarray, "2 p"]
    """Number of points to keep in each image."""


def decide(
    batch: Batch,
    probabilities: Float32[Tensor, "T 2"],
    settings: LightGlueSettings,
    threshold: float,
    acceptance: EarlyAcceptance | None = None,
) -> Decision:
    """The decision after a layer that is not the last. Waits for the device once.

    Args:
        batch: the pairs in play.
        probabilities: confidence and matchability of each token.
        settings: the thresholds of depth and width.
        threshold: confidence from which on a point counts as confident after this layer.
        acceptance: when pairs with many matches stop. Not used without adaptive depth.
    """
    depth, width = settings.depth_confidence, settings.width_confidence
    confidence, matchability = probabilities.unbind(dim=1)
    unconfident = confidence < threshold
    keep = matchability > 1 - width if width > 0 else torch.ones_like(unconfident)
    if depth > 0:
        keep |= confidence <= threshold
    matchable = [] if acceptance is None else [flag_matchable(matchability, ~unconfident, acceptance)]
    num_unconfident, num_kept, *num_matchable = batch.count(torch.stack([unconfident, keep, *matchable]))
    is_done = np.zeros(len(batch), dtype=bool)
    if depth > 0:  # in float32, as in the network: at the limit a rounding decides
        unsure = num_unconfident.sum(axis=0).astype(np.float32) / batch.num_points.astype(np.float32)
        is_done = 1 - unsure > np.float32(depth)
        if acceptance is not None:
            is_done |= judge_matches(batch, num_unconfident, num_matchable[0], acceptance)
    return Decision(is_done, keep, num_kept)
