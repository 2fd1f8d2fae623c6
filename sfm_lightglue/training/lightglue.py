"""`training=lightglue`: a LightGlue for a SuperPoint, from a folder of photos.

photos -> scenes of planes, seen twice -> SuperPoint's keypoints -> where each is in the partner -> labels -> losses after each
layer (arXiv 2306.13643, section 3.4). It starts from ALIKED's LightGlue, see `warm_start`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.utils.data import Dataset

from sfm_lightglue import __version__
from sfm_lightglue.features.extractor import Extractor
from sfm_lightglue.features.superpoint import SuperPointExtractor
from sfm_lightglue.matches.lightglue import LightGlueMatcher, LightGlueOptions
from sfm_lightglue.matches.matcher import Matcher
from sfm_lightglue.networks.heatmaps import non_maximum_suppression, strongest_keypoints
from sfm_lightglue.networks.lightglue import LightGlue
from sfm_lightglue.networks.lightglue_checkpoints import load_lightglue, settings_from_state_dict
from sfm_lightglue.networks.precision import check_precision, network_dtype
from sfm_lightglue.networks.superpoint import DESCRIPTOR_SIZE, octave_to_image, sample_descriptors
from sfm_lightglue.networks.weights import WeightsRecord, load_weights
from sfm_lightglue.products import Image
from sfm_lightglue.training.curves import History
from sfm_lightglue.training.export import blend, check_licence, hash_of_photos, recipe, save_weights, split
from sfm_lightglue.training.loop import LoopOptions, TrainingRun, seeded_generator
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
from sfm_lightglue.training.student import linear_map
from sfm_lightglue.training.validation import ValidationOptions, make_view_pairs, validate

logger = logging.getLogger(__name__)

TEACHER = "aliked-lightglue"
"""The network of `teacher_share`."""
MAPPED_PHOTOS = 200
"""From so many the linear map between descriptors of two SuperPoints is learnt."""


@dataclass(frozen=True)
class LightGlueTraining:
    """Options; the values stand in configs/training."""

    name: str
    seed: int
    precision: str
    """Of both networks while training: `float32`, or `low`, 16 bit where the device is faster so."""
    licence: str
    """Under which the trained weights are to be used."""
    commit: str | None
    """Of the code, for the record in the exported file."""
    start: str
    """Weights that it starts from: LightGlue's for the same features, or ALIKED's with `to_teacher`."""
    to_teacher: str | None
    """File of the linear map of SuperPoint's descriptors to ALIKED's, which the training of SuperPoint exports."""
    teacher_share: float
    """Of ALIKED's own LightGlue behind `to_teacher` in the weights that are exported, the rest as by `start_share`: it has seen
    real pairs of photos, under changes of light and place that scenes of planes do not have."""
    start_superpoint: str | None
    """Weights of the SuperPoint that `start` was trained for, where it is another one: the new descriptors are mapped to the old
    ones, linearly, before it."""
    start_share: float
    """Of the weights at the start in those that are exported, the rest is what was learnt: Wortsman et al., "Robust fine-tuning
    of zero-shot models" (arXiv:2109.01903), keep so what the training photos do not show, here nights and weathers."""
    photo_size: int
    """Longest side of the photos, px."""
    num_keypoints: tuple[int, ...]
    """Of each view; one of these in each step."""
    lost_keypoints: float
    """Share of its keypoints that a view loses at most, weaker ones take their places: few are seen again in very different light
    or from very different places, but nearly all in views of a flat photo."""
    foreign_descriptors: float
    """Weight at most with which another keypoint's descriptor is added to each, for the same reason."""
    scenes: SceneOptions
    losses: MatchingLossOptions
    loop: LoopOptions
    validation: ValidationOptions

    def __post_init__(self) -> None:
        check_precision(self.precision, "training.precision")
        for key in ("start_share", "teacher_share", "lost_keypoints"):
            if not 0 <= getattr(self, key) < 1:
                raise ValueError(f"training.{key} must lie in 0..1, below 1, found {getattr(self, key)}")
        if self.teacher_share > 0 and self.to_teacher is None:
            raise ValueError(
                f"training.teacher_share={self.teacher_share} needs training.to_teacher, the map to the teacher's descriptors"
            )


class LightGlueTask:
    """What the loop trains."""

    use = "features=superpoint matches=lightglue matches.weights={path}"

    hidden: Sequence[str] = ()

    def __init__(self, options: LightGlueTraining, run: TrainingRun) -> None:
        """The matcher of the run has no part in it: the validation matches with what is trained."""
        self.options, self.device = options, run.device
        # Views are what they are: enlarged, they would not show what the losses see.
        features = replace(run.features, precision=options.precision, enlarge_max=1.0)
        self.extractor = SuperPointExtractor.create(features, run.device)
        state, self.start_weights = load_weights(options.start)
        self.origins = [*self.extractor.weights, self.start_weights]
        if options.start_superpoint is not None:
            old = SuperPointExtractor.create(replace(self.extractor.options, weights=options.start_superpoint), run.device)
            self.origins += old.weights
        if options.teacher_share > 0:
            teacher, record = load_weights(TEACHER)
            self.origins.append(record)
        check_licence(options.licence, self.origins)  # before the long work
        photos = prepare_photos(run.images, run.names, run.output / "photos", options.photo_size, run.processes)
        held_out, train = split(sorted(photos), options.validation.photos, options.seed)
        self.data_sha256, self.num_photos = hash_of_photos(run.images, train), len(train)
        index = write_index(run.output / "index.json", [[photos[name]] for name in train])
        self.data: Dataset[dict[str, Tensor]] = Scenes(index, options.photo_size, options.scenes, options.seed)
        self.validation_pairs = make_view_pairs([read_photo(photos[name]) for name in held_out], options.validation, options.seed)
        network = self._network(state)
        if options.start_superpoint is not None:
            sample = [read_photo(photos[name]) for name in train[:: -(-len(train) // MAPPED_PHOTOS)]]
            network = behind_map(network, *map_between(self.extractor, old, sample))
        self.module: nn.Module = network
        self.start_state = {key: value.detach().clone() for key, value in network.state_dict().items()}
        self.teacher_state: Mapping[str, Tensor] | None = None
        if options.teacher_share > 0:
            self.teacher_state = self._network(teacher).state_dict()
        self.settings: Mapping[str, Any] = {
            **recipe(options),
            "data": self.data_sha256,
            "weights": [weights.sha256 for weights in self.origins],
        }

    def _network(self, state: Mapping[str, Tensor]) -> LightGlue:
        """One with these weights, for SuperPoint's descriptors; ALIKED's behind the map to its descriptors.

        Raises: ValueError where they are for other descriptors.
        """
        settings, options = settings_from_state_dict(state), self.options
        if settings.input_dim == DESCRIPTOR_SIZE:
            if options.to_teacher is not None and options.teacher_share == 0:
                raise ValueError(
                    f"training.to_teacher has no part in this training: training.start={options.start} is for SuperPoint and "
                    "training.teacher_share 0. Give training.to_teacher=null, or a share"
                )
            return load_lightglue(state, settings)
        if options.to_teacher is None:
            raise ValueError(
                f"training.start={options.start} takes {settings.input_dim}-d descriptors, SuperPoint's are {DESCRIPTOR_SIZE}-d: "
                "give training.to_teacher, the map between them, or weights of a LightGlue for SuperPoint"
            )
        linear, _ = load_weights(options.to_teacher)
        weight, bias = linear["weight"].float(), linear["bias"].float()
        seen = (self.extractor(pair.images[0]).descriptors for pair in self.validation_pairs)
        descriptors = torch.cat([torch.from_numpy(each).float() for each in seen])
        return warm_start(state, weight, bias, prediction_scale(descriptors, weight, bias))

    def losses(self, item: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        options, network = self.options, cast(LightGlue, self.module)
        generator = seeded_generator(self.device, options.seed, step)
        scenes = make_scenes(item, options.scenes, generator)
        number = options.num_keypoints[step % len(options.num_keypoints)]
        keypoints, descriptors, scales = detect_many(self.extractor, scenes.views, number, generator, options.lost_keypoints)
        descriptors = mix_descriptors(descriptors, options.foreign_descriptors, generator)
        labels = label_keypoints(*scenes.find(keypoints, scales), options.losses.match_px, options.losses.no_match_px)
        sizes = keypoints.new_tensor([options.scenes.size]).expand(options.scenes.pairs, 2)
        dtype = network_dtype(options.precision, self.device)
        dtype = torch.bfloat16 if dtype == torch.float16 else dtype  # gradients do not underflow there
        with torch.autocast(torch.device(self.device).type, dtype, enabled=dtype != torch.float32):
            output = network(*keypoints.chunk(2), *descriptors.chunk(2), sizes, sizes)
        return matching_losses(network, output, *labels, options.losses)

    def validate(self, module: nn.Module) -> dict[str, float]:
        settings = cast(LightGlue, module).settings
        network = self._blended(module)
        options = LightGlueOptions(
            name="lightglue",
            head="superpoint-open",
            weights=None,
            depth_confidence=settings.depth_confidence,
            width_confidence=settings.width_confidence,
            filter_threshold=settings.filter_threshold,
            early_rejection=False,
            precision="float32",
        )
        record = WeightsRecord("trained", "", "", self.options.licence, False)
        matcher = cast(Matcher, LightGlueMatcher(options, network, self.device, record))
        return validate(cast(Extractor, self.extractor), matcher, self.validation_pairs)

    def export(self, module: nn.Module, path: Path, steps: int, history: History) -> None:
        """Half precision, under LightGlue's published keys, and in the file's metadata where the weights come from."""
        metadata = {
            "network": "LightGlue",
            "features": ", ".join(f"{weights.name} {weights.sha256}" for weights in self.extractor.weights),
            "start": ", ".join(f"{weights.name} {weights.sha256}" for weights in self.origins[len(self.extractor.weights) :]),
            "start_record": json.dumps(self.start_weights.metadata, sort_keys=True),
            "licence": self.options.licence,
            "recipe": json.dumps(recipe(self.options), sort_keys=True),
            "training_photos": f"{self.num_photos}, sha256 {self.data_sha256}",
            "steps": str(steps),
            "version": __version__,
            "commit": self.options.commit or "unknown",
            "validation": json.dumps(history.last("validation"), sort_keys=True),
        }
        save_weights(self._blended(module), path, metadata)

    def _blended(self, module: nn.Module) -> LightGlue:
        """The network that is exported, see `start_share` and `teacher_share`; on the CPU."""
        state = blend(module.state_dict(), self.start_state, self.options.start_share)
        if self.teacher_state is not None:
            state = blend(state, self.teacher_state, self.options.teacher_share)
        return load_lightglue(state, cast(LightGlue, module).settings)


@torch.no_grad()
def detect_many(
    extractor: SuperPointExtractor, views: Tensor, number: int, generator: Generator, lost: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Keypoints (b, number, 2) px, descriptors (b, number, 256) and scales (b, number) of views (b, 1, h, w).

    They are the strongest of each octave, and where there are fewer, random pixels: LightGlue is to leave out keypoints that
    nothing distinguishes. Each octave is without a share of its keypoints, drawn up to `lost`. The scale is the size of a pixel
    of its octave, px of the view.
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
        descriptors.append(sample_descriptors(found, output.descriptors, centred=extractor.centred))
        scales.append(torch.full_like(found[..., 0], 2.0**octave))
    return torch.cat(keypoints, dim=1), torch.cat(descriptors, dim=1), torch.cat(scales, dim=1)


def mix_descriptors(descriptors: Tensor, most: float, generator: Generator) -> Tensor:
    """Descriptors (b, n, d) of unit length, to each added that of a random keypoint of the batch, by a weight for each view of up
    to `most`."""
    if most <= 0:
        return descriptors
    weight = most * torch.rand((len(descriptors), 1, 1), generator=generator, device=descriptors.device)
    flat = descriptors.flatten(0, 1)
    others = flat[torch.rand(len(flat), generator=generator, device=flat.device).argsort()].view_as(descriptors)
    return F.normalize(descriptors + weight * others, dim=2)


@torch.no_grad()
def map_between(new: SuperPointExtractor, old: SuperPointExtractor, photos: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Weight (256, 256) and bias (256,) that predict the descriptors of one SuperPoint from those of another, by least squares.

    Their points are the keypoints that `new` finds in grey photos, uint8 (h, w), at their full size alone: there `old` describes
    them too. Predictions have a length of 1 in the mean.
    """
    known, wanted = [], []
    new = SuperPointExtractor(replace(new.options, small_share=0.0, enlarge_max=1.0), new.network, new.device, *new.weights)
    for photo in photos:
        features = new(Image("", np.repeat(photo[..., None], 3, axis=2)))
        grey = torch.from_numpy(photo).to(old.device)[None, None].float() / 255
        keypoints = torch.from_numpy(features.keypoints).to(old.device)[None]
        known.append(torch.from_numpy(features.descriptors).float())
        wanted.append(sample_descriptors(keypoints, old.network(grey).descriptors, centred=old.centred)[0].cpu())
    inputs, outputs = torch.cat(known), torch.cat(wanted)
    weight, bias = linear_map(inputs, outputs)
    predicted = F.linear(inputs, weight, bias)
    logger.info(
        "the new descriptors predict the old ones with a cosine of %.3f", F.cosine_similarity(predicted, outputs, dim=1).mean()
    )
    length = predicted.norm(dim=1).mean()
    return weight / length, bias / length
