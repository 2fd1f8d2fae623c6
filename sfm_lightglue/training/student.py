"""SuperPoint as a student: what it learns from a batch.

Three losses: the keypoints of each cell (DeTone et al., arXiv:1712.07629, section 3.4, here with probabilities as targets),
descriptors that tell a point from all others of the batch (InfoNCE, van den Oord et al., arXiv:1807.03748, both ways), and
descriptors from which a linear map predicts the teacher's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfm_lightglue.networks.superpoint import DESCRIPTOR_SIZE, SuperPoint, sample_descriptors


@dataclass(frozen=True)
class LossOptions:
    """Options; the values stand in configs/training."""

    keypoints: float
    """Weight of the loss of the keypoint head."""
    location: float
    """Weight of its part that says where in a cell a keypoint lies, per keypoint instead of per cell."""
    contrast: float
    """Weight of InfoNCE."""
    distillation: float
    """Weight of 1 - cosine between the predicted and the teacher's descriptor."""
    same_point: float
    """px: other points nearer than this in the partner view are not held against a point."""
    temperature: float
    """Of InfoNCE at the start; it is learnt."""


class Student(nn.Module):
    """SuperPoint with batch normalisation, and what only training needs."""

    def __init__(self, teacher_size: int, temperature: float) -> None:
        super().__init__()
        # Channels together: on a GPU batch normalisation is several times as fast so.
        self.network = SuperPoint(batch_norm=True).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.to_teacher = nn.Linear(DESCRIPTOR_SIZE, teacher_size)
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)))

    def losses(self, batch: dict[str, Tensor], options: LossOptions, dtype: torch.dtype) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to minimise, and the figures of the curves, for a batch of `PairsOfViews`; the network computes in `dtype`."""
        views = batch["views"]
        with torch.autocast(views.device.type, dtype, enabled=dtype != torch.float32):
            output = self.network(views)
        logits, targets, weights = output.logits.float(), batch["targets"], batch["cell_weights"]
        keypoints, location = keypoint_loss(logits, targets, weights), location_loss(logits, targets, weights)
        contrast, accuracy, cosine = self._compare_descriptors(output.descriptors.float(), batch, options.same_point)
        loss = options.keypoints * keypoints + options.location * location
        loss = loss + options.contrast * contrast + options.distillation * (1 - cosine)
        figures = {"loss": loss, "keypoint_loss": keypoints, "location_loss": location, "contrast_loss": contrast}
        return loss, {**figures, "top1": accuracy, "teacher_cosine": cosine, "scale": self.log_scale.exp()}

    def _compare_descriptors(self, dense: Tensor, batch: dict[str, Tensor], same_point: float) -> tuple[Tensor, Tensor, Tensor]:
        """InfoNCE, the share of points that it finds, and the mean cosine with the teacher; without points nothing is wrong."""
        sampled = sample_descriptors(batch["points"], dense, centred=True)
        first, second = sampled.chunk(2)  # pairs n d
        is_point, near = batch["is_point"], _near(batch, same_point)
        contrast, accuracy = contrastive_loss(first, second, self.log_scale.exp(), is_point, near)
        cosines = F.cosine_similarity(self.to_teacher(sampled), batch["teacher"].repeat(2, 1, 1), dim=2)
        return contrast, accuracy, 1 - _mean(1 - cosines, is_point.repeat(2, 1))


def keypoint_loss(logits: Tensor, targets: Tensor, cell_weights: Tensor) -> Tensor:
    """Cross-entropy between targets and logits (b, 65, hc, wc), the mean over cells weighted by (b, hc, wc)."""
    loss = F.cross_entropy(logits, targets, reduction="none")
    return (loss * cell_weights).sum() / cell_weights.sum().clamp(min=1)


def location_loss(logits: Tensor, targets: Tensor, cell_weights: Tensor) -> Tensor:
    """Cross-entropy of the 64 pixels of a cell, given that it has a keypoint; the mean over keypoints, by their probabilities.

    Few cells have keypoints, so in `keypoint_loss` finding the right pixel counts little beside finding the cell.
    """
    pixels = (targets * cell_weights[:, None])[:, :-1]
    return -(pixels * logits[:, :-1].log_softmax(dim=1)).sum() / pixels.sum().clamp(min=1)


def contrastive_loss(first: Tensor, second: Tensor, scale: Tensor, is_point: Tensor, left_out: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric InfoNCE of unit-length descriptors (pairs, n, d), row i of one belonging to row i of the other, against all rows
    of all pairs, and the share of rows whose nearest descriptor is the right one. Rows that are no point, by `is_point` (pairs,
    n), have no part in it; `left_out` (pairs, n, n): rows of a pair that count neither as the same nor as different."""
    similarity = first.flatten(0, 1) @ second.flatten(0, 1).T * scale
    of_pairs = similarity.unflatten(0, first.shape[:2]).unflatten(2, first.shape[:2]).diagonal(dim1=0, dim2=2)  # n n pairs
    of_pairs.masked_fill_(left_out.permute(1, 2, 0), -torch.inf)
    valid = is_point.flatten()
    lowest = torch.where(valid, 0.0, -1e30)  # finite: a row without any other point would give no gradient but nan
    rows, columns = similarity + lowest, similarity.T + lowest
    own = similarity.diagonal()
    loss = (rows.logsumexp(dim=1) - own + columns.logsumexp(dim=1) - own) / 2
    label = torch.arange(len(valid), device=valid.device)
    return _mean(loss, valid), 1 - _mean((rows.argmax(dim=1) != label).float(), valid)


def _mean(values: Tensor, counted: Tensor) -> Tensor:
    """Over the elements that are counted, 0 where none is. Without selecting them, whose number a GPU would be waited for."""
    return torch.where(counted, values, 0).sum() / counted.sum().clamp(min=1)


def _near(batch: dict[str, Tensor], radius: float) -> Tensor:
    """bool (pairs, n, n): other points of the same photo within `radius` px in either view."""
    first, second = (torch.cdist(points, points) < radius for points in batch["points"].chunk(2))
    others = ~torch.eye(first.shape[1], dtype=torch.bool, device=first.device)
    return (first | second) & others
