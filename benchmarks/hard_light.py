"""The set `hard_light14`: pairs by day and night, in snow, rain and haze, and how well their matches give the geometry.

It has no folder of its own. Its photos and the points marked in them belong to the sets SOURCES. RANSAC estimates a fundamental
matrix from the matches of a pair, and the marked points, which it has not seen, tell how good the matrix is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path

import numpy as np
import pycolmap
from photo_pairs import RANSAC_SEEDS, MarkedPair, MatchedPair, match_listed, matched_pairs, read_marked_pairs

HARD_LIGHT = "hard_light14"
SOURCES = ("light_pairs10", "illumination_pairs4")
RANSAC = {"max_error": 1.5, "confidence": 0.9999, "min_num_trials": 2000, "max_num_trials": 20000}
"""Options of RANSAC: `max_error` is in px of the photos."""
MIN_MATCHES = 8
"""Smallest number of matches from which a fundamental matrix is estimated."""
MIN_MAA = 0.1
"""Smallest mAA of a pair that has a geometry. Random points as matches reach 0.09 at most, 0.02 in the mean."""
SHARES_PX = (3, 5, 10)
MAA_PX = range(1, 11)
"""Thresholds, px, over which mAA@10 is the mean."""


@dataclass(frozen=True)
class MarkedGeometry:
    """What the marked points of a pair say about its matches. Shares are means over RANSAC_SEEDS."""

    label: str
    num_matches: int
    num_correct: float
    """See `MarkedPair.num_correct`."""
    within: Mapping[int, float]
    """Distance in px -> share of the marked points within it of the estimated geometry, 0..1."""
    maa: np.ndarray
    """float64 (len(RANSAC_SEEDS),): mAA@10 of each seed, 0..1."""

    @property
    def is_found(self) -> bool:
        """Whether the matches give a geometry that is better than chance."""
        return bool(self.num_matches >= MIN_MATCHES and self.maa.mean() >= MIN_MAA)


def marked_light_pairs(data: Path) -> list[MarkedPair]:
    """The pairs of all SOURCES. Names are relative to `data`."""
    return [
        replace(pair, name0=f"{source}/images/{pair.name0}", name1=f"{source}/images/{pair.name1}")
        for source in SOURCES
        for pair in read_marked_pairs(data / source / "correspondences.txt")
    ]


def hard_light_geometries(folder: Path, out: Path, overrides: Sequence[str]) -> list[MarkedGeometry]:
    """Matches the pairs, and judges each of them by its marked points. `folder` is DATA/hard_light14, which need not exist."""
    pairs = marked_light_pairs(folder.parent)
    names = [(pair.name0, pair.name1) for pair in pairs]
    found = matched_pairs(match_listed(folder.parent, out, overrides, names), names)
    return [marked_geometry(pair, matched) for pair, matched in zip(pairs, found, strict=True)]


def marked_geometry(pair: MarkedPair, matched: MatchedPair) -> MarkedGeometry:
    """Estimates a fundamental matrix with each of RANSAC_SEEDS, and compares it with the marked points."""
    points0, points1 = matched.points
    fundamentals = [estimate_fundamental(points0, points1, seed) for seed in RANSAC_SEEDS]
    distances = np.stack([epipolar_distances(fundamental, pair.points0, pair.points1) for fundamental in fundamentals])
    return MarkedGeometry(
        label=short_label(pair),
        num_matches=len(points0),
        num_correct=pair.num_correct(points0, points1),
        within={threshold: float(np.mean(distances < threshold)) for threshold in SHARES_PX},
        maa=np.mean([np.mean(distances < threshold, axis=1) for threshold in MAA_PX], axis=0),
    )


def estimate_fundamental(points0: np.ndarray, points1: np.ndarray, seed: int) -> np.ndarray | None:
    """The fundamental matrix (3, 3) of matched points (n, 2), (n, 2). None without one, and for fewer than MIN_MATCHES."""
    if len(points0) < MIN_MATCHES:
        return None
    options = pycolmap.RANSACOptions(**RANSAC, random_seed=seed)
    estimate = pycolmap.estimate_fundamental_matrix(points0.astype(np.float64), points1.astype(np.float64), options)
    return None if estimate is None else estimate["F"]


def epipolar_distances(fundamental: np.ndarray | None, points0: np.ndarray, points1: np.ndarray) -> np.ndarray:
    """float64 (n,): mean of the two distances of each correspondence to its epipolar lines, px. Infinite without a matrix.

    Args:
        fundamental: F (3, 3) with x1.T @ F @ x0 = 0.
        points0: (n, 2) px of image 0.
        points1: (n, 2) px of image 1.
    """
    if fundamental is None:
        return np.full(len(points0), np.inf)
    x0, x1 = (np.column_stack([points, np.ones(len(points))]) for points in (points0, points1))
    line1, line0 = x0 @ fundamental.T, x1 @ fundamental
    residual = np.abs(np.sum(x1 * line1, axis=1))
    norm0, norm1 = (np.maximum(np.hypot(line[:, 0], line[:, 1]), 1e-12) for line in (line0, line1))
    return (residual / norm0 + residual / norm1) / 2


def short_label(pair: MarkedPair) -> str:
    """What the two names have in common: `dh` for `dh_A.jpg` and `dh_B.jpg`. Both names if that is nothing."""
    letters = takewhile(lambda both: both[0] == both[1], zip(Path(pair.name0).stem, Path(pair.name1).stem, strict=False))
    return "".join(letter for letter, _ in letters).rstrip("_-") or pair.label


def hard_light_scores(found: Sequence[MarkedGeometry], others: Sequence[Sequence[MarkedGeometry]] = ()) -> dict[str, str]:
    """The columns of one kind of features.

    Args:
        found: the pairs with this kind.
        others: the same pairs with each of the other kinds.
    """
    maa, lost = np.mean([pair.maa for pair in found], axis=0), [i for i, pair in enumerate(found) if not pair.is_found]
    correct = [pair.num_correct for pair in found]
    return {
        "mAA@10": f"{100 * maa.mean():.1f}",
        "its deviation over seeds": f"{100 * maa.std():.1f}",
        **{f"within {px} px %": f"{100 * np.mean([pair.within[px] for pair in found]):.1f}" for px in SHARES_PX},
        "correct": f"{sum(correct):.0f}",
        "mean correct": f"{np.mean(correct):.1f}",
        "matches": f"{np.mean([pair.num_matches for pair in found]):.0f}",
        "no geometry": str(len(lost)),
        "which another kind has": str(sum(any(other[i].is_found for other in others) for i in lost)),
        **{f"{pair.label}: mAA, correct": f"{100 * pair.maa.mean():.0f}, {pair.num_correct:.0f}" for pair in found},
    }
