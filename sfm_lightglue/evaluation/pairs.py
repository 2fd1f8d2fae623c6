"""Accuracy of matches: relative poses, homographies and keypoints of image pairs against ground truth.

Points are in our pixels: the centre of the top-left pixel is at (0, 0). Cameras and homographies of the ground truth are in
COLMAP's pixels, (0.5, 0.5). The functions add half a pixel to the points before they estimate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sfm_lightglue.evaluation.estimators import Estimator, estimate_homography, estimate_relative_pose, normalised
from sfm_lightglue.geometry import essential_matrix, warp_points
from sfm_lightglue.pair_files import read_pair_list
from sfm_lightglue.photo_names import PhotoNames
from sfm_lightglue.poses import PosedCamera, direction_angle_deg, rotation_angle_deg
from sfm_lightglue.text_files import content_lines, split_columns, split_name_and_values

POSE_THRESHOLDS_DEG = (5, 10, 20)
HOMOGRAPHY_THRESHOLDS_PX = (1, 3, 5)
REFERENCE_SIZE_PX = 1024
"""RANSAC's error limit for poses is given for images with this longest side; it is scaled to the size of the photos."""
POSE_ESTIMATOR, HOMOGRAPHY_ESTIMATOR = Estimator(max_error_px=1.0), Estimator(max_error_px=3.0)
MIN_BASELINE = 1e-9
"""Smallest distance of two cameras, in the unit of the ground truth: only the rotation is compared if they are closer."""


@dataclass(frozen=True)
class PairEvaluation:
    """Errors of the relative poses that were estimated from matches."""

    num_pairs: int
    num_failed: int
    """Number of pairs without an estimated pose."""
    auc: dict[str, float]
    """Area under the recall curve, percent, by threshold in degrees."""
    errors_deg: list[float]
    """For each pair the larger of the rotation error and the error of the translation direction; 180 without an estimate."""

    def to_json(self) -> dict[str, Any]:
        """The fields as a dict that JSON can hold."""
        return asdict(self)


def pose_auc(errors: Sequence[float] | np.ndarray, thresholds: Sequence[float]) -> list[float]:
    """Area under the recall curve up to each threshold, in percent of the threshold.

    The curve joins (0, 0) and the points (k-th smallest error, k / n) by straight lines. It is constant from the last error below
    the threshold to the threshold. Errors and thresholds have the same unit. Without errors the areas are 0.
    Source: the evaluation of SuperGlue (arXiv:1911.11763, section 5.2).
    """
    x = np.concatenate([[0.0], np.sort(np.asarray(errors, np.float64))])
    recall = np.arange(len(x)) / max(len(x) - 1, 1)
    areas = []
    for threshold in thresholds:
        below = int(np.searchsorted(x[1:], threshold)) + 1
        widths = np.diff(x[:below], append=threshold)
        heights = np.append((recall[: below - 1] + recall[1:below]) / 2, recall[below - 1])
        areas.append(100 * float(widths @ heights) / threshold)
    return areas


def relative_pose_error(
    rotation: np.ndarray, translation: np.ndarray, true_rotation: np.ndarray, true_translation: np.ndarray
) -> tuple[float, float]:
    """Angle between two rotations (3, 3) and angle between two translations (3,), both in degrees.

    A translation of length zero has no direction: the angle is 0 if the true translation is zero, else 180.
    """
    rotation_error = float(rotation_angle_deg(rotation @ true_rotation.T))
    if np.linalg.norm(true_translation) < MIN_BASELINE:
        return rotation_error, 0.0
    return rotation_error, float(direction_angle_deg(translation, true_translation))


def evaluate_pair_poses(
    pairs: Sequence[tuple[str, str]],
    truth: Mapping[str, PosedCamera],
    correspondences: Mapping[tuple[str, str], tuple[np.ndarray, np.ndarray]],
    *,
    estimator: Estimator = POSE_ESTIMATOR,
    seed: int = 0,
    reference_size_px: int | None = REFERENCE_SIZE_PX,
) -> PairEvaluation:
    """Errors of the relative poses that are estimated from matched points with the true intrinsics.

    A pair without matched points or without an estimate counts as 180 degrees. The sign of the translation direction is ignored,
    as usual for essential matrices (SuperGlue, arXiv:1911.11763).

    Args:
        pairs: names of the two images of each pair.
        truth: true cameras by image name. Only the two cameras of a pair must be in the same world.
        correspondences: matched points (k, 2), (k, 2) of each pair, px, row by row.
        estimator: how poses are estimated.
        seed: seed of RANSAC.
        reference_size_px: the error limit of the estimator is for images with this longest side, and is scaled to the size of
            the photos. None: it is in px of the photos.

    Raises: KeyError if an image is not in `truth`.
    """
    errors = []
    for name0, name1 in pairs:
        camera0, camera1 = _true_camera(truth, name0), _true_camera(truth, name1)
        points0, points1 = correspondences.get((name0, name1), (np.zeros((0, 2)), np.zeros((0, 2))))
        scale = 1.0 if reference_size_px is None else (max(camera0.size) + max(camera1.size)) / 2 / reference_size_px
        scaled = replace(estimator, max_error_px=estimator.max_error_px * scale)
        errors.append(_pair_error(camera0, camera1, points0, points1, scaled, seed))
    errors_deg = [180.0 if error is None else error for error in errors]
    return PairEvaluation(
        num_pairs=len(errors),
        num_failed=errors.count(None),
        auc=auc_by_threshold(errors_deg, POSE_THRESHOLDS_DEG),
        errors_deg=errors_deg,
    )


def evaluate_homography(
    points0: np.ndarray,
    points1: np.ndarray,
    homography: np.ndarray,
    size0: tuple[int, int],
    *,
    estimator: Estimator = HOMOGRAPHY_ESTIMATOR,
    seed: int = 0,
    weights: np.ndarray | None = None,
) -> float:
    """Corner error of the homography that is estimated from matched points, px of image 1; infinite without an estimate.

    The corner error is the mean distance between the four corners of image 0 after the estimated and after the true homography.
    Source: SuperPoint (arXiv:1712.07629), section 6.

    Args:
        points0: matched points (k, 2) of image 0, px.
        points1: matched points (k, 2) of image 1, px, row by row the partners of `points0`.
        homography: the true homography (3, 3), in COLMAP's pixels.
        size0: (width, height) px of image 0.
        estimator: how homographies are estimated.
        seed: seed of RANSAC.
        weights: scores (k,) of the matches, for estimators that weight them.
    """
    estimate = estimate_homography(colmap_pixels(points0), colmap_pixels(points1), estimator, seed=seed, weights=weights)
    if estimate is None:
        return float("inf")
    width, height = size0
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float64)
    distances = np.linalg.norm(warp_points(estimate, corners) - warp_points(homography, corners), axis=1)
    return float(distances.mean())


def homography_auc(corner_errors_px: Sequence[float]) -> dict[str, float]:
    """Area under the recall curve of corner errors up to 1, 3 and 5 px, percent."""
    return auc_by_threshold(corner_errors_px, HOMOGRAPHY_THRESHOLDS_PX)


def homography_precision(points0: np.ndarray, points1: np.ndarray, homography: np.ndarray, *, max_error_px: float = 3.0) -> float:
    """Share of correct matches, 0..1; 0 without matches.

    A match is row i of `points0` (k, 2) and `points1` (k, 2). It is correct if the true homography (3, 3), in COLMAP's pixels,
    maps the first point to within `max_error_px` of the second.
    """
    if len(points0) == 0:
        return 0.0
    distances = np.linalg.norm(warp_points(homography, colmap_pixels(points0)) - colmap_pixels(points1), axis=1)
    return float(np.mean(distances <= max_error_px))


def symmetric_homography_errors(points0: np.ndarray, points1: np.ndarray, homography: np.ndarray) -> np.ndarray:
    """float64 (k,): mean of the distances in image 1 after the true homography and in image 0 after its inverse, px.

    A match is row i of `points0` (k, 2) and `points1` (k, 2). The homography (3, 3) is in COLMAP's pixels.
    """
    first, second = colmap_pixels(points0), colmap_pixels(points1)
    forward = np.linalg.norm(warp_points(homography, first) - second, axis=1)
    backward = np.linalg.norm(warp_points(np.linalg.inv(homography), second) - first, axis=1)
    errors: np.ndarray = (forward + backward) / 2
    return errors


def epipolar_errors(points0: np.ndarray, points1: np.ndarray, camera0: PosedCamera, camera1: PosedCamera) -> np.ndarray:
    """float64 (k,): mean of the distances to both true epipolar lines, for focal length 1.

    A match is row i of `points0` (k, 2) and `points1` (k, 2), px. Multiplied by the focal length, the error is in px.
    """
    rotation = camera1.rotation @ camera0.rotation.T
    essential = essential_matrix(rotation, camera1.translation - rotation @ camera0.translation)
    rays = [normalised(colmap_pixels(points), camera) for points, camera in ((points0, camera0), (points1, camera1))]
    x0, x1 = (np.column_stack([each, np.ones(len(each))]) for each in rays)
    line1, line0 = x0 @ essential.T, x1 @ essential
    residuals = np.abs(np.sum(x1 * line1, axis=1))
    lengths = [np.maximum(np.linalg.norm(line[:, :2], axis=1), 1e-12) for line in (line0, line1)]
    errors: np.ndarray = residuals * (1 / lengths[0] + 1 / lengths[1]) / 2
    return errors


def repeatability(
    keypoints0: np.ndarray,
    keypoints1: np.ndarray,
    homography: np.ndarray,
    size0: tuple[int, int],
    size1: tuple[int, int],
    *,
    max_error_px: float = 3.0,
) -> tuple[float, float]:
    """Share of keypoints that are found again in the other image, 0..1, and their mean distance in px (NaN if none is found).

    Keypoints that the true homography maps outside the other image do not count. A keypoint is found again if, after it is mapped
    into the other image, a keypoint that counts lies within `max_error_px`. Both directions are counted together.
    Source: SuperPoint (arXiv:1712.07629), appendix.

    Args:
        keypoints0: (n0, 2) px.
        keypoints1: (n1, 2) px.
        homography: the true homography (3, 3) from image 0 to image 1, in COLMAP's pixels.
        size0: (width, height) px of image 0.
        size1: (width, height) px of image 1.
        max_error_px: largest distance of a keypoint that is found again.
    """
    points0, points1 = colmap_pixels(keypoints0), colmap_pixels(keypoints1)
    warped0, warped1 = warp_points(homography, points0), warp_points(np.linalg.inv(homography), points1)
    common0, common1 = _inside(warped0, size1), _inside(warped1, size0)
    distances = np.concatenate(
        [
            _nearest_distances(warped0[common0], points1[common1]),
            _nearest_distances(warped1[common1], points0[common0]),
        ]
    )
    found = distances <= max_error_px
    if not found.any():
        return 0.0, float("nan")
    return float(found.mean()), float(distances[found].mean())


def posed_pairs(path: Path | str, truth: Mapping[str, PosedCamera], images: Path | str | None = None) -> list[tuple[str, str]]:
    """The pairs of a list of the user, sorted, each once.

    Args:
        path: The list, see `pair_files.read_pair_list`.
        truth: True cameras by image name.
        images: Folder of the photos. With it, absolute paths are understood.

    Raises: FileNotFoundError; ValueError if a line cannot be read, or an image has no true camera.
    """
    photos = PhotoNames(truth, images)
    listed = read_pair_list(path, photos)
    if listed.unknown:
        name, number = next(iter(listed.unknown.items()))
        raise ValueError(
            f"{path}:{number}: the ground truth has no pose of {photos.describe(name)}"
            + (f", nor of {len(listed.unknown) - 1} others in the list" if len(listed.unknown) > 1 else "")
        )
    return [(pair.name0, pair.name1) for pair in listed.pairs]


def read_homographies(path: Path | str) -> dict[tuple[str, str], np.ndarray]:
    """Homographies float64 (3, 3) by pair of names (A, B): x_B ~ H @ x_A in COLMAP's pixels.

    The file has lines `A B h11 h12 ... h33`, with a tab or comma between names that contain blanks. Lines that start with # are
    comments.

    Raises: FileNotFoundError; ValueError with the line number if a line has another form.
    """
    homographies = {}
    for number, line in content_lines(path, "file of homographies"):
        try:
            names, values = split_name_and_values(line, 9)
            if len(both := split_columns(names)) != 2:
                raise ValueError(f"found {len(both)} names and {len(values)} numbers")
            homographies[both[0], both[1]] = np.array([float(value) for value in values]).reshape(3, 3)
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}; expected two names and nine numbers") from error
    return homographies


def _pair_error(
    camera0: PosedCamera, camera1: PosedCamera, points0: np.ndarray, points1: np.ndarray, estimator: Estimator, seed: int
) -> float | None:
    """The larger of the rotation and the translation error in degrees; None if no pose can be estimated."""
    estimate = estimate_relative_pose(colmap_pixels(points0), colmap_pixels(points1), camera0, camera1, estimator, seed=seed)
    if estimate is None:
        return None
    true_rotation = camera1.rotation @ camera0.rotation.T
    true_translation = camera1.translation - true_rotation @ camera0.translation
    errors = relative_pose_error(*estimate, true_rotation, true_translation)
    return max(errors[0], min(errors[1], 180 - errors[1]))


def _true_camera(truth: Mapping[str, PosedCamera], name: str) -> PosedCamera:
    if name not in truth:
        raise KeyError(f"the ground truth has no pose of {name}")
    return truth[name]


def colmap_pixels(points: np.ndarray) -> np.ndarray:
    return np.asarray(points, np.float64).reshape(-1, 2) + 0.5


def auc_by_threshold(errors: Sequence[float], thresholds: Sequence[float]) -> dict[str, float]:
    return {f"{threshold:g}": auc for threshold, auc in zip(thresholds, pose_auc(errors, thresholds), strict=True)}


def _inside(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """bool (n,): whether each point lies in the image."""
    return np.all((points >= 0) & (points <= size), axis=1)


def _nearest_distances(points: np.ndarray, others: np.ndarray) -> np.ndarray:
    """float64 (n,): distance of each point to the nearest of `others`, infinite without others. In blocks to save memory."""
    nearest = np.full(len(points), np.inf)
    if len(others):
        for start in range(0, len(points), 512):
            offsets = points[start : start + 512, None] - others[None]
            nearest[start : start + 512] = np.sqrt(np.sum(offsets**2, axis=2).min(axis=1))
    return nearest
