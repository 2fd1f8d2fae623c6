"""Groups of HDF5 files by h5py's low-level functions, compared with what h5py's usual classes read and write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from sfm_lightglue.storage.file_groups import FileGroup, find_group
from sfm_lightglue.storage.group_writer import DatasetWriter, GroupWriter
from sfm_lightglue.storage.record import GroupData
from sfm_lightglue.storage.safety import RefusedFile
from sfm_lightglue.storage.segment_writer import LIBVER


@pytest.fixture
def file(tmp_path: Path) -> Any:
    with h5py.File(tmp_path / "some.h5", "w") as opened:
        yield opened


def group_of(file: h5py.File, key: str = "a/b") -> FileGroup:
    group = find_group(file, key)
    assert group is not None
    return group


# --- reading -------------------------------------------------------------------------------------------------------------

ARRAYS = {
    "list": np.arange(6, dtype=np.int16),
    "table": np.arange(6, dtype=">f4").reshape(2, 3),
    "number": np.float64(2.5),
    "flags": np.array([True, False]),
    "nothing": np.zeros((0, 2), np.int32),
}


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("options", [{}, {"chunks": True, "compression": 1}], ids=["plain", "compressed"])
def test_a_dataset_is_read_as_h5py_reads_it(file: h5py.File, name: str, options: dict[str, Any]) -> None:
    options = options if np.size(ARRAYS[name]) > 1 else {}
    dataset = file.create_dataset(f"a/b/{name}", data=ARRAYS[name], **options)
    found = group_of(file).find(name)
    assert found is not None
    assert (found.dtype, found.shape, found.size) == (dataset.dtype, dataset.shape, dataset.size)
    np.testing.assert_array_equal(found[()], dataset[()])
    assert type(found[()]) is type(dataset[()])


def test_attributes_are_read_as_h5py_reads_them(file: h5py.File) -> None:
    group = file.create_group("a/b")
    values: dict[str, Any] = {
        **{"int": 3, "float": 0.5, "flag": True, "text": "grün", "empty": "", "list": [1, 2], "bytes": np.bytes_(b"fixed")},
        **{"texts": ["a", "b"], "nothing": h5py.Empty("f4"), "pair": np.zeros((), "(2,)f4")},
    }
    group.attrs.update(values)
    found = group_of(file).attrs
    assert [*found] == [*group.attrs] and len(found) == len(values)
    for name in values:
        np.testing.assert_array_equal(found[name], group.attrs[name])
        assert type(found[name]) is type(group.attrs[name])
    assert "other" not in found and found.get("other", 7) == 7
    with pytest.raises(KeyError):
        found["other"]


def test_members_are_listed_and_missing_ones_are_none(file: h5py.File) -> None:
    file["a/b/second"], file["a/b/first"] = [1], [2]
    group = group_of(file)
    assert [*group] == ["first", "second"]
    assert group.has("first") and not group.has("third") and group.find("third") is None
    assert find_group(file, "a/c") is None and find_group(file, "b") is None


def test_a_link_in_a_group_is_refused(file: h5py.File) -> None:
    file["a/b/real"], file["a/b/soft"] = [1], h5py.SoftLink("/a/b/real")
    file["a/b/outside"] = h5py.ExternalLink("other.h5", "/x")
    for name in ("soft", "outside"):
        with pytest.raises(RefusedFile, match=f"a/b/{name}' is .* link"):
            group_of(file).find(name)


def test_a_group_in_place_of_a_dataset_is_refused(file: h5py.File) -> None:
    file["a/b/c/keypoints"] = [1]
    with pytest.raises(RefusedFile, match="a/b/c is a group, expected a dataset"):
        group_of(file).find("c")


def test_a_text_in_place_of_numbers_is_refused(file: h5py.File) -> None:
    file["a/b/c"] = "text"
    with pytest.raises(RefusedFile, match="expected numbers"):
        group_of(file).find("c")
    assert [*group_of(file).numeric()] == []


# --- writing -------------------------------------------------------------------------------------------------------------


def content_of(rng: np.random.Generator, number: int) -> GroupData:
    """Something like a pair, with other shapes and attributes each time."""
    size = 50 + 40 * (number % 3)
    datasets = {
        "matches0": rng.integers(-1, 90, size).astype(np.int16 if number % 2 else np.int32),
        "matching_scores0": rng.random(size).astype(np.float16),
        "E": rng.random((3, 3)),
        "inlier_matches": np.zeros((number, 2), np.int32),
        "scale": np.float32(number),
        "flags": np.array([True, False]),
        "transposed": rng.random((2, number + 1)).T,
    }
    values = {
        "int": number,
        "numpy": np.int64(2),
        "float": 0.5,
        "flag": np.bool_(True),
        "text": "grün",
        "empty": "",
        "list": [1, 2],
    }
    more = {f"more{i}": i for i in range(number)}
    return GroupData(datasets, {"": values | more, "E": {"uncertainty": 2.0}})


def write_as_h5py_does(file: h5py.File, key: str, content: GroupData) -> None:
    """The same by h5py's usual classes."""
    group = file.require_group(key)
    for name in sorted(content.datasets):
        array = content.datasets[name]
        options = {"compression": 1} if name in ("matches0", "matching_scores0") and array.size > 64 else {}
        group.create_dataset(name, data=array, **options)
    for target, values in content.attributes.items():
        (group[target] if target else group).attrs.update(values)


def test_groups_have_the_bytes_that_h5py_gives_them(tmp_path: Path) -> None:
    contents = {f"{i // 3}.jpg/ü{i}": content_of(np.random.default_rng(i), i) for i in range(9)}
    for way in ("ours", "h5py"):
        with h5py.File(tmp_path / way, "w", libver=LIBVER) as file:
            writer = GroupWriter(file)
            for key, content in contents.items():
                writer.write(key, content) if way == "ours" else write_as_h5py_does(file, key, content)
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "h5py").read_bytes()


def test_a_place_in_the_file_is_where_the_numbers_are(tmp_path: Path) -> None:
    path, writer = tmp_path / "some.h5", DatasetWriter()
    with h5py.File(path, "w", libver=LIBVER) as file:
        places = [writer.write(file, f"d{i}", np.full(5 + i, i, np.int32)) for i in range(4)]
        nothing = writer.write(file, "nothing", np.zeros(0, np.int32))
    assert nothing == 0
    for i, place in enumerate(places):
        assert path.read_bytes()[place : place + 4 * (5 + i)] == np.full(5 + i, i, np.int32).tobytes()
