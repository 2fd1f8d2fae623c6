"""Loaders of public benchmarks, on small excerpts in the layouts of their archives. One scene has a known answer."""

from __future__ import annotations

import pickle
from pathlib import Path

import h5py
import numpy as np
import pycolmap
import pytest
from PIL import Image as PILImage

from sfm_lightglue.evaluation import public_sets
from sfm_lightglue.evaluation.arrays import read_npz
from sfm_lightglue.evaluation.public_sets import open_set
from sfm_lightglue.evaluation.sets import BenchmarkSet, Resize, resized_set
from sfm_lightglue.geometry import sampson_error, warp_points
from sfm_lightglue.poses import fundamental_matrix

SIZE = (64, 48)
K = np.array([[60.0, 0, 31], [0, 62, 25], [0, 0, 1]])
POSES = {
    0: np.array([[1.0, 0, 0, 0.1], [0, 1, 0, 0], [0, 0, 1, 0.2]]),
    1: np.column_stack([pycolmap.Rotation3d(np.radians([2.0, 12, -3])).matrix(), [-0.8, 0.1, 0.3]]),
}
"""cam_from_world of two images."""
POINTS = np.random.default_rng(0).uniform((-1, -1, 3), (1, 1, 6), (30, 3))


def photo(path: Path, size: tuple[int, int] = SIZE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    PILImage.new("RGB", size, (90, 90, 90)).save(path)


def check_pose(opened: BenchmarkSet, names: tuple[str, str]) -> None:
    """The set has one pair of these images, and the projections of points fit its cameras."""
    (pair,) = opened.pairs
    assert (pair.name0, pair.name1) == names and pair.cameras is not None and not opened.is_planar
    assert all((opened.images / name).is_file() for name in names)
    assert all(camera.size == SIZE for camera in pair.cameras)
    pixels = []
    for pose in POSES.values():
        projected = (POINTS @ pose[:, :3].T + pose[:, 3]) @ K.T
        pixels.append(projected[:, :2] / projected[:, 2:])
    np.testing.assert_allclose(sampson_error(fundamental_matrix(*pair.cameras), *pixels), 0, atol=1e-4)
    for camera in pair.cameras:
        np.testing.assert_allclose(camera.camera_matrix, K, atol=1e-9)


def square(pose: np.ndarray) -> np.ndarray:
    return np.vstack([pose, [0, 0, 0, 1]])


def relative() -> np.ndarray:
    return square(POSES[1]) @ np.linalg.inv(square(POSES[0]))


def text(values: np.ndarray) -> str:
    return " ".join(f"{value:.12g}" for value in np.ravel(values))


# --- homographies ------------------------------------------------------------------------------------------------------------


def hpatches(folder: Path) -> None:
    for name in ("i_ajuntament", "v_bird", "v_talent"):
        for number in range(1, 7):
            photo(folder / name / f"{number}.ppm")
        for number in range(2, 7):
            (folder / name / f"H_1_{number}").write_text("1.1 0.02 3\n-0.01 0.9 4 \n1e-4 0 1\n")


def test_hpatches_has_five_pairs_for_each_sequence_without_the_large_ones(tmp_path: Path) -> None:
    hpatches(tmp_path)
    opened = open_set(tmp_path)
    assert opened.layout == "HPatches" and opened.is_planar and opened.resize == Resize("short", 480)
    assert [(pair.name0, pair.name1) for pair in opened.pairs][:2] == [
        ("i_ajuntament/1.ppm", "i_ajuntament/2.ppm"),
        ("i_ajuntament/1.ppm", "i_ajuntament/3.ppm"),
    ]
    assert len(opened.pairs) == 10
    np.testing.assert_allclose(opened.pairs[0].homography, [[1.1, 0.02, 3], [-0.01, 0.9, 4], [1e-4, 0, 1]])


def test_the_copies_of_a_protocol_have_its_size_and_ground_truth_in_their_pixels(tmp_path: Path) -> None:
    hpatches(tmp_path / "set")
    opened = open_set(tmp_path / "set")
    copies = resized_set(opened, Resize("short", 100), tmp_path / "copies")
    assert PILImage.open(copies.images / copies.pairs[0].name0).size == (133, 100)
    points, scale = np.array([[3.0, 4], [50, 20]]), np.array([133 / 64, 100 / 48])
    np.testing.assert_allclose(
        warp_points(copies.pairs[0].homography, points * scale), warp_points(opened.pairs[0].homography, points) * scale
    )
    before = (copies.images / copies.pairs[0].name0).stat().st_mtime_ns
    assert resized_set(opened, Resize("short", 100), tmp_path / "copies").names == copies.names
    assert (copies.images / copies.pairs[0].name0).stat().st_mtime_ns == before
    assert resized_set(opened, None, tmp_path / "none").images == opened.images


# --- poses -------------------------------------------------------------------------------------------------------------------


def test_our_own_layout(tmp_path: Path) -> None:
    for number in POSES:
        photo(tmp_path / "images" / f"{number}.png")
    lines = []
    for number, pose in POSES.items():
        x, y, z, w = pycolmap.Rotation3d(pose[:, :3]).quat
        lines.append(f"{number}.png {w} {x} {y} {z} {text(pose[:, 3])} {K[0, 0]} {K[1, 1]} {K[0, 2]} {K[1, 2]} 64 48")
    (tmp_path / "poses.txt").write_text("\n".join(lines))
    (tmp_path / "pairs.txt").write_text("0.png 1.png\n")
    check_pose(open_set(tmp_path), ("0.png", "1.png"))


@pytest.mark.parametrize("length", [12, 16])
def test_glue_factorys_list_of_pairs(tmp_path: Path, length: int) -> None:
    names = ("Undistorted/a b.jpg".replace(" ", "_"), "Undistorted/c.jpg")
    for name in names:
        photo(tmp_path / "images" / name)
    pose = relative()
    values = [pose[:3, :3], pose[:3, 3]] if length == 12 else [pose]
    (tmp_path / "pairs_calibrated.txt").write_text(" ".join([*names, text(K), text(K), *map(text, values)]) + "\n")
    check_pose(open_set(tmp_path), names)


def test_superglues_list_of_pairs(tmp_path: Path) -> None:
    names = ("scene0707_00/color/15.jpg", "scene0707_00/color/585.jpg")
    for name in names:
        photo(tmp_path / name)
    file = tmp_path / "scannet_test_pairs_with_gt.txt"
    file.write_text(" ".join([*names, "0 0", text(K), text(K), text(relative())]) + "\n")
    check_pose(open_set(tmp_path), names)
    file.write_text(" ".join([*names, "0 1", text(K), text(K), text(relative())]) + "\n")
    with pytest.raises(ValueError, match="turned images"):
        open_set(tmp_path)


def test_glue_factorys_posed_views(tmp_path: Path) -> None:
    lines = []
    for number, pose in POSES.items():
        photo(tmp_path / "images" / f"{number}.jpg")
        values = text(pose[:, :3]), text(pose[:, 3]), "PINHOLE 64 48", f"{K[0, 0]} {K[1, 1]} {K[0, 2]} {K[1, 2]}"
        lines.append(f"{number}.jpg {' '.join(values)}")
    (tmp_path / "views.txt").write_text("\n".join(lines))
    (tmp_path / "pairs.txt").write_text("0.jpg 1.jpg\n")
    check_pose(open_set(tmp_path), ("0.jpg", "1.jpg"))


def objects(*values: object) -> np.ndarray:
    array = np.empty(len(values), object)
    array[:] = values
    return array


def test_loftrs_megadepth(tmp_path: Path) -> None:
    names = [f"Undistorted_SfM/0015/images/{number}.jpg" for number in POSES]
    for name in names:
        photo(tmp_path / name)
    (tmp_path / "megadepth_test_1500_scene_info").mkdir()
    np.savez(
        tmp_path / "megadepth_test_1500_scene_info" / "0015_0.1_0.3.npz",
        image_paths=objects(None, *names),
        intrinsics=objects(None, K, K),
        poses=objects(None, *(square(pose) for pose in POSES.values())),
        pair_infos=objects(((1, 2), 0.2, np.zeros((3, 2)))),
    )
    check_pose(open_set(tmp_path), (names[0], names[1]))


def test_loftrs_scannet_scales_the_intrinsics_to_the_frames(tmp_path: Path) -> None:
    scene = tmp_path / "scene0707_00"
    for number, pose in zip((15, 585), POSES.values(), strict=True):
        photo(scene / "color" / f"{number}.jpg")
        (scene / "pose").mkdir(exist_ok=True)
        np.savetxt(scene / "pose" / f"{number}.txt", np.linalg.inv(square(pose)))
    np.savez(tmp_path / "test.npz", name=np.array([[707, 0, 15, 585]]))
    np.savez(tmp_path / "intrinsics.npz", scene0707_00=np.diag([10.0, 10, 1]) @ K)
    opened = open_set(tmp_path)
    assert opened.resize == Resize("long", 640)
    check_pose(opened, ("scene0707_00/color/15.jpg", "scene0707_00/color/585.jpg"))


def test_eth3d_takes_pairs_with_many_common_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calibration = tmp_path / "courtyard" / "dslr_calibration_undistorted"
    calibration.mkdir(parents=True)
    (calibration / "cameras.txt").write_text("# comment\n3 PINHOLE 64 48 60 62 31 25\n")
    lines = ["# comment"]
    for number, pose in POSES.items():
        name = f"dslr_images_undistorted/DSC_{number}.JPG"
        photo(tmp_path / "courtyard" / "images" / name)
        x, y, z, w = pycolmap.Rotation3d(pose[:, :3]).quat
        lines += [f"{number + 1} {w} {x} {y} {z} {text(pose[:, 3])} 3 {name}", "1 1 7 2 2 8 3 3 -1"]
    (calibration / "images.txt").write_text("\n".join(lines) + "\n")
    points = [f"{number} 0 0 5 9 9 9 0.1 1 {index} 2 {index}" for index, number in enumerate((7, 8))]
    (calibration / "points3D.txt").write_text("\n".join(points) + "\n")
    monkeypatch.setattr(public_sets, "MIN_COVISIBLE", 2)
    names = [f"courtyard/images/dslr_images_undistorted/DSC_{number}.JPG" for number in POSES]
    check_pose(open_set(tmp_path), (names[0], names[1]))
    monkeypatch.setattr(public_sets, "MIN_COVISIBLE", 3)
    with pytest.raises(ValueError, match="ETH3D, but no pairs"):
        open_set(tmp_path)


def test_phototourism_reads_the_largest_set_of_each_scene(tmp_path: Path) -> None:
    chosen = tmp_path / "reichstag" / "set_100"
    (tmp_path / "reichstag" / "set_50" / "calibration").mkdir(parents=True)
    (chosen / "calibration").mkdir(parents=True)
    (chosen / "new-vis-pairs").mkdir()
    for number, pose in POSES.items():
        photo(chosen / "images" / f"{number}_{number}.jpg")
        with h5py.File(chosen / "calibration" / f"calibration_{number}_{number}.h5", "w") as file:
            file["K"], file["R"], file["T"] = K, pose[:, :3], pose[:, 3]
    np.save(chosen / "new-vis-pairs" / "keys-th-0.1.npy", np.array(["0_0-1_1"]))
    check_pose(open_set(tmp_path), ("reichstag/set_100/images/0_0.jpg", "reichstag/set_100/images/1_1.jpg"))


# --- mistakes ----------------------------------------------------------------------------------------------------------------


def test_mistakes_are_explained(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        open_set(tmp_path / "none")
    with pytest.raises(ValueError, match="none of the layouts that are known"):
        open_set(tmp_path)
    (tmp_path / "v_bird").mkdir()
    (tmp_path / "v_bird" / "H_1_2").write_text("1 0 0\n0 1 0\n0 0 1\n")
    with pytest.raises(FileNotFoundError, match="has no photo 1"):
        open_set(tmp_path)
    photo(tmp_path / "v_bird" / "1.png")
    photo(tmp_path / "v_bird" / "2.png")
    (tmp_path / "v_bird" / "H_1_2").write_text("1 0 0\n0 1 0\n")
    with pytest.raises(ValueError, match=r"H_1_2: .*expected 3 rows of 3 numbers"):
        open_set(tmp_path)


class Harmful:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return eval, ("1 + 1",)


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "good.npz", a=objects("x", np.arange(3)), b=np.eye(2), c=np.float32(2))
    found = read_npz(tmp_path / "good.npz")
    assert found["a"][0] == "x" and found["a"][1].tolist() == [0, 1, 2] and found["b"].shape == (2, 2) and found["c"] == 2
    np.savez(tmp_path / "bad.npz", a=objects(Harmful()))
    with pytest.raises(ValueError, match=r"builtins\.eval"):
        read_npz(tmp_path / "bad.npz")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "good.npz").read_bytes()[:100])
    with pytest.raises(ValueError, match="cannot be read"):
        read_npz(tmp_path / "cut.npz")
    assert pickle.loads(pickle.dumps(1)) == 1
