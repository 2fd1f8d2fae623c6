"""The last adjustment of a model, with known positions of its photos as priors: they keep a long sequence from bending.

Observations and positions count by their precision. Positions are at best as precise as the user or the photos say, and otherwise
as they agree with the model. The first estimate is their whole distance from it, so the model bends no further than its
observations allow; the distance that is left gives the next estimate. A model that its observations determine well stays as it
is, even if the positions are wrong. COLMAP's bundle adjuster solves all problems.

Source of the estimates: Förstner and Wrobel, Photogrammetric Computer Vision (2016), section 4.2.4 (variance components).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pycolmap

from sfm_lightglue.mistakes import count_of
from sfm_lightglue.positions import MIN_PRIORS
from sfm_lightglue.reconstruction.alignment import MAX_RESIDUAL, NotAligned, positions_of, read_gps_positions
from sfm_lightglue.reconstruction.bundle import bundle_problem
from sfm_lightglue.reconstruction.mappers import ReconstructionOptions
from sfm_lightglue.similarity import INLIER_LIMIT, Similarity, robust_similarity

UNKNOWN_ACCURACY_M = 1.0
"""Standard deviation along each axis if neither the photos nor the options say it: consumer GPS is not better."""
NUM_ROUNDS, MIN_CHANGE = 10, 0.05
"""Most estimates of the precision, and the smallest relative change of one that needs another."""
GROSS = 30.0
"""Positions that are more standard deviations away are left out."""
MAX_LOSS = 0.1
"""The model stays as it was if positions would raise the median reprojection error by a larger share."""


@dataclass(frozen=True)
class KnownPositions:
    """Positions of photos in a frame that is not the model's."""

    names: list[str]
    """Sorted."""
    places: np.ndarray
    """float64 (n, 3)."""
    accuracies: np.ndarray
    """float64 (n, 2): smallest standard deviations along each axis, horizontal and vertical (third axis)."""
    unit: str
    """Of places and accuracies, as the log names it."""
    min_extent: float
    """Positions that extend over less are equal."""
    gives_coordinates: bool
    """Whether models get the coordinates of the places."""


def known_positions(
    database: Path, options: ReconstructionOptions, poses: Mapping[str, np.ndarray] | None = None
) -> KnownPositions | None:
    """The positions that the options want as priors; None for none.

    Args:
        database: COLMAP database with GPS positions.
        options: which positions, and their accuracy if they do not say it.
        poses: float64 (3, 4) cam_from_world by name.
    """
    if options.position_priors == "gps":
        gps = read_gps_positions(database)
        places = gps.origin.to_local(gps.geodetic) if gps.origin is not None else np.zeros((0, 3))
        accuracies = np.where(gps.accuracies > 0, gps.accuracies, options.position_std or UNKNOWN_ACCURACY_M)
        return KnownPositions(gps.names, places, accuracies, "m", 0.01, gives_coordinates=False)
    if options.position_priors == "poses":
        ordered = sorted(poses or {})
        known = [(poses or {})[name] for name in ordered]
        places = np.array([-pose[:, :3].T @ pose[:, 3] for pose in known]).reshape(-1, 3)
        accuracies = np.full((len(ordered), 2), options.position_std or np.nan)
        return KnownPositions(ordered, places, accuracies, "units", 1e-9, gives_coordinates=True)
    return None


def adjust_to_positions(
    model: pycolmap.Reconstruction, positions: KnownPositions, options: ReconstructionOptions
) -> tuple[pycolmap.Reconstruction, str]:
    """The model after the adjustment, and a sentence that says how far the photos are from the positions.

    It is `model` itself if there are too few positions, or if they do not fit. Otherwise the coordinates are those of `model`, or
    those of the positions, as these say.

    Args:
        model: a model after the final adjustment. It is not changed.
        positions: those of its photos, and maybe of others.
        options: those of the final adjustment, px of the photos.
    """
    try:
        names, in_model, in_local = positions_of(model, positions.names, positions.places, positions.min_extent)
    except NotAligned as reason:
        return model, f"positions are no priors: {reason}"
    if len(names) < MIN_PRIORS:
        return model, f"positions are no priors: {len(names)} of its photos have one, {MIN_PRIORS} are needed"
    accuracies = positions.accuracies[[positions.names.index(name) for name in names]]
    priors, unit = _Priors(names, in_local, accuracies, options), positions.unit
    start, before = priors.fit(in_model)
    if np.median(before) > MAX_RESIDUAL * np.linalg.norm(np.ptp(in_local, axis=0)) / 2:
        return model, f"positions are no priors: they disagree with the model by {np.median(before):.2g} {unit} (median)"
    local_from_model = pycolmap.Sim3d(start.scale, pycolmap.Rotation3d(start.rotation), start.translation)
    adjusted = copy.deepcopy(model)
    adjusted.transform(local_from_model)
    deviations = priors.adjust(adjusted)
    after, (error_before, error_after) = priors.distances(adjusted), (_median_error(each) for each in (model, adjusted))
    about = (
        f"distance of the photos from them {np.median(before):.3g} -> {np.median(after):.3g} {unit}, reprojection error "
        f"{error_before:.3f} -> {error_after:.3f} px (medians)"
    )
    if error_after > (1 + MAX_LOSS) * error_before:
        return model, f"positions are no priors, because they do not fit the photos: {about}"
    if not positions.gives_coordinates:
        adjusted.transform(local_from_model.inverse())
    num_wild = int((priors.scaled(adjusted, deviations) > INLIER_LIMIT).sum())
    wild = f"; wild positions: {num_wild}" if num_wild else ""
    return adjusted, (
        f"{count_of(len(names), 'position')} are priors, with standard deviations of {deviations[0]:.2g} {unit} horizontally and "
        f"{deviations[1]:.2g} {unit} vertically: {about}{wild}"
    )


@dataclass(frozen=True)
class _Priors:
    """Positions of photos as priors."""

    names: list[str]
    in_local: np.ndarray
    """float64 (n, 3), in the unit of the positions, as all lengths here."""
    accuracies: np.ndarray
    """float64 (n, 2): smallest standard deviations, horizontal and vertical."""
    options: ReconstructionOptions

    def fit(self, in_model: np.ndarray) -> tuple[Similarity, np.ndarray]:
        """The similarity from centres of the cameras (n, 3) to the positions, and the distances (n,) that are left."""
        similarity, _ = robust_similarity(in_model, self.in_local, self.accuracies.mean(axis=1), self.options.seed)
        return similarity, np.linalg.norm(similarity(in_model) - self.in_local, axis=1)

    def distances(self, model: pycolmap.Reconstruction) -> np.ndarray:
        """float64 (n,): of the cameras of a model from their positions."""
        return self.fit(self._centers(model))[1]

    def scaled(self, model: pycolmap.Reconstruction, deviations: np.ndarray) -> np.ndarray:
        """float64 (n,): distances of the cameras of a model from their positions, in standard deviations."""
        errors = self._errors(model) / self._deviations_of_axes(deviations)
        lengths: np.ndarray = np.linalg.norm(errors, axis=1)
        return lengths

    def adjust(self, model: pycolmap.Reconstruction) -> np.ndarray:
        """Adjusts a model in the frame of the positions; returns the standard deviations (2,), horizontal and vertical."""
        deviations = self._estimate(model)
        for _ in range(NUM_ROUNDS):
            self._solve(model, deviations)
            found = np.minimum(self._estimate(model), deviations)
            is_final = (found > (1 - MIN_CHANGE) * deviations).all()
            deviations = found
            if is_final:
                break
        return deviations

    def _estimate(self, model: pycolmap.Reconstruction) -> np.ndarray:
        """float64 (2,): standard deviations of the positions, horizontal and vertical, from their distances from the model."""
        errors, free = np.abs(self._errors(model)), 3 * len(self.names)
        medians = np.array([np.median(errors[:, :2]), np.median(errors[:, 2])])
        found = 1.4826 * np.sqrt(free / (free - 7)) * medians  # of normal errors; a similarity has 7 parameters
        estimate: np.ndarray = np.maximum(found, np.median(self.accuracies, axis=0))
        return estimate

    def _solve(self, model: pycolmap.Reconstruction, deviations: np.ndarray) -> None:
        scale_px, axes, priors = float(self.options.adjustment_scale_px or 1), self._deviations_of_axes(deviations), []
        is_near = self.scaled(model, deviations) <= GROSS
        for row in np.flatnonzero(is_near).tolist():
            prior = pycolmap.PosePrior(position=self.in_local[row], position_covariance=np.diag(axes[row] ** 2))
            prior.coordinate_system = pycolmap.PosePriorCoordinateSystem.CARTESIAN
            prior.corr_data_id = model.find_image_with_name(self.names[row]).data_id
            priors.append(prior)
        bundle_problem(model, self.options, loss_scale_px=scale_px, positions=priors).solve()

    def _deviations_of_axes(self, deviations: np.ndarray) -> np.ndarray:
        """float64 (n, 3): standard deviations of each position along the axes."""
        axes: np.ndarray = np.maximum(self.accuracies, deviations)[:, [0, 0, 1]]
        return axes

    def _errors(self, model: pycolmap.Reconstruction) -> np.ndarray:
        """float64 (n, 3): of the cameras of a model from their positions."""
        centers = self._centers(model)
        errors: np.ndarray = self.fit(centers)[0](centers) - self.in_local
        return errors

    def _centers(self, model: pycolmap.Reconstruction) -> np.ndarray:
        return np.array([model.find_image_with_name(name).projection_center() for name in self.names])


def _median_error(model: pycolmap.Reconstruction) -> float:
    """Median reprojection error of the points, px."""
    model.update_point_3d_errors()
    return float(np.median([model.point3D(point).error for point in model.point3D_ids()]))
