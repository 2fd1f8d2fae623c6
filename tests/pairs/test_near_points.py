"""Nearest neighbours of points, against a full table of distances."""

from __future__ import annotations

import numpy as np
import pytest

from sfm_lightglue.pairs import near_points as module
from sfm_lightglue.pairs.near_points import near_points


def table_of(points: np.ndarray) -> np.ndarray:
    return np.linalg.norm(points[:, None] - points[None], axis=2) + np.diag(np.full(len(points), np.inf))


@pytest.mark.parametrize(("num_points", "count"), [(400, 5), (300, 1), (10, 20), (1, 3), (0, 3)])
def test_the_nearest_points_are_those_of_a_full_table(num_points: int, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEAF", 32)
    points = np.random.default_rng(0).normal(size=(num_points, 3))
    points[: num_points // 3] = points[: num_points // 3].round(1)  # equal distances, and points at one place
    table = table_of(points)
    found = {index: (near, distances) for index, near, distances in near_points(points, count)}
    assert sorted(found) == list(range(num_points))
    for index, (near, distances) in found.items():
        expected = np.argsort(table[index], kind="stable")[: min(count, num_points - 1)]
        assert near.tolist() == expected.tolist()
        np.testing.assert_allclose(distances, table[index][expected])


def test_all_points_within_a_radius_are_found() -> None:
    points = np.random.default_rng(1).normal(size=(600, 2))
    table = table_of(points)
    for index, near, _ in near_points(points, None, 0.3):
        assert sorted(near) == np.flatnonzero(table[index] <= 0.3).tolist()


def test_points_that_are_not_allowed_are_skipped_and_others_take_their_place() -> None:
    points = np.random.default_rng(2).normal(size=(600, 2))
    colour = np.arange(600) % 30
    table = np.where(colour[:, None] == colour, table_of(points), np.inf)
    for index, near, _ in near_points(points, 4, allowed=lambda rows, columns: colour[rows][:, None] == colour[columns]):
        assert near.tolist() == np.argsort(table[index], kind="stable")[:4].tolist()
