"""Sources that need only the names of the images: exhaustive and sequential pairs, also of stereo pairs and rigs."""

from __future__ import annotations

import random

import pycolmap
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sfm_lightglue.pairs.exhaustive import exhaustive_pairs
from sfm_lightglue.pairs.sequential import rig_pairs, sequences, sequential_pairs
from sfm_lightglue.products import Pair

NAMES = st.lists(st.text(alphabet="ab01/", min_size=1, max_size=5), max_size=15)


def keys(pairs: list[Pair]) -> list[tuple[str, str]]:
    return [(pair.name0, pair.name1) for pair in pairs]


def assert_is_a_pair_list(pairs: list[Pair], names: list[str]) -> None:
    assert keys(pairs) == sorted(set(keys(pairs)))
    assert all(pair.name0 < pair.name1 and {pair.name0, pair.name1} <= set(names) for pair in pairs)


@given(NAMES)
def test_exhaustive_pairs_join_each_two_images_once(names: list[str]) -> None:
    pairs = exhaustive_pairs(names)
    assert_is_a_pair_list(pairs, names)
    num_names = len(set(names))
    assert len(pairs) == num_names * (num_names - 1) // 2


@given(NAMES, st.integers(1, 6), st.booleans(), st.randoms())
def test_sequential_pairs_are_sorted_and_unique_in_any_input_order(
    names: list[str], overlap: int, quadratic: bool, generator: random.Random
) -> None:
    pairs = sequential_pairs(names, overlap, quadratic)
    assert_is_a_pair_list(pairs, names)
    shuffled = generator.sample(names, len(names))
    assert [(pair, pair.reason) for pair in sequential_pairs(shuffled, overlap, quadratic)] == [(p, p.reason) for p in pairs]


@settings(deadline=None)
@given(st.integers(0, 40), st.integers(1, 8))
def test_sequential_pairs_join_all_images_within_the_overlap(num_images: int, overlap: int) -> None:
    names = [f"{i:03d}.jpg" for i in range(num_images)]
    expected = [(names[i], names[j]) for i in range(num_images) for j in range(i + 1, num_images) if j - i <= overlap]
    assert keys(sequential_pairs(names, overlap, False)) == expected


def colmap_sequential_pairs(num_images: int, overlap: int, quadratic_overlap: bool) -> set[tuple[int, int]]:
    """COLMAP's sequential pairs of the images 0, 1, 2 ..., as indices."""
    with pycolmap.Database.open(":memory:") as database:
        camera = pycolmap.Camera(model="SIMPLE_PINHOLE", width=64, height=64, params=[100, 32, 32])
        camera_id = database.write_camera(camera)
        ids = [database.write_image(pycolmap.Image(name=f"{i:03d}.jpg", camera_id=camera_id)) for i in range(num_images)]
        options = pycolmap.SequentialPairingOptions(overlap=overlap, quadratic_overlap=quadratic_overlap)
        pairs = pycolmap.SequentialPairGenerator(options, database).all_pairs()
    return {(ids.index(first), ids.index(second)) for first, second in pairs}


@pytest.mark.parametrize("overlap", [1, 3, 5])
def test_pairs_equal_the_union_of_colmap_s_linear_and_quadratic_pairs(overlap: int) -> None:
    names = [f"{i:03d}.jpg" for i in range(40)]
    linear, quadratic = (colmap_sequential_pairs(40, overlap, flag) for flag in (False, True))
    for flag, expected in ((False, linear), (True, linear | quadratic)):
        found = {(names.index(pair.name0), names.index(pair.name1)) for pair in sequential_pairs(names, overlap, flag)}
        assert found == expected


def test_the_reason_gives_the_distance_in_the_sequence() -> None:
    pairs = sequential_pairs(["a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg"], 3, True)
    assert {(pair.name0, pair.name1): pair.reason for pair in pairs}["a.jpg", "e.jpg"] == "sequential+4"


def test_numbers_in_names_are_ordered_as_numbers() -> None:
    assert sequences(["img10.jpg", "img2.jpg", "img1.jpg"]) == [["img1.jpg", "img2.jpg", "img10.jpg"]]
    assert keys(sequential_pairs(["img10.jpg", "img9.jpg", "img8.jpg"], 1, False)) == [
        ("img10.jpg", "img9.jpg"),
        ("img8.jpg", "img9.jpg"),
    ]


def test_names_that_differ_only_in_leading_zeros_keep_one_order() -> None:
    assert sequences(["1.jpg", "01.jpg", "2.jpg"]) == sequences(["2.jpg", "01.jpg", "1.jpg"]) == [["01.jpg", "1.jpg", "2.jpg"]]


def test_folders_are_separate_sequences() -> None:
    names = ["left/1.jpg", "left/2.jpg", "right/1.jpg", "right/2.jpg", "0.jpg"]
    assert keys(sequential_pairs(names, 5, True)) == [("left/1.jpg", "left/2.jpg"), ("right/1.jpg", "right/2.jpg")]


# --- stereo and rigs -------------------------------------------------------------------------------------------------------

KITTI = [f"{i:06d}.png" for i in range(100, 120)]
"""Names of the photos of a drive; each camera has a folder with the same names."""


def rig(names: list[str], across_folders: str = "auto", overlap: int = 1) -> list[tuple[str, str, str]]:
    return [(pair.name0, pair.name1, pair.reason) for pair in rig_pairs(names, overlap, across_folders)]


def in_folders(*folders: str, names: list[str] = KITTI) -> list[str]:
    return [f"{folder}/{name}" for folder in folders for name in names]


@pytest.mark.parametrize(
    ("left", "right"), [("image_00/data", "image_01/data"), ("left", "right"), ("cam0", "cam1"), ("seq 1/left", "seq 1/right")]
)
def test_a_stereo_pair_joins_photos_of_equal_names(left: str, right: str) -> None:
    expected = [(f"{left}/{name}", f"{right}/{name}", "rig") for name in KITTI]
    assert rig(in_folders(left, right)) == expected
    lost = in_folders(left, right)[:-3]  # a camera may lose a few frames
    assert rig(lost) == expected[:-3]


def test_counters_and_times_in_names_are_compared() -> None:
    counters = [f"{side}/{side}_{i:04d}.jpg" for side in ("left", "right") for i in range(5)]
    assert rig(counters) == [(f"left/left_{i:04d}.jpg", f"right/right_{i:04d}.jpg", "rig") for i in range(5)]
    start, step = 1403636579763555584, 50_000_000
    times = [f"cam{camera}/{start + i * step + camera * 24_000_000}.png" for camera in (0, 1) for i in range(5)]
    assert rig(times) == [(times[i], times[i + 5], "rig") for i in range(5)]
    seconds = [f"cam{camera}/{1311868164.36 + i / 30 + camera * 0.01:.6f}.png" for camera in (0, 1) for i in range(5)]
    assert rig(seconds) == [(seconds[i], seconds[i + 5], "rig") for i in range(5)]


def test_the_last_part_of_the_path_that_differs_is_the_camera() -> None:
    names = in_folders("day1/cam0", "day1/cam1", "day2/cam0", "day2/cam1")
    assert {(first.split("/")[0], second.split("/")[0]) for first, second, _ in rig(names)} == {
        ("day1", "day1"),
        ("day2", "day2"),
    }
    assert len(rig(names)) == 2 * len(KITTI)


def test_a_rig_of_three_cameras_joins_each_two_of_them() -> None:
    assert len(rig(in_folders("back", "front", "left"))) == 3 * len(KITTI)


def test_neighbours_in_the_other_folder_follow_on_request() -> None:
    names = in_folders("left", "right", names=["1.png", "2.png", "3.png"])
    assert rig(names, "true", overlap=1) == [
        ("left/1.png", "right/1.png", "rig"),
        ("left/1.png", "right/2.png", "rig+1"),
        ("left/2.png", "right/1.png", "rig+1"),
        ("left/2.png", "right/2.png", "rig"),
        ("left/2.png", "right/3.png", "rig+1"),
        ("left/3.png", "right/2.png", "rig+1"),
        ("left/3.png", "right/3.png", "rig"),
    ]
    assert len(rig(names, "true", overlap=10**6)) == 9


def test_folders_that_are_no_rig_stay_apart() -> None:
    apart = [f"a/{name}" for name in KITTI] + [f"b/{i:06d}.png" for i in range(110, 130)]
    assert rig(apart) == []
    assert rig(["a/x.jpg", "a/y.jpg", "b/z.jpg", "b/w.jpg", "c.jpg", "d.jpg"]) == []
    assert rig(["a/1.jpg", "b/1.jpg"]) == []


@given(st.integers(1, 12), st.integers(2, 12))
def test_unrelated_folders_with_equal_counters_cost_little(num_folders: int, num_photos: int) -> None:
    names = [f"holiday {folder}/IMG_{i:04d}.jpg" for folder in range(num_folders) for i in range(num_photos)]
    pairs = rig(names)
    assert len(pairs) <= len(names) * 3.5
    assert all(first.split("/")[1] == second.split("/")[1] for first, second, _ in pairs)


def test_many_folders_of_one_time_are_told(caplog: pytest.LogCaptureFixture) -> None:
    names = in_folders(*(f"holiday{i}" for i in range(9)), names=["1.jpg", "2.jpg"])
    assert rig(names) == [] and "9 folders hold photos of the same times" in caplog.text
    assert len(rig(names, "true", overlap=0)) == 2 * 36


def test_an_overlap_beyond_the_sequence_pairs_everything() -> None:
    names = [f"{i}.jpg" for i in range(9)]
    assert sequential_pairs(names, 10**6, True) == exhaustive_pairs(names)


def test_an_overlap_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="overlap is 0"):
        sequential_pairs(["a.jpg", "b.jpg"], 0, True)
