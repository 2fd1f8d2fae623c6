"""Similarities between point sets: exact, weighted, and with wrong points."""

from __future__ import annotations

import numpy as np
import pytest

from sfm_lightglue.similarity import align_similarity, axis_deviation, robust_similarity

ROTATION = np.array([[0, -1, 0], [0, 0, -1], [1, 0, 0]], np.float64)
SHIFT = np.array([10.0, -20.0, 5.0])


def scene(num_points: int, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Points within 2 units of each other, and the same points 8 times as large, turned, shifted and with errors."""
    generator = np.random.default_rng(num_points)
    source = generator.uniform(-1, 1, (num_points, 3))
    return source, 8 * source @ ROTATION.T + SHIFT + noise * generator.standard_normal((num_points, 3))


@pytest.mark.parametrize("num_points", [3, 4, 8, 40])
def test_exact_points_give_the_exact_similarity(num_points: int) -> None:
    source, target = scene(num_points, 0.0)
    similarity, inliers = robust_similarity(source, target, np.ones(num_points), seed=0)
    assert inliers.all()
    assert similarity.scale == pytest.approx(8)
    np.testing.assert_allclose(similarity.rotation, ROTATION, atol=1e-12)
    np.testing.assert_allclose(similarity.translation, SHIFT, atol=1e-10)


@pytest.mark.parametrize(("num_points", "num_wrong"), [(5, 1), (8, 2), (18, 1), (18, 7), (60, 27)])
def test_wrong_points_change_nothing(num_points: int, num_wrong: int) -> None:
    source, target = scene(num_points, 0.1)
    right = np.arange(num_points) >= num_wrong
    wrong = target.copy()
    wrong[~right] += np.random.default_rng(0).uniform(100, 1000, (num_wrong, 3))
    similarity, inliers = robust_similarity(source, wrong, np.full(num_points, 0.1), seed=0)
    np.testing.assert_array_equal(inliers, right)
    scale, rotation, translation = align_similarity(source[right], target[right])
    assert similarity.scale == pytest.approx(scale)
    np.testing.assert_allclose(similarity.rotation, rotation, atol=1e-9)
    np.testing.assert_allclose(similarity.translation, translation, atol=1e-9)


def test_the_errors_need_not_be_known() -> None:
    source, target = scene(30, 2.0)
    target[3] += 100
    similarity, inliers = robust_similarity(source, target, np.full(30, 0.01), seed=0)
    assert not inliers[3] and inliers.sum() >= 27
    assert axis_deviation(np.linalg.norm(similarity(source) - target, axis=1)[inliers]) == pytest.approx(2.0, rel=0.25)


def test_precise_points_weigh_more() -> None:
    source, target = scene(6, 0.0)
    target[0] += [0, 0, 1.0]
    deviations = np.array([10.0, *np.full(5, 0.1)])
    similarity, _ = robust_similarity(source, target, deviations, seed=0)
    assert np.linalg.norm(similarity(source) - target, axis=1)[1:].max() < 0.001


def test_the_same_seed_gives_the_same_bits() -> None:
    source, target = scene(40, 0.1)
    found = [robust_similarity(source, target, np.ones(40), seed=0)[0] for _ in range(2)]
    assert found[0].scale == found[1].scale and (found[0].rotation == found[1].rotation).all()


def test_a_mirrored_set_is_never_matched_by_a_reflection() -> None:
    source, target = scene(20, 0.0)
    similarity, _ = robust_similarity(source, target * [1, 1, -1], np.ones(20), seed=0)
    assert np.linalg.det(similarity.rotation) == pytest.approx(1)
