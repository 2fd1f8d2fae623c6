"""Photos are divided into clusters of limited size that overlap and are cut where few matches are."""

from __future__ import annotations

import itertools

import networkx
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sfm_lightglue.reconstruction.clustering import cluster_photos


def grid(side: int) -> dict[tuple[int, int], int]:
    """Photos over a field: each is verified with its eight neighbours."""
    places = list(itertools.product(range(side), repeat=2))
    return {
        (first, second): 100
        for first, second in itertools.combinations(range(side**2), 2)
        if max(abs(a - b) for a, b in zip(places[first], places[second], strict=True)) == 1
    }


def two_groups(size: int, inside: int, across: int) -> dict[tuple[int, int], int]:
    """Two groups of photos with many inliers in each group, and few between them."""
    pairs = itertools.combinations(range(2 * size), 2)
    return {pair: inside if (pair[0] < size) == (pair[1] < size) else across for pair in pairs}


def test_few_photos_are_one_cluster() -> None:
    assert cluster_photos(two_groups(4, 200, 20), 8, 2) == [list(range(8))]
    assert cluster_photos({}, 8, 2) == []


def test_the_cut_goes_where_few_inliers_are() -> None:
    assert cluster_photos(two_groups(6, 200, 20), 8, 0) == [list(range(6)), list(range(6, 12))]


def test_unequal_groups_are_not_cut_in_the_middle() -> None:
    pairs = itertools.combinations(range(18), 2)
    weights = {pair: 200 if (pair[0] < 7) == (pair[1] < 7) else 5 for pair in pairs}
    assert cluster_photos(weights, 12, 0) == [list(range(7)), list(range(7, 18))]


def test_neighbours_share_the_photos_with_the_heaviest_pairs() -> None:
    weights = two_groups(6, 200, 20) | {(2, 9): 90, (4, 9): 80}
    assert cluster_photos(weights, 8, 3) == [[0, 1, 2, 3, 4, 5, 9], [2, 4, 6, 7, 8, 9, 10, 11]]


def test_unconnected_parts_are_clusters_of_their_own() -> None:
    weights = {(0, 1): 50, (1, 2): 50, (3, 4): 50, (6, 7): 50}
    assert cluster_photos(weights, 10, 5) == [[0, 1, 2], [3, 4], [6, 7]]


@given(st.integers(0, 10_000), st.integers(5, 60), st.integers(3, 20), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_clusters_of_any_graph_are_limited_and_hold_every_photo(seed: int, size: int, max_size: int, overlap: int) -> None:
    generator = np.random.default_rng(seed)
    pairs = [pair for pair in itertools.combinations(range(size), 2) if generator.random() < 0.15]
    weights = {pair: int(generator.integers(15, 500)) for pair in pairs}
    cores = cluster_photos(weights, max_size, 0)
    assert sorted(itertools.chain.from_iterable(cores)) == sorted({image for pair in weights for image in pair})
    assert all(1 <= len(core) <= max_size for core in cores)
    clusters = cluster_photos(weights, max_size, overlap)
    assert len(clusters) == len(cores)
    graph = networkx.Graph(weights.keys())
    joined = networkx.Graph()
    joined.add_nodes_from(range(len(clusters)))
    joined.add_edges_from(
        pair for pair in itertools.combinations(range(len(clusters)), 2) if {*clusters[pair[0]]} & {*clusters[pair[1]]}
    )
    if overlap:  # clusters of one part of the graph hang together
        assert networkx.number_connected_components(joined) == networkx.number_connected_components(graph)


def test_clusters_of_a_field_are_compact_and_the_same_in_every_run() -> None:
    weights = grid(16)
    clusters = cluster_photos(weights, 64, 0)
    assert cluster_photos(dict(reversed(weights.items())), 64, 0) == clusters
    cluster_of = {image: number for number, cluster in enumerate(clusters) for image in cluster}
    cut = sum(cluster_of[first] != cluster_of[second] for first, second in weights) / len(weights)
    assert cut < 0.2  # measured: 0.15, with clusters below 64; four quadrants of 64 cut 0.10, random clusters 0.75
