"""Guided matching: reliable matches of some keypoints lead to the matches of all others, without the network.

The network matches the strongest keypoints alone. These matches are the seeds. Two models come from them:
- the fundamental matrix: a match lies within a few px of its epipolar line;
- for each seed an affine map of its surroundings, from the seeds around it: it predicts where the points near the seed are in
  image 1. Repeated structure along an epipolar line, such as a row of windows, is thus not taken for a match.
Of the keypoints that fulfil both conditions the ones with the most similar descriptors are matched, if they are the clear choice.

Pairs whose seeds are few, or disagree with the fundamental matrix, or lead to few matches, go through a second pass with more
keypoints and more layers, unless their descriptors say that it would fail too (`overlap`). If it fails, they are left to the
network.

Source: guided matching by epipolar strips: Hartley and Zisserman, Multiple View Geometry (2nd edition), algorithm 11.4; affine
maps around seeds: AdaLAM (arXiv:2006.04250), section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
import pycolmap
import torch

from sfm_lightglue.engine.batch import ImageState
from sfm_lightglue.engine.early_rejection import count_distinct
from sfm_lightglue.engine.rules import GuidedMatching, GuidedPass
from sfm_lightglue.matches.overlap import Appearance
from sfm_lightglue.once import Once
from sfm_lightglue.products import Features, Matches

MAX_SEED_ERROR_PX = 2.0
"""Largest epipolar error of a seed. All px are of the resized images that the detector saw."""
MAX_ERROR_PX = 3.0
"""Largest epipolar error (Sampson's) of a match: the fundamental matrix is known from a few seeds only."""
NUM_NEIGHBORS = 6
"""Seeds that an affine map is fitted to: a seed and those around it. Few, because surfaces are not planes."""
MAX_DEVIATION_PX = 16.0
"""A seed that its own affine map misses by more predicts nothing."""
NUM_PREDICTIONS = 3
"""Seeds that predict where a keypoint is, the nearest ones. Several, because it may lie on the surface of any of them."""
RADIUS_PX, MAX_RADIUS_PX = 8.0, 32.0
"""Smallest and largest distance of a match from its prediction."""
RADIUS_BY_RESIDUAL, RADIUS_BY_DISTANCE = 2.0, 0.05
"""The radius grows with the residuals of the affine map, and with the distance from the seed."""
DEVIATION_COST, ERROR_COST = 0.3, 0.2
"""What the similarity of descriptors loses, quadratically, up to the full radius and to the largest epipolar error."""
MARGIN = 0.1
"""The best candidate of a keypoint must be better than the second by at least this much; else none is taken."""
ENOUGH = 1.2
"""If the search finds fewer matches than this, relative to the share of the keypoints that the first pass has matched, it is
repeated with what it found as seeds."""
MIN_SEED_SIMILARITY = 0.5
"""Smallest similarity of the descriptors of these seeds."""
MIN_AGREEING = 30
"""Smallest number of seeds that agree."""
MIN_SIMILARITY = 0.4
"""Smallest similarity of the descriptors of a match that the search finds."""
MAX_CANDIDATES = 50
"""Largest mean number of keypoints near a prediction. 2 to 5 are usual. Far more means that all keypoints lie in one place: the
search would take longer than the network, and gigabytes."""
NUM_TRIALS, CONFIDENCE, SEED = 2000, 0.999, 0
"""Of RANSAC."""


def strongest_keypoints(features: Features, rule: GuidedPass) -> np.ndarray:
    """int64 (k,), ascending: the keypoints of a pass."""
    count = max(rule.min_keypoints, int(len(features) * rule.share))
    return np.sort(np.argsort(-features.scores, kind="stable")[:count])


@dataclass(frozen=True)
class GuidedPoints:
    """All keypoints of an image."""

    keypoints: np.ndarray
    """float64 (n, 2), px of the resized image that the detector saw."""
    descriptors: np.ndarray
    """float32 (n, c), unit length."""

    @classmethod
    def of(cls, features: Features) -> GuidedPoints:
        """The points of an image."""
        descriptors = features.descriptors.astype(np.float32)
        lengths = np.linalg.norm(descriptors, axis=1, keepdims=True)
        return cls(features.keypoints.astype(np.float64) / features.pixel_scale, descriptors / np.maximum(lengths, 1e-12))


def only(features: Features, rows: np.ndarray) -> Features:
    """The features with some of the keypoints, int64 (k,)."""
    scales, orientations = (None if each is None else each[rows] for each in (features.scales, features.orientations))
    return replace(
        features,
        keypoints=features.keypoints[rows],
        scores=features.scores[rows],
        descriptors=features.descriptors[rows],
        scales=scales,
        orientations=orientations,
    )


class StrongestKeypoints:
    """The keypoints of an image that a pass matches."""

    def __init__(self, features: Features, rule: GuidedPass, prepare: Callable[[Features], ImageState]) -> None:
        """Chooses the keypoints.

        Args:
            features: all keypoints of the upright image.
            rule: of the pass.
            prepare: gives what the network needs to know about keypoints; called at the first use.
        """
        self.rows = strongest_keypoints(features, rule)
        """int64 (k,), ascending: their indices among all."""
        self.keypoints = features.keypoints[self.rows]
        """float32 (k, 2), px of the photo."""
        self.growth = len(features) / len(self.rows)
        self._state = Once(lambda: prepare(only(features, self.rows)))

    @property
    def state(self) -> ImageState:
        """What the network needs to know about them. Several threads may ask for it."""
        return self._state()


class GuidedImage:
    """An image as the matcher keeps it. The first pass is prepared at once, all else for the first pair that needs it."""

    def __init__(
        self,
        features: Features,
        rule: GuidedMatching,
        prepare: Callable[[Features], ImageState],
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Prepares the first pass.

        Args:
            features: all keypoints of the upright image, enough for the first pass.
            rule: its passes.
            prepare: gives what the network needs to know about keypoints.
            dtype: of the descriptors that `overlap` compares.
        """
        fitting = [each for each in rule.passes if len(features) >= 2 * each.min_keypoints]
        self.passes = [StrongestKeypoints(features, each, prepare) for each in fitting]
        """Those of `rule` that the image has enough keypoints for."""
        self.points = GuidedPoints.of(features)
        first = self.passes[0]
        self.unit_strongest = torch.from_numpy(self.points.descriptors[first.rows]).to(first.state.state.device)
        """float32 (k, c): descriptors of the first pass."""
        descriptors = torch.from_numpy(self.points.descriptors).to(self.unit_strongest.device, dtype).contiguous()
        self.appearance = Appearance(self.points.keypoints, descriptors)
        """For the test of overlap."""
        self._state = Once(lambda: prepare(features))
        points = self.points.keypoints.nbytes + self.points.descriptors.nbytes
        parts = features.num_bytes + points + self.unit_strongest.nbytes + descriptors.nbytes
        num_prepared = len(features) + sum(len(each.rows) for each in self.passes)
        self.num_bytes = parts + first.state.num_bytes * num_prepared // len(first.rows)
        """Memory, with the states of all passes and of all keypoints, and the descriptors in 16 or 32 bits."""

    @property
    def all_keypoints(self) -> ImageState:
        """What the network needs to know about all keypoints. Several threads may ask for it."""
        return self._state()


def count_distinct_neighbors(pairs: Iterable[tuple[GuidedImage, GuidedImage]]) -> list[int]:
    """Number of distinct neighbours (`EarlyRejection`) among the keypoints of the first pass of each pair, one pair at least."""
    counts = torch.stack([count_distinct(first.unit_strongest, second.unit_strongest) for first, second in pairs])
    return [int(count) for count in counts.tolist()]


def complete_matches(
    points0: GuidedPoints, points1: GuidedPoints, seeds: Matches, growth: float, rule: GuidedPass
) -> Matches | None:
    """The matches of all keypoints of a pair, or None if the seeds are too few or doubtful or lead to too few matches.

    The scores are the similarities of the descriptors (cosines, `MIN_SIMILARITY` to 1). Kept seeds have the network's scores.
    Equal input gives equal matches.

    Args:
        points0, points1: all keypoints of the images.
        seeds: reliable matches of some of them, with the indices among all.
        growth: number of all keypoints for each one that the pass had.
        rule: the limits of the pass.
    """
    if len(seeds) < max(rule.min_seeds, MIN_AGREEING):
        return None
    fundamental, agrees = _fundamental_matrix(points0, points1, seeds)
    reliable = _only(seeds, agrees)
    if len(reliable) < MIN_AGREEING or agrees.mean() < rule.min_agreeing or reliable.scores.mean() < rule.min_mean_score:
        return None
    kept = _only(reliable, np.full(len(reliable), rule.keeps_seeds))
    found = _search(points0, points1, reliable, kept, fundamental)
    if found is not None and len(found) < ENOUGH * growth * len(seeds):
        denser = _only(found, found.scores >= MIN_SEED_SIMILARITY)
        if len(denser) < MIN_AGREEING:
            return None
        fundamental, agrees = _fundamental_matrix(points0, points1, denser)
        found = _search(points0, points1, _only(denser, agrees), kept, fundamental)
    return None if found is None or len(found) < rule.min_share * growth * len(seeds) else found


def _only(matches: Matches, rows: np.ndarray) -> Matches:
    return replace(matches, indices=matches.indices[rows], scores=matches.scores[rows])


def _search(
    points0: GuidedPoints, points1: GuidedPoints, seeds: Matches, kept: Matches, fundamental: np.ndarray
) -> Matches | None:
    """The kept matches, and those of other keypoints near the seeds. None if these are few or do not fit the seeds around them,
    or if all keypoints lie in one place."""
    if len(seeds) < MIN_AGREEING:
        return None
    maps = _affine_maps(points0.keypoints[seeds.indices[:, 0]], points1.keypoints[seeds.indices[:, 1]])
    if len(maps.seeds0) < MIN_AGREEING:
        return None
    candidates = _near_predictions(points0.keypoints, points1.keypoints, maps)
    if candidates is None:
        return None
    index0, index1, deviation = candidates
    errors = _sampson_errors(fundamental, points0.keypoints[index0], points1.keypoints[index1]) / MAX_ERROR_PX
    near = (errors < 1) & ~np.isin(index0, kept.indices[:, 0]) & ~np.isin(index1, kept.indices[:, 1])
    index0, index1, deviation, errors = (each[near] for each in (index0, index1, deviation, errors))
    similarity = np.einsum("kc,kc->k", points0.descriptors[index0], points1.descriptors[index1])
    value = (similarity - DEVIATION_COST * deviation**2 - ERROR_COST * errors**2).astype(np.float32)
    chosen = _clearly_best(index0, index1, value) & (similarity >= MIN_SIMILARITY)
    indices = np.stack([index0[chosen], index1[chosen]], axis=1).astype(np.int32)
    indices = np.concatenate([indices, kept.indices])
    scores = np.concatenate([similarity[chosen].clip(0, 1), kept.scores])
    order = np.lexsort((indices[:, 1], indices[:, 0]))
    return Matches(indices[order], scores[order], seeds.stop_layer, is_guided=True)


def _clearly_best(index0: np.ndarray, index1: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Which candidates (k,) have a value that is larger, by `MARGIN`, than all others of both of their keypoints."""
    is_best = np.ones(len(value), bool)
    for index in (index0, index1):
        order = np.lexsort((value, index))
        ends = np.flatnonzero(np.diff(index[order], append=-1))  # the last, so the best one, of each keypoint
        has_second = np.diff(ends, prepend=-1) > 1
        second = np.where(has_second, value[order[ends - 1]], -np.inf)
        clear = np.zeros(len(value), bool)
        clear[order[ends]] = value[order[ends]] - second >= MARGIN
        is_best &= clear
    return is_best


def _fundamental_matrix(points0: GuidedPoints, points1: GuidedPoints, seeds: Matches) -> tuple[np.ndarray, np.ndarray]:
    """F (3, 3) with x1.T F x0 = 0, and which seeds (k,) agree; none if there is no F."""
    seeds0, seeds1 = points0.keypoints[seeds.indices[:, 0]], points1.keypoints[seeds.indices[:, 1]]
    options = pycolmap.RANSACOptions()
    options.max_error, options.confidence, options.random_seed = MAX_SEED_ERROR_PX, CONFIDENCE, SEED
    options.max_num_trials = NUM_TRIALS
    found = pycolmap.estimate_fundamental_matrix(seeds0, seeds1, options)
    if found is None:
        return np.zeros((3, 3)), np.zeros(len(seeds0), bool)
    return np.asarray(found["F"]), np.asarray(found["inlier_mask"], bool)


def _sampson_errors(fundamental: np.ndarray, points0: np.ndarray, points1: np.ndarray) -> np.ndarray:
    """Sampson's epipolar error (k,) of each match, px."""
    ones = np.ones((len(points0), 1))
    homogeneous0, homogeneous1 = np.hstack([points0, ones]), np.hstack([points1, ones])
    lines1, lines0 = homogeneous0 @ fundamental.T, homogeneous1 @ fundamental
    residual = np.abs((homogeneous1 * lines1).sum(axis=1))
    return np.asarray(residual / np.sqrt((lines1[:, :2] ** 2).sum(axis=1) + (lines0[:, :2] ** 2).sum(axis=1) + 1e-24))


@dataclass(frozen=True)
class _AffineMaps:
    """Affine maps around k seeds: x1 = x0 @ linear + offset."""

    seeds0: np.ndarray
    """(k, 2): the seeds in image 0."""
    linear: np.ndarray
    """(k, 2, 2)."""
    offset: np.ndarray
    """(k, 2)."""
    residual: np.ndarray
    """(k,): root mean square error at the neighbours, px of image 1."""
    scale: np.ndarray
    """(k,): px of image 1 for a px of image 0."""


def _affine_maps(seeds0: np.ndarray, seeds1: np.ndarray) -> _AffineMaps:
    """The affine map around each seed, by robust least squares. A few neighbours may lie in a line, so the map is drawn a little
    to the affine map of the whole image. Seeds that do not fit their own map are left out."""
    nearest, _ = _nearest(seeds0, seeds0, NUM_NEIGHBORS)
    points0, points1 = seeds0[nearest], seeds1[nearest]  # k n 2
    whole, weights = _whole_map(seeds0, seeds1), np.ones(nearest.shape)
    for _ in range(4):
        total = weights.sum(axis=1)[:, None, None]
        mean0, mean1 = ((weights[..., None] * points).sum(axis=1, keepdims=True) / total for points in (points0, points1))
        from0, from1 = points0 - mean0, points1 - mean1
        weighted = (weights[..., None] * from0).transpose(0, 2, 1)
        normal, right = weighted @ from0, weighted @ from1
        prior = 0.025 * np.trace(normal, axis1=1, axis2=2)[:, None, None]
        linear = np.linalg.solve(normal + (prior + 1e-6) * np.eye(2), right + prior * whole)
        errors = np.linalg.norm(from1 - from0 @ linear, axis=2)
        weights = _weights(errors, np.median(errors, axis=1, keepdims=True) + 3.0) ** 2
    offset = mean1[:, 0] - (mean0 @ linear)[:, 0]
    residual = np.sqrt((weights * errors**2).sum(axis=1) / weights.sum(axis=1))
    deviation = np.linalg.norm((seeds0[:, None] @ linear)[:, 0] + offset - seeds1, axis=1)
    scale = np.sqrt(np.abs(np.linalg.det(linear)))
    fits = deviation < MAX_DEVIATION_PX
    return _AffineMaps(*(each[fits] for each in (seeds0, linear, offset, residual, scale)))


def _whole_map(seeds0: np.ndarray, seeds1: np.ndarray) -> np.ndarray:
    """The linear part (2, 2) of one affine map for all seeds, by robust least squares."""
    from0, from1 = seeds0 - seeds0.mean(axis=0), seeds1 - seeds1.mean(axis=0)
    weights = np.ones(len(seeds0))
    for _ in range(5):
        weighted = (weights[:, None] * from0).T
        linear = np.linalg.solve(weighted @ from0 + 1e-6 * np.eye(2), weighted @ from1)
        errors = np.linalg.norm(from1 - from0 @ linear, axis=1)
        weights = _weights(errors, np.median(errors) + 1.0)
    return np.asarray(linear)


def _weights(errors: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Weights of least squares for errors with outliers (Cauchy)."""
    return np.asarray(1 / (1 + (errors / scale) ** 2))


def _nearest(points: np.ndarray, others: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The `count` nearest others of each point (n, count), nearest first, and their distances."""
    squared = (points[:, None, 0] - others[None, :, 0]) ** 2 + (points[:, None, 1] - others[None, :, 1]) ** 2
    rows, nearest, distances = np.arange(len(points)), [], []
    for _ in range(min(count, len(others))):  # for few neighbours faster than a partial sort
        nearest.append(squared.argmin(axis=1))
        distances.append(np.sqrt(squared[rows, nearest[-1]]))
        squared[rows, nearest[-1]] = np.inf
    return np.stack(nearest, axis=1), np.stack(distances, axis=1)


def _near_predictions(
    keypoints0: np.ndarray, keypoints1: np.ndarray, maps: _AffineMaps
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Indices in image 0 and in image 1 of the pairs of keypoints (k,) that agree with a prediction, sorted, and the distance of
    each from its nearest prediction as a share of the radius. None if they are more than `MAX_CANDIDATES`."""
    seed, distance = _nearest(keypoints0, maps.seeds0, NUM_PREDICTIONS)
    predicted = (keypoints0[:, None, None] @ maps.linear[seed])[:, :, 0] + maps.offset[seed]  # n predictions 2
    radius = RADIUS_PX + RADIUS_BY_RESIDUAL * maps.residual[seed] + RADIUS_BY_DISTANCE * distance
    radius = np.minimum(radius, MAX_RADIUS_PX) * (1 + maps.scale[seed]) / 2
    found = _within(predicted.reshape(-1, 2), radius.ravel(), keypoints1)
    if found is None:
        return None
    query, index1 = found
    share = np.linalg.norm(keypoints1[index1] - predicted.reshape(-1, 2)[query], axis=1) / radius.ravel()[query]
    key, group = np.unique(query // seed.shape[1] * len(keypoints1) + index1, return_inverse=True)
    least = np.ones(len(key))
    np.minimum.at(least, group, share)
    return key // len(keypoints1), key % len(keypoints1), least


def _within(
    centers: np.ndarray, radius: np.ndarray, points: np.ndarray, max_candidates: float = MAX_CANDIDATES
) -> tuple[np.ndarray, np.ndarray] | None:
    """All pairs of a centre and a point within its radius: their indices (k,). None if a centre has more than `max_candidates`
    points between these y in a column, in the mean.

    The points are sorted by columns as wide as the largest circle, and by y within a column. A circle touches two columns, and
    in each of them the points between its lowest and its highest y follow each other.
    """
    width, low = 2 * radius.max(), points.min(axis=0) - 1
    height = np.ptp(points[:, 1]) + 3
    columns = np.floor((points[:, 0] - low[0]) / width)
    keys = columns * height + points[:, 1] - low[1]
    order = np.argsort(keys, kind="stable")
    keys, found = keys[order], []
    first_column = np.floor((centers[:, 0] - radius - low[0]) / width)
    lowest, highest = (np.clip(centers[:, 1] + sign * radius - low[1], 0, height) for sign in (-1, 1))
    for column in (first_column, first_column + 1):
        start = np.searchsorted(keys, column * height + lowest)
        count = np.searchsorted(keys, column * height + highest) - start
        if count.sum() > max_candidates * len(centers):
            return None
        center = np.repeat(np.arange(len(centers)), count)
        steps = np.arange(len(center)) - np.repeat(np.cumsum(count) - count, count)
        found.append((center, order[start[center] + steps]))
    center, point = (np.concatenate(parts) for parts in zip(*found, strict=True))
    is_near = ((points[point] - centers[center]) ** 2).sum(axis=1) < radius[center] ** 2
    return center[is_near], point[is_near]
