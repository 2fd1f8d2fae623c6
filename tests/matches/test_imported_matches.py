"""Matches in each of the formats that hloc has written go through our stage."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from sfm_lightglue.matches.imported import ImportedMatcher, ImportedOptions
from sfm_lightglue.matches.stage import MatchingReport, match_pairs
from sfm_lightglue.products import Features, Pair
from sfm_lightglue.storage import H5Reader, SettingsChanged, ShardStore, features_to_group

MATCHES0 = np.array([3, -1, 0, -1, 2], np.int16)
SCORES0 = np.array([0.9, 0, 0.5, 0, 0.2], np.float16)
EXPECTED = [[0, 3], [2, 0], [4, 2]]


def write_hloc_matches(path: Path, key: str, *, scores: bool = True, matches0: np.ndarray = MATCHES0) -> Path:
    with h5py.File(path, "a") as file:
        group = file.create_group(key)
        group.create_dataset("matches0", data=matches0)
        if scores:
            group.create_dataset("matching_scores0", data=SCORES0)
    return path


def matcher(path: Path, min_score: float | None = None) -> ImportedMatcher:
    return ImportedMatcher.create(ImportedOptions("imported", str(path), min_score), "cpu")


def features_named(name: str, num: int = 5) -> Features:
    return Features(np.zeros((num, 2), np.float32), np.ones(num, np.float32), np.ones((num, 4), np.float32), (9, 9), name=name)


@pytest.mark.parametrize("key", ["db-a.jpg/query-b.jpg", "db-a.jpg_query-b.jpg"])
def test_matches_are_found_under_the_new_and_the_old_key(tmp_path: Path, key: str) -> None:
    found = matcher(write_hloc_matches(tmp_path / "m.h5", key))(features_named("db/a.jpg"), features_named("query/b.jpg"))
    assert found.indices.tolist() == EXPECTED
    np.testing.assert_allclose(found.scores, [0.9, 0.5, 0.2], atol=1e-3)


@pytest.mark.parametrize("key", ["query-b.jpg/db-a.jpg", "query-b.jpg_db-a.jpg"])
def test_matches_stored_in_the_other_order_are_reversed(tmp_path: Path, key: str) -> None:
    found = matcher(write_hloc_matches(tmp_path / "m.h5", key))(features_named("db/a.jpg"), features_named("query/b.jpg"))
    assert found.indices.tolist() == [[0, 2], [2, 4], [3, 0]]
    np.testing.assert_allclose(found.scores, [0.5, 0.2, 0.9], atol=1e-3)


def test_weak_matches_are_dropped(tmp_path: Path) -> None:
    path = write_hloc_matches(tmp_path / "m.h5", "a.jpg/b.jpg")
    found = matcher(path, min_score=0.5)(features_named("a.jpg"), features_named("b.jpg"))
    assert found.indices.tolist() == EXPECTED[:2]


def test_absent_scores_count_as_one(tmp_path: Path) -> None:
    path = write_hloc_matches(tmp_path / "m.h5", "a.jpg/b.jpg", scores=False)
    assert matcher(path, min_score=0.99)(features_named("a.jpg"), features_named("b.jpg")).scores.tolist() == [1, 1, 1]


def test_a_pair_that_is_missing_from_the_file_is_named(tmp_path: Path) -> None:
    path = write_hloc_matches(tmp_path / "m.h5", "a.jpg/b.jpg")
    with pytest.raises(KeyError, match=r"m\.h5 has no matches of 'a\.jpg' and 'c\.jpg'"):
        matcher(path)(features_named("a.jpg"), features_named("c.jpg"))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"matches\.path=.*none\.h5 does not exist"):
        matcher(tmp_path / "none.h5")


@pytest.fixture
def features(tmp_path: Path) -> Path:
    with ShardStore(tmp_path / "features.h5", {}) as store:
        for name in ("a.jpg", "b.jpg", "c.jpg"):
            store.add(name, features_to_group(features_named(name)), "content")
        store.merge()
    return tmp_path / "features.h5"


PAIRS = [Pair("a.jpg", "b.jpg"), Pair("b.jpg", "c.jpg")]


def test_imported_matches_go_through_the_stage(features: Path, tmp_path: Path) -> None:
    write_hloc_matches(tmp_path / "hloc.h5", "a.jpg/b.jpg")
    write_hloc_matches(tmp_path / "hloc.h5", "c.jpg_b.jpg")
    assert match_pairs(features, PAIRS, tmp_path / "matches.h5", matcher(tmp_path / "hloc.h5")) == MatchingReport(
        2, 3, 0, num_computed=2
    )
    with h5py.File(tmp_path / "matches.h5") as file:
        np.testing.assert_array_equal(file["a.jpg/b.jpg/matches0"][()], MATCHES0)
        np.testing.assert_array_equal(file["a.jpg/b.jpg/matching_scores0"][()], SCORES0)
        assert file["b.jpg/c.jpg/matches0"][()].tolist() == [2, -1, 4, 0, -1]


def test_matches_of_other_features_are_refused(features: Path, tmp_path: Path) -> None:
    """With index 7 of 5 keypoints COLMAP would read beyond its keypoints."""
    path = write_hloc_matches(tmp_path / "hloc.h5", "a.jpg/b.jpg", matches0=np.array([7, -1, -1, -1, -1]))
    with pytest.raises(ValueError, match=r"a\.jpg and b\.jpg are not valid: largest indices \[0, 7\]"):
        match_pairs(features, PAIRS[:1], tmp_path / "matches.h5", matcher(path))


def test_the_imported_file_may_move_but_another_file_is_another_setting(features: Path, tmp_path: Path) -> None:
    path = write_hloc_matches(tmp_path / "hloc.h5", "a.jpg/b.jpg")
    match_pairs(features, PAIRS[:1], tmp_path / "matches.h5", matcher(path))
    path = path.rename(tmp_path / "moved.h5")
    assert match_pairs(features, PAIRS[:1], tmp_path / "matches.h5", matcher(path)).num_computed == 0
    write_hloc_matches(path, "b.jpg/c.jpg")
    with pytest.raises(SettingsChanged, match="weights"):
        match_pairs(features, PAIRS, tmp_path / "matches.h5", matcher(path))
    with H5Reader(tmp_path / "matches.h5") as reader:
        assert reader.names() == ["a.jpg/b.jpg"]
