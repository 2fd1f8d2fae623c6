"""The records: dense and sparse matches, the order of pairs, verified and rejected geometries."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from sfm_lightglue.products import Features, Image, Matches, Pair, TwoViewGeometry, sorted_pairs


def random_matches0(rng: np.random.Generator, num0: int, num1: int) -> np.ndarray:
    """int64 (num0,): each keypoint of image 1 at most once, -1 for about half of the entries."""
    matches0 = np.full(num0, -1)
    rows = rng.permutation(num0)[: min(num0, num1) // 2]
    matches0[rows] = rng.permutation(num1)[: len(rows)]
    return matches0


@pytest.mark.parametrize("num0, num1", [(0, 0), (0, 5), (5, 0), (1, 1), (20, 30), (300, 200)])
def test_dense_matches_survive_the_round_trip(num0: int, num1: int) -> None:
    rng = np.random.default_rng(num0 + num1)
    matches0 = random_matches0(rng, num0, num1)
    scores0 = np.where(matches0 > -1, rng.random(num0), 0).astype(np.float32)
    matches = Matches.from_dense(matches0, scores0, stop_layer=4)
    assert matches.indices.shape == (np.sum(matches0 > -1), 2)
    assert (matches.indices.dtype, matches.scores.dtype) == (np.int32, np.float32)
    np.testing.assert_array_equal(matches.matches0(num0), matches0)
    np.testing.assert_array_equal(matches.matching_scores0(num0), scores0)
    assert matches.stop_layer == 4


def test_sparse_matches_have_an_index_of_each_image_in_a_row() -> None:
    matches = Matches.from_dense(np.array([-1, 2, -1, 0]), np.array([0, 0.5, 0, 0.25]))
    assert matches.indices.tolist() == [[1, 2], [3, 0]]
    assert matches.scores.tolist() == [0.5, 0.25]
    assert len(matches) == 2


def test_keypoints_without_a_match_have_index_minus_one_and_score_zero() -> None:
    matches = Matches(np.array([[1, 7]], np.int32), np.array([0.9], np.float32))
    assert matches.matches0(3).tolist() == [-1, 7, -1]
    assert matches.matching_scores0(3).tolist() == [0, np.float32(0.9), 0]


def test_only_names_decide_equality_and_order_of_pairs() -> None:
    first, again = Pair("a", "b", "retrieval#1", 0.9), Pair("a", "b", "list")
    assert first == again and hash(first) == hash(again)
    assert sorted([Pair("b", "c"), Pair("a", "d"), first]) == [Pair("a", "b"), Pair("a", "d"), Pair("b", "c")]


def test_records_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Pair("a", "b").name0 = "c"  # type: ignore[misc]


def test_the_size_of_an_image_is_width_then_height() -> None:
    assert Image("a", np.zeros((20, 30, 3), np.uint8)).size == (30, 20)


def test_the_length_of_features_is_the_number_of_keypoints() -> None:
    features = Features(np.zeros((4, 2), np.float32), np.ones(4, np.float32), np.zeros((4, 8), np.float32), (30, 20))
    assert len(features) == 4


def test_the_names_of_a_pair_are_sorted_and_different() -> None:
    pair = Pair("b", "a", "list", 0.5)
    assert (pair.name0, pair.name1, pair.reason, pair.score) == ("a", "b", "list", 0.5)
    assert {pair, Pair("a", "b")} == {pair}
    with pytest.raises(ValueError, match="'a' cannot be paired with itself"):
        Pair("a", "a")


@pytest.mark.parametrize(("configuration", "is_verified"), [("CALIBRATED", True), ("PLANAR", True), ("DEGENERATE", False)])
def test_a_degenerate_geometry_is_not_verified(configuration: str, is_verified: bool) -> None:
    assert TwoViewGeometry(configuration, np.zeros((0, 2), np.int32), 0, 1.0).is_verified == is_verified


@pytest.mark.parametrize("ends", ["", "ab", "ab ac bc", "bc ab ac", "ab ab ac", "ab ac ab"])
def test_pairs_are_sorted_and_each_is_there_once(ends: str) -> None:
    pairs = [Pair(*both) for both in ends.split()]
    assert sorted_pairs(iter(pairs)) == sorted(set(pairs), key=lambda pair: (pair.name0, pair.name1))
    assert sorted_pairs(pairs) is not pairs
