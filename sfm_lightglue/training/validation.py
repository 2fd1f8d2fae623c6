"""Validation on held-out photos: pairs of views through random homographies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from sfm_lightglue.evaluation.pairs import evaluate_homography, homography_auc, homography_precision, repeatability
from sfm_lightglue.features.extractor import Extractor
from sfm_lightglue.matches.matcher import Matcher
from sfm_lightglue.products import Image
from sfm_lightglue.training.homographies import HomographyRange, random_homography, warp_photos
from sfm_lightglue.training.photometric import PhotometricRange, change_photos


@dataclass(frozen=True)
class ValidationOptions:
    """Options; configs/training holds the values."""

    photos: int
    """Number of photos that are held out of training."""
    width: int
    """Width of a view, px."""
    height: int
    homographies: HomographyRange
    photometric: PhotometricRange


@dataclass(frozen=True)
class ViewPair:
    """Two views of one photo."""

    images: tuple[Image, Image]
    homography: np.ndarray
    """(3, 3): from the first to the second view, in COLMAP's pixels."""


def make_view_pairs(photos: Sequence[np.ndarray], options: ValidationOptions, seed: int) -> list[ViewPair]:
    """One pair of views for each grey photo, uint8 (h, w). The same seed gives the same views."""
    size = options.width, options.height
    pairs = []
    for i, photo in enumerate(photos):
        rng = np.random.default_rng([seed, 2, i])
        width, height = photo.shape[::-1]
        homographies = np.array([random_homography(rng, (width, height), size, options.homographies) for _ in "01"])
        stacked, sizes = torch.from_numpy(photo).float().expand(2, 1, -1, -1) / 255, torch.tensor([[width, height]] * 2)
        warped, visible = warp_photos(stacked, sizes, torch.from_numpy(homographies), size)
        generator = torch.Generator().manual_seed(int(rng.integers(2**32)))
        changed = (change_photos(warped, generator, options.photometric)[:, 0] * 255).round().byte().numpy()
        views = [
            Image(f"{i}-{j}", np.repeat(view[..., None], 3, axis=2), mask)
            for j, (view, mask) in enumerate(zip(changed, visible.numpy(), strict=True))
        ]
        half_pixel = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
        between = homographies[1] @ np.linalg.inv(homographies[0])
        pairs.append(ViewPair((views[0], views[1]), half_pixel @ between @ np.linalg.inv(half_pixel)))
    return pairs


def validate(extractor: Extractor, matcher: Matcher, pairs: Sequence[ViewPair]) -> dict[str, float]:
    """The mean of each metric over the pairs, by name, in percent or px.

    The metrics are repeatability at 3 px, localisation error, matching precision at 3 px, number of matches, and the area under
    the curve of homography errors.
    """
    repeated, localised, precisions, counts, errors = [], [], [], [], []
    for pair in pairs:
        features0, features1 = (extractor(image) for image in pair.images)
        sizes = features0.image_size, features1.image_size
        found, distance = repeatability(features0.keypoints, features1.keypoints, pair.homography, *sizes)
        matches = matcher(features0, features1)
        points0, points1 = features0.keypoints[matches.indices[:, 0]], features1.keypoints[matches.indices[:, 1]]
        repeated.append(100 * found)
        localised.append(distance)
        precisions.append(100 * homography_precision(points0, points1, pair.homography))
        counts.append(len(points0))
        errors.append(evaluate_homography(points0, points1, pair.homography, sizes[0]))
    return {
        "repeatability": float(np.mean(repeated)),
        "localisation_px": float(np.nanmean(localised)) if np.isfinite(localised).any() else float("nan"),
        "precision": float(np.mean(precisions)),
        "matches": float(np.mean(counts)),
        **{f"homography_auc@{threshold}px": value for threshold, value in homography_auc(errors).items()},
    }
