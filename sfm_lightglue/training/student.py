"""SuperPoint as a student of ALIKED: its losses.

- Keypoints: the class of each cell (DeTone et al., arXiv:1712.07629, section 3.4, here with probabilities as targets).
- Reprojection: a keypoint has the same position in two views (like ALIKE's loss, Zhao et al., arXiv:2112.02906).
- Contrast: a descriptor distinguishes its point from all others of the batch (InfoNCE, van den Oord et al., arXiv:1807.03748, in
  both directions).
- Distillation: a linear map predicts the teacher's descriptors from the student's.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfm_lightglue.features.superpoint import SuperPointOptions
from sfm_lightglue.networks.heatmaps import non_maximum_suppression, strongest_keypoints
from sfm_lightglue.networks.superpoint import CELL, DESCRIPTOR_SIZE, SuperPoint, sample_descriptors, unfold_batch_norm
from sfm_lightglue.training.homographies import invert, warp

NOT_SIMILAR = -1e30
"""Far below all scalar products, but finite, so that a row without any other point has a gradient of 0 instead of nan."""
RIDGE = 1e-5
"""Variance below which a direction hardly counts in a linear map of descriptors. Elements of unit-length descriptors have a
variance of about 1 / 256."""


@dataclass(frozen=True)
class LossOptions:
    """Options; configs/training holds the values."""

    keypoints: float
    """Weight of the loss of the keypoint head."""
    location: float
    """Weight of the loss of a keypoint's pixel within its cell. It is a mean over keypoints instead of cells."""
    reprojection: float
    """Weight of the distance, px, between a keypoint's positions in two views. It only disturbs a network that finds few
    keypoints yet."""
    contrast: float
    """Weight of InfoNCE."""
    taught_contrast: float
    """Weight of the contrast loss on natural pairs, with the teacher's similarities as the target instead of the right point. The
    target is the softmax of the teacher's similarities at `teacher_temperature`."""
    teacher_temperature: float
    distillation: float
    """Weight of 1 - cosine between the predicted and the teacher's descriptor."""
    same_point: float
    """Maximum distance, px, at which keypoints of two views are the same point. In the contrast loss, points nearer than this to
    a point do not count as its negatives."""
    temperature: float
    """Temperature of InfoNCE at the start; it is learnt."""


class Student(nn.Module):
    """SuperPoint and the parameters that only training needs. It has batch normalisation unless it has octaves."""

    def __init__(self, teacher_size: int, temperature: float) -> None:
        super().__init__()
        # In this memory format batch normalisation is several times faster on a GPU.
        self.network = SuperPoint(batch_norm=True).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.to_teacher = nn.Linear(DESCRIPTOR_SIZE, teacher_size)
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)))

    @torch.no_grad()
    def start_from(self, network: SuperPoint, batch: Mapping[str, Tensor]) -> None:
        """Copies a trained network. The statistics of its layers and the map to the teacher's descriptors come from `batch`.

        In a network with octaves only the descriptor head is trained. It gets no batch normalisation, because images differ in
        brightness and roughness from octave to octave, and so would the statistics.
        """
        if network.octaves:
            self.network = copy.deepcopy(network)
            for name, parameter in self.network.named_parameters():
                parameter.requires_grad_(name.startswith(("convDa", "convDb", "octaves")))
        else:
            self.network = unfold_batch_norm(network, batch["views"])
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        descriptors = sample_descriptors(batch["points"], network(batch["views"]).descriptors, centred=True)
        is_point = batch["is_point"].repeat(2, 1)
        weight, bias = fit_linear_map(descriptors[is_point], batch["teacher"][is_point])
        self.to_teacher.weight.copy_(weight)
        self.to_teacher.bias.copy_(bias)

    def losses(
        self, batch: Mapping[str, Tensor], options: LossOptions, detection: SuperPointOptions, dtype: torch.dtype
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to minimise and the metrics of the curves, for a batch of `make_views`.

        `detection` says how keypoints are found for the comparison of positions. The network computes in `dtype`.
        """
        views = batch["views"]
        with torch.autocast(views.device.type, dtype, enabled=dtype != torch.float32):
            output = self.network(views)
        logits, targets, weights = output.logits.float(), batch["targets"], batch["cell_weights"]
        keypoints, location = keypoint_loss(logits, targets, weights), location_loss(logits, targets, weights)
        positions, found = find_keypoints(output.scores.float(), weights, batch["points"].shape[1], detection)
        reprojection, repeated = reprojection_loss(positions, found, batch["between"], options.same_point)
        contrast, taught, accuracy, cosine = self._compare_descriptors(output.descriptors.float(), batch, options)
        loss = options.keypoints * keypoints + options.location * location + options.reprojection * reprojection
        loss = loss + options.contrast * contrast + options.taught_contrast * taught + options.distillation * (1 - cosine)
        metrics = {"loss": loss, "keypoint_loss": keypoints, "location_loss": location, "reprojection_px": reprojection}
        metrics |= {
            "repeated": repeated,
            "contrast_loss": contrast,
            "taught_contrast_loss": taught,
            "top1": accuracy,
            "teacher_cosine": cosine,
        }
        return loss, {**metrics, "scale": self.log_scale.exp()}

    def _compare_descriptors(
        self, dense: Tensor, batch: Mapping[str, Tensor], options: LossOptions
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """InfoNCE, `taught_loss`, the share of points whose nearest descriptor is right, and the mean cosine with the teacher.

        A batch without points gives losses of 0, and 1 for the share and the cosine.
        """
        sampled = sample_descriptors(batch["points"], dense, centred=True)
        is_point, near = batch["is_point"], _near(batch, options.same_point)
        similarity = similarities(sampled * self.log_scale.exp().sqrt(), is_point, near)
        contrast, accuracy = contrastive_loss(similarity, is_point)
        taught = contrast.new_zeros(())
        if options.taught_contrast > 0:
            chosen, natural = batch["is_natural"], batch["is_natural"].repeat(2)
            scales = self.log_scale.exp().sqrt(), options.teacher_temperature**-0.5
            mine, theirs = (
                similarities(descriptors[natural] * scale, is_point[chosen], near[chosen])
                for descriptors, scale in zip((sampled, batch["teacher"]), scales, strict=True)
            )
            taught = taught_loss(mine, theirs, is_point[chosen])
        cosines = F.cosine_similarity(self.to_teacher(sampled), batch["teacher"], dim=2)
        return contrast, taught, accuracy, 1 - masked_mean(1 - cosines, is_point.repeat(2, 1))


def keypoint_loss(logits: Tensor, targets: Tensor, cell_weights: Tensor) -> Tensor:
    """Cross-entropy between targets and logits (b, 65, hc, wc): the mean over cells, weighted by `cell_weights` (b, hc, wc)."""
    loss = F.cross_entropy(logits, targets, reduction="none")
    return (loss * cell_weights).sum() / cell_weights.sum().clamp(min=1)


def location_loss(logits: Tensor, targets: Tensor, cell_weights: Tensor) -> Tensor:
    """Cross-entropy of the 64 pixels of cells with a keypoint: the mean over keypoints, weighted by their probabilities.

    The arguments are as in `keypoint_loss`.

    Few cells have keypoints, so `keypoint_loss` rewards the right pixel little, compared with the right cell.
    """
    pixels = (targets * cell_weights[:, None])[:, :-1]
    return -(pixels * logits[:, :-1].log_softmax(dim=1)).sum() / pixels.sum().clamp(min=1)


def find_keypoints(
    heatmaps: Tensor, cell_weights: Tensor, max_keypoints: int, options: SuperPointOptions
) -> tuple[Tensor, Tensor]:
    """The strongest keypoints float32 (b, max_keypoints, 2), differentiable, and bool (b, max_keypoints): True for real rows.

    They come from heat maps (b, h, w), in cells with a weight above 0 in `cell_weights` (b, hc, wc).
    """
    peaks = non_maximum_suppression(heatmaps.detach(), options.nms_radius)
    peaks = peaks * cell_weights.repeat_interleave(CELL, dim=1).repeat_interleave(CELL, dim=2)
    keypoints, scores = strongest_keypoints(peaks, heatmaps, max_keypoints, border=options.border, subpixel=True)
    return keypoints, scores > options.detection_threshold


def reprojection_loss(positions: Tensor, found: Tensor, between: Tensor, same_point: float) -> tuple[Tensor, Tensor]:
    """The mean distance, px, between the positions of the same keypoint in two views, and the share of repeated keypoints.

    The same keypoint means mutual nearest neighbours within `same_point` px. `positions` (2 pairs, n, 2) and `found` come from
    `find_keypoints`: the first views of all pairs, then their partners. The homographies `between` are (pairs, 3, 3).
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
    loss = masked_mean((apart[0] + apart[1]) / 2, repeated[..., 0])
    return loss, repeated.sum() / is_first.sum().clamp(min=1)


def similarities(descriptors: Tensor, is_point: Tensor, left_out: Tensor) -> Tensor:
    """(pairs n, pairs n): scalar products between the descriptors (2 pairs, n, d) of all first views and of all second views.

    Rows and columns that are not a point, by `is_point` (pairs, n), are set to `NOT_SIMILAR`. So are the entries of each pair in
    `left_out` (pairs, n, n), which count neither as the same nor as different points. The diagonal is kept.
    """
    first, second = (side.flatten(0, 1) for side in descriptors.chunk(2))
    similarity = first @ second.T
    own = similarity.diagonal().clone()
    of_pairs = similarity.unflatten(0, is_point.shape).unflatten(2, is_point.shape).diagonal(dim1=0, dim2=2)  # n n pairs
    of_pairs.masked_fill_(left_out.permute(1, 2, 0), NOT_SIMILAR)
    valid = is_point.flatten()
    similarity = similarity.masked_fill(~(valid[:, None] & valid), NOT_SIMILAR)
    return similarity.diagonal_scatter(own)


def contrastive_loss(similarity: Tensor, is_point: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric InfoNCE of the table from `similarities`, and the share of rows with the largest value in the right column.

    Row i belongs to column i, and `is_point` is (pairs, n). Rows that are not a point do not count.
    """
    valid, own = is_point.flatten(), similarity.diagonal()
    loss = (similarity.logsumexp(dim=1) - own + similarity.logsumexp(dim=0) - own) / 2
    label = torch.arange(len(valid), device=valid.device)
    return masked_mean(loss, valid), 1 - masked_mean((similarity.argmax(dim=1) != label).float(), valid)


def taught_loss(similarity: Tensor, teacher_similarity: Tensor, is_point: Tensor) -> Tensor:
    """Symmetric Kullback-Leibler divergence between the softmax of both networks' similarities: the mean over points.

    Both tables come from `similarities`, and `is_point` is (pairs, n).
    """
    valid = is_point.flatten()
    both = (
        F.kl_div(mine.log_softmax(dim=1), theirs.log_softmax(dim=1), reduction="none", log_target=True).sum(dim=1)
        for mine, theirs in ((similarity, teacher_similarity), (similarity.T, teacher_similarity.T))
    )
    return masked_mean(sum(both, similarity.new_zeros(())) / 2, valid)


def masked_mean(values: Tensor, counted: Tensor) -> Tensor:
    """Mean over the counted elements; 0 if none is counted. Selecting the elements instead would wait for the GPU."""
    return torch.where(counted, values, 0).sum() / counted.sum().clamp(min=1)


def _near(batch: Mapping[str, Tensor], radius: float) -> Tensor:
    """bool (pairs, n, n): True for other points of the same photo within `radius` px in either view."""
    first, second = (torch.cdist(points, points) < radius for points in batch["points"].chunk(2))
    others = ~torch.eye(first.shape[1], dtype=torch.bool, device=first.device)
    return (first | second) & others


def fit_linear_map(inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Weight (e, d) and bias (e,) that predict the descriptors `targets` (n, e) from the descriptors `inputs` (n, d).

    It is a least-squares solution with the same bits in each process. torch's lstsq does not give that: some directions hardly
    vary, and their weights would be noise.
    """
    extended = F.pad(inputs, (0, 1), value=1.0).double()
    gram = extended.T @ extended + RIDGE * len(extended) * torch.eye(extended.shape[1], dtype=torch.double, device=inputs.device)
    solution = torch.linalg.solve(gram, extended.T @ targets.double()).to(inputs.dtype)
    return solution[:-1].T, solution[-1]
