"""Matching by LightGlue (arXiv:2306.13643), with depth and width adapted to each pair."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from sfm_lightglue.engine.rules import EarlyAcceptance, EarlyRejection, GuidedMatching, GuidedPass, OverlapTest
from sfm_lightglue.networks.lightglue_settings import PUBLISHED_SETTINGS
from sfm_lightglue.networks.precision import AUTO, check_precision, resolved_precision
from sfm_lightglue.networks.weights import WeightsRecord, load_weights, weights_record
from sfm_lightglue.once import Once
from sfm_lightglue.orientation import upright_features
from sfm_lightglue.products import Features, Matches
from sfm_lightglue.registry import closest

if TYPE_CHECKING:  # functions that compute import torch and the engine: a run with nothing to do needs neither
    from torch import Tensor

    from sfm_lightglue.engine.batch import ImageState
    from sfm_lightglue.engine.kernel_calls import Kernels
    from sfm_lightglue.engine.lightglue import LightGlueEngine
    from sfm_lightglue.engine.results import PairMatches
    from sfm_lightglue.matches.guided import GuidedImage
    from sfm_lightglue.matches.overlap import Neighbors
    from sfm_lightglue.networks.lightglue import LightGlue

PUBLISHED_WEIGHTS = {features: f"{features}-lightglue" for features in PUBLISHED_SETTINGS} | {
    "xfeat": "xfeat-lighterglue",
    "superpoint-open": "aliked-lightglue-half",  # the descriptors are in the space of ALIKED's
}
"""Kind of features -> name of the published weights."""

EARLY_REJECTION = {
    "aliked": EarlyRejection(min_distinct=3, enough_distinct=6, min_matchability=(0.85, 0.95)),
    "superpoint-open": EarlyRejection(
        min_distinct=3, enough_distinct=6, min_matchability=(0.85, 0.95)
    ),  # the network is ALIKED's
}
"""Kind of features -> rule, calibrated so that less than 1 % of the verified pairs are lost (docs/speed.md)."""

OVERLAP_TEST = {
    "superpoint-open": OverlapTest(min_mutual=0.225, min_coherent_neighbors=100, num_layers=3, min_coherent_matches=40),
}
"""Kind of features -> what takes the place of the rule above if matching is guided. No verified pair is lost (docs/speed.md)."""

EARLY_ACCEPTANCE = {
    "superpoint-open": EarlyAcceptance(depth_confidence=0.8, min_matchable=400, min_matchability=0.9),
}
"""Kind of features -> rule, calibrated so that poses stay as exact (docs/speed.md)."""

GUIDED_MATCHING = {
    "superpoint-open": GuidedMatching(
        (
            GuidedPass(
                share=0.25,
                min_keypoints=512,
                num_layers=3,
                min_distinct=30,
                min_coherent=0,
                min_seeds=80,
                min_agreeing=0.55,
                min_mean_score=0.5,
                min_share=0.75,
                keeps_seeds=False,
            ),
            GuidedPass(
                share=0.5,
                min_keypoints=768,
                num_layers=4,
                min_distinct=10,
                min_coherent=400,
                min_seeds=80,
                min_agreeing=0.65,
                min_mean_score=0.6,
                min_share=0.7,
                keeps_seeds=True,
            ),
        )
    ),
}
"""Kind of features -> rule, calibrated so that poses stay as exact (docs/speed.md)."""

CALIBRATED: dict[str, Mapping[str, object]] = {
    "early_rejection": EARLY_REJECTION,
    "early_acceptance": EARLY_ACCEPTANCE,
    "guided_matching": GUIDED_MATCHING,
}
"""Option -> its rules."""

LOW_IS_ENOUGH = frozenset({"superpoint-open", "aliked"})
"""Kinds of features for which poses from `low` are as exact as from `float32` (docs/speed.md)."""

THRESHOLDS = ("depth_confidence", "width_confidence", "filter_threshold")
"""Options that are None for what was published."""
GPU_BATCH_SIZE = 32
"""Pairs matched together on a GPU. A CPU matches one pair at a time: batches would save only 2 to 4 % of the time at 512
keypoints, and need more memory."""


@dataclass(frozen=True)
class LightGlueOptions:
    """Options. Their default values are in configs/matches/lightglue.yaml."""

    name: str
    trained_for: str
    """Kind of features that the network was trained for."""
    weights: str | None
    """A name or a file. None: the published weights."""
    depth_confidence: float | None
    """Fraction of confident points at which to stop, 0..1; -1: always all layers. None: as published."""
    width_confidence: float | None
    """Drop a confident point if its probability of having no match is at least this, 0..1; -1: keep all. None: as
    published."""
    filter_threshold: float | None
    """Smallest score of a match, 0..1. None: as published."""
    early_rejection: bool | str | None
    """End pairs early, without matches, if the descriptors or the first layers say that the photos do not overlap. Possible for
    the kinds of features in `EARLY_REJECTION`. None: only with their published weights, for which the rule was calibrated.
    `auto`: only if it loses no pairs, so with guided matching, for the kinds in `OVERLAP_TEST` with their published weights."""
    early_acceptance: bool | None
    """End pairs with many matches early. Possible for the kinds of features in `EARLY_ACCEPTANCE`. None: only with their
    published weights and the published `depth_confidence`."""
    guided_matching: bool | None
    """Match the strongest keypoints of an easy pair by the network, and all others by their descriptors, near these matches.
    Possible for the kinds of features in `GUIDED_MATCHING`. None: only on CPUs, with their published weights and thresholds."""
    precision: str
    """`float32`, or `low` for 16-bit matrix products if the hardware is faster with them. `auto`: low on such hardware for the
    published weights of the kinds of features in `LOW_IS_ENOUGH`, else float32."""

    def __post_init__(self) -> None:
        if self.trained_for not in PUBLISHED_SETTINGS:
            found = f"LightGlue has no weights for matches.trained_for={self.trained_for!r}"
            hint = "for other features choose matches=nearest_neighbor, or train a LightGlue and give matches.weights=FILE"
            raise ValueError(f"{found}. {closest(self.trained_for, PUBLISHED_SETTINGS)}; {hint}")
        for key in ("depth_confidence", "width_confidence"):
            if (value := getattr(self, key)) not in (None, -1) and not 0 <= value <= 1:
                raise ValueError(f"matches.{key} must lie in 0..1, or be -1 to switch it off, found {value}")
        if isinstance(self.early_rejection, str) and self.early_rejection != AUTO:
            raise ValueError(f"matches.early_rejection must be true, false, null or auto, found {self.early_rejection!r}")
        for key, rules in CALIBRATED.items():
            if getattr(self, key) is True and self.trained_for not in rules:
                raise ValueError(
                    f"matches.{key} is calibrated for {', '.join(rules)}, not for {self.trained_for!r}: "
                    "set it to false, or to null (only if calibrated)"
                )
        check_precision(self.precision, "matches.precision", may_be_auto=True)
        if self.filter_threshold is not None and not 0 <= self.filter_threshold < 1:
            raise ValueError(f"matches.filter_threshold must lie in 0..1, found {self.filter_threshold}")


def _from_engine(found: PairMatches) -> Matches:
    return Matches(found.indices.numpy().astype(np.int32), found.scores.numpy(), found.stop_layer)


class LightGlueMatcher:
    """Runs the engine. Several threads may call it at the same time."""

    def __init__(self, options: LightGlueOptions, network: LightGlue | None, device: str, weights: WeightsRecord) -> None:
        """Without a network, it is built from the weights by `load`, or at the first use."""
        self.given, self.device, self.weights = options, device, (weights,)
        self._engine = Once(lambda: self._build(network))
        self.chose_precision, self.chose_acceptance = options.precision == AUTO, options.early_acceptance is None
        self.chose_guided, self.chose_rejection = options.guided_matching is None, options.early_rejection == AUTO
        self._low_is_enough = options.weights is None and options.trained_for in LOW_IS_ENOUGH
        self.shared_precision = "low" if self._low_is_enough else "float32"
        self.batch_size = 1 if device == "cpu" else GPU_BATCH_SIZE

    @classmethod
    def planned(cls, options: LightGlueOptions, device: str) -> LightGlueMatcher:
        """The matcher before its weights are loaded.

        Raises: FileNotFoundError if the weights cannot be found or downloaded, ValueError if there are none of this name.
        """
        return cls(options, None, device, weights_record(options.weights or PUBLISHED_WEIGHTS[options.trained_for]))

    @classmethod
    def create(cls, options: LightGlueOptions, device: str) -> LightGlueMatcher:
        """The matcher with its weights loaded. Raises: as `planned`, and ValueError if the weights are not LightGlue's."""
        matcher = cls.planned(options, device)
        matcher.load()
        return matcher

    def load(self) -> None:
        """Builds the engine now. Raises: ValueError if the weights are not LightGlue's."""
        self._engine()

    @cached_property
    def options(self) -> LightGlueOptions:
        """The options with values for all thresholds: the published ones instead of None, and for early acceptance, guided
        matching, early rejection if it is `auto`, and the precision what they stand for. Files of matches record them."""
        given, published = self.given, PUBLISHED_SETTINGS[self.given.trained_for]
        thresholds = {key: getattr(published if getattr(given, key) is None else given, key) for key in THRESHOLDS}
        accepts = given.early_acceptance
        if accepts is None:
            is_published = given.weights is None and thresholds["depth_confidence"] == published.depth_confidence
            accepts = is_published and given.trained_for in EARLY_ACCEPTANCE
        guides = given.guided_matching
        if guides is None:  # a GPU needs less time for all layers than a CPU for the search
            guides = self.shared_guided_matching and self.device == "cpu"
        rejects = given.early_rejection
        if rejects == AUTO:
            rejects = guides and given.trained_for in OVERLAP_TEST and self.shared_guided_matching
        has_integers = given.precision == AUTO and self._low_is_enough and self.kernels is not None
        precision = resolved_precision(given.precision, self.device, low_is_enough=self._low_is_enough, has_integers=has_integers)
        return replace(
            given, early_acceptance=accepts, guided_matching=guides, early_rejection=rejects, precision=precision, **thresholds
        )

    @property
    def shared_guided_matching(self) -> bool:
        """Whether matching is guided on CPUs, if the matcher may choose."""
        given, published = self.given, PUBLISHED_SETTINGS[self.given.trained_for]
        is_published = all(getattr(given, key) in (None, getattr(published, key)) for key in THRESHOLDS)
        return given.trained_for in GUIDED_MATCHING and given.weights is None and is_published

    @cached_property
    def guided(self) -> GuidedMatching | None:
        """The rule of guided matching; None if it is off."""
        return GUIDED_MATCHING[self.options.trained_for] if self.options.guided_matching else None

    @cached_property
    def rejects(self) -> bool:
        """Whether pairs without overlap end early."""
        options = self.options
        if options.early_rejection is None:
            return options.trained_for in EARLY_REJECTION and options.weights is None
        return bool(options.early_rejection)

    @cached_property
    def overlap_test(self) -> OverlapTest | None:
        """The test of the pairs that no pass of guided matching completes; None if there is none."""
        return OVERLAP_TEST.get(self.options.trained_for) if self.rejects and self.guided else None

    @property
    def engine(self) -> LightGlueEngine:
        """The engine with its weights, on the device."""
        return self._engine()

    @cached_property
    def kernels(self) -> Kernels | None:
        """The compiled kernels; None on GPUs, or if there are none."""
        return self._kernels()

    def _kernels(self) -> Kernels | None:
        from sfm_lightglue.engine.kernels import load_kernels

        return load_kernels(may_compile=True) if self.device == "cpu" else None

    def _build(self, network: LightGlue | None) -> LightGlueEngine:
        from sfm_lightglue.engine.lightglue import LightGlueEngine
        from sfm_lightglue.networks.lightglue_checkpoints import load_lightglue, settings_from_state_dict

        options = self.options
        if network is None:
            state, _ = load_weights(options.weights or PUBLISHED_WEIGHTS[options.trained_for])
            size = settings_from_state_dict(state) if options.weights else PUBLISHED_SETTINGS[options.trained_for]
            network = load_lightglue(state, replace(size, **{key: getattr(options, key) for key in THRESHOLDS}))
        rejection = EARLY_REJECTION[options.trained_for] if self.rejects and not self.overlap_test else None
        acceptance = EARLY_ACCEPTANCE[options.trained_for] if options.early_acceptance else None
        return LightGlueEngine(network, options.precision, self.device, self.kernels, rejection, acceptance)

    def __call__(self, features0: Features, features1: Features) -> Matches:
        """The matches of two images.

        Raises: ValueError if the features are not of the kind that the network was trained for.
        """
        return self.match_many([(self.prepare(features0), self.prepare(features1))])[0]

    def prepare(self, features: Features) -> ImageState | GuidedImage:
        """Everything about an image that `match_many` needs, for any number of pairs.

        Raises: ValueError if the features are not of the kind that the network was trained for.
        """
        import torch

        from sfm_lightglue.matches.guided import GuidedImage

        features = upright_features(features)
        if self.guided is None or len(features) < 2 * self.guided.passes[0].min_keypoints:
            return self._state(features)
        is_halved = self.engine.numerics.dtype == torch.bfloat16
        return GuidedImage(features, self.guided, self._state, torch.bfloat16 if is_halved else torch.float32)

    def _state(self, features: Features) -> ImageState:
        return self.engine.prepare(
            self._tensor(features.keypoints),
            self._descriptors(features),
            features.image_size,
            self._scales_orientations(features),
        )

    def match_many(self, pairs: Sequence[tuple[ImageState | GuidedImage, ImageState | GuidedImage]]) -> list[Matches]:
        """The matches of each pair. They do not depend on the other pairs."""
        neighbors = functools.cache(lambda i: self._neighbors(pairs[i]))
        matches = self._guided_matches(pairs, neighbors)
        matches |= self._rejected({i: pair for i, pair in enumerate(pairs) if i not in matches}, neighbors)
        others = [i for i in range(len(pairs)) if i not in matches]
        whole: Any = [tuple(getattr(image, "all_keypoints", image) for image in pairs[i]) for i in others]
        matches |= {i: _from_engine(each) for i, each in zip(others, self.engine.match_many(whole), strict=True)}
        return [matches[i] for i in range(len(pairs))]

    def _neighbors(self, pair: tuple[Any, Any]) -> Neighbors:
        from sfm_lightglue.matches.overlap import compare

        return compare(pair[0].appearance, pair[1].appearance, self.kernels)

    def _guided_matches(self, pairs: Sequence[tuple[Any, Any]], neighbors: Callable[[int], Neighbors]) -> dict[int, Matches]:
        """Index and matches of the pairs that are easy enough for one of the passes of guided matching. `neighbors` compares the
        descriptors of the pair with an index."""
        from sfm_lightglue.matches.guided import GuidedImage, count_distinct_neighbors

        images = {i: pair for i, pair in enumerate(pairs) if all(isinstance(image, GuidedImage) for image in pair)}
        matches: dict[int, Matches] = {}
        if self.guided is None or not images:
            return matches
        num_distinct = dict(zip(images, count_distinct_neighbors(images.values()), strict=True))
        for k, rule in enumerate(self.guided.passes):
            tried = {
                i: pair
                for i, pair in images.items()
                if i not in matches
                and num_distinct[i] >= rule.min_distinct
                and min(len(image.passes) for image in pair) > k
                and (not rule.min_coherent or neighbors(i).num_coherent >= rule.min_coherent)
            }
            matches |= dict(self._guided_by_pass(tried, k, rule))
        return matches

    def _guided_by_pass(
        self, pairs: Mapping[int, tuple[GuidedImage, GuidedImage]], k: int, rule: GuidedPass
    ) -> Iterator[tuple[int, Matches]]:
        """Index and matches of the pairs that pass k completes."""
        from sfm_lightglue.matches.guided import complete_matches

        states = [(image0.passes[k].state, image1.passes[k].state) for image0, image1 in pairs.values()]
        found = self.engine.match_many(states, rule.num_layers)
        for (i, (image0, image1)), each in zip(pairs.items(), found, strict=True):
            seeds, (part0, part1) = _from_engine(each), (image0.passes[k], image1.passes[k])
            among_all = np.stack([part0.rows[seeds.indices[:, 0]], part1.rows[seeds.indices[:, 1]]], axis=1)
            seeds, growth = replace(seeds, indices=among_all.astype(np.int32)), math.sqrt(part0.growth * part1.growth)
            if (matches := complete_matches(image0.points, image1.points, seeds, growth, rule)) is not None:
                yield i, matches

    def _rejected(self, pairs: Mapping[int, tuple[Any, Any]], neighbors: Callable[[int], Neighbors]) -> dict[int, Matches]:
        """Index and matches, none, of the pairs that seem not to overlap."""
        from sfm_lightglue.matches.guided import GuidedImage
        from sfm_lightglue.matches.overlap import count_coherent

        if (test := self.overlap_test) is None or self.guided is None:
            return {}
        last = len(self.guided.passes) - 1
        judged = {
            i: (pair[0].passes[last], pair[1].passes[last])
            for i, pair in pairs.items()
            if all(isinstance(image, GuidedImage) and len(image.passes) > last for image in pair)
            and not neighbors(i).may_overlap(test)
        }
        found = self.engine.match_many([(part0.state, part1.state) for part0, part1 in judged.values()], test.num_layers)
        rejected = {}
        for (i, (part0, part1)), each in zip(judged.items(), found, strict=True):
            matches = _from_engine(each)
            points = (part.keypoints[rows] for part, rows in zip((part0, part1), matches.indices.T, strict=True))
            if count_coherent(*points) < test.min_coherent_matches:
                rejected[i] = replace(matches, indices=matches.indices[:0], scores=matches.scores[:0])
        return rejected

    def _tensor(self, array: np.ndarray) -> Tensor:
        import torch

        return torch.as_tensor(array.astype(np.float32), device=self.device)

    def _descriptors(self, features: Features) -> Tensor:
        expected = self.engine.settings.input_dim
        if features.descriptors.shape[1] != expected:
            raise ValueError(
                f"the features of {features.name!r} have {features.descriptors.shape[1]}-d descriptors, "
                f"LightGlue for {self.options.trained_for!r} needs {expected}-d descriptors: "
                "choose matches.trained_for to fit the features"
            )
        return self._tensor(features.descriptors)

    def _scales_orientations(self, features: Features) -> Tensor | None:
        """float32 (n, 2) if the network needs them, else None."""
        if not self.engine.settings.add_scale_orientation:
            return None
        if features.scales is None or features.orientations is None:
            raise ValueError(
                f"LightGlue for {self.options.trained_for!r} needs scales and orientations, {features.name!r} has none"
            )
        return self._tensor(np.stack([features.scales, features.orientations], axis=1))
