"""`training=lightglue`: a LightGlue for a SuperPoint, from a folder of photos.

photos -> two views of scenes of planes -> SuperPoint's keypoints -> their true positions in the partner -> labels -> losses after
each layer (arXiv 2306.13643, section 3.4). `warm_start` starts it from ALIKED's LightGlue.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.utils.data import Dataset

from sfm_lightglue.features.extractor import Extractor
from sfm_lightglue.features.superpoint import SuperPointExtractor
from sfm_lightglue.matches.lightglue import LightGlueMatcher, LightGlueOptions
from sfm_lightglue.matches.matcher import Matcher
from sfm_lightglue.networks.heatmaps import non_maximum_suppression, strongest_keypoints
from sfm_lightglue.networks.lightglue import LightGlue
from sfm_lightglue.networks.lightglue_checkpoints import load_lightglue, settings_from_state_dict
from sfm_lightglue.networks.precision import check_precision
from sfm_lightglue.networks.superpoint import octave_to_image
from sfm_lightglue.networks.weights import WeightsRecord, load_weights
from sfm_lightglue.products import Image
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
from sfm_lightglue.training.loop import LoopOptions, TrainingRun, seeded_generator, training_dtype
from sfm_lightglue.training.matching import (
    MatchingLossOptions,
    behind_map,
    label_keypoints,
    matching_losses,
    prediction_scale,
    warm_start,
)
from sfm_lightglue.training.photos import prepare_photos, read_photo, write_index
from sfm_lightglue.training.scenes import SceneOptions, Scenes, make_scenes
from sfm_lightglue.training.student import fit_linear_map
from sfm_lightglue.training.validation import ValidationOptions, ViewPair, make_view_pairs, validate

logger = logging.getLogger(__name__)

TEACHER = "aliked-lightglue"
"""Weights that `teacher_share` blends in."""
MAPPED_PHOTOS = 200
"""Maximum number of photos from which the linear map between the descriptors of two SuperPoints is learnt."""


@dataclass(frozen=True)
class LightGlueTraining:
    """Options; configs/training holds the values."""

    name: str
    seed: int
    precision: str
    """Precision of both networks during training: `float32`, or `low`, which is 16 bit if that is faster on the device."""
    licence: str
    """Licence of the trained weights."""
    commit: str | None
    """Commit of the code, recorded in the exported file."""
    start: str
    """Weights to start from: a LightGlue for the same features, or ALIKED's together with `to_teacher`."""
    to_teacher: str | None
    """File with the linear map from SuperPoint's to ALIKED's descriptors. The training of a SuperPoint with the published
    descriptor head exports it; the open SuperPoint needs none."""
    teacher_share: float
    """Weight of ALIKED's LightGlue, behind the map `to_teacher` if there is one, in the exported average of weights. The rest is
    what `start_share` gives. ALIKED's LightGlue has seen real photo pairs, with changes of light and viewpoint that the scenes
    of planes do not have."""
    start_superpoint: str | None
    """SuperPoint weights that `start` was trained for, if they differ from the ones in use. A linear map from the new
    descriptors to the old ones is then put before the network."""
    start_share: float
    """Weight of the start in the exported average of weights; the rest is the trained network. Averaging keeps what the training
    photos do not show, such as nights (Wortsman et al., "Robust fine-tuning of zero-shot models", arXiv:2109.01903)."""
    photo_size: int
    """Longest side of the photos, px."""
    num_keypoints: tuple[int, ...]
    """Number of keypoints of each view. The steps take these numbers in turn."""
    lost_keypoints: float
    """Maximum share of the keypoints that a view loses; weaker keypoints take their places. Real photos share few keypoints if
    their light or viewpoint differs much, but two views of a flat photo share nearly all."""
    foreign_descriptors: float
    """Maximum weight with which the descriptor of another keypoint is added to each descriptor. Descriptors of real photos agree
    less than descriptors of views of one photo."""
    scenes: SceneOptions
    losses: MatchingLossOptions
    loop: LoopOptions
    validation: ValidationOptions

    def __post_init__(self) -> None:
        check_precision(self.precision, "training.precision")
        for key in ("start_share", "teacher_share", "lost_keypoints"):
            if not 0 <= getattr(self, key) < 1:
                raise ValueError(f"training.{key} must be at least 0 and below 1, found {getattr(self, key)}")


@dataclass(frozen=True, eq=False)
class LightGlueTask:
    """The task of training a LightGlue. `create` prepares all its parts. The validation matches with the network in training."""

    use: ClassVar[str] = "features=superpoint matches=lightglue matches.weights={path}"
    hidden: ClassVar[Sequence[str]] = ()

    options: LightGlueTraining
    device: str
    extractor: SuperPointExtractor
    """SuperPoint, whose features are matched."""
    origins: Sequence[WeightsRecord]
    """The weights that this training depends on: the extractor's first, then the start weights, then further ones if any."""
    photos: PhotoSplit
    data: Dataset[dict[str, Tensor]]
    validation_pairs: Sequence[ViewPair]
    module: LightGlue
    start_state: Mapping[str, Tensor]
    """State of `module` before the first step, on the CPU."""
    teacher_state: Mapping[str, Tensor] | None
    """State of ALIKED's LightGlue behind the map `to_teacher`; None if it has no share in the exported weights."""

    @classmethod
    def create(cls, options: LightGlueTraining, run: TrainingRun) -> LightGlueTask:
        """The task, ready to train. Decoded photos are written to the output folder, which takes long.

        Files that are already there are used again.

        Raises: ValueError if a licence forbids the training, if the start weights do not fit, or if no photo is left to train on.
        """
        # Enlarged views would not show what the losses see.
        features = replace(run.features, precision=options.precision, enlarge_max=1.0)
        extractor = SuperPointExtractor.create(features, run.device)
        state, start_weights = load_weights(options.start)
        origins = [*extractor.weights, start_weights]
        old: SuperPointExtractor | None = None
        if options.start_superpoint is not None:
            old = SuperPointExtractor.create(replace(extractor.options, weights=options.start_superpoint), run.device)
            origins += old.weights
        teacher: Mapping[str, Tensor] | None = None
        if options.teacher_share > 0:
            teacher, record = load_weights(TEACHER)
            origins.append(record)
        check_licence(options.licence, origins)  # before the long work
        files = prepare_photos(run.images, run.names, run.output / "photos", options.photo_size, run.processes)
        photos = split_photos(run.images, sorted(files), options.validation.photos, options.seed)
        index = write_index(run.output / "index.json", [[files[name]] for name in photos.training])
        data = Scenes(index, options.photo_size, options.scenes, options.seed)
        held_out = [read_photo(files[name]) for name in photos.held_out]
        pairs = make_view_pairs(held_out, options.validation, options.seed)
        network = _fitting_network(state, options, extractor, pairs)
        if old is not None:
            names = photos.training[:: -(-len(photos.training) // MAPPED_PHOTOS)]
            network = behind_map(network, *map_between(extractor, old, [read_photo(files[name]) for name in names]))
        start_state = {key: value.detach().clone() for key, value in network.state_dict().items()}
        teacher_state = None if teacher is None else _fitting_network(teacher, options, extractor, pairs).state_dict()
        return cls(options, run.device, extractor, origins, photos, data, pairs, network, start_state, teacher_state)

    @property
    def settings(self) -> Mapping[str, Any]:
        """Everything that decides the result, except the number of steps."""
        return training_settings(self.options, self.photos, self.origins)

    def losses(self, item: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to minimise and the metrics of the curves, for item `step` of `data` on the device."""
        options, network = self.options, self.module
        generator = seeded_generator(self.device, options.seed, step)
        scenes = make_scenes(item, options.scenes, generator)
        number = options.num_keypoints[step % len(options.num_keypoints)]
        keypoints, descriptors, scales = detect_many(self.extractor, scenes.views, number, generator, options.lost_keypoints)
        descriptors = mix_descriptors(descriptors, options.foreign_descriptors, generator)
        labels = label_keypoints(*scenes.find(keypoints, scales), options.losses.match_px, options.losses.no_match_px)
        sizes = keypoints.new_tensor([options.scenes.size]).expand(options.scenes.pairs, 2)
        dtype = training_dtype(options.precision, self.device)
        with torch.autocast(torch.device(self.device).type, dtype, enabled=dtype != torch.float32):
            output = network(*keypoints.chunk(2), *descriptors.chunk(2), sizes, sizes)
        return matching_losses(network, output, *labels, options.losses)

    def validate(self, module: nn.Module) -> dict[str, float]:
        """Metrics of a state of `module` on the photos that are held out."""
        settings = cast(LightGlue, module).settings
        network = self._blended(module)
        options = LightGlueOptions(
            name="lightglue",
            trained_for="superpoint-open",
            weights=None,
            depth_confidence=settings.depth_confidence,
            width_confidence=settings.width_confidence,
            filter_threshold=settings.filter_threshold,
            early_rejection=False,
            early_acceptance=False,
            guided_matching=False,
            precision="float32",
        )
        record = WeightsRecord("trained", "", "", self.options.licence, False)
        matcher = cast(Matcher, LightGlueMatcher(options, network, self.device, record))
        return validate(cast(Extractor, self.extractor), matcher, self.validation_pairs)

    def export(self, module: nn.Module, path: Path, steps: int, history: History) -> None:
        """Writes half-precision weights under LightGlue's published keys. The metadata records where they come from."""
        num_features = len(self.extractor.weights)
        metadata = {
            "network": "LightGlue",
            "features": ", ".join(f"{weights.name} {weights.sha256}" for weights in self.origins[:num_features]),
            "start": ", ".join(f"{weights.name} {weights.sha256}" for weights in self.origins[num_features:]),
            "start_record": json.dumps(self.origins[num_features].metadata, sort_keys=True),
            **common_metadata(self.options, self.photos, steps, history),
        }
        save_weights(self._blended(module), path, metadata)

    def _blended(self, module: nn.Module) -> LightGlue:
        """The network to export, on the CPU: blended by `start_share` and `teacher_share`."""
        state = blend(module.state_dict(), self.start_state, self.options.start_share)
        if self.teacher_state is not None:
            state = blend(state, self.teacher_state, self.options.teacher_share)
        return load_lightglue(state, cast(LightGlue, module).settings)


def _fitting_network(
    state: Mapping[str, Tensor], options: LightGlueTraining, extractor: SuperPointExtractor, pairs: Sequence[ViewPair]
) -> LightGlue:
    """The network with these weights, for SuperPoint's descriptors. Weights for ALIKED's are put behind the map `to_teacher`.

    The scale of the map comes from the descriptors of the validation views `pairs`.

    Raises: ValueError if the weights are for other descriptors, or if the map is given but has no use.
    """
    settings, descriptor_size = settings_from_state_dict(state), extractor.network.descriptor_size
    if settings.input_dim == descriptor_size:
        if options.to_teacher is not None and options.teacher_share == 0:
            raise ValueError(
                f"training.to_teacher is not used by this training: training.start={options.start} is for SuperPoint and "
                "training.teacher_share is 0. Give training.to_teacher=null, or a share above 0"
            )
        return load_lightglue(state, settings)
    if options.to_teacher is None:
        raise ValueError(
            f"training.start={options.start} takes {settings.input_dim}-d descriptors, SuperPoint's are {descriptor_size}-d: "
            "give training.to_teacher, the map between them, or weights of a LightGlue for SuperPoint"
        )
    linear, _ = load_weights(options.to_teacher)
    weight, bias = linear["weight"].float(), linear["bias"].float()
    seen = (extractor(pair.images[0]).descriptors for pair in pairs)
    descriptors = torch.cat([torch.from_numpy(each).float() for each in seen])
    return warm_start(state, weight, bias, prediction_scale(descriptors, weight, bias))


@torch.no_grad()
def detect_many(
    extractor: SuperPointExtractor, views: Tensor, number: int, generator: Generator, lost: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Keypoints (b, number, 2) px, descriptors (b, number, d) and scales (b, number) of views (b, 1, h, w).

    They are the strongest keypoints of each octave. If there are too few, random pixels are added: LightGlue must learn not to
    match indistinct keypoints. Each octave of a view loses a share of its keypoints, drawn between 0 and `lost`. The scale is the
    size of a pixel of the keypoint's octave, px of the view. `generator` draws all random numbers, on the device of the views.
    """
    options = extractor.options
    keypoints, descriptors, scales = [], [], []
    for octave, output in zip(extractor.octaves, extractor.network.pyramid(views, extractor.octaves), strict=True):
        peaks = non_maximum_suppression(output.scores, options.nms_radius)
        if lost > 0:
            share = lost * torch.rand((len(peaks), 1, 1), generator=generator, device=peaks.device)
            peaks = peaks.where(torch.rand(peaks.shape, generator=generator, device=peaks.device) >= share, 0)
        filler = torch.rand(peaks.shape, generator=generator, device=peaks.device) * options.detection_threshold
        strength = peaks.where(peaks > options.detection_threshold, filler)
        small = extractor.num_small(number)
        count = small if octave else number - small
        found, _ = strongest_keypoints(strength, output.scores, count, border=options.border, subpixel=options.subpixel)
        keypoints.append(octave_to_image(found, octave))
        described = [extractor.network.describe(output, i, each, centred=extractor.centred) for i, each in enumerate(found)]
        descriptors.append(torch.stack(described))
        scales.append(torch.full_like(found[..., 0], 2.0**octave))
    return torch.cat(keypoints, dim=1), torch.cat(descriptors, dim=1), torch.cat(scales, dim=1)


def mix_descriptors(descriptors: Tensor, max_weight: float, generator: Generator) -> Tensor:
    """Descriptors (b, n, d) of unit length, each mixed with the descriptor of a random keypoint of the batch.

    The weight of the other descriptor is drawn for each view, uniformly between 0 and `max_weight`.
    """
    if max_weight <= 0:
        return descriptors
    weight = max_weight * torch.rand((len(descriptors), 1, 1), generator=generator, device=descriptors.device)
    flat = descriptors.flatten(0, 1)
    others = flat[torch.rand(len(flat), generator=generator, device=flat.device).argsort()].view_as(descriptors)
    return F.normalize(descriptors + weight * others, dim=2)


@torch.no_grad()
def map_between(new: SuperPointExtractor, old: SuperPointExtractor, photos: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Weight (e, d) and bias (e,) that predict the descriptors of `old` from the descriptors of `new`, by least squares.

    Both describe the keypoints that `new` finds in the grey photos, uint8 (h, w), at full size only. The mean length of the
    predictions is 1.
    """
    known, wanted = [], []
    new = SuperPointExtractor(replace(new.options, small_share=0.0, enlarge_max=1.0), new.network, new.device, *new.weights)
    for photo in photos:
        features = new(Image("", np.repeat(photo[..., None], 3, axis=2)))
        grey = torch.from_numpy(photo).to(old.device)[None, None].float() / 255
        keypoints = torch.from_numpy(features.keypoints).to(old.device)
        known.append(torch.from_numpy(features.descriptors).float())
        wanted.append(old.network.describe(old.network(grey), 0, keypoints, centred=old.centred).cpu())
    inputs, outputs = torch.cat(known), torch.cat(wanted)
    weight, bias = fit_linear_map(inputs, outputs)
    predicted = F.linear(inputs, weight, bias)
    logger.info(
        "the new descriptors predict the old ones with a cosine of %.3f", F.cosine_similarity(predicted, outputs, dim=1).mean()
    )
    length = predicted.norm(dim=1).mean()
    return weight / length, bias / length
