"""Budgets of pairs, and the parts of the view graph."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from sfm_lightglue.api import select_pairs
from sfm_lightglue.pairs.budget import SelectionOptions, limit_pairs, rank_of
from sfm_lightglue.pairs.exhaustive import exhaustive_pairs
from sfm_lightglue.pairs.view_graph import GraphParts, components_of, graph_parts
from sfm_lightglue.products import Pair


def random_pairs(num_names: int, num_pairs: int, seed: int = 0) -> list[Pair]:
    generator = np.random.default_rng(seed)
    ends = {tuple(sorted(generator.choice(num_names, 2, replace=False).tolist())) for _ in range(num_pairs)}
    return [
        Pair(f"{i:03d}", f"{j:03d}", f"retrieval#{generator.integers(1, 9)}", float(generator.random())) for i, j in sorted(ends)
    ]


def test_without_limits_all_pairs_stay_sorted() -> None:
    pairs = random_pairs(20, 60)
    assert limit_pairs(pairs[::-1], None, None) == pairs
    assert limit_pairs(pairs, len(pairs), 19) == pairs
    assert limit_pairs([], 3, 3) == []


def test_the_best_rank_then_the_best_score_is_kept() -> None:
    pairs = [Pair("a", "b", "retrieval#2", 0.9), Pair("a", "c", "retrieval#1", 0.1), Pair("b", "c", "retrieval#1", 0.2)]
    assert limit_pairs(pairs, 2, None) == [Pair("a", "c"), Pair("b", "c")]
    assert limit_pairs(pairs, 1, None) == [Pair("b", "c")]
    assert limit_pairs(pairs, 1, None)[0].score == 0.2
    assert rank_of(Pair("a", "b", "retrieval#7,sequential+4")) == 4


def test_a_bad_pair_is_kept_if_only_it_connects_the_photos() -> None:
    near = [Pair(a, b, "retrieval#1", 0.9) for group in ("abc", "xyz") for a, b in zip(group, group[1:] + group[0], strict=True)]
    bridge = Pair("c", "x", "retrieval#20", 0.01)
    kept = limit_pairs([*near, bridge], 6, None)
    assert bridge in kept and len(kept) == 6
    assert graph_parts("abcxyz", kept).num_components == 1


@pytest.mark.parametrize("limit", [3, 5, 9])
def test_no_photo_gets_more_pairs_than_its_limit_and_the_rest_stays_connected(limit: int) -> None:
    pairs = random_pairs(60, 900)
    kept = limit_pairs(pairs, None, limit)
    degrees = Counter(name for pair in kept for name in (pair.name0, pair.name1))
    assert max(degrees.values()) == limit
    assert graph_parts(sorted(degrees), kept).num_components == 1
    assert limit_pairs(pairs[::-1], None, limit) == kept
    unused = set(pairs) - set(kept)
    assert all(max(degrees[pair.name0], degrees[pair.name1]) == limit for pair in unused)  # nothing that fits is left out


def test_pairs_that_nothing_tells_apart_are_neighbours_in_the_order_of_names(caplog: pytest.LogCaptureFixture) -> None:
    kept = limit_pairs(exhaustive_pairs("abcde"), 4, None)
    assert [(pair.name0, pair.name1) for pair in kept] == [("a", "b"), ("b", "c"), ("c", "d"), ("d", "e")]
    assert "neither ranks nor scores" in caplog.text


def test_a_cut_of_the_view_graph_is_told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    star = [Pair("hub", name, "retrieval#1", 0.5) for name in "abcd"]
    assert len(limit_pairs(star, None, 2)) == 2
    assert "keep 2 of 4 pairs; they cut the view graph into 2 more parts" in caplog.text


def test_parts_are_numbered_by_size_then_by_name() -> None:
    pairs = [Pair("x", "y"), Pair("b", "c"), Pair("c", "d")]
    assert components_of("abcdxy", pairs) == {"b": 0, "c": 0, "d": 0, "x": 1, "y": 1, "a": 2}
    assert graph_parts("abcdxy", pairs) == GraphParts(3, 3, 1)
    assert graph_parts([], []) == GraphParts(0, 0, 0)


def test_limits_below_one_are_refused() -> None:
    with pytest.raises(ValueError, match=r"pairs\.max_pairs must be at least 1, found 0"):
        SelectionOptions(rounds=1, min_partners=10, max_pairs=0, max_pairs_per_image=None)


def test_the_python_api_has_the_budgets_and_no_rounds() -> None:
    names = [f"{i}.jpg" for i in range(6)]
    assert len(select_pairs(names, "sequential", overlap=2, max_pairs=5)) == 5
    assert select_pairs(names, max_pairs_per_image=1) == [Pair(*names[:2]), Pair(*names[2:4]), Pair(*names[4:])]
    with pytest.raises(ValueError, match="rounds=2: further rounds need verified pairs"):
        select_pairs(names, rounds=2)
