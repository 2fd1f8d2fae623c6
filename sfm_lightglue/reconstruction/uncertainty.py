"""Standard deviations of the poses and cameras of a model, as its observations determine them.

They come from the normal equations of the final adjustment, in the coordinates in which the model fits the true centres of the
photos best, as two models are compared. Parts of the scene are samples, because neighbouring points have similar errors. A camera
that was estimated is uncertain in all its parameters, also in those that its photos do not decide, see `camera_choice`.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pycolmap

from sfm_lightglue.model_files import read_model
from sfm_lightglue.reconstruction.adjustment import FAILURES, MIN_PHOTOS, can_widen, possible_groups, widened
from sfm_lightglue.reconstruction.camera_choice import GROUPS, NAMES, PRIOR_STD
from sfm_lightglue.reconstruction.disagreement import disagreement
from sfm_lightglue.reconstruction.mappers import ReconstructionOptions
from sfm_lightglue.reconstruction.models import model_folders
from sfm_lightglue.reconstruction.normal_equations import normal_equations

logger = logging.getLogger(__name__)

PHOTOS_FILE, CAMERAS_FILE = "uncertainties.tsv", "camera_uncertainties.tsv"
PHOTO_COLUMNS = (
    *("photo", "x", "y", "z", "std_x", "std_y", "std_z", "std_position"),
    *("std_turn_x_deg", "std_turn_y_deg", "std_turn_z_deg"),
)
NUM_PARTS = 32
"""Parts of the scene whose errors are independent. Errors of the positions of Lund door are 2.5 times as large as predicted if
each point is independent, and 1.1 times with 40 parts."""
MAX_PHOTOS = 300
"""The covariance of all photos together is a matrix with six rows for each photo. Larger models get no standard deviations."""

POOR_TURN_DEG, POOR_SHARE = 10.0, 0.2
"""Median standard deviations of turns, and of positions as shares of the model's extent, with which a model says little about the
poses. Those of sets with parallax are below 3.5 degrees and a hundredth."""


@dataclass(frozen=True)
class Uncertainties:
    """Standard deviations of a model."""

    positions: Mapping[str, np.ndarray]
    """float64 (3,) by name of the photo: of the centre of the camera, along the axes of the model, in its units."""
    rotations_deg: Mapping[str, np.ndarray]
    """float64 (3,) by name of the photo: of turns about the axes of the camera (x right, y down, z forward), degrees."""
    cameras: Mapping[int, Mapping[str, float]]
    """By id of the camera, the parameters by name, in their units; parameters that stayed fixed are missing."""


def write_uncertainties(output: Path, options: ReconstructionOptions) -> list[str]:
    """Writes PHOTOS_FILE and CAMERAS_FILE beside the models in the folder `output`; returns a sentence about each. Logs them.

    Models without a final adjustment, and those that `estimate_uncertainties` cannot do, get no files.
    """
    notes, poor = list[str](), list[str]()
    if options.adjustment_scale_px is None or options.name == "triangulation":
        return notes
    for folder in model_folders(output):
        model = read_model(folder)
        try:
            found = estimate_uncertainties(model, options)
        except FAILURES as error:
            notes.append(f"model {folder.name} has no standard deviations: {error}")
            continue
        if found is None:
            continue
        _write_table(folder / PHOTOS_FILE, PHOTO_COLUMNS, _photo_rows(model, found))
        _write_table(folder / CAMERAS_FILE, ("camera", "model", "parameter", "value", "std"), _camera_rows(model, found))
        text, is_poor = _describe(model, found)
        notes.append(f"model {folder.name}: {text}")
        if is_poor:
            poor.append(notes[-1])
    for note in notes:
        logger.log(logging.WARNING if note in poor else logging.INFO, "%s", note)
    return notes


def estimate_uncertainties(model: pycolmap.Reconstruction, options: ReconstructionOptions) -> Uncertainties | None:
    """Standard deviations of poses and cameras; None if the observations do not determine them, or for too many photos.

    The model is not changed.

    Args:
        model: a model after the final adjustment.
        options: those of the final adjustment, px of the photos.
    """
    scale_px, ids = options.adjustment_scale_px, sorted(model.reg_image_ids())
    if scale_px is None or not 3 <= len(ids) <= MAX_PHOTOS:
        return None
    for is_wide in (True, False):
        cameras = {camera_id: _freed(model, camera_id, options, is_wide=is_wide) for camera_id in sorted(model.cameras)}
        used = {camera_id: cameras[camera_id] for camera_id in sorted({model.image(image_id).camera_id for image_id in ids})}
        free = {camera_id: freed.positions for camera_id, freed in cameras.items()}
        projecting = {camera_id: freed.camera for camera_id, freed in cameras.items()}
        equations = normal_equations(model, scale_px, projecting, free, num_parts=NUM_PARTS)
        found = None if equations is None else equations.poses()
        if equations is not None and found is not None:
            break
    else:
        return None
    joint, step = _with_priors(disagreement(equations) * found.covariance, found.step, [*used.values()])
    if not np.isfinite(joint).all():
        return None
    std = np.sqrt(np.maximum(np.diag(joint) + step**2, 0))
    count = sum(len(freed.positions) for freed in used.values())
    poses = std[count:].reshape(-1, 2, 3)
    names = [model.image(image_id).name for image_id in ids]
    about, start = dict[int, dict[str, float]](), 0
    for camera_id, freed in used.items():
        about[camera_id] = freed.named(std[start : start + len(freed.positions)], model.camera(camera_id))
        start += len(freed.positions)
    return Uncertainties(
        dict(zip(names, poses[:, 1], strict=True)),
        dict(zip(names, np.degrees(poses[:, 0]), strict=True)),
        {camera_id: each for camera_id, each in about.items() if each},
    )


def _describe(model: pycolmap.Reconstruction, found: Uncertainties) -> tuple[str, bool]:
    """The median standard deviations and how large the model is, and whether the photos hardly determine the poses."""
    centers = np.array([model.image(image_id).projection_center() for image_id in model.reg_image_ids()])
    extent = float(np.linalg.norm(np.ptp(centers, axis=0)))
    position = float(np.median([np.linalg.norm(std) for std in found.positions.values()]))
    turn = float(np.median([np.linalg.norm(std) for std in found.rotations_deg.values()]))
    figures = f"to {position:.2g} of {extent:.3g} units and {min(turn, 180):.3g} degrees (medians of the standard deviations)"
    if turn <= POOR_TURN_DEG and position <= POOR_SHARE * extent:
        return f"poses are known {figures}", False
    advice = "they were taken from nearly one point, or overlap too little. Photos from points further apart help"
    return f"the photos hardly determine the poses, {figures}: {advice}", True


def _photo_rows(model: pycolmap.Reconstruction, found: Uncertainties) -> Iterator[Sequence[object]]:
    for name in sorted(found.positions):
        std = found.positions[name]
        center = model.find_image_with_name(name).projection_center()
        yield (name, *map(_number, (*center, *std, float(np.linalg.norm(std)), *found.rotations_deg[name])))


def _camera_rows(model: pycolmap.Reconstruction, found: Uncertainties) -> Iterator[Sequence[object]]:
    for camera_id, camera in sorted(model.cameras.items()):
        names = [name.strip() for name in camera.params_info.split(",")]
        for name, value in zip(names, camera.params, strict=True):
            std = found.cameras.get(camera_id, {}).get(name)
            yield camera_id, camera.model_name, name, _number(value), "" if std is None else _number(std)


def _number(value: float) -> str:
    return f"{value:.9g}"


def _write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


@dataclass(frozen=True)
class _Freed:
    """A camera with the parameters that are uncertain."""

    camera: pycolmap.Camera
    positions: tuple[int, ...]
    """Of the parameters."""
    priors: Sequence[tuple[np.ndarray, float]]
    """Combinations of the parameters that are known without photos, float64 (number of parameters,), and their deviations."""

    def named(self, std: np.ndarray, chosen: pycolmap.Camera) -> dict[str, float]:
        """`std` by the names of the parameters of the chosen camera; a principal point in the middle stayed fixed."""
        names = _names(self.camera)
        found = {names[position]: float(value) for position, value in zip(self.positions, std, strict=True)}
        found |= {narrow: found[wide] for narrow, wide in (("f", "fx"), ("k", "k1")) if wide in found}
        fixed = () if _is_off_center(chosen) else ("cx", "cy")
        return {name: found[name] for name in _names(chosen) if name in found and name not in fixed}


def _names(camera: pycolmap.Camera) -> list[str]:
    return [name.strip() for name in camera.params_info.split(",")]


def _freed(model: pycolmap.Reconstruction, camera_id: int, options: ReconstructionOptions, *, is_wide: bool) -> _Freed:
    """What is uncertain about a camera.

    Args:
        model: the model.
        camera_id: of the camera.
        options: what may be found.
        is_wide: whether parameters count that were not chosen.
    """
    camera = model.camera(camera_id)
    if not options.refine_intrinsics:
        return _Freed(camera, (), ())
    is_wide = is_wide and not camera.is_spherical()
    num_photos = sum(model.image(image_id).camera_id == camera_id for image_id in model.reg_image_ids())
    groups = possible_groups(options)
    if is_wide and options.find_camera_model and num_photos >= MIN_PHOTOS and can_widen(camera):
        camera = widened(model, [camera_id])[camera_id]
        fixed = {position for group, positions in GROUPS.items() if group not in groups for position in positions}
        priors = [(row, std) for row, std in _priors(camera) if not {*np.flatnonzero(row).tolist()} & fixed]
        return _Freed(camera, tuple(position for position in range(len(NAMES)) if position not in fixed), priors)
    center = camera.principal_point_idxs() if is_wide or _is_off_center(camera) else []
    if options.refine_principal_point == "false":
        center = []
    priors, longest = [], max(camera.width, camera.height)
    if options.refine_principal_point == "auto":
        priors = [(np.eye(len(camera.params))[position], float(PRIOR_STD[2]) * longest) for position in center]
    return _Freed(camera, tuple(sorted({*camera.focal_length_idxs(), *camera.extra_params_idxs(), *center})), priors)


def _priors(camera: pycolmap.Camera) -> list[tuple[np.ndarray, float]]:
    """The priors of a camera of the model OPENCV, see `camera_choice`."""
    rows, longest = np.eye(len(NAMES)), max(camera.width, camera.height)
    rows[1] = rows[1] / camera.params[0] - rows[0] * camera.params[1] / camera.params[0] ** 2
    scales = np.array([1, 1, longest, longest, 1, 1, 1, 1])
    return [(row, float(std * scale)) for row, std, scale in zip(rows, PRIOR_STD, scales, strict=True) if np.isfinite(std)]


def _with_priors(covariance: np.ndarray, step: np.ndarray, cameras: Sequence[_Freed]) -> tuple[np.ndarray, np.ndarray]:
    """The covariance and the step if combinations of camera parameters are known too (update of a Kalman filter)."""
    rows, variances, missing, start = list[np.ndarray](), list[float](), list[float](), 0
    for freed in cameras:
        own = slice(start, start + len(freed.positions))
        for row, std in freed.priors:
            rows.append(np.zeros(len(covariance)))
            rows[-1][own] = row[list(freed.positions)]
            variances.append(std**2)
            missing.append(float(row @ (_ideal(freed.camera) - freed.camera.params)))
        start = own.stop
    if not rows:
        return covariance, step
    observed = np.array(rows)
    cross = observed @ covariance
    gain = np.linalg.solve(cross @ observed.T + np.diag(variances), cross).T
    return covariance - gain @ cross, step + gain @ (np.array(missing) - observed @ step)


def _ideal(camera: pycolmap.Camera) -> np.ndarray:
    """The parameters of a camera with the principal point in the middle, equal focal lengths and no distortion."""
    ideal = np.zeros(len(camera.params))
    ideal[list(camera.focal_length_idxs())] = camera.params[0]
    ideal[list(camera.principal_point_idxs())] = camera.width / 2, camera.height / 2
    return ideal


def _is_off_center(camera: pycolmap.Camera) -> bool:
    """Whether the principal point of a camera was found: it stands in the middle of the photo until then."""
    if camera.is_spherical():
        return False
    return (camera.principal_point_x, camera.principal_point_y) != (camera.width / 2, camera.height / 2)
