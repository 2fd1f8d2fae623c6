"""SuperPoint as a student: what it learns from a batch.

Four losses: the keypoints of each cell (DeTone et al., arXiv:1712.07629, section 3.4, here with probabilities as targets), equal
positions for keypoints seen in two views (as ALIKE's reprojection loss, Zhao et al., arXiv:2112.02906), descriptors that tell a
point from all others of the batch (InfoNCE, van den Oord et al., arXiv:1807.03748, both ways), and descriptors from which a
linear map predicts the teacher's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfm_lightglue.features.superpoint import SuperPointOptions
from sfm_lightglue.networks.superpoint import (
    CELL,
    DESCRIPTOR_SIZE,
    SuperPoint,
    non_maximum_suppression,
    sample_descriptors,
    strongest_keypoints,
    unfold_batch_norm,
)
from sfm_lightglue.training.homographies import invert, warp


@dataclass(frozen=True)
class LossOptions:
    """Options; the values stand in configs/training."""

    keypoints: float
    """Weight of the loss of the keypoint head."""
    location: float
    """Weight of its part that says where in a cell a keypoint lies, per keypoint instead of per cell."""
    reprojection: float
    """Weight of the distance in px between keypoints of two views that are one. While it finds few, this only disturbs."""
    contrast: float
    """Weight of InfoNCE."""
    distillation: float
    """Weight of 1 - cosine between the predicted and the teacher's descriptor."""
    same_point: float
    """px: keypoints of two views nearer than this are one, and descriptors of others nearer than this are not held against it."""
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

    @torch.no_grad()
    def start_from(self, network: SuperPoint, batch: Mapping[str, Tensor]) -> None:
        """Takes over a trained network; statistics of layers and the map to the teacher's descriptors are those of a batch."""
        self.network = unfold_batch_norm(network, batch["views"]).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        descriptors = sample_descriptors(batch["points"], network(batch["views"]).descriptors, centred=True)
        is_point, teacher = batch["is_point"].repeat(2, 1), batch["teacher"].repeat(2, 1, 1)
        known = F.pad(descriptors[is_point], (0, 1), value=1.0)
        solution = torch.linalg.lstsq(known, teacher[is_point]).solution
        self.to_teacher.weight.copy_(solution[:-1].T)
        self.to_teacher.bias.copy_(solution[-1])

    def losses(
        self, batch: Mapping[str, Tensor], options: LossOptions, detection: SuperPointOptions, dtype: torch.dtype
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to minimise, and the figures of the curves, for a batch of `make_views`.

        Keypoints whose positions are compared are found as by `detection`; the network computes in `dtype`.
        """
        views = batch["views"]
        with torch.autocast(views.device.type, dtype, enabled=dtype != torch.float32):
            output = self.network(views)
        logits, targets, weights = output.logits.float(), batch["targets"], batch["cell_weights"]
        keypoints, location = keypoint_loss(logits, targets, weights), location_loss(logits, targets, weights)
        positions, found = find_keypoints(output.scores.float(), weights, batch["points"].shape[1], detection)
        reprojection, repeated = reprojection_loss(positions, found, batch["between"], options.same_point)
        contrast, accuracy, cosine = self._compare_descriptors(output.descriptors.float(), batch, options.same_point)
        loss = options.keypoints * keypoints + options.location * location + options.reprojection * reprojection
        loss = loss + options.contrast * contrast + options.distillation * (1 - cosine)
        figures = {"loss": loss, "keypoint_loss": keypoints, "location_loss": location, "reprojection_px": reprojection}
        figures |= {"repeated": repeated, "contrast_loss": contrast, "top1": accuracy, "teacher_cosine": cosine}
        return loss, {**figures, "scale": self.log_scale.exp()}

    def _compare_descriptors(
        self, dense: Tensor, batch: Mapping[str, Tensor], same_point: float
    ) -> tuple[Tensor, Tensor, Tensor]:
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


def find_keypoints(
    heatmaps: Tensor, cell_weights: Tensor, max_keypoints: int, options: SuperPointOptions
) -> tuple[Tensor, Tensor]:
    """The strongest keypoints of heatmaps (b, h, w) in cells with a weight, of (b, hc, wc): float32 (b, max_keypoints, 2),
    differentiable, and bool (b, max_keypoints), False for rows that fill up."""
    peaks = non_maximum_suppression(heatmaps.detach(), options.nms_radius)
    peaks = peaks * cell_weights.repeat_interleave(CELL, dim=1).repeat_interleave(CELL, dim=2)
    keypoints, scores = strongest_keypoints(peaks, heatmaps, max_keypoints, border=options.border, subpixel=True)
    return keypoints, scores > options.detection_threshold


def reprojection_loss(positions: Tensor, found: Tensor, between: Tensor, same_point: float) -> tuple[Tensor, Tensor]:
    """Distance in px of keypoints of two views that are one, the mean over both views, and the share of keypoints that are such.

    Positions (2 pairs, n, 2) as from `find_keypoints`, first those of all pairs, then of their partners; homographies `between`
    them (pairs, 3, 3). One are mutual nearest neighbours within `same_point` px.
    """
    first, second = positions.chunk(2)
    is_first, is_second = found.chunk(2)
    there, back = warp(between, first), warp(invert(between).float(), second)
    distances = torch.cdist(there.detach(), second.detach())
    distances = distances.masked_fill(~(is_first[:, :, None] & is_second[:, None]), torch.inf)
    distance, partner = distances.min(dim=2)
    mutual = distances.argmin(dim=1).gather(1, partner) == torch.arange(partner.shape[1], device=partner.device)
    repeated = (mutual & (distance < same_point))[..., None]
    second, back = (points.gather(1, partner[..., None].expand(-1, -1, 2)) for points in (second, back))
    apart = [torch.where(repeated, points, 0).norm(dim=2) for points in (there - second, back - first)]
    loss = _mean((apart[0] + apart[1]) / 2, repeated[..., 0])
    return loss, repeated.sum() / is_first.sum().clamp(min=1)


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


def _near(batch: Mapping[str, Tensor], radius: float) -> Tensor:
    """bool (pairs, n, n): other points of the same photo within `radius` px in either view."""
    first, second = (torch.cdist(points, points) < radius for points in batch["points"].chunk(2))
    others = ~torch.eye(first.shape[1], dtype=torch.bool, device=first.device)
    return (first | second) & others
