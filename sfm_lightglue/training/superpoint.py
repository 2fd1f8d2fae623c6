"""`training=superpoint`: an open SuperPoint from a folder of photos.

photos -> lessons (the teacher's keypoints and descriptors) -> pairs of views -> student -> weights without batch normalisation.
"""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from sfm_lightglue import __version__
from sfm_lightglue.features.extractor import Extractor
from sfm_lightglue.features.superpoint import SuperPointExtractor
from sfm_lightglue.networks.precision import check_precision, network_dtype
from sfm_lightglue.networks.superpoint import SuperPoint, fold_batch_norm, load_superpoint, with_octaves
from sfm_lightglue.networks.weights import WeightsRecord, load_weights
from sfm_lightglue.training.curves import History
from sfm_lightglue.training.export import blend, check_licence, hash_of_photos, recipe, save_weights, split
from sfm_lightglue.training.loop import MuonLoopOptions, TrainingRun, seeded_generator
from sfm_lightglue.training.photos import prepare_photos, read_photo, write_index
from sfm_lightglue.training.student import LossOptions, Student
from sfm_lightglue.training.teacher import TeacherOptions, describe_views, load_teacher, prepare_lessons, read_lesson
from sfm_lightglue.training.validation import ValidationOptions, make_view_pairs, validate
from sfm_lightglue.training.views import PairsOfViews, ViewOptions, make_views

logger = logging.getLogger(__name__)

METADATA = {"network": "SuperPoint", "descriptor_sampling": "centred"}
"""Of all weights trained here: see `sample_descriptors`."""

HIDDEN_LAYERS = ("1b", "2a", "2b", "3a", "3b", "4a", "4b", "Pa", "Da")
"""All convolutions but the first and the last ones."""


@dataclass(frozen=True)
class SuperPointTraining:
    """Options; the values stand in configs/training."""

    name: str
    seed: int
    precision: str
    """Of the network's convolutions while training: `float32`, or `low`, 16 bit where the device is faster so."""
    start: str | None
    """Weights to go on from, a name or a file; None: from random ones."""
    start_share: float
    """Of these weights in those that are exported, the rest is what was learnt, as with LightGlue."""
    octaves: int
    """Of `SuperPoint`; with more than 1, which wants a start, the head of the descriptors alone is trained."""
    licence: str
    """Under which the trained weights are to be used."""
    commit: str | None
    """Of the code, for the record in the exported file."""
    teacher: TeacherOptions
    views: ViewOptions
    losses: LossOptions
    loop: MuonLoopOptions
    validation: ValidationOptions

    def __post_init__(self) -> None:
        check_precision(self.precision, "training.precision")
        if not 0 <= self.start_share < 1 or (self.start is None and self.start_share > 0):
            raise ValueError(
                f"training.start_share must lie in 0..1, below 1, and be 0 without training.start, found {self.start_share} and "
                f"training.start={self.start}"
            )
        if self.octaves < 1 or (self.start is None and self.octaves > 1):
            raise ValueError(
                f"training.octaves must be 1 or more, and 1 without training.start, found {self.octaves} and "
                f"training.start={self.start}"
            )


class SuperPointTask:
    """What the loop trains."""

    use = "features=superpoint features.weights={path}"

    def __init__(self, options: SuperPointTraining, run: TrainingRun) -> None:
        self.options, self.device, self.matcher = options, run.device, run.create_matcher()
        self.features = replace(run.features, enlarge_max=1.0)  # views are what they are
        self.origins = [load_weights(options.teacher.weights)[1]]
        self.start: SuperPoint | None = None
        if options.start is not None:
            state, record = load_weights(options.start)
            self.start = with_octaves(load_superpoint({key: value.float() for key, value in state.items()}), options.octaves)
            self.origins.append(record)
        check_licence(options.licence, self.origins)  # before the long work
        photos = prepare_photos(run.images, run.names, run.output / "photos", options.teacher.photo_size, run.processes)
        lessons = prepare_lessons(
            run.images,
            sorted(photos),
            run.output / "teacher",
            options.teacher,
            seed=options.seed,
            processes=run.processes,
            device=run.device,
        )
        readable = sorted(lessons)
        held_out, train = split(readable, options.validation.photos, options.seed)
        self.data_sha256, self.num_photos = hash_of_photos(run.images, train), len(train)
        index = write_index(run.output / "index.json", [(photos[name], lessons[name]) for name in train])
        self.data: Dataset[dict[str, Tensor]] = PairsOfViews(index, options.teacher, options.views, options.seed)
        self.validation_pairs = make_view_pairs([read_photo(photos[name]) for name in held_out], options.validation, options.seed)
        torch.manual_seed(options.seed)
        teacher_size = read_lesson(lessons[readable[0]]).descriptors.shape[1]
        student = Student(teacher_size, options.losses.temperature)
        if self.start is not None:
            student.start_from(self.start, make_views(self.data[0], options.views, seeded_generator("cpu", options.seed, 0)))
        self.module: nn.Module = student
        self.teacher = load_teacher(options.teacher, run.device) if options.views.natural_pairs else None
        self.hidden: Sequence[str] = [
            f"network.conv{name}.weight" for name in HIDDEN_LAYERS if options.octaves == 1 or name == "Da"
        ]
        self.settings: Mapping[str, Any] = {
            **recipe(options),
            "data": self.data_sha256,
            "weights": [record.sha256 for record in self.origins],
        }

    def losses(self, item: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        batch = make_views(item, self.options.views, seeded_generator(self.device, self.options.seed, step))
        if self.teacher is not None:
            natural = batch["is_natural"].repeat(2)
            batch["teacher"][natural] = describe_views(self.teacher, batch["views"][natural], batch["points"][natural])
        dtype = network_dtype(self.options.precision, self.device)
        dtype = torch.bfloat16 if dtype == torch.float16 else dtype  # gradients do not underflow there
        return cast(Student, self.module).losses(batch, self.options.losses, self.features, dtype)

    def validate(self, module: nn.Module) -> dict[str, float]:
        network = self._folded(module)
        network.lower(network_dtype(self.features.precision, self.device))
        network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        record = WeightsRecord("trained", "", "", self.options.licence, False, METADATA)
        extractor = cast(Extractor, SuperPointExtractor(self.features, network, self.device, record))
        return validate(extractor, self.matcher, self.validation_pairs)

    def export(self, module: nn.Module, path: Path, steps: int, history: History) -> None:
        """Half precision: SuperPoint's published keys, and in the file's metadata where the weights come from."""
        student = cast(Student, module)
        metadata = {
            **METADATA,
            "origins": ", ".join(f"{record.name} {record.sha256}" for record in self.origins),
            "licence": self.options.licence,
            "recipe": json.dumps(recipe(self.options), sort_keys=True),
            "training_photos": f"{self.num_photos}, sha256 {self.data_sha256}",
            "steps": str(steps),
            "version": __version__,
            "commit": self.options.commit or "unknown",
            "validation": json.dumps(history.last("validation"), sort_keys=True),
        }
        if self.start is not None:
            metadata["start_record"] = json.dumps(self.origins[-1].metadata, sort_keys=True)
        save_weights(self._folded(module), path, metadata)
        metadata["network"] = "linear map of descriptors to the teacher's"
        save_weights(student.to_teacher, path.with_name("to_teacher.safetensors"), metadata)

    def _folded(self, module: nn.Module) -> SuperPoint:
        """The network that is exported, see `start_share`; on the CPU."""
        network = cast(Student, module).network
        folded = (fold_batch_norm(network) if network.batch_norm else copy.deepcopy(network)).cpu().eval()
        if self.start is not None:
            folded.load_state_dict(blend(folded.state_dict(), self.start.state_dict(), self.options.start_share))
        return folded
