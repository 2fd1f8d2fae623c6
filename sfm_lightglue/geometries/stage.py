"""The stage matches -> two-view geometries: verifies every pair and writes `verification.h5`.

Reads `features.h5` and `matches.h5`. A pair is verified again only if its features, its matches or its cameras changed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pycolmap

from sfm_lightglue import __version__
from sfm_lightglue.cameras import Camera
from sfm_lightglue.colmap import colmap_log
from sfm_lightglue.execution.cache import BoundedCache
from sfm_lightglue.execution.executor import Executor, checked_results
from sfm_lightglue.execution.progress import progress_bar
from sfm_lightglue.execution.shards import Shard
from sfm_lightglue.execution.threads import ThreadExecutor
from sfm_lightglue.geometries.confirmation import judge_unsure
from sfm_lightglue.geometries.inputs import (
    accepted_stamp,
    check_names,
    geometry_stamps,
    input_fingerprints,
    read_matches,
    scales_of_most,
)
from sfm_lightglue.geometries.lenses import NUM_PAIRS, Lens, Matched, find_lens, lens_cameras, photos_without, strongest_pairs
from sfm_lightglue.geometries.stationary import MAX_SAMPLED_PAIRS, Overlays, drop_stationary, find_overlays
from sfm_lightglue.geometries.verification import VerificationOptions, matched_keypoints, verify_matches
from sfm_lightglue.products import Features, Matches, Pair, TwoViewGeometry, sorted_pairs
from sfm_lightglue.storage import (
    CONFIGURATIONS,
    REASONS,
    GeometryNumbers,
    H5Reader,
    PartOfFeatures,
    ShardStore,
    geometry_to_group,
    match_key,
    unknown_numbers,
)

logger = logging.getLogger(__name__)

GROUP = 256
"""Number of images in a group, see `_batches`. Keypoints of two groups take 17 MB of cache (2048 keypoints)."""
BATCH = 32
"""Pairs of a job. Ten milliseconds for a pair make the cost of handing over a job small."""
CACHE_BYTES = 128_000_000
"""Memory of each process for keypoints that are kept for their next pair."""


@dataclass(frozen=True)
class VerificationReport:
    """What a call of `verify_pairs` did."""

    num_pairs: int
    """Pairs that were verified or rejected."""
    num_verified_pairs: int
    """Pairs with a valid two-view geometry."""
    num_inliers: int
    """Verified matches of all pairs together."""
    configurations: dict[str, int]
    """Number of pairs by COLMAP's name of the two-view geometry; DEGENERATE pairs are rejected."""
    rejected_because: dict[str, int]
    """Number of rejected pairs by reason, see `TwoViewGeometry.rejected_because`."""
    max_error_px: tuple[float, float]
    """Smallest and largest error limit that a pair got, px of the full images; (0, 0) without pairs."""
    num_confirmed_pairs: int = 0
    """Pairs with low scores that were verified because third photos confirm their matches."""
    num_stationary_matches: int = 0
    """Matches of all pairs that were dropped because they stand still in an overlay, such as a logo or a car hood."""
    num_stationary_pairs: int = 0
    """Pairs that had such matches."""
    overlays: str = ""
    """Where the overlays lie in the frame, such as `rows 75-100 %, columns 0-100 %`; empty without any."""
    lenses: list[str] = dataclasses.field(default_factory=list)
    """A sentence about each fisheye or strongly distorting lens that was found."""


@dataclass(frozen=True)
class VerificationRecipe:
    """Opens the files of the stage once per process, and yields the function that verifies pairs. Picklable."""

    features: Path
    matches: Path
    cameras: Mapping[str, Camera]
    """Cameras by image name."""
    options: VerificationOptions
    overlays: Overlays = dataclasses.field(default_factory=Overlays)
    """Regions of the frame whose stationary matches are dropped."""
    read_before: Mapping[Pair, Matches] = dataclasses.field(default_factory=dict)
    """Matches that need not be read again by threads of this process. Other processes read them."""

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "read_before": {}}

    @contextlib.contextmanager
    def __call__(self, device: str = "cpu") -> Iterator[Callable[[tuple[Pair, ...]], list[TwoViewGeometry]]]:
        """Yields the function from pairs to their two-view geometries; several threads may call it. `device` is not used."""
        with H5Reader(self.features) as features, H5Reader(self.matches) as matches, colmap_log(None):
            load = functools.partial(_load_image, features, self.cameras)
            images = BoundedCache(load, lambda image: image.features.num_bytes + 1000, CACHE_BYTES)

            def verify(batch: tuple[Pair, ...]) -> list[TwoViewGeometry]:
                return [self._verify(images(pair.name0), images(pair.name1), matches, pair) for pair in batch]

            yield verify

    def _verify(self, image0: _Image, image1: _Image, matches: H5Reader, pair: Pair) -> TwoViewGeometry:
        found = self.read_before[pair] if pair in self.read_before else read_matches(matches, pair)
        kept = drop_stationary(image0.features, image1.features, found, self.overlays)
        features0, features1 = _scaled(image0, image1, kept)
        geometry = verify_matches(image0.camera, image1.camera, features0, features1, kept, self.options)
        if kept is found:
            return geometry
        return dataclasses.replace(geometry, num_matches=len(found), num_stationary=len(found) - len(kept))


@dataclass(frozen=True)
class _Image:
    """What verification needs to know about an image."""

    features: Features
    """Without scores and descriptors."""
    camera: pycolmap.Camera
    kinds: tuple[PartOfFeatures, ...]
    """Where the keypoints of several kinds begin; empty if there is one kind."""


def _load_image(features: H5Reader, cameras: Mapping[str, Camera], name: str) -> _Image:
    return _Image(features.bare_features(name), cameras[name].to_colmap(), features.kinds(name))


def _scaled(image0: _Image, image1: _Image, matches: Matches) -> tuple[Features, Features]:
    """The features of both images with the scale of the kind that has most of the matches."""
    if not (image0.kinds and image1.kinds):
        return image0.features, image1.features
    scale0, scale1 = scales_of_most(matches, image0.kinds, image1.kinds)
    return dataclasses.replace(image0.features, pixel_scale=scale0), dataclasses.replace(image1.features, pixel_scale=scale1)


def verify_pairs(
    features: Path | str,
    matches: Path | str,
    pairs: Iterable[Pair],
    output: Path | str,
    options: VerificationOptions,
    cameras: Mapping[str, Camera],
    *,
    undecided: Mapping[str, str] | None = None,
    names: Iterable[str] | None = None,
    executor: Executor | None = None,
    shard: Shard | None = None,
) -> VerificationReport:
    """Writes the two-view geometries of all pairs to the file `output`. Equal input gives equal bytes.

    Photos whose lens is a fisheye or distorts strongly are verified with the lens that their matches show, see `lenses`.

    If `output` was written with other options, features or matches, all pairs are verified again, with a warning. (The stages
    that write features and matches raise an error instead, because recomputing them is expensive.)

    Args:
        features: file of features.
        matches: file of matches; every pair must be in it.
        pairs: the pairs to verify.
        output: the file to write, `verification.h5`. Other pairs in it are kept.
        options: limits of the verification.
        cameras: camera of each image by name, see `cameras.choose_cameras`.
        undecided: the images whose lens may be found, see `cameras.CameraAssignment`. `lenses.with_lenses` then gives their
            cameras.
        names: the images that the pairs may contain; by default all images of `features`.
        executor: decides where the pairs are verified; None for one thread per core.
        shard: the share of this process, if several divide the work (`execution=shards`); the report is then about this share.

    Raises:
        KeyError: A pair has no matches, or an image has no features.
        ValueError: A pair has an image that is not in `names`, or the matches were made from other features.
    """
    ordered = sorted_pairs(pairs)
    with H5Reader(features) as feature_reader, H5Reader(matches) as match_reader:
        check_names(ordered, feature_reader.names() if names is None else set(names), feature_reader)
        stamps = geometry_stamps(ordered, feature_reader, match_reader, cameras, check_origin=True)
        settings = {"options": asdict(options), **input_fingerprints(feature_reader, match_reader), "version": __version__}
        sample = _Sample.of(ordered, feature_reader, match_reader, cameras)
        overlays = sample.find_overlays(options.stationary_max_error_px)
        if overlays:
            settings["overlays"] = overlays.to_settings()
        lenses = sample.find_lenses(undecided or {}, overlays, options)
        if lenses:
            found = {group: lens.to_settings() for group, lens in lenses.items()}
            settings["lenses"] = found
            cameras = {**cameras, **lens_cameras(cameras, undecided or {}, found)}
            stamps = geometry_stamps(ordered, feature_reader, match_reader, cameras)
    recipe = VerificationRecipe(Path(features), Path(matches), dict(cameras), options, overlays, sample.found)
    writer = "" if shard is None else shard.writer
    with ShardStore(output, settings, if_settings_changed="recompute", writer=writer) as store:
        if shard is not None:
            ordered, stamps = _share_of(shard, ordered, stamps, store)
        numbers = _verify_missing(store, recipe, ordered, stamps, executor or ThreadExecutor())
    if shard is not None:
        return VerificationReport(len(ordered), 0, 0, {}, {}, (0.0, 0.0))
    with H5Reader(output) as reader:
        stored = np.flatnonzero(~numbers.found)
        numbers.rows[stored] = reader.geometry_numbers([ordered[place] for place in stored.tolist()]).rows
        judged = judge_unsure(ordered, stamps, numbers, reader, options)
    if judged:
        with ShardStore(output, settings, if_settings_changed="recompute") as store:
            for place, geometry in judged:
                stamp = accepted_stamp(stamps[place]) if geometry.is_verified else stamps[place]
                store.add(match_key(ordered[place].name0, ordered[place].name1), geometry_to_group(geometry), stamp)
            store.merge()
        numbers.replace(dict(judged))
    return _summarise(numbers, overlays, [lens.describe() for lens in lenses.values()])


def _share_of(shard: Shard, pairs: Sequence[Pair], stamps: Sequence[str], store: ShardStore) -> tuple[list[Pair], list[str]]:
    """The pairs that one of several processes verifies, and their stamps."""
    places = shard.share([match_key(pair.name0, pair.name1) for pair in pairs], store.has_pairs(pairs))
    return [pairs[place] for place in places], [stamps[place] for place in places]


def _verify_missing(
    store: ShardStore, recipe: VerificationRecipe, pairs: Sequence[Pair], stamps: Sequence[str], executor: Executor
) -> GeometryNumbers:
    """Verifies the pairs that the store does not have with these stamps, or those of pairs that third photos confirmed.

    Returns: the numbers of the pairs that were verified now; the others stay unknown.
    """
    places = store.missing_places(pairs, stamps)
    judged = store.missing_places([pairs[i] for i in places], [accepted_stamp(stamps[i]) for i in places])
    place_of = {pairs[places[i]]: places[i] for i in judged}
    todo, numbers = list(place_of), unknown_numbers(len(pairs))
    jobs = checked_results(executor, recipe, _batches(todo))
    with progress_bar(len(pairs), "verify", "pair", len(pairs) - len(todo)) as bar, contextlib.closing(jobs):
        for batch, geometries in jobs:
            if isinstance(geometries, Exception):
                raise geometries
            for pair, geometry in zip(batch, geometries, strict=True):
                store.add(match_key(pair.name0, pair.name1), geometry_to_group(geometry), stamps[place_of[pair]])
            numbers.replace({place_of[pair]: geometry for pair, geometry in zip(batch, geometries, strict=True)})
            bar.update(len(batch))
    store.merge()
    return numbers


def _batches(pairs: Sequence[Pair]) -> list[tuple[Pair, ...]]:
    """The pairs in batches of at most `BATCH`, in an order in which pairs of the same image are close together.

    Images are divided into groups of `GROUP`, and pairs of the same two groups follow each other, so that the keypoints of an
    image are read once while its pairs are at work. Few pairs make small batches, so that all cores have some.
    """
    names = sorted({name for pair in pairs for name in (pair.name0, pair.name1)})
    group = {name: i // GROUP for i, name in enumerate(names)}
    in_groups = sorted(pairs, key=lambda pair: (group[pair.name0], group[pair.name1], pair.name0, pair.name1))
    size = min(BATCH, -(-len(pairs) // 64) or 1)
    return [tuple(in_groups[start : start + size]) for start in range(0, len(in_groups), size)]


def _summarise(numbers: GeometryNumbers, overlays: Overlays, lenses: list[str]) -> VerificationReport:
    """The report, and a warning if there are overlays."""
    rows, errors = numbers.rows, numbers.rows["max_error_px"]
    report = VerificationReport(
        num_pairs=len(numbers),
        num_verified_pairs=numbers.num_verified,
        num_inliers=numbers.num_inliers,
        configurations=dict(sorted((CONFIGURATIONS[config], count) for config, count in _counts(rows["config"]).items())),
        rejected_because=dict(sorted((REASONS[reason], count) for reason, count in _counts(rows["reason"]).items() if reason)),
        max_error_px=(float(errors.min()), float(errors.max())) if len(errors) else (0.0, 0.0),
        num_confirmed_pairs=int((numbers.verified & ~np.isnan(rows["confirmed"])).sum()),
        lenses=lenses,
    )
    if not overlays:
        return report
    num_matches, num_pairs = int(rows["num_stationary"].sum()), int((rows["num_stationary"] > 0).sum())
    logger.warning(
        "%d matches of %d of %d pairs stand still in the frame although the camera moves (%s): a logo, a border, a time strip or "
        "the hood of a car. They are dropped; a mask of this region also saves its keypoints (dataset.masks)",
        *(num_matches, num_pairs, len(numbers), overlays.describe()),
    )
    where = overlays.describe()
    return dataclasses.replace(report, num_stationary_matches=num_matches, num_stationary_pairs=num_pairs, overlays=where)


def _counts(values: np.ndarray) -> dict[int, int]:
    """Number of times that each value occurs."""
    return dict(zip(*(part.tolist() for part in np.unique(values, return_counts=True)), strict=True))


@dataclass(frozen=True)
class _Sample:
    """Some of the pairs of a collection, from which is found what concerns all of them."""

    pairs: Sequence[Pair]
    images: Callable[[str], _Image]
    """The images, read once, by name."""
    matches: H5Reader
    found: dict[Pair, Matches] = dataclasses.field(default_factory=dict)
    """The matches that were read."""

    @classmethod
    def of(cls, pairs: Sequence[Pair], features: H5Reader, matches: H5Reader, cameras: Mapping[str, Camera]) -> _Sample:
        """At most `MAX_SAMPLED_PAIRS` of the pairs: those with the smallest checksums of their names.

        A few added pairs then hardly change the choice, and with it what is found, which would mean to verify all pairs again.
        """
        if len(pairs) > MAX_SAMPLED_PAIRS:
            checksums = np.fromiter((zlib.crc32(f"{pair.name0}\n{pair.name1}".encode()) for pair in pairs), np.uint32, len(pairs))
            pairs = [pairs[i] for i in np.sort(np.argsort(checksums, kind="stable")[:MAX_SAMPLED_PAIRS]).tolist()]
        return cls(pairs, functools.lru_cache(MAX_SAMPLED_PAIRS)(functools.partial(_load_image, features, cameras)), matches)

    def find_overlays(self, max_error_px: float | None) -> Overlays:
        """The overlays of the collection; none if the limit is None."""
        if max_error_px is None:
            return Overlays()
        read = self.images
        return find_overlays(
            ((read(pair.name0).features, read(pair.name1).features, self._read(pair)) for pair in self.pairs),
            max_error_px,
        )

    def find_lenses(self, undecided: Mapping[str, str], overlays: Overlays, options: VerificationOptions) -> dict[str, Lens]:
        """Fisheye and strongly distorting lenses by group of `undecided`."""
        if not undecided:
            return {}
        counts = np.array([len(self._read(pair)) for pair in self.pairs], np.int64)
        strongest, found = strongest_pairs(self.pairs, counts, undecided), dict[str, Lens]()
        with colmap_log(None):
            for group, pairs in strongest.items():
                read = functools.partial(self._matched, overlays=overlays, options=options)
                lens = find_lens([read(pair) for pair in pairs[:NUM_PAIRS]], self.images(pairs[0].name0).features.image_size)
                if lens is not None:
                    names = [name for name in undecided if undecided[name] == group]
                    found[group] = dataclasses.replace(lens, without=photos_without(lens, names, pairs, read))
                    logger.info("%s", found[group].describe())
        return found

    def _read(self, pair: Pair) -> Matches:
        if pair not in self.found:
            self.found[pair] = read_matches(self.matches, pair)
        return self.found[pair]

    def _matched(self, pair: Pair, overlays: Overlays, options: VerificationOptions) -> Matched:
        image0, image1 = self.images(pair.name0), self.images(pair.name1)
        kept = drop_stationary(image0.features, image1.features, self._read(pair), overlays)
        return matched_keypoints(*_scaled(image0, image1, kept), kept, options)
