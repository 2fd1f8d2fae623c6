"""Standard deviations of the poses and cameras of a model, as its observations determine them.

They come from the covariance of the final bundle adjustment, which COLMAP computes. It holds only for fixed coordinates: COLMAP
fixes one photo and the distance of a second one, which therefore seem exact. Here it is moved to the coordinates in which the
model fits the true centres of the photos best (S-transformation: Baarda 1973; Molenaar 1981), as two models are compared.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pycolmap

from sfm_lightglue.model_files import observations_of, read_model
from sfm_lightglue.reconstruction.bundle import bundle_problem
from sfm_lightglue.reconstruction.mappers import ReconstructionOptions
from sfm_lightglue.reconstruction.models import model_folders

logger = logging.getLogger(__name__)

PHOTOS_FILE, CAMERAS_FILE = "uncertainties.tsv", "camera_uncertainties.tsv"
PHOTO_COLUMNS = (
    *("photo", "x", "y", "z", "std_x", "std_y", "std_z", "std_position"),
    *("std_turn_x_deg", "std_turn_y_deg", "std_turn_z_deg"),
)
MAX_PHOTOS = 300
"""The covariance of all photos together is a matrix with six rows for each photo. Larger models get no standard deviations."""


HALF_ANGLES = 2.0
"""Radians of a turn / the parameter of Ceres, which is half the angle."""


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
    notes = list[str]()
    if options.adjustment_scale_px is None or options.name == "triangulation":
        return notes
    for folder in model_folders(output):
        model = read_model(folder)
        found = estimate_uncertainties(model, options)
        if found is None:
            continue
        _write_table(folder / PHOTOS_FILE, PHOTO_COLUMNS, _photo_rows(model, found))
        _write_table(folder / CAMERAS_FILE, ("camera", "model", "parameter", "value", "std"), _camera_rows(model, found))
        notes.append(f"model {folder.name}: {_describe(model, found)}")
    for note in notes:
        logger.info("%s", note)
    return notes


def estimate_uncertainties(model: pycolmap.Reconstruction, options: ReconstructionOptions) -> Uncertainties | None:
    """Standard deviations of poses and cameras; None if the observations do not determine them, or for too many photos.

    The model is not changed. Errors that observations have in common, such as a lens that the camera model does not describe,
    are not in it.

    Args:
        model: a model after the final adjustment.
        options: those of the final adjustment, px of the photos.
    """
    scale_px = options.adjustment_scale_px
    ids = sorted(model.reg_image_ids())
    if scale_px is None or not 3 <= len(ids) <= MAX_PHOTOS:
        return None
    off_center = any(_is_off_center(camera) for camera in model.cameras.values())
    problem = bundle_problem(model, options, loss_scale_px=scale_px, frees_principal_point=off_center)
    wanted = pycolmap.BACovarianceOptions()
    wanted.params = pycolmap.BACovarianceOptionsParams.ALL
    found = pycolmap.estimate_ba_covariance(wanted, model, problem)
    if found is None:
        return None
    joint = _pose_covariance(model, ids, found)
    if joint is None or not np.isfinite(joint).all():
        return None
    num_free = 2 * model.compute_num_observations() - 3 * model.num_points3D() - 6 * len(ids)
    variance = _variance(model, scale_px, num_free)
    std = np.sqrt(np.maximum(variance * np.diag(_fitted_to_centers(model, ids, joint)), 0)).reshape(-1, 2, 3)
    names = [model.image(image_id).name for image_id in ids]
    cameras = {camera_id: _camera_std(camera, found, variance) for camera_id, camera in sorted(model.cameras.items())}
    return Uncertainties(
        dict(zip(names, std[:, 1], strict=True)),
        dict(zip(names, np.degrees(std[:, 0]), strict=True)),
        {camera_id: about for camera_id, about in cameras.items() if about},
    )


def _describe(model: pycolmap.Reconstruction, found: Uncertainties) -> str:
    """The median standard deviations, and how large the model is."""
    centers = np.array([model.image(image_id).projection_center() for image_id in model.reg_image_ids()])
    extent = float(np.linalg.norm(np.ptp(centers, axis=0)))
    position = float(np.median([np.linalg.norm(std) for std in found.positions.values()]))
    turn = float(np.median([np.linalg.norm(std) for std in found.rotations_deg.values()]))
    return f"poses are known to {position:.2g} of {extent:.3g} units and {turn:.2g} degrees (medians of the standard deviations)"


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


def _pose_covariance(model: pycolmap.Reconstruction, ids: list[int], found: pycolmap.BACovariance) -> np.ndarray | None:
    """float64 (6 n, 6 n): covariance of each photo's turn (of its camera, radians) and centre, in COLMAP's fixed coordinates.

    COLMAP gives none for the photo that it fixes, and one row less for the photo of which it fixes a coordinate; they are 0 here.
    """
    all_blocks = {image_id: found.get_cam_cov_from_world(image_id) for image_id in ids}
    blocks = {image_id: block for image_id, block in all_blocks.items() if block is not None}
    fixed = [image_id for image_id in ids if image_id not in blocks]
    if len(fixed) != 1 or sorted(map(len, blocks.values())) != [5] + [6] * (len(ids) - 2):
        return None
    first = model.image(fixed[0]).cam_from_world()
    jacobians = {image_id: _jacobian(model.image(image_id).cam_from_world()) for image_id in blocks}
    for image_id, jacobian in jacobians.items():
        if len(blocks[image_id]) == 5:
            baseline = (first * model.image(image_id).cam_from_world().inverse()).translation
            jacobians[image_id] = np.delete(jacobian, 3 + int(np.argmax(np.abs(baseline))), axis=1)
    joint = np.zeros((len(ids), 6, len(ids), 6))
    rows = {image_id: row for row, image_id in enumerate(ids)}
    free = list(jacobians)
    for place, image_id in enumerate(free):
        for other_id in free[place:]:
            block = blocks[image_id] if other_id == image_id else found.get_cam_cross_cov_from_world(image_id, other_id)
            moved = jacobians[image_id] @ block @ jacobians[other_id].T
            joint[rows[image_id], :, rows[other_id]] = moved
            joint[rows[other_id], :, rows[image_id]] = moved.T
    return joint.reshape(6 * len(ids), 6 * len(ids))


def _jacobian(cam_from_world: pycolmap.Rigid3d) -> np.ndarray:
    """float64 (6, 6): change of the turn of a camera (radians) and its centre by COLMAP's six parameters of a pose.

    The first three are half the angles of a turn after the rotation (Ceres, EigenQuaternionManifold), the others the translation.
    """
    rotation, (x, y, z) = cam_from_world.rotation.matrix(), cam_from_world.translation
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    jacobian = np.zeros((6, 6))
    jacobian[:3, :3] = HALF_ANGLES * np.eye(3)
    jacobian[3:, :3] = -rotation.T @ cross * HALF_ANGLES
    jacobian[3:, 3:] = -rotation.T
    return jacobian


def _fitted_to_centers(model: pycolmap.Reconstruction, ids: list[int], joint: np.ndarray) -> np.ndarray:
    """The covariance after the model is moved, turned and scaled so that its centres fit the true ones best."""
    moves = np.zeros((len(ids), 6, 7))  # of turn and centre by translation, rotation and scale of the world
    centers = np.array([model.image(image_id).projection_center() for image_id in ids])
    middle = centers.mean(axis=0)
    for row, image_id in enumerate(ids):
        x, y, z = center = centers[row] - middle
        moves[row, :3, 3:6] = -model.image(image_id).cam_from_world().rotation.matrix()
        moves[row, 3:, :3] = np.eye(3)
        moves[row, 3:, 3:6] = [[0, z, -y], [-z, 0, x], [y, -x, 0]]
        moves[row, 3:, 6] = center
    fit = np.linalg.pinv(moves[:, 3:].reshape(-1, 7), rcond=1e-6)  # cameras on a line: turns about it are not determined
    of_centers = np.zeros((7, len(ids), 6))
    of_centers[:, :, 3:] = fit.reshape(7, len(ids), 3)
    projection = np.eye(6 * len(ids)) - moves.reshape(-1, 7) @ of_centers.reshape(7, -1)
    fitted: np.ndarray = projection @ joint @ projection.T
    return fitted


def _variance(model: pycolmap.Reconstruction, scale_px: float, num_free: int) -> float:
    """Variance of the estimates / the covariance that COLMAP gives, which counts each residual with its robust weight.

    The asymptotic variance of an M-estimator is E[psi^2] / E[psi']^2. For Cauchy's loss of two coordinates psi is w r, and its
    derivatives are w across r and w (2 w - 1) along it, so that E[psi'] = E[w^2]; COLMAP's covariance already has the factor
    1 / E[w]. Few observations for each point need Huber's correction.

    Source: Huber and Ronchetti, Robust Statistics (2009), sections 6.3 and 7.6.
    """
    squares = np.concatenate([seen.errors_px for seen in observations_of(model).values()]) ** 2
    weights = 1 / (1 + squares / scale_px**2)
    slope = (weights**2).mean()
    spread = (weights**2 * (1 + (2 * weights - 1) ** 2)).mean() / 2 - slope**2
    num_residuals = 2 * len(squares)
    correction = 1 + (num_residuals - num_free) / num_residuals * spread / slope**2
    factor = (weights**2 * squares).mean() / 2 * weights.mean() / slope**2
    return float(correction**2 * factor * num_residuals / max(num_free, 1))


def _camera_std(camera: pycolmap.Camera, found: pycolmap.BACovariance, variance: float) -> dict[str, float]:
    """Standard deviations of the parameters of a camera that are free, by name; empty if none is."""
    covariance = found.get_other_params_cov(camera.params)
    if covariance is None:
        return {}
    center = {*camera.principal_point_idxs()}
    free = [*camera.focal_length_idxs(), *camera.extra_params_idxs()]
    positions = sorted({*free, *center} if len(covariance) > len(free) else free)
    names = [name.strip() for name in camera.params_info.split(",")]
    std = np.sqrt(np.maximum(variance * np.diag(covariance), 0)).tolist()
    return {names[position]: value for position, value in zip(positions, std, strict=True)}


def _is_off_center(camera: pycolmap.Camera) -> bool:
    """Whether the principal point of a camera was found: it stands in the middle of the photo until then."""
    if camera.is_spherical():
        return False
    return (camera.principal_point_x, camera.principal_point_y) != (camera.width / 2, camera.height / 2)
