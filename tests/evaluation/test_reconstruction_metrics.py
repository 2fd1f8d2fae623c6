"""Accuracy of a reconstruction, on poses with known errors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pycolmap
import pytest

from sfm_lightglue.evaluation.reconstruction import evaluate_reconstruction, read_reconstruction_poses, warn_of_upright_poses
from sfm_lightglue.poses import Pose, rotation_angle_deg
from sfm_lightglue.similarity import align_similarity

KEYS = {"images", "registered", "auc", "position_error_mean", "position_error_median", "rotation_error_median_deg"}


def random_rotation(rng: np.random.Generator) -> np.ndarray:
    q, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    return q * np.sign(np.linalg.det(q))


def turned(pose: Pose, angle_deg: float, axis: tuple[float, float, float] = (0, 1, 0)) -> Pose:
    """The camera after a rotation about an axis through its centre: new x_cam = R @ old x_cam."""
    spin = np.asarray(pycolmap.Rotation3d(np.radians(angle_deg) * np.asarray(axis, float)).matrix())
    return Pose(spin @ pose.rotation, spin @ pose.translation)


def moved_world(poses: dict[str, Pose], scale: float, rotation: np.ndarray, shift: np.ndarray) -> dict[str, Pose]:
    """The same cameras in another world: new X = scale * rotation @ X + shift."""
    return {name: at(pose.rotation @ rotation.T, scale * rotation @ pose.center + shift) for name, pose in poses.items()}


def at(rotation: np.ndarray, center: np.ndarray) -> Pose:
    return Pose(rotation, -rotation @ center)


@pytest.fixture
def truth() -> dict[str, Pose]:
    rng = np.random.default_rng(0)
    return {f"{i}.jpg": at(random_rotation(rng), rng.normal(size=3)) for i in range(6)}


def test_a_perfect_estimate_in_another_world_has_no_error(truth: dict[str, Pose]) -> None:
    rng = np.random.default_rng(1)
    estimated = moved_world(truth, 7.3, random_rotation(rng), np.array([5.0, -100, 2]))
    result = evaluate_reconstruction(estimated, truth)
    assert (result.images, result.registered, result.num_pairs, result.unregistered) == (6, 6, 15, [])
    assert list(result.auc) == ["0.5", "1", "3", "5", "10"]
    np.testing.assert_allclose(list(result.auc.values()), 100, atol=1e-6)
    np.testing.assert_allclose(
        [result.position_error_mean, result.position_error_median, result.rotation_error_median_deg], 0, atol=1e-6
    )


def test_a_camera_turned_by_five_degrees_affects_only_its_own_pairs(truth: dict[str, Pose]) -> None:
    estimated = truth | {"2.jpg": turned(truth["2.jpg"], 5)}
    result = evaluate_reconstruction(estimated, truth)
    # 5 of 15 pairs have a rotation error of 5 degrees. Their direction errors are not larger: the camera turns about its centre.
    # For a threshold below 5 degrees the recall curve is constant at 2/3, the 10 exact pairs. For a larger threshold a line joins
    # it to the eleventh pair at 5 degrees, 11/15. There it jumps to 1: the area is 5 * (10 + 11) / 2 / 15 + 5 * 1 = 8.5.
    np.testing.assert_allclose([result.auc[key] for key in ("0.5", "1", "3")], 100 * 2 / 3, atol=1e-4)
    assert result.auc["10"] == pytest.approx(85, abs=1e-4)
    assert result.position_error_mean == pytest.approx(0, abs=1e-9)
    assert result.rotation_error_median_deg == pytest.approx(5 / 6, abs=1e-2)  # the mean rotation contains a sixth of it


@pytest.mark.parametrize("codes", [{"1.jpg": 6, "2.jpg": 3, "4.jpg": 7}, dict.fromkeys(map("{}.jpg".format, range(6)), 8)])
def test_poses_of_upright_photos_are_noticed(
    truth: dict[str, Pose], codes: dict[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    """The camera of a photo with code 6 must turn by 90 degrees clockwise, so the content of the upright photo does too."""
    angles = {3: 180, 6: 90, 7: 90, 8: -90}  # code 7 counts as flipped left-right: what is left is code 6
    upright = truth | {name: turned(truth[name], angles[code], (0, 0, 1)) for name, code in codes.items()}
    stored = {name: turned(pose, 1, (0, 1, 0)) for name, pose in truth.items()}
    orientations = dict.fromkeys(truth, 1) | codes
    warn_of_upright_poses(stored, truth, orientations)
    warn_of_upright_poses({}, upright, orientations)
    warn_of_upright_poses(stored, upright, dict.fromkeys(truth, 1))
    assert not caplog.text
    warn_of_upright_poses(stored, upright, orientations)
    assert f"{len(codes)}, such as {min(codes)}, were turned" in caplog.text


def test_pairs_with_an_unregistered_image_count_as_wrong(truth: dict[str, Pose]) -> None:
    estimated = {name: pose for name, pose in truth.items() if name != "3.jpg"}
    result = evaluate_reconstruction(estimated, truth)
    assert (result.images, result.registered, result.unregistered) == (6, 5, ["3.jpg"])
    np.testing.assert_allclose(list(result.auc.values()), 100 * 10 / 15, atol=1e-5)
    assert result.position_error_mean == pytest.approx(0, abs=1e-9)


def test_images_that_are_not_in_the_ground_truth_are_ignored(truth: dict[str, Pose]) -> None:
    result = evaluate_reconstruction(truth | {"other.jpg": truth["0.jpg"]}, truth)
    assert result.registered == 6 and result.position_error_mean == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("num_registered", [0, 1, 2])
def test_too_few_registered_images_have_no_errors_after_alignment(truth: dict[str, Pose], num_registered: int) -> None:
    estimated = dict(list(truth.items())[:num_registered])
    result = evaluate_reconstruction(estimated, truth)
    content = json.loads(json.dumps(result.to_json()))
    assert set(content) >= KEYS
    assert content["registered"] == num_registered
    assert content["position_error_mean"] is None and content["rotation_error_median_deg"] is None
    assert content["auc"]["10"] == pytest.approx(100 / 15 if num_registered == 2 else 0, abs=1e-5)
    assert "-" in result.table()


def test_position_errors_have_the_unit_of_the_truth() -> None:
    rng = np.random.default_rng(2)
    truth = {f"{i}": at(random_rotation(rng), 10 * rng.normal(size=3)) for i in range(500)}
    noisy = {name: at(pose.rotation, pose.center + rng.normal(0, 0.01, 3)) for name, pose in truth.items()}
    result = evaluate_reconstruction(moved_world(noisy, 0.2, random_rotation(rng), np.ones(3)), truth)
    # Normal 3-vectors have the mean length sqrt(8 / pi) and the median 1.5382 standard deviations; 500 vectors scatter by 2 %.
    assert result.position_error_mean == pytest.approx(0.01 * np.sqrt(8 / np.pi), rel=0.08)
    assert result.position_error_median == pytest.approx(0.01 * 1.5382, rel=0.08)


def test_rotation_errors_of_cameras_on_a_line_are_right() -> None:
    """Centres on a line do not determine the rotation about the line, but the rotations do."""
    rng = np.random.default_rng(3)
    truth = {f"{i:02d}": at(random_rotation(rng), np.array([0, 0, 1.0 * i])) for i in range(20)}
    noisy = {name: at(pose.rotation, pose.center + rng.normal(0, 1e-3, 3)) for name, pose in truth.items()}
    estimated = {name: turned(pose, 0.2, axis=(1, 0, 0)) for name, pose in noisy.items()}
    result = evaluate_reconstruction(moved_world(estimated, 0.2, random_rotation(rng), np.ones(3)), truth)
    assert result.position_error_mean == pytest.approx(1.5e-3, abs=0.5e-3)
    assert result.rotation_error_median_deg == pytest.approx(0.2, abs=0.05)


def test_only_the_rotation_counts_for_true_cameras_at_one_place(truth: dict[str, Pose]) -> None:
    """The direction between two cameras of a panorama is noise."""
    doubled = truth | {"twin.jpg": at(turned(truth["0.jpg"], 30).rotation, truth["0.jpg"].center + 1e-9)}
    estimated = doubled | {"twin.jpg": at(doubled["twin.jpg"].rotation, truth["0.jpg"].center - 1e-9)}
    assert evaluate_reconstruction(estimated, doubled).auc["0.5"] == pytest.approx(100, abs=1e-4)


def test_estimated_cameras_at_one_place_have_no_direction(truth: dict[str, Pose]) -> None:
    estimated = {name: Pose(pose.rotation, np.zeros(3)) for name, pose in truth.items()}
    result = evaluate_reconstruction(estimated, truth)
    assert result.auc["10"] == 0
    spread = np.array([pose.center for pose in truth.values()])
    expected = np.linalg.norm(spread - spread.mean(axis=0), axis=1).mean()
    assert result.position_error_mean == pytest.approx(expected)


def test_one_image_of_ground_truth_is_too_few(truth: dict[str, Pose]) -> None:
    with pytest.raises(ValueError, match="at least two"):
        evaluate_reconstruction(truth, {"0.jpg": truth["0.jpg"]})


def test_a_warning_is_logged_if_no_name_agrees(truth: dict[str, Pose], caplog: pytest.LogCaptureFixture) -> None:
    evaluate_reconstruction({f"images/{name}": pose for name, pose in truth.items()}, truth)
    assert "images/0.jpg and 0.jpg" in caplog.text


@pytest.mark.parametrize("num_dimensions", [3, 2])
def test_alignment_recovers_a_similarity(num_dimensions: int) -> None:
    rng = np.random.default_rng(4)
    source = rng.normal(size=(10, 3)) * (np.arange(3) < num_dimensions)
    rotation, shift = random_rotation(rng), rng.normal(size=3)
    scale, found, translation = align_similarity(source, 3.5 * source @ rotation.T + shift)
    assert scale == pytest.approx(3.5)
    np.testing.assert_allclose(found, rotation, atol=1e-9)
    np.testing.assert_allclose(translation, shift, atol=1e-9)


def test_the_alignment_to_mirrored_points_is_no_reflection() -> None:
    rng = np.random.default_rng(5)
    source = rng.normal(size=(10, 3))
    _, rotation, _ = align_similarity(source, source * [1, 1, -1])
    assert np.linalg.det(rotation) == pytest.approx(1)


def test_no_similarity_near_the_alignment_is_better() -> None:
    rng = np.random.default_rng(6)
    source, target = rng.normal(size=(8, 3)), rng.normal(size=(8, 3))

    def cost(scale: float, rotation: np.ndarray, translation: np.ndarray) -> float:
        return float(np.sum((scale * source @ rotation.T + translation - target) ** 2))

    best = align_similarity(source, target)
    for _ in range(300):
        near = np.asarray(pycolmap.Rotation3d(rng.normal(0, 0.3, 3)).matrix()) @ best[1]
        assert cost(*best) <= cost(best[0] + rng.normal(0, 0.1), near, best[2] + rng.normal(0, 0.1, 3))


def write_model(folder: Path, poses: dict[str, Pose]) -> None:
    model = pycolmap.Reconstruction()
    model.add_camera_with_trivial_rig(
        pycolmap.Camera(model="PINHOLE", width=640, height=480, params=[500, 500, 320, 240], camera_id=1)
    )
    for number, (name, pose) in enumerate(poses.items(), start=1):
        image = pycolmap.Image(name=name, camera_id=1, image_id=number)
        model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(pycolmap.Rotation3d(pose.rotation), pose.translation))
    folder.mkdir(parents=True)
    model.write(folder)


def test_the_largest_model_is_read_and_the_first_if_several_are_largest(tmp_path: Path, truth: dict[str, Pose]) -> None:
    names = list(truth)
    for number, part in enumerate([names[:2], names[:4], names[2:]]):
        write_model(tmp_path / str(number), {name: truth[name] for name in part})
    write_model(tmp_path / "partial", truth)
    poses = read_reconstruction_poses(tmp_path)
    assert list(poses) == names[:4]
    for name, pose in poses.items():
        assert rotation_angle_deg(pose.rotation @ truth[name].rotation.T) == pytest.approx(0, abs=1e-6)
        np.testing.assert_allclose(pose.center, truth[name].center, atol=1e-12)


def test_a_missing_or_empty_reconstruction_has_no_registered_image(tmp_path: Path, truth: dict[str, Pose]) -> None:
    assert read_reconstruction_poses(tmp_path / "missing") == {} == read_reconstruction_poses(tmp_path)
    result = evaluate_reconstruction({}, truth)
    assert result.registered == 0 and set(result.auc.values()) == {0.0}
