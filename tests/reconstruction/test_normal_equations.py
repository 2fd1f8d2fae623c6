"""The normal equations without points, and what parts of the photos say about a camera."""

from __future__ import annotations

import numpy as np
import pycolmap
import pytest
from test_adjustment import IDEAL, OPTIONS, SIZE, make_model

from sfm_lightglue.reconstruction import adjustment
from sfm_lightglue.reconstruction.bundle import bundle_problem
from sfm_lightglue.reconstruction.disagreement import disagreement
from sfm_lightglue.reconstruction.normal_equations import POSE, NormalEquations, _linear, _Positions, normal_equations

SCALE_PX = 0.5
FREE = (0, 1, 2, 3)
"""All parameters of the model SIMPLE_RADIAL."""


def adjusted(*truths: tuple[float, ...], **choices: object) -> pycolmap.Reconstruction:
    """A model with a free principal point at the minimum of the loss; all photos share a camera."""
    model, _, _ = make_model(*truths, **choices, is_one_camera=True)
    bundle_problem(model, OPTIONS, loss_scale_px=SCALE_PX, tolerance=1e-9, frees_principal_point=True).solve()
    return model


def equations_of(model: pycolmap.Reconstruction) -> NormalEquations:
    found = normal_equations(model, SCALE_PX, model.cameras, dict.fromkeys(model.cameras, FREE))
    assert found is not None
    return found


def test_the_covariance_is_that_of_colmap_if_errors_are_independent() -> None:
    model, _, _ = make_model(IDEAL, (900, 900, 400, 300, -0.1, 0, 0, 0))
    problem = bundle_problem(model, OPTIONS, loss_scale_px=SCALE_PX, tolerance=1e-9, frees_principal_point=True)
    problem.solve()
    wanted = pycolmap.BACovarianceOptions()
    wanted.params = pycolmap.BACovarianceOptionsParams.ALL
    theirs = pycolmap.estimate_ba_covariance(wanted, model, problem)
    ours = equations_of(model).cameras()
    assert ours is not None
    for number, camera_id in enumerate((1, 2)):
        expected = theirs.get_other_params_cov(model.camera(camera_id).params)
        found = ours.inverse[4 * number : 4 * number + 4, 4 * number : 4 * number + 4]
        assert found == pytest.approx(expected, rel=0.02, abs=0.02 * np.abs(expected).min())


@pytest.mark.parametrize("is_seen_twice", [False, True])
def test_the_equations_are_those_of_all_parameters_without_the_points(is_seen_twice: bool) -> None:
    model = adjusted(IDEAL, num_photos=5)
    if is_seen_twice:
        model.merge_points3D(*sorted(model.point3D_ids())[:2])  # each photo sees both
    ours, size = equations_of(model), len(FREE) + POSE
    points = {point: 3 * number for number, point in enumerate(sorted(model.point3D_ids()))}
    both = np.zeros((3 * len(points) + size * len(ours.image_ids),) * 2)
    for row, image_id in enumerate(ours.image_ids):
        seen = _linear(model, image_id, model.cameras, dict.fromkeys(model.cameras, FREE), size, _Positions.of(model))
        weights = 1 / (1 + (seen.residuals**2).sum(axis=1) / SCALE_PX**2)
        for point, weight, by_photo, by_point in zip(seen.points, weights, seen.by_photo, seen.by_point, strict=True):
            start = 3 * len(points) + size * row
            columns = [*range(points[point], points[point] + 3), *range(start, start + size)]
            jacobian = np.hstack([by_point, by_photo])
            both[np.ix_(columns, columns)] += weight * jacobian.T @ jacobian
    of_points, cross, rest = (both[rows, columns] for rows, columns in _quarters(3 * len(points)))
    expected = rest - cross.T @ np.linalg.solve(of_points, cross)
    assert len(ours.pairs) == 15
    for (row, other), found in zip(ours.pairs, ours.hessians, strict=True):
        block = expected[size * row : size * (row + 1), size * other : size * (other + 1)]
        assert found == pytest.approx(block, rel=1e-5, abs=1e-7 * np.abs(expected).max())


def _quarters(count: int) -> list[tuple[slice, slice]]:
    first, last = slice(0, count), slice(count, None)
    return [(first, first), (first, last), (last, last)]


def test_a_step_leads_to_the_minimum() -> None:
    model = adjusted(IDEAL, noise_px=0.1)
    best, moved = np.array(model.camera(1).params), np.array([0.2, 0.1, -0.1, 0.0002])
    model.camera(1).params = (best + moved).tolist()
    found = equations_of(model).cameras()
    assert found is not None and found.step == pytest.approx(-moved, rel=0.3)


def test_more_photos_make_a_camera_more_certain() -> None:
    std = []
    for num_photos in (6, 24):
        found = equations_of(adjusted(IDEAL, num_photos=num_photos)).cameras()
        assert found is not None
        std.append(np.sqrt(np.diag(found.covariance)))
    assert (std[1] < 0.7 * std[0]).all()


def test_photos_with_independent_errors_agree_and_a_lens_that_moves_disagrees() -> None:
    """The focal lengths of two halves of the photos differ by 1 %, which one camera must explain."""
    same = disagreement(equations_of(adjusted(IDEAL, num_photos=16)))
    focuses = disagreement(equations_of(adjusted(IDEAL, (707, 707, *IDEAL[2:]), num_photos=16)))
    assert 1 <= same < 2 and focuses > 5 * same


@pytest.mark.parametrize("ratio, is_free", [(1.0, True), (500.0, False)])
def test_a_principal_point_about_which_photos_disagree_stays_fixed(
    ratio: float, is_free: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adjustment, "disagreement", lambda equations: ratio)
    model, graph, _ = make_model((700, 700, 412, 291, 0, 0, 0, 0), num_photos=8)
    (note,) = adjustment.adjust_model(model, graph, OPTIONS)
    assert ("principal point +" in note) == is_free and (model.camera(1).params[1] == SIZE[0] / 2) == (not is_free)


def test_a_photo_without_points_determines_nothing_and_is_taken_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Filtering can take the last point of a photo."""
    model, graph, _ = make_model((700, 700, 412, 291, 0, 0, 0, 0), num_photos=8)
    for number, point in enumerate(model.image(1).points2D):
        if point.has_point3D():
            model.delete_observation(1, number)
    assert equations_of(model).poses() is None
    monkeypatch.setattr(adjustment, "_complete_tracks", lambda *_: None)  # would find the points again
    notes = adjustment.adjust_model(model, graph, OPTIONS)
    assert model.num_reg_images() == 7 and not model.image(1).has_pose and model.compute_mean_reprojection_error() < 1
    assert notes[-1] == f"{model.image(1).name} is taken out: 0 points left after the final adjustment"


def test_a_large_model_takes_the_photos_that_overlap_most() -> None:
    model, graph, _ = make_model((700, 700, 412, 291, 0, 0, 0, 0), num_photos=12, num_points=400)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adjustment, "MAX_PHOTOS", 8)
        adjustment.adjust_model(model, graph, OPTIONS)
    assert model.camera(1).params[1:3] == pytest.approx([412, 291], abs=3)


@pytest.mark.parametrize("num_points", [0, 3])
def test_fewer_observations_than_parameters_give_no_equations(num_points: int) -> None:
    model, _, _ = make_model(IDEAL, num_photos=6, num_points=max(num_points, 1))
    for point_id in [*model.point3D_ids()] if num_points == 0 else []:
        model.delete_point3D(point_id)
    assert normal_equations(model, SCALE_PX, model.cameras, dict.fromkeys(model.cameras, FREE)) is None
