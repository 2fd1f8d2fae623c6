"""The final adjustment of a model: robust bundle adjustment, tracks completed and cleaned, and camera parameters found.

COLMAP's mapper minimises squared errors, so that each wrong observation bends the model, and its cameras have one radial term.
Here the loss is Cauchy's at the precision of a keypoint, and a camera gets the parameters that its photos decide, see
`camera_choice`. COLMAP's bundle adjuster solves all problems.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pycolmap

from sfm_lightglue.model_files import read_model
from sfm_lightglue.reconstruction.bundle import bundle_problem
from sfm_lightglue.reconstruction.camera_choice import GROUPS, CameraChoice, choose_parameters
from sfm_lightglue.reconstruction.mappers import ReconstructionOptions
from sfm_lightglue.reconstruction.models import model_folders

logger = logging.getLogger(__name__)

NUM_ROUNDS = 2
"""Rounds of adjustment: each finds the cameras, completes tracks with them, and removes observations with large errors."""
MIN_PHOTOS = 5
"""A camera with fewer registered photos keeps one radial term and the principal point in the middle."""
MIN_ANGLE_DEG = 1.5
"""Points whose rays meet at smaller angles are removed, as COLMAP's mapper does."""
MIN_KEPT = 0.5
"""Share of the observations that an adjusted model must keep."""
INFLATION = 10.0
"""Factor on the covariance, because the errors of a keypoint are similar in all photos that see it."""


def adjust_models(output: Path, database: Path, options: ReconstructionOptions) -> list[str]:
    """Adjusts the models in the folder `output` and writes them back; returns a sentence about each camera. Logs them.

    Models with known poses (`triangulation`) stay as they are.
    """
    notes = list[str]()
    if options.adjustment_scale_px is None or options.name == "triangulation":
        return notes
    for folder in model_folders(output):
        model = read_model(folder)
        graph = _matches_of(model, database, options)
        before = model.compute_num_observations()
        about = adjust_model(model, graph, options)
        if (after := model.compute_num_observations()) < MIN_KEPT * before or model.num_reg_images() == 0:
            about = [f"the final adjustment would keep {after} of {before} observations: the mapper's model stays"]
        else:
            model.write(folder)
        notes += [f"model {folder.name}, {note}" for note in about]
    for note in notes:
        logger.info("%s", note)
    return notes


def _matches_of(model: pycolmap.Reconstruction, database: Path, options: ReconstructionOptions) -> pycolmap.CorrespondenceGraph:
    """The verified matches of the photos of a model. COLMAP refuses a graph with other photos."""
    cache = pycolmap.DatabaseCacheOptions()
    cache.min_num_matches = options.min_num_matches
    cache.image_names = {model.image(image_id).name for image_id in model.reg_image_ids()}
    with pycolmap.Database.open(database) as rows:
        return pycolmap.DatabaseCache.create(rows, cache).correspondence_graph


def adjust_model(
    model: pycolmap.Reconstruction, graph: pycolmap.CorrespondenceGraph, options: ReconstructionOptions
) -> list[str]:
    """Adjusts the model in place; returns a sentence about each camera whose parameters were looked for.

    Args:
        model: the model.
        graph: the verified matches of its photos.
        options: errors in px of the photos.
    """
    chosen: dict[int, CameraChoice] = {}
    manager = pycolmap.ObservationManager(model, graph)
    triangulator = pycolmap.IncrementalTriangulator(graph, model, manager)
    _solve(model, options, constant=set())
    for _ in range(NUM_ROUNDS):
        chosen = _find_cameras(model, options)
        _complete_tracks(triangulator, options)
        _solve(model, options, constant={*chosen})
        manager.filter_all_points3D(options.adjustment_max_error_px, MIN_ANGLE_DEG)
        _solve(model, options, constant={*chosen})
    model.update_point_3d_errors()
    return [_describe(model, camera_id, choice) for camera_id, choice in sorted(chosen.items())]


def _complete_tracks(triangulator: pycolmap.IncrementalTriangulator, options: ReconstructionOptions) -> None:
    """Adds verified matches to the points that they fit, and joins points that are the same."""
    limits = pycolmap.IncrementalTriangulatorOptions()
    limits.merge_max_reproj_error = limits.complete_max_reproj_error = options.adjustment_max_error_px
    limits.random_seed = options.seed
    triangulator.complete_all_tracks(limits)
    triangulator.merge_all_tracks(limits)


def _solve(
    model: pycolmap.Reconstruction, options: ReconstructionOptions, constant: set[int], *, frees_principal_point: bool = False
) -> pycolmap.CeresBundleAdjuster:
    """Adjusts poses, points and the intrinsics of all cameras but `constant`; returns the solved problem."""
    scale_px = float(options.adjustment_scale_px or 1)
    adjuster = bundle_problem(
        model, options, loss_scale_px=scale_px, constant=constant, frees_principal_point=frees_principal_point
    )
    adjuster.solve()
    return adjuster


def _find_cameras(model: pycolmap.Reconstruction, options: ReconstructionOptions) -> dict[int, CameraChoice]:
    """Gives each camera with enough photos the parameters that they decide; returns what was chosen, by camera."""
    possible = _possible_groups(options)
    counts = dict.fromkeys(model.cameras, 0)
    for image_id in model.reg_image_ids():
        counts[model.image(image_id).camera_id] += 1
    ids = [camera_id for camera_id in sorted(counts) if counts[camera_id] >= MIN_PHOTOS and _can_widen(model.camera(camera_id))]
    if not possible or not ids:
        return {}
    before = {
        camera_id: (model.camera(camera_id).model, [float(value) for value in model.camera(camera_id).params])
        for camera_id in ids
    }
    for camera_id in ids:
        _widen(model.camera(camera_id))
    others = {camera_id for camera_id in model.cameras if camera_id not in ids}
    adjuster = _solve(model, options, others, frees_principal_point=True)
    wanted = pycolmap.BACovarianceOptions()
    wanted.params = pycolmap.BACovarianceOptionsParams.ALL
    covariance = pycolmap.estimate_ba_covariance(wanted, model, adjuster)
    factor, chosen = INFLATION * _variance_factor(model, options), {}
    always = ("principal point",) if options.refine_principal_point == "true" else ()
    for camera_id in ids:
        camera = model.camera(camera_id)
        found = None if covariance is None else covariance.get_other_params_cov(camera.params)
        if found is None or found.shape != (8, 8) or not np.isfinite(found).all():
            camera.model, camera.params = before[camera_id]
            continue
        choice = choose_parameters(np.array(camera.params), factor * found, (camera.width, camera.height), possible, always)
        camera.model, camera.params = pycolmap.CameraModelId.__members__[choice.model], choice.model_params()
        chosen[camera_id] = choice
    return chosen


def _possible_groups(options: ReconstructionOptions) -> tuple[str, ...]:
    """Groups of parameters that a camera may get."""
    if not options.refine_intrinsics:
        return ()
    names = [name for name in GROUPS if name == "principal point" or options.find_camera_model]
    return tuple(name for name in names if name != "principal point" or options.refine_principal_point != "false")


def _can_widen(camera: pycolmap.Camera) -> bool:
    return camera.model.name in ("SIMPLE_RADIAL", "RADIAL", "OPENCV")


def _widen(camera: pycolmap.Camera) -> None:
    """Makes a camera one of the model OPENCV that projects as before."""
    values = np.array(camera.params)
    focal, center = values[list(camera.focal_length_idxs())], values[list(camera.principal_point_idxs())]
    extra = np.zeros(4)
    extra[: len(camera.extra_params_idxs())] = values[list(camera.extra_params_idxs())]
    camera.model = pycolmap.CameraModelId.OPENCV
    camera.params = [focal[0], focal[-1], *center, *extra]


def _variance_factor(model: pycolmap.Reconstruction, options: ReconstructionOptions) -> float:
    """Variance of the estimates / the covariance that the solver gives for residuals of variance 1.

    Source: Huber and Ronchetti, Robust Statistics (2009), section 7.6: mean square of the influence / mean of its derivative. The
    number of parameters is subtracted from the number of residuals.
    """
    model.update_point_3d_errors()
    errors = np.repeat(
        [point.error for point in model.points3D.values()], [point.track.length() for point in model.points3D.values()]
    )
    squares = errors**2
    weights = 1 / (1 + squares / float(options.adjustment_scale_px or 1) ** 2)
    num_free = 2 * len(errors) - 3 * model.num_points3D() - 6 * model.num_reg_images()
    return float((weights**2 * squares).mean() / 2 / weights.mean() * 2 * len(errors) / max(num_free, 1))


def _describe(model: pycolmap.Reconstruction, camera_id: int, choice: CameraChoice) -> str:
    """What was chosen for a camera, and why."""
    camera = model.camera(camera_id)
    center = choice.params[2:4] - np.array([camera.width, camera.height]) / 2
    parts = [f"camera {camera_id} is {choice.model}: focal length {choice.params[0]:.1f} +- {choice.std[0]:.1f} px"]
    for group in GROUPS:
        gain = f"log evidence {choice.gains[group]:+.0f}" if group in choice.gains else "others need it"
        if group == "principal point" and group in choice.groups:
            parts.append(
                f"principal point {center[0]:+.1f} +- {choice.std[2]:.1f}, {center[1]:+.1f} +- {choice.std[3]:.1f} px from the "
                f"middle ({gain})"
            )
        elif group in choice.groups:
            parts.append(f"{group} ({gain})")
        elif group in choice.gains:
            parts.append(f"{group} stays fixed ({gain})")
    return "; ".join(parts)
