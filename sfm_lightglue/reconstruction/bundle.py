"""COLMAP's bundle adjustment of a whole model, as all steps after the mapper set it up."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence

import pycolmap

from sfm_lightglue.execution.devices import num_cores
from sfm_lightglue.reconstruction.mappers import ReconstructionOptions, chosen_num_threads

POSITION_LOSS_SCALE = 2.8
"""Scale of Cauchy's loss for position priors, standard deviations: 95 % of distances with normal errors in space are smaller."""


def bundle_problem(
    model: pycolmap.Reconstruction,
    options: ReconstructionOptions,
    *,
    loss_scale_px: float | None,
    tolerance: float = 1e-6,
    constant: Iterable[int] = (),
    frees_principal_point: bool = False,
    positions: Sequence[pycolmap.PosePrior] = (),
) -> pycolmap.CeresBundleAdjuster:
    """The problem of all poses, points and, if intrinsics are refined, cameras; `solve()` changes the model.

    Args:
        model: the model.
        options: whether intrinsics and principal points are refined, and the number of threads.
        loss_scale_px: scale of Cauchy's loss, px; None minimises squared errors.
        tolerance: the solver stops when the loss falls by a smaller share.
        constant: ids of cameras whose intrinsics stay.
        frees_principal_point: whether principal points are free although the options leave them to `camera_choice`.
        positions: priors of photos in the coordinates of the model, with covariances. They need `loss_scale_px`, which is the
            precision of an observation.
    """
    colmap, scope = pycolmap.BundleAdjustmentOptions(), pycolmap.BundleAdjustmentConfig()
    for image_id in sorted(model.reg_image_ids()):
        scope.add_image(image_id)
    for camera_id in sorted(constant):
        scope.set_constant_cam_intrinsics(camera_id)
    if not positions:  # they say where the model is
        scope.fix_gauge(pycolmap.BundleAdjustmentGauge.TWO_CAMS_FROM_WORLD)
    colmap.refine_focal_length = colmap.refine_extra_params = options.refine_intrinsics
    frees_principal_point = frees_principal_point or options.refine_principal_point == "true"
    colmap.refine_principal_point = options.refine_intrinsics and frees_principal_point
    colmap.print_summary = False  # pycolmap.bundle_adjustment would log to the terminal
    if loss_scale_px is not None:
        colmap.ceres.loss_function_type = pycolmap.LossFunctionType.CAUCHY
        colmap.ceres.loss_function_scale = loss_scale_px
        colmap.ceres.solver_options.max_num_iterations = 50
    num_threads = chosen_num_threads(options, model.num_reg_images())
    colmap.ceres.solver_options.num_threads = num_threads if num_threads > 0 else num_cores()
    colmap.ceres.solver_options.function_tolerance = tolerance
    if positions:
        return _with_positions(model, colmap, scope, positions)
    return pycolmap.create_default_ceres_bundle_adjuster(colmap, scope, model)


def _with_positions(
    model: pycolmap.Reconstruction,
    colmap: pycolmap.BundleAdjustmentOptions,
    scope: pycolmap.BundleAdjustmentConfig,
    positions: Sequence[pycolmap.PosePrior],
) -> pycolmap.CeresBundleAdjuster:
    """The problem with priors. COLMAP takes all observations as precise to 1 px, so their precision changes the covariances."""
    precision_px = colmap.ceres.loss_function_scale
    priors = []
    for position in positions:
        prior = copy.deepcopy(position)
        prior.position_covariance = position.position_covariance / precision_px**2
        priors.append(prior)
    about = pycolmap.PosePriorBundleAdjustmentOptions()
    about.ceres.prior_position_loss_function_type = pycolmap.LossFunctionType.CAUCHY
    about.ceres.prior_position_loss_scale = POSITION_LOSS_SCALE * precision_px
    return pycolmap.create_pose_prior_ceres_bundle_adjuster(colmap, about, scope, priors, model)
