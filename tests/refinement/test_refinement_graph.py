"""References and edges between keypoints, and the affine maps around matches."""

from __future__ import annotations

import numpy as np
import pytest

from sfm_lightglue.refinement.affine import local_affine
from sfm_lightglue.refinement.graph import choose_edges, component_labels, find_references


def labels_one_by_one(count: int, edges: np.ndarray) -> list[int]:
    """The oracle: labels spread along one edge after the other until nothing changes."""
    labels = [*range(count)]
    for _ in range(count):
        for a, b in edges.tolist():
            labels[a] = labels[b] = min(labels[a], labels[b])
    return labels


@pytest.mark.parametrize("seed", range(5))
def test_components_are_those_of_the_oracle(seed: int) -> None:
    random = np.random.default_rng(seed)
    edges = random.integers(0, 60, (int(random.integers(1, 70)), 2))
    assert component_labels(60, edges).tolist() == labels_one_by_one(60, edges)


def test_a_long_chain_is_one_component() -> None:
    edges = np.random.default_rng(0).permutation(np.column_stack([np.arange(999), np.arange(1, 1000)]))
    assert (component_labels(1000, edges) == 0).all()


def test_the_reference_of_a_track_is_its_keypoint_with_most_matches() -> None:
    edges = np.array([[1, 5], [5, 7], [5, 8], [2, 3], [3, 9], [2, 9]])
    assert find_references(12, edges).tolist() == [2, 5]
    assert find_references(12, edges[:0]).tolist() == []


def test_each_waiting_keypoint_gets_the_neighbour_with_the_fewest_steps() -> None:
    edges = np.array([[0, 1], [2, 1], [3, 0], [4, 5], [6, 1]])
    steps = np.array([0, -1, 2, -1, -1, -1, 0])
    chosen, flipped = choose_edges(edges, np.ones(5, bool), steps)
    assert chosen.tolist() == [0, 2]  # keypoint 1 by 0, not by 2; 6 has fewer edges than 0
    assert flipped.tolist() == [False, True]
    chosen, _ = choose_edges(edges, np.array([False, True, True, True, False]), steps)
    assert chosen.tolist() == [1, 2]


def test_the_map_of_a_slanted_plane_is_found_in_spite_of_wrong_matches() -> None:
    random = np.random.default_rng(0)
    points0, truth = random.uniform(0, 500, (200, 2)), np.array([[0.8, 0.3], [-0.2, 1.1]])
    points1 = points0 @ truth.T + 20 + random.normal(0, 0.5, (200, 2))
    points1[::20] += 100
    queries = np.setdiff1d(np.arange(200), np.arange(0, 200, 20))
    error = np.abs(local_affine(points0, points1, queries) - truth).max(axis=(1, 2))
    assert np.median(error) < 0.06


def test_few_matches_give_a_turn_and_a_scale_and_one_gives_the_identity() -> None:
    turn = 2 * np.array([[0.0, -1.0], [1.0, 0.0]])
    points0 = np.array([[10.0, 10.0], [30.0, 25.0]])
    assert np.allclose(local_affine(points0, points0 @ turn.T, np.array([0, 1])), turn)
    assert np.array_equal(local_affine(points0[:1], points0[:1], np.array([0])), np.eye(2)[None])
