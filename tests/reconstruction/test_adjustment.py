"""The final adjustment: parameters of cameras that the photos decide are found, and wrong observations do not bend the model."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pycolmap
import pytest
from known_scene import MAPPER_OPTIONS

from sfm_lightglue.reconstruction import adjustment, uncertainty
from sfm_lightglue.reconstruction.adjustment import MIN_PHOTOS, adjust_model, adjust_models
from sfm_lightglue.reconstruction.camera_choice import GROUPS, choose_parameters

SIZE = (800, 600)
OPTIONS = dataclasses.replace(
    MAPPER_OPTIONS,
    refine_intrinsics=True,
    refine_principal_point="auto",
    find_camera_model=True,
    adjustment_scale_px=0.5,
    adjustment_max_error_px=2.0,
)
IDEAL = (700.0, 700.0, 400.0, 300.0, 0.0, 0.0, 0.0, 0.0)
"""An OPENCV camera without distortion."""


def make_model(
    *truths: tuple[float, ...],
    num_photos: int = 12,
    num_points: int = 200,
    noise_px: float = 0.3,
    num_wrong: int = 0,
    seed: int = 0,
    poses: list[np.ndarray] | None = None,
    is_one_camera: bool = False,
) -> tuple[pycolmap.Reconstruction, pycolmap.CorrespondenceGraph, list[np.ndarray]]:
    """A model as the mapper might give it, with SIMPLE_RADIAL cameras, and the true centres of the photos.

    `truths` are true cameras of the model OPENCV; the photos have them in turn. Observations in half of the points of photo 0 are
    wrong if `num_wrong` says so. The true poses are appended to `poses`. With `is_one_camera` the model has one camera for all.
    """
    generator, poses = np.random.default_rng(seed), [] if poses is None else poses
    points = generator.uniform((-2, -1.5, -2), (2, 1.5, 2), (num_points, 3))
    model, graph = pycolmap.Reconstruction(), pycolmap.CorrespondenceGraph()
    for number, truth in enumerate(truths[: 1 if is_one_camera else None], 1):
        params = [truth[0] * 1.02, SIZE[0] / 2, SIZE[1] / 2, 0.0]
        camera = pycolmap.Camera(camera_id=number, model="SIMPLE_RADIAL", width=SIZE[0], height=SIZE[1], params=params)
        model.add_camera_with_trivial_rig(camera)
    tracks: list[list[pycolmap.TrackElement]] = [[] for _ in points]
    centers = []
    for index in range(num_photos):
        pose = _pose(index / num_photos, generator)
        poses.append(pose)
        centers.append(-pose[:, :3].T @ pose[:, 3])
        truth = pycolmap.Camera(model="OPENCV", width=SIZE[0], height=SIZE[1], params=list(truths[index % len(truths)]))
        seen = truth.img_from_cam(points @ pose[:, :3].T + pose[:, 3])
        visible = np.flatnonzero((seen > 0).all(axis=1) & (seen < SIZE).all(axis=1))
        seen = seen[visible] + noise_px * generator.standard_normal((len(visible), 2))
        if index == 0:
            seen[:num_wrong] += (8, 8)
        for position, point in enumerate(visible):
            tracks[point].append(pycolmap.TrackElement(index + 1, position))
        image = pycolmap.Image(f"{index:02d}.jpg", seen, camera_id=index % len(model.cameras) + 1, image_id=index + 1)
        shaken = pose + np.column_stack([np.zeros((3, 3)), 0.005 * generator.standard_normal(3)])
        model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(pycolmap.Rotation3d(shaken[:, :3]), shaken[:, 3]))
        graph.add_image(index + 1, len(visible))
    for point, track in zip(points, tracks, strict=True):
        if len(track) >= 2:
            model.add_point3D(point + 0.005 * generator.standard_normal(3), pycolmap.Track(elements=track))
    graph.finalize()
    return model, graph, centers


def _pose(fraction: float, generator: np.random.Generator) -> np.ndarray:
    """float64 (3, 4): cam_from_world of a camera about 6 units from the origin, which it sees near the middle, rolled."""
    angle = 2.5 * (fraction - 0.5)
    center = np.array([6 * np.sin(angle), generator.uniform(-2, 2), -6 * np.cos(angle)])
    forward = generator.uniform(-0.5, 0.5, 3) - center
    forward /= np.linalg.norm(forward)
    right = np.cross([0, 1, 0], forward)
    right /= np.linalg.norm(right)
    rotation = np.stack([right, np.cross(forward, right), forward])
    roll = generator.choice([0, np.pi / 2, 0.3])
    turn = np.array([[np.cos(roll), -np.sin(roll), 0], [np.sin(roll), np.cos(roll), 0], [0, 0, 1]])
    rotation = turn @ rotation
    return np.column_stack([rotation, -rotation @ center])


def error_of_centers(model: pycolmap.Reconstruction, centers: list[np.ndarray]) -> float:
    """Mean distance of the camera centres from the truth, after the best similarity."""
    names = [f"{index:02d}.jpg" for index in range(len(centers))]
    found = pycolmap.align_reconstruction_to_locations(model, names, np.array(centers), 3, pycolmap.RANSACOptions(max_error=1))
    moved = [found * model.find_image_with_name(name).projection_center() for name in names]
    return float(np.linalg.norm(np.array(moved) - centers, axis=1).mean())


@pytest.mark.parametrize(
    "truth, expected",
    [
        (IDEAL, "SIMPLE_RADIAL"),
        ((700, 700, 400, 300, -0.12, 0, 0, 0), "SIMPLE_RADIAL"),
        ((700, 700, 412, 291, 0, 0, 0, 0), "SIMPLE_RADIAL"),
        ((700, 700, 405, 306, -0.25, 0.15, 0, 0), "RADIAL"),
        ((700, 707, 392, 304, -0.2, 0.1, 0.002, -0.003), "OPENCV"),
    ],
)
def test_a_known_camera_is_found(truth: tuple[float, ...], expected: str) -> None:
    model, graph, centers = make_model(truth, num_points=300)
    (note,) = adjust_model(model, graph, OPTIONS)
    camera = model.camera(1)
    assert camera.model.name == expected, note
    seen = pycolmap.Camera(model="OPENCV", width=SIZE[0], height=SIZE[1], params=list(truth)).img_from_cam(_grid())
    moved = np.linalg.norm(camera.img_from_cam(_grid()) - seen, axis=1)
    assert moved.mean() < 1.5, "a shift of the principal point and a turn of all cameras are nearly the same"
    assert error_of_centers(model, centers) < 0.004
    if truth[2] == SIZE[0] / 2:
        assert (camera.principal_point_x, camera.principal_point_y) == (400, 300), note


def _grid() -> np.ndarray:
    """float64 (n, 3): rays to all parts of the photo."""
    x, y = np.meshgrid(np.linspace(-0.5, 0.5, 9), np.linspace(-0.4, 0.4, 7))
    return np.stack([x.ravel(), y.ravel(), np.ones(x.size)], axis=1)


def test_two_cameras_get_their_own_parameters() -> None:
    truths = (700, 700, 410, 292, 0, 0, 0, 0), (900, 900, 400, 300, -0.1, 0, 0, 0)
    model, graph, _ = make_model(*truths, num_photos=20)
    first, second = adjust_model(model, graph, OPTIONS)
    assert "principal point +" in first and "principal point stays fixed" in second
    assert model.camera(1).params[:3] == pytest.approx([700, 410, 292], abs=2)
    assert model.camera(2).params == pytest.approx([900, 400, 300, -0.1], rel=0.01)


def test_a_camera_with_few_photos_keeps_the_principal_point_in_the_middle() -> None:
    model, graph, _ = make_model((700, 700, 420, 280, 0, 0, 0, 0), num_photos=MIN_PHOTOS - 1)
    assert adjust_model(model, graph, OPTIONS) == []
    assert model.camera(1).model.name == "SIMPLE_RADIAL"
    assert model.camera(1).params[1:3].tolist() == [400, 300]


def test_given_cameras_are_not_changed() -> None:
    model, graph, _ = make_model(IDEAL)
    model.camera(1).params = [700.0, 400.0, 300.0, 0.0]
    assert adjust_model(model, graph, dataclasses.replace(OPTIONS, refine_intrinsics=False)) == []
    assert model.camera(1).params.tolist() == [700, 400, 300, 0]


def test_wrong_observations_do_not_bend_the_model() -> None:
    right, wrong = make_model(IDEAL), make_model(IDEAL, num_wrong=40)
    for model, graph, _ in (right, wrong):
        adjust_model(model, graph, OPTIONS)
    assert error_of_centers(wrong[0], wrong[2]) < 1.3 * error_of_centers(right[0], right[2])
    assert max(point.error for point in wrong[0].points3D.values()) < OPTIONS.adjustment_max_error_px


def test_equal_models_give_equal_results() -> None:
    results = []
    for _ in range(2):
        model, graph, _ = make_model((700, 707, 392, 304, -0.2, 0.1, 0.002, -0.003))
        results.append((adjust_model(model, graph, OPTIONS), model.camera(1).params.tolist()))
    assert results[0] == results[1]


@pytest.mark.parametrize("centers", ["one place", "no points", "a few points"])
def test_models_that_observations_hardly_determine_do_not_end_the_adjustment(centers: str) -> None:
    model, graph, _ = make_model(IDEAL, num_photos=8, num_points=6 if centers == "a few points" else 100)
    for image_id in model.reg_image_ids() if centers == "one place" else []:
        image = model.image(image_id)
        turned = pycolmap.Rigid3d(image.cam_from_world().rotation, np.zeros(3))
        model.frame(image.frame_id).set_cam_from_world(image.camera_id, turned)
    for point_id in [*model.point3D_ids()] if centers == "no points" else []:
        model.delete_point3D(point_id)
    adjust_model(model, graph, OPTIONS)
    assert model.num_reg_images() == (8 if centers == "a few points" else 0)


def test_a_failing_adjustment_leaves_the_mappers_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _, _ = make_model(IDEAL, num_photos=3)
    (tmp_path / "0").mkdir()
    model.write(tmp_path / "0")
    before = {path.name: path.read_bytes() for path in (tmp_path / "0").iterdir()}

    def fail(*_: object) -> None:
        raise np.linalg.LinAlgError("Singular matrix")

    monkeypatch.setattr(adjustment, "_matches_of", lambda *_: None)
    monkeypatch.setattr(adjustment, "adjust_model", fail)
    monkeypatch.setattr(uncertainty, "estimate_uncertainties", fail)
    notes = adjust_models(tmp_path, tmp_path / "database.db", OPTIONS)
    assert notes == ["model 0, the final adjustment failed (Singular matrix): the mapper's model stays"]
    assert uncertainty.write_uncertainties(tmp_path, OPTIONS) == ["model 0 has no standard deviations: Singular matrix"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "0").iterdir()} == before


# --- the choice -----------------------------------------------------------------------------------------------------------


def test_parameters_that_photos_do_not_decide_are_not_chosen() -> None:
    """A principal point 20 px from the middle, known to 1 px or to 40 px."""
    params = np.array([700.0, 700, 420, 300, 0, 0, 0, 0])
    for std, groups, found in ((1.0, ("principal point",), 420), (40.0, (), 400)):
        covariance = np.diag([1, 1, std**2, std**2, 1e-4, 1e-4, 1e-6, 1e-6])
        choice = choose_parameters(params, covariance, SIZE, tuple(GROUPS))
        assert choice.groups == groups and choice.params[2] == pytest.approx(found, abs=0.2)
        assert (choice.gains["principal point"] > 0) == bool(groups)


def test_the_focal_length_follows_a_principal_point_that_stays() -> None:
    """If two estimates are correlated, one of them at another value moves the other one."""
    covariance = np.diag([4.0, 4, 100, 100, 1e-4, 1e-4, 1e-6, 1e-6])
    covariance[0, 2] = covariance[2, 0] = covariance[1, 2] = covariance[2, 1] = 10
    covariance[0, 1] = covariance[1, 0] = 3.9
    choice = choose_parameters(np.array([700.0, 700, 405, 300, 0, 0, 0, 0]), covariance, SIZE, ("principal point",))
    assert choice.groups == () and choice.params[0] == pytest.approx(699.5, abs=0.1)


def test_a_principal_point_that_the_user_frees_has_no_prior() -> None:
    covariance = np.diag([1, 1, 1600, 1600, 1e-4, 1e-4, 1e-6, 1e-6]).astype(float)
    params = np.array([700.0, 700, 500, 300, 0, 0, 0, 0])
    choice = choose_parameters(params, covariance, SIZE, (), always=("principal point",))
    assert choice.model == "SIMPLE_RADIAL" and choice.model_params() == pytest.approx([700, 500, 300, 0], abs=1e-6)
