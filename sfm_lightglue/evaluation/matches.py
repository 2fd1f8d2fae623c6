"""Scores of stored matches against ground truth: relative poses of pairs, and homographies of planar scenes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sfm_lightglue.evaluation.pairs import (
    evaluate_homography,
    evaluate_pair_poses,
    homography_auc,
    homography_precision,
    repeatability,
)
from sfm_lightglue.poses import PosedCamera
from sfm_lightglue.storage import H5Reader


def evaluate_matched_poses(
    features: Path, matches: Path, pairs: Sequence[tuple[str, str]], truth: Mapping[str, PosedCamera]
) -> dict[str, Any]:
    """Scores of the relative poses that are estimated from stored matches, by name of the score.

    Args:
        features: file of features.
        matches: file of matches. A pair that is not in it counts as failed.
        pairs: names of the two images of each pair.
        truth: true cameras by image name.

    Raises: KeyError if an image is not in `truth`.
    """
    with H5Reader(features) as feature_reader, H5Reader(matches) as reader:
        points = {pair: _matched_points(feature_reader, reader, *pair) for pair in pairs}
    counts = [len(points0) for points0, _ in points.values()]
    return {**evaluate_pair_poses(pairs, truth, points).to_json(), "mean_matches": float(np.mean(counts)) if counts else 0.0}


def evaluate_matched_homographies(
    features: Path, matches: Path, homographies: Mapping[tuple[str, str], np.ndarray]
) -> dict[str, Any]:
    """Scores by name: corner error (AUC) and precision of stored matches, repeatability and localisation error of keypoints.

    Args:
        features: file of features.
        matches: file of matches. A pair that is not in it counts as failed.
        homographies: true homographies (3, 3) by pair of names, in COLMAP's pixels.
    """
    corner_errors, precisions, repeated, localisation, counts = [], [], [], [], []
    with H5Reader(features) as feature_reader, H5Reader(matches) as reader:
        for (name0, name1), homography in homographies.items():
            points0, points1 = _matched_points(feature_reader, reader, name0, name1)
            size0, size1 = feature_reader.image_size(name0), feature_reader.image_size(name1)
            corner_errors.append(evaluate_homography(points0, points1, homography, size0))
            precisions.append(homography_precision(points0, points1, homography))
            keypoints0, keypoints1 = (feature_reader.keypoints(name) for name in (name0, name1))
            share, error_px = repeatability(keypoints0, keypoints1, homography, size0, size1)
            repeated.append(share)
            localisation += [error_px] if np.isfinite(error_px) else []
            counts.append(len(points0))
    return {
        "num_pairs": len(counts),
        "auc_px": homography_auc(corner_errors),
        "precision_3px": _mean(precisions),
        "repeatability_3px": _mean(repeated),
        "localisation_error_px": _mean(localisation),
        "mean_matches": _mean(counts),
        "corner_errors_px": [error if np.isfinite(error) else None for error in corner_errors],
    }


def table(title: str, scores: Mapping[str, Any]) -> str:
    """The title and the scores as aligned lines of text; lists are left out."""
    lines = [title]
    for key, value in scores.items():
        if isinstance(value, Mapping):
            lines += [f"  {f'{key} @ {threshold}':24}{area:9.2f}" for threshold, area in value.items()]
        elif isinstance(value, float):
            lines.append(f"  {key:24}{value:9.3f}")
        elif isinstance(value, int):
            lines.append(f"  {key:24}{value:9}")
    return "\n".join(lines)


def _matched_points(features: H5Reader, matches: H5Reader, name0: str, name1: str) -> tuple[np.ndarray, np.ndarray]:
    """Matched keypoints (k, 2), (k, 2) of the pair; (0, 2) if an image or the pair is missing."""
    found = matches.find_matches(name0, name1)
    if found is None or not features.has(name0) or not features.has(name1):
        return np.zeros((0, 2)), np.zeros((0, 2))
    keypoints0, keypoints1 = features.keypoints(name0), features.keypoints(name1)
    return keypoints0[found.indices[:, 0]], keypoints1[found.indices[:, 1]]


def _mean(values: Iterable[float]) -> float | None:
    values = list(values)
    return float(np.mean(values)) if values else None
