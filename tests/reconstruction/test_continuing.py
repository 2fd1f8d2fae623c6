"""Photos that are not in a model are tried again, and a model that grew replaces the old one only if nothing became worse."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import logging
from pathlib import Path

import numpy as np
import pycolmap
import pytest
from known_scene import KnownScene, make_database
from test_joining import OPTIONS, part, write

from sfm_lightglue.reconstruction import continuing, stage
from sfm_lightglue.reconstruction.continuing import check_continued, complete_models, count_known_keypoints, drop_contained
from sfm_lightglue.reconstruction.joining import NotJoined
from sfm_lightglue.reconstruction.overlaps import VerifiedPairs

NUM_IMAGES = 6
FIRST, SECOND = (1, 2, 3), (4, 5, 6)


def make(folder: Path, bridges: set[tuple[int, int]]) -> Path:
    """A database of six photos in two halves, with these pairs (of image ids) between the halves."""
    inside = [*itertools.combinations(FIRST, 2), *itertools.combinations(SECOND, 2)]
    pairs = [(first - 1, second - 1) for first, second in sorted({*inside, *bridges})]
    return make_database(folder, KnownScene(NUM_IMAGES), range(NUM_IMAGES), pairs, noise_px=0.5)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> pycolmap.Reconstruction:
    """One model of all images."""
    database = make(tmp_path_factory.mktemp("whole"), {*itertools.product(FIRST, SECOND)})
    pycolmap.incremental_mapping(database, database.parent, database.parent)
    return pycolmap.Reconstruction(database.parent / "0")


@pytest.fixture(scope="module")
def bridged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with one pair of photos between the halves: too few to join their models."""
    return make(tmp_path_factory.mktemp("bridged"), {(3, 4)})


def halves(output: Path, whole: pycolmap.Reconstruction) -> Path:
    return write(output, part(whole, FIRST), part(whole, SECOND, turn=True))


def test_models_with_one_pair_between_them_become_one(bridged: Path, whole: pycolmap.Reconstruction, tmp_path: Path) -> None:
    output = halves(tmp_path / "out", whole)
    notes, interrupted = complete_models(output, bridged, OPTIONS)
    assert not interrupted
    assert "2 pairs are needed" in notes[0] and "images was continued: 6 images" in notes[1]
    (folder,) = output.iterdir()
    model = pycolmap.Reconstruction(folder)
    assert model.is_valid() and model.num_reg_images() == NUM_IMAGES
    errors = pycolmap.compare_reconstructions(model, whole, alignment_error="proj_center")["errors"]
    assert max(error.rotation_error_deg for error in errors) < 0.2  # one pair holds the halves together: 0.5 px of noise


def test_completing_twice_gives_the_same_bytes_and_every_attempt_is_logged(
    bridged: Path, whole: pycolmap.Reconstruction, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    outputs = [halves(tmp_path / name, whole) for name in ("a", "b")]
    with caplog.at_level(logging.INFO):
        notes, _ = complete_models(outputs[0], bridged, OPTIONS)
    assert len(notes) == len(set(notes)) >= 3 and [record.message for record in caplog.records] == notes
    assert complete_models(outputs[1], bridged, OPTIONS) == (notes, False)
    for file in ("images.bin", "points3D.bin", "cameras.bin"):
        assert (outputs[0] / "0" / file).read_bytes() == (outputs[1] / "0" / file).read_bytes()


def test_a_photo_without_a_model_is_tried_again(bridged: Path, whole: pycolmap.Reconstruction, tmp_path: Path) -> None:
    output = write(tmp_path / "out", part(whole, (1, 2, 3, 4, 5)))
    notes, _ = complete_models(output, bridged, OPTIONS)
    assert len(notes) == 1 and "a model of 5 images was continued: 6 images" in notes[0]


def test_models_without_pairs_between_them_stay_as_they_are(whole: pycolmap.Reconstruction, tmp_path: Path) -> None:
    output = halves(tmp_path / "out", whole)
    before = {path: path.read_bytes() for path in output.glob("*/*.bin")}
    assert complete_models(output, make(tmp_path / "apart", set()), OPTIONS) == ([], False)
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before


def test_a_model_that_became_worse_is_refused(
    bridged: Path, whole: pycolmap.Reconstruction, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise NotJoined("a reason")

    monkeypatch.setattr(continuing, "check_continued", refuse)
    output = halves(tmp_path / "out", whole)
    before = {path: path.read_bytes() for path in output.glob("*/*.bin")}
    notes, _ = complete_models(output, bridged, OPTIONS)
    assert notes[1:] == ["a model of 3 images was not continued: a reason"] * 2
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before


def test_known_poses_are_not_continued(bridged: Path, whole: pycolmap.Reconstruction, tmp_path: Path) -> None:
    """Triangulation leaves out photos without a pose."""
    output = write(tmp_path / "out", part(whole, FIRST))
    assert complete_models(output, bridged, dataclasses.replace(OPTIONS, name="triangulation")) == ([], False)


def test_ctrl_c_keeps_the_models_as_they_were(
    bridged: Path, whole: pycolmap.Reconstruction, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(continuing, "continue_mapping", lambda *_: True)
    monkeypatch.setattr(stage, "run_mapper", lambda _, partial, *__, **___: bool(halves(partial, whole)) and False)
    with pytest.raises(KeyboardInterrupt):
        stage.reconstruct(bridged, bridged.parent, tmp_path / "out", OPTIONS)
    assert [pycolmap.Reconstruction(tmp_path / "out" / str(number)).num_reg_images() for number in (0, 1)] == [3, 3]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0", "1", "settings.json"]


def test_only_models_whose_photos_are_all_in_a_larger_one_are_dropped(whole: pycolmap.Reconstruction, tmp_path: Path) -> None:
    """A first attempt of two photos goes; a model with one photo of its own stays."""
    output = write(tmp_path / "out", part(whole, (2, 3)), part(whole, (4, 5, 6)), part(whole, (1, 2, 3, 4, 5)))
    assert drop_contained(output) == ["a model of 2 images is dropped: all of them are in the model of 5"]
    assert sorted(path.name for path in output.iterdir()) == ["1", "2"]


def test_keypoints_with_known_points_are_counted_once(bridged: Path, whole: pycolmap.Reconstruction) -> None:
    pairs = VerifiedPairs.read(bridged)
    found = count_known_keypoints(part(whole, (1, 2)), pairs)
    assert set(found) == {3} and 100 < found[3] <= 150  # 150 keypoints, each matched in two pairs
    assert count_known_keypoints(part(whole, FIRST), VerifiedPairs({(3, 4): pairs.matches[3, 4]}, set())).keys() == {4}


# --- what is checked ---


def move(model: pycolmap.Reconstruction, image_id: int, angle_deg: float) -> pycolmap.Reconstruction:
    """The model with one camera turned about its centre."""
    moved = copy.deepcopy(model)
    turn = pycolmap.Rotation3d(np.radians(angle_deg) * np.array([0, 0, 1.0]))
    image = moved.image(image_id)
    moved.frame(image.frame_id).rig_from_world = pycolmap.Rigid3d(turn, np.zeros(3)) * image.cam_from_world()
    return moved


def test_a_model_that_only_grew_is_accepted(bridged: Path, whole: pycolmap.Reconstruction) -> None:
    check_continued(part(whole, FIRST), whole, VerifiedPairs.read(bridged), OPTIONS, 1)


def test_a_model_that_did_not_grow_is_refused_without_a_reason(bridged: Path, whole: pycolmap.Reconstruction) -> None:
    with pytest.raises(NotJoined, match=r"^$"):
        check_continued(whole, whole, VerifiedPairs.read(bridged), OPTIONS, 1)


def test_a_photo_is_never_lost(bridged: Path, whole: pycolmap.Reconstruction) -> None:
    with pytest.raises(NotJoined, match="1 photos would be lost"):
        check_continued(part(whole, (1, 2, 3)), part(whole, (2, 3, 4, 5)), VerifiedPairs.read(bridged), OPTIONS, 1)


def test_observations_must_remain(bridged: Path, whole: pycolmap.Reconstruction) -> None:
    grown = copy.deepcopy(whole)
    for point_id in sorted(grown.point3D_ids())[::3]:
        grown.delete_point3D(point_id)
    with pytest.raises(NotJoined, match=r"only \d+ of \d+ observations would remain"):
        check_continued(part(whole, FIRST), grown, VerifiedPairs.read(bridged), OPTIONS, 1)


def test_the_reprojection_error_must_not_double(bridged: Path, whole: pycolmap.Reconstruction) -> None:
    grown = copy.deepcopy(whole)
    for point in grown.points3D.values():
        point.error *= 3
    with pytest.raises(NotJoined, match=r"the reprojection error would rise from 0.\d\d to 1.\d\d px"):
        check_continued(part(whole, FIRST), grown, VerifiedPairs.read(bridged), OPTIONS, 1)


def test_old_photos_must_stay_where_they_are(bridged: Path, whole: pycolmap.Reconstruction) -> None:
    with pytest.raises(NotJoined, match=r"a photo would turn by \d.\d degrees"):
        check_continued(part(whole, FIRST), move(whole, 2, 8), VerifiedPairs.read(bridged), OPTIONS, 1)


def test_matches_of_new_photos_must_fit(bridged: Path, whole: pycolmap.Reconstruction) -> None:
    with pytest.raises(NotJoined, match=r"only \d+ of \d+ verified matches of 03.jpg would fit"):
        check_continued(part(whole, FIRST), move(whole, 4, 20), VerifiedPairs.read(bridged), OPTIONS, 1)


def test_new_photos_must_match_what_they_would_show(bridged: Path, whole: pycolmap.Reconstruction) -> None:
    """Photos 4 to 6 show the points of 1 to 3, were matched with them, and only one pair matches."""
    pairs = VerifiedPairs.read(bridged)
    with pytest.raises(NotJoined, match=r"[2-8] pairs of photos would show the same things but do not match, 1 match"):
        check_continued(
            part(whole, FIRST), whole, VerifiedPairs(pairs.matches, {*itertools.combinations(range(1, 7), 2)}), OPTIONS, 1
        )


def test_one_pair_is_too_few_for_photos_with_few_matches(bridged: Path, whole: pycolmap.Reconstruction) -> None:
    with pytest.raises(NotJoined, match="only 1 pairs of an old and a new photo would fit, 2 are needed"):
        check_continued(part(whole, FIRST), whole, VerifiedPairs.read(bridged), OPTIONS, 2)
