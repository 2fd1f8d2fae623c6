"""`photos.tsv` and `pairs.tsv`: every photo and every pair with what became of it, and why."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pycolmap
import pytest

from sfm_lightglue.model_files import observations_of, write_copies
from sfm_lightglue.pair_files import check_output, read_reasons, write_pairs, write_reasons
from sfm_lightglue.products import Features, Matches, Pair, TwoViewGeometry
from sfm_lightglue.run_folder import RunFolder
from sfm_lightglue.storage import ShardStore, features_to_group, geometry_to_group, match_key, matches_to_group
from sfm_lightglue.tables import (
    PairRow,
    PhotoRow,
    check_photo_table,
    read_pairs,
    read_photos,
    tables_of,
    write_table,
    write_tables,
)

PHOTO = PhotoRow("ü 1.jpg", 640, 480, 512, 3, 2, 90, 71, 0.75, 0, 40, 0.5, "registered", "", "")
LOST = PhotoRow("lost.jpg", None, None, None, 0, 0, 0, 0, None, None, 0, None, "unreadable", "it\tis cut\n", "save it again")
PAIR = PairRow("a.jpg", "b.jpg", "retrieval#3", 0.25, 40, 30, 0.75, 0.5, "CALIBRATED", "verified", "", "")


def test_tables_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    write_table(tmp_path / "photos.tsv", [PHOTO, LOST], PhotoRow)
    write_table(tmp_path / "pairs.tsv", [PAIR], PairRow)
    photo, lost = read_photos(tmp_path / "photos.tsv")
    assert photo == PHOTO and read_pairs(tmp_path / "pairs.tsv") == [PAIR]
    assert lost.reason == "it is cut" and lost.model is lost.mean_score is None
    lines = (tmp_path / "photos.tsv").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 3 and {line.count("\t") for line in lines} == {14}


def test_a_table_of_another_program_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "photos.tsv"
    check_photo_table(path)
    path.write_text("photo\tstars\n")
    with pytest.raises(ValueError, match="is not a table"):
        read_photos(path)
    with pytest.raises(ValueError, match="was not written by sfm_lightglue"):
        check_photo_table(path)


def test_a_folder_without_a_run_has_empty_tables(tmp_path: Path) -> None:
    tables = tables_of(RunFolder(tmp_path))
    assert tables.photos == [] and tables.pairs == []


# --- from the files of a run ---------------------------------------------------------------------------------------------

NAMES = ("a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg")
PAIRS = [Pair("a.jpg", "b.jpg", "sequential+1"), Pair("b.jpg", "c.jpg", "retrieval#2", 0.25), Pair("c.jpg", "d.jpg", "list")]
KEYPOINTS = np.array([[100, 100], [200, 100], [100, 200], [300, 300]], np.float32)
INLIERS = np.array([[0, 0], [1, 1], [2, 2]], np.int32)


def write_features(folder: RunFolder, names: tuple[str, ...] = NAMES) -> None:
    with ShardStore(folder.features, {"name": "test"}) as store:
        for name in names:
            count = 0 if name == "e.jpg" else len(KEYPOINTS)
            scores, descriptors = np.ones(count, np.float32), np.zeros((count, 2), np.float32)
            store.add(name, features_to_group(Features(KEYPOINTS[:count], scores, descriptors, (640, 480))), "stamp")
        store.merge()


def write_matches(folder: RunFolder) -> None:
    with ShardStore(folder.matches, {"name": "test"}) as store:
        for pair in PAIRS:
            matches = Matches(INLIERS, np.full(3, 0.5, np.float32))
            store.add(match_key(pair.name0, pair.name1), matches_to_group(matches, 4), "stamp")
        store.merge()


def write_geometries(folder: RunFolder, pairs: list[Pair]) -> None:
    with ShardStore(folder.verification, {"options": {"min_mean_score": 0.5}}) as store:
        for pair in pairs:
            verified = TwoViewGeometry("CALIBRATED", INLIERS, 4, 2.0, num_agreeing=3, num_needed=2, mean_score=0.8)
            if pair.name0 == "c.jpg":
                none = np.zeros((0, 2), np.int32)
                verified = TwoViewGeometry("DEGENERATE", none, 4, 2.0, rejected_because="few matches", num_needed=20)
            store.add(match_key(pair.name0, pair.name1), geometry_to_group(verified), "stamp")
        store.merge()


def write_model(folder: RunFolder) -> pycolmap.Reconstruction:
    """A model of a.jpg and b.jpg: both see two points, b.jpg with errors of 0 and 3 px."""
    model = pycolmap.Reconstruction()
    camera = pycolmap.Camera(model="SIMPLE_PINHOLE", width=640, height=480, params=[500, 320, 240], camera_id=1)
    model.add_camera_with_trivial_rig(camera)
    points = np.array([[-1.0, -1, 10], [1, -1, 10]])
    for image_id, (name, shift) in enumerate((("a.jpg", 0.0), ("b.jpg", 1.0)), 1):
        pose = pycolmap.Rigid3d(pycolmap.Rotation3d(), np.array([shift, 0, 0]))
        seen = np.zeros((4, 2))
        seen[:2] = camera.img_from_cam(pose * points)
        seen[1, 1] += 3 * shift
        image = pycolmap.Image(name, seen, camera_id=1, image_id=image_id)
        model.add_image_with_trivial_frame(image, pose)
    for index, point in enumerate(points):
        track = pycolmap.Track(elements=[pycolmap.TrackElement(1, index), pycolmap.TrackElement(2, index)])
        model.add_point3D(point, track, np.zeros(3, np.uint8))
    path = folder.reconstruction / "0"
    path.mkdir(parents=True)
    model.write(path)
    write_copies(model, path)
    return model


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A finished run: a.jpg and b.jpg are in the model, c.jpg is refused, d.jpg is not verified, e.jpg and f.jpg are useless."""
    folder = RunFolder(tmp_path)
    write_features(folder)
    write_pairs(folder.pairs, PAIRS)
    write_reasons(folder.pair_reasons, PAIRS)
    write_matches(folder)
    write_geometries(folder, PAIRS)
    write_model(folder)
    stages = {"extract": {"seconds": 1, "skipped": {"f.jpg": "the file is empty"}}, "reconstruct": {"seconds": 1}}
    folder.summary.write_text(json.dumps({"stages": stages}))
    return folder


def test_each_photo_of_a_finished_run_has_its_row(folder: RunFolder) -> None:
    rows = {row.photo: row for row in tables_of(folder).photos}
    assert [*rows] == [*NAMES, "f.jpg"]
    assert {name: row.verdict for name, row in rows.items()} == {
        **{"a.jpg": "registered", "b.jpg": "registered", "c.jpg": "unregistered", "d.jpg": "unregistered"},
        **{"e.jpg": "no features", "f.jpg": "unreadable"},
    }
    assert all(row.reason and row.advice for row in rows.values() if row.verdict != "registered")
    b = rows["b.jpg"]
    assert (b.width, b.height, b.keypoints, b.pairs, b.verified_pairs, b.matches, b.inliers) == (640, 480, 4, 2, 2, 8, 6)
    assert (b.model, b.points) == (0, 2) and b.mean_score == pytest.approx(0.8)
    assert b.reprojection_error_px == pytest.approx(1.5) and rows["a.jpg"].reprojection_error_px == pytest.approx(0)
    assert "2 keypoints match points of the largest model" in rows["c.jpg"].reason
    assert "few matches: 4 matches, 20 are needed" in rows["d.jpg"].reason


def test_each_pair_has_its_row_in_the_order_of_the_list(folder: RunFolder) -> None:
    first, second, third = tables_of(folder).pairs
    assert (first.photo0, first.source, first.score, second.score) == ("a.jpg", "sequential+1", None, 0.25)
    assert (first.matches, first.inliers, first.inlier_ratio, first.verdict) == (4, 3, 0.75, "verified")
    assert (third.verdict, third.inliers) == ("rejected", None) and third.reason and third.advice


def test_half_finished_runs_have_tables_too(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    write_features(folder)
    assert {row.verdict for row in tables_of(folder).photos} == {"pending", "no features"}
    write_pairs(folder.pairs, PAIRS)
    assert {row.verdict for row in tables_of(folder).pairs} == {"not matched"}
    write_matches(folder)
    assert [(row.verdict, row.matches) for row in tables_of(folder).pairs] == [("not verified", 3)] * 3
    write_geometries(folder, PAIRS[:2])
    assert [row.verdict for row in tables_of(folder).pairs] == ["verified", "verified", "not verified"]


def test_photos_that_were_removed_from_the_folder_are_left_out(folder: RunFolder, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("a.jpg", "b.jpg", "c.jpg", "d.jpg"):
        (photos / name).touch()
    content = json.loads(folder.summary.read_text())
    folder.summary.write_text(json.dumps({**content, "dataset": {"images": str(photos)}}))
    assert [row.photo for row in tables_of(folder).photos] == ["a.jpg", "b.jpg", "c.jpg", "d.jpg", "f.jpg"]
    (tmp_path / "list.txt").write_text("a.jpg\nb.jpg\n")
    folder.summary.write_text(json.dumps({**content, "dataset": {"images": str(photos), "list": str(tmp_path / "list.txt")}}))
    assert {"a.jpg", "b.jpg", "f.jpg"} <= {row.photo for row in tables_of(folder).photos if row.keypoints or row.reason}


def test_a_damaged_model_is_told_and_its_photos_count_as_lost(folder: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    (folder.reconstruction / "0" / "points3D.bin").write_bytes(b"")
    assert {row.verdict for row in tables_of(folder).photos if row.model is not None} == set()
    assert "is damaged" in caplog.text


def test_the_written_tables_keep_what_the_stage_pairs_needs(folder: RunFolder) -> None:
    write_tables(folder)
    before = folder.pair_reasons.read_bytes()
    check_output(folder.pairs, folder.pair_reasons)
    assert [(pair, pair.reason) for pair in read_reasons(folder.pair_reasons)] == [(pair, pair.reason) for pair in PAIRS]
    assert [row.source for row in read_pairs(folder.pair_reasons)] == ["sequential+1", "retrieval#2", "list"]
    write_tables(folder)
    assert folder.pair_reasons.read_bytes() == before and len(read_photos(folder.photo_table)) == 6


def test_pairs_of_the_user_are_not_claimed(folder: RunFolder) -> None:
    """`pairs.tsv` proves that a run has written `pairs.txt`. An edited list must not get this proof."""
    write_pairs(folder.pairs, PAIRS[:1])
    before = folder.pair_reasons.read_bytes()
    write_tables(folder)
    assert folder.pair_reasons.read_bytes() == before
    with pytest.raises(ValueError, match="was changed since a run wrote it"):
        check_output(folder.pairs, folder.pair_reasons)
    assert len(tables_of(folder).pairs) == 1


def test_a_table_of_version_0_10_is_read(tmp_path: Path) -> None:
    path = tmp_path / "pairs.tsv"
    path.write_text("name0\tname1\treason\tscore\na.jpg\tb.jpg\texhaustive\t\n")
    assert [(pair.name0, pair.reason) for pair in read_reasons(path)] == [("a.jpg", "exhaustive")]


def test_observations_are_errors_in_px_and_keypoints_with_points(folder: RunFolder) -> None:
    seen = observations_of(folder.open_model(folder.models()[0]))
    assert [*seen] == ["a.jpg", "b.jpg"] and seen["b.jpg"].has_point.tolist() == [True, True, False, False]
    np.testing.assert_allclose(seen["b.jpg"].errors_px, [0, 3], atol=1e-9)


def test_reading_tables_loads_neither_torch_nor_pycolmap() -> None:
    code = "import sys, sfm_lightglue.tables; print({'torch', 'pycolmap', 'hydra'} & {*sys.modules})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
