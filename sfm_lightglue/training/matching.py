"""LightGlue's labels and losses: true positions become labels of keypoints, and the network's states become losses.

Shapes: b pairs, m keypoints in image 0, n keypoints in image 1, states of size d.
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
from sfm_lightglue.networks.lightglue_settings import PUBLISHED_SETTINGS
from sfm_lightglue.networks.superpoint import DESCRIPTOR_SIZE

UNMATCHABLE, IGNORED = -1, -2
"""Labels of keypoints without a partner: the point is not seen in the partner image, or the keypoint does not count."""

OCTAVE_PX = 2.0
"""Cost of a scale that is wrong by a factor of 2, in px of distance from the true position."""


@dataclass(frozen=True)
class MatchingLossOptions:
    """Options; configs/training holds the values."""

    match_px: float
    """Maximum distance of a match: each keypoint is nearer than this to the true position of the other one, and no other keypoint
    is nearer."""
    no_match_px: float
    """Minimum distance of all other keypoints from the true position of an unmatchable keypoint. Distances between `match_px`
    and this are ignored."""
    confidence: float
    """Weight of the loss of the confidence heads. It does not change the matches."""

    def __post_init__(self) -> None:
        if not 0 < self.match_px <= self.no_match_px:
            raise ValueError(
                "training.losses.match_px must be above 0 and at most no_match_px, "
                f"found match_px={self.match_px}, no_match_px={self.no_match_px}"
            )


@dataclass(frozen=True)
class TruePositions:
    """Positions of the keypoints of an image in the partner image."""

    keypoints: Tensor
    """(b, m, 2), px of the image."""
    positions: Tensor
    """(b, m, 2), px of the partner."""
    visible: Tensor
    """bool (b, m): True if the partner shows the point of the keypoint."""
    known: Tensor
    """bool (b, m): True if `positions` and `visible` are known. Other keypoints are ignored."""
    scales: Tensor
    """(b, m): sizes of the keypoints, px of the image."""
    mapped_scales: Tensor
    """(b, m): sizes of the keypoints in the partner, px of the partner."""


def label_keypoints(truth0: TruePositions, truth1: TruePositions, match_px: float, no_match_px: float) -> tuple[Tensor, Tensor]:
    """Labels int64 (b, m) and (b, n): the index of each keypoint's partner, or UNMATCHABLE, or IGNORED.

    `truth0` and `truth1` hold the true positions of the keypoints of each image in the other one. For `match_px` and
    `no_match_px`, see `MatchingLossOptions`.

    The error of a pair of keypoints is the larger of its two distances: each keypoint must lie near the true position of the
    other. The smaller distance would forgive a large error in the image that was taken from nearer. A match has the smallest
    error for both of its keypoints. An image may have several keypoints at one place, found at several sizes of the image. Then
    the one of the same scale wins, because OCTAVE_PX are added for each factor of 2.

    A keypoint without a match is UNMATCHABLE if its point is hidden, or if all keypoints of the partner are farther than
    `no_match_px`. Only one of several keypoints at one place can match, or one for each scale; the others are IGNORED.
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
    alone0, alone1 = error0.amin(dim=2) > no_match_px, error1.amin(dim=1) > no_match_px  # includes hidden points
    return (
        best0.indices.where(is_match0, torch.where(alone0 & truth0.known, UNMATCHABLE, IGNORED)),
        best1.indices.where(is_match1, torch.where(alone1 & truth1.known, UNMATCHABLE, IGNORED)),
    )


def _distances(points0: Tensor, points1: Tensor) -> Tensor:
    """(b, m, n). For many points torch would use a matrix product, which is wrong by some tenths of a pixel."""
    return torch.cdist(points0, points1, compute_mode="donot_use_mm_for_euclid_dist")


def matching_losses(
    network: LightGlue, output: LightGlueOutput, labels0: Tensor, labels1: Tensor, options: MatchingLossOptions
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss to minimise and the metrics of the curves (section 3.4, eq. 11, after every layer), for labels (b, m) and (b, n).

    The loss is the negative log-likelihood of the matches, plus half of this value for the unmatchable keypoints of each image.
    It is the mean over the keypoints of a pair, then over the pairs, then over the layers. The confidence heads also learn
    whether a keypoint will keep its prediction until the last layer (section 3.3). Their gradient does not reach the states.
    """
    losses, predictions = [], []
    for i in range(network.settings.num_layers):
        log_assignment = _log_assignment(network, output, i)
        losses.append(negative_log_likelihood(log_assignment, labels0, labels1))
        predictions.append(predict(log_assignment, network.settings.filter_threshold))
    loss, confidence = torch.stack(losses).mean(), _confidence_loss(network, output, predictions)
    metrics = {"loss": loss, "last_layer_loss": losses[-1], "first_layer_loss": losses[0], "confidence_loss": confidence}
    return loss + options.confidence * confidence, metrics | _accuracy(predictions[-1][0], labels0)


def negative_log_likelihood(log_assignment: Tensor, labels0: Tensor, labels1: Tensor) -> Tensor:
    """Negative log-likelihood of labels (b, m), (b, n) under a log assignment (b, m + 1, n + 1).

    For a pair without matches, only the part of the unmatchable keypoints counts.
    """
    own = log_assignment[:, :-1].gather(2, labels0.clamp(min=0)[:, :, None])[:, :, 0]
    matched = _mean(own, labels0 >= 0)
    without0 = _mean(log_assignment[:, :-1, -1], labels0 == UNMATCHABLE)
    without1 = _mean(log_assignment[:, -1, :-1], labels1 == UNMATCHABLE)
    return -(matched + (without0 + without1) / 2).mean()


@torch.no_grad()
def predict(log_assignment: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Matches int64 (b, m) and (b, n) of a log assignment (b, m + 1, n + 1): the index of each keypoint's partner, or -1.

    Matched keypoints are each other's best partner with a probability above `threshold`.
    """
    scores = log_assignment[:, :-1, :-1]
    best0, best1 = scores.max(dim=2), scores.max(dim=1)
    rows, columns = (torch.arange(length, device=scores.device) for length in scores.shape[1:])
    is_match0 = (best1.indices.gather(1, best0.indices) == rows) & (best0.values.exp() > threshold)
    is_match1 = (best0.indices.gather(1, best1.indices) == columns) & (best1.values.exp() > threshold)
    return best0.indices.where(is_match0, -1), best1.indices.where(is_match1, -1)


def _log_assignment(network: LightGlue, output: LightGlueOutput, i: int) -> Tensor:
    """(b, m + 1, n + 1) after layer i, in float32 even under autocast, because similarities are in the hundreds."""
    x0, x1 = output.descriptors0[i], output.descriptors1[i]
    with torch.autocast(x0.device.type, enabled=False):
        return cast(MatchAssignment, network.log_assignment[i])(x0.float(), x1.float())


def _confidence_loss(network: LightGlue, output: LightGlueOutput, predictions: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Binary cross-entropy, averaged over all layers except the last."""
    losses = []
    for i, head in enumerate(network.token_confidence):
        for side, states in enumerate((output.descriptors0, output.descriptors1)):
            is_final = predictions[i][side] == predictions[-1][side]
            with torch.autocast(is_final.device.type, enabled=False):
                logits = cast(TokenConfidence, head).logits(states[i].float())
            losses.append(F.binary_cross_entropy_with_logits(logits, is_final.float()))
    return torch.stack(losses).mean() if losses else output.descriptors0[0].new_zeros(())


def _accuracy(predicted: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Recall and precision of predicted matches (b, m), and the share of keypoints with a match, over all pairs together."""
    correct = ((predicted == labels) & (labels >= 0)).sum()
    claimed = ((predicted >= 0) & (labels != IGNORED)).sum()
    return {
        "recall": correct / (labels >= 0).sum().clamp(min=1),
        "precision": correct / claimed.clamp(min=1),
        "matchable": (labels >= 0).float().mean(),
    }


def _mean(values: Tensor, counted: Tensor) -> Tensor:
    """(b,): means of values (b, m) over the counted elements; 0 if none is counted."""
    return torch.where(counted, values, 0).sum(dim=1) / counted.sum(dim=1).clamp(min=1)


def prediction_scale(descriptors: Tensor, weight: Tensor, bias: Tensor) -> float:
    """Factor by which the predictions of a linear map from descriptors (n, 256) get the mean length 1, for `warm_start`."""
    return 1 / F.linear(descriptors.to(weight), weight, bias).norm(dim=1).mean().item()


def warm_start(teacher: Mapping[str, Tensor], weight: Tensor, bias: Tensor, scale: float) -> LightGlue:
    """ALIKED's LightGlue for other descriptors, from its weights and a linear map of those descriptors to ALIKED's.

    The weight (128, 256) and the bias (128,) of the map predict the direction of ALIKED's descriptors. Multiplied by `scale`
    (see `prediction_scale`) the predictions have about the right length, 1. The product of the map and the input projection is
    an input projection for the other descriptors.

    Raises: ValueError if the map has another shape.
    """
    sizes = PUBLISHED_SETTINGS["aliked"].input_dim, DESCRIPTOR_SIZE
    if weight.shape != sizes or bias.shape != sizes[:1]:
        raise ValueError(
            f"the map to ALIKED's descriptors has a weight {tuple(weight.shape)} and a bias {tuple(bias.shape)}, expected "
            f"{sizes} and {sizes[:1]}: give the file to_teacher.safetensors that the training of SuperPoint exports"
        )
    network = load_lightglue(teacher, PUBLISHED_SETTINGS["aliked"])
    return behind_map(network, scale * weight, scale * bias)


def behind_map(network: LightGlue, weight: Tensor, bias: Tensor) -> LightGlue:
    """A LightGlue for descriptors x (d,), from `network` for the descriptors `weight` @ x + `bias`.

    The weight is (input size of `network`, d), the bias (input size of `network`,).
    """
    state = network.state_dict()
    if not isinstance(network.input_proj, torch.nn.Linear):  # the network has no input projection
        state |= {"input_proj.weight": torch.eye(len(weight)), "input_proj.bias": torch.zeros(len(weight))}
    state["input_proj.bias"] = state["input_proj.weight"] @ bias + state["input_proj.bias"]
    state["input_proj.weight"] = state["input_proj.weight"] @ weight
    return load_lightglue(state, replace(network.settings, input_dim=weight.shape[1], project_input=True))
