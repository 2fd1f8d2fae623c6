"""Verified pairs that contradict the models: one is a wrong pair, many put the models in doubt."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import pycolmap
import pytest
from known_scene import MAPPER_OPTIONS, KnownScene, make_database

from sfm_lightglue.reconstruction import contradictions, reconstruct
from sfm_lightglue.reconstruction.contradictions import Contradictions, find_contradictions

PAIRS = [(first, second) for first in range(6) for second in range(first + 1, 6)]
RIGHT = Contradictions(15, 0, ())


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The database of six photos; their models are beside it, in `reconstruction`."""
    path = make_database(tmp_path_factory.mktemp("scene"), KnownScene(6), range(6), PAIRS, noise_px=0.3)
    report = reconstruct(path, path.parent / "images", path.parent / "reconstruction", MAPPER_OPTIONS)
    assert report.models[0].num_images == 6 and report.doubtful == []
    return path


def spoilt(database: Path, folder: Path, image_pairs: list[tuple[int, int]], share: float = 1.0) -> Path:
    """A copy of the database in which these pairs of images have matches of other points, as copies of a place give."""
    path = Path(shutil.copy(database, folder / "spoilt.db"))
    with pycolmap.Database.open(path) as rows:
        for image_ids in image_pairs:
            geometry = rows.read_two_view_geometry(*image_ids)
            matches = np.asarray(geometry.inlier_matches).copy()
            count = int(share * len(matches))
            matches[:count, 1] = np.roll(matches[:count, 1], 1)
            geometry.inlier_matches = matches
            rows.update_two_view_geometry(*image_ids, geometry)
    return path


def test_no_pair_contradicts_a_right_model(database: Path) -> None:
    found = find_contradictions(database.parent / "reconstruction", database, 2.0)
    assert found == RIGHT and not found.in_doubt


def test_one_wrong_pair_does_not_put_a_model_in_doubt(database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contradictions, "DOUBTFUL_SHARE", 0.1)
    found = find_contradictions(database.parent / "reconstruction", spoilt(database, tmp_path, [(1, 4)]), 2.0)
    assert (found.num_judged, found.num_contradicted, found.in_doubt) == (15, 1, False)
    assert len(found.photos) == 2


def test_many_wrong_pairs_do(database: Path, tmp_path: Path) -> None:
    wrong = [(1, 3), (1, 4), (1, 5)]
    found = find_contradictions(database.parent / "reconstruction", spoilt(database, tmp_path, wrong), 2.0)
    assert (found.num_judged, found.num_contradicted, found.in_doubt) == (15, 3, True)
    with pycolmap.Database.open(database) as rows:
        assert found.photos == tuple(sorted(rows.read_image(image_id).name for image_id in (1, 3, 4, 5)))
    assert "contradict 3 of 15 pairs with 50 or more verified matches, in 4 photos" in found.sentence()


def test_a_part_of_wrong_matches_and_few_matches_do_not_count(
    database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_contradictions(database.parent / "reconstruction", spoilt(database, tmp_path, PAIRS[5:8], 0.4), 2.0) == RIGHT
    path = spoilt(database, tmp_path, [(1, 3)])
    monkeypatch.setattr(contradictions, "MIN_MATCHES", 10_000)
    assert find_contradictions(database.parent / "reconstruction", path, 2.0) == Contradictions(0, 0, ())


def test_pairs_of_photos_without_a_model_are_not_judged(database: Path, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    assert find_contradictions(tmp_path / "models", database, 2.0) == Contradictions(0, 0, ())


def test_the_stage_warns_and_keeps_what_it_found(
    database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(contradictions, "MIN_AGREEING", 1.1)  # every pair contradicts
    reports = []
    for _ in range(2):
        with caplog.at_level(logging.WARNING):
            reports.append(reconstruct(database, tmp_path / "images", tmp_path / "reconstruction", MAPPER_OPTIONS))
    assert reports[0] == reports[1] and len(reports[0].doubtful) == 6
    assert "they contradict 15 of 15 pairs" in reports[0].cameras[0] and caplog.text.count("contradict 15 of 15 pairs") == 1
