"""HDF5 files of other programs cannot read other files, exhaust the memory, or bring numbers that end COLMAP's process."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image as PILImage

from sfm_lightglue.features.imported import ImportedExtractor, ImportedOptions, check_has_descriptors
from sfm_lightglue.features.stage import extract_features
from sfm_lightglue.matches.imported import ImportedMatcher
from sfm_lightglue.matches.imported import ImportedOptions as ImportedMatchesOptions
from sfm_lightglue.matches.nearest_neighbor import NearestNeighborMatcher, NearestNeighborOptions
from sfm_lightglue.pairs.collection import Collection
from sfm_lightglue.products import Features, Image
from sfm_lightglue.storage import H5Reader, RefusedFile, ShardStore, features_to_group, safety
from sfm_lightglue.storage.values import check_features

SECRET = b"root:x:0:0:" * 20
COUNT = 5
SIZE = (64, 48)


def datasets(**changes: Any) -> dict[str, Any]:
    """Valid features of `COUNT` keypoints in hloc's layout, with changes; None leaves a dataset out."""
    generator = np.random.default_rng(0)
    valid = {
        "keypoints": generator.uniform(0, 47, (COUNT, 2)).astype(np.float32),
        "scores": np.ones(COUNT, np.float32),
        "descriptors": np.ones((4, COUNT), np.float32),
        "image_size": np.array(SIZE),
    }
    return {key: value for key, value in {**valid, **changes}.items() if value is not None}


def write_features(path: Path, name: str = "a.png", *, attributes: dict[str, Any] | None = None, **changes: Any) -> Path:
    with h5py.File(path, "a") as file:
        group = file.create_group(name)
        for key, value in datasets(**changes).items():
            group.create_dataset(key, data=value)
        group["keypoints"].attrs.update(attributes or {})
    return path


def write_matches(path: Path, key: str = "a.png/b.png", **arrays: Any) -> Path:
    with h5py.File(path, "a") as file:
        for name, value in arrays.items():
            file.create_dataset(f"{key}/{name}", data=value)
    return path


def image(name: str = "a.png") -> Image:
    return Image(name, np.zeros((SIZE[1], SIZE[0], 3), np.uint8))


def extractor(path: Path) -> ImportedExtractor:
    return ImportedExtractor.create(ImportedOptions("imported", str(path)), "cpu")


def matcher(path: Path, min_score: float | None = None) -> ImportedMatcher:
    return ImportedMatcher.create(ImportedMatchesOptions("imported", str(path), min_score), "cpu")


def plain_features(name: str, count: int = COUNT, size: int = 4) -> Features:
    return Features(
        np.ones((count, 2), np.float32), np.ones(count, np.float32), np.ones((count, size), np.float32), SIZE, name=name
    )


# --- links and storage in other files -------------------------------------------------------------------------------------


def external_storage(group: h5py.Group, secret: Path) -> None:
    del group["keypoints"]
    group.create_dataset("keypoints", (COUNT, 2), "f4", external=[(str(secret), 0, COUNT * 8)])


def external_link(group: h5py.Group, secret: Path) -> None:
    del group["keypoints"]
    group["keypoints"] = h5py.ExternalLink(str(secret.with_name("other.h5")), "/secret")


def external_link_to_the_image(group: h5py.Group, secret: Path) -> None:
    file, name = group.file, group.name
    del file[name]
    file[name] = h5py.ExternalLink(str(secret.with_name("other.h5")), "/image")


def soft_link(group: h5py.Group, secret: Path) -> None:
    group.file["elsewhere"] = group["keypoints"][()]
    del group["keypoints"]
    group["keypoints"] = h5py.SoftLink("/elsewhere")


def virtual_dataset(group: h5py.Group, secret: Path) -> None:
    del group["keypoints"]
    layout = h5py.VirtualLayout((COUNT, 2), "f4")
    layout[:] = h5py.VirtualSource(str(secret.with_name("other.h5")), "secret", (COUNT, 2))
    group.create_virtual_dataset("keypoints", layout)


ATTACKS = [external_storage, external_link, external_link_to_the_image, soft_link, virtual_dataset]


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file of bytes, and an HDF5 file, that a features file wants to read."""
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["secret"] = np.zeros((COUNT, 2), np.float32)
        for key, value in datasets().items():
            file[f"image/{key}"] = value
    (tmp_path / "secret").write_bytes(SECRET)
    return tmp_path / "secret"


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("forged", [False, True], ids=["foreign", "forged"])
def test_no_other_file_is_read(tmp_path: Path, secret: Path, attack: Callable[[h5py.Group, Path], None], forged: bool) -> None:
    """Also if the file claims to be ours. The message names the file and the key."""
    path = write_features(tmp_path / "feats.h5")
    with h5py.File(path, "a") as file:
        attack(file["a.png"], secret)
        if forged:
            file.attrs["fingerprint"] = "abc"
            file.attrs["settings"] = "{}"
    refused = pytest.raises(RefusedFile, match=r"feats\.h5: 'a\.png(/keypoints)?' is ")
    with H5Reader(path) as reader:
        with refused:
            reader.features("a.png")
        with refused:
            reader.keypoints("a.png")
        with refused:
            reader.stamp("a.png")
        if "image" in attack.__name__:
            with refused:
                reader.names()
            with refused:
                reader.has("a.png")
    with refused:
        extractor(path)


def test_a_forged_shard_is_not_merged(tmp_path: Path, secret: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The shards of a run lie in its output folder, where other programs can write. Earlier versions wrote such shards."""
    with ShardStore(tmp_path / "other" / "features.h5", {}) as store:
        store.add("a.png", features_to_group(plain_features("a.png")), "")
        store.merge()
    shard = tmp_path / "features.h5.shards" / "000000.h5"
    shard.parent.mkdir()
    store.path.rename(shard)
    with h5py.File(shard, "a") as file:
        external_storage(file["a.png"], secret)
    with ShardStore(tmp_path / "features.h5", {}) as store:
        assert store.missing({"a.png": ""}) == ["a.png"]
    assert "is stored in another file" in caplog.text and "computed again" in caplog.text


@pytest.mark.parametrize("block", ["about", "0.d1", "index.high"])
def test_a_forged_segment_reads_no_other_file(tmp_path: Path, secret: Path, block: str) -> None:
    path = tmp_path / "features.h5"
    features = plain_features("a.png")
    with ShardStore(path, {}) as store:
        store.add("a.png", features_to_group(features), "")
        store.flush()
    (shard,) = store.shards.glob("*.h5")
    with h5py.File(shard, "a") as file:
        size = file[block].size * file[block].dtype.itemsize
        dtype = file[block].dtype
        del file[block]
        file.create_dataset(block, (size // dtype.itemsize,), dtype, external=[(str(secret), 0, size)])
    with ShardStore(path, {}) as store:
        if not store.missing({"a.png": ""}):  # the block itself is still in the file
            store.merge()
            with H5Reader(path) as reader:
                np.testing.assert_array_equal(reader.keypoints("a.png"), features.keypoints)
        else:
            assert block == "about"


def test_groups_that_contain_themselves_end(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "loop.h5", "w") as file:
        group = file.create_group("a")
        group["b"] = group
    with H5Reader(tmp_path / "loop.h5") as reader, pytest.raises(RefusedFile, match="contains itself"):
        reader.names()


def test_texts_beside_the_numbers_do_not_matter(tmp_path: Path) -> None:
    path = write_features(tmp_path / "feats.h5", note="made by another program")
    assert len(extractor(path)(image())) == COUNT
    with H5Reader(path) as reader:
        assert reader.stamp("a.png")


@pytest.mark.parametrize("name", ["keypoints", "0"])
def test_datasets_outside_the_groups_are_no_image(tmp_path: Path, name: str) -> None:
    path = write_features(tmp_path / "feats.h5")
    with h5py.File(path, "a") as file:
        file[name] = np.ones((3, 2))
    with H5Reader(path) as reader:
        assert reader.names() == ["a.png"]
    assert len(extractor(path)(image())) == COUNT
    check_has_descriptors(path)


@pytest.mark.parametrize("value", ["six", 3.5, 12, [1, 2], float("nan"), float("inf"), h5py.Empty("f")])
def test_attributes_that_are_no_numbers_are_named_with_file_and_key(tmp_path: Path, value: Any) -> None:
    features, matches = write_features(tmp_path / "feats.h5"), write_matches(tmp_path / "own.h5", matches0=np.arange(COUNT))
    for path, key, name in ((features, "a.png", "orientation"), (matches, "a.png/b.png", "stop_layer")):
        with h5py.File(path, "a") as file:
            file[key].attrs[name] = value
    with H5Reader(features) as reader:
        for read in (reader.features, reader.orientation):
            with pytest.raises(ValueError, match=r"feats\.h5: a\.png: orientation"):
                read("a.png")
        with pytest.raises(KeyError, match=r"feats\.h5 has no features of image 'b\.png'"):
            reader.orientation("b.png")
    if value != 12:
        with pytest.raises(ValueError, match=r"own\.h5: a\.png/b\.png: stop_layer is .*, expected a whole number"):
            matcher(matches)(plain_features("a.png"), plain_features("b.png"))


# --- sizes ----------------------------------------------------------------------------------------------------------------


def test_a_huge_declared_array_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "feats.h5"
    with h5py.File(path, "w") as file:
        group = file.create_group("a.png")
        for key, value in datasets(keypoints=None).items():
            group[key] = value
        group.create_dataset("keypoints", (10**12, 2), "f4", chunks=(1024, 2))
    assert path.stat().st_size < 10_000
    with pytest.raises(RefusedFile, match=r"'a\.png/keypoints' declares an array of shape \(1000000000000, 2\), 8000\.0 GB"):
        extractor(path)


def test_a_compression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The chunk declares 4 kB. HDF5 would inflate all of it, here 64 MB."""
    monkeypatch.setattr(safety, "UNCHECKED_BYTES", 10_000_000)
    with h5py.File(tmp_path / "feats.h5", "w") as file:
        keypoints = file.create_dataset("a.png/keypoints", (20_000, 2), "f4", chunks=(20_000, 2), compression="gzip")
        keypoints.id.write_direct_chunk((0, 0), zlib.compress(bytes(64_000_000)))
    with pytest.raises(RefusedFile, match="inflates beyond its 160000 bytes"):
        extractor(tmp_path / "feats.h5")


def test_ordinary_compression_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safety, "UNCHECKED_BYTES", 0)  # every chunk is inflated under control
    path = tmp_path / "feats.h5"
    with h5py.File(path, "w") as file:
        for key, value in datasets().items():
            file.create_dataset(f"a.png/{key}", data=value, compression="gzip", shuffle=True, fletcher32=True)
    np.testing.assert_array_equal(extractor(path)(image()).keypoints, datasets()["keypoints"])


def test_several_compressions_are_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "feats.h5", "w") as file:
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_chunk((COUNT, 2))
        plist.set_deflate(1)
        plist.set_deflate(1)
        space = h5py.h5s.create_simple((COUNT, 2))
        h5py.h5d.create(file.create_group("a.png").id, b"keypoints", h5py.h5t.NATIVE_FLOAT, space, plist)
    with pytest.raises(RefusedFile, match="compressed in several steps"):
        extractor(tmp_path / "feats.h5")


# --- features -------------------------------------------------------------------------------------------------------------

NAN, INF = float("nan"), float("inf")


def with_value(key: str, value: float) -> dict[str, np.ndarray]:
    array = np.array(datasets().get(key, np.ones(COUNT)), np.float64)
    array.flat[1] = value
    return {key: array}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (with_value("keypoints", NAN), "keypoints outside the image: NaN"),
        (with_value("keypoints", 1e30), "keypoints outside the image"),
        (with_value("keypoints", 1e300), "keypoints outside the image"),
        (with_value("keypoints", -3.0), "keypoints outside the image"),
        (with_value("keypoints", 50.0), "keypoints outside the image"),
        (with_value("scores", NAN), "scores that are not finite"),
        (with_value("descriptors", INF), "descriptors that are not finite"),
        (with_value("scales", 0.0) | with_value("oris", 1.0), "positive diameters"),
        (with_value("scales", 1.0) | with_value("oris", NAN), "orientations that are not finite"),
        ({"image_size": np.array([0, 48])}, r"image_size \(0, 48\)"),
        ({"image_size": np.array([2**40, 48])}, "image_size"),
        ({"image_size": np.array([NAN, 48])}, "whole numbers"),
        ({"image_size": np.array([64, 48, 3])}, "whole numbers"),
        ({"attributes": {"uncertainty": 0.0}}, "uncertainty=0.0"),
        ({"attributes": {"uncertainty": NAN}}, "uncertainty=nan"),
        ({"attributes": {"uncertainty": "much"}}, "uncertainty='much'"),
    ],
)
def test_numbers_that_are_not_valid_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = write_features(tmp_path / "feats.h5", **changes)
    with pytest.raises(ValueError, match=rf"feats\.h5: a\.png has .*{message}"):
        extractor(path)(image())
    with pytest.raises(ValueError, match=message), H5Reader(path) as reader:
        reader.features("a.png")


def test_a_keypoint_far_away_in_a_file_that_claims_to_be_ours_does_not_reach_colmap(tmp_path: Path) -> None:
    path = write_features(tmp_path / "features.h5", **with_value("keypoints", 1e30))
    with h5py.File(path, "a") as file:
        file.attrs["fingerprint"] = "abc"
    with H5Reader(path) as reader, pytest.raises(ValueError, match="outside the image"):
        reader.keypoints("a.png")


def test_a_keypoint_just_outside_is_put_onto_the_edge(tmp_path: Path) -> None:
    keypoints = datasets()["keypoints"]
    keypoints[0], keypoints[1] = (-1.2, 3.0), (64.3, 3.0)
    found = extractor(write_features(tmp_path / "feats.h5", keypoints=keypoints))(image()).keypoints
    assert found[:2].tolist() == [[-0.5, 3.0], [63.5, 3.0]]
    np.testing.assert_array_equal(found[2:], keypoints[2:])


def test_a_bad_photo_is_skipped_and_the_others_are_used(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("a.png", "b.png"):
        PILImage.new("RGB", SIZE).save(photos / name)
    path = write_features(write_features(tmp_path / "feats.h5", "a.png", **with_value("keypoints", NAN)), "b.png")
    report = extract_features(photos, tmp_path / "features.h5", extractor(path))
    assert report.num_images == 1
    assert "keypoints outside the image: NaN" in report.skipped["a.png"]


def test_features_that_hloc_hands_over_are_checked() -> None:
    features = plain_features("a.png")
    check_features(features, "image 0")
    features.keypoints[2] = 1e30
    with pytest.raises(ValueError, match="image 0 has keypoints outside"):
        check_features(features, "image 0")


# --- keypoints alone ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [2, 4, 6])
def test_keypoints_alone_are_enough_for_imported_matches(tmp_path: Path, columns: int) -> None:
    """COLMAP's keypoints have 4 or 6 columns. The size comes from the photo."""
    keypoints = np.random.default_rng(1).uniform(1, 40, (COUNT, columns)).astype(np.float32)
    path = write_features(tmp_path / "own.h5", keypoints=keypoints, scores=None, descriptors=None, image_size=None)
    found = extractor(path)(image())
    np.testing.assert_array_equal(found.keypoints, keypoints[:, :2])
    assert found.descriptors.shape == (COUNT, 0) and found.image_size == SIZE and found.scores.tolist() == [1] * COUNT
    with ShardStore(tmp_path / "features.h5", {}) as store:
        store.add("a.png", features_to_group(found), "")
        store.merge()
    with H5Reader(tmp_path / "features.h5") as reader:
        assert reader.features("a.png").descriptors.shape == (COUNT, 0)


def test_keypoints_without_descriptors_are_told_early_and_late(tmp_path: Path) -> None:
    path = write_features(tmp_path / "own.h5", descriptors=None)
    with pytest.raises(ValueError, match=r"own\.h5 has no descriptors of 1 images, such as 'a\.png': .* matches=imported"):
        check_has_descriptors(path)
    check_has_descriptors(write_features(tmp_path / "whole.h5"))
    compare = NearestNeighborMatcher(NearestNeighborOptions("nearest_neighbor", True, None, None))
    with pytest.raises(ValueError, match="no descriptors to compare"):
        compare(plain_features("a.png", size=0), plain_features("b.png", size=0))
    with Collection(["a.png"], features=path) as collection, pytest.raises(ValueError, match="which these pairs need"):
        collection.descriptors("a.png")


# --- matches --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"matches0": np.array([2**32 + 3, -1, -1, -1, -1])}, "match indices"),
        ({"matches0": np.array([-2, -1, -1, -1, -1])}, "rounding to int16"),
        ({"matches0": np.array([1.0, -1, -1, -1, -1])}, "expected (integers|whole numbers)"),
        ({"matches0": np.array([1, 1, -1, -1, -1])}, "keypoint 1 of image 1 several times"),
        ({"matches0": np.array([7, -1, -1, -1, -1])}, r"largest indices \[0, 7\]"),
        ({"matches0": np.array([[1, 2]])}, "expected (integers|whole numbers)"),
        ({"matches0": np.array([1]), "matching_scores0": np.array([NAN])}, "matching scores NaN"),
        ({"matches0": np.array([1]), "matching_scores0": np.array([7.0])}, "matching scores 7.0 to 7.0, expected 0..1"),
        ({"matches0": np.array([1]), "matching_scores0": np.array([1.0, 1.0])}, "shapes"),
        ({"matches": np.array([[0, 1], [0, 2]])}, "keypoint 0 of image 0 several times"),
        ({"matches": np.array([[0, 1], [2, 1]])}, "keypoint 1 of image 1 several times"),
        ({"matches": np.array([[0, -1]])}, "match indices from -1 to 0"),
        ({"matches": np.array([[0, 1, 2]])}, "expected (integers|whole numbers)"),
        ({"matches": np.array([[0, 1]]), "scores": np.array([INF])}, "matching scores"),
    ],
)
def test_matches_that_are_not_valid_are_refused(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    path = write_matches(tmp_path / "own.h5", **arrays)
    with pytest.raises(ValueError, match=message):
        matcher(path, min_score=0.5)(plain_features("a.png"), plain_features("b.png"))


@pytest.mark.parametrize("scores", ["scores", "matching_scores", None])
@pytest.mark.parametrize("flipped", [False, True])
def test_lists_of_index_pairs_are_matches(tmp_path: Path, scores: str | None, flipped: bool) -> None:
    rows = np.array([[3, 0], [1, 4], [2, 2]])
    values = {} if scores is None else {scores: np.array([0.3, 0.1, 0.2])}
    key = "b.png_a.png" if flipped else "a.png/b.png"
    found = matcher(write_matches(tmp_path / "own.h5", key, matches=rows, **values))(
        plain_features("a.png"), plain_features("b.png")
    )
    expected = [[0, 3], [2, 2], [4, 1]] if flipped else [[1, 4], [2, 2], [3, 0]]
    assert found.indices.tolist() == expected and found.indices.dtype == np.int32
    ordered = [0.3, 0.2, 0.1] if flipped else [0.1, 0.2, 0.3]
    np.testing.assert_allclose(found.scores, [1, 1, 1] if scores is None else ordered)


# --- global descriptors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("second", "message"), [(np.array([1.0, NAN, 2]), "not finite"), (np.ones(4), "shape"), (np.ones((3, 3)), "shape")]
)
def test_global_descriptors_are_checked(tmp_path: Path, second: np.ndarray, message: str) -> None:
    with h5py.File(tmp_path / "global.h5", "w") as file:
        file["a.png/global_descriptor"], file["b.png/global_descriptor"] = np.ones(3), second
    expected = pytest.raises(ValueError, match=rf"global\.h5: b\.png has a global_descriptor .*{message}")
    with expected, Collection(["a.png", "b.png"]) as collection:
        collection.global_descriptors(tmp_path / "global.h5")


# --- damaged groups and attributes -----------------------------------------------------------------------------------------


def test_a_damaged_group_is_told_with_the_path_by_each_function(tmp_path: Path) -> None:
    """The bytes of the names are overwritten, as by a bad disk."""
    path = tmp_path / "features.h5"
    write_features(path, "a.jpg")
    content = path.read_bytes()
    path.write_bytes(content.replace(b"HEAP", b"JUNK").replace(b"SNOD", b"JUNK"))
    for read in ("features", "bare_features", "image_size", "num_keypoints", "orientation", "stamp", "has"):
        with pytest.raises(ValueError, match=r"features\.h5 is not a readable HDF5 file"), H5Reader(path) as reader:
            getattr(reader, read)("a.jpg")


def test_an_attribute_of_a_type_that_numpy_does_not_know_is_told(tmp_path: Path) -> None:
    path = tmp_path / "features.h5"
    write_features(path, "a.jpg")
    with h5py.File(path, "a") as file:
        h5py.h5a.create(file["a.jpg/keypoints"].id, b"uncertainty", h5py.h5t.UNIX_D32LE, h5py.h5s.create_simple(()))
    with H5Reader(path) as reader, pytest.raises(ValueError, match=r"features\.h5 is not a readable HDF5 file .*NumPy"):
        reader.pixel_scale("a.jpg")


def test_what_other_programs_keep_beside_the_datasets_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "features.h5"
    write_features(path, "a.jpg")
    with h5py.File(path, "a") as file:
        file.attrs["settings"] = "fast, not JSON"
        file["type"], file["a.jpg/type"] = np.dtype("f4"), np.dtype("f4")
        file["a.jpg/nothing"] = h5py.Empty("f4")
        file["a.jpg"].attrs["stamp"] = [1, 2]
    with H5Reader(path) as reader:
        assert reader.names() == ["a.jpg"] and reader.settings == {}
        assert len(reader.stamp("a.jpg")) == 64 and len(reader.features("a.jpg").keypoints) == COUNT
        reader.check_links()
        with pytest.raises(RefusedFile, match="'type' is no group"):
            reader.has("type")


def test_a_name_that_is_not_utf8_is_told(tmp_path: Path) -> None:
    path = tmp_path / "features.h5"
    write_features(path, "a.jpg")
    with h5py.File(path, "a") as file:
        h5py.h5g.create(file.id, b"gr\xfcn.jpg")
    with H5Reader(path) as reader, pytest.raises(RefusedFile, match=r"the name b'gr\\xfcn.jpg' is not UTF-8"):
        reader.names()
