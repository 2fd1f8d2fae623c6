"""Estimators of homographies and relative poses: COLMAP's RANSAC, those of PoseLib and OpenCV, and the direct linear transform.

Published tables differ in the estimator, so a table must name it. PoseLib and OpenCV are optional. Points and matrices are in one
frame of pixels, whichever the caller chooses.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import pycolmap

from sfm_lightglue.poses import PosedCamera

HOMOGRAPHY_ESTIMATORS = ("colmap", "poselib", "opencv", "dlt", "weighted_dlt")
POSE_ESTIMATORS = ("colmap", "poselib", "opencv")
PACKAGES = {"poselib": ("poselib", "poselib"), "opencv": ("cv2", "opencv-python-headless")}
"""Estimator -> module, and the package that has it."""
OPENCV_CONFIDENCE = {"homography": 0.995, "pose": 0.99999}
"""Confidence of OpenCV's RANSAC, as in glue-factory's evaluation."""


@dataclass(frozen=True)
class Estimator:
    """An estimator and its limits."""

    name: str = "colmap"
    """One of the tuples above. `dlt` is the least-squares solution of all matches, `weighted_dlt` weights them by scores."""
    max_error_px: float = 1.0
    """Largest error of an inlier: reprojection for homographies, epipolar for poses. The direct linear transform has no limit."""
    max_num_trials: int = 10000
    """Largest number of RANSAC trials. PoseLib has its own limit, 100000. OpenCV tries 3000 homographies and 1000 poses."""


def check_estimator(name: str, kind: str) -> None:
    """Raises: ValueError if there is no such estimator for `homography` or `pose`, or its package is not installed."""
    known = HOMOGRAPHY_ESTIMATORS if kind == "homography" else POSE_ESTIMATORS
    if name not in known:
        raise ValueError(f"there is no estimator {name!r} of a {kind}: choose {', '.join(known)}")
    if name in PACKAGES:
        _package(name)


def estimate_homography(
    points0: np.ndarray, points1: np.ndarray, estimator: Estimator, *, seed: int = 0, weights: np.ndarray | None = None
) -> np.ndarray | None:
    """The homography float64 (3, 3) with x1 ~ H x0, from matched points (k, 2), (k, 2); None if it cannot be estimated.

    `seed` is for RANSAC. `weights` (k,) are the scores for `weighted_dlt`.
    """
    if len(points0) < 4:
        return None
    if estimator.name in ("dlt", "weighted_dlt"):
        return _direct_linear_transform(points0, points1, weights if estimator.name == "weighted_dlt" else None)
    if estimator.name == "poselib":
        options = {"max_reproj_error": estimator.max_error_px, "seed": seed}
        return _finite(_package("poselib").estimate_homography(points0, points1, options)[0])
    if estimator.name == "opencv":
        cv2 = _package("opencv")
        cv2.setRNGSeed(seed)
        found = cv2.findHomography(
            *(points0, points1, cv2.RANSAC, estimator.max_error_px),
            maxIters=3000,
            confidence=OPENCV_CONFIDENCE["homography"],
        )[0]
        return _finite(found)
    estimate = pycolmap.estimate_homography_matrix(points0, points1, ransac_options(estimator, seed))
    return None if estimate is None else np.asarray(estimate["H"])


def estimate_relative_pose(
    points0: np.ndarray, points1: np.ndarray, camera0: PosedCamera, camera1: PosedCamera, estimator: Estimator, *, seed: int = 0
) -> tuple[np.ndarray, np.ndarray] | None:
    """Rotation (3, 3) and direction of the translation (3,) of cam1_from_cam0; None if they cannot be estimated.

    Args:
        points0: Matched points (k, 2) of image 0, in the frame of its camera matrix.
        points1: Their partners in image 1.
        camera0: Camera 0, of which the intrinsics count.
        camera1: Camera 1.
        estimator: The estimator and its limits.
        seed: Seed of RANSAC.
    """
    if len(points0) < 5:
        return None
    if estimator.name == "poselib":
        options = {"max_epipolar_error": estimator.max_error_px, "seed": seed}
        cameras = [_pinhole(camera) for camera in (camera0, camera1)]
        pose = _package("poselib").estimate_relative_pose(points0, points1, *cameras, options)[0]
        return None if pose is None else (np.asarray(pose.R), np.asarray(pose.t))
    if estimator.name == "opencv":
        return _opencv_pose(points0, points1, camera0, camera1, estimator.max_error_px, seed)
    colmap0, colmap1 = (pycolmap.Camera(**_pinhole(camera)) for camera in (camera0, camera1))
    estimate = pycolmap.estimate_essential_matrix(points0, points1, colmap0, colmap1, ransac_options(estimator, seed))
    if estimate is None:
        return None
    matrix = estimate["cam2_from_cam1"].matrix()
    return matrix[:, :3], matrix[:, 3]


def ransac_options(estimator: Estimator, seed: int) -> pycolmap.RANSACOptions:
    """Options of COLMAP's RANSAC; equal points give equal estimates, because it is seeded."""
    options = pycolmap.RANSACOptions()
    options.max_error, options.max_num_trials = estimator.max_error_px, estimator.max_num_trials
    options.random_seed = seed
    return options


def _opencv_pose(
    points0: np.ndarray, points1: np.ndarray, camera0: PosedCamera, camera1: PosedCamera, max_error_px: float, seed: int
) -> tuple[np.ndarray, np.ndarray] | None:
    """OpenCV's estimate on normalised points. Of several essential matrices the one with most points in front is taken."""
    cv2 = _package("opencv")
    cv2.setRNGSeed(seed)
    focal = float(np.mean([camera.camera_matrix[axis, axis] for camera in (camera0, camera1) for axis in (0, 1)]))
    rays = [normalised(points, camera) for points, camera in ((points0, camera0), (points1, camera1))]
    confidence, threshold = OPENCV_CONFIDENCE["pose"], max_error_px / focal
    stacked, mask = cv2.findEssentialMat(*rays, np.eye(3), method=cv2.RANSAC, prob=confidence, threshold=threshold)
    best: tuple[int, np.ndarray, np.ndarray] | None = None
    for matrix in [] if stacked is None else np.split(stacked, len(stacked) // 3):
        count, rotation, translation, _ = cv2.recoverPose(matrix, *rays, np.eye(3), 1e9, mask=mask.copy())
        if count > (best[0] if best else 0):
            best = count, rotation, translation[:, 0]
    return best[1:] if best else None


def normalised(points: np.ndarray, camera: PosedCamera) -> np.ndarray:
    """Points float64 (k, 2) on the plane z = 1 of the camera, from px (k, 2) in the frame of its camera matrix."""
    matrix = camera.camera_matrix
    rays: np.ndarray = (np.asarray(points, np.float64) - matrix[:2, 2]) / np.array([matrix[0, 0], matrix[1, 1]])
    return rays


def _direct_linear_transform(points0: np.ndarray, points1: np.ndarray, weights: np.ndarray | None) -> np.ndarray | None:
    """The homography with the least algebraic error of all matches, by kornia, as in glue-factory's tables."""
    import torch  # both take a second to load
    from kornia.geometry.homography import find_homography_dlt

    first, second = (torch.tensor(np.asarray(points, np.float64)[None]) for points in (points0, points1))
    given = None if weights is None else torch.tensor(np.asarray(weights, np.float64)[None])
    return _finite(find_homography_dlt(first, second, given)[0].numpy())


def _finite(matrix: np.ndarray | None) -> np.ndarray | None:
    """The matrix with 1 in its corner; None if there is none, or it has infinite entries."""
    if matrix is None or np.shape(matrix) != (3, 3):
        return None
    matrix = np.asarray(matrix, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        scaled: np.ndarray = matrix / matrix[2, 2]
    return scaled if np.isfinite(scaled).all() else None


def _pinhole(camera: PosedCamera) -> dict[str, Any]:
    """The intrinsics in COLMAP's terms, which PoseLib takes too."""
    matrix, (width, height) = camera.camera_matrix, camera.size
    params = [float(matrix[0, 0]), float(matrix[1, 1]), float(matrix[0, 2]), float(matrix[1, 2])]
    return {"model": "PINHOLE", "width": width, "height": height, "params": params}


def _package(name: str) -> Any:
    """The optional package of an estimator. Raises: ValueError if it is not installed."""
    module, package = PACKAGES[name]
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"the estimator {name} needs the package {package}: pip install {package}") from error
