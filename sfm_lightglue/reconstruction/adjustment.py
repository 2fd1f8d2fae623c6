"""The final adjustment of a model: robust bundle adjustment, tracks completed and cleaned, and camera parameters found.

COLMAP's mapper minimises squared errors, so that each wrong observation bends the model, and its cameras have one radial term.
Here the loss is Cauchy's at the precision of a keypoint, and a camera gets the parameters that its photos decide, see
`camera_choice`. COLMAP's bundle adjuster solves all problems.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import pycolmap

from sfm_lightglue.mistakes import count_of
from sfm_lightglue.model_files import read_model
from sfm_lightglue.reconstruction.bundle import bundle_problem
from sfm_lightglue.reconstruction.camera_choice import GROUPS, NAMES, CameraChoice, choose_parameters, most_probable
from sfm_lightglue.reconstruction.disagreement import disagreement
from sfm_lightglue.reconstruction.mappers import ReconstructionOptions
from sfm_lightglue.reconstruction.models import model_folders
from sfm_lightglue.reconstruction.normal_equations import normal_equations
from sfm_lightglue.reconstruction.position_priors import KnownPositions, adjust_to_positions, known_positions

logger = logging.getLogger(__name__)

TOLERANCE, ROUGH_TOLERANCE = 1e-5, 1e-3
"""The solver stops when the loss falls by a smaller share; roughly before tracks change, to an hundredth of the final precision.
With 1e-6 for all, scores of four sets changed by 0.1 points or less, and the adjustment took 1.6 to 2 times as long."""
MIN_PHOTOS = 5
"""A camera with fewer registered photos keeps one radial term and the principal point in the middle."""
MIN_ANGLE_DEG = 1.5
"""Points whose rays meet at smaller angles are removed, as COLMAP's mapper does."""
MAX_OBSERVATIONS = 4000
"""Observations of a camera beyond this number add nothing, because keypoints have errors that are the same in all photos. Without
this limit the 14,661 of Temple decide a tangential distortion that is not there (AUC@1 82 -> 61)."""
FISHEYE_TERMS = ("second radial term", "tangential distortion")
"""Groups whose places the last three of the four radial terms of OPENCV_FISHEYE have."""
MAX_PHOTOS = 100
"""Number of photos whose poses are estimated together with the cameras."""
MIN_POINTS = 4
"""A photo with fewer points has no certain pose: three points allow four of them."""
FAILURES = (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError)
"""Errors of numpy and COLMAP on models that observations hardly determine. The adjustment is not worth the mapper's work."""
MIN_KEPT = 0.5
"""Share of the observations that an adjusted model must keep."""


def adjust_models(
    output: Path, database: Path, options: ReconstructionOptions, known_poses: Mapping[str, np.ndarray] | None = None
) -> list[str]:
    """Adjusts the models in the folder `output` and writes them back; returns the sentences of `adjust_model`. Logs them.

    Models with known poses (`triangulation`) stay as they are. With `position_priors=poses` the centres of `known_poses`, float64
    (3, 4) cam_from_world by name, are priors.
    """
    notes, unused = list[str](), list[str]()
    if options.adjustment_scale_px is None or options.name == "triangulation":
        return notes
    positions = known_positions(database, options, known_poses)
    for folder in model_folders(output):
        model = read_model(folder)
        graph = _matches_of(model, database, options)
        before = model.compute_num_observations()
        try:
            about = adjust_model(model, graph, options)
        except FAILURES as error:
            unused.append(f"model {folder.name}, the final adjustment failed ({error}): the mapper's model stays")
            notes.append(unused[-1])
            continue
        if positions is not None:
            adjusted, note = _adjusted_to(positions, model, options)
            about.append(note)
            unused += [f"model {folder.name}, {note}"] if adjusted is model else []
            model = adjusted
        if (after := model.compute_num_observations()) < MIN_KEPT * before or model.num_reg_images() == 0:
            about = [f"the final adjustment would keep {after} of {before} observations: the mapper's model stays"]
        else:
            model.write(folder)
        notes += [f"model {folder.name}, {note}" for note in about]
    for note in notes:
        logger.log(logging.WARNING if note in unused else logging.INFO, "%s", note)
    return notes


def _adjusted_to(
    positions: KnownPositions, model: pycolmap.Reconstruction, options: ReconstructionOptions
) -> tuple[pycolmap.Reconstruction, str]:
    """As `adjust_to_positions`; a failure leaves the model as it is."""
    try:
        return adjust_to_positions(model, positions, options)
    except FAILURES as error:
        return model, f"positions are no priors: the adjustment to them failed ({error})"


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
    """Adjusts the model in place; returns a sentence about each camera that was looked for, and each photo taken out.

    Args:
        model: the model.
        graph: the verified matches of its photos.
        options: errors in px of the photos.
    """
    manager = pycolmap.ObservationManager(model, graph)
    triangulator = pycolmap.IncrementalTriangulator(graph, model, manager)

    def clean() -> None:
        _complete_tracks(triangulator, options)
        manager.filter_all_points3D(options.adjustment_max_error_px, MIN_ANGLE_DEG)

    chosen = _find_cameras(model, options, clean)
    if not chosen:
        _solve(model, options, ROUGH_TOLERANCE)
        clean()
    _solve(model, options, ROUGH_TOLERANCE, {*chosen})
    clean()
    _find_again(model, chosen, options)
    _solve(model, options, TOLERANCE, {*chosen})
    model.update_point_3d_errors()
    notes = [_describe(model, camera_id, choice) for camera_id, choice in sorted(chosen.items())]
    return notes + _without_photos_of_few_points(model, manager)


def _without_photos_of_few_points(model: pycolmap.Reconstruction, manager: pycolmap.ObservationManager) -> list[str]:
    """Takes out photos of which filtering has left too few points for a pose; returns a sentence about each."""
    notes = []
    for image_id in sorted(model.reg_image_ids()):
        image = model.image(image_id)
        if image.num_points3D < MIN_POINTS:
            notes.append(f"{image.name} is taken out: {count_of(image.num_points3D, 'point')} left after the final adjustment")
            manager.deregister_frame(image.frame_id)
    return notes


def _complete_tracks(triangulator: pycolmap.IncrementalTriangulator, options: ReconstructionOptions) -> None:
    """Adds verified matches to the points that they fit, and joins points that are the same."""
    limits = pycolmap.IncrementalTriangulatorOptions()
    limits.merge_max_reproj_error = limits.complete_max_reproj_error = options.adjustment_max_error_px
    limits.random_seed = options.seed
    triangulator.complete_all_tracks(limits)
    triangulator.merge_all_tracks(limits)


def _solve(
    model: pycolmap.Reconstruction,
    options: ReconstructionOptions,
    tolerance: float,
    constant: Iterable[int] = (),
    *,
    frees_principal_point: bool = False,
) -> None:
    """Adjusts poses, points and the intrinsics of all cameras but `constant`."""
    bundle_problem(
        model,
        options,
        loss_scale_px=float(options.adjustment_scale_px or 1),
        tolerance=tolerance,
        constant=constant,
        frees_principal_point=frees_principal_point,
    ).solve()


def _find_cameras(
    model: pycolmap.Reconstruction, options: ReconstructionOptions, clean: Callable[[], None]
) -> dict[int, CameraChoice]:
    """Gives each camera with enough photos the parameters that they decide; returns what was chosen, by camera.

    Poses and points are adjusted to cameras with all parameters.
    """
    possible = possible_groups(options)
    counts = dict.fromkeys(model.cameras, 0)
    for image_id in model.reg_image_ids():
        counts[model.image(image_id).camera_id] += 1
    ids = [camera_id for camera_id in sorted(counts) if counts[camera_id] >= MIN_PHOTOS and _can_choose(model.camera(camera_id))]
    if not possible or not ids:
        return {}
    before = {camera_id: copy.deepcopy(model.camera(camera_id)) for camera_id in ids}
    _replace_cameras(model, widened(model, ids))
    others = {*model.cameras} - {*ids}
    _solve(model, options, ROUGH_TOLERANCE, others, frees_principal_point=True)
    clean()
    _solve(model, options, TOLERANCE, others, frees_principal_point=True)
    found = _estimate(model, ids, options)
    if found is None:
        _replace_cameras(model, before)
        return {}
    chosen = dict[int, CameraChoice]()
    for camera_id, (estimate, covariance) in found.items():
        camera = model.camera(camera_id)
        of_lens = tuple(group for group in possible if group == "principal point" or not camera.is_perspective_fisheye())
        size, always = (camera.width, camera.height), _always(camera, options)
        chosen[camera_id] = choose_parameters(estimate, covariance, size, of_lens, always)
        _set(camera, chosen[camera_id])
    return chosen


def _find_again(model: pycolmap.Reconstruction, chosen: dict[int, CameraChoice], options: ReconstructionOptions) -> None:
    """Gives the chosen parameters the most probable values again, after the tracks changed."""
    for camera_id, (params, covariance) in (_estimate(model, chosen, options) or {}).items():
        camera, choice = model.camera(camera_id), chosen[camera_id]
        chosen[camera_id] = most_probable(choice, params, covariance, (camera.width, camera.height), _always(camera, options))
        _set(camera, chosen[camera_id])


def _estimate(
    model: pycolmap.Reconstruction, ids: Iterable[int], options: ReconstructionOptions
) -> dict[int, tuple[np.ndarray, np.ndarray]] | None:
    """Estimates of the parameters NAMES of the cameras `ids` and their covariance; None if observations do not determine them.

    In a model of more than MAX_PHOTOS each camera is estimated from its own photos, as many as that.
    """
    wide, found = widened(model, ids), dict[int, tuple[np.ndarray, np.ndarray]]()
    is_large = model.num_reg_images() > MAX_PHOTOS
    for part in [[camera_id] for camera_id in sorted(ids)] if is_large else [sorted(ids)]:
        free = {camera_id: range(len(NAMES)) if camera_id in part else () for camera_id in wide}
        photos = _overlapping_photos(model, part[0]) if is_large else None
        equations = normal_equations(model, float(options.adjustment_scale_px or 1), wide, free, photos)
        estimate = equations.cameras() if equations is not None else None
        if equations is None or estimate is None:
            return None
        errors = disagreement(equations)
        for number, camera_id in enumerate(part):
            factor = max(errors, equations.num_observations[camera_id] / MAX_OBSERVATIONS)
            own = slice(len(NAMES) * number, len(NAMES) * (number + 1))
            params = np.array(wide[camera_id].params) + estimate.step[own]
            found[camera_id] = params, factor * estimate.covariance[own, own]
    return found


def _overlapping_photos(model: pycolmap.Reconstruction, camera_id: int) -> list[int]:
    """At most MAX_PHOTOS photos of a camera: the one with most points, then always that which sees most points of the others."""
    points = {}
    for image_id in sorted(model.reg_image_ids()):
        image = model.image(image_id)
        if image.camera_id == camera_id:
            points[image_id] = np.array([point.point3D_id for point in image.get_observation_points2D()], np.int64)
    _, places = np.unique(np.concatenate([*points.values()]), return_inverse=True)
    seen_by = dict(zip(points, np.split(places, np.cumsum([len(each) for each in points.values()])[:-1]), strict=True))
    is_seen = np.zeros(places.max(initial=-1) + 1, bool)
    chosen = list[int]()
    while seen_by and len(chosen) < MAX_PHOTOS:
        best = max(seen_by, key=lambda image_id: (is_seen[seen_by[image_id]].sum(), len(seen_by[image_id]), -image_id))
        is_seen[seen_by.pop(best)] = True
        chosen.append(best)
    return chosen


def widened(model: pycolmap.Reconstruction, ids: Iterable[int]) -> dict[int, pycolmap.Camera]:
    """The cameras of the model by id; those of `ids` as cameras of the model OPENCV that project as they do."""
    cameras = {camera_id: model.camera(camera_id) for camera_id in model.cameras}
    for camera_id in ids:
        camera = cameras[camera_id]
        if camera.is_perspective_fisheye():  # it has as many parameters
            continue
        params = _opencv_params(camera)
        cameras[camera_id] = pycolmap.Camera(model="OPENCV", width=camera.width, height=camera.height, params=params)
    return cameras


def _replace_cameras(model: pycolmap.Reconstruction, cameras: Mapping[int, pycolmap.Camera]) -> None:
    for camera_id, camera in cameras.items():
        changed = model.camera(camera_id)
        changed.model, changed.params = camera.model, [float(value) for value in camera.params]


def _set(camera: pycolmap.Camera, choice: CameraChoice) -> None:
    if camera.is_perspective_fisheye():
        camera.params = [float(value) for value in choice.params]
    else:
        camera.model, camera.params = pycolmap.CameraModelId.__members__[choice.model], choice.model_params()


def _always(camera: pycolmap.Camera, options: ReconstructionOptions) -> tuple[str, ...]:
    """Groups of parameters that need no choice: those that the user frees, and the last three terms of a fisheye lens."""
    freed = ("principal point",) if options.refine_principal_point == "true" else ()
    return (*freed, *FISHEYE_TERMS) if camera.is_perspective_fisheye() else freed


def possible_groups(options: ReconstructionOptions) -> tuple[str, ...]:
    """Groups of parameters that a camera may get."""
    if not options.refine_intrinsics:
        return ()
    names = [name for name in GROUPS if name == "principal point" or options.find_camera_model]
    return tuple(name for name in names if name != "principal point" or options.refine_principal_point != "false")


def can_widen(camera: pycolmap.Camera) -> bool:
    return camera.model.name in ("SIMPLE_RADIAL", "RADIAL", "OPENCV")


def _can_choose(camera: pycolmap.Camera) -> bool:
    return can_widen(camera) or camera.model.name == "OPENCV_FISHEYE"


def _opencv_params(camera: pycolmap.Camera) -> list[float]:
    """The parameters of a camera of the model OPENCV that projects as this one."""
    values = np.array(camera.params)
    focal, center = values[list(camera.focal_length_idxs())], values[list(camera.principal_point_idxs())]
    extra = np.zeros(4)
    extra[: len(camera.extra_params_idxs())] = values[list(camera.extra_params_idxs())]
    return [float(value) for value in (focal[0], focal[-1], *center, *extra)]


def _describe(model: pycolmap.Reconstruction, camera_id: int, choice: CameraChoice) -> str:
    """What was chosen for a camera, and why."""
    camera = model.camera(camera_id)
    center = choice.params[2:4] - np.array([camera.width, camera.height]) / 2
    parts = [f"camera {camera_id} is {camera.model.name}: focal length {choice.params[0]:.1f} +- {choice.std[0]:.1f} px"]
    for group in ("principal point",) if camera.is_perspective_fisheye() else GROUPS:
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
