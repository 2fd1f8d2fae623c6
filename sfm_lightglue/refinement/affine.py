"""The affine map around each match, from the matches near it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float32, Float64, Int

NUM_NEIGHBOURS = 16
"""Matches that a map is estimated from."""
PRIOR = 0.1
"""Weight of a map that only turns and scales, compared with the matches."""


def local_affine(
    points0: Float[np.ndarray, "k 2"], points1: Float[np.ndarray, "k 2"], queries: Int[np.ndarray, " q"]
) -> Float64[np.ndarray, "q 2 2"]:
    """Derivative of the point in image 1 after the point in image 0, at some matches of a pair.

    Weighted least squares over the nearest matches; far matches and those that do not fit count less. Few matches give a map that
    turns and scales, a single match gives the identity.

    Args:
        points0: matched points in image 0.
        points1: matched points in image 1.
        queries: the matches to estimate the map at.
    """
    count = min(NUM_NEIGHBOURS + 1, len(points0))
    if count < 2:
        return np.broadcast_to(np.eye(2), (len(queries), 2, 2)).copy()
    points0, points1 = (np.asarray(points, np.float64) for points in (points0, points1))
    x0, y0, x1, y1 = *points0.T, *points1.T
    distances = _square_distances(x0, y0, queries)  # q k
    nearest = np.argpartition(distances, count - 1, axis=1)[:, :count]
    distances = np.take_along_axis(distances, nearest, axis=1).astype(np.float64)
    offsets = [values[nearest] - values[queries, None] for values in (x0, y0, x1, y1)]  # each q n
    near = np.exp(-distances / np.maximum(distances.max(axis=1, keepdims=True), 1))
    weights = near
    for _ in range(3):
        maps = _fit(offsets, weights)
        (u, v, x, y), (a, b, c, d) = offsets, maps.reshape(-1, 4).T[..., None]
        errors = np.hypot(x - a * u - b * v, y - c * u - d * v)
        weights = near / (1 + (errors / (2 * np.maximum(np.median(errors, axis=1, keepdims=True), 1))) ** 2)
    return maps


def _square_distances(x: np.ndarray, y: np.ndarray, queries: np.ndarray) -> Float32[np.ndarray, "q k"]:
    x, y = x.astype(np.float32), y.astype(np.float32)
    distances: np.ndarray = (x[queries, None] - x) ** 2
    distances += (y[queries, None] - y) ** 2
    return distances


def _fit(offsets: Sequence[np.ndarray], weights: np.ndarray) -> Float64[np.ndarray, "q 2 2"]:
    """The maps that take (u, v) to (x, y) best, from `offsets` = (u, v, x, y)."""
    u, v, x, y = offsets
    weighted_u, weighted_v = weights * u, weights * v
    uu, uv, vv = (weighted_u * u).sum(1), (weighted_u * v).sum(1), (weighted_v * v).sum(1)
    xu, xv, yu, yv = ((left * right).sum(1) for left in (x, y) for right in (weighted_u, weighted_v))
    square = uu + vv + 1e-9
    cosine, sine = (xu + yv) / square, (yu - xv) / square
    strength = PRIOR * square / 2
    uu, vv = uu + strength, vv + strength
    xu, xv, yu, yv = xu + strength * cosine, xv - strength * sine, yu + strength * sine, yv + strength * cosine
    rows = xu * vv - xv * uv, xv * uu - xu * uv, yu * vv - yv * uv, yv * uu - yu * uv
    fitted: np.ndarray = (np.stack(rows, axis=1) / (uu * vv - uv**2)[:, None]).reshape(-1, 2, 2)
    return fitted
