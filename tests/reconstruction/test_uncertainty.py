"""Standard deviations of poses and cameras: as large as the errors are."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import numpy as np
import pycolmap
import pytest
from rooms import camera, make_room
from test_adjustment import IDEAL, OPTIONS, make_model

from sfm_lightglue.reconstruction.adjustment import adjust_model
from sfm_lightglue.reconstruction.camera_choice import PRIOR_STD
from sfm_lightglue.reconstruction.uncertainty import (
    CAMERAS_FILE,
    PHOTO_COLUMNS,
    PHOTOS_FILE,
    Uncertainties,
    estimate_uncertainties,
    write_uncertainties,
)

KNOWN = dataclasses.replace(OPTIONS, refine_intrinsics=False)


def fit(model: pycolmap.Reconstruction, centers: np.ndarray) -> tuple[np.ndarray, float, np.ndarray]:
    """Errors float64 (n, 3) of the centres after the least-squares similarity, and its scale and rotation (Umeyama 1991)."""
    found = np.array([model.image(image_id).projection_center() for image_id in sorted(model.reg_image_ids())])
    moved, true = found - found.mean(axis=0), centers - centers.mean(axis=0)
    left, values, right = np.linalg.svd(true.T @ moved)
    signs = np.diag([1, 1, np.linalg.det(left @ right)])
    rotation, scale = left @ signs @ right, float((values * np.diag(signs)).sum() / (moved**2).sum())
    return scale * moved @ rotation.T - true, scale, rotation


@pytest.mark.parametrize("loss_scale_px", [0.3, 5.0])
@pytest.mark.parametrize("is_known", [True, False])
def test_predicted_errors_are_as_large_as_true_ones(is_known: bool, loss_scale_px: float) -> None:
    """Six models with other noise and cameras. The ratio of the root mean squares is 1 in theory; measured were 1 to 1.3."""
    true, predicted = np.zeros(2), np.zeros(2)
    options = dataclasses.replace(KNOWN if is_known else OPTIONS, adjustment_scale_px=loss_scale_px)
    for seed in range(6):
        poses: list[np.ndarray] = []
        truth = IDEAL if is_known else tuple(_some_camera(seed))
        model, graph, centers = make_model(truth, num_photos=8, num_points=120, seed=seed, poses=poses)
        if is_known:
            model.camera(1).params = [700.0, 400.0, 300.0, 0.0]
        adjust_model(model, graph, options)
        std = estimate_uncertainties(model, options)
        assert std is not None
        errors, scale, rotation = fit(model, np.array(centers))
        true[0] += (errors**2).sum()
        predicted[0] += sum((scale**2 * each**2).sum() for each in std.positions.values())
        for image_id, pose in zip(sorted(model.reg_image_ids()), poses, strict=True):
            found = model.image(image_id).cam_from_world().rotation.matrix() @ rotation.T
            true[1] += pycolmap.Rotation3d(found @ pose[:, :3].T).angle() ** 2
        predicted[1] += sum((np.radians(each) ** 2).sum() for each in std.rotations_deg.values())
    assert np.sqrt(true / predicted) == pytest.approx([1, 1], rel=0.4)


def _some_camera(seed: int) -> list[float]:
    """A camera as far from an ideal one as `camera_choice` expects."""
    aspect, right, down, k2, p1, p2 = PRIOR_STD[np.isfinite(PRIOR_STD)] * np.random.default_rng(seed).standard_normal(6)
    return [700.0, 700 * (1 + aspect), 400 + 800 * right, 300 + 800 * down, 0.0, k2, p1, p2]


def test_no_photo_seems_exact_because_the_solver_fixes_it() -> None:
    model, graph, _ = make_model(IDEAL)
    adjust_model(model, graph, OPTIONS)
    std = estimate_uncertainties(model, OPTIONS)
    assert std is not None
    lengths = np.array([np.linalg.norm(each) for each in std.positions.values()])
    assert lengths.min() > 0.4 * lengths.max()
    (about,) = std.cameras.values()
    assert [*about] == ["f", "k"] and 0.1 < about["f"] < 1, "parameters that stayed fixed are missing"


def test_the_units_are_those_of_the_model() -> None:
    model, graph, _ = make_model(IDEAL)
    adjust_model(model, graph, KNOWN)
    before = estimate_uncertainties(model, KNOWN)
    model.transform(pycolmap.Sim3d(10, pycolmap.Rotation3d(np.array([0.1, 0.2, 0.3])), np.array([100.0, -50, 5])))
    after = estimate_uncertainties(model, KNOWN)
    assert before is not None and after is not None
    for name, std in before.positions.items():
        assert np.linalg.norm(after.positions[name]) == pytest.approx(10 * np.linalg.norm(std), rel=0.02)
        assert after.rotations_deg[name] == pytest.approx(before.rotations_deg[name], rel=0.02)


def test_models_that_are_not_determined_have_none() -> None:
    model, *_ = make_model(IDEAL, num_photos=2)
    assert estimate_uncertainties(model, OPTIONS) is None
    assert estimate_uncertainties(model, dataclasses.replace(OPTIONS, adjustment_scale_px=None)) is None


def test_errors_that_neighbouring_points_share_count() -> None:
    """A quarter of the scene is seen 2 px to the right in one photo, as if a surface had been matched wrongly."""
    std = []
    for shift in (0.0, 2.0):
        model, graph, _ = make_model(IDEAL, num_photos=8)
        model.camera(1).params = [700.0, 400.0, 300.0, 0.0]
        for point in model.image(4).points2D:
            if point.has_point3D() and (model.point3D(point.point3D_id).xyz[:2] > 0).all():
                point.xy = point.xy + np.array([shift, 0])
        adjust_model(model, graph, KNOWN)
        found = estimate_uncertainties(model, KNOWN)
        assert found is not None
        std.append(np.linalg.norm(found.positions["03.jpg"]))
    assert std[1] > 1.5 * std[0]


def test_the_files_lie_beside_the_model(tmp_path: Path) -> None:
    room = make_room(tmp_path / "room", [camera("SIMPLE_RADIAL", 1200, 800, 600, 0)], 5, 400)
    room.build()
    report, model = room.reconstruct()
    folder = room.folder / "reconstruction" / "0"
    with (folder / PHOTOS_FILE).open(newline="") as file:
        header, *rows = csv.reader(file, delimiter="\t")
    assert tuple(header) == PHOTO_COLUMNS and [row[0] for row in rows] == room.names
    assert [float(value) for value in rows[0][1:4]] == pytest.approx(model.image(1).projection_center(), abs=1e-6)
    assert all(float(value) > 0 for row in rows for value in row[4:])
    with (folder / CAMERAS_FILE).open(newline="") as file:
        _, *rows = csv.reader(file, delimiter="\t")
    assert [(row[1], row[2], bool(row[4])) for row in rows][:2] == [("SIMPLE_RADIAL", "f", True), ("SIMPLE_RADIAL", "cx", False)]
    assert "poses are known to" in report.cameras[-1]


@pytest.mark.parametrize(("position", "turn", "is_poor"), [(0.01, 0.1, False), (9.0, 0.1, True), (0.01, 280.0, True)])
def test_poses_that_the_photos_hardly_determine_are_a_warning(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    position: float,
    turn: float,
    is_poor: bool,
) -> None:
    caplog.set_level("INFO")
    model, _, _ = make_model(IDEAL, num_photos=4)
    (tmp_path / "0").mkdir()
    model.write(tmp_path / "0")
    names = [model.image(image_id).name for image_id in model.reg_image_ids()]
    found = Uncertainties({name: np.full(3, position) for name in names}, {name: np.full(3, turn) for name in names}, {})
    monkeypatch.setattr("sfm_lightglue.reconstruction.uncertainty.estimate_uncertainties", lambda *_: found)
    (note,) = write_uncertainties(tmp_path, KNOWN)
    assert ("hardly determine the poses" in note) == is_poor and "e+" not in note
    assert [record.levelname for record in caplog.records][-1] == ("WARNING" if is_poor else "INFO")
