"""The picture of a reconstruction shows points and cameras at the right positions, not mirrored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pycolmap
import pytest
from PIL import Image

from sfm_lightglue.report.scene import CAMERA_COLOR, SIZE, draw_reconstruction

LEFT, RIGHT = (20, 90, 200), (230, 150, 20)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model with two cameras side by side that look along +z at a wall. Its left half (x < 0) is blue, the right orange."""
    reconstruction = pycolmap.Reconstruction()
    camera = pycolmap.Camera(model="PINHOLE", width=640, height=480, params=[500, 500, 320, 240], camera_id=1)
    reconstruction.add_camera_with_trivial_rig(camera)
    for image_id, x in enumerate((-0.5, 0.5), 1):
        image = pycolmap.Image(name=f"{image_id}.jpg", camera_id=1, image_id=image_id)
        pose = pycolmap.Rigid3d(pycolmap.Rotation3d(np.eye(3)), np.array([-x, 0, 0]))
        reconstruction.add_image_with_trivial_frame(image, pose)
    for x in np.linspace(-2, 2, 21):
        for y in np.linspace(-1, 1, 11):
            color = np.array(LEFT if x < 0 else RIGHT, np.uint8)
            reconstruction.add_point3D(np.array([x, y, 6.0]), pycolmap.Track(), color)
    folder = tmp_path / "model"
    folder.mkdir()
    reconstruction.write(folder)
    return folder


def where(pixels: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    """(x, y) of all pixels that have nearly this colour."""
    return np.argwhere(np.abs(pixels.astype(int) - color).max(axis=2) < 40)[:, ::-1]


def test_points_on_the_left_are_drawn_left_and_cameras_below_the_points(model: Path, tmp_path: Path) -> None:
    draw_reconstruction(model, tmp_path / "scene.png")
    pixels = np.asarray(Image.open(tmp_path / "scene.png"))
    left, right, cameras = where(pixels, LEFT), where(pixels, RIGHT), where(pixels, CAMERA_COLOR)
    assert min(len(left), len(right), len(cameras)) > 50
    assert left[:, 0].max() < right[:, 0].min()
    assert cameras[:, 1].mean() > max(left[:, 1].mean(), right[:, 1].mean())


def test_all_points_and_cameras_are_inside_the_picture(model: Path, tmp_path: Path) -> None:
    draw_reconstruction(model, tmp_path / "scene.png")
    picture = Image.open(tmp_path / "scene.png")
    assert picture.size == SIZE
    frame = np.asarray(picture).astype(int)
    frame[20:-20, 20:-20] = 255
    assert (frame > 200).all()


def test_a_model_without_points_gives_no_picture(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    pycolmap.Reconstruction().write(tmp_path / "empty")
    draw_reconstruction(tmp_path / "empty", tmp_path / "scene.png")
    assert not (tmp_path / "scene.png").exists()


def test_a_model_of_turned_photos_is_drawn_upright(model: Path, tmp_path: Path) -> None:
    """Cameras that lie on their side, with the orientation that says so, give the same picture as upright cameras."""
    draw_reconstruction(model, tmp_path / "upright.png")
    reconstruction = pycolmap.Reconstruction(model)
    stored_from_upright = np.array([[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]])  # EXIF 6
    for image_id in reconstruction.reg_image_ids():
        frame = reconstruction.image(image_id).frame
        turned = pycolmap.Rigid3d(pycolmap.Rotation3d(stored_from_upright), np.zeros(3)) * frame.rig_from_world
        frame.rig_from_world = turned
    reconstruction.write(model)
    draw_reconstruction(model, tmp_path / "turned.png", {"1.jpg": 6, "2.jpg": 6})
    upright, turned = (np.asarray(Image.open(tmp_path / f"{name}.png")).astype(int) for name in ("upright", "turned"))
    assert np.abs(upright - turned).mean() < 0.1, "only rounding differs"
    draw_reconstruction(model, tmp_path / "lying.png")
    lying = np.asarray(Image.open(tmp_path / "lying.png")).astype(int)
    assert np.abs(upright - lying).mean() > 0.5
