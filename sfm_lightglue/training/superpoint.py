"""`training=superpoint`: an open SuperPoint from a folder of photos.

photos -> teacher's targets (keypoints and descriptors) -> pairs of views -> student -> weights without batch normalisation.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from sfm_lightglue.features.extractor import Extractor
from sfm_lightglue.features.superpoint import SuperPointExtractor, SuperPointOptions
from sfm_lightglue.matches.matcher import Matcher
from sfm_lightglue.networks.aliked import ALIKED
from sfm_lightglue.networks.precision import check_precision, exact_unless_chosen, network_dtype
from sfm_lightglue.networks.superpoint import SuperPoint, fold_batch_norm, load_superpoint, with_octaves
from sfm_lightglue.networks.weights import WeightsRecord, load_weights
from sfm_lightglue.training.curves import History
from sfm_lightglue.training.export import (
    PhotoSplit,
    blend,
    check_licence,
    common_metadata,
    save_weights,
    split_photos,
    training_settings,
)
from sfm_lightglue.training.loop import MuonLoopOptions, TrainingRun, seeded_generator, training_dtype
from sfm_lightglue.training.photos import prepare_photos, read_photo, write_index
from sfm_lightglue.training.student import LossOptions, Student
from sfm_lightglue.training.teacher import TeacherOptions, describe_views, load_teacher, prepare_targets, read_targets
from sfm_lightglue.training.validation import ValidationOptions, ViewPair, make_view_pairs, validate
from sfm_lightglue.training.views import PairsOfViews, ViewOptions, make_views

METADATA = {"network": "SuperPoint", "descriptor_sampling": "centred"}
"""Metadata of all weights that are trained here. `sample_descriptors` explains the sampling."""

HIDDEN_LAYERS = ("1b", "2a", "2b", "3a", "3b", "4a", "4b", "Pa", "Da")
"""All convolutions except the first and the last ones."""


@dataclass(frozen=True)
class SuperPointTraining:
    """Options; configs/training holds the values."""

    name: str
    seed: int
    precision: str
    """Precision of the network's convolutions during training: `float32`, or `low`, which is 16 bit if that is faster on the
    device."""
    start: str | None
    """Weights to start from, a name or a file. None starts from random weights."""
    start_share: float
    """Weight of the start in the exported average of weights; the rest is the trained network, as for LightGlue."""
    octaves: int
    """Number of octaves of `SuperPoint`. More than 1 needs `start`, and trains the descriptor head alone."""
    licence: str
    """Licence of the trained weights."""
    commit: str | None
    """Commit of the code, recorded in the exported file."""
    teacher: TeacherOptions
    views: ViewOptions
    losses: LossOptions
    loop: MuonLoopOptions
    validation: ValidationOptions

    def __post_init__(self) -> None:
        check_precision(self.precision, "training.precision")
        if not 0 <= self.start_share < 1 or (self.start is None and self.start_share > 0):
            raise ValueError(
                "training.start_share must be at least 0 and below 1, and 0 without training.start, "
                f"found {self.start_share} and training.start={self.start}"
            )
        if self.octaves < 1 or (self.start is None and self.octaves > 1):
            raise ValueError(
                f"training.octaves must be 1 or more, and 1 without training.start, found {self.octaves} and "
                f"training.start={self.start}"
            )


@dataclass(frozen=True, eq=False)
class SuperPointTask:
    """The task of training a SuperPoint. `create` prepares all its parts."""

    use: ClassVar[str] = "features=superpoint features.weights={path}"

    options: SuperPointTraining
    features: SuperPointOptions
    """Options for extracting the student's keypoints, for the losses and the validation."""
    device: str
    matcher: Matcher
    """Matches the features of the validation photos."""
    origins: Sequence[WeightsRecord]
    """The weights that this training depends on: the teacher's, then the start weights if there are any."""
    start: SuperPoint | None
    photos: PhotoSplit
    data: Dataset[dict[str, Tensor]]
    validation_pairs: Sequence[ViewPair]
    module: Student
    teacher: ALIKED | None
    """Describes the views of natural pairs; None if there are no natural pairs."""

    @classmethod
    def create(cls, options: SuperPointTraining, run: TrainingRun) -> SuperPointTask:
        """The task, ready to train. Decoded photos and the teacher's targets are written to the output folder, which takes long.

        Files that are already there are used again.

        Raises: ValueError if a licence forbids the training, or if no photo is left to train on.
        """
        matcher = run.create_matcher()
        features = replace(
            run.features, enlarge_max=1.0, precision=exact_unless_chosen(run.features.precision)
        )  # Enlarged views would not show what the losses see.
        origins = [load_weights(options.teacher.weights)[1]]
        start: SuperPoint | None = None
        if options.start is not None:
            state, record = load_weights(options.start)
            start = with_octaves(load_superpoint({key: value.float() for key, value in state.items()}), options.octaves)
            origins.append(record)
        check_licence(options.licence, origins)  # before the long work
        files = prepare_photos(run.images, run.names, run.output / "photos", options.teacher.photo_size, run.processes)
        targets = prepare_targets(
            run.images,
            sorted(files),
            run.output / "teacher",
            options.teacher,
            seed=options.seed,
            processes=run.processes,
            device=run.device,
        )
        readable = sorted(targets)
        photos = split_photos(run.images, readable, options.validation.photos, options.seed)
        index = write_index(run.output / "index.json", [(files[name], targets[name]) for name in photos.training])
        data = PairsOfViews(index, options.teacher, options.views, options.seed)
        held_out = [read_photo(files[name]) for name in photos.held_out]
        pairs = make_view_pairs(held_out, options.validation, options.seed)
        student = _create_student(options, read_targets(targets[readable[0]]).descriptors.shape[1], start, data)
        teacher = load_teacher(options.teacher, run.device) if options.views.natural_pairs else None
        return cls(options, features, run.device, matcher, origins, start, photos, data, pairs, student, teacher)

    @property
    def hidden(self) -> Sequence[str]:
        """Names of the kernels that Muon trains."""
        return [f"network.conv{name}.weight" for name in HIDDEN_LAYERS if self.options.octaves == 1 or name == "Da"]

    @property
    def settings(self) -> Mapping[str, Any]:
        """Everything that decides the result, except the number of steps."""
        return training_settings(self.options, self.photos, self.origins)

    def losses(self, item: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to minimise and the metrics of the curves, for item `step` of `data` on the device."""
        batch = make_views(item, self.options.views, seeded_generator(self.device, self.options.seed, step))
        if self.teacher is not None:
            natural = batch["is_natural"].repeat(2)
            batch["teacher"][natural] = describe_views(self.teacher, batch["views"][natural], batch["points"][natural])
        dtype = training_dtype(self.options.precision, self.device)
        return self.module.losses(batch, self.options.losses, self.features, dtype)

    def validate(self, module: nn.Module) -> dict[str, float]:
        """Metrics of a state of `module` on the photos that are held out."""
        network = self._folded(module)
        network.lower(network_dtype(self.features.precision, self.device))
        network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        record = WeightsRecord("trained", "", "", self.options.licence, False, METADATA)
        extractor = cast(Extractor, SuperPointExtractor(self.features, network, self.device, record))
        return validate(extractor, self.matcher, self.validation_pairs)

    def export(self, module: nn.Module, path: Path, steps: int, history: History) -> None:
        """Writes half-precision weights under SuperPoint's published keys. The metadata records where they come from.

        The linear map to the teacher's descriptors is written beside them, as `to_teacher.safetensors`.
        """
        metadata = {
            **METADATA,
            **common_metadata(self.options, self.photos, steps, history),
            "origins": ", ".join(f"{record.name} {record.sha256}" for record in self.origins),
        }
        if self.start is not None:
            metadata["start_record"] = json.dumps(self.origins[-1].metadata, sort_keys=True)
        save_weights(self._folded(module), path, metadata)
        metadata["network"] = "linear map of descriptors to the teacher's"
        save_weights(cast(Student, module).to_teacher, path.with_name("to_teacher.safetensors"), metadata)

    def _folded(self, module: nn.Module) -> SuperPoint:
        """The network to export, on the CPU: without batch normalisation, and blended with the start by `start_share`."""
        network = cast(Student, module).network
        folded = (fold_batch_norm(network) if network.batch_norm else copy.deepcopy(network)).cpu().eval()
        if self.start is not None:
            folded.load_state_dict(blend(folded.state_dict(), self.start.state_dict(), self.options.start_share))
        return folded


def _create_student(
    options: SuperPointTraining, teacher_size: int, start: SuperPoint | None, data: Dataset[dict[str, Tensor]]
) -> Student:
    """A student with random weights, drawn by the seed, or one that continues from `start`."""
    torch.manual_seed(options.seed)
    student = Student(teacher_size, options.losses.temperature)
    if start is not None:
        student.start_from(start, make_views(data[0], options.views, seeded_generator("cpu", options.seed, 0)))
    return student
