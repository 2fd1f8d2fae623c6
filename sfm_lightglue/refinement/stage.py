"""The stage two-view geometries -> finer keypoints: writes `keypoints.h5`.

Reads `features.h5`, `matches.h5`, `verification.h5` and the photos. All keypoints are refined again if anything before changed.
`keypoints.h5` has the keypoints of each photo that has verified matches, in the order of `features.h5`; `database` takes them.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from sfm_lightglue import __version__
from sfm_lightglue.cameras import Camera
from sfm_lightglue.execution.cache import BoundedCache
from sfm_lightglue.execution.devices import num_cores
from sfm_lightglue.execution.progress import progress_bar
from sfm_lightglue.execution.threads import torch_threads
from sfm_lightglue.geometries.inputs import check_geometries, input_fingerprints
from sfm_lightglue.images import UnreadableImage
from sfm_lightglue.products import Features, Pair, sorted_pairs
from sfm_lightglue.ranges import check_ranges
from sfm_lightglue.refinement.points import MatchedKeypoints, RefinedKeypoints, refine_points
from sfm_lightglue.refinement.tiles import Tiles, blank_tiles, cut_tiles
from sfm_lightglue.storage import GroupData, H5Reader, ShardStore, features_to_group, match_key

logger = logging.getLogger(__name__)

CACHE_BYTES = 500_000_000
"""Memory for tiles, of about 300 photos."""
MATCH_BYTES = 8
"""A verified match in a file of geometries takes at least two numbers of 32 bits."""
NO_REFINEMENT = "none"
"""The choice of `refinement` that keeps the detector's keypoints."""
UNREAD = "-unread"
"""Ends the stamp of a photo that could not be read: the next call tries again."""


@dataclass(frozen=True)
class RefinementOptions:
    """How keypoints are refined; configs/refinement holds the values."""

    name: str
    """`patches`, or `none`: keypoints stay as the detector found them."""
    max_move_px: float
    """Largest distance that a keypoint moves, px of the resized image that the detector saw."""
    min_correlation: float
    """Smallest correlation of two aligned patches, 0..1."""
    fine_keypoints: bool
    """Refine also the keypoints of extractors with `finds_fine_keypoints`."""
    max_matches: int
    """With more verified matches keypoints stay: the matches of all pairs are in memory together, 40 bytes each."""

    def __post_init__(self) -> None:
        if self.name not in ("patches", NO_REFINEMENT):
            raise ValueError(f"refinement={self.name} does not exist: expected patches or {NO_REFINEMENT}")
        check_ranges(self, "refinement", max_move_px="> 0", min_correlation=">= 0, <= 1", max_matches=">= 0")


@dataclass(frozen=True)
class RefinementReport:
    """What a call of `refine_keypoints` did."""

    num_matched_keypoints: int
    """Keypoints with a verified match."""
    num_aligned: int
    """Keypoints that were aligned to others. The rest fits to none and stays."""
    median_move_px: float
    """Median distance that aligned keypoints moved, px of the resized images; 0 without any."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Photos that could not be read, with the reason. Their keypoints stay."""


def refine_keypoints(
    images: Path | str,
    features: Path | str,
    matches: Path | str,
    geometries: Path | str,
    pairs: Iterable[Pair],
    output: Path | str,
    options: RefinementOptions,
    cameras: Mapping[str, Camera],
    fine: Sequence[str] = (),
) -> RefinementReport:
    """Writes the refined keypoints to the file `output`. Equal input gives equal bytes; nothing is done if it has them already.

    Args:
        images: folder of the photos.
        features, matches, geometries: files of the stages before.
        pairs: all pairs; each must be in the files.
        output: the file to write, `keypoints.h5`.
        options: limits.
        cameras: the cameras that the pairs were verified with, by the name of the image.
        fine: kinds of features whose keypoints stay, if `features` has several kinds.

    Raises:
        KeyError: A pair was not verified.
        ValueError: A pair was verified with other features, matches or cameras.
    """
    ordered = sorted_pairs(pairs)
    with H5Reader(features) as feature_reader, H5Reader(matches) as match_reader, H5Reader(geometries) as geometry_reader:
        stamps = check_geometries(ordered, geometry_reader, feature_reader, match_reader, cameras)
        settings = {"options": asdict(options), **input_fingerprints(feature_reader, match_reader), "version": __version__}
        settings |= {"fine": sorted(fine)} if fine else {}
        stamp = _stamp_of(ordered, stamps)
        collection = _Collection.read(feature_reader, geometry_reader, ordered, fine)
    with ShardStore(output, settings, if_settings_changed="recompute") as store:
        if store.missing(dict.fromkeys(collection.names, stamp)):
            photos = _Photos(Path(images), collection)
            state = _refine(collection, photos, options)
            for name, refined in collection.moved_features(state):
                store.add(name, _to_group(refined), stamp + UNREAD if name in photos.skipped else stamp)
        else:
            photos = None
        store.merge(drop=sorted({*store.stamps} - {*collection.names}))
    with H5Reader(output) as reader:
        return collection.summarise(reader, photos.skipped if photos else {})


def is_too_small_for(geometries: Path, limit: int) -> bool:
    """Whether a file of geometries is too small for more than `limit` verified matches. False if segments stand for it."""
    return geometries.is_file() and geometries.stat().st_size < limit * MATCH_BYTES


def find_refined(path: Path | str, pairs: Sequence[Pair], stamps: Sequence[str], names: Iterable[str]) -> dict[str, Features]:
    """The features in `keypoints.h5`, without descriptors, by the name of their photo.

    Args:
        path: the file that `refine_keypoints` has written.
        pairs: all pairs by their names, each once.
        stamps: the stamp of each pair's geometry.
        names: photos to look for.

    Raises: ValueError if the file was made from other geometries.
    """
    stamp = _stamp_of(pairs, stamps)
    with H5Reader(path) as reader:
        found = [name for name in names if reader.has(name)]
        if any(reader.stamp(name) not in (stamp, stamp + UNREAD) for name in found):
            raise ValueError(f"{path} was made from other features, matches or pairs: run the stage refine again")
        return {name: reader.bare_features(name) for name in found}


def _stamp_of(pairs: Sequence[Pair], stamps: Sequence[str]) -> str:
    """What all refined keypoints are computed from: the features, matches and cameras of all pairs."""
    content = "\n".join(f"{match_key(pair.name0, pair.name1)} {stamp}" for pair, stamp in zip(pairs, stamps, strict=True))
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _to_group(features: Features) -> GroupData:
    group = features_to_group(features)
    return GroupData({name: data for name, data in group.datasets.items() if name != "scores"}, group.attributes)


@dataclass(frozen=True)
class _Collection:
    """The photos that have verified matches."""

    names: list[str]
    features: list[Features]
    """Without descriptors and scores."""
    first: np.ndarray
    """int64 (photos + 1,): number of the first keypoint of each photo."""
    edges: np.ndarray
    """int64 (e, 2), see `MatchedKeypoints`."""
    pair_starts: np.ndarray
    """int64 (pairs + 1,), see `MatchedKeypoints`."""
    is_matched: np.ndarray
    """bool (n,): keypoints with a verified match."""

    @classmethod
    def read(cls, features: H5Reader, geometries: H5Reader, pairs: Sequence[Pair], fine: Sequence[str]) -> _Collection:
        inliers = {pair: geometries.inlier_matches(pair.name0, pair.name1) for pair in pairs}
        inliers = {pair: matches for pair, matches in inliers.items() if len(matches)}
        names = sorted({name for pair in inliers for name in (pair.name0, pair.name1)})
        found = [features.bare_features(name) for name in names]
        first = np.cumsum([0, *map(len, found)])
        start, is_fine = dict(zip(names, first.tolist(), strict=False)), np.zeros(first[-1], bool)
        for name in names if fine else []:
            for part in features.kinds(name):
                is_fine[start[name] + part.start : start[name] + part.start + part.count] = part.kind in fine
        numbered = [rows + np.array([start[pair.name0], start[pair.name1]]) for pair, rows in inliers.items()]
        numbered = [rows[~is_fine[rows].any(axis=1)] for rows in numbered]
        edges = np.concatenate([np.zeros((0, 2), np.int64), *numbered])
        is_matched = np.zeros(first[-1], bool)
        is_matched[edges] = True
        return cls(names, found, first, edges, np.cumsum([0, *map(len, numbered)]), is_matched)

    def moved_features(self, state: RefinedKeypoints) -> Iterable[tuple[str, Features]]:
        """The features of each photo with the keypoints of `state`, and its name."""
        for i, (name, features) in enumerate(zip(self.names, self.features, strict=True)):
            keypoints = features.keypoints.copy()
            rows = np.flatnonzero(state.steps[self.first[i] : self.first[i + 1]] > 0)
            places = state.positions[self.first[i] + rows].astype(np.float32)
            inside = ((places >= -0.5) & (places <= np.array(features.image_size, np.float32) - 1)).all(axis=1)
            keypoints[rows[inside]] = places[inside]
            yield name, replace(features, keypoints=keypoints)

    def summarise(self, refined: H5Reader, skipped: dict[str, str]) -> RefinementReport:
        """The report, from the stored keypoints."""
        moves = [
            np.linalg.norm(refined.bare_features(name).keypoints - features.keypoints, axis=1) / features.pixel_scale
            for name, features in zip(self.names, self.features, strict=True)
        ]
        all_moves = np.concatenate([np.zeros(0), *moves])
        moved = all_moves[all_moves > 0]
        median = float(np.median(moved)) if len(moved) else 0.0
        return RefinementReport(int(self.is_matched.sum()), len(moved), median, skipped)


class _Photos:
    """The tiles of photos; those used last stay in memory. Photos that cannot be read have black tiles, and are logged."""

    def __init__(self, images: Path, collection: _Collection) -> None:
        self.skipped: dict[str, str] = {}
        self._images, self._collection, self._lock = images, collection, threading.Lock()
        self.tiles = BoundedCache(self._cut, lambda tiles: tiles.num_bytes, CACHE_BYTES)

    def _cut(self, photo: int) -> Tiles:
        collection = self._collection
        name = collection.names[photo]
        features = replace(collection.features[photo], name=name)
        numbers = np.flatnonzero(collection.is_matched[collection.first[photo] : collection.first[photo + 1]])
        if name not in self.skipped:
            try:
                return cut_tiles(self._images, features, numbers)
            except UnreadableImage as error:
                logger.warning("the keypoints of %s are not refined: %s", name, error)
                with self._lock:
                    self.skipped[name] = str(error)
        return blank_tiles(features, numbers)


def _refine(collection: _Collection, photos: _Photos, options: RefinementOptions) -> RefinedKeypoints:
    positions = np.concatenate([np.zeros((0, 2)), *(features.keypoints.astype(np.float64) for features in collection.features)])
    max_move = np.array([options.max_move_px * features.pixel_scale for features in collection.features], np.float64)
    keypoints = MatchedKeypoints(collection.first, positions, max_move, collection.edges, collection.pair_starts)
    total, done = int(collection.is_matched.sum()), 0
    workers = num_cores()
    with ThreadPoolExecutor(workers) as pool, torch_threads(workers), progress_bar(total, "refine", "keypoint") as bar:

        def tell(number: int) -> None:
            nonlocal done
            bar.update(number - done)
            done = number

        state = refine_points(keypoints, photos.tiles, options.min_correlation, pool, tell)
        tell(total)
    return state
