"""Two-view geometric verification of a pair's matches by COLMAP's estimators, seeded, one pair at a time.

The pixel threshold belongs to the resolution at which keypoints were detected: a keypoint found in a photo shrunk to a third
is known to a third of the precision. It is therefore given in detection pixels and scaled by the features' uncertainty
(discussed in COLMAP's issue 1278).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pycolmap

from sfm_lightglue.products import Features, Matches
from sfm_lightglue.storage import GroupData

CONFIGURATIONS = {int(value): name for name, value in pycolmap.TwoViewGeometryConfiguration.__members__.items()}
NOT_VERIFIED = int(pycolmap.TwoViewGeometryConfiguration.DEGENERATE)
CHANCE_FACTOR = 3.0
"""RANSAC finds the most agreeable of all geometries, so random matches give more inliers than chance gives to any one of them.

Measured, 30 sets each at 2 px: 300 / 600 / 2000 random matches give up to 23 / 30 / 69 inliers in 640 x 480 px and up to
20 / 26 / 58 in 1024 x 683 px. With this factor and 20 inliers they need 29 / 39 / 82 and 26 / 33 / 61.
"""


@dataclass(frozen=True)
class VerificationOptions:
    """How strict the verification is; the values stand in configs/database."""

    max_error_px: float
    """Largest epipolar error of an inlier, in px at the resolution of detection."""
    min_num_inliers: int
    """Pairs with fewer are rejected, not counting those that wrong matches would give by chance."""
    min_inlier_ratio: float
    """Pairs with a smaller share of inliers are rejected."""
    min_mean_score: float
    """Pairs whose inliers have a smaller mean matching score are rejected: symmetric sides of a building agree on a geometry,
    but LightGlue is not sure of such matches."""
    confidence: float
    max_num_trials: int
    """RANSAC trials at most: bounds the time of pairs that do not overlap."""
    seed: int


def verify_matches(
    camera0: pycolmap.Camera,
    camera1: pycolmap.Camera,
    features0: Features,
    features1: Features,
    matches: Matches,
    options: VerificationOptions,
) -> GroupData:
    """The two-view geometry of the pair, as it is stored: `inlier_matches` (k, 2), `E`, `F`, `H` where estimated.

    The item's attributes hold COLMAP's configuration number, `num_matches` and `max_error_px` in px of the full images.
    A rejected pair has the configuration DEGENERATE and no inliers.

    Raises: ValueError where an index lies outside the keypoints: native code does not check it.
    """
    max_error_px = options.max_error_px * (features0.pixel_scale + features1.pixel_scale) / 2
    attributes = {"num_matches": len(matches), "max_error_px": float(max_error_px), "config": NOT_VERIFIED}
    rejected = GroupData({"inlier_matches": np.zeros((0, 2), np.int32)}, {"": attributes})
    _check_indices(matches, len(features0), len(features1))
    if len(matches) < max(options.min_num_inliers, 8):
        return rejected
    geometry = pycolmap.estimate_two_view_geometry(
        camera0,
        features0.keypoints.astype(np.float64) + 0.5,
        camera1,
        features1.keypoints.astype(np.float64) + 0.5,
        matches.indices.astype(np.uint32),
        _colmap_options(options, max_error_px),
    )
    inliers = np.asarray(geometry.inlier_matches, np.int32).reshape(-1, 2)
    chance = CHANCE_FACTOR * max(_chance(features, max_error_px) for features in (features0, features1))
    by_chance = chance * (len(matches) - len(inliers))
    if len(inliers) < max(options.min_num_inliers + by_chance, options.min_inlier_ratio * len(matches)):
        return rejected
    if matches.scores[np.isin(matches.indices[:, 0], inliers[:, 0])].mean() < options.min_mean_score:
        return rejected
    datasets = {"inlier_matches": inliers}
    datasets |= {name: matrix for name in "EFH" if (matrix := getattr(geometry, name)) is not None}
    return GroupData(datasets, {"": {**attributes, "config": int(geometry.config)}})


def _chance(features: Features, max_error_px: float) -> float:
    """Share of the image that lies within the threshold of an epipolar line, at most: how likely a wrong match is an inlier."""
    width, height = features.image_size
    return 2 * max_error_px * math.hypot(width, height) / (width * height)


def geometry_from_item(item: GroupData) -> pycolmap.TwoViewGeometry:
    """COLMAP's record of a verified pair."""
    geometry = pycolmap.TwoViewGeometry()
    geometry.config = int(item.attributes[""]["config"])
    geometry.inlier_matches = np.ascontiguousarray(item.datasets["inlier_matches"], np.uint32)
    for name in set("EFH") & set(item.datasets):
        setattr(geometry, name, item.datasets[name])
    return geometry


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
