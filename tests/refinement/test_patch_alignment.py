"""The alignment of patches, on pictures that are known at every point."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from sfm_lightglue.refinement.alignment import HALF_TILE, align

LINE = np.arange(-HALF_TILE, HALF_TILE + 1)
GRID = np.stack(np.meshgrid(LINE, LINE), axis=-1).astype(np.float64)  # (y, x) -> x, y


def picture(seed: int, places: np.ndarray) -> np.ndarray:
    """Grey values at places (..., 2), 0..1: waves of all directions, 5 to 20 px long."""
    random = np.random.default_rng(seed)
    angle, length = random.uniform(0, np.pi, 30), random.uniform(5, 20, 30)
    waves = 2 * np.pi / length * np.stack([np.cos(angle), np.sin(angle)])
    return 0.5 + np.sin(places @ waves + random.uniform(0, 2 * np.pi, 30)).sum(-1) / 30


def tiles_of_pairs(
    count: int, brightness: float = 1.0, offset: float = 0.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of tiles uint8, the true affine maps, and where the middle of tile 0 lies in tile 1."""
    random = np.random.default_rng(0)
    maps = np.eye(2) + random.uniform(-0.2, 0.2, (count, 2, 2))
    moves = random.uniform(-1.5, 1.5, (count, 2))
    tiles0 = np.stack([picture(i, GRID) for i in range(count)])
    tiles1 = np.stack([picture(i, (GRID - moves[i]) @ np.linalg.inv(maps[i]).T) for i in range(count)])
    levels = [np.rint(255 * np.clip(tile, 0, 1)).astype(np.uint8) for tile in (tiles0, brightness * tiles1 + offset)]
    return levels[0], levels[1], maps, moves


@pytest.mark.parametrize(("brightness", "offset"), [(1.0, 0.0), (0.5, 0.3)])
def test_moves_are_found_to_a_twentieth_of_a_pixel_under_other_brightness_and_contrast(brightness: float, offset: float) -> None:
    tiles0, tiles1, maps, moves = tiles_of_pairs(40, brightness, offset)
    inexact = maps + np.random.default_rng(1).uniform(-0.05, 0.05, maps.shape)
    found = align(tiles0, tiles1, np.zeros((40, 2)), np.zeros((40, 2)), inexact)
    assert np.median(np.linalg.norm(found.positions - moves, axis=1)) < 0.05
    assert (found.correlations > 0.95).mean() > 0.9


def test_the_template_may_lie_between_pixels() -> None:
    tiles0, tiles1, maps, moves = tiles_of_pairs(40)
    middle = np.random.default_rng(2).uniform(-0.5, 0.5, (40, 2))
    found = align(tiles0, tiles1, middle, middle, maps)
    truth = moves + (maps @ middle[..., None])[..., 0]
    assert np.median(np.linalg.norm(found.positions - truth, axis=1)) < 0.05


def test_other_pictures_flat_tiles_and_windows_outside_do_not_correlate() -> None:
    tiles0, tiles1, maps, _ = tiles_of_pairs(20)
    zeros = np.zeros((20, 2))
    assert (align(tiles0, np.roll(tiles1, 1, axis=0), zeros, zeros, maps).correlations < 0.85).all()
    assert (align(tiles0, np.full_like(tiles1, 7), zeros, zeros, maps).correlations < 0.1).all()
    assert (align(np.full_like(tiles0, 7), tiles1, zeros, zeros, maps).correlations < 0.1).all()
    assert (align(tiles0, tiles1, zeros, zeros, 4 * maps).correlations == -1).all()
    assert len(align(tiles0[:0], tiles1[:0], zeros[:0], zeros[:0], maps[:0]).positions) == 0


def test_the_bits_do_not_depend_on_threads_or_on_the_other_patches() -> None:
    tiles0, tiles1, maps, _ = tiles_of_pairs(30)
    zeros, before = np.zeros((30, 2)), torch.get_num_threads()
    whole = align(tiles0, tiles1, zeros, zeros, maps)
    try:
        torch.set_num_threads(1 if before > 1 else 2)
        again = align(tiles0, tiles1, zeros, zeros, maps)
        with ThreadPoolExecutor(2) as pool:
            halves = [slice(0, 11), slice(11, 30)]
            parts = [*pool.map(lambda rows: align(tiles0[rows], tiles1[rows], zeros[rows], zeros[rows], maps[rows]), halves)]
    finally:
        torch.set_num_threads(before)
    assert np.array_equal(whole.positions, again.positions)
    assert np.allclose(whole.positions, np.concatenate([part.positions for part in parts]), atol=1e-4)
