"""Focal lengths from fundamental matrices, and cameras that photos without EXIF share."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from sfm_lightglue.cameras import Camera, CameraAssignment
from sfm_lightglue.products import Pair, TwoViewGeometry
from sfm_lightglue.storage import H5Reader, ShardStore, geometry_to_group, match_key
from sfm_lightglue.view_graph import calibrate, split_by_focal_length

SIZE = (640, 480)
NAMES = [f"{index}.jpg" for index in range(8)]
GUESS = Camera("SIMPLE_RADIAL", SIZE, (1.2 * 640, 320, 240, 0), False)


def write_geometries(path: Path, focal: Mapping[str, float], sizes: Mapping[str, tuple[int, int]]) -> list[Pair]:
    """True fundamental matrices of all pairs. The cameras look in different directions at different heights."""
    generator = np.random.default_rng(0)
    rotations = [_rotation(generator.uniform(-0.4, 0.4, 3)) for _ in focal]
    centers = generator.uniform(-1, 1, (len(focal), 3))
    matches = np.repeat(np.arange(100)[:, None], 2, axis=1).astype(np.int32)
    pairs = [Pair(*names) for names in itertools.combinations(sorted(focal), 2)]
    order = sorted(focal)
    with ShardStore(path, {}) as store:
        for pair in pairs:
            first, second = order.index(pair.name0), order.index(pair.name1)
            rotation = rotations[second] @ rotations[first].T
            shift = rotations[second] @ (centers[first] - centers[second])
            essential = np.cross(np.eye(3), shift) @ rotation
            inverses = [
                np.linalg.inv(np.array([[focal[name], 0, sizes[name][0] / 2], [0, focal[name], sizes[name][1] / 2], [0, 0, 1]]))
                for name in (pair.name0, pair.name1)
            ]
            fundamental = inverses[1].T @ essential @ inverses[0]
            geometry = TwoViewGeometry("UNCALIBRATED", matches, 100, 4.0, F=fundamental)
            store.add(match_key(pair.name0, pair.name1), geometry_to_group(geometry), "")
        store.merge()
    return pairs


def _rotation(angles: np.ndarray) -> np.ndarray:
    """float64 (3, 3): rotations around x, y and z, one after the other."""
    result = np.eye(3)
    for axis, angle in enumerate(angles):
        first, second = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        turn[first, first] = turn[second, second] = np.cos(angle)
        turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
        result = turn @ result
    return result


def assignment(sizes: Mapping[str, tuple[int, int]]) -> CameraAssignment:
    """One camera for each size, all with a guessed focal length."""
    cameras = {name: Camera("SIMPLE_RADIAL", size, (768, size[0] / 2, size[1] / 2, 0), False) for name, size in sizes.items()}
    return CameraAssignment(cameras, {name: f"640 x 480 px {size}" for name, size in sizes.items()}, frozenset(sizes))


def test_photos_of_one_camera_share_its_true_focal_length(tmp_path: Path) -> None:
    sizes = dict.fromkeys(NAMES, SIZE) | {"6.jpg": SIZE[::-1], "7.jpg": SIZE[::-1]}
    pairs = write_geometries(tmp_path / "verification.h5", dict.fromkeys(NAMES, 480.0), sizes)
    found, notes = calibrate(assignment(sizes), tmp_path / "verification.h5", pairs)
    assert found.camera_ids(NAMES) == {name: 1 if sizes[name] == SIZE else 2 for name in NAMES}
    assert [camera.params[0] for camera in found.cameras.values()] == pytest.approx([480] * 8, rel=1e-3), "turned photos too"
    assert all(camera.has_prior_focal_length for camera in found.cameras.values())
    assert notes == ["8 photos without EXIF share a camera: their sizes are equal, and the pairs give focal lengths of 0.75 to "
                     "0.75 times the longest side"]  # fmt: skip


def test_two_zooms_are_two_cameras(tmp_path: Path) -> None:
    sizes, focal = dict.fromkeys(NAMES, SIZE), {name: 480.0 if index % 2 else 800.0 for index, name in enumerate(NAMES)}
    pairs = write_geometries(tmp_path / "verification.h5", focal, sizes)
    found, notes = calibrate(assignment(sizes), tmp_path / "verification.h5", pairs)
    assert found.camera_ids(NAMES) == {name: 1 + index % 2 for index, name in enumerate(NAMES)}
    for name, camera in found.cameras.items():
        assert camera.params[0] == pytest.approx(focal[name], rel=1e-2)
    assert "8 photos without EXIF have 2 cameras, although their sizes are equal" in notes[0]


def test_pairs_without_a_fundamental_matrix_leave_the_guess(tmp_path: Path) -> None:
    sizes, pair = dict.fromkeys(NAMES[:2], SIZE), Pair(*NAMES[:2])
    matches = np.repeat(np.arange(100)[:, None], 2, axis=1).astype(np.int32)
    with ShardStore(tmp_path / "verification.h5", {}) as store:
        geometry = TwoViewGeometry("PLANAR", matches, 100, 4.0, H=np.eye(3))
        store.add(match_key(*NAMES[:2]), geometry_to_group(geometry), "")
        store.merge()
    found, notes = calibrate(assignment(sizes), tmp_path / "verification.h5", [pair])
    assert found.cameras == assignment(sizes).cameras and "its focal length is a guess" in notes[0]


def test_focal_lengths_that_scatter_are_not_used(tmp_path: Path) -> None:
    sizes, focal = dict.fromkeys(NAMES, SIZE), dict(zip(NAMES, (300.0, 400, 500, 620, 770, 950, 1200, 1500), strict=True))
    pairs = write_geometries(tmp_path / "verification.h5", focal, sizes)
    found, notes = calibrate(assignment(sizes), tmp_path / "verification.h5", pairs)
    assert found.cameras == assignment(sizes).cameras
    assert notes == ["8 photos without EXIF share a camera by their size; its focal length is a guess"]


def test_one_or_two_photos_of_a_camera_keep_the_guess(tmp_path: Path) -> None:
    pairs = write_geometries(tmp_path / "verification.h5", dict.fromkeys(NAMES, 480.0), dict.fromkeys(NAMES, SIZE))
    cameras = {name: GUESS for name in NAMES}
    groups = {name: f"camera {index // 2} (a)" if index < 4 else "camera 2 (a)" for index, name in enumerate(NAMES)}
    found, _ = calibrate(CameraAssignment(cameras, groups, frozenset(NAMES)), tmp_path / "verification.h5", pairs)
    assert [found.cameras[name] == GUESS for name in NAMES] == [True] * 4 + [False] * 4


def test_each_geometry_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, read, geometry = dict.fromkeys(NAMES, SIZE), list[tuple[str, str]](), H5Reader.geometry

    def counted(reader: H5Reader, *names: str) -> TwoViewGeometry:
        read.append((names[0], names[1]))
        return geometry(reader, *names)

    pairs = write_geometries(tmp_path / "v.h5", dict.fromkeys(NAMES, 500), sizes)
    monkeypatch.setattr(H5Reader, "geometry", counted)
    calibrate(assignment(sizes), tmp_path / "v.h5", pairs)
    assert sorted(read) == [(pair.name0, pair.name1) for pair in pairs]


def test_known_cameras_stay(tmp_path: Path) -> None:
    cameras = CameraAssignment({"0.jpg": GUESS}, {"0.jpg": "a"})
    assert calibrate(cameras, tmp_path / "none.h5", []) == (cameras, [])


@pytest.mark.parametrize(
    "factors, expected",
    [
        ([], [0]),
        ([1.0], [1]),
        ([1.0, 1.02, 0.99, 1.01], [4]),
        ([1.0, 1.02, 0.99, 2.0, 2.03], [3, 2]),
        ([1.0, 1.02, 0.99, 2.0], [3, 1]),
        ([1.07, 1.2, 1.25, 1.3, 1.84], [5]),  # photos of the ground: all of them are wrong
        ([0.88, 0.9, 0.91, 1.12, 1.14], [5]),  # one camera with weak pairs
        ([0.88, 0.9, 0.91, 1.12, 1.14, 1.13], [3, 3]),
        ([1.0, 2.0], [2]),  # one pair cannot tell
        ([0.8, 1.0, 1.2, 1.5, 1.9], [5]),  # uncertain: no gap is larger than the spread
        ([1.0, 1.01, 1.5, 1.51, 2.2, 2.21], [2, 2, 2]),
    ],
)
def test_focal_lengths_are_split_only_at_clear_gaps(factors: list[float], expected: list[int]) -> None:
    parts = split_by_focal_length({f"{index}.jpg": factor for index, factor in enumerate(factors)})
    assert [len(part) for part in parts] == expected
