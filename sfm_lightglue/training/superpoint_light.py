"""`training=superpoint_light`: descriptors from hypercolumns in the space of ALIKED's, and keypoints, that hold under hard light.

photos -> clean views with the teacher's descriptors and the start network's keypoints -> the same views under changed light ->
the last encoder layers, the keypoint head and the descriptor head learn together.

The losses:

- Distillation: the descriptor is the teacher's of the clean view (1 - cosine), and nearest to it among all of the view (InfoNCE,
  van den Oord et al., arXiv:1807.03748).
- Contrast: descriptors of one point in both views distinguish it from all others of the example.
- Keypoints: the classes of each cell have the probabilities that a trained network gives them in the clean view (Hinton et al.,
  arXiv:1503.02531).
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from sfm_lightglue.features.extractor import Extractor
from sfm_lightglue.features.superpoint import SuperPointExtractor, SuperPointOptions
from sfm_lightglue.matches.matcher import Matcher
from sfm_lightglue.networks.hypercolumns import hypercolumns
from sfm_lightglue.networks.precision import check_precision, exact_unless_chosen, network_dtype
from sfm_lightglue.networks.superpoint import SuperPoint, SuperPointOutput, load_superpoint, with_hypercolumns
from sfm_lightglue.networks.weights import HYPERCOLUMNS, WeightsRecord, load_weights
from sfm_lightglue.training.curves import History
from sfm_lightglue.training.export import (
    PhotoSplit,
    check_licence,
    common_metadata,
    save_weights,
    split_photos,
    training_settings,
)
from sfm_lightglue.training.hard_light import LightRange, change_light
from sfm_lightglue.training.light_pairs import ExampleRecipe, LightPairOptions, LightPairs, choose_photos, prepare_examples
from sfm_lightglue.training.loop import MuonLoopOptions, TrainingRun, seeded_generator, training_dtype
from sfm_lightglue.training.photometric import PhotometricRange, change_photos
from sfm_lightglue.training.photos import prepare_photos, read_photo, write_index
from sfm_lightglue.training.student import masked_mean
from sfm_lightglue.training.superpoint import METADATA
from sfm_lightglue.training.teacher import TeacherOptions
from sfm_lightglue.training.validation import ValidationOptions, ViewPair, make_view_pairs, validate

TRAINED = {"head": ("head.",), "last_layers": ("head.", "conv3", "conv4", "convP")}
"""Choices of `training.trained` -> the beginnings of the names of parameters that learn."""
HIDDEN = ("head.layers.0", "head.layers.3", "conv3a", "conv3b", "conv4a", "conv4b", "convPa")
"""Layers between others, which Muon trains."""
STATISTICS_BATCHES = 12
"""Batches from which the mean and scale of hypercolumns are measured."""


@dataclass(frozen=True)
class LightLossOptions:
    """Options; configs/training holds the values."""

    distillation: float
    """Weight of 1 - cosine between a descriptor and the teacher's."""
    teacher_contrast: float
    """Weight of InfoNCE between the descriptors of a view and the teacher's."""
    contrast: float
    """Weight of InfoNCE between the descriptors of both views."""
    keypoints: float
    """Weight of the divergence of the classes of cells."""
    temperature: float
    """Of both InfoNCE losses."""
    same_point: float
    """Points nearer than this, px, in either view are not each other's negatives."""
    unsure: float
    """Cosine of the teacher's descriptors of a point in both views below which its contrast does not count: one of the views does
    not show the point. The weight rises to 1 at `sure`."""
    sure: float
    jitter: float
    """Standard deviation, px, of the student's positions around the points: keypoints are not found again exactly."""


@dataclass(frozen=True)
class SuperPointLightTraining:
    """Options; configs/training holds the values."""

    name: str
    seed: int
    precision: str
    """Precision of the network's convolutions during training: `float32`, or `low`, which is 16 bit if that is faster on the
    device."""
    start: str
    """Weights to start from, a name or a file. Without a descriptor head for hypercolumns they get one with random weights."""
    keypoints: str | None
    """Weights whose keypoints in the clean views are learnt under changed light. None: the start's."""
    trained: str
    """`head`, or `last_layers`: also blocks 3 and 4 of the encoder and the keypoint head."""
    licence: str
    """Licence of the trained weights."""
    commit: str | None
    """Commit of the code, recorded in the exported file."""
    teacher: TeacherOptions
    views: LightPairOptions
    light: LightRange
    light_share: float
    """Share of the views whose light is changed."""
    photometric: PhotometricRange
    losses: LightLossOptions
    loop: MuonLoopOptions
    validation: ValidationOptions

    def __post_init__(self) -> None:
        check_precision(self.precision, "training.precision")
        if self.trained not in TRAINED:
            raise ValueError(f"training.trained must be one of {', '.join(TRAINED)}, found {self.trained}")


class LightStudent(nn.Module):
    """The network with its trained part, in the state in which a step finds it."""

    def __init__(self, network: SuperPoint, trained: str) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(name.startswith(TRAINED[trained]))

    def losses(
        self, batch: Mapping[str, Tensor], options: LightLossOptions, dtype: torch.dtype
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to minimise and the metrics of the curves, for a batch of `LightPairs` with changed `views`."""
        views = batch["views"]
        with torch.autocast(views.device.type, dtype, enabled=dtype != torch.float32):
            output = self.network(views)
            described = self._describe(output, batch["jittered"])
        teacher, is_point = F.normalize(batch["teacher"].float(), dim=2), batch["is_point"]
        both = is_point.repeat(2, 1)
        cosine = masked_mean((described * teacher).sum(dim=2), both)
        near = torch.stack([torch.cdist(points, points) < options.same_point for points in batch["points"]])
        taught, _ = info_nce(described, teacher, both, near, both.float(), options.temperature)
        first, second = described.chunk(2)
        agreement = (teacher.chunk(2)[0] * teacher.chunk(2)[1]).sum(dim=2)
        weight = ((agreement - options.unsure) / (options.sure - options.unsure)).clamp(0, 1) * is_point
        pair_near = near.unflatten(0, (2, -1)).any(dim=0)
        contrast, right = info_nce(first, second, is_point, pair_near, weight, options.temperature)
        keypoints = divergence(output.logits.float(), batch["logits"].float(), batch["cells"])
        loss = options.distillation * (1 - cosine) + options.teacher_contrast * taught + options.contrast * contrast
        loss = loss + options.keypoints * keypoints
        series = masked_mean((described * teacher).sum(dim=2), both & batch["is_series"].repeat(2)[:, None])
        metrics = {"loss": loss, "teacher_cosine": cosine, "series_cosine": series, "teacher_contrast": taught}
        return loss, {**metrics, "contrast": contrast, "top1": right, "keypoint_divergence": keypoints}

    def _describe(self, output: SuperPointOutput, points: Tensor) -> Tensor:
        """Descriptors float32 (b, n, d) at points (b, n, 2)."""
        levels = [level.float() for level in output.levels]
        columns = [hypercolumns([level[i] for level in levels], some) for i, some in enumerate(points)]
        assert self.network.head is not None
        return cast(Tensor, self.network.head(torch.stack(columns)))


def info_nce(
    first: Tensor, second: Tensor, is_point: Tensor, near: Tensor, weight: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Symmetric InfoNCE of descriptors (b, n, d) within each of b sets, and the share of points whose nearest is right.

    Args:
        first: row i belongs to row i of `second`.
        second: the other descriptors.
        is_point: bool (b, n); other rows do not count.
        near: bool (b, n, n); such entries, but for the diagonal, are no negatives.
        weight: (b, n) of the points in the mean.
        temperature: of the softmax.
    """
    similarity = first @ second.mT / temperature
    own = torch.eye(similarity.shape[1], dtype=torch.bool, device=similarity.device)
    left_out = (near | ~is_point[:, None] | ~is_point[:, :, None]) & ~own
    similarity = similarity.masked_fill(left_out, -1e4)
    diagonal = similarity.diagonal(dim1=1, dim2=2)
    loss = (similarity.logsumexp(dim=2) + similarity.logsumexp(dim=1)) / 2 - diagonal
    total = weight.sum().clamp(min=1)
    right = (similarity.argmax(dim=2) == torch.arange(similarity.shape[1], device=similarity.device)).float()
    return (loss * weight).sum() / total, (right * weight).sum() / total


def divergence(logits: Tensor, targets: Tensor, cells: Tensor) -> Tensor:
    """Kullback-Leibler divergence of the classes of cells from the targets' classes: the mean over the cells that show the photo.

    `logits` and `targets` are (b, 65, hc, wc) before the softmax, `cells` is bool (b, hc, wc).
    """
    return masked_mean(F.kl_div(logits.log_softmax(dim=1), targets.softmax(dim=1), reduction="none").sum(dim=1), cells)


@dataclass(frozen=True, eq=False)
class SuperPointLightTask:
    """The task of training a SuperPoint with hypercolumns. `create` prepares all its parts."""

    use: ClassVar[str] = "features=superpoint features.weights={path}"

    options: SuperPointLightTraining
    features: SuperPointOptions
    device: str
    matcher: Matcher
    origins: Sequence[WeightsRecord]
    """The weights that this training depends on: of the teacher, of the network whose keypoints are learnt, and of the start."""
    photos: PhotoSplit
    data: Dataset[dict[str, Tensor]]
    validation_pairs: Sequence[ViewPair]
    module: LightStudent

    @classmethod
    def create(cls, options: SuperPointLightTraining, run: TrainingRun) -> SuperPointLightTask:
        """The task, ready to train. The examples are written to the output folder, which takes long.

        Files that are already there are used again.

        Raises: ValueError if a licence forbids the training, or if no photo is left to train on.
        """
        state, record = load_weights(options.start)
        keypoints = options.keypoints or options.start
        origins = [load_weights(options.teacher.weights)[1], load_weights(keypoints)[1], record]
        check_licence(options.licence, origins)  # before the long work
        files = prepare_photos(run.images, run.names, run.output / "photos", options.teacher.photo_size, run.processes)
        photos = split_photos(run.images, sorted(files), options.validation.photos, options.seed)
        chosen = choose_photos(photos.training, options.views, options.seed)
        recipe = ExampleRecipe(run.images, options.teacher, keypoints, options.views, options.seed)
        examples = prepare_examples(chosen, recipe, run.output / "examples", run.processes)
        index = write_index(run.output / "index.json", [[path] for path in examples])
        data = LightPairs(index, options.views, options.seed)
        torch.manual_seed(options.seed)
        network = with_hypercolumns(load_superpoint({key: value.float() for key, value in state.items()}))
        student = LightStudent(network, options.trained)
        if not any(key.startswith("head.") for key in state):
            _standardise(student, data)
        pairs = make_view_pairs([read_photo(files[name]) for name in photos.held_out], options.validation, options.seed)
        features = replace(run.features, enlarge_max=1.0, precision=exact_unless_chosen(run.features.precision))
        return cls(options, features, run.device, run.create_matcher(), origins, photos, data, pairs, student)

    @property
    def hidden(self) -> Sequence[str]:
        """Names of the kernels that Muon trains."""
        names = [f"{name}.weight" for name in HIDDEN if name.startswith(TRAINED[self.options.trained])]
        return [f"network.{name}" for name in names]

    @property
    def settings(self) -> Mapping[str, Any]:
        """Everything that decides the result, except the number of steps."""
        return training_settings(self.options, self.photos, self.origins)

    def losses(self, item: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to minimise and the metrics of the curves, for item `step` of `data` on the device."""
        options, generator = self.options, seeded_generator(self.device, self.options.seed, step)
        clean = item["views"].float() / 255
        is_hard = torch.rand(len(clean), 1, 1, 1, generator=generator, device=clean.device) < options.light_share
        views = torch.where(is_hard, change_light(clean, generator, options.light), clean)
        views = change_photos(views, generator, options.photometric)
        moved = torch.randn(item["points"].shape, generator=generator, device=clean.device) * options.losses.jitter
        batch = {**item, "views": views, "jittered": item["points"] + moved}
        return self.module.losses(batch, options.losses, training_dtype(options.precision, self.device))

    def validate(self, module: nn.Module) -> dict[str, float]:
        """Metrics of a state of `module` on the photos that are held out."""
        network = copy.deepcopy(cast(LightStudent, module).network).eval()
        network.lower(network_dtype(self.features.precision, self.device))
        record = WeightsRecord("trained", "", "", self.options.licence, False, METADATA)
        extractor = cast(Extractor, SuperPointExtractor(self.features, network, self.device, record))
        return validate(extractor, self.matcher, self.validation_pairs)

    def export(self, module: nn.Module, path: Path, steps: int, history: History) -> None:
        """Writes half-precision weights. The metadata records where they come from."""
        metadata = {
            **METADATA,
            "descriptors": HYPERCOLUMNS,
            **common_metadata(self.options, self.photos, steps, history),
            "origins": ", ".join(f"{record.name} {record.sha256}" for record in self.origins),
            "start_record": json.dumps(self.origins[-1].metadata, sort_keys=True),
        }
        save_weights(cast(LightStudent, module).network, path, metadata)


@torch.no_grad()
def _standardise(student: LightStudent, data: Dataset[dict[str, Tensor]]) -> None:
    """Sets the mean and scale of the hypercolumns from the first clean batches."""
    network, columns = student.network.eval(), []
    for step in range(STATISTICS_BATCHES):
        batch = data[step]
        output = network(batch["views"].float() / 255)
        for i, points in enumerate(batch["points"]):
            some = points[batch["is_point"].repeat(2, 1)[i]]
            columns.append(hypercolumns([level[i] for level in output.levels], some))
    variance, mean = torch.var_mean(torch.cat(columns), dim=0)
    assert network.head is not None
    network.head.mean.copy_(mean)
    network.head.scale.copy_(1 / (variance.sqrt() + 1e-3))
