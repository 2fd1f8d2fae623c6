"""What LightGlue learns: from true positions to labels of keypoints, and from its states to losses.

Shapes: b pairs, m keypoints in image 0, n in image 1, d the size of a state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from sfm_lightglue.networks.lightglue import LightGlue, LightGlueOutput, MatchAssignment, TokenConfidence
from sfm_lightglue.networks.lightglue_checkpoints import load_lightglue
from sfm_lightglue.networks.lightglue_settings import HEADS

UNMATCHABLE, IGNORED = -1, -2

OCTAVE_PX = 2.0
"""So much further from its true position a keypoint may be that is of the right scale, than one of twice that scale."""


@dataclass(frozen=True)
class MatchingLossOptions:
    """Options; the values stand in configs/training."""

    match_px: float
    """Keypoints are a match that lie nearer to each other's true position than this, and nearer than all others."""
    no_match_px: float
    """A keypoint has no match where all others are further from its true position; what lies between counts as neither."""
    confidence: float
    """Weight of the loss of the confidence heads, which has no effect on the matches."""

    def __post_init__(self) -> None:
        if not 0 < self.match_px <= self.no_match_px:
            raise ValueError(
                "training.losses.match_px must be above 0 and at most no_match_px, "
                f"found match_px={self.match_px}, no_match_px={self.no_match_px}"
            )


@dataclass(frozen=True)
class TruePositions:
    """Where the keypoints of an image are in its partner."""

    keypoints: Tensor
    """(b, m, 2), px of the image."""
    positions: Tensor
    """(b, m, 2), px of the partner."""
    visible: Tensor
    """bool (b, m): the partner shows that point."""
    known: Tensor
    """bool (b, m): whether all this is known; else the keypoint is ignored."""
    scales: Tensor
    """(b, m): how large the keypoints are, px of the image."""
    mapped_scales: Tensor
    """(b, m): how large the partner shows them, px of the partner."""


def label_keypoints(truth0: TruePositions, truth1: TruePositions, match_px: float, no_match_px: float) -> tuple[Tensor, Tensor]:
    """int64 (b, m) and (b, n): the partner of each keypoint, UNMATCHABLE or IGNORED.

    A match is the best for both by the larger of its two errors: each keypoint must lie near the true position of the other, so
    that a large keypoint distance in the image seen from near by is not forgiven for a small one in the other. Of keypoints at
    one place, found in several sizes of the image, that of the same scale is the best: OCTAVE_PX are added for each factor of 2.
    A keypoint without a match is UNMATCHABLE where its point is hidden, or further than `no_match_px` from all keypoints of the
    partner. Of several keypoints at one place one can match, or one of each scale, the others are IGNORED.
    """
    visible = truth0.visible & truth0.known, truth1.visible & truth1.known
    error0 = _distances(truth0.positions, truth1.keypoints).masked_fill(~visible[0][:, :, None], torch.inf)  # b m n
    error1 = _distances(truth0.keypoints, truth1.positions).masked_fill(~visible[1][:, None], torch.inf)
    error = torch.maximum(error0, error1)
    octaves = (truth0.mapped_scales.log2()[:, :, None] - truth1.scales.log2()[:, None, :]).abs()
    cost = (error + OCTAVE_PX * octaves).where(error < match_px, torch.inf)
    best0, best1 = cost.min(dim=2), cost.min(dim=1)
    rows, columns = (torch.arange(length, device=error.device) for length in error.shape[1:])
    is_match0 = (best1.indices.gather(1, best0.indices) == rows) & best0.values.isfinite()
    is_match1 = (best0.indices.gather(1, best1.indices) == columns) & best1.values.isfinite()
    alone0, alone1 = error0.amin(dim=2) > no_match_px, error1.amin(dim=1) > no_match_px  # also what is not visible
    return (
        best0.indices.where(is_match0, torch.where(alone0 & truth0.known, UNMATCHABLE, IGNORED)),
        best1.indices.where(is_match1, torch.where(alone1 & truth1.known, UNMATCHABLE, IGNORED)),
    )


def _distances(points0: Tensor, points1: Tensor) -> Tensor:
    """(b, m, n); by a matrix product, as torch does for many points, they would be some tenths of a pixel off."""
    return torch.cdist(points0, points1, compute_mode="donot_use_mm_for_euclid_dist")


def matching_losses(
    network: LightGlue, output: LightGlueOutput, labels0: Tensor, labels1: Tensor, options: MatchingLossOptions
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss to minimise and the figures of the curves (section 3.4, eq. 11, after every layer).

    Negative log-likelihood of the matches and, half as much each, of the unmatchable keypoints of both images; means over the
    keypoints of a pair, then over the pairs, then over the layers. The heads of confidence learn beside it whether a keypoint
    will keep its prediction until the last layer (section 3.3); no gradient goes from them to the states.
    """
    losses, predictions = [], []
    for i in range(network.settings.num_layers):
        log_assignment = _log_assignment(network, output, i)
        losses.append(negative_log_likelihood(log_assignment, labels0, labels1))
        predictions.append(predict(log_assignment, network.settings.filter_threshold))
    loss, confidence = torch.stack(losses).mean(), _confidence_loss(network, output, predictions)
    figures = {"loss": loss, "last_layer_loss": losses[-1], "first_layer_loss": losses[0], "confidence_loss": confidence}
    return loss + options.confidence * confidence, figures | _accuracy(predictions[-1][0], labels0)


def negative_log_likelihood(log_assignment: Tensor, labels0: Tensor, labels1: Tensor) -> Tensor:
    """Of labels (b, m), (b, n) under a log assignment (b, m + 1, n + 1); pairs without matches have their other part only."""
    own = log_assignment[:, :-1].gather(2, labels0.clamp(min=0)[:, :, None])[:, :, 0]
    matched = _mean(own, labels0 >= 0)
    without0 = _mean(log_assignment[:, :-1, -1], labels0 == UNMATCHABLE)
    without1 = _mean(log_assignment[:, -1, :-1], labels1 == UNMATCHABLE)
    return -(matched + (without0 + without1) / 2).mean()


@torch.no_grad()
def predict(log_assignment: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """int64 (b, m) and (b, n): the partner that each keypoint is matched with, -1 for none."""
    scores = log_assignment[:, :-1, :-1]
    best0, best1 = scores.max(dim=2), scores.max(dim=1)
    rows, columns = (torch.arange(length, device=scores.device) for length in scores.shape[1:])
    is_match0 = (best1.indices.gather(1, best0.indices) == rows) & (best0.values.exp() > threshold)
    is_match1 = (best0.indices.gather(1, best1.indices) == columns) & (best1.values.exp() > threshold)
    return best0.indices.where(is_match0, -1), best1.indices.where(is_match1, -1)


def _log_assignment(network: LightGlue, output: LightGlueOutput, i: int) -> Tensor:
    """(b, m + 1, n + 1) after layer i, in float32 also under autocast: similarities are in the hundreds."""
    x0, x1 = output.descriptors0[i], output.descriptors1[i]
    with torch.autocast(x0.device.type, enabled=False):
        return cast(MatchAssignment, network.log_assignment[i])(x0.float(), x1.float())


def _confidence_loss(network: LightGlue, output: LightGlueOutput, predictions: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Binary cross-entropy, the mean over the layers but the last."""
    losses = []
    for i, head in enumerate(network.token_confidence):
        for side, states in enumerate((output.descriptors0, output.descriptors1)):
            is_final = predictions[i][side] == predictions[-1][side]
            with torch.autocast(is_final.device.type, enabled=False):
                logits = cast(TokenConfidence, head).logits(states[i].float())
            losses.append(F.binary_cross_entropy_with_logits(logits, is_final.float()))
    return torch.stack(losses).mean() if losses else output.descriptors0[0].new_zeros(())


def _accuracy(predicted: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Of matches predicted (b, m) for keypoints with these labels, all pairs together."""
    correct = ((predicted == labels) & (labels >= 0)).sum()
    claimed = ((predicted >= 0) & (labels != IGNORED)).sum()
    return {
        "recall": correct / (labels >= 0).sum().clamp(min=1),
        "precision": correct / claimed.clamp(min=1),
        "matchable": (labels >= 0).float().mean(),
    }


def _mean(values: Tensor, counted: Tensor) -> Tensor:
    """(b,): means of values (b, m) over what is counted, 0 where nothing is."""
    return torch.where(counted, values, 0).sum(dim=1) / counted.sum(dim=1).clamp(min=1)


def prediction_scale(descriptors: Tensor, weight: Tensor, bias: Tensor) -> float:
    """What brings the mean length of the predictions from descriptors (n, 256) to 1, see `warm_start`."""
    return 1 / F.linear(descriptors.to(weight), weight, bias).norm(dim=1).mean().item()


def warm_start(teacher: Mapping[str, Tensor], weight: Tensor, bias: Tensor, scale: float) -> LightGlue:
    """ALIKED's LightGlue for other descriptors, from its weights and the linear map of those descriptors to ALIKED's.

    The map's weight (128, 256) and bias (128,) predict the direction of ALIKED's descriptors, times `scale` about their length,
    1 (see `prediction_scale`): its product with the input projection is an input projection for the other descriptors.
    Raises: ValueError where the map has another shape.
    """
    sizes = HEADS["aliked"].input_dim, HEADS["superpoint-open"].input_dim
    if weight.shape != sizes or bias.shape != sizes[:1]:
        raise ValueError(
            f"the map to ALIKED's descriptors has a weight {tuple(weight.shape)} and a bias {tuple(bias.shape)}, expected "
            f"{sizes} and {sizes[:1]}: give the file to_teacher.safetensors that the training of SuperPoint exports"
        )
    network = load_lightglue(teacher, HEADS["aliked"])
    moved = behind_map(network, scale * weight, scale * bias)
    return load_lightglue(moved.state_dict(), HEADS["superpoint-open"])


def behind_map(network: LightGlue, weight: Tensor, bias: Tensor) -> LightGlue:
    """The network for descriptors x (d,), where it was for the descriptors `weight` x + `bias`; weight (its input size, d)."""
    state = network.state_dict()
    if not isinstance(network.input_proj, torch.nn.Linear):  # it takes descriptors as they are
        state |= {"input_proj.weight": torch.eye(len(weight)), "input_proj.bias": torch.zeros(len(weight))}
    state["input_proj.bias"] = state["input_proj.weight"] @ bias + state["input_proj.bias"]
    state["input_proj.weight"] = state["input_proj.weight"] @ weight
    return load_lightglue(state, replace(network.settings, input_dim=weight.shape[1], project_input=True))
