"""Accuracy of matches: relative poses, homographies and keypoints of image pairs against ground truth.

Points come in the package's pixels (centre of the top-left pixel at (0, 0)); cameras and homographies of the truth are in
COLMAP's (0.5, 0.5), and so are the estimates: half a pixel is added inside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap

from sfm_lightglue.geometry import warp_points
from sfm_lightglue.poses import PosedCamera, direction_angle_deg, rotation_angle_deg

POSE_THRESHOLDS_DEG = (5, 10, 20)
HOMOGRAPHY_THRESHOLDS_PX = (1, 3, 5)
REFERENCE_SIZE_PX = 1024
"""Longest side of the images for which thresholds of pose estimation are given; they grow with larger photos."""
MIN_BASELINE = 1e-9
"""Of the truth, in its unit: cameras closer than this are at one place, and only their rotation is compared."""


@dataclass(frozen=True)
class PairEvaluation:
    """Errors of the relative poses estimated from matches."""

    num_pairs: int
    num_failed: int
    """Pairs without an estimate."""
    auc: dict[str, float]
    """By threshold in degrees: area under the recall curve, percent."""
    errors_deg: list[float]
    """The larger of the errors in rotation and in direction of translation, pair by pair; 180 for a failure."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def pose_auc(errors: Sequence[float] | np.ndarray, thresholds: Sequence[float]) -> list[float]:
    """Area under the recall curve up to each threshold, in percent of the threshold.

    The curve joins (0, 0) and (k-th smallest error, k / n) by straight lines and is level from the last error below the
    threshold on. Errors of any unit; none at all give 0.
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
    """Angles in degrees between two rotations (3, 3) and between two translations (3,), whose lengths do not count.

    A translation of length zero has no direction: 0 degrees where it is the true one, else 180.
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
    max_error_px: float = 1.0,
    max_num_trials: int = 10000,
    seed: int = 0,
) -> PairEvaluation:
    """AUC of the relative poses from the matched points (k, 2), (k, 2) of each pair, with the true intrinsics.

    Only the true poses of a pair's two images are compared with each other: each pair may have a world of its own. A pair without
    correspondences or without an estimate counts as 180 degrees. As usual for essential matrices, the direction of translation
    counts up to its sign (SuperGlue, arXiv:1911.11763). `max_error_px` is RANSAC's threshold for images with a longest side
    of 1024 px and scaled to the photos.

    Raises: KeyError where the truth lacks an image.
    """
    errors = []
    for name0, name1 in pairs:
        camera0, camera1 = _true_camera(truth, name0), _true_camera(truth, name1)
        options = _ransac(max_error_px * _image_scale(camera0, camera1), max_num_trials, seed)
        points0, points1 = correspondences.get((name0, name1), (np.zeros((0, 2)), np.zeros((0, 2))))
        errors.append(_pair_error(camera0, camera1, points0, points1, options))
    errors_deg = [180.0 if error is None else error for error in errors]
    return PairEvaluation(
        num_pairs=len(errors),
        num_failed=errors.count(None),
        auc=_auc_by_threshold(errors_deg, POSE_THRESHOLDS_DEG),
        errors_deg=errors_deg,
    )


def evaluate_homography(
    points0: np.ndarray,
    points1: np.ndarray,
    homography: np.ndarray,
    size0: tuple[int, int],
    *,
    max_error_px: float = 3.0,
    max_num_trials: int = 10000,
    seed: int = 0,
) -> float:
    """Mean distance in px of image 1 of the four corners of image 0 under the homography estimated from matched points
    (k, 2), (k, 2), and under the true one (3, 3) in COLMAP's pixels. Infinite without an estimate.

    Source: SuperPoint (arXiv:1712.07629), section 6.
    """
    options = _ransac(max_error_px, max_num_trials, seed)
    estimate = pycolmap.estimate_homography_matrix(_colmap_pixels(points0), _colmap_pixels(points1), options)
    if estimate is None:
        return float("inf")
    width, height = size0
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float64)
    distances = np.linalg.norm(warp_points(estimate["H"], corners) - warp_points(homography, corners), axis=1)
    return float(distances.mean())


def homography_auc(corner_errors_px: Sequence[float]) -> dict[str, float]:
    """Area under the recall curve of corner errors up to 1, 3 and 5 px, percent."""
    return _auc_by_threshold(corner_errors_px, HOMOGRAPHY_THRESHOLDS_PX)


def homography_precision(points0: np.ndarray, points1: np.ndarray, homography: np.ndarray, *, max_error_px: float = 3.0) -> float:
    """Share of matches (k, 2), (k, 2) within `max_error_px` in image 1 of the true homography; 0 without matches."""
    if len(points0) == 0:
        return 0.0
    distances = np.linalg.norm(warp_points(homography, _colmap_pixels(points0)) - _colmap_pixels(points1), axis=1)
    return float(np.mean(distances <= max_error_px))


def repeatability(
    keypoints0: np.ndarray,
    keypoints1: np.ndarray,
    homography: np.ndarray,
    size0: tuple[int, int],
    size1: tuple[int, int],
    *,
    max_error_px: float = 3.0,
) -> tuple[float, float]:
    """Share of keypoints found again in the other image, and the mean distance of these in px; NaN where there are none.

    Keypoints (n0, 2), (n1, 2) that the true homography maps outside of the other image do not count. Each of the others is
    mapped into the other image, and found again where a counting keypoint lies within `max_error_px` there; both directions
    are pooled. Source: SuperPoint (arXiv:1712.07629), appendix.
    """
    points0, points1 = _colmap_pixels(keypoints0), _colmap_pixels(keypoints1)
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


def read_homographies(path: Path | str) -> dict[tuple[str, str], np.ndarray]:
    """Homographies (3, 3), x_B ~ H x_A in COLMAP's pixels, by pair of names from lines `A B h11 h12 ... h33`, with a tab between
    names that hold blanks.

    Raises: FileNotFoundError; ValueError with the number of the line that is not understood.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"file of homographies {path} does not exist")
    homographies = {}
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            names, *values = line.strip().rsplit(maxsplit=9)
            name0, name1 = names.split("\t") if "\t" in names else names.split()
            homographies[name0, name1] = np.array([float(value) for value in values]).reshape(3, 3)
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}; expected two names and nine numbers") from error
    return homographies


def _pair_error(
    camera0: PosedCamera, camera1: PosedCamera, points0: np.ndarray, points1: np.ndarray, options: pycolmap.RANSACOptions
) -> float | None:
    """Degrees, None where no pose can be estimated."""
    estimate = pycolmap.estimate_essential_matrix(
        _colmap_pixels(points0), _colmap_pixels(points1), _colmap_camera(camera0), _colmap_camera(camera1), options
    )
    if estimate is None:
        return None
    cam1_from_cam0 = estimate["cam2_from_cam1"].matrix()
    true_rotation = camera1.rotation @ camera0.rotation.T
    true_translation = camera1.translation - true_rotation @ camera0.translation
    errors = relative_pose_error(cam1_from_cam0[:, :3], cam1_from_cam0[:, 3], true_rotation, true_translation)
    return max(errors[0], min(errors[1], 180 - errors[1]))


def _true_camera(truth: Mapping[str, PosedCamera], name: str) -> PosedCamera:
    if name not in truth:
        raise KeyError(f"the ground truth has no pose of {name}")
    return truth[name]


def _image_scale(camera0: PosedCamera, camera1: PosedCamera) -> float:
    return (max(camera0.size) + max(camera1.size)) / 2 / REFERENCE_SIZE_PX


def _colmap_pixels(points: np.ndarray) -> np.ndarray:
    return np.asarray(points, np.float64).reshape(-1, 2) + 0.5


def _colmap_camera(camera: PosedCamera) -> pycolmap.Camera:
    matrix = camera.camera_matrix
    params = [matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2]]
    return pycolmap.Camera(model="PINHOLE", width=camera.size[0], height=camera.size[1], params=params)


def _ransac(max_error_px: float, max_num_trials: int, seed: int) -> pycolmap.RANSACOptions:
    """Same points, same estimate: seeded."""
    options = pycolmap.RANSACOptions()
    options.max_error, options.max_num_trials, options.random_seed = max_error_px, max_num_trials, seed
    return options


def _auc_by_threshold(errors: Sequence[float], thresholds: Sequence[float]) -> dict[str, float]:
    return {f"{threshold:g}": auc for threshold, auc in zip(thresholds, pose_auc(errors, thresholds), strict=True)}


def _inside(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """bool (n,): which points lie in the image."""
    return np.all((points >= 0) & (points <= size), axis=1)


def _nearest_distances(points: np.ndarray, others: np.ndarray) -> np.ndarray:
    """float64 (n,): distance of each point to the nearest of the others, infinite without others; in blocks to save memory."""
    nearest = np.full(len(points), np.inf)
    if len(others):
        for start in range(0, len(points), 512):
            offsets = points[start : start + 512, None] - others[None]
            nearest[start : start + 512] = np.sqrt(np.sum(offsets**2, axis=2).min(axis=1))
    return nearest
