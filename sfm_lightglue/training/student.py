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
        self.network = SuperPoint(batch_norm=True)
        self.to_teacher = nn.Linear(DESCRIPTOR_SIZE, teacher_size)
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)))

    def losses(self, batch: dict[str, Tensor], options: LossOptions, dtype: torch.dtype) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to minimise, and the figures of the curves, for a batch of `PairsOfViews`; the network computes in `dtype`."""
        views = batch["views"].contiguous(memory_format=torch.channels_last)
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
        if not batch["is_point"].any():
            return dense.new_zeros(()), dense.new_ones(()), dense.new_ones(())
        sampled = sample_descriptors(batch["points"], dense, centred=True)
        first, second = (half[batch["is_point"]] for half in sampled.chunk(2))  # n d
        contrast, accuracy = contrastive_loss(first, second, self.log_scale.exp(), _near(batch, same_point))
        teacher = batch["teacher"][batch["is_point"]]
        predicted = F.normalize(self.to_teacher(torch.cat([first, second])), dim=1)
        return contrast, accuracy, (predicted * torch.cat([teacher, teacher])).sum(dim=1).mean()


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


def contrastive_loss(first: Tensor, second: Tensor, scale: Tensor, left_out: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric InfoNCE of unit-length descriptors (n, d), row i of one belonging to row i of the other, and the share of rows
    whose nearest descriptor is the right one. `left_out` (n, n): pairs that count neither as the same nor as different."""
    similarity = (first @ second.T * scale).masked_fill(left_out, -torch.inf)
    label = torch.arange(len(first), device=first.device)
    loss = (F.cross_entropy(similarity, label) + F.cross_entropy(similarity.T, label)) / 2
    return loss, (similarity.argmax(dim=1) == label).float().mean()


def _near(batch: dict[str, Tensor], radius: float) -> Tensor:
    """bool (n, n): other points of the same photo within `radius` px in either view."""
    is_point = batch["is_point"]
    pair = torch.arange(len(is_point), device=is_point.device)[:, None].expand_as(is_point)[is_point]
    near = torch.zeros(len(pair), len(pair), dtype=torch.bool, device=is_point.device)
    for points in batch["points"].chunk(2):
        near |= torch.cdist(points[is_point], points[is_point]) < radius
    near &= pair[:, None] == pair
    return near.fill_diagonal_(False)
