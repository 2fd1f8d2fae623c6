"""Puts models into metres, with x east, y north and z up, by the GPS positions of their photos.

Reads the pose priors in the database. Changes the models that COLMAP wrote, and writes `georeference.json` beside them.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap

from sfm_lightglue.georeference import Georeference, Origin, Residual, read_georeference, write_georeference
from sfm_lightglue.model_files import read_model
from sfm_lightglue.reconstruction.mappers import ReconstructionOptions
from sfm_lightglue.reconstruction.models import model_folders
from sfm_lightglue.similarity import Similarity, axis_deviation, robust_similarity

logger = logging.getLogger(__name__)

MIN_POSITIONS = 3
"""Photos with a position that a model needs."""
UNKNOWN_ACCURACY_M = 0.25
"""Standard deviation along each axis if the photos do not say it. Positions within 1 m of the others are then never dropped."""
MAX_RESIDUAL = 0.5
"""A model is not aligned if the residuals are larger than this part of the extent of its positions (both root mean squares)."""
MAX_ROTATION_ERROR_DEG = 15.0
"""A model is not aligned if the positions determine its turn worse than this: they lie on a line, or too close together."""


class NotAligned(ValueError):
    """The positions do not determine where a model is. The message gives the reason."""


@dataclass(frozen=True)
class GpsPositions:
    """The positions of photos in a database."""

    names: list[str]
    """Sorted."""
    geodetic: np.ndarray
    """float64 (n, 3): latitude and longitude in degrees, altitude in m."""
    deviations: np.ndarray
    """float64 (n,), m: standard deviation along each axis; unknown ones are the median of the known ones."""
    accuracies: np.ndarray
    """float64 (n, 2), m: horizontal and vertical standard deviation as the photos say it; NaN if unknown."""
    origin: Origin | None
    """Origin of the local coordinates, the same for all models; None without positions."""


def align_models(output: Path, database: Path, options: ReconstructionOptions) -> None:
    """Transforms each model in the folder `output` to local metres, if its photos' positions determine them.

    Other models stay as they are; the log gives the reason.

    Args:
        output: folder of the models `0` ... `n`.
        database: COLMAP database with pose priors.
        options: `align` says whether to align; `seed` is the seed of the robust estimation.
    """
    positions = _wanted_positions(database, options)
    if positions is None:
        return
    for folder in model_folders(output):
        model = read_model(folder)
        try:
            georeference = estimate_georeference(model, positions, options.seed)
        except NotAligned as reason:
            logger.warning("model %s keeps its own coordinates: %s. The model itself is not affected", folder.name, reason)
            continue
        rotation = pycolmap.Rotation3d(georeference.rotation)
        model.transform(pycolmap.Sim3d(georeference.scale, rotation, georeference.translation))
        model.write(folder)
        write_georeference(folder, georeference)
        num_inliers = sum(residual.is_inlier for residual in georeference.residuals.values())
        logger.info(
            "model %s is in metres (x east, y north, z up): %d of %d positions agree, median residual %.2f m",
            *(folder.name, num_inliers, len(georeference.residuals), georeference.median_residual_m),
        )


def describe_alignments(output: Path, database: Path, options: ReconstructionOptions) -> dict[str, Any]:
    """What the summary says about each model in the folder `output`: its residuals, or the reason why it was not aligned.

    Empty if the models were not to be aligned, or no photo of the database has a position.
    """
    positions = _wanted_positions(database, options)
    if positions is None:
        return {}
    described: dict[str, Any] = {}
    for folder in model_folders(output):
        try:
            if (georeference := read_georeference(folder)) is not None:
                described[folder.name] = {"is_aligned": True, **georeference.statistics()}
            else:
                estimate_georeference(read_model(folder), positions, options.seed)
        except NotAligned as reason:
            described[folder.name] = {"is_aligned": False, "reason": str(reason)}
        except ValueError as damage:  # the user has changed a file
            logger.warning("%s", damage)
            described[folder.name] = {"is_aligned": False, "reason": str(damage)}
    return described


def _wanted_positions(database: Path, options: ReconstructionOptions) -> GpsPositions | None:
    """The positions to align with; None if there are none, if they are not wanted, or if poses give the coordinates."""
    if options.align == "none" or options.name == "triangulation" or options.position_priors == "poses":
        return None
    positions = read_gps_positions(database)
    return positions if positions.names else None


def read_gps_positions(database: Path) -> GpsPositions:
    """The positions in a database, in WGS84 only."""
    found: dict[str, pycolmap.PosePrior] = {}
    with pycolmap.Database.open(database) as rows:
        names = {(image.data_id.sensor_id.id, image.data_id.id): image.name for image in rows.read_all_images()}
        for prior in rows.read_all_pose_priors():
            key = prior.corr_data_id.sensor_id.id, prior.corr_data_id.id
            if prior.coordinate_system == pycolmap.PosePriorCoordinateSystem.WGS84 and prior.has_position() and key in names:
                found[names[key]] = prior
    ordered = sorted(found)
    geodetic = np.array([found[name].position for name in ordered]).reshape(-1, 3)
    variances = np.array([np.diag(found[name].position_covariance) for name in ordered]).reshape(-1, 3)
    deviations, accuracies = np.sqrt(variances.mean(axis=1)), np.sqrt(variances[:, [0, 2]])
    known = deviations[deviations > 0]  # NaN if unknown
    unknown_m = float(np.median(known)) if len(known) else UNKNOWN_ACCURACY_M
    origin = Origin.between(geodetic) if ordered else None
    return GpsPositions(ordered, geodetic, np.where(deviations > 0, deviations, unknown_m), accuracies, origin)


def estimate_georeference(model: pycolmap.Reconstruction, positions: GpsPositions, seed: int) -> Georeference:
    """The transform of a model to local metres by the positions of its photos. The model is not changed.

    Wrong positions are found by `robust_similarity` and not used.

    Raises: NotAligned with the reason, if the positions do not determine the transform.
    """
    if positions.origin is None:
        raise NotAligned(f"0 of its photos have a position, {MIN_POSITIONS} are needed")
    names, in_model, in_local = positions_of(model, positions.names, positions.origin.to_local(positions.geodetic))
    deviations = positions.deviations[[positions.names.index(name) for name in names]]
    similarity, inliers = robust_similarity(in_model, in_local, deviations, seed)
    errors = similarity(in_model) - in_local
    rotation_error_deg = _check(in_local[inliers], np.linalg.norm(errors[inliers], axis=1))
    return _georeference(positions.origin, similarity, names, errors, inliers, rotation_error_deg)


def positions_of(
    model: pycolmap.Reconstruction, names: Sequence[str], places: np.ndarray, min_extent: float = 0.01
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """The photos of a model that have a position, their centres (n, 3) in the model, and their places (n, 3).

    `places` (m, 3) are the positions of the photos `names` (m,). They are equal if they extend over less than `min_extent`.

    Raises: NotAligned with the reason, if they are too few or equal.
    """
    centers = {model.image(image_id).name: model.image(image_id).projection_center() for image_id in model.reg_image_ids()}
    chosen = [index for index, name in enumerate(names) if name in centers]
    if len(chosen) < MIN_POSITIONS:
        raise NotAligned(f"{len(chosen)} of its photos have a position, {MIN_POSITIONS} are needed")
    found = [names[index] for index in chosen]
    if np.ptp(places[chosen], axis=0).max() < min_extent:
        raise NotAligned("all its photos have the same position")
    return found, np.array([centers[name] for name in found]), places[chosen]


def _check(in_local: np.ndarray, residuals: np.ndarray) -> float:
    """Standard deviation, in degrees, of the turn about the longest axis of the positions (n, 3) with these residuals (n,).

    Raises: NotAligned if the residuals are as large as the extent, or the turn is not determined.
    """
    deviation = max(0.01, axis_deviation(residuals))  # GPS is never better than 1 cm
    extents = np.linalg.svd(in_local - in_local.mean(axis=0), compute_uv=False)  # times the square root of n
    residual, extent = math.sqrt(3) * deviation, float(np.linalg.norm(extents)) / math.sqrt(len(in_local))
    if residual > MAX_RESIDUAL * extent:
        raise NotAligned(f"its positions disagree with it: they spread over {extent:.2f} m, with residuals of {residual:.2f} m")
    across = float(np.linalg.norm(extents[1:]))
    error_deg = math.degrees(deviation / across) if across > 0 else math.inf
    if error_deg > MAX_ROTATION_ERROR_DEG:
        raise NotAligned(
            f"its positions do not say where up is: they are {across / math.sqrt(len(in_local)):.2f} m away from a line, with "
            f"errors of {deviation:.2f} m"
        )
    return error_deg


def _georeference(
    origin: Origin, similarity: Similarity, names: list[str], errors: np.ndarray, inliers: np.ndarray, rotation_error_deg: float
) -> Georeference:
    """The record with the residuals (n, 3) of the photos."""
    residuals = {
        name: Residual(float(np.hypot(east, north)), float(up), bool(is_inlier))
        for name, (east, north, up), is_inlier in zip(names, errors, inliers, strict=True)
    }
    return Georeference(origin, similarity.scale, similarity.rotation, similarity.translation, residuals, rotation_error_deg)
