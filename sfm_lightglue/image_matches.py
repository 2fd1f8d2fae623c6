"""Matches of two photos in memory, as `match_images` gives them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sfm_lightglue.products import Features, Matches


@dataclass(frozen=True)
class ImageMatches:
    """k matches between two images with n0 and n1 keypoints.

    Keypoints are (x, y) in pixels of their own image as stored, with the centre of the top-left pixel at (0, 0).
    """

    matched_keypoints0: np.ndarray
    """float32 (k, 2)."""
    matched_keypoints1: np.ndarray
    """float32 (k, 2): row i is the partner of row i of `matched_keypoints0`."""
    scores: np.ndarray
    """float32 (k,): matching scores, 0 to 1."""
    keypoints0: np.ndarray
    """float32 (n0, 2)."""
    keypoints1: np.ndarray
    """float32 (n1, 2)."""
    matches0: np.ndarray
    """int64 (n0,): index into `keypoints1`, -1 for no match."""
    matches1: np.ndarray
    """int64 (n1,): index into `keypoints0`, -1 for no match."""
    matching_scores0: np.ndarray
    """float32 (n0,), 0 for no match."""
    matching_scores1: np.ndarray
    """float32 (n1,), 0 for no match."""


def image_matches(features0: Features, features1: Features, matches: Matches, threshold: float | None = None) -> ImageMatches:
    """Matches together with the keypoints of both images. Matches with a score below `threshold` are dropped."""
    keep = matches.scores >= (0 if threshold is None else threshold)
    indices, scores = matches.indices[keep], matches.scores[keep]
    return ImageMatches(
        features0.keypoints[indices[:, 0]],
        features1.keypoints[indices[:, 1]],
        scores,
        features0.keypoints,
        features1.keypoints,
        _scatter(len(features0), indices[:, 0], indices[:, 1], -1, np.int64),
        _scatter(len(features1), indices[:, 1], indices[:, 0], -1, np.int64),
        _scatter(len(features0), indices[:, 0], scores, 0, np.float32),
        _scatter(len(features1), indices[:, 1], scores, 0, np.float32),
    )


def _scatter(size: int, index: np.ndarray, values: np.ndarray, empty: float, dtype: type) -> np.ndarray:
    array: np.ndarray = np.full(size, empty, dtype)
    array[index] = values
    return array
