"""Metrics of image pairs, on synthetic scenes with known answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pycolmap
import pytest

from sfm_lightglue.evaluation.pairs import (
    evaluate_homography,
    evaluate_pair_poses,
    homography_auc,
    homography_precision,
    pose_auc,
    posed_pairs,
    read_homographies,
    relative_pose_error,
    repeatability,
)
from sfm_lightglue.geometry import warp_points
from sfm_lightglue.poses import PosedCamera

SIZE = (640, 480)
HOMOGRAPHY = np.array([[0.9, 0.05, 20], [-0.08, 1.1, -10], [1e-4, -5e-5, 1]])
"""True homography, in COLMAP's pixels: the centre of the top-left pixel is at (0.5, 0.5)."""


def rotation(*rotation_vector_deg: float) -> np.ndarray:
    return np.asarray(pycolmap.Rotation3d(np.radians(rotation_vector_deg)).matrix())


def camera(rotation_vector_deg: tuple[float, float, float], translation: tuple[float, float, float]) -> PosedCamera:
    matrix = np.array([[500.0, 0, 310], [0, 510, 250], [0, 0, 1]])
    return PosedCamera(rotation(*rotation_vector_deg), np.array(translation, float), matrix, SIZE)


def project(posed: PosedCamera, points: np.ndarray) -> np.ndarray:
    """Projections in our pixels: the centre of the top-left pixel is at (0, 0)."""
    projected = (points @ posed.rotation.T + posed.translation) @ posed.camera_matrix.T
    return projected[:, :2] / projected[:, 2:] - 0.5


@pytest.fixture
def scene() -> tuple[dict[str, PosedCamera], np.ndarray]:
    rng = np.random.default_rng(0)
    cameras = {
        "a": camera((1, 2, 3), (0.1, 0, 0)),
        "b": camera((0, 12, -2), (-0.9, 0.1, 0.3)),
        "c": camera((4, -6, 0), (0.8, 0.5, 0)),
    }
    return cameras, rng.uniform((-2, -2, 4), (2, 2, 8), size=(150, 3))


def integrated_recall(errors: np.ndarray, threshold: float) -> float:
    """Area in percent, as a fine sum over points of the curve."""
    ordered = [0.0, *sorted(errors)]
    recalls = [k / len(errors) for k in range(len(ordered))]
    steps = (np.arange(200_000) + 0.5) / 200_000 * threshold
    last = max(k for k, error in enumerate(ordered) if error < threshold or k == 0)
    return 100 * float(np.mean(np.interp(steps, ordered[: last + 1], recalls[: last + 1])))


@pytest.mark.parametrize("threshold", [0.5, 1.0, 5.0, 20.0, 300.0])
@pytest.mark.parametrize("count", [1, 2, 7, 100])
def test_auc_is_the_area_under_the_recall_curve(threshold: float, count: int) -> None:
    errors = np.random.default_rng(count).gamma(1, 6, size=count)
    errors[::5] = 180
    assert pose_auc(errors, [threshold])[0] == pytest.approx(integrated_recall(errors, threshold), abs=1e-2)


def test_auc_of_known_errors() -> None:
    assert pose_auc([0, 0, 0], (1, 5)) == [100, 100]
    assert pose_auc([180, np.inf], (1, 5)) == [0, 0]
    assert pose_auc([], (1, 5)) == [0, 0]
    # One error of 1 and the threshold 2: the curve rises on a line to 1 at 1, and is constant from there.
    assert pose_auc([1.0], [2.0]) == pytest.approx([75])


def test_relative_pose_errors_are_the_angles_between_the_poses() -> None:
    direction = np.array([1.0, 0, 0])
    errors = relative_pose_error(
        rotation(0, 0, 7) @ rotation(3, 2, 1), rotation(0, 0, 4) @ direction, rotation(3, 2, 1), 9 * direction
    )
    assert errors == pytest.approx((7, 4))
    assert relative_pose_error(np.eye(3), -direction, np.eye(3), direction) == pytest.approx((0, 180))
    assert relative_pose_error(np.eye(3), direction, np.eye(3), np.zeros(3)) == (0, 0)
    assert relative_pose_error(np.eye(3), np.zeros(3), np.eye(3), direction) == (0, 180)


def test_exact_correspondences_give_the_true_pose(scene: tuple[dict[str, PosedCamera], np.ndarray]) -> None:
    cameras, points = scene
    pairs = [("a", "b"), ("a", "c"), ("b", "c")]
    correspondences = {(a, b): (project(cameras[a], points), project(cameras[b], points)) for a, b in pairs}
    result = evaluate_pair_poses(pairs, cameras, correspondences)
    assert (result.num_pairs, result.num_failed) == (3, 0)
    assert max(result.errors_deg) < 1e-3
    np.testing.assert_allclose(list(result.auc.values()), 100, atol=0.01)
    assert list(result.auc) == ["5", "10", "20"]


def test_outliers_do_not_spoil_the_pose_and_repeated_runs_agree(scene: tuple[dict[str, PosedCamera], np.ndarray]) -> None:
    cameras, points = scene
    rng = np.random.default_rng(1)
    points0, points1 = project(cameras["a"], points), project(cameras["b"], points) + rng.normal(0, 0.2, (150, 2))
    points1[::3] = rng.uniform((0, 0), SIZE, (50, 2))
    first, second = (evaluate_pair_poses([("a", "b")], cameras, {("a", "b"): (points0, points1)}) for _ in range(2))
    assert first == second and first.errors_deg[0] < 1


def test_pairs_without_an_estimate_count_as_wrong(scene: tuple[dict[str, PosedCamera], np.ndarray]) -> None:
    cameras, points = scene
    few = {("a", "b"): (project(cameras["a"], points[:4]), project(cameras["b"], points[:4]))}
    result = evaluate_pair_poses([("a", "b"), ("a", "c")], cameras, few)
    assert result.num_failed == 2 and result.errors_deg == [180, 180] and result.auc["20"] == 0
    with pytest.raises(KeyError, match="no pose of z"):
        evaluate_pair_poses([("a", "z")], cameras, few)


def grid_points(count: int = 100) -> np.ndarray:
    return np.random.default_rng(0).uniform((60, 60), (560, 420), size=(count, 2))


def warped_keypoints(keypoints: np.ndarray) -> np.ndarray:
    """The true homography between keypoints in our pixels."""
    return warp_points(HOMOGRAPHY, keypoints + 0.5) - 0.5


def test_exact_matches_give_the_true_homography() -> None:
    points0 = grid_points()
    error = evaluate_homography(points0, warped_keypoints(points0), HOMOGRAPHY, SIZE)
    assert error < 1e-6
    assert list(homography_auc([error])) == ["1", "3", "5"]
    np.testing.assert_allclose(list(homography_auc([error]).values()), 100, atol=1e-4)


def test_the_corner_error_of_a_shifted_estimate_is_the_shift() -> None:
    points0 = grid_points()
    shift = np.array([[1, 0, 3], [0, 1, 4], [0, 0, 1.0]])
    assert evaluate_homography(points0, points0, shift, SIZE) == pytest.approx(5)


def test_the_corner_error_is_infinite_with_too_few_matches() -> None:
    assert evaluate_homography(np.zeros((3, 2)), np.zeros((3, 2)), HOMOGRAPHY, SIZE) == float("inf")
    assert set(homography_auc([float("inf")]).values()) == {0}


def test_precision_is_the_share_of_matches_near_the_truth() -> None:
    points0 = grid_points()
    points1 = warped_keypoints(points0)
    points1[:25, 0] += 3.5
    points1[25:50, 1] -= 2.5
    assert homography_precision(points0, points1, HOMOGRAPHY) == 0.75
    assert homography_precision(points0[:0], points1[:0], HOMOGRAPHY) == 0


def test_repeatability_counts_keypoints_found_again_in_the_common_region() -> None:
    shift = np.array([[1, 0, 100], [0, 1, 0], [0, 0, 1.0]])
    keypoints0 = np.array([[50.0, 50], [200, 100], [300, 300], [600, 200]])  # the last one is outside image 1
    keypoints1 = np.array([[150.0, 50], [300, 102], [20, 200], [450, 400]])  # the third is outside image 0
    share, distance = repeatability(keypoints0, keypoints1, shift, SIZE, SIZE)
    assert share == pytest.approx(4 / 6)  # two of three in each direction
    assert distance == pytest.approx(1)  # 0 and 2 px in each direction


def test_repeatability_of_large_sets_equals_the_result_of_slow_loops() -> None:
    rng = np.random.default_rng(2)
    keypoints0, keypoints1 = rng.uniform((0, 0), SIZE, (700, 2)), rng.uniform((0, 0), SIZE, (600, 2))
    found, common = 0, 0
    for target_from_source, points, others in (
        (HOMOGRAPHY, keypoints0 + 0.5, keypoints1 + 0.5),
        (np.linalg.inv(HOMOGRAPHY), keypoints1 + 0.5, keypoints0 + 0.5),
    ):
        back = warp_points(np.linalg.inv(target_from_source), others)
        visible = [other for other, (x, y) in zip(others, back, strict=True) if 0 <= x <= SIZE[0] and 0 <= y <= SIZE[1]]
        for x, y in warp_points(target_from_source, points):
            if 0 <= x <= SIZE[0] and 0 <= y <= SIZE[1]:
                common += 1
                found += min(np.hypot(x - u, y - v) for u, v in visible) <= 3
    assert repeatability(keypoints0, keypoints1, HOMOGRAPHY, SIZE, SIZE)[0] == pytest.approx(found / common)


def test_repeatability_without_keypoints_is_zero() -> None:
    share, distance = repeatability(np.zeros((0, 2)), grid_points(), HOMOGRAPHY, SIZE, SIZE)
    assert share == 0 and np.isnan(distance)


def test_homographies_are_read_and_bad_lines_named(tmp_path: Path) -> None:
    path = tmp_path / "homographies.txt"
    path.write_text("# comment\na.png b.png 1 0 5 0 1 6 0 0 1\n")
    homographies = read_homographies(path)
    np.testing.assert_array_equal(homographies["a.png", "b.png"], [[1, 0, 5], [0, 1, 6], [0, 0, 1]])
    path.write_text("a 1.png\tb 2.png 1 0 5 0 1 6 0 0 1\n")
    assert list(read_homographies(path)) == [("a 1.png", "b 2.png")]
    path.write_bytes("a 1.png,b 2.png,1,0,5,0,1,6,0,0,1\r\n".encode("utf-16"))
    np.testing.assert_array_equal(read_homographies(path)["a 1.png", "b 2.png"], [[1, 0, 5], [0, 1, 6], [0, 0, 1]])
    path.write_text("# comment\na.png b.png 1 0 5\n")
    with pytest.raises(ValueError, match=r"homographies\.txt:2: "):
        read_homographies(path)
    with pytest.raises(FileNotFoundError):
        read_homographies(tmp_path / "nowhere.txt")


def test_pairs_to_score_need_true_poses(tmp_path: Path) -> None:
    path, truth = tmp_path / "pairs.txt", dict.fromkeys(("a.jpg", "b.jpg"), camera((0, 0, 0), (0, 0, 0)))
    path.write_text("# list\nb.jpg, ./a.jpg, 0.5\n")
    assert posed_pairs(path, truth) == [("a.jpg", "b.jpg")]
    path.write_text("a.jpg b.jpg\na.jpg c.jpg\n")
    with pytest.raises(ValueError, match=r"pairs\.txt:2: the ground truth has no pose of 'c.jpg'"):
        posed_pairs(path, truth)
