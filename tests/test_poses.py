"""The pose file, quaternions, and angles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sfm_lightglue.poses import (
    direction_angle_deg,
    nearest_rotation,
    quaternion_from_rotation,
    read_poses,
    rotation_angle_deg,
    rotation_from_quaternion,
    write_poses,
)

LINE = "a.jpg 1 0 0 0 1 2 3 500 501 320 240 640 480"
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def write(folder: Path, *lines: str) -> Path:
    path = folder / "poses.txt"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def axis_rotation(axis: int, angle_deg: float) -> np.ndarray:
    """Rotation about a coordinate axis, by its definition."""
    c, s = np.cos(np.radians(angle_deg)), np.sin(np.radians(angle_deg))
    first, second = (axis + 1) % 3, (axis + 2) % 3
    rotation = np.eye(3)
    rotation[first, first] = rotation[second, second] = c
    rotation[second, first], rotation[first, second] = s, -s
    return rotation


def test_a_line_gives_pose_intrinsics_and_size(tmp_path: Path) -> None:
    camera = read_poses(write(tmp_path, "# comment", "", LINE))["a.jpg"]
    np.testing.assert_array_equal(camera.rotation, np.eye(3))
    np.testing.assert_array_equal(camera.translation, [1, 2, 3])
    np.testing.assert_array_equal(camera.center, [-1, -2, -3])
    np.testing.assert_array_equal(camera.camera_matrix, [[500, 0, 320], [0, 501, 240], [0, 0, 1]])
    np.testing.assert_array_equal(camera.cam_from_world, [[1, 0, 0, 1], [0, 1, 0, 2], [0, 0, 1, 3]])
    assert camera.size == (640, 480)


def test_names_may_hold_folders_and_blanks(tmp_path: Path) -> None:
    path = write(tmp_path, LINE.replace("a.jpg", "left cam/my photo 2.jpg"))
    assert list(read_poses(path)) == ["left cam/my photo 2.jpg"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("separator", [",", ", ", ";", "\t"])
def test_files_of_spreadsheets_and_windows_are_read(tmp_path: Path, encoding: str, separator: str) -> None:
    line = separator.join(["left/Müller 2.jpg", *LINE.split()[1:]])
    (tmp_path / "poses.txt").write_bytes(f"# comment\r\n\r\n{line}\r\n".encode(encoding))
    cameras = read_poses(tmp_path / "poses.txt")
    assert list(cameras) == ["left/Müller 2.jpg"] and cameras["left/Müller 2.jpg"].size == (640, 480)


def test_quaternions_are_normalised(tmp_path: Path) -> None:
    camera = read_poses(write(tmp_path, LINE.replace("1 0 0 0", "2 0 0 2")))["a.jpg"]
    np.testing.assert_allclose(camera.rotation, axis_rotation(2, 90), atol=1e-15)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("angle", [0.0, 1.0, 90.0, 179.0, 180.0, -120.0])
def test_rotations_of_quaternions_agree_with_the_definition_and_back(axis: int, angle: float) -> None:
    half = np.radians(angle) / 2
    quaternion = np.array([np.cos(half), 0, 0, 0])
    quaternion[1 + axis] = np.sin(half)
    np.testing.assert_allclose(rotation_from_quaternion(quaternion), axis_rotation(axis, angle), atol=1e-12)
    back = quaternion_from_rotation(axis_rotation(axis, angle))
    np.testing.assert_allclose(abs(back @ quaternion), 1, atol=1e-12)  # q and -q are the same rotation


def test_written_poses_are_read_again(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [f"{i} x.png {' '.join(map(str, rng.normal(size=7)))} 500 501 320.5 240 640 480" for i in range(20)]
    cameras = read_poses(write(tmp_path, *rows))
    write_poses(tmp_path / "again.txt", cameras)
    again = read_poses(tmp_path / "again.txt")
    assert list(again) == list(cameras)
    for name, camera in cameras.items():
        np.testing.assert_allclose(again[name].cam_from_world, camera.cam_from_world, atol=1e-10)
        np.testing.assert_allclose(again[name].camera_matrix, camera.camera_matrix)
        assert again[name].size == camera.size


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("a.jpg 1 0 0 0 1 2 3", "found 7 values"),
        (LINE.replace("501", "wide"), "wide"),
        (LINE.replace("1 0 0 0", "0 0 0 0"), "quaternion"),
        (LINE.replace("501", "nan"), "not finite"),
        (LINE.replace("640", "640.5"), "whole numbers"),
        (LINE.replace("500", "-500"), "positive"),
        (LINE + "\n" + LINE, "second pose"),
    ],
)
def test_a_bad_line_is_named_with_its_number(tmp_path: Path, line: str, reason: str) -> None:
    path = write(tmp_path, "# comment", LINE.replace("a.jpg", "b.jpg"), line)
    number = 3 if "\n" not in line else 4
    with pytest.raises(ValueError, match=rf"poses\.txt:{number}: .*{reason}"):
        read_poses(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_poses(tmp_path / "nowhere.txt")


@pytest.mark.parametrize("angle", [1e-9, 1e-3, 5.0, 90.0, 179.999])
def test_rotation_angles_are_exact_even_when_tiny(angle: float) -> None:
    np.testing.assert_allclose(rotation_angle_deg(axis_rotation(1, angle)), angle, rtol=1e-6)


def test_direction_angles_ignore_lengths_and_are_180_degrees_for_zero_vectors() -> None:
    vectors0 = np.array([[2.0, 0, 0], [1, 0, 0], [1, 0, 0], [0, 0, 0]])
    vectors1 = np.array([[5.0, 0, 0], [0, 3, 0], [-1, 0, 0], [1, 0, 0]])
    np.testing.assert_allclose(direction_angle_deg(vectors0, vectors1), [0, 90, 180, 180])


def test_the_nearest_rotation_is_never_a_reflection() -> None:
    nearest = nearest_rotation(np.diag([1.0, 1.0, -0.1]))
    np.testing.assert_allclose(nearest, np.eye(3), atol=1e-12)


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the folder of real photos")
def test_real_files_are_read() -> None:
    cameras = read_poses(SHARED / "fountain_p11" / "poses.txt")
    assert len(cameras) == 11 and cameras["0000.jpg"].size == (1600, 1067)
    for path in sorted(SHARED.glob("*/poses.txt")):
        for camera in read_poses(path).values():
            np.testing.assert_allclose(camera.rotation @ camera.rotation.T, np.eye(3), atol=1e-12)
