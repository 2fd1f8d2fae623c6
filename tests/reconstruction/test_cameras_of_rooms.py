"""Cameras of many kinds are found from the photos of a room whose truth is known.

Nothing is given but the photos, once with the kind of lens. Limits are about twice the errors measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pycolmap
import pytest
from rooms import camera, make_room

from sfm_lightglue.report.model_statistics import measure_residuals, residual_maps
from sfm_lightglue.report.scene_data import scene_of

RADIAL = camera("SIMPLE_RADIAL", 1400, 800, 600, -0.12)
OFF_CENTRE = camera("SIMPLE_RADIAL", 1400, 830, 575, -0.05)
OPENCV = camera("OPENCV", 1400, 1404, 812, 590, -0.22, 0.09, 0.001, -0.0015)
ZOOMS = camera("SIMPLE_RADIAL", 1000, 800, 600, -0.05), camera("SIMPLE_RADIAL", 1700, 800, 600, 0.02)
PHONES = camera("SIMPLE_RADIAL", 1250, 806, 596, 0.04), camera("SIMPLE_RADIAL", 1210, 1000, 750, -0.02, size=(2000, 1500))
TURNED = camera("SIMPLE_RADIAL", 1300, 800, 600, 0), camera("SIMPLE_RADIAL", 1300, 600, 800, 0, size=(1200, 1600))
FISHEYE = camera("OPENCV_FISHEYE", 480, 480, 800, 600, 0.03, -0.01, 0.002, 0)


def moved_px(truth: pycolmap.Camera, found: pycolmap.Camera) -> float:
    """Mean distance between where two cameras see the same rays, px, after the turn of the camera that fits best.

    A shift of the principal point and a turn of all photos are nearly the same, so that photos alone cannot tell them.
    """
    x, y = np.meshgrid(np.linspace(-1.2, 1.2, 13), np.linspace(-1.2, 1.2, 13))
    rays = np.stack([x.ravel(), y.ravel(), np.ones(x.size)], axis=1)
    pixels = np.array(truth.img_from_cam(rays))
    is_inside = (pixels > 0).all(axis=1) & (pixels < (truth.width, truth.height)).all(axis=1)
    rays, pixels, angles = rays[is_inside], pixels[is_inside], np.zeros(3)

    def error(angles: np.ndarray) -> np.ndarray:
        return np.ravel(np.array(found.img_from_cam(rays @ pycolmap.Rotation3d(angles).matrix().T)) - pixels)

    for _ in range(5):
        jacobian = np.stack([(error(angles + step) - error(angles)) / 1e-6 for step in 1e-6 * np.eye(3)], axis=1)
        angles = angles - np.linalg.lstsq(jacobian, error(angles))[0]
    return float(np.linalg.norm(error(angles).reshape(-1, 2), axis=1).mean())


@pytest.mark.parametrize(
    "truths, num_photos, camera_model, max_moved_px, max_error",
    [
        pytest.param([OFF_CENTRE], 8, "auto", 1.5, 0.02, id="principal point off the centre"),
        pytest.param([OPENCV], 8, "auto", 1.5, 0.02, id="distortion with four terms"),
        pytest.param(ZOOMS, 10, "auto", 2.0, 0.03, id="two zooms"),
        pytest.param(PHONES, 10, "auto", 1.5, 0.02, id="two phones"),
        pytest.param(TURNED, 8, "auto", 1.5, 0.02, id="portrait beside landscape"),
        pytest.param([FISHEYE], 10, "OPENCV_FISHEYE", 1.0, 0.02, id="fisheye"),
        pytest.param([FISHEYE], 10, "auto", 1.0, 0.02, id="fisheye that nobody named"),
    ],
)
def test_cameras_are_found_from_photos_without_exif(
    tmp_path: Path,
    truths: Sequence[pycolmap.Camera],
    num_photos: int,
    camera_model: str,
    max_moved_px: float,
    max_error: float,
) -> None:
    room = make_room(tmp_path / "room", truths, num_photos, 400)
    room.build(camera_model=camera_model)
    report, model = room.reconstruct(find_camera_model=camera_model == "auto")
    assert model.num_reg_images() == num_photos
    for index, name in enumerate(room.names[: len(truths)]):
        found = model.camera(model.find_image_with_name(name).camera_id)
        assert moved_px(truths[index], found) < max_moved_px, report.cameras
    assert len(model.cameras) == len(truths), report.cameras
    assert room.errors(model).max() < max_error


def test_five_photos_without_exif_are_registered_and_the_run_says_how(tmp_path: Path) -> None:
    """The guessed focal length is 1.6 times too long."""
    room = make_room(tmp_path / "room", [camera("SIMPLE_RADIAL", 1200, 800, 600, 0)], 5, 400)
    built = room.build()
    _, model = room.reconstruct()
    assert model.num_reg_images() == 5 and room.errors(model).max() < 0.03
    assert "5 photos without EXIF share a camera: their sizes are equal, and the pairs give focal lengths of" in built.cameras[0]
    assert model.cameras[1].params[0] == pytest.approx(1200, rel=0.02)


def test_resized_photos_of_one_camera_have_the_right_focal_lengths(tmp_path: Path) -> None:
    """Half of the photos were halved. EXIF has the size of the original, and no make."""
    truths = camera("SIMPLE_RADIAL", 1400, 800, 600, -0.05), camera("SIMPLE_RADIAL", 700, 400, 300, -0.05, size=(800, 600))
    tags = {"FocalLengthIn35mmFilm": 30, "ExifImageWidth": 1600, "ExifImageHeight": 1200}
    room = make_room(tmp_path / "room", truths, 8, 400, tags=[tags])
    built = room.build()
    assert built.num_cameras == 2
    _, model = room.reconstruct()
    assert model.num_reg_images() == 8 and room.errors(model).max() < 0.03
    for number, truth in zip(sorted(model.cameras), truths, strict=True):
        assert moved_px(truth, model.camera(number)) < 1.5


def test_photos_without_make_share_a_camera(tmp_path: Path) -> None:
    room = make_room(tmp_path / "room", [RADIAL], 8, 400, tags=[{"FocalLengthIn35mmFilm": 30}])
    assert room.build().num_cameras == 1
    _, model = room.reconstruct()
    assert model.num_reg_images() == 8 and moved_px(RADIAL, model.camera(1)) < 1.5


def test_panoramas_are_reconstructed_and_reported(tmp_path: Path) -> None:
    room = make_room(tmp_path / "room", [camera("EQUIRECTANGULAR", 800, 400, size=(800, 400))], 5, 150)
    assert room.build(camera_model="EQUIRECTANGULAR").num_verified_pairs == 10
    _, model = room.reconstruct()
    assert model.num_reg_images() == 5 and room.errors(model).max() < 0.01
    numbers = {name: number for number, name in enumerate(room.names)}
    scene = scene_of("0", model, room.folder / "reconstruction" / "0", numbers, {}, {})
    assert scene["name"] == "0"
    (shown,) = residual_maps(measure_residuals(model, lambda name: 1.0), model)
    assert "EQUIRECTANGULAR, 800 x 400 px" in shown["title"] and "focal length" not in shown["note"]
