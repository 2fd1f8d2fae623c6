"""Validation: view pairs with the right homography, and the metrics of a perfect and of a blind extractor."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import cast

import numpy as np
import pytest

from sfm_lightglue.features.extractor import Extractor
from sfm_lightglue.matches.matcher import Matcher
from sfm_lightglue.products import Features, Image, Matches
from sfm_lightglue.training.photometric import PhotometricRange
from sfm_lightglue.training.validation import ValidationOptions, ViewPair, make_view_pairs, validate

AS_IT_IS = PhotometricRange(contrast=1, brightness=0, gamma=1, shadow=0, lighting=0, blur=0.3, noise=0, jpeg_quality=95)


@pytest.fixture
def options(shipped) -> ValidationOptions:
    return replace(shipped.validation, width=160, height=120, photometric=AS_IT_IS)


@pytest.fixture(scope="module")
def photos() -> list[np.ndarray]:
    """Photos of 12 discs of different grey on a dark background."""
    photos = []
    rows, columns = np.mgrid[:120, :160]
    for i in range(4):
        rng = np.random.default_rng(i)
        photo = np.zeros((120, 160))
        for disc, centre in enumerate(np.stack(np.meshgrid(np.arange(25, 160, 36), np.arange(24, 120, 36)), -1).reshape(-1, 2)):
            x, y = centre + rng.uniform(-6, 6, 2)
            photo = np.maximum(photo, (60 + 16 * disc) * np.clip(5.5 - np.hypot(columns - x, rows - y), 0, 1))
        photos.append(photo.round().astype(np.uint8))
    return photos


class DiscExtractor:
    """Finds the centres of the discs in a view by flood filling. Their grey is the descriptor."""

    weights = ()

    def __call__(self, image: Image) -> Features:
        assert image.mask is not None
        grey = image.pixels[..., 0].astype(float)
        centres, greys, left = [], [], (grey > 30) & image.mask
        while left.any():
            y, x = np.argwhere(left)[0]
            patch = np.zeros_like(left)
            patch[y, x] = True
            for _ in range(40):
                padded = np.pad(patch, 1)
                patch = (padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:] | patch) & left
            left &= ~patch
            rows, columns = np.nonzero(patch)
            is_whole = rows.min() > 1 and columns.min() > 1 and rows.max() < 118 and columns.max() < 158
            if (
                len(rows) > 20
                and is_whole
                and image.mask[rows.min() - 2 : rows.max() + 3, columns.min() - 2 : columns.max() + 3].all()
            ):
                weights = grey[rows, columns]
                centres.append([(columns * weights).sum() / weights.sum(), (rows * weights).sum() / weights.sum()])
                greys.append([np.percentile(weights, 90)])  # the middle of the disc, which blur does not reach
        number = len(centres)
        return Features(
            np.array(centres, np.float32).reshape(-1, 2), np.ones(number, np.float32), np.array(greys).reshape(-1, 1), image.size
        )


class BlindExtractor:
    weights = ()

    def __call__(self, image: Image) -> Features:
        return Features(np.zeros((0, 2), np.float32), np.zeros(0, np.float32), np.zeros((0, 1), np.float32), image.size)


class GreyMatcher:
    """Matches discs of equal grey."""

    weights = ()

    def __call__(self, features0: Features, features1: Features) -> Matches:
        matches0 = np.full(len(features0), -1)
        if len(features1):
            difference = np.abs(features0.descriptors - features1.descriptors.T)
            nearest = difference.argmin(axis=1)
            matches0 = np.where(difference.min(axis=1) < 5, nearest, -1)
        return Matches.from_dense(matches0, np.ones(len(features0), np.float32))


def metrics(extractor: object, pairs: list[ViewPair]) -> dict[str, float]:
    return validate(cast(Extractor, extractor), cast(Matcher, GreyMatcher()), pairs)


def test_an_extractor_without_errors_gets_the_best_metrics(photos: list[np.ndarray], options: ValidationOptions) -> None:
    # Views are rotated by any angle. A wrong pixel origin would be 1 px off after a half turn.
    options = replace(options, homographies=replace(options.homographies, rotation_deg=60.0, large_rotation_deg=180.0))
    pairs = make_view_pairs(photos * 2, options, seed=0)
    found = metrics(DiscExtractor(), pairs)
    assert list(found) == [
        *("repeatability", "localisation_px", "precision", "matches"),
        *("homography_auc@1px", "homography_auc@3px", "homography_auc@5px"),
    ]
    assert found["precision"] == 100
    assert found["repeatability"] > 60  # discs cut by the edge of a view are not found
    assert found["localisation_px"] < 0.15
    assert found["matches"] > 4
    assert found["homography_auc@5px"] > 60


def test_an_extractor_that_finds_nothing_gets_the_worst_metrics(photos: list[np.ndarray], options: ValidationOptions) -> None:
    pairs = make_view_pairs(photos[:2], options, seed=0)
    found = metrics(BlindExtractor(), pairs)
    assert math.isnan(found.pop("localisation_px"))
    assert set(found.values()) == {0.0}


def test_pairs_are_the_same_for_the_same_seed(photos: list[np.ndarray], options: ValidationOptions) -> None:
    first, again, other = (make_view_pairs(photos[:2], options, seed) for seed in (0, 0, 1))
    for pair, same, another in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(pair.homography, same.homography)
        for image, twin in zip(pair.images, same.images, strict=True):
            np.testing.assert_array_equal(image.pixels, twin.pixels)
        assert np.abs(pair.homography - another.homography).max() > 1e-3
    assert first[0].images[0].pixels.shape == (120, 160, 3) and first[0].images[0].pixels.dtype == np.uint8
    assert len({image.name for pair in first for image in pair.images}) == 4


def test_both_masks_show_the_same_part_of_the_photo(photos: list[np.ndarray], options: ValidationOptions) -> None:
    options = replace(options, homographies=replace(options.homographies, min_scale=0.5, max_scale=0.6))
    for pair in make_view_pairs(photos, options, seed=0):
        mask0, mask1 = (cast(np.ndarray, image.mask) for image in pair.images)
        rows, columns = np.mgrid[:120, :160]
        x, y, w = np.einsum("ij,jyx->iyx", pair.homography, np.stack([columns + 0.5, rows + 0.5, np.ones((120, 160))]))
        x, y = np.floor(x / w).astype(int), np.floor(y / w).astype(int)
        inside = (w > 0) & (x >= 0) & (x < 160) & (y >= 0) & (y < 120)
        assert 0.15 < mask0.mean() < 0.6
        assert (mask0[inside] == mask1[y[inside], x[inside]]).mean() > 0.98  # all except pixels at the photo's edge
