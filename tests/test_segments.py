"""Segments: many results as columns in immutable files, which stand for the file of a large run."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from test_storage import CHANGED, SETTINGS, make_features, small_items, stop_at, write

from sfm_lightglue.files import result_exists
from sfm_lightglue.products import Matches, Pair, TwoViewGeometry
from sfm_lightglue.storage import (
    GroupData,
    H5Reader,
    SettingsChanged,
    ShardStore,
    check_output,
    features_to_group,
    geometry_to_group,
    match_key,
    matches_to_group,
    numbers_of,
    write_single_file,
)
from sfm_lightglue.storage.columns import Schema, tables_of
from sfm_lightglue.storage.hashes import KEY_SEPARATOR, hash_pairs, hash_text, hash_texts
from sfm_lightglue.storage.joining import NUM_JOINED
from sfm_lightglue.storage.layout import read_group
from sfm_lightglue.storage.safety import RefusedFile
from sfm_lightglue.storage.segment_writer import parts_of, write_segment
from sfm_lightglue.storage.segments import Segment


def make_matches(num: int, seed: int, size: int = 400) -> Matches:
    rng = np.random.default_rng(seed)
    columns = np.sort(rng.choice(size, num, replace=False)), rng.choice(size, num, replace=False)
    return Matches(np.stack(columns, axis=1).astype(np.int32), rng.random(num).astype(np.float16).astype(np.float32), seed % 9)


def make_geometry(seed: int) -> TwoViewGeometry:
    matrix = np.random.default_rng(seed).normal(size=(3, 3))
    if seed % 3 == 0:
        return TwoViewGeometry("DEGENERATE", np.zeros((0, 2), np.int32), seed, 4.0, rejected_because="few matches")
    inliers = np.arange(2 * (seed % 5)).reshape(-1, 2)
    return TwoViewGeometry("CALIBRATED", inliers, seed, 4.0, E=matrix, F=matrix.T, mean_score=0.5, num_agreeing=seed)


def mixed_items() -> dict[str, GroupData]:
    """Features, matches and geometries of many forms, and arrays that need special care."""
    items = {f"f/{i}": features_to_group(make_features(i, i, scales=i % 2 == 0)) for i in range(4)}
    items |= {f"m/{i}": matches_to_group(make_matches(7 * i, i), 400) for i in range(4)}
    items["m/none"] = matches_to_group(make_matches(0, 0), 0)
    items |= {f"g/{i}": geometry_to_group(make_geometry(i)) for i in range(5)}
    dense = np.array([3, -1, 0, -1], np.int16)
    for name, matches0, scores in [
        ("score without match", dense, np.array([1, 0.5, 1, 0], np.float16)),
        ("negative zero", dense, np.array([1, -0.0, 1, 0], np.float16)),
        ("below -1", np.array([3, -2], np.int16), np.ones(2, np.float16)),
        ("unsigned", np.array([3, 1], np.uint16), np.ones(2, np.float16)),
        ("far", np.array([70_000, -1], np.int32), np.array([1, 0], np.float32)),
    ]:
        items[f"m/{name}"] = GroupData({"matches0": matches0, "matching_scores0": scores})
    items["x"] = GroupData(
        {
            "scalar": np.array(3.5),
            "big": np.arange(6, dtype=">i4").reshape(1, 2, 3),
            "flags": np.array([True, False]),
            "none": np.zeros((0, 4)),
        },
        {"": {"text": "ä\n", "yes": True, "list": np.arange(3), "orientation": 6}, "big": {"unit": "px"}, "none": {"a": 1.5}},
    )
    return items


def large(path: Path, items: dict[str, GroupData], settings: dict[str, Any] = SETTINGS, **options: Any) -> ShardStore:
    """Writes items that stay in segments."""
    with ShardStore(path, settings, merge_items=0, **options) as store:
        for key, item in items.items():
            store.add(key, item, f"stamp of {key}")
        store.merge()
    return store


def single(path: Path) -> bytes:
    """The bytes of the one file that `export hloc` writes."""
    write_single_file(path, path.with_name("single.h5"))
    return path.with_name("single.h5").read_bytes()


# --- what is written is read ----------------------------------------------------------------------------------------------


def test_segments_give_what_groups_give(tmp_path: Path) -> None:
    """The one slow, obvious form is the reference: a group for each result."""
    items = mixed_items()
    reference = write(tmp_path / "reference.h5", items)
    large(tmp_path / "large.h5", items, shard_items=3)
    assert not (tmp_path / "large.h5").exists()
    assert single(tmp_path / "large.h5") == reference
    with H5Reader(tmp_path / "large.h5") as stored, H5Reader(tmp_path / "reference.h5") as groups:
        assert stored.names() == groups.names() == sorted(items)
        assert (stored.fingerprint, stored.settings) == (groups.fingerprint, groups.settings)
        assert stored.stamps([*items, "no"]) == groups.stamps([*items, "no"])
        for key in items:
            assert stored.stamp(key) == groups.stamp(key) and stored.has(key)
        for key in [key for key in items if key.startswith("f/")]:
            for name, value in vars(groups.features(key)).items():
                np.testing.assert_array_equal(getattr(stored.features(key), name), value)
        assert not stored.has("f/9") and stored.stamp("f/9") == ""
        with pytest.raises(KeyError, match=r"large\.h5 has no features of image 'f/9', did you mean 'f/"):
            stored.features("f/9")


def test_calls_for_many_pairs_give_what_calls_for_one_give(tmp_path: Path) -> None:
    pairs = [Pair("a", f"{i:02d}") for i in range(40)]
    matches = {match_key(*names(pair)): matches_to_group(make_matches(i, i), 400) for i, pair in enumerate(pairs[:30])}
    geometries = {match_key(*names(pair)): geometry_to_group(make_geometry(i)) for i, pair in enumerate(pairs[:30])}
    features = {pair.name0: features_to_group(make_features(i, i)) for i, pair in enumerate(pairs[:30])}
    for form in (write, large):
        form(tmp_path / "m.h5", matches)
        form(tmp_path / "g.h5", geometries)
        form(tmp_path / "f.h5", features)
        with H5Reader(tmp_path / "m.h5") as reader:
            expected = [reader.match_counts(*names(pair)) or (-1, -1) for pair in pairs]
            np.testing.assert_array_equal(reader.match_counts_of(pairs), expected)
            assert expected[7] == (7, 7) and expected[-1] == (-1, -1)
            assert reader.match_stamps(pairs) == [reader.match_stamp(*names(pair)) for pair in pairs]
            flipped = reader.find_matches("a", "05")
            assert flipped is not None and len(flipped) == 5
        with H5Reader(tmp_path / "g.h5") as reader:
            stored = [reader.geometry(*names(pair)) for pair in pairs[:30]]
            np.testing.assert_array_equal(reader.num_inliers_of(pairs[:30]), [len(found.inlier_matches) for found in stored])
            slow = numbers_of(reader.find_geometry(*names(pair)) for pair in pairs)
            assert str(reader.geometry_numbers(pairs).rows.tolist()) == str(slow.rows.tolist()), "NaN are equal as text"
            with pytest.raises(KeyError, match="run the stage verify first"):
                reader.num_inliers_of(pairs)
        with H5Reader(tmp_path / "f.h5") as reader:
            np.testing.assert_array_equal(reader.num_keypoints_of([pair.name0 for pair in pairs[:30]]), range(30))
            with pytest.raises(KeyError, match="has no features of image"):
                reader.num_keypoints_of(["nobody"])


def names(pair: Pair) -> tuple[str, str]:
    return pair.name0, pair.name1


def test_a_pair_of_300_matches_takes_2_kB(tmp_path: Path) -> None:
    pairs = {f"a/{i:04d}": matches_to_group(make_matches(300, i, 2048), 2048) for i in range(200)}
    (segment,) = large(tmp_path / "matches.h5", pairs, shard_items=1000).shards.glob("*.h5")
    assert segment.stat().st_size < 200 * 2_100


def test_missing_pairs_are_those_that_the_slow_call_finds(tmp_path: Path) -> None:
    pairs = [Pair(f"d/{i}", f"{j}") for i in range(6) for j in range(6)]
    stamps = {name: f"s{name}" for pair in pairs for name in names(pair)}
    of_pair = {match_key(*names(pair)): f"{stamps[pair.name0]} {stamps[pair.name1]}" for pair in pairs}
    with ShardStore(tmp_path / "matches.h5", SETTINGS, shard_items=5, merge_items=0) as store:
        for i, (key, stamp) in enumerate(of_pair.items()):
            if i % 3:
                store.add(key, matches_to_group(make_matches(i, i), 400), stamp if i % 5 else "other stamp")
        assert [match_key(*names(pair)) for pair in store.missing_pairs(pairs, stamps)] == store.missing(of_pair)
        assert store.has_pairs(pairs).tolist() == [match_key(*names(pair)) in store.stamps for pair in pairs]
        assert len(store.missing(of_pair)) == sum(i % 3 == 0 or i % 5 == 0 for i in range(36))


@pytest.mark.parametrize("texts", [["a/b", "b/a", "a", "/", "a/b/c", "", "ä/東", "a/", "/a"]])
def test_hashes_are_the_same_one_by_one_and_together(texts: list[str]) -> None:
    together = hash_texts(texts, KEY_SEPARATOR)
    assert [tuple(row) for row in together.tolist()] == [hash_text(text, KEY_SEPARATOR) for text in texts]
    assert len({tuple(row) for row in together.tolist()}) == len(texts)
    np.testing.assert_array_equal(hash_pairs(["b", "a"], np.array([1, 0]), np.array([0, 1])), together[:2])


def test_keys_that_share_half_of_their_hash_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sfm_lightglue.storage import hashes

    digest = hashes._digest
    monkeypatch.setattr(hashes, "_digest", lambda part: bytes(8) + digest(part)[8:])
    hashes._hash_part.cache_clear()
    items = small_items(30)
    assert single(large(tmp_path / "a.h5", items, shard_items=4).path) == write(tmp_path / "b.h5", items)
    hashes._hash_part.cache_clear()


# --- growing --------------------------------------------------------------------------------------------------------------


def test_a_small_run_has_one_file_and_a_large_one_segments(tmp_path: Path) -> None:
    items = small_items(12)
    path = tmp_path / "features.h5"
    first, rest = dict(list(items.items())[:5]), dict(list(items.items())[5:])
    write(path, first, merge_items=8)
    base = path.read_bytes()
    assert result_exists(path) and not Path(f"{path}.shards").exists()
    with ShardStore(path, SETTINGS, merge_items=8) as store:
        for key, item in rest.items():
            store.add(key, item, f"stamp of {key}")
        store.merge()
        assert sorted(store.stamps) == sorted(items)
    assert result_exists(path) and not path.exists()
    assert (store.shards / "base.h5").read_bytes() == base, "it was renamed, not written again"
    reference = write(tmp_path / "reference.h5", items)
    assert single(path) == reference
    check_output(path)
    with ShardStore(path, SETTINGS, merge_items=12) as store:
        store.merge()
    assert path.read_bytes() == reference and not store.shards.exists(), "it is small again"


def test_a_run_with_nothing_new_writes_nothing(tmp_path: Path) -> None:
    store = large(tmp_path / "features.h5", small_items(9), shard_items=2)
    before = {path: path.stat().st_mtime_ns for path in [store.shards, *store.shards.iterdir()]}
    large(tmp_path / "features.h5", {})
    assert {path: path.stat().st_mtime_ns for path in [store.shards, *store.shards.iterdir()]} == before


@pytest.mark.parametrize("num", [3, 40])
def test_dropped_results_stay_away(tmp_path: Path, num: int) -> None:
    """Also after segments with and without them were joined."""
    items = small_items(60)
    path = tmp_path / "features.h5"
    large(path, items, shard_items=10)
    drop = list(items)[:num]
    with ShardStore(path, SETTINGS, merge_items=0) as store:
        store.merge(drop=[*drop, "never there"])
        assert drop[0] not in store.stamps and len(store.stamps) == 60 - num
    rest = {key: item for key, item in items.items() if key not in drop}
    reference = write(tmp_path / "reference.h5", rest)
    assert single(path) == reference
    large(path, {f"new {i}": items["sub/050.jpg"] for i in range(2 * NUM_JOINED)}, shard_items=1)
    with ShardStore(path, SETTINGS) as store:
        assert drop[0] not in store.stamps
        store.merge(drop=[f"new {i}" for i in range(2 * NUM_JOINED)])
    assert path.read_bytes() == reference
    with ShardStore(path, SETTINGS, merge_items=0) as store:
        store.add(drop[0], items[drop[0]], f"stamp of {drop[0]}")
        store.merge()
    assert single(path) == write(tmp_path / "again.h5", rest | {drop[0]: items[drop[0]]}), "it may come back"


def test_the_number_of_segments_and_the_results_written_grow_slowly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sfm_lightglue.storage import joining, shards

    num_written: list[int] = []

    def counted(path: Path, attributes: Any, parts: Any) -> None:
        num_written.append(sum(part.num_rows for part in parts))
        write_segment(path, attributes, parts)

    monkeypatch.setattr(shards, "write_segment", counted)
    monkeypatch.setattr(joining, "NUM_JOINED", 4)
    monkeypatch.setattr(joining, "SIZE_CLASSES", (0, 35_000, 90_000, 1 << 32))
    items = {f"a/{i:04d}": matches_to_group(make_matches(300, i % 9), 400) for i in range(320)}
    store = large(tmp_path / "matches.h5", items, shard_items=5)
    assert len([*store.shards.glob("*.h5")]) <= 9
    assert sum(num_written) <= 4 * len(items)
    assert single(store.path) == write(tmp_path / "reference.h5", items)


def test_results_of_several_writers_are_seen_before_and_after_they_are_joined(tmp_path: Path) -> None:
    items = small_items(6 * NUM_JOINED)
    path = tmp_path / "features.h5"
    with contextlib.ExitStack() as stack:
        stores = [stack.enter_context(ShardStore(path, SETTINGS, shard_items=1, writer=writer)) for writer in "abc"]
        for number, (key, item) in enumerate(items.items()):
            stores[number % 3].add(key, item, f"stamp of {key}")
    assert not result_exists(path), "no one has finished it"
    counts = [len([*stores[0].shards.glob(f"*-{writer}.h5")]) for writer in "abc"]
    assert max(counts) <= NUM_JOINED, "each joins its own"
    with ShardStore(path, SETTINGS, merge_items=0) as store:
        assert store.missing({key: f"stamp of {key}" for key in items}) == []
        store.merge()
    assert single(path) == write(tmp_path / "reference.h5", items)


def test_shards_of_earlier_versions_are_read(tmp_path: Path) -> None:
    """They have a group for each result."""
    items = small_items(3 * NUM_JOINED)
    shards = tmp_path / "features.h5.shards"
    shards.mkdir()
    for number, (key, item) in enumerate(items.items()):
        write(tmp_path / "shard.h5", {key: item})
        (tmp_path / "shard.h5").rename(shards / f"{number:06d}.h5")
    assert single(large(tmp_path / "features.h5", {}).path) == write(tmp_path / "reference.h5", items)


def test_the_index_of_a_former_file_is_made_again_if_it_is_lost_or_of_another_file(tmp_path: Path) -> None:
    items = small_items(5)
    path = tmp_path / "features.h5"
    write(path, items)
    index = large(path, {"new": items["sub/003.jpg"]}).shards / "base.h5.index"
    content, expected = index.read_bytes(), single(path)
    for damage in (b"", content[:-100], content.replace(b"stamp of", b"STAMP OF")):
        index.write_bytes(damage)
        with H5Reader(path) as reader:
            assert reader.stamp("sub/004.jpg") == "stamp of sub/004.jpg"
        assert len(index.read_bytes()) == len(content)
    os.utime(index.with_name("base.h5"))
    assert single(path) == expected


def test_a_file_that_appears_beside_segments_does_not_hide_them(tmp_path: Path) -> None:
    items = small_items(9)
    path = tmp_path / "features.h5"
    write(path, {key: items[key] for key in list(items)[:4]})
    large(path, {key: items[key] for key in list(items)[4:7]})
    write(
        tmp_path / "other" / "features.h5", {"sub/001.jpg": items["sub/006.jpg"], **{key: items[key] for key in list(items)[7:]}}
    )
    shutil.copyfile(tmp_path / "other" / "features.h5", path)
    store = large(path, {"sub/000.jpg": items["sub/000.jpg"]})
    assert sorted(each.name for each in store.shards.glob("base*.h5")) == ["base-1.h5", "base.h5"]
    assert single(path) == write(tmp_path / "reference.h5", items)


# --- settings, other files ------------------------------------------------------------------------------------------------


def test_changed_settings_are_refused_or_replace_all_segments(tmp_path: Path) -> None:
    path = tmp_path / "features.h5"
    write(path, small_items(3))
    store = large(path, dict(list(small_items(9).items())[3:]), shard_items=2)
    before = {file: file.read_bytes() for file in store.shards.iterdir()}
    with pytest.raises(SettingsChanged, match=r"\(options\.max_keypoints: 100 -> 200\).*recompute"):
        large(path, small_items(1), CHANGED)
    assert {file: file.read_bytes() for file in store.shards.iterdir()} == before
    large(path, small_items(2), CHANGED, if_settings_changed="recompute")
    assert single(path) == write(tmp_path / "reference.h5", small_items(2), CHANGED)


def test_a_folder_with_files_of_others_is_refused(tmp_path: Path) -> None:
    store = large(tmp_path / "features.h5", small_items(2))
    check_output(store.path)
    (store.shards / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="was not written by sfm_lightglue"):
        check_output(store.path)


def test_a_segment_without_settings_is_not_ours(tmp_path: Path) -> None:
    path = tmp_path / "features.h5.shards" / "000000.h5"
    path.parent.mkdir()
    write_segment(path, {}, parts_of([("a", "", GroupData({"x": np.arange(3)}))]))
    for policy in ("refuse", "recompute"):
        store = ShardStore(tmp_path / "features.h5", SETTINGS, if_settings_changed=policy)
        with pytest.raises(SettingsChanged, match="was not written by sfm_lightglue"), store:
            pass


def test_texts_in_a_result_are_refused() -> None:
    with pytest.raises(TypeError, match="cannot be stored, expected numbers"):
        tables_of([("a", "", GroupData({"x": np.array(["text"])}))])


@pytest.mark.parametrize("schema", [[], [[], [], []], [[["a", "O", 1]], [], [], False], [[["a", "<U3", 1]], [], [], False]])
def test_a_schema_that_a_run_cannot_have_written_is_refused(schema: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        Schema.from_json(schema)


def forged(path: Path, change: Any) -> None:
    """Changes the list of contents of a segment, with a valid checksum."""
    import zlib

    with h5py.File(path, "a") as file:
        about = json.loads(file["about"][()].tobytes())
        change(about)
        content = json.dumps(about).encode()
        del file["about"]
        file["about"] = np.frombuffer(content, np.uint8)
        file.attrs["about_crc32"] = zlib.crc32(content)


def set_column(name: str, place: int, value: Any) -> Any:
    return lambda about: about["columns"][name].__setitem__(place, value)


@pytest.mark.parametrize(
    "change",
    [
        set_column("0.key", 0, 10**12),
        set_column("0.key", 0, -8),
        set_column("0.d0", 2, [1 << 40]),
        set_column("0.d0", 2, [-1]),
        set_column("0.d0", 1, "<f8"),
        set_column("0.key.ends", 2, [7]),
        lambda about: about["tables"][0].__setitem__(1, 1 << 40),
        lambda about: about["columns"].pop("0.d1"),
        lambda about: about.__setitem__("version", 2),
        lambda about: about.__setitem__("tables", {}),
    ],
)
def test_a_segment_with_places_outside_of_the_file_is_refused(
    tmp_path: Path, change: Any, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "features.h5"
    store = large(path, {"a": features_to_group(make_features(3)), "b": features_to_group(make_features(3))})
    (segment,) = store.shards.glob("*.h5")
    forged(segment, change)
    with pytest.raises(ValueError, match="000000"), H5Reader(path) as reader:
        reader.features("a")
    with ShardStore(path, SETTINGS) as store:
        assert store.missing({"a": "stamp of a"}) == ["a"]
    assert "is damaged" in caplog.text


@pytest.mark.parametrize(
    "column, values",
    [
        ("0.d1.ends", [1 << 40, 1 << 41]),
        ("0.d1.ends", [-8, -4]),
        ("0.d0.shape", [[-16, -3], [3, 2]]),
        ("index.row", [0, 9]),
        ("index.table", [0, 3]),
    ],
)
def test_numbers_in_a_segment_that_do_not_fit_together_are_refused(tmp_path: Path, column: str, values: Any) -> None:
    path = tmp_path / "features.h5"
    store = large(path, {"a": features_to_group(make_features(3)), "b": features_to_group(make_features(3))})
    (segment,) = store.shards.glob("*.h5")
    with h5py.File(segment, "a") as file:
        file[column][...] = np.array(values).astype(file[column].dtype)
    with pytest.raises(ValueError, match="000000"), H5Reader(path) as reader:
        for key in "ab":
            reader.features(key)


def test_matches_that_do_not_ascend_are_refused(tmp_path: Path) -> None:
    store = large(tmp_path / "matches.h5", {"a/b": matches_to_group(make_matches(9, 1), 400)})
    (segment,) = store.shards.glob("*.h5")
    for values in ([500] * 9, [3] * 9, [*range(392, 401)]):
        with h5py.File(segment, "a") as file:
            file["0.m.index0"][...] = values
        with H5Reader(store.path) as reader, pytest.raises(RefusedFile, match="do not ascend"):
            reader.find_matches("a", "b")


# --- interruptions --------------------------------------------------------------------------------------------------------

CHILD = """
import sys
from pathlib import Path
sys.path[:0] = {paths!r}
import numpy as np
from sfm_lightglue.storage import GroupData, ShardStore, joining
joining.NUM_JOINED = 3
items = {{f"{{i:03d}}": GroupData({{"x": np.arange(i, dtype=np.float32)}}, {{"": {{"number": i}}}}) for i in range(60)}}
with ShardStore(Path(sys.argv[1]), {{}}, shard_items=3, merge_items=int(sys.argv[2])) as store:
    todo = store.missing({{key: f"stamp of {{key}}" for key in items}})
    print(len(todo), flush=True)
    for key in todo:
        store.add(key, items[key], f"stamp of {{key}}")
    store.merge()
"""


@pytest.mark.slow
def test_twenty_kills_lose_nothing_and_the_files_are_the_same(tmp_path: Path) -> None:
    """The kills fall into segments, their joining, the merge into one file, and the change between the two forms."""
    path, code = tmp_path / "features.h5", CHILD.format(paths=[str(Path(__file__).parents[1])])
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "reference.h5"), "1000"], check=True, capture_output=True)
    reference = (tmp_path / "reference.h5").read_bytes()
    rng, left = np.random.default_rng(0), 60
    for number, delay_s in enumerate(rng.uniform(0, 0.15, 20)):
        limit = (0, 1000)[number // 2 % 2]
        child = subprocess.Popen([sys.executable, "-c", code, str(path), str(limit)], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        todo = int(child.stdout.readline())  # from now on it writes
        assert todo <= left, "what was there stays there"
        left = todo
        time.sleep(delay_s)
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
    subprocess.run([sys.executable, "-c", code, str(path), "0"], check=True, capture_output=True)
    assert single(path) == reference
    subprocess.run([sys.executable, "-c", code, str(path), "1000"], check=True, capture_output=True)
    assert path.read_bytes() == reference
    assert sorted(each.name for each in tmp_path.iterdir()) == ["features.h5", "reference.h5", "single.h5"]


@pytest.mark.parametrize("call", [1, 2, 3, 4, 6, 9])
@pytest.mark.parametrize("target, attribute", [(Path, "replace"), (Path, "rename"), (os, "fsync"), (Path, "unlink")])
def test_ctrl_c_at_any_step_of_growing_and_shrinking_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: Any, attribute: str, call: int
) -> None:
    from sfm_lightglue.storage import joining

    monkeypatch.setattr(joining, "NUM_JOINED", 3)
    items = small_items(14)
    reference = write(tmp_path / "reference.h5", items)
    path = tmp_path / "features.h5"
    write(path, dict(list(items.items())[:4]))
    for limit in (0, 1000):
        with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
            stop_at(patch, target, attribute, call)
            write_missing(path, items, limit)
        assert write_missing(path, items, limit)[:4] != list(items)[:4], "what was there stays there"
        assert single(path) == reference


def write_missing(path: Path, items: dict[str, GroupData], limit: int) -> list[str]:
    with ShardStore(path, SETTINGS, shard_items=2, merge_items=limit) as store:
        todo = store.missing({key: f"stamp of {key}" for key in items})
        for key in todo:
            store.add(key, items[key], f"stamp of {key}")
        store.merge()
    return todo


@pytest.mark.parametrize("seed", range(6))
def test_a_damaged_segment_is_found_and_computed_again(tmp_path: Path, seed: int, caplog: pytest.LogCaptureFixture) -> None:
    """Every bit that matters is under a checksum. A segment is checked once, and again when its size or time has changed."""
    items = {key: item for key, item in small_items(12).items()}
    store = large(tmp_path / "features.h5", items, shard_items=4)
    expected = single(store.path)
    segment = sorted(store.shards.glob("*.h5"))[1]
    content = np.frombuffer(segment.read_bytes(), np.uint8).copy()
    content[np.random.default_rng(seed).integers(0, len(content), 40)] ^= 1 + seed
    segment.write_bytes(content.tobytes())
    with caplog.at_level(logging.WARNING):
        todo = write_missing(store.path, items, 0)
    assert todo in ([], list(items)[4:8])
    assert bool(todo) == (f"{segment} is damaged" in caplog.text)
    assert single(store.path) == expected


def test_records_of_a_segment_can_be_read_by_several_threads(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    items = {f"{i:03d}": features_to_group(make_features(500, i)) for i in range(40)}
    path = large(tmp_path / "features.h5", items, shard_items=40).path
    with H5Reader(path) as reader, ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda key: reader.features(key).keypoints, [*items] * 5))
    for key, keypoints in zip([*items] * 5, found, strict=True):
        np.testing.assert_array_equal(keypoints, items[key].datasets["keypoints"])


def test_a_segment_gives_its_groups_back(tmp_path: Path) -> None:
    item = GroupData({"x": np.arange(4).reshape(2, 2)}, {"": {"b": 2, "a": "text"}, "x": {"c": 1.5}})
    write_segment(tmp_path / "a.h5", {"settings": "{}", "fingerprint": "f"}, parts_of([("key", "st amp", item)]))
    segment = Segment(tmp_path / "a.h5")
    segment.check()
    found = read_group(segment.record(0, 0))
    np.testing.assert_array_equal(found.datasets["x"], item.datasets["x"])
    assert found.attributes == {"": {"a": "text", "b": 2, "stamp": "st amp"}, "x": {"c": 1.5}}
    segment.close()
