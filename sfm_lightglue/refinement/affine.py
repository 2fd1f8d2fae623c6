"""The affine map around each match, from the matches near it."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Float64, Int

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
    distances = ((points0[queries, None].astype(np.float32) - points0[None].astype(np.float32)) ** 2).sum(-1)  # q k
    nearest = np.argpartition(distances, count - 1, axis=1)[:, :count]
    distances = np.take_along_axis(distances, nearest, axis=1).astype(np.float64)
    offsets0, offsets1 = points0[nearest] - points0[queries, None], points1[nearest] - points1[queries, None]  # q n 2
    near = np.exp(-distances / np.maximum(distances.max(axis=1, keepdims=True), 1))
    weights = near
    for _ in range(3):
        maps = _fit(offsets0, offsets1, weights)
        errors = np.linalg.norm(offsets1 - offsets0 @ maps.transpose(0, 2, 1), axis=2)
        weights = near / (1 + (errors / (2 * np.maximum(np.median(errors, axis=1, keepdims=True), 1))) ** 2)
    return maps


def _fit(offsets0: np.ndarray, offsets1: np.ndarray, weights: np.ndarray) -> Float64[np.ndarray, "q 2 2"]:
    weighted = weights[..., None] * offsets0
    moments, products = weighted.transpose(0, 2, 1) @ offsets0, offsets1.transpose(0, 2, 1) @ weighted
    square = np.trace(moments, axis1=1, axis2=2) + 1e-9
    cosine = np.trace(products, axis1=1, axis2=2) / square
    sine = (products[:, 1, 0] - products[:, 0, 1]) / square
    similarity = np.stack([np.stack([cosine, -sine], axis=1), np.stack([sine, cosine], axis=1)], axis=1)
    strength = PRIOR * square[:, None, None] / 2
    fitted: np.ndarray = (products + strength * similarity) @ np.linalg.inv(moments + strength * np.eye(2))
    return fitted
