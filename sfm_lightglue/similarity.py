"""Similarities (scale, rotation, translation) between two sets of points, by least squares and robustly."""

from __future__ import annotations

import itertools
import math
import statistics
from dataclasses import dataclass

import numpy as np

MAX_SAMPLES = 1000
"""Number of random samples of three points; few points are sampled completely. With 40 % of wrong points, one of 20 samples has
no wrong point with a probability of 99 %. More samples make the best similarity more precise."""
INLIER_LIMIT = 4.03
"""Maximum distance of points that agree, in standard deviations: 99.9 % of points with normal errors in space are closer."""


@dataclass(frozen=True)
class Similarity:
    """target = scale * rotation @ source + translation. The rotation is never a reflection."""

    scale: float
    rotation: np.ndarray
    """float64 (3, 3)."""
    translation: np.ndarray
    """float64 (3,)."""

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """float64 (n, 3): the points (n, 3), transformed."""
        moved: np.ndarray = self.scale * points @ self.rotation.T + self.translation
        return moved


def align_similarity(
    source: np.ndarray, target: np.ndarray, weights: np.ndarray | None = None
) -> tuple[float, np.ndarray, np.ndarray]:
    """Scale s, rotation R (3, 3) and translation t (3,) that minimise the squared distances |s R source + t - target|.

    `source` and `target` are float64 (n, 3), `weights` (n,) multiply the squared distances. R is never a reflection. If the
    points are on a line, the rotation about the line is arbitrary. If they coincide, R is arbitrary; if the source points
    coincide, s is 0. All solutions have equal distances.
    Source: Umeyama, Least-squares estimation of transformation parameters between two point patterns, PAMI 1991.
    """
    shares = np.ones(len(source)) if weights is None else weights
    scale, rotation, translation = _align_many(source[None], target[None], shares / shares.sum())
    return float(scale[0]), rotation[0], translation[0]


def robust_similarity(source: np.ndarray, target: np.ndarray, deviations: np.ndarray, seed: int) -> tuple[Similarity, np.ndarray]:
    """The similarity that most points agree on, and a bool mask (n,) of these points, refined by weighted least squares.

    Up to half of the points may be wrong by any amount; only among three points a wrong one cannot be found. The size of the
    errors need not be known: least median of squares finds it.

    Args:
        source: float64 (n, 3); n is at least 3.
        target: float64 (n, 3).
        deviations: float64 (n,): assumed standard deviations of the target points along each axis. Their ratios are the weights,
            and a point within `INLIER_LIMIT` deviations is always an inlier.
        seed: Seed of the samples.

    Source: Rousseeuw, Least median of squares regression, JASA 1984.
    """
    similarity, scaled = _least_median(source, target, deviations, seed)
    inliers = scaled <= INLIER_LIMIT * max(1.0, _deviation_of_best(scaled))
    for _ in range(20):
        similarity = Similarity(*align_similarity(source[inliers], target[inliers], deviations[inliers] ** -2))
        scaled = np.linalg.norm(similarity(source) - target, axis=1) / deviations
        limit = INLIER_LIMIT * max(1.0, axis_deviation(scaled[inliers]))
        if np.array_equal(inliers, scaled <= limit) or np.sum(scaled <= limit) < 3:
            break
        inliers = scaled <= limit
    return similarity, inliers


def axis_deviation(distances: np.ndarray) -> float:
    """Standard deviation along each axis of points whose distances from a fitted similarity are given.

    A similarity has 7 parameters, so 3 n - 7 numbers are free.
    """
    return math.sqrt(float(np.sum(distances**2)) / (3 * len(distances) - 7))


def _least_median(source: np.ndarray, target: np.ndarray, deviations: np.ndarray, seed: int) -> tuple[Similarity, np.ndarray]:
    """The similarity through three points whose h-th smallest scaled distance is least, and all its scaled distances (n,)."""
    rank, best = _num_agreeing(len(source)) - 1, (math.inf, Similarity(0.0, np.eye(3), np.zeros(3)), np.zeros(len(source)))
    for samples in _samples(len(source), seed):
        fitted = _align_many(source[samples], target[samples], np.full(3, 1 / 3))
        for scale, rotation, translation in zip(*fitted, strict=True):
            similarity = Similarity(float(scale), rotation, translation)
            scaled = np.linalg.norm(similarity(source) - target, axis=1) / deviations
            score = float(np.partition(scaled, rank)[rank])
            if score < best[0]:
                best = score, similarity, scaled
    return best[1], best[2]


def _num_agreeing(num_points: int) -> int:
    """Number of points that must agree: as many as leave the most wrong ones out, but more than the three of a sample."""
    return 3 if num_points < 5 else num_points // 2 + 2


def _deviation_of_best(scaled: np.ndarray) -> float:
    """Standard deviation along each axis of points with normal errors, from the h-th smallest of their distances (n,).

    The quantile of a distance in space is that of chi with 3 degrees of freedom, as approximated by Wilson and Hilferty.
    """
    rank = _num_agreeing(len(scaled))
    normal = statistics.NormalDist().inv_cdf((rank - 0.5) / len(scaled))
    return float(np.sort(scaled)[rank - 1]) / math.sqrt(3 * (1 - 2 / 27 + normal * math.sqrt(2 / 27)) ** 3)


def _samples(num_points: int, seed: int) -> list[np.ndarray]:
    """Blocks (b, 3) of indices of three points: all of them, or MAX_SAMPLES random ones."""
    if math.comb(num_points, 3) <= MAX_SAMPLES:
        samples = np.array(list(itertools.combinations(range(num_points), 3)))
    else:
        generator = np.random.default_rng(seed)
        samples = np.array([generator.choice(num_points, 3, replace=False) for _ in range(MAX_SAMPLES)])
    return [samples[start : start + 100] for start in range(0, len(samples), 100)]


def _align_many(source: np.ndarray, target: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`align_similarity` of b sets of points (b, n, 3) with weights (n,) of sum 1: scales, rotations and translations."""
    source_mean, target_mean = weights @ source, weights @ target
    centered = source - source_mean[:, None]
    covariance = np.einsum("n,bni,bnj->bij", weights, target - target_mean[:, None], centered)
    u, _, vt = np.linalg.svd(covariance)
    u[:, :, 2] *= np.sign(np.linalg.det(u @ vt))[:, None]  # never a reflection
    rotation = u @ vt
    variance = np.einsum("n,bni->b", weights, centered**2)
    scale = np.sum(rotation * covariance, axis=(1, 2)) / np.where(variance > 0, variance, np.inf)
    return scale, rotation, target_mean - scale[:, None] * np.einsum("bij,bj->bi", rotation, source_mean)
