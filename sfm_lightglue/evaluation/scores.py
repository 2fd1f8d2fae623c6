"""Scores of matches on a set of pairs with ground truth, by the protocols of published tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from sfm_lightglue.evaluation.estimators import Estimator
from sfm_lightglue.evaluation.pairs import (
    HOMOGRAPHY_THRESHOLDS_PX,
    POSE_THRESHOLDS_DEG,
    REFERENCE_SIZE_PX,
    epipolar_errors,
    evaluate_homography,
    evaluate_pair_poses,
    pose_auc,
    symmetric_homography_errors,
)
from sfm_lightglue.evaluation.sets import TruePair

EPIPOLAR_LIMITS = (1e-4, 5e-4, 1e-3)
"""Largest epipolar errors of a correct match, for focal length 1. At a focal length of 1000 px, 1e-3 is 1 px."""
TRANSFER_LIMITS_PX = (1, 3)
"""Largest transfer errors of a correct match under a homography."""


@dataclass(frozen=True)
class Protocol:
    """How matches are judged."""

    estimator: str = "colmap"
    max_errors_px: tuple[float, ...] = ()
    """Error limits to try; the one with the best mean AUC counts. Empty: 1 px for poses and 3 px for homographies."""
    num_seeds: int = 10
    """AUCs are means over so many seeds of RANSAC."""
    in_photo_pixels: bool = False
    """Whether limits for poses are in px of the photos. Otherwise they are for photos with a longest side of 1024 px."""


@dataclass(frozen=True)
class FoundMatches:
    """Matches of a pair, px with the centre of the top-left pixel at (0, 0)."""

    points0: np.ndarray
    """(k, 2)."""
    points1: np.ndarray
    """(k, 2): the partners."""
    scores: np.ndarray
    """(k,)."""
    num_keypoints: float
    """Mean number of keypoints of the two images."""
    size0: tuple[int, int]
    """(width, height) px of image 0."""


@dataclass(frozen=True)
class Scores:
    """Scores of a set by name, in the order of the table."""

    values: dict[str, float]
    max_error_px: float
    """The error limit that was best, of those that the protocol tries; NaN for estimators without one."""


def homography_scores(pairs: Sequence[TruePair], found: Sequence[FoundMatches], protocol: Protocol) -> Scores:
    """AUC of the corner error, share of correct matches, numbers of matches and keypoints: means over the pairs."""

    def errors(estimator: Estimator, seed: int) -> list[float]:
        return [
            evaluate_homography(
                *(matches.points0, matches.points1, _homography(pair), matches.size0),
                estimator=estimator,
                seed=seed,
                weights=matches.scores,
            )
            for pair, matches in zip(pairs, found, strict=True)
        ]

    areas, best = _best(errors, protocol, HOMOGRAPHY_THRESHOLDS_PX, default_px=3.0)
    transfer = [
        symmetric_homography_errors(matches.points0, matches.points1, _homography(pair))
        for pair, matches in zip(pairs, found, strict=True)
    ]
    values = {f"AUC@{threshold} px": area for threshold, area in zip(HOMOGRAPHY_THRESHOLDS_PX, areas, strict=True)}
    values |= {f"precision@{limit} px": _share(transfer, limit) for limit in TRANSFER_LIMITS_PX}
    return Scores(values | _counts(found), best)


def pose_scores(pairs: Sequence[TruePair], found: Sequence[FoundMatches], protocol: Protocol) -> Scores:
    """AUC of the relative pose error, share of correct matches, numbers of matches and keypoints: means over the pairs."""
    reference = None if protocol.in_photo_pixels else REFERENCE_SIZE_PX

    def errors(estimator: Estimator, seed: int) -> list[float]:
        worst = []
        for pair, matches in zip(pairs, found, strict=True):
            assert pair.cameras is not None
            names = (pair.name0, pair.name1)
            evaluation = evaluate_pair_poses(
                *([names], dict(zip(names, pair.cameras, strict=True)), {names: (matches.points0, matches.points1)}),
                estimator=estimator,
                seed=seed,
                reference_size_px=reference,
            )
            worst += evaluation.errors_deg
        return worst

    areas, best = _best(errors, protocol, POSE_THRESHOLDS_DEG, default_px=1.0)
    epipolar = []
    for pair, matches in zip(pairs, found, strict=True):
        assert pair.cameras is not None
        epipolar.append(epipolar_errors(matches.points0, matches.points1, *pair.cameras))
    values = {f"AUC@{threshold} deg": area for threshold, area in zip(POSE_THRESHOLDS_DEG, areas, strict=True)}
    values |= {f"epipolar precision@{limit:.0e}".replace("e-0", "e-"): _share(epipolar, limit) for limit in EPIPOLAR_LIMITS}
    return Scores(values | _counts(found), best)


def _best(
    errors: Callable[[Estimator, int], list[float]], protocol: Protocol, thresholds: Sequence[float], default_px: float
) -> tuple[list[float], float]:
    """The AUCs by threshold for the error limit whose mean AUC is largest, and the limit. AUCs are means over the seeds."""
    has_limit = "dlt" not in protocol.estimator
    limits = (protocol.max_errors_px or (default_px,)) if has_limit else (float("nan"),)
    seeds = range(protocol.num_seeds if has_limit else 1)
    areas: dict[float, np.ndarray] = {}
    for limit in limits:
        estimator = Estimator(protocol.estimator, limit)
        areas[limit] = np.mean([pose_auc(errors(estimator, seed), thresholds) for seed in seeds], axis=0)
    best = max(limits, key=lambda limit: float(np.mean(areas[limit])))
    return areas[best].tolist(), best


def _homography(pair: TruePair) -> np.ndarray:
    assert pair.homography is not None
    return pair.homography


def _share(errors: Sequence[np.ndarray], limit: float) -> float:
    """Mean over the pairs of the share of matches below the limit, percent; 0 for a pair without matches."""
    return 100 * float(np.mean([np.mean(each < limit) if len(each) else 0.0 for each in errors]))


def _counts(found: Sequence[FoundMatches]) -> dict[str, float]:
    return {
        "matches": float(np.mean([len(matches.scores) for matches in found])),
        "keypoints": float(np.mean([matches.num_keypoints for matches in found])),
    }
