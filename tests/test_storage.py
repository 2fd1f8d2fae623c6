"""The HDF5 files between the stages: they have hloc's layout, hloc's files are read, and interrupted runs lose nothing."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import os
import resource
import signal
import subprocess
import sys
import time
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pycolmap
import pytest

from sfm_lightglue.products import Features, Matches, Pair, TwoViewGeometry
from sfm_lightglue.settings import describe_changes, fingerprint
from sfm_lightglue.storage import (
    CONFIGURATIONS,
    GroupData,
    H5Reader,
    SettingsChanged,
    ShardStore,
    check_match_keys,
    features_to_group,
    geometry_to_group,
    match_key,
    matches_to_group,
)
from sfm_lightglue.storage.file_groups import FileAttributes
from sfm_lightglue.storage.segment_folder import GroupFile

SETTINGS = {"class": "x:Y", "options": {"max_keypoints": 100, "nms": 3}, "weights": ["ab"]}
ODD_NAMES = [
    "plain.jpg",
    "name with spaces (1).jpg",
    " leading and trailing .jpg",
    "sub folder/im age.jpg",
    "folder.jpg/inside.jpg",
    "a/b/c/d/e.jpg",
    unicodedata.normalize("NFC", "café.jpg"),
    unicodedata.normalize("NFD", "café.jpg"),
    "東京/фото 😀.jpg",
    "brackets[0]{1}.jpg",
    "#hash.jpg",
    "percent%20.jpg",
    "two..dots...jpg",
    ".hidden.jpg",
    "-dash.jpg",
    "quote'\".jpg",
    "back\\slash.jpg",
    "long_" + "x" * 240 + ".jpg",
    "/".join(["deep" + "y" * 100] * 20) + "/long path.jpg",
]


def make_features(num: int, seed: int = 0, *, dimensions: int = 16, scales: bool = False, name: str = "") -> Features:
    rng = np.random.default_rng(seed)
    return Features(
        keypoints=rng.uniform(0, (4000, 3000), (num, 2)).astype(np.float32),
        scores=np.sort(rng.random(num))[::-1].astype(np.float32),
        descriptors=rng.normal(size=(num, dimensions)).astype(np.float32),
        image_size=(4000, 3000),
        pixel_scale=2.5,
        scales=rng.uniform(1, 9, num).astype(np.float32) if scales else None,
        orientations=rng.uniform(-3, 3, num).astype(np.float32) if scales else None,
        name=name,
    )


def write(path: Path, items: dict[str, GroupData], settings: dict[str, Any] = SETTINGS, **options: Any) -> bytes:
    """Writes and merges the items; returns the bytes of the merged file."""
    with ShardStore(path, settings, **options) as store:
        for key, item in items.items():
            store.add(key, item, f"stamp of {key}")
        store.merge()
    return path.read_bytes()


def small_items(num: int) -> dict[str, GroupData]:
    return {f"sub/{i:03d}.jpg": features_to_group(make_features(i % 7, seed=i)) for i in range(num)}


# --- records are read as they were written --------------------------------------------------------------------------------


@pytest.mark.parametrize("num, scales", [(0, False), (1, False), (50, False), (50, True)])
def test_features_survive_the_round_trip(tmp_path: Path, num: int, scales: bool) -> None:
    features = make_features(num, scales=scales)
    write(tmp_path / "features.h5", {"a.jpg": features_to_group(features)})
    with H5Reader(tmp_path / "features.h5") as reader:
        loaded = reader.features("a.jpg")
    np.testing.assert_array_equal(loaded.keypoints, features.keypoints)  # no bit is lost above 1024 px
    np.testing.assert_allclose(loaded.scores, features.scores, rtol=2**-11)
    np.testing.assert_allclose(loaded.descriptors, features.descriptors, rtol=2**-10, atol=1e-6)
    assert loaded.descriptors.shape == (num, 16)
    assert {array.dtype for array in (loaded.keypoints, loaded.scores, loaded.descriptors)} == {np.dtype(np.float32)}
    assert (loaded.image_size, loaded.pixel_scale, loaded.name) == ((4000, 3000), 2.5, "a.jpg")
    for array, expected in ((loaded.scales, features.scales), (loaded.orientations, features.orientations)):
        assert (array is None) == (not scales)
        if scales:
            np.testing.assert_array_equal(array, expected)


def test_odd_names_are_found_again(tmp_path: Path) -> None:
    write(tmp_path / "features.h5", {name: features_to_group(make_features(3, seed)) for seed, name in enumerate(ODD_NAMES)})
    with H5Reader(tmp_path / "features.h5") as reader:
        assert reader.names() == sorted(ODD_NAMES)
        for seed, name in enumerate(ODD_NAMES):
            np.testing.assert_array_equal(reader.features(name).keypoints, make_features(3, seed).keypoints)
            assert reader.stamp(name) == f"stamp of {name}"


def test_matches_of_odd_names_are_found_either_way_round(tmp_path: Path) -> None:
    pairs = list(itertools.combinations(ODD_NAMES, 2))
    items = {
        match_key(*pair): matches_to_group(Matches(np.array([[number % 5, number]], np.int32), np.ones(1, np.float32)), 5)
        for number, pair in enumerate(pairs)
    }
    assert len(items) == len(pairs)
    write(tmp_path / "matches.h5", items)
    with H5Reader(tmp_path / "matches.h5") as reader:
        for number, (name0, name1) in enumerate(pairs):
            forward, backward = reader.find_matches(name0, name1), reader.find_matches(name1, name0)
            assert forward is not None and forward.indices.tolist() == [[number % 5, number]]
            assert backward is not None and backward.indices.tolist() == [[number, number % 5]]
        assert reader.find_matches("plain.jpg", "other.jpg") is None


def test_matches_read_in_the_other_direction_are_sorted_by_their_first_column(tmp_path: Path) -> None:
    matches = Matches(np.array([[0, 9], [1, 2], [4, 5]], np.int32), np.array([0.25, 0.5, 0.75], np.float32), 6)
    write(tmp_path / "matches.h5", {match_key("a", "b"): matches_to_group(matches, 5)})
    with H5Reader(tmp_path / "matches.h5") as reader:
        turned = reader.find_matches("b", "a")
    assert turned is not None
    assert turned.indices.tolist() == [[2, 1], [5, 4], [9, 0]]
    assert turned.scores.tolist() == [0.5, 0.75, 0.25]
    assert turned.stop_layer == 6


@pytest.mark.parametrize("index1, dtype", [(0, np.int16), (32767, np.int16), (32768, np.int32), (40000, np.int32)])
def test_indices_are_stored_in_16_bits_if_they_fit(tmp_path: Path, index1: int, dtype: type) -> None:
    """40000 in int16 would be read as -25536."""
    matches = Matches(np.array([[1, index1]], np.int32), np.ones(1, np.float32))
    write(tmp_path / "matches.h5", {match_key("a", "b"): matches_to_group(matches, 3)})
    with h5py.File(tmp_path / "matches.h5", "r") as file:
        assert file["a/b/matches0"].dtype == dtype
        assert file["a/b/matches0"][()].tolist() == [-1, index1, -1]


@pytest.mark.parametrize("num0", [0, 3])
def test_a_pair_without_matches_is_stored_too(tmp_path: Path, num0: int) -> None:
    empty = Matches(np.zeros((0, 2), np.int32), np.zeros(0, np.float32))
    write(tmp_path / "matches.h5", {match_key("a", "b"): matches_to_group(empty, num0)})
    with H5Reader(tmp_path / "matches.h5") as reader:
        found = reader.find_matches("a", "b")
        assert found is not None and found.indices.shape == (0, 2)
    with h5py.File(tmp_path / "matches.h5", "r") as file:
        assert file["a/b/matches0"].shape == (num0,)


VERIFIED = TwoViewGeometry(
    "CALIBRATED", np.array([[1, 7], [2, 0]], np.int32), 5, 3.5, E=np.arange(9.0).reshape(3, 3), F=np.ones((3, 3))
)
REJECTED = TwoViewGeometry("DEGENERATE", np.zeros((0, 2), np.int32), 5, 2.0, rejected_because="few inliers")
EXPLAINED = dataclasses.replace(REJECTED, num_stationary=2, num_agreeing=3, num_needed=21, mean_score=0.25)


def test_the_numbers_of_a_pair_are_read_without_its_arrays(tmp_path: Path) -> None:
    write(tmp_path / "verification.h5", {match_key("a", "b"): geometry_to_group(VERIFIED)})
    with H5Reader(tmp_path / "verification.h5") as reader:
        found = reader.find_geometry("a", "b")
        assert reader.find_geometry("a", "c") is None
    assert found is not None and found.inlier_matches.shape == (0, 2) and found.E is None
    assert (found.num_agreeing, found.num_matches, found.mean_score) == (2, 5, None), "of a file of version 0.10"


def test_the_numbers_of_all_pairs_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several stages ask for them. They are read again if the file or the pairs are others, and nobody changes what is kept."""
    read, pairs, path = list[str](), [Pair("a", "b"), Pair("a", "c")], tmp_path / "verification.h5"
    one_of = H5Reader.find_geometry
    monkeypatch.setattr(H5Reader, "find_geometry", lambda *given: read.append(given[2]) or one_of(*given))

    def numbers(pairs: list[Pair]) -> list[int]:
        read.clear()
        with H5Reader(path) as reader:
            found = reader.geometry_numbers(pairs)
        agreeing: list[int] = found.rows["num_agreeing"].tolist()
        found.rows["num_agreeing"] = 99
        return agreeing

    write(path, {match_key("a", "b"): geometry_to_group(VERIFIED), match_key("a", "c"): geometry_to_group(REJECTED)})
    assert numbers(pairs) == [2, -1] and read == ["b", "c"]
    assert numbers(list(pairs)) == [2, -1] and not read
    assert numbers(pairs[:1]) == [2] and read == ["b"]
    write(path, {match_key("a", "b"): geometry_to_group(REJECTED)})
    assert numbers(pairs[:1]) == [-1] and read == ["b"]


def test_matches_are_counted_without_reading_them(tmp_path: Path) -> None:
    matches = matches_to_group(Matches(np.array([[0, 9], [1, 2]], np.int32), np.ones(2, np.float32), 6), 5)
    former = GroupData(matches.datasets, {"": {"stop_layer": 6}})
    write(tmp_path / "matches.h5", {match_key("a", "b"): matches, match_key("a", "c"): former})
    with H5Reader(tmp_path / "matches.h5") as reader:
        assert reader.match_counts("a", "b") == reader.match_counts("b", "a") == reader.match_counts("a", "c") == (2, 6)
        assert reader.match_counts("b", "c") is None


@pytest.mark.parametrize("geometry", [VERIFIED, REJECTED, EXPLAINED])
def test_geometries_survive_the_round_trip(tmp_path: Path, geometry: TwoViewGeometry) -> None:
    write(tmp_path / "verification.h5", {match_key("sub/a", "sub/b"): geometry_to_group(geometry)})
    with H5Reader(tmp_path / "verification.h5") as reader:
        loaded = reader.geometry("sub/a", "sub/b")
        assert reader.num_inliers("sub/a", "sub/b") == len(geometry.inlier_matches)
    for field in dataclasses.fields(TwoViewGeometry):
        np.testing.assert_array_equal(getattr(loaded, field.name), getattr(geometry, field.name))
    assert loaded.inlier_matches.dtype == np.int32
    assert loaded.is_verified == geometry.is_verified


def test_geometries_of_earlier_versions_are_read(tmp_path: Path) -> None:
    """Their files do not say why a pair was rejected."""
    write(tmp_path / "verification.h5", {match_key("a", "b"): geometry_to_group(REJECTED)})
    with h5py.File(tmp_path / "verification.h5", "a") as file:
        del file["a/b"].attrs["rejected_because"]
    with H5Reader(tmp_path / "verification.h5") as reader:
        loaded = reader.geometry("a", "b")
    assert not loaded.is_verified and loaded.rejected_because == ""


def test_a_pair_that_was_not_verified_is_named(tmp_path: Path) -> None:
    write(tmp_path / "verification.h5", {match_key("a", "b"): geometry_to_group(VERIFIED)})
    with H5Reader(tmp_path / "verification.h5") as reader, pytest.raises(KeyError, match="no geometry of 'a' and 'c'"):
        reader.geometry("a", "c")


def test_configurations_are_colmaps() -> None:
    colmap = pycolmap.TwoViewGeometryConfiguration.__members__
    assert {name: number for number, name in enumerate(CONFIGURATIONS)} == {name: int(value) for name, value in colmap.items()}


def test_features_are_read_without_their_descriptors(tmp_path: Path) -> None:
    features = make_features(7, scales=True)
    write(tmp_path / "features.h5", {"a.jpg": features_to_group(features)})
    with H5Reader(tmp_path / "features.h5") as reader:
        assert reader.has("a.jpg") and not reader.has("b.jpg")
        whole, part = reader.features("a.jpg"), reader.features("a.jpg", with_descriptors=False)
        np.testing.assert_array_equal(reader.keypoints("a.jpg"), whole.keypoints)
        assert (reader.image_size("a.jpg"), reader.pixel_scale("a.jpg")) == (whole.image_size, whole.pixel_scale)
        assert not reader.keypoints_are_half("a.jpg")
    assert part.descriptors.shape == (7, 0)
    for field in dataclasses.fields(Features):
        if field.name != "descriptors":
            np.testing.assert_array_equal(getattr(part, field.name), getattr(whole, field.name))


# --- hloc's layout --------------------------------------------------------------------------------------------------------


def test_features_have_the_layout_that_hloc_reads(tmp_path: Path) -> None:
    features = make_features(20)
    write(tmp_path / "features.h5", {"db/a.jpg": features_to_group(features), "query/b.jpg": features_to_group(features)})
    with h5py.File(tmp_path / "features.h5", "r") as file:
        group = file["db/a.jpg"]
        assert set(group) == {"keypoints", "scores", "descriptors", "image_size"}
        assert group["keypoints"].dtype == np.float32 and group["keypoints"].shape == (20, 2)
        assert group["keypoints"].attrs["uncertainty"] == 2.5
        assert group["descriptors"].dtype == np.float16 and group["descriptors"].shape == (16, 20)
        assert group["scores"].dtype == np.float16 and group["scores"].shape == (20,)
        assert group["image_size"].dtype == np.int64 and group["image_size"][()].tolist() == [4000, 3000]
        np.testing.assert_array_equal(group["descriptors"][()], features.descriptors.T.astype(np.float16))
        names = set()  # hloc lists the parents of all datasets
        file.visititems(lambda _, item: names.add(item.parent.name.strip("/")) if isinstance(item, h5py.Dataset) else None)
    assert names == {"db/a.jpg", "query/b.jpg"}


def test_matches_have_the_layout_that_hloc_reads(tmp_path: Path) -> None:
    matches = Matches(np.array([[1, 7], [2, 0]], np.int32), np.array([0.5, 0.25], np.float32))
    write(tmp_path / "matches.h5", {match_key("db/a.jpg", "query/b.jpg"): matches_to_group(matches, 4)})
    with h5py.File(tmp_path / "matches.h5", "r") as file:
        group = file["db-a.jpg"]["query-b.jpg"]
        assert set(group) == {"matches0", "matching_scores0"}
        assert group["matches0"][()].tolist() == [-1, 7, 0, -1]
        assert group["matching_scores0"].dtype == np.float16
        assert group["matching_scores0"][()].tolist() == [0, 0.5, 0.25, 0]


def layout_versions(content: bytes) -> set[int]:
    """Versions of all data layout messages (type 8) in the object headers (version 2) of an HDF5 file.

    Source: HDF5 File Format Specification, sections IV.A.1.b and IV.A.2.i.
    """
    versions, start = set(), content.find(b"OHDR")
    while start >= 0:
        flags = content[start + 5]
        size_at = start + 6 + (16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0)
        width = 1 << (flags & 3)
        at = size_at + width
        end = at + int.from_bytes(content[size_at:at], "little")
        while at + 4 <= end:
            kind, size = content[at], int.from_bytes(content[at + 1 : at + 3], "little")
            at += 6 if flags & 0x04 else 4
            if kind == 8:
                versions.add(content[at])
            at += size
        start = content.find(b"OHDR", start + 1)
    return versions


def test_files_can_be_read_by_older_versions_of_hdf5(tmp_path: Path) -> None:
    """HDF5 1.10 to 1.14 know layouts up to version 4; HDF5 2.0 would write version 5."""
    matches = Matches(np.array([[1, 7]], np.int32), np.ones(1, np.float32))
    compressed = write(tmp_path / "matches.h5", {match_key("a", "b"): matches_to_group(matches, 100)})
    plain = write(tmp_path / "features.h5", {"a.jpg": features_to_group(make_features(20))})
    for content in (compressed, plain):
        assert layout_versions(content) and max(layout_versions(content)) <= 4


def write_foreign_features(path: Path, name: str, **datasets: Any) -> None:
    with h5py.File(path, "a") as file:
        group = file.create_group(name)
        for key, value in datasets.items():
            group.create_dataset(key, data=value)


def hloc_features(features: Features, *, scores: str = "keypoint_scores") -> dict[str, np.ndarray]:
    return {
        "keypoints": features.keypoints.astype(np.float16),
        scores: features.scores.astype(np.float16),
        "descriptors": features.descriptors.T.astype(np.float16),
        "image_size": np.array(features.image_size),
    }


@pytest.mark.parametrize("scores", ["scores", "keypoint_scores", "score"])
def test_features_of_hloc_are_read(tmp_path: Path, scores: str) -> None:
    """hloc writes half-precision keypoints, has three names for scores, and may leave out the uncertainty."""
    features = make_features(10)
    write_foreign_features(tmp_path / "hloc.h5", "db/a.jpg", **hloc_features(features, scores=scores))
    with H5Reader(tmp_path / "hloc.h5") as reader:
        loaded = reader.features("db/a.jpg")
        assert reader.keypoints_are_half("db/a.jpg")
    np.testing.assert_array_equal(loaded.keypoints, features.keypoints.astype(np.float16).astype(np.float32))
    np.testing.assert_array_equal(loaded.scores, features.scores.astype(np.float16).astype(np.float32))
    assert loaded.descriptors.shape == (10, 16) and loaded.keypoints.dtype == np.float32
    assert loaded.pixel_scale == 1.0


def test_missing_scores_count_as_one(tmp_path: Path) -> None:
    datasets = hloc_features(make_features(4))
    del datasets["keypoint_scores"]
    write_foreign_features(tmp_path / "hloc.h5", "a.jpg", **datasets)
    with H5Reader(tmp_path / "hloc.h5") as reader:
        assert reader.features("a.jpg").scores.tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("missing", ["keypoints", "image_size"])
def test_a_missing_dataset_is_named(tmp_path: Path, missing: str) -> None:
    datasets = hloc_features(make_features(4))
    del datasets[missing]
    write_foreign_features(tmp_path / "hloc.h5", "a.jpg", **datasets)
    with H5Reader(tmp_path / "hloc.h5") as reader, pytest.raises(KeyError, match=f"hloc.h5: a.jpg has no dataset '{missing}'"):
        reader.features("a.jpg")


@pytest.mark.parametrize(
    "wrong", [{"keypoints": np.zeros((4, 3))}, {"descriptors": np.zeros((4, 16))}, {"keypoint_scores": np.zeros(3)}]
)
def test_datasets_with_shapes_that_do_not_fit_together_are_refused(tmp_path: Path, wrong: dict[str, np.ndarray]) -> None:
    write_foreign_features(tmp_path / "other.h5", "a.jpg", **{**hloc_features(make_features(4)), **wrong})
    with H5Reader(tmp_path / "other.h5") as reader, pytest.raises(ValueError, match=r"other\.h5: a\.jpg .* expected"):
        reader.features("a.jpg")


@pytest.mark.parametrize("separator", ["/", "_"])
@pytest.mark.parametrize("reverse", [False, True])
def test_all_of_hlocs_pair_keys_are_found(tmp_path: Path, separator: str, reverse: bool) -> None:
    first, second = ("query-b.jpg", "db-a.jpg") if reverse else ("db-a.jpg", "query-b.jpg")
    stored = np.array([-1, 3, -1, 1], np.int16)
    write_foreign_features(tmp_path / "hloc.h5", f"{first}{separator}{second}", matches0=stored)
    with H5Reader(tmp_path / "hloc.h5") as reader:
        found = reader.find_matches("db/a.jpg", "query/b.jpg")
    assert found is not None
    assert found.indices.tolist() == ([[1, 3], [3, 1]])  # `stored` is chosen so that both directions have the same indices
    assert found.scores.tolist() == [1, 1]


def test_global_descriptors_are_read_in_the_order_asked_for(tmp_path: Path) -> None:
    for value, name in enumerate(["a.jpg", "b.jpg", "c.jpg"]):
        write_foreign_features(tmp_path / "global.h5", name, global_descriptor=np.full(4, value, np.float16))
    with H5Reader(tmp_path / "global.h5") as reader:
        loaded = reader.global_descriptors(name for name in ("c.jpg", "a.jpg"))
        assert loaded.dtype == np.float32 and loaded[:, 0].tolist() == [2, 0]
        with pytest.raises(KeyError, match=r"no global_descriptor of 1 images, the first is 'd\.jpg'"):
            reader.global_descriptors(["a.jpg", "d.jpg"])


def test_a_mistyped_image_name_is_answered_with_the_closest(tmp_path: Path) -> None:
    write(tmp_path / "features.h5", small_items(5))
    with H5Reader(tmp_path / "features.h5") as reader:
        with pytest.raises(KeyError, match=r"did you mean 'sub/001\.jpg'"):
            reader.features("001.jpg")
        with pytest.raises(KeyError, match="holds 5 images"):
            reader.features("completely different")


def test_names_that_share_a_key_are_refused() -> None:
    check_match_keys(["a/b.jpg", "a.b.jpg", "b/a.jpg", "a/b.jpg"])
    with pytest.raises(ValueError, match=r"'a/b\.jpg' and 'a-b\.jpg' have the same key"):
        check_match_keys(["a/b.jpg", "c.jpg", "a-b.jpg"])


def test_missing_and_damaged_files_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="run the stage"), H5Reader(tmp_path / "features.h5"):
        pass
    (tmp_path / "features.h5").write_bytes(b"no HDF5")
    with (
        pytest.raises(ValueError, match=r"features\.h5 is not a readable HDF5 file .*delete it"),
        H5Reader(tmp_path / "features.h5"),
    ):
        pass


def test_the_stamp_in_files_of_other_programs_is_a_hash_of_the_content(tmp_path: Path) -> None:
    """Features that another program computed again have another stamp, even if their number and size are the same."""
    stamps = []
    for number, seeds in enumerate([(0, 1), (0, 1), (0, 2)]):
        path = tmp_path / str(number) / "hloc.h5"
        path.parent.mkdir()
        for name, seed in zip(("a.jpg", "b.jpg"), seeds, strict=True):
            write_foreign_features(path, name, **hloc_features(make_features(5, seed)))
        with H5Reader(path) as reader:
            stamps.append((reader.fingerprint, reader.stamp("a.jpg"), reader.stamp("b.jpg")))
    assert stamps[0] == stamps[1]
    assert stamps[0][:2] == stamps[2][:2]
    assert stamps[0][2] != stamps[2][2] and "" not in stamps[0]


# --- equal content gives equal bytes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("shard_items", [1, 3, 1000])
@pytest.mark.parametrize("order", ["sorted", "reversed", "shuffled"])
def test_the_merged_file_does_not_depend_on_shards_and_order(tmp_path: Path, shard_items: int, order: str) -> None:
    items = small_items(20)
    reference = write(tmp_path / "reference.h5", items)
    keys = sorted(items, reverse=order == "reversed")
    if order == "shuffled":
        np.random.default_rng(0).shuffle(keys)
    assert write(tmp_path / "features.h5", {key: items[key] for key in keys}, shard_items=shard_items) == reference
    assert not list(tmp_path.glob("features.*/*")) and not list(tmp_path.glob("features/*")), "nothing but the file remains"


def test_a_store_reads_the_stamps_of_a_merged_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "verification.h5", {match_key("a", "b"): geometry_to_group(VERIFIED)})
    read = list[str]()
    attribute = FileAttributes.__getitem__
    monkeypatch.setattr(FileAttributes, "__getitem__", lambda self, name: read.append(name) or attribute(self, name))
    monkeypatch.setattr(GroupFile, "_records", lambda self: pytest.fail("reads all attributes"))
    with ShardStore(tmp_path / "verification.h5", SETTINGS) as store:
        key = match_key("a", "b")
        assert not store.missing({key: f"stamp of {key}"}) and store.missing({key: "another"}) == [key]
    assert read == ["stamp"]


def test_the_merged_file_is_the_same_when_it_grew_in_several_runs(tmp_path: Path) -> None:
    items = small_items(12)
    reference = write(tmp_path / "reference.h5", items)
    time.sleep(1.1)  # HDF5 counts time in seconds: the file must have no time stamps
    for part in (["sub/005.jpg", "sub/001.jpg"], sorted(items)[6:], sorted(items)):
        with ShardStore(tmp_path / "features.h5", SETTINGS, shard_items=2) as store:
            for key in store.missing({key: f"stamp of {key}" for key in part}):
                store.add(key, items[key], f"stamp of {key}")
            store.merge()
    assert (tmp_path / "features.h5").read_bytes() == reference


def test_matches_and_their_attributes_are_the_same_after_several_merges(tmp_path: Path) -> None:
    matches = Matches(np.stack([np.arange(300)] * 2, axis=1).astype(np.int32), np.ones(300, np.float32), 7)
    items = {match_key("a", name): matches_to_group(matches, 400) for name in "bcd"}
    reference = write(tmp_path / "reference.h5", items)
    for key in reversed(items):
        write(tmp_path / "matches.h5", {key: items[key]})
    assert (tmp_path / "matches.h5").read_bytes() == reference


def test_a_later_result_replaces_an_earlier_one(tmp_path: Path) -> None:
    path = tmp_path / "features.h5"
    for seed in (1, 2):
        with ShardStore(path, SETTINGS, shard_items=1) as store:
            store.add("a.jpg", features_to_group(make_features(3, seed=10 * seed)), "old")
            store.add("a.jpg", features_to_group(make_features(3, seed)), f"stamp {seed}")
            if seed == 2:
                store.merge()
    with H5Reader(path) as reader:
        np.testing.assert_array_equal(reader.features("a.jpg").keypoints, make_features(3, seed=2).keypoints)
        assert reader.stamp("a.jpg") == "stamp 2"


def test_dropped_results_are_deleted_at_the_merge(tmp_path: Path) -> None:
    items = small_items(6)
    rest = {key: item for key, item in items.items() if key != "sub/003.jpg"}
    reference = write(tmp_path / "reference.h5", rest)
    write(tmp_path / "features.h5", items)
    with ShardStore(tmp_path / "features.h5", SETTINGS) as store:
        store.merge(drop=["sub/003.jpg", "never there"])
        assert "sub/003.jpg" not in store.stamps
    assert (tmp_path / "features.h5").read_bytes() == reference


def test_a_merge_without_new_results_does_not_write_the_file(tmp_path: Path) -> None:
    write(tmp_path / "features.h5", small_items(3))
    before = (tmp_path / "features.h5").stat().st_mtime_ns
    write(tmp_path / "features.h5", {})
    assert (tmp_path / "features.h5").stat().st_mtime_ns == before


def test_a_stage_without_results_writes_an_empty_file(tmp_path: Path) -> None:
    write(tmp_path / "features.h5", {})
    with H5Reader(tmp_path / "features.h5") as reader:
        assert reader.names() == []


# --- interruptions --------------------------------------------------------------------------------------------------------


def test_an_error_or_ctrl_c_keeps_all_added_results(tmp_path: Path) -> None:
    items = small_items(5)
    for error in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(error), ShardStore(tmp_path / f"{error.__name__}.h5", SETTINGS) as store:
            for key, item in items.items():
                store.add(key, item, "stamp")
            raise error
        with ShardStore(tmp_path / f"{error.__name__}.h5", SETTINGS) as store:
            assert store.missing(dict.fromkeys([*items, "new.jpg"], "stamp")) == ["new.jpg"]
            assert store.missing({"sub/000.jpg": "other stamp"}) == ["sub/000.jpg"]


def test_results_are_on_disk_after_a_number_of_items_or_seconds(tmp_path: Path) -> None:
    def num_safe(**options: Any) -> int:
        with ShardStore(tmp_path / f"{next(numbers)}.h5", SETTINGS, **options) as store:
            for key, item in small_items(5).items():
                store.add(key, item, "stamp")
            return 5 - len(store._buffer)

    numbers = itertools.count()
    assert num_safe(shard_items=2, shard_seconds=100) == 4
    assert num_safe(shard_items=100, shard_seconds=100) == 0
    assert num_safe(shard_items=100, shard_seconds=-1) == 5


CHILD = """
import sys
from pathlib import Path
sys.path[:0] = {paths!r}
from test_storage import SETTINGS, ShardStore, small_items
items = small_items(60)
with ShardStore(Path(sys.argv[1]), SETTINGS, shard_items=3) as store:
    todo = store.missing({{key: f"stamp of {{key}}" for key in items}})
    print(len(todo), flush=True)
    for key in todo:
        store.add(key, items[key], f"stamp of {{key}}")
    store.merge()
"""


def test_a_killed_process_loses_at_most_one_shard_and_the_final_file_is_the_same(tmp_path: Path) -> None:
    reference = write(tmp_path / "reference.h5", small_items(60))
    code = CHILD.format(paths=[str(Path(__file__).parent), str(Path(__file__).parents[1])])
    rng, left = np.random.default_rng(0), 60
    for delay_s in rng.uniform(0, 0.08, 10):
        child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "features.h5")], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        todo = int(child.stdout.readline())  # from now on it writes
        assert todo <= left, "what was there stays there"
        left = todo
        time.sleep(delay_s)
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "features.h5")], check=True, capture_output=True)
    assert (tmp_path / "features.h5").read_bytes() == reference
    assert sorted(path.name for path in tmp_path.iterdir()) == ["features.h5", "reference.h5"]


def test_several_writers_at_once_lose_nothing_and_a_later_store_merges_all(tmp_path: Path) -> None:
    items = small_items(9)
    reference = write(tmp_path / "reference.h5", items)
    path = tmp_path / "features.h5"
    with ShardStore(path, SETTINGS, shard_items=1, writer="a") as a, ShardStore(path, SETTINGS, shard_items=1, writer="b-2") as b:
        for number, (key, item) in enumerate(list(items.items())[:8]):
            (a, b)[number % 2].add(key, item, f"stamp of {key}")
        for store in (a, b):
            store.merge()
    assert not path.exists(), "writers do not merge: another one may still work"
    assert len([*tmp_path.glob("features.h5.shards/*-b-2.h5")]) == 4
    assert complete(path, items) == (["sub/008.jpg"], reference)


def test_a_writer_keeps_the_half_written_files_of_others(tmp_path: Path) -> None:
    shards = tmp_path / "features.h5.shards"
    shards.mkdir()
    ours, theirs = shards / "000001-a.h5.12.tmp", shards / "000001-b.h5.13.tmp"
    for path in (ours, theirs):
        path.write_bytes(b"half a file")
    with ShardStore(tmp_path / "features.h5", SETTINGS, writer="a"):
        assert not ours.exists() and theirs.exists()
    write(tmp_path / "features.h5", small_items(1))
    assert not theirs.exists()


def test_a_result_that_is_newer_than_those_of_the_writers_replaces_them(tmp_path: Path) -> None:
    path = tmp_path / "features.h5"
    for number, writer in enumerate(["", "z", "", "a"]):
        with ShardStore(path, SETTINGS, writer=writer) as store:
            store.add("a.jpg", features_to_group(make_features(3, seed=number)), f"stamp {number}")
    with ShardStore(path, SETTINGS) as store:
        assert store.stamps == {"a.jpg": "stamp 3"}


@pytest.mark.parametrize("writer", ["a/b", "a.h5", "x" * 65, "ä"])
def test_a_writer_with_another_name_is_refused(tmp_path: Path, writer: str) -> None:
    with pytest.raises(ValueError, match="is not the name of a writer"):
        ShardStore(tmp_path / "features.h5", SETTINGS, writer=writer)


def stop_at(monkeypatch: pytest.MonkeyPatch, target: Any, attribute: str, call: int) -> None:
    """Makes the call number `call` raise KeyboardInterrupt."""
    original, calls = getattr(target, attribute), itertools.count(1)

    def interrupted(*arguments: Any, **keywords: Any) -> Any:
        if next(calls) == call:
            raise KeyboardInterrupt
        return original(*arguments, **keywords)

    monkeypatch.setattr(target, attribute, interrupted)


@pytest.mark.parametrize("call", range(1, 9))
@pytest.mark.parametrize(
    "target, attribute", [(Path, "replace"), (os, "fsync"), (Path, "unlink"), (h5py.Group, "create_dataset")]
)
def test_ctrl_c_at_any_step_leaves_a_state_from_which_the_next_run_completes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: Any, attribute: str, call: int
) -> None:
    items = small_items(7)
    reference = write(tmp_path / "reference.h5", items)
    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        stop_at(patch, target, attribute, call)
        write(tmp_path / "features.h5", items, shard_items=2)
    assert write(tmp_path / "features.h5", items, shard_items=2) == reference
    assert sorted(path.name for path in tmp_path.iterdir()) == ["features.h5", "reference.h5"]


@pytest.mark.parametrize("shard_items", [1, 10])
def test_a_full_disk_raises_an_error_and_the_next_run_completes(tmp_path: Path, shard_items: int) -> None:
    """Files can have at most 600 kB: a shard with one item fits, the merged file does not."""
    items = {f"{seed}.jpg": features_to_group(make_features(2000, seed, dimensions=128)) for seed in range(3)}
    reference = write(tmp_path / "reference.h5", items)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, hard))
    try:
        with pytest.raises(OSError, match=r"features\.h5.* could not be written, is the disk full\?"):
            write(tmp_path / "features.h5", items, shard_items=shard_items)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    if shard_items == 1:
        with ShardStore(tmp_path / "features.h5", SETTINGS) as store:
            assert sorted(store.stamps) == sorted(items), "nothing is lost"
    assert write(tmp_path / "features.h5", items) == reference


def test_more_shards_are_merged_than_files_can_be_open(tmp_path: Path) -> None:
    items = small_items(120)
    reference = write(tmp_path / "reference.h5", items)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/dev/fd")) + 60, hard))  # noqa: PTH208
    try:
        assert write(tmp_path / "features.h5", items, shard_items=1) == reference
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def half_done(tmp_path: Path) -> Iterator[tuple[Path, list[Path]]]:
    """A file with three items, and the two shards with four more items that a killed process left."""
    items = small_items(7)
    write(tmp_path / "features.h5", dict(itertools.islice(items.items(), 3)))
    with ShardStore(tmp_path / "features.h5", SETTINGS, shard_items=2) as store:
        for key in list(items)[3:]:
            store.add(key, items[key], f"stamp of {key}")
    shards = sorted(path for path in tmp_path.rglob("*.h5") if path.name != "features.h5")
    assert len(shards) == 2
    yield tmp_path / "features.h5", shards


def complete(path: Path, items: dict[str, GroupData]) -> tuple[list[str], bytes]:
    """Adds the missing items; returns their keys and the bytes of the merged file."""
    with ShardStore(path, SETTINGS) as store:
        todo = store.missing({key: f"stamp of {key}" for key in items})
        for key in todo:
            store.add(key, items[key], f"stamp of {key}")
        store.merge()
    return todo, path.read_bytes()


def test_half_written_files_of_a_killed_process_are_removed(half_done: tuple[Path, list[Path]], tmp_path: Path) -> None:
    path, shards = half_done
    stale = [path.with_name(f"{path.name}.12.tmp"), shards[0].with_name("000007.h5.12.tmp")]
    for file in stale:
        file.write_bytes(b"half a file")
    todo, content = complete(path, small_items(7))
    assert todo == [] and content == write(tmp_path / "reference.h5", small_items(7))
    assert not any(file.exists() for file in stale)


def damaged(content: bytes, kind: str, seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    if kind == "empty":
        return b""
    if kind == "cut":
        return content[: rng.integers(1, len(content))]
    changed = np.frombuffer(content, np.uint8).copy()
    if kind == "zeros":  # blocks that were never written to disk
        start = 512 * rng.integers(0, len(content) // 512)
        changed[start : start + 512] = 0
    else:
        changed[rng.integers(0, len(content), 20)] ^= rng.integers(1, 256, 20, dtype=np.uint8)
    return changed.tobytes()


@pytest.mark.parametrize("kind, seed", [("empty", 0), *((kind, seed) for kind in ("cut", "zeros", "bits") for seed in range(8))])
def test_damaged_shards_are_computed_again(
    half_done: tuple[Path, list[Path]], tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str, seed: int
) -> None:
    path, shards = half_done
    shards[0].write_bytes(damaged(shards[0].read_bytes(), kind, seed))
    with caplog.at_level(logging.WARNING):
        todo, content = complete(path, small_items(7))
    if kind in ("empty", "cut"):
        assert todo == ["sub/003.jpg", "sub/004.jpg"]
        assert f"{shards[0]} is damaged" in caplog.text and "computed again" in caplog.text
    if todo:
        assert content == write(tmp_path / "reference.h5", small_items(7))
    else:  # HDF5 cannot notice damage in the numbers or between them
        assert sorted(_names(path)) == sorted(small_items(7))


def _names(path: Path) -> Iterable[str]:
    with H5Reader(path) as reader:
        return reader.names()


@pytest.mark.parametrize("kind, seed", [("empty", 0), *((kind, seed) for kind in ("cut", "zeros", "bits") for seed in range(8))])
def test_a_damaged_merged_file_raises_an_error_that_says_what_to_do(tmp_path: Path, kind: str, seed: int) -> None:
    path = tmp_path / "features.h5"
    path.write_bytes(damaged(write(path, small_items(30)), kind, seed))
    try:
        complete(path, small_items(31))
    except ValueError as error:
        assert str(path) in str(error) and "delete it to compute it again" in str(error)
    else:
        assert kind in ("zeros", "bits"), "damage in the numbers or between them"


def test_a_folder_with_the_name_of_the_file_is_not_touched(tmp_path: Path) -> None:
    """For example the folder `photos` of extract_features("photos", "photos.h5")."""
    photos = tmp_path / "photos"
    photos.mkdir()
    others = {"a.jpg": b"photo", "000000.h5": b"someone's", "notes.tmp": b"mine"}
    for name, content in others.items():
        (photos / name).write_bytes(content)
    write(tmp_path / "photos.h5", small_items(3), shard_items=1, if_settings_changed="recompute")
    assert {path.name: path.read_bytes() for path in photos.iterdir()} == others


@pytest.mark.parametrize("name", ["features", "features.hdf5", "run.v2.h5"])
def test_the_file_may_have_any_name(tmp_path: Path, name: str) -> None:
    reference = write(tmp_path / "reference.h5", small_items(5))
    (tmp_path / f"{name}.12.tmp").write_bytes(b"half a file")
    assert write(tmp_path / name, small_items(5), shard_items=2) == reference
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["reference.h5", name])


# --- settings -------------------------------------------------------------------------------------------------------------


def test_the_file_holds_its_settings(tmp_path: Path) -> None:
    write(tmp_path / "features.h5", small_items(1))
    with H5Reader(tmp_path / "features.h5") as reader:
        assert reader.fingerprint == fingerprint(SETTINGS)
        assert reader.settings == SETTINGS


def test_the_fingerprint_depends_on_values_and_not_on_their_order() -> None:
    assert fingerprint({"a": 1, "b": {"c": 2, "d": 3}}) == fingerprint({"b": {"d": 3, "c": 2}, "a": 1})
    assert len({fingerprint(settings) for settings in ({}, {"a": 1}, {"a": 2}, {"a": None}, {"a": "1"})}) == 5


def test_tuples_in_settings_equal_the_lists_that_json_makes_of_them(tmp_path: Path) -> None:
    for _ in range(2):
        write(tmp_path / "features.h5", small_items(1), {"size": (1, 2)})


CHANGED = {**SETTINGS, "options": {"max_keypoints": 200, "nms": 3}}


@pytest.mark.parametrize("merged", [True, False])
def test_changed_settings_are_refused_with_the_values_that_differ(tmp_path: Path, merged: bool) -> None:
    with ShardStore(tmp_path / "features.h5", SETTINGS) as store:
        store.add("a.jpg", features_to_group(make_features(3)), "stamp")
        if merged:
            store.merge()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.h5")}
    with pytest.raises(SettingsChanged, match=r"\(options\.max_keypoints: 100 -> 200\).*recompute"):
        write(tmp_path / "features.h5", small_items(1), CHANGED)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.h5")} == before
    write(tmp_path / "features.h5", {})


def test_recompute_deletes_all_results_with_the_old_settings(half_done: tuple[Path, list[Path]], tmp_path: Path) -> None:
    """It deletes those in the merged file and those in the shards of an interrupted run."""
    path, _ = half_done
    with ShardStore(path, CHANGED, if_settings_changed="recompute") as store:
        assert store.stamps == {}
    assert write(path, small_items(2), CHANGED) == write(tmp_path / "reference.h5", small_items(2), CHANGED)


def test_files_of_other_programs_are_never_overwritten(tmp_path: Path) -> None:
    write_foreign_features(tmp_path / "features.h5", "a.jpg", **hloc_features(make_features(3)))
    before = (tmp_path / "features.h5").read_bytes()
    for policy in ("refuse", "recompute"):
        with pytest.raises(SettingsChanged, match="was not written by sfm_lightglue"):
            write(tmp_path / "features.h5", small_items(1), if_settings_changed=policy)
    assert (tmp_path / "features.h5").read_bytes() == before


def test_changes_are_described_with_their_full_keys() -> None:
    old = {"a": 1, "b": {"c": 2, "d": 3}, "gone": True}
    new = {"a": 1, "b": {"c": 2, "d": 4}, "new": [1]}
    assert describe_changes(old, new) == "b.d: 3 -> 4, gone: True -> None, new: None -> [1]"
    assert describe_changes(old, old) == ""
    others = [{"class": kind, "options": {kind: 1}, "weights": [kind]} for kind in "xy"]
    assert describe_changes(*others) == "class: x -> y"  # not all options of both


def test_what_a_stage_found_in_its_input_is_described_without_its_values() -> None:
    found = {"lenses": {"1600 x 1200 px": {"model": "RADIAL", "params": [1.0]}}, "options": {"seed": 0}}
    assert describe_changes({"options": {"seed": 1}}, found) == "other lenses, or none, are found, options.seed: 1 -> 0"
    assert describe_changes(found, found) == ""
    assert describe_changes({"options": {"lenses": 1}}, {"options": {"lenses": 2}}) == "options.lenses: 1 -> 2"
