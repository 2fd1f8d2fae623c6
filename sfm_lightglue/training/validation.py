"""How well a SuperPoint does on photos that it is not trained on: pairs of views through random homographies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from sfm_lightglue.evaluation.pairs import evaluate_homography, homography_auc, homography_precision, repeatability
from sfm_lightglue.features.extractor import Extractor
from sfm_lightglue.images import load_image, resize_longest, to_grey
from sfm_lightglue.matches.matcher import Matcher
from sfm_lightglue.products import Image
from sfm_lightglue.training.homographies import HomographyRange, random_homography, warp_photo
from sfm_lightglue.training.photometric import PhotometricRange, change_photo


@dataclass(frozen=True)
class ValidationOptions:
    """Options; the values stand in configs/training."""

    photos: int
    """Held out of training."""
    width: int
    """Of a view, px."""
    height: int
    homographies: HomographyRange
    photometric: PhotometricRange


@dataclass(frozen=True)
class ViewPair:
    """Two views of one photo."""

    images: tuple[Image, Image]
    homography: np.ndarray
    """(3, 3), from the first to the second, COLMAP's pixels."""


def make_view_pairs(images: Path, names: Sequence[str], photo_size: int, options: ValidationOptions, seed: int) -> list[ViewPair]:
    """One pair of each photo; the same for the same seed."""
    size = options.width, options.height
    pairs = []
    for i, name in enumerate(names):
        rng = np.random.default_rng([seed, 2, i])
        grey = to_grey(resize_longest(load_image(images, name).pixels, photo_size))
        homographies: list[np.ndarray] = []
        views: list[Image] = []
        for _ in range(2):
            homographies.append(random_homography(rng, (grey.shape[1], grey.shape[0]), size, options.homographies))
            view, visible = warp_photo(torch.from_numpy(grey)[None], homographies[-1], size)
            changed = (change_photo(view[0], rng, options.photometric) * 255).round().byte().numpy()
            views.append(Image(f"{i}-{len(views)}", np.repeat(changed[..., None], 3, axis=2), visible.numpy()))
        half_pixel = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
        between = homographies[1] @ np.linalg.inv(homographies[0])
        pairs.append(ViewPair((views[0], views[1]), half_pixel @ between @ np.linalg.inv(half_pixel)))
    return pairs


def validate(extractor: Extractor, matcher: Matcher, pairs: Sequence[ViewPair]) -> dict[str, float]:
    """Means over the pairs, in percent and px: repeatability at 3 px, localisation error, matching precision at 3 px and number
    of matches, and the area under the curve of homography errors."""
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
