"""Geometric verification of the matches of one pair, with COLMAP's seeded estimators.

The error limit is given in pixels of the resized image in which the detector found the keypoints, because that image limits
their precision: a photo shrunk to a third gives keypoints with three times the error. The limit is multiplied by
`Features.pixel_scale` to get px of the full images (see COLMAP's issue 1278).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pycolmap

from sfm_lightglue.orientation import colmap_keypoints
from sfm_lightglue.products import Features, Matches, TwoViewGeometry
from sfm_lightglue.ranges import check_ranges

MIN_NUM_MATCHES = 8
"""COLMAP's estimators need this many matches."""
CHANCE_FACTOR = 3.0
"""Factor on the number of inliers that wrong matches give by chance to a fixed geometry. RANSAC tries many geometries and returns
the one with most inliers, so wrong matches give it more.

Measured with 30 sets of random matches at 2 px: 300 / 600 / 2000 matches give up to 23 / 30 / 69 inliers in images of
640 x 480 px, and up to 20 / 26 / 58 in 1024 x 683 px. With this factor and min_num_inliers = 20 a pair needs 29 / 39 / 82 and
26 / 33 / 61 inliers.
"""


@dataclass(frozen=True)
class VerificationOptions:
    """Limits of the verification and settings of RANSAC; configs/geometries holds the values."""

    max_error_px: float
    """Largest epipolar error of an inlier, px of the resized image that the detector saw."""
    min_num_inliers: int
    """A pair needs this many inliers, in addition to those that its wrong matches give by chance."""
    min_mean_score: float
    """Smallest mean matching score of the inliers, 0..1, for a pair that is verified by itself. Two symmetric sides of a building
    can agree on a geometry, but LightGlue gives their matches low scores."""
    confidence: float
    """RANSAC stops when it has found the best geometry with this probability, 0..1."""
    max_num_trials: int
    """Largest number of RANSAC trials. It limits the time for pairs that do not overlap."""
    seed: int
    """Seed of RANSAC's random samples."""
    stationary_max_error_px: float | None
    """Matches in a logo, a car hood or another overlay move at most this much, px of the resized image that the detector saw;
    they are dropped, see `stationary.py`. None keeps them."""
    min_confirmed: float
    """A pair with a lower mean score is verified if one of its photos has few other pairs, and third photos confirm at least this
    share of its matches, 0..1, see `confirmation.py`. If it is the only pair of both photos, its mean score must reach this. 1
    rejects all."""

    def __post_init__(self) -> None:
        check_ranges(
            self,
            "geometries",
            max_error_px="> 0",
            min_num_inliers=">= 0",
            min_mean_score=">= 0, <= 1",
            confidence="> 0, < 1",
            max_num_trials=">= 1",
            seed=">= 0",
            stationary_max_error_px="> 0",
            min_confirmed=">= 0, <= 1",
        )


def verify_matches(
    camera0: pycolmap.Camera,
    camera1: pycolmap.Camera,
    features0: Features,
    features1: Features,
    matches: Matches,
    options: VerificationOptions,
) -> TwoViewGeometry:
    """The two-view geometry of a pair, verified or rejected with the reason. Third photos are not asked.

    Args:
        camera0: camera of image 0, with a prior focal length if it is known: then E is estimated, else F.
        camera1: camera of image 1.
        features0: keypoints of image 0, px. Descriptors are not used.
        features1: keypoints of image 1, px.
        matches: matches of the pair.
        options: limits of the verification.

    Raises: ValueError if a match index is outside the keypoints: COLMAP does not check it.
    """
    max_error_px = _max_error_px(features0, features1, options)
    _check_indices(matches, len(features0), len(features1))
    least = max(options.min_num_inliers, MIN_NUM_MATCHES)
    if len(matches) < least:
        return _rejected("few matches", matches, max_error_px, num_needed=least)
    estimated = pycolmap.estimate_two_view_geometry(
        camera0,
        colmap_keypoints(features0),
        camera1,
        colmap_keypoints(features1),
        matches.indices.astype(np.uint32),
        _colmap_options(options, max_error_px),
    )
    inliers = np.asarray(estimated.inlier_matches, np.int32).reshape(-1, 2)
    configuration = pycolmap.TwoViewGeometryConfiguration(estimated.config).name
    chance = CHANCE_FACTOR * max(_chance(features, max_error_px) for features in (features0, features1))
    needed = options.min_num_inliers + chance * (len(matches) - len(inliers))
    mean_score = matches.scores[np.isin(matches.indices[:, 0], inliers[:, 0])].mean() if len(inliers) else None
    evidence: dict[str, Any] = {
        "num_agreeing": len(inliers) or None,  # COLMAP gives none of them if they are fewer than min_num_inliers
        "num_needed": math.ceil(needed),
        "mean_score": None if mean_score is None else float(mean_score),
    }
    if configuration == "DEGENERATE" or len(inliers) < needed:
        return _rejected("few inliers", matches, max_error_px, **evidence)
    evidence |= {"E": estimated.E, "F": estimated.F, "H": estimated.H}
    if mean_score is None or not mean_score >= options.min_mean_score:  # also for NaN
        unsure = {"unsure_configuration": configuration, "unsure_matches": inliers}
        return _rejected("low score", matches, max_error_px, **unsure, **evidence)
    return TwoViewGeometry(configuration, inliers, len(matches), float(max_error_px), **evidence)


def matched_keypoints(
    features0: Features, features1: Features, matches: Matches, options: VerificationOptions
) -> tuple[np.ndarray, np.ndarray, float]:
    """The matched keypoints of both photos, COLMAP's px, float64 (n, 2) twice, and the largest error of a match, px.

    Raises: ValueError as `verify_matches`.
    """
    _check_indices(matches, len(features0), len(features1))
    points0, points1 = (
        colmap_keypoints(features)[matches.indices[:, side]] for side, features in enumerate((features0, features1))
    )
    return points0, points1, _max_error_px(features0, features1, options)


def _max_error_px(features0: Features, features1: Features, options: VerificationOptions) -> float:
    return options.max_error_px * (features0.pixel_scale + features1.pixel_scale) / 2


def _rejected(reason: str, matches: Matches, max_error_px: float, **evidence: Any) -> TwoViewGeometry:
    """The record of a rejected pair."""
    no_inliers = np.zeros((0, 2), np.int32)
    return TwoViewGeometry("DEGENERATE", no_inliers, len(matches), float(max_error_px), rejected_because=reason, **evidence)


def _chance(features: Features, max_error_px: float) -> float:
    """Largest probability, 0..1, that a wrong match is an inlier: the share of the image that is close to an epipolar line."""
    width, height = features.image_size
    return 2 * max_error_px * math.hypot(width, height) / (width * height)


def _colmap_options(options: VerificationOptions, max_error_px: float) -> pycolmap.TwoViewGeometryOptions:
    colmap = pycolmap.TwoViewGeometryOptions()
    colmap.min_num_inliers = options.min_num_inliers
    colmap.ransac.max_error = max_error_px
    colmap.ransac.confidence = options.confidence
    colmap.ransac.max_num_trials = options.max_num_trials
    colmap.ransac.random_seed = options.seed
    return colmap


def _check_indices(matches: Matches, num_keypoints0: int, num_keypoints1: int) -> None:
    if len(matches) and (matches.indices.min() < 0 or (matches.indices.max(axis=0) >= (num_keypoints0, num_keypoints1)).any()):
        raise ValueError(
            f"match indices up to {matches.indices.max(axis=0).tolist()} do not fit {num_keypoints0} and {num_keypoints1} "
            f"keypoints: the matches belong to other features"
        )
