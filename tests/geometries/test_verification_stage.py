"""The stage verify: what it reads, in which order, and the numbers of its report."""

from __future__ import annotations

import dataclasses
import itertools
import pickle
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from known_scene import FOCAL, SIZE, KnownScene

from sfm_lightglue.cameras import Camera
from sfm_lightglue.geometries import stage
from sfm_lightglue.geometries.stage import verify_pairs
from sfm_lightglue.geometries.verification import VerificationOptions
from sfm_lightglue.products import Features, Matches, Pair
from sfm_lightglue.storage import GeometryNumbers, H5Reader, ShardStore, features_to_group, match_key, matches_to_group, shards

OPTIONS = VerificationOptions(2.0, 20, 0.0, 0.9999, 200, 0, None, 0.3)
NAMES = [f"{number}.jpg" for number in range(6)]
PAIRS = [Pair(*names) for names in itertools.combinations(NAMES, 2)]
CAMERA = Camera("SIMPLE_PINHOLE", SIZE, (FOCAL, SIZE[0] / 2, SIZE[1] / 2), True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features and matches of six images; the pairs of the last one have ten matches only."""
    folder, scene = tmp_path_factory.mktemp("stage"), KnownScene(len(NAMES))
    with ShardStore(folder / "features.h5", {}) as store:
        for index, name in enumerate(NAMES):
            features = dataclasses.replace(scene.features(index), pixel_scale=1.0 + index)
            store.add(name, features_to_group(features), name)
        store.merge()
    with ShardStore(folder / "matches.h5", {}) as store:
        for pair in PAIRS:
            first, second = NAMES.index(pair.name0), NAMES.index(pair.name1)
            found = scene.matches(first, second)
            if second == len(NAMES) - 1:
                found = dataclasses.replace(found, indices=found.indices[:10], scores=found.scores[:10])
            store.add(match_key(pair.name0, pair.name1), matches_to_group(found, len(scene.features(first))), "stamp")
        store.merge()
    return folder


def verify(folder: Path, output: Path, pairs: list[Pair] = PAIRS) -> stage.VerificationReport:
    return verify_pairs(
        folder / "features.h5", folder / "matches.h5", pairs, output, OPTIONS, dict.fromkeys(NAMES, CAMERA), names=NAMES
    )


def test_the_report_has_the_numbers_of_the_stored_geometries(folder: Path, tmp_path: Path) -> None:
    report = verify(folder, tmp_path / "verification.h5")
    with H5Reader(tmp_path / "verification.h5") as reader:
        geometries = [reader.geometry(pair.name0, pair.name1) for pair in PAIRS]
    errors = [geometry.max_error_px for geometry in geometries]
    assert report.num_pairs == 15
    assert report.num_verified_pairs == sum(geometry.is_verified for geometry in geometries) == 10
    assert report.num_inliers == sum(len(geometry.inlier_matches) for geometry in geometries)
    assert report.configurations == dict(sorted(Counter(geometry.configuration for geometry in geometries).items()))
    assert report.rejected_because == {"few matches": 5}
    assert report.max_error_px == (min(errors), max(errors)) == (3.0, 11.0)


def test_the_numbers_of_new_pairs_are_those_that_the_file_has(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, asked = [], []
    summarise, geometry_numbers = stage._summarise, H5Reader.geometry_numbers

    def remembered(numbers: GeometryNumbers, *others: Any) -> stage.VerificationReport:
        found.append(numbers.rows.copy())
        return summarise(numbers, *others)

    def counted(self: H5Reader, pairs: list[Pair]) -> GeometryNumbers:
        asked.append(len(pairs))
        return geometry_numbers(self, pairs)

    monkeypatch.setattr(stage, "_summarise", remembered)
    monkeypatch.setattr(H5Reader, "geometry_numbers", counted)
    for pairs in (PAIRS[:9], PAIRS, PAIRS):
        verify(folder, tmp_path / "verification.h5", pairs)
    assert asked == [0, 9, 15]  # only those that were verified by an earlier call
    with H5Reader(tmp_path / "verification.h5") as reader:
        stored = geometry_numbers(reader, PAIRS).rows
    for rows in found[1:]:
        assert rows.tobytes() == stored.tobytes()


def test_matches_that_were_read_for_the_overlays_are_not_read_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Counter[Pair]()
    read_matches = stage.read_matches

    def counted(reader: H5Reader, pair: Pair) -> Any:
        read[pair] += 1
        return read_matches(reader, pair)

    monkeypatch.setattr(stage, "read_matches", counted)
    monkeypatch.setattr(stage, "MAX_SAMPLED_PAIRS", 4)
    options = dataclasses.replace(OPTIONS, stationary_max_error_px=2.0)
    files = folder / "features.h5", folder / "matches.h5"
    verify_pairs(*files, PAIRS, tmp_path / "verification.h5", options, dict.fromkeys(NAMES, CAMERA), names=NAMES)
    assert read == dict.fromkeys(PAIRS, 1)


def test_other_processes_do_not_get_the_matches_that_were_read() -> None:
    matches = Matches(np.zeros((1, 2), np.int32), np.ones(1, np.float32))
    recipe = stage.VerificationRecipe(Path("f"), Path("m"), {}, OPTIONS, read_before={PAIRS[0]: matches})
    assert pickle.loads(pickle.dumps(recipe)) == dataclasses.replace(recipe, read_before={})


def test_parts_of_a_geometry_are_those_of_the_whole(folder: Path, tmp_path: Path) -> None:
    verify(folder, tmp_path / "verification.h5")
    with H5Reader(tmp_path / "verification.h5") as reader:
        numbers = reader.geometry_numbers(PAIRS)
        for place, pair in enumerate(PAIRS):
            whole, bare = reader.geometry(pair.name0, pair.name1), numbers.geometry(place)
            assert bare is not None
            np.testing.assert_array_equal(reader.inlier_matches(pair.name0, pair.name1), whole.inlier_matches)
            np.testing.assert_equal(asdict(reader.with_arrays(bare, pair.name0, pair.name1)), asdict(whole))
        with pytest.raises(KeyError, match="run the stage verify first"):
            reader.inlier_matches("0.jpg", "other.jpg")


def test_each_image_is_read_once_and_without_descriptors(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Counter[str]()
    bare_features = H5Reader.bare_features

    def counted(self: H5Reader, name: str) -> Features:
        read[name] += 1
        return bare_features(self, name)

    monkeypatch.setattr(H5Reader, "bare_features", counted)
    monkeypatch.setattr(H5Reader, "features", lambda *_, **__: pytest.fail("reads scores and descriptors"))
    verify(folder, tmp_path / "verification.h5")
    assert read == dict.fromkeys(NAMES, 1)


def test_bare_features_are_the_keypoints_of_the_features(folder: Path) -> None:
    with H5Reader(folder / "features.h5") as reader:
        whole, bare = reader.features(NAMES[2]), reader.bare_features(NAMES[2])
        with pytest.raises(KeyError, match=r"did you mean '2\.jpg'"):
            reader.bare_features("22.jpg")
    np.testing.assert_array_equal(bare.keypoints, whole.keypoints)
    for name in ("image_size", "pixel_scale", "orientation", "name"):
        assert getattr(bare, name) == getattr(whole, name)
    assert len(bare.scores) == len(bare) and bare.descriptors.shape == (len(bare), 0)


def test_pairs_of_the_same_images_are_close_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "GROUP", 8)
    names = [f"{number:02}.jpg" for number in range(40)]
    pairs = [Pair(*both) for both in itertools.combinations(names, 2)]
    batches = stage._batches(pairs)
    assert sorted(pair for batch in batches for pair in batch) == pairs
    assert max(map(len, batches)) <= stage.BATCH
    assert all(len({name for pair in batch for name in (pair.name0, pair.name1)}) <= 16 for batch in batches[:-1][::7])
    assert stage._batches([]) == []
    assert len(stage._batches(pairs[:10])) == 10, "few pairs are shared by all cores"


def test_added_pairs_hardly_change_the_sample_in_which_overlays_and_lenses_are_looked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stage, "MAX_SAMPLED_PAIRS", 20)
    pairs = [Pair(*both) for both in itertools.combinations([f"{number:02}.jpg" for number in range(30)], 2)]

    def sample(chosen: list[Pair]) -> set[Pair]:
        return {*stage._Sample.of(chosen, None, None, {}).pairs}  # type: ignore[arg-type]

    whole, fewer = sample(pairs), sample(pairs[5:])
    assert len(whole) == len(fewer) == 20 and len(whole & fewer) >= 18
    assert sample(pairs[:7]) == {*pairs[:7]}


def test_geometries_in_segments_give_the_same_report_and_only_new_pairs_are_verified(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = verify(folder, tmp_path / "merged.h5")
    monkeypatch.setattr(shards, "MERGE_ITEMS", 0)
    verified: list[int] = []
    original = stage.verify_matches
    monkeypatch.setattr(stage, "verify_matches", lambda *given: verified.append(len(given[4])) or original(*given))
    verify(folder, tmp_path / "verification.h5", PAIRS[:-2])
    assert not (tmp_path / "verification.h5").exists() and len(verified) == 13
    for _ in range(2):
        assert verify(folder, tmp_path / "verification.h5") == expected
        assert len(verified) == 15
