"""The stage matches -> two-view geometries: verifies every pair and writes `verification.h5`.

Reads `features.h5` and `matches.h5`. A pair is verified again only if its features, its matches or its cameras changed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sfm_lightglue import __version__
from sfm_lightglue.cameras import Camera
from sfm_lightglue.colmap import colmap_log
from sfm_lightglue.execution.executor import Executor, checked_results
from sfm_lightglue.execution.progress import progress_bar
from sfm_lightglue.execution.shards import Shard
from sfm_lightglue.execution.threads import ThreadExecutor
from sfm_lightglue.geometries.stationary import MAX_SAMPLED_PAIRS, Overlays, drop_stationary, find_overlays
from sfm_lightglue.geometries.verification import VerificationOptions, verify_matches
from sfm_lightglue.products import Features, Matches, Pair, TwoViewGeometry
from sfm_lightglue.storage import H5Reader, ShardStore, geometry_to_group, match_key

logger = logging.getLogger(__name__)


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
    num_stationary_matches: int = 0
    """Matches of all pairs that were dropped because they stand still in an overlay, such as a logo or a car hood."""
    num_stationary_pairs: int = 0
    """Pairs that had such matches."""
    overlays: str = ""
    """Where the overlays lie in the frame, such as `rows 75-100 %, columns 0-100 %`; empty without any."""


@dataclass(frozen=True)
class VerificationRecipe:
    """Opens the files of the stage once per process, and yields the function that verifies a pair. Picklable."""

    features: Path
    matches: Path
    cameras: Mapping[str, Camera]
    """Cameras by image name."""
    options: VerificationOptions
    overlays: Overlays = dataclasses.field(default_factory=Overlays)
    """Regions of the frame whose stationary matches are dropped."""

    @contextlib.contextmanager
    def __call__(self, device: str = "cpu") -> Iterator[Callable[[Pair], TwoViewGeometry]]:
        """Yields the function from a pair to its two-view geometry; several threads may call it. `device` is not used."""
        colmap_cameras = {name: camera.to_colmap() for name, camera in self.cameras.items()}
        with H5Reader(self.features) as features, H5Reader(self.matches) as matches, colmap_log(None):

            def verify(pair: Pair) -> TwoViewGeometry:
                features0, features1 = (features.features(name, with_descriptors=False) for name in (pair.name0, pair.name1))
                camera0, camera1 = colmap_cameras[pair.name0], colmap_cameras[pair.name1]
                found = read_matches(matches, pair)
                kept = drop_stationary(features0, features1, found, self.overlays)
                geometry = verify_matches(camera0, camera1, features0, features1, kept, self.options)
                if kept is found:
                    return geometry
                return dataclasses.replace(geometry, num_matches=len(found), num_stationary=len(found) - len(kept))

            yield verify


def verify_pairs(
    features: Path | str,
    matches: Path | str,
    pairs: Iterable[Pair],
    output: Path | str,
    options: VerificationOptions,
    cameras: Mapping[str, Camera],
    *,
    names: Iterable[str] | None = None,
    executor: Executor | None = None,
    shard: Shard | None = None,
) -> VerificationReport:
    """Writes the two-view geometries of all pairs to the file `output`. Equal input gives equal bytes.

    If `output` was written with other options, features or matches, all pairs are verified again, with a warning. (The stages
    that write features and matches raise an error instead, because recomputing them is expensive.)

    Args:
        features: file of features.
        matches: file of matches; every pair must be in it.
        pairs: the pairs to verify.
        output: the file to write, `verification.h5`. Other pairs in it are kept.
        options: limits of the verification.
        cameras: camera of each image by name, see `cameras.choose_cameras`.
        names: the images that the pairs may contain; by default all images of `features`.
        executor: decides where the pairs are verified; None for one thread per core.
        shard: the share of this process, if several divide the work (`execution=shards`); the report is then about this share.

    Raises:
        KeyError: A pair has no matches, or an image has no features.
        ValueError: A pair has an image that is not in `names`, or the matches were made from other features.
    """
    ordered = sorted(set(pairs))
    with H5Reader(features) as feature_reader, H5Reader(matches) as match_reader:
        check_names(ordered, feature_reader.names() if names is None else set(names), feature_reader)
        stamps = PairStamps.read(ordered, feature_reader, match_reader)
        _check_origin(ordered, stamps, feature_reader, match_reader)
        settings = {"options": asdict(options), **_input_fingerprints(feature_reader, match_reader), "version": __version__}
        overlays = _find_overlays(ordered, feature_reader, match_reader, options.stationary_max_error_px)
        if overlays:
            settings["overlays"] = overlays.to_settings()
        stationary = _count_stationary(ordered, feature_reader, match_reader, overlays)
    recipe = VerificationRecipe(Path(features), Path(matches), dict(cameras), options, overlays)
    writer = "" if shard is None else shard.writer
    with ShardStore(output, settings, if_settings_changed="recompute", writer=writer) as store:
        chosen = ordered if shard is None else _share_of(shard, ordered, store)
        _verify_missing(store, recipe, stamps.of_geometries(chosen, cameras), executor or ThreadExecutor())
    if shard is not None:
        return VerificationReport(len(chosen), 0, 0, {}, {}, (0.0, 0.0))
    with H5Reader(output) as reader:
        report = _summarise([reader.geometry(pair.name0, pair.name1) for pair in ordered])
    return dataclasses.replace(report, **stationary)


def _share_of(shard: Shard, pairs: Sequence[Pair], store: ShardStore) -> list[Pair]:
    """The pairs that one of several processes verifies."""
    by_key = {match_key(pair.name0, pair.name1): pair for pair in pairs}
    return [by_key[key] for key in shard.share([*by_key], store.stamps)]


def _verify_missing(store: ShardStore, recipe: VerificationRecipe, stamps: Mapping[Pair, str], executor: Executor) -> None:
    """Verifies the pairs that the store does not have with these stamps."""
    stamp_of_key = {match_key(pair.name0, pair.name1): stamp for pair, stamp in stamps.items()}
    missing = set(store.missing(stamp_of_key))
    todo = [pair for pair in stamps if match_key(pair.name0, pair.name1) in missing]
    jobs = checked_results(executor, recipe, todo)
    with progress_bar(len(stamps), "verify", "pair", len(stamps) - len(todo)) as bar, contextlib.closing(jobs):
        for pair, geometry in jobs:
            if isinstance(geometry, Exception):
                raise geometry
            store.add(match_key(pair.name0, pair.name1), geometry_to_group(geometry), stamps[pair])
            bar.update()
    store.merge()


def _summarise(geometries: list[TwoViewGeometry]) -> VerificationReport:
    configurations = Counter(geometry.configuration for geometry in geometries)
    reasons = Counter(geometry.rejected_because for geometry in geometries if geometry.rejected_because)
    errors = [geometry.max_error_px for geometry in geometries]
    return VerificationReport(
        num_pairs=len(geometries),
        num_verified_pairs=sum(geometry.is_verified for geometry in geometries),
        num_inliers=sum(len(geometry.inlier_matches) for geometry in geometries),
        configurations=dict(sorted(configurations.items())),
        rejected_because=dict(sorted(reasons.items())),
        max_error_px=(min(errors, default=0.0), max(errors, default=0.0)),
    )


# --- overlays ------------------------------------------------------------------------------------------------------------


def _find_overlays(pairs: list[Pair], features: H5Reader, matches: H5Reader, max_error_px: float | None) -> Overlays:
    """The overlays of the collection, from at most `MAX_SAMPLED_PAIRS` pairs; none if the limit is None."""
    if max_error_px is None:
        return Overlays()
    step = -(-len(pairs) // MAX_SAMPLED_PAIRS) or 1
    return find_overlays(_read_each(pairs[::step], features, matches), max_error_px)


def _count_stationary(pairs: list[Pair], features: H5Reader, matches: H5Reader, overlays: Overlays) -> dict[str, Any]:
    """The fields of the report about overlays, and a warning if there are any."""
    if not overlays:
        return {}
    dropped = [len(each[2]) - len(drop_stationary(*each, overlays)) for each in _read_each(pairs, features, matches)]
    num_matches, num_pairs, where = sum(dropped), sum(number > 0 for number in dropped), overlays.describe()
    logger.warning(
        "%d matches of %d of %d pairs stand still in the frame although the camera moves (%s): a logo, a border, a time strip or "
        "the hood of a car. They are dropped; a mask of this region also saves its keypoints (dataset.masks)",
        *(num_matches, num_pairs, len(pairs), where),
    )
    return {"num_stationary_matches": num_matches, "num_stationary_pairs": num_pairs, "overlays": where}


def _read_each(pairs: Iterable[Pair], features: H5Reader, matches: H5Reader) -> Iterator[tuple[Features, Features, Matches]]:
    """The features without descriptors and the matches of each pair. The features of the last 1000 images are kept (25 MB)."""
    read = functools.lru_cache(1000)(functools.partial(features.features, with_descriptors=False))
    for pair in pairs:
        yield read(pair.name0), read(pair.name1), read_matches(matches, pair)


# --- what the geometries were computed from ------------------------------------------------------------------------------


@dataclass(frozen=True)
class PairStamps:
    """Stamps of the features and matches of some pairs. They show whether a stored geometry is still valid."""

    images: Mapping[str, str]
    """Stamp of the features by image name."""
    matches: Mapping[Pair, str]
    """Stamp of the matches by pair; empty if the pair has no matches."""

    @staticmethod
    def read(pairs: Iterable[Pair], features: H5Reader, matches: H5Reader) -> PairStamps:
        """The stamps in the files of features and matches."""
        pairs = list(pairs)
        names = sorted({name for pair in pairs for name in (pair.name0, pair.name1)})
        return PairStamps(
            {name: features.stamp(name) for name in names},
            {pair: matches.match_stamp(pair.name0, pair.name1) for pair in pairs},
        )

    def of_geometries(self, pairs: Iterable[Pair], cameras: Mapping[str, Camera]) -> dict[Pair, str]:
        """The stamp of each pair's geometry: a hash of the stamps of its features and matches, and of its cameras."""

        def stamp(pair: Pair) -> str:
            of_images = [(self.images[name], cameras[name]) for name in (pair.name0, pair.name1)]
            return hashlib.sha256(repr((self.matches[pair], of_images)).encode()).hexdigest()[:16]

        return {pair: stamp(pair) for pair in pairs}


def check_names(pairs: Iterable[Pair], names: Iterable[str], features: H5Reader) -> None:
    """Raises: KeyError if an image has no features, ValueError if a pair has an image that is not in `names`."""
    names = set(names)
    for name in sorted(names):
        if not features.has(name):
            features.features(name)  # raises, with the closest name
    unknown = sorted({name for pair in pairs for name in (pair.name0, pair.name1)} - names)
    if unknown:
        raise ValueError(f"{len(unknown)} images of the pairs are missing, such as {unknown[0]!r}: run the stage pairs again")


def check_geometries(
    pairs: Iterable[Pair], geometries: H5Reader, features: H5Reader, matches: H5Reader, cameras: Mapping[str, Camera]
) -> None:
    """Raises: KeyError if a pair was not verified, ValueError if it was verified with other features, matches or cameras."""
    for key, expected in _input_fingerprints(features, matches).items():
        if geometries.settings.get(key) != expected:
            raise ValueError(f"{geometries.path} was made with other {key}: run the stage verify again")
    for pair, expected in PairStamps.read(pairs, features, matches).of_geometries(pairs, cameras).items():
        if not (stamp := geometries.stamp(match_key(pair.name0, pair.name1))):
            geometries.geometry(pair.name0, pair.name1)  # raises
        if stamp != expected:
            raise ValueError(
                f"{geometries.path}: {pair.name0!r} and {pair.name1!r} were verified with other features, matches or cameras: "
                "run the stage verify again"
            )


def read_matches(reader: H5Reader, pair: Pair) -> Matches:
    """The matches of a pair. Raises: KeyError if the pair was not matched."""
    matches = reader.find_matches(pair.name0, pair.name1)
    if matches is None:
        raise KeyError(f"{reader.path} has no matches of {pair.name0!r} and {pair.name1!r}: run the stage match first")
    return matches


def _check_origin(pairs: Iterable[Pair], stamps: PairStamps, features: H5Reader, matches: H5Reader) -> None:
    """Raises: ValueError if the matches were made from other features. Files of other programs do not say from which."""
    origin = matches.settings.get("features")
    if origin is None:
        return
    of_images = {pair: f"{stamps.images[pair.name0]} {stamps.images[pair.name1]}" for pair in pairs}
    changed = [pair for pair in pairs if stamps.matches[pair] not in ("", of_images[pair])]
    if origin != features.fingerprint:
        what = f"{matches.path} was made with other features than {features.path} has"
    elif changed:
        pair = changed[0]
        what = f"the features of {len(changed)} pairs changed after they were matched, such as {pair.name0!r} and {pair.name1!r}"
    else:
        return
    raise ValueError(f"{what}: run the stage match again")


def _input_fingerprints(features: H5Reader, matches: H5Reader) -> dict[str, str]:
    return {"features": features.fingerprint, "matches": matches.fingerprint}
