"""Rough focal lengths from fundamental matrices, found by a search that needs no starting values.

With the right intrinsics a fundamental matrix becomes an essential matrix, whose two singular values are equal (Huang and
Faugeras 1989). COLMAP's view-graph calibration minimises their difference from a starting point, and stays near it if that is far
from the truth: photos of two zooms at 0.75 and 1.25 times the longest side, begun at 1.2, became 0.99 to 1.36 and 1.2.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

GRID = np.geomspace(0.4, 4.0, 24)
"""Focal lengths that are tried, as multiples of the longest side: steps of 10 %."""
SCALE = 0.02
"""Scale of the robust loss: relative difference of the two singular values."""
MAX_SWEEPS = 20
MAX_WORK = 20_000
"""Pairs x starting values: fewer values are tried for many pairs, those with the smallest sum of losses."""
CHUNK = 2048
"""Pairs that are computed at the same time: 40 MB."""


def search_focal_lengths(
    fundamentals: np.ndarray, photos: np.ndarray, num_inliers: np.ndarray, units: np.ndarray, is_known: np.ndarray
) -> np.ndarray:
    """float64 (n,): the focal length of each photo / its unit, one of GRID; 1 for known cameras.

    It starts with one value for all photos, and changes each photo in turn as long as the sum of the losses of all pairs falls
    (iterated conditional modes). Of several starting values that with the smallest sum counts: many end in a wrong minimum. Pairs
    with parallel optical axes, or of a plane, have nearly equal losses for all values.

    Args:
        fundamentals: float64 (m, 3, 3): x1^T F x0 = 0, px.
        photos: int (m, 2): photos 0 and 1 of each pair.
        num_inliers: (m,): the weights of the pairs, as the variance of an estimate falls with the number of its inliers.
        units: float64 (n, 3, 3): intrinsics of each photo at a focal length of 1 unit; those of a known camera itself.
        is_known: bool (n,): photos of known cameras.
    """
    if len(fundamentals) == 0 or is_known.all():
        return np.where(is_known, 1.0, GRID[0])
    losses = _losses(fundamentals, photos, units, is_known) * np.asarray(num_inliers, np.float32)[:, None, None]
    partners: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
    for pair, (photo0, photo1) in enumerate(photos.tolist()):
        partners[photo0].append((pair, 0, photo1))
        partners[photo1].append((pair, 1, photo0))
    free = [photo for photo in np.flatnonzero(~is_known).tolist() if partners[photo]]
    starts = np.argsort(np.einsum("pii->i", losses), kind="stable")[: max(3, MAX_WORK // len(photos))]
    found = [_descend(losses, free, partners, np.full(len(units), start)) for start in starts]
    totals = [losses[np.arange(len(photos)), chosen[photos[:, 0]], chosen[photos[:, 1]]].sum() for chosen in found]
    return np.where(is_known, 1.0, GRID[found[int(np.argmin(totals))]])


def _descend(
    losses: np.ndarray, free: Sequence[int], partners: Mapping[int, Sequence[tuple[int, int, int]]], chosen: np.ndarray
) -> np.ndarray:
    """The values, as positions in GRID, after the photos in `free` took their best value in turn until none changes."""
    for _ in range(MAX_SWEEPS):
        before = chosen.copy()
        for photo in free:
            chosen[photo] = _best(losses, partners[photo], chosen)
        if (chosen == before).all():
            break
    return chosen


def _best(losses: np.ndarray, partners: Sequence[tuple[int, int, int]], chosen: np.ndarray) -> int:
    """The value for a photo with the smallest sum of losses; `partners` are pair, side of the photo, and the other photo."""
    total = np.zeros(len(GRID))
    for pair, side, other in partners:
        total += losses[pair, :, chosen[other]] if side == 0 else losses[pair, chosen[other], :]
    return int(np.argmin(total))


def _losses(fundamentals: np.ndarray, photos: np.ndarray, units: np.ndarray, is_known: np.ndarray) -> np.ndarray:
    """float32 (m, g, g): loss of each pair for each value of GRID for photo 0 and photo 1."""
    scales = np.where(is_known[:, None], 1.0, GRID)  # n g
    diagonals = np.stack([scales, scales, np.ones_like(scales)], axis=2)  # n g 3
    losses = np.empty((len(fundamentals), len(GRID), len(GRID)), np.float32)
    for start in range(0, len(fundamentals), CHUNK):
        part = slice(start, start + CHUNK)
        first, second = photos[part].T
        essentials = np.swapaxes(units[second], 1, 2) @ fundamentals[part] @ units[first]
        essentials /= np.linalg.norm(essentials, axis=(1, 2), keepdims=True)
        essentials = essentials[:, None, None] * diagonals[first][:, :, None, None, :] * diagonals[second][:, None, :, :, None]
        # The third singular value is 0: trace and half the second invariant of E^T E are the sum and the product of the squares.
        gram = np.swapaxes(essentials, -1, -2) @ essentials
        squares = np.trace(gram, axis1=-2, axis2=-1)
        product = np.sqrt(np.maximum(squares**2 - (gram**2).sum(axis=(-2, -1)), 0) / 2)
        ratio = np.maximum(squares - 2 * product, 0) / (squares + 2 * product)  # ((s1 - s2) / (s1 + s2))^2
        losses[part] = np.log1p(ratio / SCALE**2)
    return losses
