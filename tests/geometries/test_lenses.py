"""Fisheye and distorting lenses are found before the pairs are verified, and ordinary lenses are left alone."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pycolmap
import pytest
from rooms import VERIFICATION, Room, camera, make_room

from sfm_lightglue import pipeline
from sfm_lightglue.cameras import CameraAssignment, choose_cameras
from sfm_lightglue.config import compose_config
from sfm_lightglue.database import BuildReport
from sfm_lightglue.execution.shards import Shard
from sfm_lightglue.geometries.stage import verify_pairs
from sfm_lightglue.pair_files import write_pairs
from sfm_lightglue.run_context import Run
from sfm_lightglue.storage import H5Reader

ORDINARY = camera("SIMPLE_RADIAL", 1400, 800, 600, -0.03)
FISHEYE = camera("OPENCV_FISHEYE", 818.5, 818.5, 800, 600, 0.02, -0.006, 0.001, 0)
"""It sees 140 degrees along the diagonal."""
PORTRAIT = camera("OPENCV_FISHEYE", 818.5, 818.5, 600, 800, 0.02, -0.006, 0.001, 0, size=(1200, 1600))
DISTORTED = camera("OPENCV", 1000, 1003, 795, 612, -0.25, 0.08, -0.0008, 0.0012)


@pytest.fixture(scope="module")
def fisheye(tmp_path_factory: pytest.TempPathFactory) -> tuple[Room, BuildReport]:
    """Ten photos of a fisheye lens, verified."""
    room = make_room(tmp_path_factory.mktemp("fisheye") / "room", [FISHEYE], 10, 600, seed=1)
    return room, room.build()


def cameras_in(room: Room) -> list[pycolmap.Camera]:
    with pycolmap.Database.open(room.folder / "database.db") as rows:
        return list(rows.read_all_cameras())


def content(room: Room) -> list[bytes]:
    return [(room.folder / name).read_bytes() for name in ("verification.h5", "database.db")]


def assignment(room: Room) -> CameraAssignment:
    with H5Reader(room.folder / "features.h5") as reader:
        sizes = {name: reader.image_size(name) for name in room.names}
    return choose_cameras(room.folder / "images", sizes, "auto", "auto", {})


def test_ordinary_photos_have_no_other_lens(tmp_path: Path) -> None:
    room = make_room(tmp_path / "room", [ORDINARY], 6, 400, seed=1)
    assert room.build().lenses == []
    with H5Reader(room.folder / "verification.h5") as reader:
        assert "lenses" not in reader.settings
    (found,) = cameras_in(room)
    assert found.model.name == "SIMPLE_RADIAL" and found.params[-1] == 0


def test_a_fisheye_lens_is_in_the_database_and_its_pairs_verify(fisheye: tuple[Room, BuildReport], tmp_path: Path) -> None:
    room, report = fisheye
    (found,) = cameras_in(room)
    assert found.model.name == "OPENCV_FISHEYE" and found.has_prior_focal_length
    assert found.params[:4] == pytest.approx([818.5, 818.5, 800, 600], rel=3e-3)
    assert len(report.lenses) == 1 and "1600 x 1200 px have a fisheye lens" in report.lenses[0]
    known = make_room(tmp_path / "room", [FISHEYE], 10, 600, seed=1)
    told = known.build(intrinsics="OPENCV_FISHEYE:" + ":".join(map(str, FISHEYE.params)))
    assert told.lenses == [] and report.num_inliers > 0.99 * told.num_inliers


def test_a_second_call_changes_nothing(fisheye: tuple[Room, BuildReport]) -> None:
    room, report = fisheye
    before = content(room)
    assert room.build() == report and content(room) == before


def test_pairs_are_verified_again_if_lenses_are_looked_for_or_not_any_more(tmp_path: Path) -> None:
    room = make_room(tmp_path / "room", [FISHEYE], 6, 500, seed=1)
    before = room.build(camera_model="SIMPLE_RADIAL")
    after = room.build()
    assert after.num_inliers > 1.4 * before.num_inliers and cameras_in(room)[0].model.name == "OPENCV_FISHEYE"
    assert room.build(camera_model="SIMPLE_RADIAL") == before and cameras_in(room)[0].model.name == "SIMPLE_RADIAL"


def test_a_shard_finds_the_same_lens(fisheye: tuple[Room, BuildReport], tmp_path: Path) -> None:
    room, _ = fisheye
    cameras, output = assignment(room), tmp_path / "verification.h5"
    for shard in (Shard(tmp_path / "shards", "verify", 1, 2, {"options": {}, "run": {}}), None):
        files = room.folder / "features.h5", room.folder / "matches.h5", room.pairs, output
        verify_pairs(*files, VERIFICATION, cameras.cameras, undecided=cameras.undecided, shard=shard)
    assert output.read_bytes() == content(room)[0]


def test_a_distorting_lens_is_no_fisheye(tmp_path: Path) -> None:
    room = make_room(tmp_path / "room", [DISTORTED], 6, 500, seed=1)
    report = room.build()
    assert "a lens with distortion" in report.lenses[0]
    (found,) = cameras_in(room)
    assert found.model.name == "RADIAL" and found.params[0] == pytest.approx(1000, rel=0.02)
    _, model = room.reconstruct()
    assert model.num_reg_images() == 6 and room.errors(model).max() < 0.02


def test_a_camera_that_was_given_keeps_its_lens(tmp_path: Path) -> None:
    room = make_room(tmp_path / "room", [FISHEYE], 4, 600, seed=1)
    for given in ({"intrinsics": "PINHOLE:820:820:800:600"}, {"camera_model": "SIMPLE_RADIAL"}):
        assert room.build(**given).lenses == []


def test_portrait_and_landscape_photos_have_the_same_lens(tmp_path: Path) -> None:
    room = make_room(tmp_path / "room", [FISHEYE, PORTRAIT], 6, 800, seed=2)
    report = room.build()
    assert len(report.lenses) == 1
    wide, high = sorted(cameras_in(room), key=lambda found: -found.width)
    assert wide.params[0] == high.params[0] and tuple(high.params[2:4]) == (600, 800)
    assert high.params[4:6] == pytest.approx(wide.params[4:6])


def test_each_camera_by_exif_has_its_lens(tmp_path: Path) -> None:
    tags = [{"Make": "A", "Model": name, "FocalLengthIn35mmFilm": 30} for name in ("wide", "ordinary")]
    room = make_room(tmp_path / "room", [FISHEYE, ORDINARY], 10, 900, seed=1, tags=tags)
    report = room.build()
    assert len(report.lenses) == 1 and "fisheye" in report.lenses[0]
    assert sorted(found.model.name for found in cameras_in(room)) == ["OPENCV_FISHEYE", "SIMPLE_RADIAL"]


def test_photos_of_another_zoom_keep_theirs(tmp_path: Path) -> None:
    zooms = camera("SIMPLE_RADIAL", 1000, 800, 600, -0.2), camera("SIMPLE_RADIAL", 1700, 800, 600, 0.02)
    room = make_room(tmp_path / "room", zooms, 8, 500, seed=2)
    report = room.build()
    assert len(report.lenses) == 1 and "4 photos of this size have another one" in report.lenses[0]
    with pycolmap.Database.open(room.folder / "database.db") as rows:
        of_image = {image.name: rows.read_camera(image.camera_id) for image in rows.read_all_images()}
    assert {of_image[name].model.name for name in room.names[::2]} == {"RADIAL"}
    assert {of_image[name].model.name for name in room.names[1::2]} == {"SIMPLE_RADIAL"}
    assert report.num_cameras == 2 and of_image[room.names[0]].params[0] == pytest.approx(1000, rel=0.01)
    assert of_image[room.names[1]].params[0] == pytest.approx(1700, rel=0.1)


def test_keypoints_are_refined_and_written_with_the_lens(fisheye: tuple[Room, BuildReport], tmp_path: Path) -> None:
    """The stages refine and database refuse pairs that were verified with other cameras."""
    room, report = fisheye
    for name in ("features.h5", "matches.h5"):
        os.link(room.folder / name, tmp_path / name)
    write_pairs(tmp_path / "pairs.txt", room.pairs)
    options = [
        f"geometries.{key}={'null' if value is None else value}" for key, value in dataclasses.asdict(VERIFICATION).items()
    ]
    run = Run.create(compose_config([f"dataset.images={room.folder / 'images'}", f"output={tmp_path}", *options]))
    for stage in (pipeline.verify, pipeline.refine, pipeline.database):
        stage(run)
    assert run.folder.read_summary()["stages"]["verify"]["lenses"] == report.lenses
    with pycolmap.Database.open(tmp_path / "database.db") as rows:
        assert [found.params.tolist() for found in rows.read_all_cameras()] == [cameras_in(room)[0].params.tolist()]


def test_clusters_are_mapped_with_the_lens(tmp_path: Path) -> None:
    room = make_room(tmp_path / "room", [camera("OPENCV_FISHEYE", 573, 573, 800, 600, 0, 0, 0, 0)], 10, 600, seed=1)
    room.build()
    report, model = room.reconstruct(name="clusters", max_cluster_size=6, cluster_overlap=4)
    assert "joined" in report.joining[0] and model.num_reg_images() == 10 and room.errors(model).max() < 0.02
    assert model.camera(1).model.name == "OPENCV_FISHEYE" and model.camera(1).params[0] == pytest.approx(573, rel=0.003)
