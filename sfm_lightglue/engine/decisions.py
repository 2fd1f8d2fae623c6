"""What happens after a layer: which pairs stop, which end without matches, and which points are dropped (section 3.3)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sfm_lightglue.engine.batch import Batch
from sfm_lightglue.networks.lightglue import LightGlueSettings


@dataclass(frozen=True)
class Decision:
    """Adaptive depth and width for the p pairs and T tokens of a batch."""

    is_done: np.ndarray
    """bool (p,): enough points are confident, so this layer is the pair's last."""
    keep: Tensor
    """bool (T,): the point stays if its pair goes on."""
    num_kept: np.ndarray
    """int32 (2, p): number of points to keep in each image."""


def decide(batch: Batch, probabilities: Tensor, settings: LightGlueSettings, threshold: float) -> Decision:
    """The decision after a layer that is not the last. Waits for the device once.

    Args:
        batch: the pairs in play.
        probabilities: float32 (T, 2), confidence and matchability of each token.
        settings: the thresholds of depth and width.
        threshold: confidence from which on a point counts as confident after this layer.
    """
    depth, width = settings.depth_confidence, settings.width_confidence
    confidence, matchability = probabilities.unbind(dim=1)
    unconfident = confidence < threshold
    keep = matchability > 1 - width if width > 0 else torch.ones_like(unconfident)
    if depth > 0:
        keep |= confidence <= threshold
    num_unconfident, num_kept = batch.count(torch.stack([unconfident, keep]))
    is_done = np.zeros(len(batch), dtype=bool)
    if depth > 0:  # in float32, as in the network: at the limit a rounding decides
        unsure = num_unconfident.sum(axis=0).astype(np.float32) / batch.num_points.astype(np.float32)
        is_done = 1 - unsure > np.float32(depth)
    return Decision(is_done, keep, num_kept)
