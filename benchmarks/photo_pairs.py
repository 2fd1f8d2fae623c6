"""Pairs of photos for the benchmarks: their choice, their features and matches, and the number of correct matches."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import pycolmap
from early_rejection import read_groups

from sfm_lightglue.cameras import choose_cameras
from sfm_lightglue.colmap import colmap_log
from sfm_lightglue.config import compose_config
from sfm_lightglue.evaluation.pairs import evaluate_homography, evaluate_pair_poses, homography_auc
from sfm_lightglue.features.stage import extract_features
from sfm_lightglue.geometries.verification import verify_matches
from sfm_lightglue.geometry import sampson_error, warp_points
from sfm_lightglue.pair_files import write_pairs
from sfm_lightglue.pipeline import match
from sfm_lightglue.poses import PosedCamera, fundamental_matrix
from sfm_lightglue.products import Features, Matches, Pair
from sfm_lightglue.run_context import Run

MAX_ERROR_PX = 3.0
"""Maximum Sampson distance of a correct match, px of the photos. The points marked by hand are within 2.1 px."""
MAX_EPIPOLAR_PX = 10.0
"""The same for ground-truth poses. The poses of scannet_pairs15 come from RGB-D SLAM and are several px off."""
NUM_NEIGHBOURS, MAX_SHIFT_PX = 5, 60.0
"""Limits within which a correct match agrees with marked points nearby. Each marked point of the four pairs meets them."""
PHOTOS_A_PLACE, SEED = 2, 0
"""Maximum number of photos of each place, and the seed of their choice, for the pairs of different places."""

RANSAC_SEEDS = range(10)
"""Seeds over which AUCs are averaged. Another seed changes the AUC of 15 hard poses by up to 10 points, and of 14 homographies
by up to 5."""
NO_MATCHES = Matches(np.zeros((0, 2), np.int32), np.zeros(0, np.float32))

Names = tuple[str, str]
"""Names of the two photos of a pair."""


@dataclass(frozen=True)
class MatchedPair:
    """Features and matches of two photos."""

    features0: Features
    features1: Features
    matches: Matches

    @property
    def names(self) -> Names:
        """Names of the photos."""
        return self.features0.name, self.features1.name

    @property
    def points(self) -> tuple[np.ndarray, np.ndarray]:
        """The matched keypoints of both photos, float32 (k, 2) each."""
        indices = self.matches.indices
        return self.features0.keypoints[indices[:, 0]], self.features1.keypoints[indices[:, 1]]


@dataclass(frozen=True)
class MarkedPair:
    """Corresponding points in two images, marked by hand."""

    name0: str
    name1: str
    points0: np.ndarray
    """float64 (m, 2), px, centre of the top-left pixel at (0, 0)."""
    points1: np.ndarray
    """float64 (m, 2): the same places in the same rows."""

    @property
    def label(self) -> str:
        """Head of the column."""
        return f"{Path(self.name0).stem} {Path(self.name1).stem}"

    def num_correct(self, points0: np.ndarray, points1: np.ndarray) -> float:
        """Estimated number of correct matches among matched points (n, 2), (n, 2).

        It is the number of matches that agree with the marked points, minus the wrong matches that agree by chance. A match
        agrees if two conditions hold. It is within MAX_ERROR_PX of the epipolar geometry fitted to the marked points. And it is
        within MAX_SHIFT_PX of the position that one of its NUM_NEIGHBOURS nearest marked points predicts: the point moves like
        its neighbour, and its offset from the neighbour is turned and scaled by the affinity fitted to all marked points.

        The chance that a wrong match agrees is estimated by combining the first point of each match with the second point of
        another match. If c of n matches are correct, c + chance (n - c) are expected to agree.
        """
        if len(points0) == 0:
            return 0.0
        fundamental, places = self._fundamental(), self._places(points0)

        def agreeing(shift: int) -> float:
            partners = np.roll(points1, shift, axis=0)
            near = (np.linalg.norm(places - partners[:, None], axis=2) <= MAX_SHIFT_PX).any(axis=1)
            return float(np.mean(near & (sampson_error(fundamental, points0, partners) <= MAX_ERROR_PX)))

        chance = float(np.mean([agreeing(shift) for shift in range(1, len(points0))] or [0.0]))
        return len(points0) * max(0.0, (agreeing(0) - chance) / (1 - chance)) if chance < 1 else 0.0

    def _fundamental(self) -> np.ndarray:
        """The fundamental matrix (3, 3). Raises: ValueError if the marked points do not determine it."""
        options = pycolmap.RANSACOptions(max_error=MAX_ERROR_PX, max_num_trials=10000, random_seed=0)
        estimate = pycolmap.estimate_fundamental_matrix(self.points0, self.points1, options)
        if estimate is None:
            raise ValueError(f"the {len(self.points0)} points marked in {self.name0} and {self.name1} fit no two views")
        return estimate["F"]

    def _places(self, points0: np.ndarray) -> np.ndarray:
        """float64 (n, k, 2): the positions in image 1 of points (n, 2), predicted by each of the k nearest marked points."""
        ones = np.ones(len(self.points0))
        affinity = np.linalg.lstsq(np.column_stack([self.points0, ones]), self.points1, rcond=None)[0][:2]
        offsets = points0[:, None] - self.points0
        nearest = np.argsort(np.linalg.norm(offsets, axis=2), axis=1)[:, :NUM_NEIGHBOURS]
        return self.points1[nearest] + np.take_along_axis(offsets, nearest[..., None], axis=1) @ affinity


def extract_listed(images: Path, out: Path, overrides: Sequence[str], pairs: Iterable[Names]) -> Run:
    """Computes the features of the photos of the pairs, unless `out` has them already."""
    run = Run.create(compose_config(["dataset=folder", f"dataset.images={images}", f"output={out}", *overrides]))
    names = sorted({name for pair in pairs for name in pair})
    with run.folder.locked():
        extract_features(
            images,
            run.folder.features,
            run.extractor(),
            names=names,
            executor=run.executor(),
            if_settings_changed=run.execution.if_settings_changed,
        )
    return run


def match_listed(images: Path, out: Path, overrides: Sequence[str], pairs: Iterable[Names]) -> Run:
    """Computes features and matches of the pairs, unless `out` has them already."""
    pairs = list(pairs)
    run = extract_listed(images, out, overrides, pairs)
    with run.folder.locked():
        write_pairs(run.folder.pairs, sorted(Pair(min(names), max(names)) for names in pairs))
        match(run)
    return run


def matched_pairs(run: Run, pairs: Iterable[Names]) -> list[MatchedPair]:
    """The stored features and matches of the pairs."""
    with run.folder.open_features() as features, run.folder.open_matches() as matches:
        return [
            MatchedPair(features.features(name0), features.features(name1), matches.find_matches(name0, name1) or NO_MATCHES)
            for name0, name1 in pairs
        ]


def num_verified(run: Run, pairs: Sequence[MatchedPair]) -> list[int]:
    """Number of verified matches of each pair; 0 for pairs that the pipeline would reject."""
    options, limits = run.options.database, run.options.geometries
    sizes = {features.name: features.image_size for pair in pairs for features in (pair.features0, pair.features1)}
    cameras = choose_cameras(run.images, sizes, options.intrinsics, options.camera_model, {}).cameras
    counts = []
    with colmap_log(None):
        for pair in pairs:
            both = pair.features0, pair.features1
            camera0, camera1 = (cameras[features.name].to_colmap() for features in both)
            geometry = verify_matches(camera0, camera1, *both, pair.matches, limits)
            counts.append(len(geometry.inlier_matches))
    return counts


def pose_auc(pairs: Sequence[MatchedPair], truth: Mapping[str, PosedCamera]) -> tuple[dict[str, float], float]:
    """AUC of the relative poses by threshold in degrees, and the number of pairs without a pose. Means over RANSAC_SEEDS."""
    names, points = [pair.names for pair in pairs], {pair.names: pair.points for pair in pairs}
    found = [evaluate_pair_poses(names, truth, points, seed=seed) for seed in RANSAC_SEEDS]
    auc = {threshold: float(np.mean([each.auc[threshold] for each in found])) for threshold in found[0].auc}
    return auc, float(np.mean([each.num_failed for each in found]))


def num_epipolar(pair: MatchedPair, truth: Mapping[str, PosedCamera]) -> int:
    """Number of matches within MAX_EPIPOLAR_PX of the true epipolar lines."""
    camera0, camera1 = (truth[name] for name in pair.names)
    points0, points1 = pair.points
    return int(np.sum(sampson_error(fundamental_matrix(camera0, camera1), points0 + 0.5, points1 + 0.5) <= MAX_EPIPOLAR_PX))


def corner_auc(pairs: Sequence[MatchedPair], homographies: Mapping[Names, np.ndarray]) -> dict[str, float]:
    """AUC of the corner error by threshold in px: means over RANSAC_SEEDS. The homographies (3, 3) are in COLMAP's pixels."""
    found = [
        homography_auc(
            [evaluate_homography(*pair.points, homographies[pair.names], pair.features0.image_size, seed=seed) for pair in pairs]
        )
        for seed in RANSAC_SEEDS
    ]
    return {threshold: float(np.mean([auc[threshold] for auc in found])) for threshold in found[0]}


def homography_recall(pair: MatchedPair, homography: np.ndarray) -> float:
    """Share of the matchable keypoints of image 0 that are matched within MAX_ERROR_PX.

    A keypoint is matchable if a keypoint of image 1 is within MAX_ERROR_PX of its true position. The result is NaN if no keypoint
    is matchable. The homography (3, 3) is in COLMAP's pixels.
    """
    warped, keypoints1 = warp_points(homography, pair.features0.keypoints + 0.5), pair.features1.keypoints + 0.5
    has_partner = [(np.hypot(*(keypoints1 - point).T) <= MAX_ERROR_PX).any() for point in warped]
    index0, index1 = pair.matches.indices.T
    is_correct = np.hypot(*(warped[index0] - keypoints1[index1]).T) <= MAX_ERROR_PX
    return float(is_correct.sum() / np.sum(has_partner)) if any(has_partner) else float("nan")


def different_places(data: Path, count: int = 100) -> list[Names]:
    """Pairs of photos that show different places, relative to `data`. The same folder gives the same choice."""
    place_of = read_groups(data)
    for truth in sorted([*data.glob("*/homographies.txt"), *data.glob("*/correspondences.txt")]):
        prefix = f"{truth.parent.name}/images/"
        for name0, name1 in listed_pairs(truth):
            place_of[prefix + name1] = place_of.setdefault(prefix + name0, prefix + name0)
    photos, choice = defaultdict(list), random.Random(SEED)
    for name, place in sorted(place_of.items()):
        photos[place].append(name)
    few = [(place, name) for place in photos for name in choice.sample(photos[place], min(PHOTOS_A_PLACE, len(photos[place])))]
    pairs = [(name0, name1) for (place0, name0), (place1, name1) in combinations(few, 2) if place0 != place1]
    return [(min(pair), max(pair)) for pair in sorted(choice.sample(pairs, min(count, len(pairs))))]


def listed_pairs(path: Path) -> list[Names]:
    """The two names at the beginning of each line, in order and without repetition. Lines that begin with # are comments."""
    lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
    return list(dict.fromkeys((line[0], line[1]) for line in lines if line and not line[0].startswith("#")))


def read_marked_pairs(path: Path) -> list[MarkedPair]:
    """The marked pairs of a file. Raises: ValueError for a line that is not understood. The message has its number."""
    points: dict[tuple[str, str], list[list[float]]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            name0, name1, *values = line.split()
            x0, y0, x1, y1 = map(float, values)
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}; expected `A B xA yA xB yB`") from error
        points.setdefault((name0, name1), []).append([x0, y0, x1, y1])
    return [MarkedPair(*names, *np.hsplit(np.array(rows), 2)) for names, rows in points.items()]
