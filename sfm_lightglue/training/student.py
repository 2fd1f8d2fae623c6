"""SuperPoint as a student: what it learns from a batch.

Four losses: the keypoints of each cell (DeTone et al., arXiv:1712.07629, section 3.4, here with probabilities as targets), equal
positions for keypoints seen in two views (as ALIKE's reprojection loss, Zhao et al., arXiv:2112.02906), descriptors that tell a
point from all others of the batch (InfoNCE, van den Oord et al., arXiv:1807.03748, both ways), and descriptors from which a
linear map predicts the teacher's.
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
"""Below all scalar products by far, yet finite: a row without any other point gives no gradient, instead of nan."""
RIDGE = 1e-5
"""The variance that counts little in a linear map of descriptors of unit length: that of an element is about 1 / 256."""


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
    taught_contrast: float
    """Weight of the same for natural pairs, with the teacher's answer in the place of the right one: how similar each point is to
    all others in its eyes, through a softmax at `teacher_temperature`."""
    teacher_temperature: float
    distillation: float
    """Weight of 1 - cosine between the predicted and the teacher's descriptor."""
    same_point: float
    """px: keypoints of two views nearer than this are one, and descriptors of others nearer than this are not held against it."""
    temperature: float
    """Of InfoNCE at the start; it is learnt."""


class Student(nn.Module):
    """SuperPoint, with batch normalisation unless it has octaves, and what only training needs."""

    def __init__(self, teacher_size: int, temperature: float) -> None:
        super().__init__()
        # Channels together: on a GPU batch normalisation is several times as fast so.
        self.network = SuperPoint(batch_norm=True).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.to_teacher = nn.Linear(DESCRIPTOR_SIZE, teacher_size)
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)))

    @torch.no_grad()
    def start_from(self, network: SuperPoint, batch: Mapping[str, Tensor]) -> None:
        """Takes over a trained network; statistics of layers and the map to the teacher's descriptors are those of a batch.

        One with octaves stays as it is but for the head of the descriptors: how bright and how rough images are differs from
        octave to octave, so batch normalisation would have to.
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
        weight, bias = linear_map(descriptors[is_point], batch["teacher"][is_point])
        self.to_teacher.weight.copy_(weight)
        self.to_teacher.bias.copy_(bias)

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
        contrast, taught, accuracy, cosine = self._compare_descriptors(output.descriptors.float(), batch, options)
        loss = options.keypoints * keypoints + options.location * location + options.reprojection * reprojection
        loss = loss + options.contrast * contrast + options.taught_contrast * taught + options.distillation * (1 - cosine)
        figures = {"loss": loss, "keypoint_loss": keypoints, "location_loss": location, "reprojection_px": reprojection}
        figures |= {
            "repeated": repeated,
            "contrast_loss": contrast,
            "taught_contrast_loss": taught,
            "top1": accuracy,
            "teacher_cosine": cosine,
        }
        return loss, {**figures, "scale": self.log_scale.exp()}

    def _compare_descriptors(
        self, dense: Tensor, batch: Mapping[str, Tensor], options: LossOptions
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """InfoNCE, the same with the teacher's answers, the share of points that is found, and the mean cosine with the teacher;
        without points nothing is wrong."""
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
        return contrast, taught, accuracy, 1 - _mean(1 - cosines, is_point.repeat(2, 1))


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


def similarities(descriptors: Tensor, is_point: Tensor, left_out: Tensor) -> Tensor:
    """(pairs n, pairs n): scalar products of all descriptors (2 pairs, n, d) of the first views with all of the second ones.

    Rows and columns that are no point, by `is_point` (pairs, n), and what `left_out` (pairs, n, n) names, points of a pair that
    count neither as the same nor as different, are `NOT_SIMILAR`, but for the diagonal.
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
    """Symmetric InfoNCE of `similarities`, where row i belongs to column i, and the share of rows whose largest is the right one.

    Rows that are no point have no part in it.
    """
    valid, own = is_point.flatten(), similarity.diagonal()
    loss = (similarity.logsumexp(dim=1) - own + similarity.logsumexp(dim=0) - own) / 2
    label = torch.arange(len(valid), device=valid.device)
    return _mean(loss, valid), 1 - _mean((similarity.argmax(dim=1) != label).float(), valid)


def taught_loss(similarity: Tensor, answers: Tensor, is_point: Tensor) -> Tensor:
    """Symmetric Kullback-Leibler divergence of the softmax of `similarities` from that of the teacher's; the mean over points."""
    valid = is_point.flatten()
    both = (
        F.kl_div(mine.log_softmax(dim=1), theirs.log_softmax(dim=1), reduction="none", log_target=True).sum(dim=1)
        for mine, theirs in ((similarity, answers), (similarity.T, answers.T))
    )
    return _mean(sum(both, similarity.new_zeros(())) / 2, valid)


def _mean(values: Tensor, counted: Tensor) -> Tensor:
    """Over the elements that are counted, 0 where none is. Without selecting them, whose number a GPU would be waited for."""
    return torch.where(counted, values, 0).sum() / counted.sum().clamp(min=1)


def _near(batch: Mapping[str, Tensor], radius: float) -> Tensor:
    """bool (pairs, n, n): other points of the same photo within `radius` px in either view."""
    first, second = (torch.cdist(points, points) < radius for points in batch["points"].chunk(2))
    others = ~torch.eye(first.shape[1], dtype=torch.bool, device=first.device)
    return (first | second) & others


def linear_map(known: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Weight (e, d) and bias (e,) that predict the descriptors `wanted` (n, e) from those `known` (n, d), by least squares.

    The same bits in each process, which torch's lstsq does not give: some directions hardly vary, and their weights were noise.
    """
    inputs, outputs = F.pad(known, (0, 1), value=1.0).double(), wanted.double()
    gram = inputs.T @ inputs + RIDGE * len(inputs) * torch.eye(inputs.shape[1], dtype=torch.double, device=inputs.device)
    solution = torch.linalg.solve(gram, inputs.T @ outputs).to(known.dtype)
    return solution[:-1].T, solution[-1]
