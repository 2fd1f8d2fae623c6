"""Rough focal lengths are found from fundamental matrices without starting values."""

from __future__ import annotations

import itertools

import numpy as np
import pycolmap
import pytest

from sfm_lightglue.focal_search import GRID, search_focal_lengths

STEP = GRID[1] / GRID[0]


def fundamentals_of(factors: list[float], noise: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fundamental matrices of all pairs of cameras of 640 x 480 px, the photos of each pair, and the units of the photos."""
    generator = np.random.default_rng(0)
    rotations = [pycolmap.Rotation3d(generator.uniform(-0.4, 0.4, 3)).matrix() for _ in factors]
    centers = generator.uniform(-1, 1, (len(factors), 3))
    cameras = [np.array([[640 * factor, 0, 320], [0, 640 * factor, 240], [0, 0, 1]]) for factor in factors]
    photos = list(itertools.combinations(range(len(factors)), 2))
    found = []
    for first, second in photos:
        rotation, shift = rotations[second] @ rotations[first].T, rotations[second] @ (centers[first] - centers[second])
        essential = np.cross(np.eye(3), shift) @ rotation
        fundamental = np.linalg.inv(cameras[second]).T @ essential @ np.linalg.inv(cameras[first])
        found.append(fundamental * (1 + noise * generator.standard_normal((3, 3))))
    units = np.repeat(np.array([[[640.0, 0, 320], [0, 640, 240], [0, 0, 1]]]), len(factors), axis=0)
    return np.array(found), np.array(photos), units


@pytest.mark.parametrize("factors", [[0.5] * 6, [2.5] * 6, [0.75, 1.25] * 4, [0.6, 0.6, 2.0, 2.0, 1.0, 1.0, 0.6]])
def test_focal_lengths_are_found_to_a_step(factors: list[float]) -> None:
    fundamentals, photos, units = fundamentals_of(factors, noise=0.001)
    found = search_focal_lengths(fundamentals, photos, np.full(len(photos), 100), units, np.zeros(len(factors), bool))
    assert np.abs(np.log(found / factors)).max() < 1.01 * np.log(STEP)


def test_wrong_pairs_do_not_decide() -> None:
    fundamentals, photos, units = fundamentals_of([0.6] * 8)
    fundamentals[::4] = np.random.default_rng(1).standard_normal((7, 3, 3))
    left, values, right = np.linalg.svd(fundamentals)
    fundamentals = np.einsum("nij,nj,njk->nik", left, values * (1, 1, 0), right)
    found = search_focal_lengths(fundamentals, photos, np.full(len(photos), 100), units, np.zeros(8, bool))
    assert np.abs(np.log(found / 0.6)).max() < 1.01 * np.log(STEP)


def test_a_known_camera_stays_and_helps_the_others() -> None:
    fundamentals, photos, units = fundamentals_of([0.8, 1.6])
    units[0] = [[512, 0, 320], [0, 512, 240], [0, 0, 1]]
    found = search_focal_lengths(fundamentals, photos, np.full(len(photos), 100), units, np.array([True, False]))
    assert found[0] == 1 and abs(np.log(found[1] / 1.6)) < 1.01 * np.log(STEP)


def test_nothing_known_gives_a_value_of_the_grid() -> None:
    units = np.repeat(np.eye(3)[None], 3, axis=0)
    found = search_focal_lengths(np.zeros((0, 3, 3)), np.zeros((0, 2), int), np.zeros(0), units, np.array([True, False, False]))
    assert found[0] == 1 and np.isin(found[1:], GRID).all()
