"""Nearest neighbours of global descriptors, compared with a plain sort of the full table of similarities."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sfm_lightglue.pairs.nearest import top_k_pairs
from sfm_lightglue.products import Pair

RESOLUTION = 2.0**-16  # similarities are rounded to this step


def image_names(count: int) -> list[str]:
    return [f"{i:04d}.jpg" for i in range(count)]


def rows(pairs: list[Pair]) -> list[tuple[str, str, str, float]]:
    return [(pair.name0, pair.name1, pair.reason, pair.score) for pair in pairs]


def slow_ranks(
    names: list[str], descriptors: np.ndarray, num_neighbours: int, positions: np.ndarray | None = None, min_distance: int = 1
) -> dict[tuple[str, str], tuple[int, float]]:
    """Best rank and similarity of each pair, from a plain sort of the full table of similarities."""
    lengths = np.linalg.norm(descriptors.astype(np.float64), axis=1)
    found: dict[tuple[str, str], tuple[int, float]] = {}
    positions = np.arange(len(names)) if positions is None else positions
    for i in range(len(names)):
        ranking = []
        for j in range(len(names)):
            if lengths[i] and lengths[j] and abs(positions[i] - positions[j]) >= min_distance:
                cosine = descriptors[i].astype(np.float64) @ descriptors[j].astype(np.float64) / (lengths[i] * lengths[j])
                ranking.append((-round(cosine / RESOLUTION) * RESOLUTION, names[j]))
        for rank, (cosine, name) in enumerate(sorted(ranking)[:num_neighbours], 1):
            pair = (min(names[i], name), max(names[i], name))
            found[pair] = min(found.get(pair, (rank, -cosine)), (rank, -cosine))
    return found


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 30), st.integers(1, 40), st.integers(1, 12), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_pairs_equal_a_sort_of_the_full_table(count: int, num_neighbours: int, block: int, min_distance: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    descriptors = generator.integers(-2, 3, (count, 3)).astype(np.float32)  # many ties, and zero rows
    names, positions = image_names(count), generator.permutation(count)
    pairs = top_k_pairs(names, descriptors, num_neighbours, positions=positions, min_distance=min_distance, block=block)
    expected = slow_ranks(names, descriptors, num_neighbours, positions, min_distance)
    assert [(pair.name0, pair.name1) for pair in pairs] == sorted(expected)
    for pair in pairs:
        rank, score = expected[pair.name0, pair.name1]
        assert pair.reason == f"retrieval#{rank}"
        assert pair.score == pytest.approx(score, abs=2 * RESOLUTION)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_the_size_of_the_blocks_does_not_matter(dtype: type) -> None:
    signs = np.random.default_rng(0).choice([-1, 1], (90, 16))  # exact similarities in any order of summation
    descriptors = signs.astype(dtype)
    whole = top_k_pairs(image_names(90), descriptors, 5, block=1000)
    assert rows(top_k_pairs(image_names(90), descriptors, 5, block=7)) == rows(whole)


def test_the_order_of_the_input_does_not_matter() -> None:
    generator = np.random.default_rng(1)
    names, descriptors = image_names(50), generator.integers(-1, 2, (50, 4)).astype(np.float32)
    order = generator.permutation(50)
    shuffled = top_k_pairs([names[i] for i in order], descriptors[order], 4, positions=order)
    assert rows(shuffled) == rows(top_k_pairs(names, descriptors, 4))


def test_equal_images_are_ranked_by_name() -> None:
    descriptors = np.ones((5, 8), np.float32)
    assert rows(top_k_pairs(list("edcba"), descriptors, 1)) == [
        ("a", "b", "retrieval#1", 1.0),
        ("a", "c", "retrieval#1", 1.0),
        ("a", "d", "retrieval#1", 1.0),
        ("a", "e", "retrieval#1", 1.0),
    ]


def test_the_score_is_the_cosine_of_descriptors_of_any_length() -> None:
    descriptors = np.array([[1, 0], [100, 0], [-3, 0]], np.float32)
    scores = {(pair.name0, pair.name1): pair.score for pair in top_k_pairs(["a", "b", "c"], descriptors, 10)}
    assert scores == {("a", "b"): 1.0, ("a", "c"): -1.0, ("b", "c"): -1.0}


def test_images_without_features_get_no_pairs() -> None:
    descriptors = np.array([[1, 0], [0, 0], [0, 1]], np.float32)
    assert [(pair.name0, pair.name1) for pair in top_k_pairs(["a", "b", "c"], descriptors, 2)] == [("a", "c")]
    assert top_k_pairs(["a", "b"], np.zeros((2, 4), np.float32), 2) == []


def test_no_images_and_one_image_give_no_pairs() -> None:
    assert top_k_pairs([], np.zeros((0, 4), np.float32), 5) == []
    assert top_k_pairs(["a"], np.ones((1, 4), np.float32), 5) == []


def test_pairs_below_the_minimum_score_are_dropped() -> None:
    descriptors = np.random.default_rng(2).standard_normal((40, 6)).astype(np.float32)
    everything = top_k_pairs(image_names(40), descriptors, 8)
    kept = top_k_pairs(image_names(40), descriptors, 8, min_score=0.6)
    assert 0 < len(kept) < len(everything)
    assert rows(kept) == [row for row in rows(everything) if row[3] >= 0.6]


def test_only_the_queries_look_for_neighbours() -> None:
    descriptors = np.random.default_rng(3).standard_normal((20, 6)).astype(np.float32)
    names = image_names(20)
    pairs = top_k_pairs(names, descriptors, 3, queries={names[4]}, reason="loop")
    assert sorted(pair.reason for pair in pairs) == ["loop#1", "loop#2", "loop#3"]
    assert all(names[4] in (pair.name0, pair.name1) for pair in pairs)


def test_wrong_input_is_refused() -> None:
    with pytest.raises(ValueError, match="3 names"):
        top_k_pairs(["a", "b", "c"], np.ones((2, 4), np.float32), 1)
    with pytest.raises(ValueError, match="1 different"):
        top_k_pairs(["a", "a"], np.ones((2, 4), np.float32), 1)
    with pytest.raises(ValueError, match="of b is not finite"):
        top_k_pairs(["a", "b"], np.array([[1, 1], [1, np.nan]], np.float32), 1)
    with pytest.raises(ValueError, match="num_neighbours is 0"):
        top_k_pairs(["a", "b"], np.ones((2, 4), np.float32), 0)


def test_no_table_larger_than_a_block_is_made_and_each_is_used_for_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, matmul = [], torch.Tensor.__matmul__

    def recording_matmul(rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        product = matmul(rows, columns)
        sizes.append(product.numel())
        return product

    monkeypatch.setattr(torch.Tensor, "__matmul__", recording_matmul)
    descriptors = np.random.default_rng(4).standard_normal((300, 8)).astype(np.float32)
    top_k_pairs(image_names(300), descriptors, 5, block=50)
    assert sizes == [50 * 50] * 21  # of 36 blocks, those on and above the diagonal
    sizes.clear()
    top_k_pairs(image_names(300), descriptors, 5, block=50, queries=set(image_names(10)))
    assert sizes == [10 * 50] * 6


@pytest.mark.parametrize("ascending", [True, False])
def test_neighbours_that_become_better_from_block_to_block_are_all_found(ascending: bool) -> None:
    angles = np.linspace(0, 1.5, 60)[:: 1 if ascending else -1]  # the last or the first images are the most similar to the others
    descriptors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    names = image_names(60)
    expected = slow_ranks(names, descriptors, 7)
    found = {(pair.name0, pair.name1): pair.reason for pair in top_k_pairs(names, descriptors, 7, block=5)}
    assert found == {pair: f"retrieval#{rank}" for pair, (rank, _) in expected.items()}
