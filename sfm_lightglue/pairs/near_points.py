"""Nearest neighbours of points in space, exact, in memory that does not grow with the square of their number."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias

import numpy as np

LEAF = 256
"""Points that look for their neighbours together."""

Mask: TypeAlias = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""From indices (r,) and (c,) to bool (r, c): which points may be neighbours."""


def near_points(
    points: np.ndarray, count: int | None, max_distance: float = np.inf, *, step: float = 0.0, allowed: Mask | None = None
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """For each point, in any order: its index, the indices of its neighbours (m,), nearest first, and their distances (m,).

    At equal distances the smaller index comes first. A point is no neighbour of itself.

    The points are split into leaves of a k-d tree. The points of a leaf look among all points of a box around it; the box grows
    until it holds enough. 100,000 points on a plane with 20 neighbours take 4 s on one core and 0.2 GB.

    Args:
        points: (n, d), finite.
        count: Largest number of neighbours of a point; None for all within `max_distance`.
        max_distance: Points that are farther apart are no neighbours.
        step: Distances are rounded to a multiple of this; 0 does not round.
        allowed: Which points may be neighbours; None allows all.
    """
    points = np.asarray(points, np.float64)
    leaves = _leaves(points, max(LEAF, 4 * (count or 0)))
    low = np.array([points[leaf].min(axis=0) for leaf in leaves])
    high = np.array([points[leaf].max(axis=0) for leaf in leaves])
    extent = float(np.linalg.norm(high.max(axis=0) - low.min(axis=0))) if leaves else 0.0
    for number, leaf in enumerate(leaves):
        waiting, reach = leaf, _first_reach(points[leaf], count, max_distance)
        while len(waiting):
            gaps = np.maximum(np.maximum(low - high[number], low[number] - high), 0)
            near = np.flatnonzero(np.linalg.norm(gaps, axis=1) <= reach + step)
            candidates = np.sort(np.concatenate([leaves[i] for i in near]))
            inside = (points[candidates] >= low[number] - reach - step) & (points[candidates] <= high[number] + reach + step)
            candidates = candidates[inside.all(axis=1)]
            is_last = reach >= min(max_distance, extent)
            later = []
            for index, distances in zip(waiting, _distances(points, waiting, candidates, step, allowed), strict=True):
                fits = np.flatnonzero(distances <= min(reach, max_distance))
                if not is_last and (count is None or len(fits) < count):
                    later.append(index)
                    continue
                best = fits[np.argsort(distances[fits], kind="stable")][:count]
                yield int(index), candidates[best], distances[best]
            waiting, reach = np.array(later, np.int64), min(2 * reach, max_distance) or extent


def _leaves(points: np.ndarray, size: int) -> list[np.ndarray]:
    """Indices of the points in boxes of at most `size`, split at the median of the longest side."""
    leaves, waiting = [], [np.arange(len(points))] if len(points) else []
    while waiting:
        indices = waiting.pop()
        if len(indices) <= size:
            leaves.append(indices)
            continue
        axis = int(np.argmax(np.ptp(points[indices], axis=0)))
        order = indices[np.argsort(points[indices, axis], kind="stable")]
        waiting += [order[: len(order) // 2], order[len(order) // 2 :]]
    return leaves


def _first_reach(points: np.ndarray, count: int | None, max_distance: float) -> float:
    """How far the points of a leaf look at first: as far as their neighbours within the leaf are."""
    if count is None:
        return max_distance
    if len(points) <= count:
        return max(float(np.linalg.norm(np.ptp(points, axis=0))), 1e-9)
    distances = np.linalg.norm(points[:, None] - points[None], axis=2)  # the point itself is among them, so index `count`
    return min(float(np.partition(distances, count, axis=1)[:, count].max()) * (1 + 1e-9) + 1e-9, max_distance)


def _distances(points: np.ndarray, rows: np.ndarray, columns: np.ndarray, step: float, allowed: Mask | None) -> np.ndarray:
    """float64 (r, c): distances of the points; infinity for a point and itself, and for those that are not allowed."""
    distances: np.ndarray = np.linalg.norm(points[rows][:, None] - points[columns][None], axis=2)
    if step:
        distances = np.rint(distances / step) * step
    distances[rows[:, None] == columns] = np.inf
    if allowed is not None:
        distances[~allowed(rows, columns)] = np.inf
    return distances
