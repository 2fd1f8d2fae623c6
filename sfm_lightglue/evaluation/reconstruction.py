"""Accuracy of a reconstruction: compares its camera poses with the true poses. Reads COLMAP models."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sfm_lightglue.evaluation.pairs import pose_auc
from sfm_lightglue.model_files import read_model
from sfm_lightglue.orientation import UPRIGHT, camera_upright_from_stored
from sfm_lightglue.poses import Pose, direction_angle_deg, nearest_rotation, rotation_angle_deg
from sfm_lightglue.similarity import align_similarity

logger = logging.getLogger(__name__)

THRESHOLDS_DEG = (0.5, 1, 3, 5, 10)
MIN_BASELINE_SHARE = 1e-4
"""Two true cameras are at one place if they are closer than this share of the scene's size: the diagonal of the bounding box of
all true camera centres. Only the rotation of the pair is compared then."""
MIN_REGISTERED = 3
"""Errors after alignment need this many images: the positions of two cameras can always be aligned exactly."""

UPRIGHT_TEST_DEG, MIN_UPRIGHT_GAIN = 10, 10.0
"""The truth is taken for that of upright photos if the AUC at this angle, in percent, rises by more than this."""


@dataclass(frozen=True)
class Evaluation:
    """Errors of the estimated camera poses."""

    images: int
    """Images in the ground truth."""
    registered: int
    """Images in the ground truth that have an estimated pose."""
    auc: dict[str, float]
    """Area under the recall curve of the relative poses of all pairs of images, percent, by threshold in degrees."""
    position_error_mean: float | None
    """Mean distance of camera centres after alignment, in the unit of the ground truth; None if fewer than 3 images are
    registered."""
    position_error_median: float | None
    """Median of the same distances."""
    rotation_error_median_deg: float | None
    """Median angle between estimated and true rotations after alignment, degrees; None as for positions."""
    num_pairs: int
    """Pairs of images in the ground truth."""
    unregistered: list[str]
    """Names of the images without an estimated pose, in the order of the ground truth."""

    def to_json(self) -> dict[str, Any]:
        """The fields as a dict, as they are written to evaluation.json."""
        return asdict(self)

    def table(self) -> str:
        """The numbers as text, one per line, values aligned."""
        errors = {
            "position error, mean (unit of truth)": self.position_error_mean,
            "position error, median (unit of truth)": self.position_error_median,
            "rotation error, median (deg)": self.rotation_error_median_deg,
        }
        rows = [("images in ground truth", str(self.images)), ("registered", str(self.registered))]
        rows += [(f"AUC @ {threshold} deg (%)", f"{auc:.2f}") for threshold, auc in self.auc.items()]
        rows += [(label, "-" if error is None else f"{error:.4g}") for label, error in errors.items()]
        if self.unregistered:
            rows.append(("not registered", ", ".join(self.unregistered)))
        width = max(len(label) for label, _ in rows)
        return "\n".join(f"{label:<{width}}  {value}" for label, value in rows)


def evaluate_reconstruction(estimated: Mapping[str, Pose], truth: Mapping[str, Pose]) -> Evaluation:
    """Errors of estimated camera poses. Their world may have another origin, orientation and scale than the true one.

    `auc` needs no alignment. The error of a pair is the larger of the rotation error and the error of the translation direction
    of its relative pose. A pair with an unregistered image counts as 180 degrees. Only the rotation counts if the two true
    cameras are at one place (MIN_BASELINE_SHARE).

    Position errors are distances of camera centres after the similarity that aligns them best in least squares.

    Rotation errors are angles after the chordal mean of the rotations between the two worlds. This alignment does not use camera
    centres, because centres on a straight line do not determine the rotation about the line.

    Args:
        estimated: estimated poses by image name; images that are not in `truth` are ignored.
        truth: true poses by image name.

    Raises: ValueError if `truth` has fewer than two images.
    """
    if len(truth) < 2:
        raise ValueError(f"the ground truth has {len(truth)} image(s), an evaluation needs at least two")
    names = list(truth)
    registered = [name for name in names if name in estimated]
    if estimated and not registered:
        logger.warning(
            "no image of the reconstruction is in the ground truth: the names differ, such as %s and %s",
            next(iter(estimated)),
            names[0],
        )
    errors = _relative_pose_errors(estimated, truth)
    position_errors, rotation_errors = _aligned_errors(
        [estimated[name] for name in registered], [truth[name] for name in registered]
    )
    aligned = len(registered) >= MIN_REGISTERED
    return Evaluation(
        images=len(names),
        registered=len(registered),
        auc={f"{threshold:g}": auc for threshold, auc in zip(THRESHOLDS_DEG, pose_auc(errors, THRESHOLDS_DEG), strict=True)},
        position_error_mean=float(position_errors.mean()) if aligned else None,
        position_error_median=float(np.median(position_errors)) if aligned else None,
        rotation_error_median_deg=float(np.median(rotation_errors)) if aligned else None,
        num_pairs=len(errors),
        unregistered=[name for name in names if name not in estimated],
    )


def warn_of_upright_poses(estimated: Mapping[str, Pose], truth: Mapping[str, Pose], orientations: Mapping[str, int]) -> None:
    """Logs a warning if the true poses are those of the upright photos, while poses are always of the photos as stored.

    Args:
        estimated: Estimated poses by image name, of the stored photos.
        truth: True poses by image name.
        orientations: `Features.orientation` by image name.
    """
    turned = [name for name in estimated if name in truth and orientations.get(name, UPRIGHT) != UPRIGHT]
    upright = dict(estimated)
    for name in turned:
        turn = camera_upright_from_stored(orientations[name])
        upright[name] = Pose(turn @ estimated[name].rotation, turn @ estimated[name].translation)
    if not turned or len(truth) < 2:
        return
    errors = [_relative_pose_errors(poses, truth) for poses in (estimated, upright)]
    as_stored, as_upright = (pose_auc(of_pairs, [UPRIGHT_TEST_DEG])[0] for of_pairs in errors)
    if as_upright > as_stored + MIN_UPRIGHT_GAIN:
        logger.warning(
            "the true poses seem to be of the upright photos: %d, such as %s, were turned, and if their poses in the model "
            "are turned too, the AUC @ %g deg is %.0f instead of %.0f. Poses must be of the photos as they are stored "
            "(docs/reference/conventions.md)",
            *(len(turned), turned[0], UPRIGHT_TEST_DEG, as_upright, as_stored),
        )


def read_reconstruction_poses(folder: Path | str) -> dict[str, Pose]:
    """Poses by image name in the largest model of `folder/0` ... `folder/n`; empty if there is no model or no folder.

    The largest model has the most registered images; if several have equally many, it is the first one.
    """
    largest: dict[str, Pose] = {}
    folder = Path(folder)
    subfolders = [path for path in folder.iterdir() if path.name.isdigit()] if folder.is_dir() else []
    for path in sorted(subfolders, key=lambda path: int(path.name)):
        poses = _read_model(path)
        if len(poses) > len(largest):
            largest = poses
    return largest


def _relative_pose_errors(estimated: Mapping[str, Pose], truth: Mapping[str, Pose]) -> np.ndarray:
    """float64 (num_pairs,), degrees: the error of each pair of true images. Works row by row to save memory."""
    unknown = Pose(np.full((3, 3), np.nan), np.full(3, np.nan))
    true_rotations, true_translations = _stack(list(truth.values()))
    rotations, translations = _stack([estimated.get(name, unknown) for name in truth])
    min_baseline = MIN_BASELINE_SHARE * np.linalg.norm(np.ptp(_centers(true_rotations, true_translations), axis=0))
    rows = []
    for first in range(len(truth) - 1):
        true_rotation, true_translation = _relative_poses(true_rotations, true_translations, first)
        rotation, translation = _relative_poses(rotations, translations, first)
        rotation_error = rotation_angle_deg(rotation @ true_rotation.swapaxes(1, 2))
        translation_error = direction_angle_deg(translation, true_translation)
        has_baseline = np.linalg.norm(true_translation, axis=1) > min_baseline
        error = np.where(has_baseline, np.maximum(rotation_error, translation_error), rotation_error)
        rows.append(np.where(np.isnan(rotation_error), 180.0, error))
    return np.concatenate(rows)


def _relative_poses(rotations: np.ndarray, translations: np.ndarray, first: int) -> tuple[np.ndarray, np.ndarray]:
    """Rotations (m, 3, 3) and translations (m, 3) from camera `first` to each of the m cameras after it."""
    relative = rotations[first + 1 :] @ rotations[first].T
    return relative, translations[first + 1 :] - relative @ translations[first]


def _aligned_errors(estimated: list[Pose], truth: list[Pose]) -> tuple[np.ndarray, np.ndarray]:
    """Position errors (n,) in the unit of the ground truth and rotation errors (n,) in degrees, after alignment."""
    if not truth:
        return np.zeros(0), np.zeros(0)
    (rotations, translations), (true_rotations, true_translations) = _stack(estimated), _stack(truth)
    centers, true_centers = _centers(rotations, translations), _centers(true_rotations, true_translations)
    scale, rotation, translation = align_similarity(centers, true_centers)
    position_errors = np.linalg.norm(scale * centers @ rotation.T + translation - true_centers, axis=1)
    truth_from_estimated = nearest_rotation(np.sum(true_rotations.swapaxes(1, 2) @ rotations, axis=0))
    rotation_errors = rotation_angle_deg(rotations @ truth_from_estimated.T @ true_rotations.swapaxes(1, 2))
    return position_errors, rotation_errors


def _stack(poses: list[Pose]) -> tuple[np.ndarray, np.ndarray]:
    """Rotations (n, 3, 3) and translations (n, 3)."""
    return np.stack([pose.rotation for pose in poses]), np.stack([pose.translation for pose in poses])


def _centers(rotations: np.ndarray, translations: np.ndarray) -> np.ndarray:
    """Camera centres (n, 3)."""
    return -np.einsum("nji,nj->ni", rotations, translations)


def _read_model(folder: Path) -> dict[str, Pose]:
    """Poses of the registered images of one COLMAP model, sorted by name."""
    model = read_model(folder)
    poses = {}
    for image_id in model.reg_image_ids():
        image = model.image(image_id)
        cam_from_world = image.cam_from_world().matrix()
        poses[image.name] = Pose(cam_from_world[:, :3], cam_from_world[:, 3])
    return dict(sorted(poses.items()))
