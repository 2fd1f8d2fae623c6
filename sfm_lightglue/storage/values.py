"""Checks of numbers that come from another program: keypoints, scores, descriptors, match indices, image sizes.

COLMAP does not check what it is given: a keypoint at 1e30 px or a match index that is too large ends the process. Python
compares NaN silently, so that a NaN score passes every limit.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sfm_lightglue.products import Features, Matches
from sfm_lightglue.storage.safety import MAX_DESCRIPTOR_SIZE, MAX_KEYPOINTS

MAX_SIDE = 1_000_000
"""Largest width or height of an image, px."""
TOLERANCE_PX = 1.0
"""Keypoints may lie this far outside the image: programs differ by half a pixel in where an image begins."""


def check_features(features: Features, place: str) -> None:
    """Raises: ValueError that begins with `place` if a number is not finite or out of range.

    Scales must be positive. Scores may have any finite value, because detectors do not share a range.
    """
    check_keypoints(features.keypoints, features.image_size, features.pixel_scale, place)
    arrays = {name: getattr(features, name) for name in ("scores", "descriptors", "scales", "orientations")}
    for name, array in arrays.items():
        if array is not None and not np.isfinite(array).all():
            raise ValueError(f"{place} has {name} that are not finite numbers (NaN or infinite)")
    if features.scales is not None and len(features.scales) and features.scales.min() <= 0:
        raise ValueError(f"{place} has scales down to {features.scales.min()}, expected positive diameters in px")
    if features.descriptors.shape[1] > MAX_DESCRIPTOR_SIZE:
        raise ValueError(
            f"{place} has descriptors of {features.descriptors.shape[1]} values, up to {MAX_DESCRIPTOR_SIZE} are read"
        )


def check_keypoints(keypoints: np.ndarray, image_size: tuple[int, int], pixel_scale: float, place: str) -> None:
    """Checks what COLMAP gets: keypoints (n, 2), the size of the image and of a detection pixel. It takes about 10 us.

    Raises: ValueError that begins with `place`.
    """
    if len(keypoints) > MAX_KEYPOINTS:
        raise ValueError(f"{place} has {len(keypoints)} keypoints, an image may have up to {MAX_KEYPOINTS}")
    if not all(0 < side <= MAX_SIDE for side in image_size):
        raise ValueError(f"{place} has image_size {image_size}, expected (width, height) from 1 to {MAX_SIDE} px")
    if not 0 < pixel_scale <= max(image_size):  # False for NaN
        raise ValueError(
            f"{place} has uncertainty={pixel_scale}, expected the size of a detection pixel: positive, below the image size"
        )
    if not len(keypoints):
        return
    smallest, largest = keypoints.min(axis=0), keypoints.max(axis=0)  # NaN if one is NaN
    edge = np.array(image_size, np.float32) - np.float32(0.5)
    tolerance = TOLERANCE_PX + np.spacing(np.minimum(edge, 60000).astype(np.float16)).astype(np.float32)  # rounded to float16
    if not ((smallest >= -0.5 - tolerance).all() and (largest <= edge + tolerance).all()):
        where = "NaN" if np.isnan(smallest).any() else f"from {smallest.tolist()} to {largest.tolist()}"
        raise ValueError(
            f"{place} has keypoints outside the image: {where} in an image of {image_size[0]} x {image_size[1]} px "
            "(x, y; the centre of the top-left pixel is at (0, 0))"
        )


def checked_image_size(values: Any, place: str) -> tuple[int, int]:
    """(width, height) from an array as stored. Raises: ValueError that begins with `place` if it is not two whole numbers."""
    array = np.asarray(values)
    if array.shape != (2,) or array.dtype.kind not in "iuf" or not (np.isfinite(array).all() and (array == np.rint(array)).all()):
        raise ValueError(f"{place} has image_size {array.tolist()!r:.80}, expected two whole numbers (width, height)")
    return int(array[0]), int(array[1])


def checked_pixel_scale(value: Any, place: str) -> float:
    """`Features.pixel_scale` from an attribute as stored. Raises: ValueError that begins with `place` if it is not a number."""
    try:
        return float(np.asarray(value, np.float64).reshape(()))
    except (TypeError, ValueError):
        raise ValueError(f"{place} has uncertainty={value!r:.80}, expected a number") from None


def checked_whole_number(value: Any, place: str) -> int:
    """A whole number from an attribute as stored. Raises: ValueError that begins with `place` if it is none."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = np.nan
    if not number.is_integer():  # nor NaN and infinity
        raise ValueError(f"{place} is {np.asarray(value).tolist()!r:.80}, expected a whole number")
    return int(number)


def checked_matches0(matches0: np.ndarray, place: str) -> np.ndarray:
    """int64 (n0,): for each keypoint of image 0 the index of its match or -1, from an array as stored.

    Raises: ValueError that begins with `place` if the array has another shape, other numbers, or an index twice.
    """
    if matches0.ndim != 1 or matches0.dtype.kind not in "iu":
        raise ValueError(f"{place} has matches0 of shape {matches0.shape} and type {matches0.dtype}, expected integers (n0,)")
    _check_indices(matches0, -1, place)
    matched = matches0[matches0 > -1] if matches0.dtype.kind == "i" else matches0
    _check_unique(matched, 1, place)
    return matches0.astype(np.int64)


def matches_from_list(rows: np.ndarray, scores: np.ndarray | None, place: str) -> Matches:
    """Matches from rows (k, 2) of indices as stored, in any order, and their scores (k,); None counts as 1.

    Raises: ValueError that begins with `place` if the array has another shape, other numbers, or an index twice.
    """
    if rows.ndim != 2 or rows.shape[1] != 2 or rows.dtype.kind not in "iu":
        raise ValueError(f"{place} has matches of shape {rows.shape} and type {rows.dtype}, expected integers (k, 2)")
    _check_indices(rows, 0, place)
    for side in (0, 1):
        _check_unique(rows[:, side], side, place)
    scores = np.ones(len(rows), np.float32) if scores is None else scores
    if scores.shape != (len(rows),):
        raise ValueError(f"{place} has {len(rows)} matches, but scores of shape {scores.shape}")
    order = np.argsort(rows[:, 0], kind="stable")
    return Matches(rows[order].astype(np.int32), scores[order].astype(np.float32))


def check_match_scores(scores: np.ndarray, place: str) -> None:
    """Raises: ValueError that begins with `place` if a score is not in 0..1; the limits on scores would mean nothing."""
    if len(scores) and not (scores.min() >= 0 and scores.max() <= 1.001):  # False for NaN; float16 rounds
        found = "NaN" if np.isnan(scores).any() else f"{scores.min()} to {scores.max()}"
        raise ValueError(f"{place} has matching scores {found}, expected 0..1; without scores every match counts as 1")


def _check_indices(indices: np.ndarray, smallest: int, place: str) -> None:
    """Raises: ValueError if an index is below `smallest` or beyond any image's keypoints. Compares before any cast."""
    if indices.size and (indices.min() < smallest or indices.max() >= MAX_KEYPOINTS):
        hint = "; negative indices below -1 come from rounding to int16" if indices.min() < -1 else ""
        raise ValueError(
            f"{place} has match indices from {indices.min()} to {indices.max()}, expected indices of keypoints{hint}"
        )


def _check_unique(indices: np.ndarray, side: int, place: str) -> None:
    ordered = np.sort(indices)
    if (repeated := ordered[1:] == ordered[:-1]).any():
        first = int(ordered[1:][repeated][0])
        raise ValueError(f"{place} matches keypoint {first} of image {side} several times, expected at most one match each")
