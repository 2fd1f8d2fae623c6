"""Fisheye and strongly distorting lenses are found from the matches, and ordinary lenses are left alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pycolmap
import pytest
from rooms import MAPPING, Room, camera, make_room
from test_cameras_of_rooms import moved_px

from sfm_lightglue.reconstruction.lenses import cameras_of_lenses, find_lenses, map_with_other_lenses, verify_again
from sfm_lightglue.reconstruction.stage import _warn_of_lenses

ORDINARY = camera("SIMPLE_RADIAL", 1400, 800, 600, -0.12)
FISHEYE = camera("OPENCV_FISHEYE", 818.5, 818.5, 800, 600, 0.02, -0.006, 0.001, 0)
"""It sees 140 degrees along the diagonal."""
DISTORTED = camera("OPENCV", 1000, 1003, 795, 612, -0.25, 0.08, -0.0008, 0.0012)


def built(folder: Path, lens: pycolmap.Camera, num_points: int) -> Room:
    room = make_room(folder / "room", [lens], 6, num_points, seed=1)
    room.build()
    return room


def database_of(room: Room) -> Path:
    return room.folder / "database.db"


def make_folder(folder: Path) -> Path:
    folder.mkdir()
    return folder


def num_verified_matches(database: Path) -> int:
    with pycolmap.Database.open(database) as rows:
        return int(rows.num_inlier_matches())


def test_ordinary_photos_have_no_other_lens(tmp_path: Path) -> None:
    room = built(tmp_path, ORDINARY, 400)
    assert find_lenses(database_of(room), MAPPING) == []
    assert map_with_other_lenses(database_of(room), tmp_path, tmp_path, MAPPING, None) is None  # type: ignore[arg-type]


def test_a_fisheye_lens_is_found_and_its_pairs_verify(tmp_path: Path) -> None:
    database = database_of(built(tmp_path, FISHEYE, 1000))
    (lens,) = find_lenses(database, MAPPING)
    assert lens.camera.model.name == "OPENCV_FISHEYE" and lens.camera.params[0] == pytest.approx(818.5, rel=0.1)
    assert lens.after > 1.6 * lens.before and "1600 x 1200 px have a fisheye lens" in lens.describe()
    cameras = cameras_of_lenses(database, [lens])
    total = verify_again(database, tmp_path / "again.db", cameras, MAPPING)
    assert total == num_verified_matches(tmp_path / "again.db") > 1.6 * num_verified_matches(database)
    with pycolmap.Database.open(tmp_path / "again.db") as rows:
        assert [each.model.name for each in rows.read_all_cameras()] == ["OPENCV_FISHEYE"] * len(cameras)


def test_a_distorting_lens_is_no_fisheye(tmp_path: Path) -> None:
    room = built(tmp_path, DISTORTED, 500)
    (lens,) = find_lenses(database_of(room), MAPPING)
    assert lens.camera.model.name == "SIMPLE_RADIAL" and lens.camera.params[-1] < -0.1
    assert "a lens with strong distortion" in lens.describe()
    report, model = room.reconstruct()
    assert model.num_reg_images() == 6 and model.camera(1).model.name in ("SIMPLE_RADIAL", "RADIAL", "OPENCV")
    assert room.errors(model).max() < 0.02
    assert "matches agree with the models" in report.cameras[0]
    assert sorted(path.name for path in (room.folder / "reconstruction").iterdir()) == ["0", "settings.json"]


def test_clusters_are_told_of_a_lens_that_they_do_not_look_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    options = dataclasses.replace(MAPPING, name="clusters")
    database = database_of(built(tmp_path, FISHEYE, 500))
    _warn_of_lenses(database, dataclasses.replace(options, find_camera_model=False))
    assert "reconstruction=clusters" not in caplog.text
    _warn_of_lenses(database, options)
    assert "have a fisheye lens" in caplog.text and "Take reconstruction=incremental" in caplog.text


def test_ctrl_c_ends_the_search_for_lenses(tmp_path: Path) -> None:
    database, output = database_of(built(tmp_path, DISTORTED, 500)), tmp_path / "models"
    output.mkdir()
    mapped = []

    def is_interrupted(verified: Path, folder: Path, *_: object, any_start: bool) -> bool:
        mapped.append(verified.name)
        pycolmap.Reconstruction().write(make_folder(folder / "0"))
        return True

    found = map_with_other_lenses(database, make_folder(tmp_path / "work"), output, MAPPING, is_interrupted)
    assert found is not None and found[2] and found[0] == tmp_path / "work" / "0.db"
    assert mapped == ["0.db"] and [path.name for path in output.iterdir()] == ["0"]  # what was mapped is kept


@pytest.mark.parametrize(("lens", "found"), [(ORDINARY, 0), (FISHEYE, 1)])
def test_pairs_that_nobody_has_verified_say_nothing_wrong(lens: pycolmap.Camera, found: int, tmp_path: Path) -> None:
    database = database_of(built(tmp_path, lens, 500))
    with pycolmap.Database.open(database) as rows:
        rows.clear_two_view_geometries()
    assert len(find_lenses(database, MAPPING)) == found


def test_matches_without_their_keypoints_are_refused(tmp_path: Path) -> None:
    database = database_of(built(tmp_path, FISHEYE, 500))
    with pycolmap.Database.open(database) as rows:
        rows.clear_keypoints()
    with pytest.raises(ValueError, match=r"the database has matches of keypoint \d+ of .*\.jpg, which has 0 keypoints there"):
        find_lenses(database, MAPPING)


def test_a_camera_that_was_given_keeps_its_lens(tmp_path: Path) -> None:
    room = make_room(tmp_path / "room", [FISHEYE], 4, 600, seed=1)
    room.build(intrinsics="PINHOLE:820:820:800:600")
    assert find_lenses(database_of(room), dataclasses.replace(MAPPING)) == []


def test_the_principal_point_of_a_fisheye_lens_is_found(tmp_path: Path) -> None:
    lens = camera("OPENCV_FISHEYE", 637, 637, 812, 592, 0.02, -0.005, 0.001, 0)
    room = make_room(tmp_path / "room", [lens], 10, 1000)
    room.build()
    report, model = room.reconstruct()
    assert model.num_reg_images() == 10 and room.errors(model).max() < 0.02
    assert model.camera(1).model.name == "OPENCV_FISHEYE" and moved_px(lens, model.camera(1)) < 1
    assert model.camera(1).params[2:4] == pytest.approx([812, 592], abs=3)
    assert any("camera 1 is OPENCV_FISHEYE" in note and "principal point +1" in note for note in report.cameras)
