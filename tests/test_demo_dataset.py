"""The shipped dataset: its photos agree with its poses, and its script draws these photos."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

import sfm_lightglue  # noqa: F401  loads libz before pycolmap
from sfm_lightglue.geometry import sampson_error
from sfm_lightglue.poses import PosedCamera, fundamental_matrix, read_poses

import pycolmap  # isort: skip

pytestmark = pytest.mark.slow

DEMO = Path(__file__).resolve().parents[1] / "datasets" / "demo"
IMAGES = sorted((DEMO / "images").glob("*.jpg"))
COARSE = ("--width", "200", "--sun", "1024", "--sky", "9", "--quality", "95")
"""Options that make the script fast. It takes 5 s, mostly for building the scene and its shadow maps."""


def sift(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """SIFT keypoints (n, 2) in COLMAP's pixels, and unit-length descriptors (n, 128)."""
    grey = np.asarray(PIL.Image.open(path).convert("L"))
    options = pycolmap.FeatureExtractionOptions(use_gpu=False, num_threads=1)
    options.sift.max_num_features = 2048
    extractor = pycolmap.FeatureExtractor.create(options, pycolmap.Device.cpu)
    keypoints, descriptors = extractor.extract(pycolmap.Bitmap.from_array(grey))
    positions, unit = np.array([(point.x, point.y) for point in keypoints]), descriptors.data.astype(np.float32)
    return positions, unit / np.linalg.norm(unit, axis=1, keepdims=True)


def mutual_matches(descriptors0: np.ndarray, descriptors1: np.ndarray) -> np.ndarray:
    """int64 (k, 2): mutual nearest neighbours that are clearly nearer than the second nearest neighbour."""
    similarity = descriptors0 @ descriptors1.T
    nearest, back = similarity.argmax(axis=1), similarity.argmax(axis=0)
    second, first = np.sqrt(np.maximum(2 - 2 * np.partition(similarity, -2, axis=1)[:, -2:], 0)).T
    index0 = np.flatnonzero((back[nearest] == np.arange(len(nearest))) & (first < 0.8 * second))
    return np.stack([index0, nearest[index0]], axis=1)


@pytest.fixture(scope="module")
def cameras() -> dict[str, PosedCamera]:
    return read_poses(DEMO / "poses.txt")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the script writes for its first view, with coarse options."""
    folder = tmp_path_factory.mktemp("drawn")
    subprocess.run(
        [sys.executable, DEMO / "render.py", "--out", folder, "--views", "0", *COARSE], check=True, capture_output=True
    )
    return folder


def test_exactly_the_photos_have_poses(cameras: dict[str, PosedCamera]) -> None:
    assert list(cameras) == [path.name for path in IMAGES]
    assert len(cameras) == 16
    for path in IMAGES:
        assert PIL.Image.open(path).size == cameras[path.name].size


def test_the_photos_are_small_enough_to_ship() -> None:
    assert sum(path.stat().st_size for path in IMAGES) < 3e6


def test_stored_quaternions_have_unit_length() -> None:
    quaternions = np.loadtxt(DEMO / "poses.txt", usecols=(1, 2, 3, 4))
    np.testing.assert_allclose(np.linalg.norm(quaternions, axis=1), 1, atol=1e-11)  # the file has 12 digits


def test_the_cameras_look_at_the_fountain_from_an_arc_around_it(cameras: dict[str, PosedCamera]) -> None:
    centers = np.stack([camera.center for camera in cameras.values()])
    azimuth = np.degrees(np.arctan2(centers[:, 0], -centers[:, 1]))
    assert np.ptp(azimuth) > 100
    assert (np.diff(azimuth) > 5).all() and (np.diff(azimuth) < 12).all()
    for camera in cameras.values():
        basin = camera.rotation @ (0, 0, 0.8) + camera.translation  # x right, y down, z forward
        assert basin[2] > 0 and (np.abs(basin[:2]) < 0.5 * basin[2]).all()


def test_the_exif_focal_length_is_the_true_one(cameras: dict[str, PosedCamera]) -> None:
    for path in IMAGES:
        details = PIL.Image.open(path).getexif().get_ifd(0x8769)
        full_frame_diagonal_mm, diagonal_px = np.hypot(36, 24), np.hypot(*cameras[path.name].size)
        focal = details[0xA405] / full_frame_diagonal_mm * diagonal_px  # FocalLengthIn35mmFilm
        assert focal == pytest.approx(cameras[path.name].camera_matrix[0, 0], rel=1e-9)


@pytest.mark.parametrize(("index0", "index1"), [(2, 3), (7, 9)])
def test_matches_lie_on_the_epipolar_lines_of_the_poses(cameras: dict[str, PosedCamera], index0: int, index1: int) -> None:
    (keypoints0, descriptors0), (keypoints1, descriptors1) = sift(IMAGES[index0]), sift(IMAGES[index1])
    matches = mutual_matches(descriptors0, descriptors1)
    fundamental = fundamental_matrix(cameras[IMAGES[index0].name], cameras[IMAGES[index1].name])
    error = sampson_error(fundamental, keypoints0[matches[:, 0]], keypoints1[matches[:, 1]])
    assert len(matches) > 200
    assert np.median(error) < 0.3  # measured 0.11 and 0.12
    assert np.mean(error < 2) > 0.8


def test_the_script_writes_the_stored_poses(drawn: Path, cameras: dict[str, PosedCamera]) -> None:
    for name, camera in read_poses(drawn / "poses.txt").items():
        np.testing.assert_allclose(camera.cam_from_world, cameras[name].cam_from_world, atol=1e-9)
        np.testing.assert_array_equal(camera.camera_matrix, cameras[name].camera_matrix)


def test_the_script_draws_the_stored_photos(drawn: Path) -> None:
    coarse = PIL.Image.open(drawn / "images" / IMAGES[0].name)
    stored = PIL.Image.open(IMAGES[0]).resize(coarse.size, PIL.Image.Resampling.BOX)
    difference = np.abs(np.asarray(coarse, np.float64) - np.asarray(stored, np.float64))
    another = PIL.Image.open(IMAGES[1]).resize(coarse.size, PIL.Image.Resampling.BOX)
    assert difference.mean() < 13  # grey levels; measured 9, because shadows are coarser and details fewer
    assert np.abs(np.asarray(another, np.float64) - np.asarray(stored, np.float64)).mean() > 30  # measured 51
