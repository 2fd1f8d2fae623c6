"""The nearest-neighbour matcher against loops over all pairs of descriptors."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from sfm_lightglue.matches import nearest_neighbor
from sfm_lightglue.matches.nearest_neighbor import NearestNeighborMatcher, NearestNeighborOptions
from sfm_lightglue.products import Features


def make_features(descriptors: np.ndarray) -> Features:
    keypoints = np.zeros((len(descriptors), 2), np.float32)
    return Features(keypoints, np.ones(len(descriptors), np.float32), descriptors, (10, 10))


def related(num0: int, num1: int, seed: int = 0, dimensions: int = 16) -> tuple[Features, Features]:
    """Descriptors of two images, not of unit length. Half of them are the same, with noise."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(min(num0, num1) // 2, dimensions))
    both = []
    for num in (num0, num1):
        own = rng.normal(size=(num - len(common), dimensions))
        descriptors = np.concatenate([common + rng.normal(scale=0.4, size=common.shape), own])
        both.append(make_features(rng.permutation(descriptors * rng.uniform(0.5, 2, (num, 1))).astype(np.float32)))
    return both[0], both[1]


def nearest_by_loops(
    descriptors0: np.ndarray, descriptors1: np.ndarray, max_ratio: float | None, max_distance: float | None
) -> dict[int, int]:
    """Indices of the nearest descriptors in image 1, for the descriptors of image 0 that pass the tests."""
    found = {}
    for row, descriptor0 in enumerate(descriptors0):
        distances = sorted(
            (float(np.linalg.norm(descriptor0 / np.linalg.norm(descriptor0) - descriptor1 / np.linalg.norm(descriptor1))), column)
            for column, descriptor1 in enumerate(descriptors1)
        )
        if max_distance is not None and distances[0][0] > max_distance:
            continue
        if max_ratio is not None and len(distances) > 1 and distances[0][0] > max_ratio * distances[1][0]:
            continue
        found[row] = distances[0][1]
    return found


@pytest.mark.parametrize("mutual", [True, False])
@pytest.mark.parametrize("max_ratio, max_distance", [(None, None), (0.8, None), (None, 0.7), (0.9, 0.8)])
@pytest.mark.parametrize("num0, num1", [(40, 60), (60, 40), (1, 30), (30, 1), (1, 1), (2, 2)])
@pytest.mark.parametrize("dimensions", [16, 32])  # the compiled kernels take multiples of 32
def test_the_matches_equal_a_search_by_loops(
    num0: int, num1: int, max_ratio: float | None, max_distance: float | None, mutual: bool, dimensions: int
) -> None:
    features0, features1 = related(num0, num1, dimensions=dimensions)
    expected = nearest_by_loops(features0.descriptors, features1.descriptors, max_ratio, max_distance)
    if mutual:
        back = nearest_by_loops(features1.descriptors, features0.descriptors, max_ratio, max_distance)
        expected = {row: column for row, column in expected.items() if back.get(column) == row}
    matcher = NearestNeighborMatcher(NearestNeighborOptions("nearest_neighbor", mutual, max_ratio, max_distance))
    matches = matcher(features0, features1)
    assert {int(row): int(column) for row, column in matches.indices} == expected
    assert (matches.indices.dtype, matches.scores.dtype) == (np.int32, np.float32)
    for (row, column), score in zip(matches.indices, matches.scores, strict=True):
        first, second = features0.descriptors[row].astype(float), features1.descriptors[column].astype(float)
        cosine = first @ second / np.linalg.norm(first) / np.linalg.norm(second)
        assert score == pytest.approx(max(cosine, 0), abs=1e-5)


def matcher(**options: object) -> NearestNeighborMatcher:
    defaults = {"name": "nearest_neighbor", "mutual": True, "max_ratio": None, "max_distance": None}
    return NearestNeighborMatcher(NearestNeighborOptions(**{**defaults, **options}))  # type: ignore[arg-type]


@pytest.mark.parametrize("num0, num1", [(0, 0), (0, 5), (5, 0)])
def test_images_without_keypoints_have_no_matches(num0: int, num1: int) -> None:
    empty0, empty1 = (make_features(np.ones((num, 8), np.float32)) for num in (num0, num1))
    for options in ({}, {"mutual": False}, {"max_ratio": 0.8}):
        matches = matcher(**options)(empty0, empty1)
        assert matches.indices.shape == (0, 2) and matches.scores.shape == (0,)


def test_mutual_matches_are_the_same_with_the_images_exchanged() -> None:
    features0, features1 = related(50, 70)
    there, back = matcher(max_ratio=0.9)(features0, features1), matcher(max_ratio=0.9)(features1, features0)
    assert {tuple(row) for row in there.indices.tolist()} == {(b, a) for a, b in back.indices.tolist()}


def test_an_image_matches_itself_one_to_one() -> None:
    features, _ = related(50, 50)
    matches = matcher(max_ratio=0.8)(features, features)
    np.testing.assert_array_equal(matches.indices, np.arange(50)[:, None].repeat(2, axis=1))
    np.testing.assert_allclose(matches.scores, 1, atol=1e-6)


def test_half_precision_descriptors_are_compared_in_single_precision() -> None:
    features0, features1 = related(40, 40)
    halved = [make_features(features.descriptors.astype(np.float16)) for features in (features0, features1)]
    singles = [make_features(features.descriptors.astype(np.float32)) for features in halved]
    np.testing.assert_array_equal(matcher()(*halved).indices, matcher()(*singles).indices)


def test_a_descriptor_of_zeros_gives_finite_scores() -> None:
    features0, features1 = related(10, 10)
    zeros = make_features(np.vstack([features0.descriptors, np.zeros((2, 16), np.float32)]))
    matches = matcher(max_ratio=0.9)(zeros, features1)
    assert np.isfinite(matches.scores).all() and (matches.indices[:, 0] < 10).all()


@pytest.mark.parametrize("option, value", [("max_ratio", 0), ("max_ratio", 1.1), ("max_distance", 0), ("max_distance", 2.1)])
def test_impossible_thresholds_are_refused(option: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"matches\.{option} must be in .*found {value}"):
        matcher(**{option: value})


def test_thresholds_at_the_ends_of_their_ranges_drop_nothing() -> None:
    features0, features1 = related(30, 30)
    everything = matcher()(features0, features1).indices
    for options in itertools.product([None, 1.0], [None, 2.0]):
        limited = matcher(max_ratio=options[0], max_distance=options[1])(features0, features1)
        np.testing.assert_array_equal(limited.indices, everything)


def test_whole_numbers_match_the_same_with_and_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """SIFT's descriptors: kernels multiply them in 16 bits."""
    rng = np.random.default_rng(5)
    common = rng.integers(0, 200, (80, 128))
    both = [make_features(np.float32(rng.permutation(common + rng.integers(0, 56, common.shape)) / 512)) for _ in range(2)]
    found = matcher(max_ratio=0.9)(*both)
    monkeypatch.setenv("SFM_LIGHTGLUE_KERNELS", "0")
    expected = matcher(max_ratio=0.9)(*both)
    np.testing.assert_array_equal(found.indices, expected.indices)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-6)
    assert len(found) == 80


@pytest.mark.parametrize("dimensions", [16, 32])
def test_of_equal_descriptors_one_has_a_mutual_match_unless_the_ratio_forbids_it(dimensions: int) -> None:
    features0, features1 = related(20, 20, dimensions=dimensions)
    twice = make_features(np.concatenate([features0.descriptors, features0.descriptors]))
    expected = matcher()(features0, features1).indices
    np.testing.assert_array_equal(matcher()(twice, features1).indices, expected)
    back = matcher()(features1, twice).indices
    assert {tuple(row) for row in back.tolist()} == {(b, a) for a, b in expected.tolist()}
    assert len(matcher(max_ratio=0.8)(twice, features1)) == len(matcher(max_ratio=0.8)(features1, twice)) == 0


def test_blocks_do_not_change_the_matches(monkeypatch: pytest.MonkeyPatch) -> None:
    both = related(70, 50)
    expected = matcher(max_ratio=0.9)(*both)
    monkeypatch.setattr(nearest_neighbor, "BLOCK", 16)
    found = matcher(max_ratio=0.9)(*both)
    assert np.array_equal(found.indices, expected.indices) and len(found) > 10
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-6)
