"""Pairs of cameras with known poses, and pairs that share points in an existing model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pycolmap
import pytest

from sfm_lightglue.pairs.collection import Collection
from sfm_lightglue.pairs.covisibility import CovisibilityOptions, CovisibilityPairs, covisible_pairs
from sfm_lightglue.pairs.pairing import check_source
from sfm_lightglue.pairs.posed import PosesOptions, PosesPairs, overlapping_pairs
from sfm_lightglue.poses import PosedCamera, write_poses

POSES = PosesOptions(name="poses", num_neighbours=2, min_overlap=0.1, depth=None, max_angle_deg=60)
COVISIBILITY = CovisibilityOptions(name="covisibility", path="", min_points=5, num_neighbours=None)


def camera(x: float, z: float, degrees: float) -> PosedCamera:
    """A camera at (x, 0, z) that looks along +z, turned about the vertical by an angle."""
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    rotation = np.array([[cos, 0, -sin], [0, 1, 0], [sin, 0, cos]])
    return PosedCamera(rotation, -rotation @ [x, 0, z], np.array([[100.0, 0, 50], [0, 100, 50], [0, 0, 1]]), (100, 100))


def ends(pairs: list) -> list[tuple[str, str]]:
    return [(pair.name0, pair.name1) for pair in pairs]


def test_cameras_side_by_side_are_paired_and_cameras_back_to_back_are_not() -> None:
    cameras = {"a": camera(0, 0, 0), "b": camera(1, 0, 0), "c": camera(0, 0, 180), "d": camera(1, 0, 180)}
    pairs = overlapping_pairs(cameras, 3, 0.1, depth=None, max_angle_deg=60)
    assert ends(pairs) == [("a", "b"), ("c", "d")]
    assert pairs[0].reason == "poses#1" and 0.5 < pairs[0].score < 1


def test_cameras_around_an_object_are_paired_up_to_the_angle() -> None:
    angles = range(0, 360, 30)
    cameras = {
        f"{angle:03d}": camera(-10 * np.sin(np.radians(angle)), -10 * np.cos(np.radians(angle)), angle) for angle in angles
    }
    found = ends(overlapping_pairs(cameras, 11, 0.3, depth=10.0, max_angle_deg=45))
    assert {(int(b) - int(a)) % 360 for a, b in found} == {30, 330}
    wider = ends(overlapping_pairs(cameras, 11, 0.3, depth=10.0, max_angle_deg=75))
    assert {(int(b) - int(a)) % 360 for a, b in wider} == {30, 60, 300, 330}


def test_a_known_depth_decides_how_far_apart_cameras_may_be() -> None:
    cameras = {name: camera(3.0 * i, 0, 0) for i, name in enumerate("abcd")}  # the picture is as wide as it is deep
    near = overlapping_pairs(cameras, 3, 0.1, depth=2.0, max_angle_deg=90)
    far = overlapping_pairs(cameras, 3, 0.1, depth=20.0, max_angle_deg=90)
    assert ends(near) == [] and len(far) == 6
    assert ends(far[:1]) == [("a", "b")] and far[0].score > far[2].score


def test_photos_without_a_pose_get_no_pairs_and_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_poses(tmp_path / "poses.txt", {name: camera(i, 0, 0) for i, name in enumerate(("a.jpg", "b.jpg"))})
    source = PosesPairs.create(POSES)
    assert ends(source(Collection(["a.jpg", "b.jpg", "c.jpg"], poses=tmp_path / "poses.txt"))) == [("a.jpg", "b.jpg")]
    assert "1 of 3 photos have no pose" in caplog.text
    with pytest.raises(ValueError, match=r"need camera poses: give dataset\.poses=FILE"):
        check_source(source, Collection(["a.jpg"]))


def model_of(tracks: list[str], folder: Path) -> Path:
    """A model of the photos a, b, ..., in which each track names the photos that see a point."""
    model = pycolmap.Reconstruction()
    model.add_camera_with_trivial_rig(pycolmap.Camera.create_from_model_name(1, "PINHOLE", 100.0, 100, 100))
    for number, name in enumerate(sorted(set("".join(tracks))), start=1):
        points = [pycolmap.Point2D(np.array([10.0, 10.0])) for track in tracks if name in track]
        image = pycolmap.Image(f"{name}.jpg", pycolmap.Point2DList(points), 1, number)
        model.add_image_with_trivial_frame(image, pycolmap.Rigid3d())
    used: dict[str, int] = {}
    for track in tracks:
        observed = pycolmap.Track()
        for name in track:
            number = sorted(set("".join(tracks))).index(name) + 1
            observed.add_element(number, used.get(name, 0))
            used[name] = used.get(name, 0) + 1
        model.add_point3D(np.array([0.0, 0, 1]), observed)
    folder.mkdir()
    model.write(folder)
    return folder


def test_photos_that_share_points_of_a_model_are_paired(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = model_of(["abc"] * 6 + ["ab"] * 4 + ["cd"] * 4, tmp_path / "model")
    options = CovisibilityOptions(name="covisibility", path=str(folder), min_points=5, num_neighbours=None)
    names = ["a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg"]
    pairs = CovisibilityPairs(options)(Collection(names))
    assert [(*ends([pair])[0], pair.reason, pair.score) for pair in pairs] == [
        ("a.jpg", "b.jpg", "covisibility#1", 1.0),
        ("a.jpg", "c.jpg", "covisibility#1", 0.6),
        ("b.jpg", "c.jpg", "covisibility#2", 0.6),
    ]
    assert "1 of 5 photos are not in the model" in caplog.text
    with pytest.raises(ValueError, match=r"has other photos, such as 'a\.jpg', and none of the 1 photos, such as 'x\.jpg'"):
        check_source(CovisibilityPairs(options), Collection(["x.jpg"]))
    with pytest.raises(FileNotFoundError, match="does not exist"):
        check_source(CovisibilityPairs(COVISIBILITY.__class__(**{**vars(options), "path": "no"})), Collection(["a.jpg"]))


def test_common_points_are_counted_as_by_sets() -> None:
    generator = np.random.default_rng(0)
    seen = {f"{i:02d}": np.unique(generator.integers(0, 300, 80)).astype(np.uint64) for i in range(20)}
    expected = [
        (name0, name1)
        for name0 in sorted(seen)
        for name1 in sorted(seen)
        if name0 < name1 and len({*seen[name0].tolist()} & {*seen[name1].tolist()}) >= 18
    ]
    assert ends(covisible_pairs(seen, 18)) == expected
    best = covisible_pairs(seen, 1, 1)
    assert {name for pair in best for name in ends([pair])[0]} == {*seen}
    assert covisible_pairs({}, 1) == []
