"""Sources that need only the names of the images: exhaustive and sequential pairs."""

from __future__ import annotations

import random

import pycolmap
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sfm_lightglue.pairs.exhaustive import exhaustive_pairs
from sfm_lightglue.pairs.sequential import sequences, sequential_pairs
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


def test_an_overlap_beyond_the_sequence_pairs_everything() -> None:
    names = [f"{i}.jpg" for i in range(9)]
    assert sequential_pairs(names, 10**6, True) == exhaustive_pairs(names)


def test_an_overlap_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="overlap is 0"):
        sequential_pairs(["a.jpg", "b.jpg"], 0, True)
