"""Estimators and scores of published protocols, compared with other implementations and with known answers."""

from __future__ import annotations

import numpy as np
import pycolmap
import pytest

from sfm_lightglue.evaluation.estimators import (
    HOMOGRAPHY_ESTIMATORS,
    PACKAGES,
    POSE_ESTIMATORS,
    Estimator,
    check_estimator,
    estimate_homography,
    estimate_relative_pose,
)
from sfm_lightglue.evaluation.pairs import epipolar_errors, relative_pose_error, symmetric_homography_errors
from sfm_lightglue.evaluation.scores import FoundMatches, Protocol, homography_scores, pose_scores
from sfm_lightglue.evaluation.sets import TruePair
from sfm_lightglue.geometry import warp_points
from sfm_lightglue.poses import PosedCamera

HOMOGRAPHY = np.array([[0.9, 0.05, 20], [-0.08, 1.1, -10], [1e-4, -5e-5, 1]])
SIZE = (640, 480)
K = np.array([[500.0, 0, 310], [0, 510, 250], [0, 0, 1]])
CAMERAS = (
    PosedCamera(np.eye(3), np.zeros(3), K, SIZE),
    PosedCamera(np.asarray(pycolmap.Rotation3d(np.radians([1.0, 12, -2])).matrix()), np.array([-0.9, 0.1, 0.3]), K, SIZE),
)


def skip_if_missing(name: str) -> None:
    if name in PACKAGES:
        pytest.importorskip(PACKAGES[name][0])


def planar_matches(num_wrong: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """100 matches of a plane in COLMAP's pixels, the last ones wrong."""
    rng = np.random.default_rng(0)
    points0 = rng.uniform((0, 0), SIZE, (100, 2))
    points1 = warp_points(HOMOGRAPHY, points0)
    points1[100 - num_wrong :] = rng.uniform((0, 0), SIZE, (num_wrong, 2))
    return points0, points1


def scene_matches(num_wrong: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The same of a scene in depth."""
    rng = np.random.default_rng(1)
    points = rng.uniform((-2, -2, 4), (2, 2, 8), (150, 3))
    both = []
    for camera in CAMERAS:
        projected = (points @ camera.rotation.T + camera.translation) @ K.T
        both.append(projected[:, :2] / projected[:, 2:])
    both[1][150 - num_wrong :] = rng.uniform((0, 0), SIZE, (num_wrong, 2))
    return both[0], both[1]


@pytest.mark.parametrize("name", HOMOGRAPHY_ESTIMATORS)
def test_every_estimator_finds_a_homography(name: str) -> None:
    skip_if_missing(name)
    points0, points1 = planar_matches(0 if "dlt" in name else 30)
    found = estimate_homography(points0, points1, Estimator(name, 1.0))
    assert found is not None
    corners = np.array([[0.0, 0], [640, 0], [640, 480], [0, 480]])
    np.testing.assert_allclose(warp_points(found, corners), warp_points(HOMOGRAPHY, corners), atol=1e-3)
    assert estimate_homography(points0[:3], points1[:3], Estimator(name)) is None


@pytest.mark.parametrize("name", POSE_ESTIMATORS)
def test_every_estimator_finds_a_relative_pose(name: str) -> None:
    skip_if_missing(name)
    found = estimate_relative_pose(*scene_matches(40), *CAMERAS, Estimator(name, 1.0))
    assert found is not None
    # Some wrong matches are within 1 px of their epipolar lines by chance and move the estimate.
    assert max(relative_pose_error(*found, CAMERAS[1].rotation, CAMERAS[1].translation)) < 0.3
    points0, points1 = scene_matches()
    assert estimate_relative_pose(points0[:4], points1[:4], *CAMERAS, Estimator(name)) is None


def test_a_match_without_weight_does_not_move_the_direct_linear_transform() -> None:
    points0, points1 = planar_matches(20)
    weights = np.ones(100)
    weights[80:] = 0
    corners = np.array([[0.0, 0], [640, 0], [640, 480], [0, 480]])
    truth = warp_points(HOMOGRAPHY, corners)
    weighted = estimate_homography(points0, points1, Estimator("weighted_dlt"), weights=weights)
    plain = estimate_homography(points0, points1, Estimator("dlt"))
    assert weighted is not None and plain is not None
    np.testing.assert_allclose(warp_points(weighted, corners), truth, atol=1e-3)
    assert np.abs(warp_points(plain, corners) - truth).max() > 20


def test_errors_of_matches_are_distances_to_their_true_places() -> None:
    points0, points1 = planar_matches()
    shift = np.diag([1.0, 1, 1]) + np.array([[0, 0, 3.0], [0, 0, 4], [0, 0, 0]])
    np.testing.assert_allclose(symmetric_homography_errors(points0, points0, shift), 5)
    np.testing.assert_allclose(symmetric_homography_errors(points0 - 0.5, points1 - 0.5, HOMOGRAPHY), 0, atol=1e-9)
    points0, points1 = scene_matches()
    np.testing.assert_allclose(epipolar_errors(points0 - 0.5, points1 - 0.5, *CAMERAS), 0, atol=1e-12)
    sideways = PosedCamera(np.eye(3), np.array([1.0, 0, 0]), K, SIZE)  # epipolar lines are rows
    moved = epipolar_errors(points0, points0 + np.array([7, 5.1]), CAMERAS[0], sideways)
    np.testing.assert_allclose(moved, 5.1 / 510, atol=1e-12)


def found(points: tuple[np.ndarray, np.ndarray]) -> FoundMatches:
    return FoundMatches(points[0] - 0.5, points[1] - 0.5, np.ones(len(points[0])), 500.0, SIZE)


def test_scores_of_right_and_of_missing_matches() -> None:
    nothing = FoundMatches(np.zeros((0, 2)), np.zeros((0, 2)), np.zeros(0), 300.0, SIZE)
    planar = [TruePair("a", "b", homography=HOMOGRAPHY), TruePair("a", "c", homography=HOMOGRAPHY)]
    scores = homography_scores(planar, [found(planar_matches()), nothing], Protocol(num_seeds=2)).values
    assert scores["AUC@3 px"] == pytest.approx(50, abs=1) and scores["precision@1 px"] == 50
    assert scores["matches"] == 50 and scores["keypoints"] == 400
    posed = [TruePair("a", "b", cameras=CAMERAS), TruePair("a", "c", cameras=CAMERAS)]
    scores = pose_scores(posed, [found(scene_matches(50)), nothing], Protocol(num_seeds=1)).values
    assert 45 < scores["AUC@5 deg"] <= 50
    assert scores["epipolar precision@1e-4"] == pytest.approx(50 * 100 / 150, abs=1.5)


def test_the_best_error_limit_counts_and_is_named() -> None:
    points0, points1 = planar_matches()
    noisy = points0, points1 + np.random.default_rng(3).normal(0, 0.7, points1.shape)
    planar = [TruePair("a", "b", homography=HOMOGRAPHY)]
    single = {
        limit: homography_scores(planar, [found(noisy)], Protocol(max_errors_px=(limit,), num_seeds=2)) for limit in (0.05, 3.0)
    }
    both = homography_scores(planar, [found(noisy)], Protocol(max_errors_px=(0.05, 3.0), num_seeds=2))
    best = max(single.values(), key=lambda scores: sum(scores.values[f"AUC@{px} px"] for px in (1, 3, 5)))
    assert both == best and both.max_error_px in (0.05, 3.0)


def test_unknown_and_missing_estimators_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="no estimator 'dlt' of a pose"):
        check_estimator("dlt", "pose")
    monkeypatch.setitem(PACKAGES, "poselib", ("no_such_module", "poselib"))
    with pytest.raises(ValueError, match="pip install poselib"):
        check_estimator("poselib", "homography")
