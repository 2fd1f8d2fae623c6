"""A finished run with a known model: straight lines on a wall, seen by cameras with distortion."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pycolmap
import pytest
from PIL import Image as PILImage

from sfm_lightglue.files import write_json
from sfm_lightglue.model_files import write_copies

SIZE = 200, 150
CAMERAS = {
    1: ("SIMPLE_RADIAL", [180.0, 100.0, 75.0, 0.08]),
    2: ("OPENCV", [170.0, 174.0, 103.0, 72.5, -0.09, 0.02, 0.002, -0.001]),
    3: ("PINHOLE", [190.0, 190.0, 100.0, 75.0]),
}
LINES = np.array([[1.0, 0.12, 0.21], [1.0, -0.3, -0.17], [0.15, 1.0, 0.16], [-0.25, 1.0, -0.12]])
"""Lines a u + b v + c = 0 on the plane z = 1 of each camera."""
NAMES = {"a.jpg": 1, "day/b.png": 2, "day/c.jpg": 3}
"""Name of each photo -> its camera."""


def camera(number: int) -> pycolmap.Camera:
    model, params = CAMERAS[number]
    return pycolmap.Camera(camera_id=number, model=model, width=SIZE[0], height=SIZE[1], params=params)


def rendered(number: int) -> np.ndarray:
    """uint8 (h, w, 3): dark lines with soft edges, as the camera sees them. The centre of the top-left pixel is at (0.5, 0.5)."""
    x, y = np.meshgrid(np.arange(SIZE[0]) + 0.5, np.arange(SIZE[1]) + 0.5)
    u, v = camera(number).cam_from_img(np.stack([x.ravel(), y.ravel()], axis=1)).T
    focal = camera(number).mean_focal_length()
    grey = np.full(u.shape, 230.0)
    for a, b, c in LINES:
        distance = focal * (a * u + b * v + c) / np.hypot(a, b)
        grey -= 180 * np.exp(-0.5 * (distance / 1.5) ** 2)
    return np.repeat(grey.clip(0, 255).round().astype(np.uint8).reshape(SIZE[1], SIZE[0], 1), 3, axis=2)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The output folder of a run with three photos in `photos`, and five points that all of them see."""
    rng = np.random.default_rng(0)
    points = np.column_stack([rng.uniform(-0.3, 0.3, (5, 2)), rng.uniform(3, 4, 5)])
    model = pycolmap.Reconstruction()
    for image_id, (name, number) in enumerate(NAMES.items(), start=1):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        PILImage.fromarray(rendered(number)).save(path, quality=97, subsampling=0)
        model.add_camera_with_trivial_rig(camera(number))
        turn = pycolmap.Rotation3d(np.array([0.02 * image_id, -0.03, 0.01]))
        cam_from_world = pycolmap.Rigid3d(turn, np.array([0.1 * image_id, -0.05, 0.2]))
        in_camera = points @ cam_from_world.matrix()[:, :3].T + cam_from_world.translation
        seen = [pycolmap.Point2D(xy) for xy in camera(number).img_from_cam(in_camera)]
        image = pycolmap.Image(name=name, camera_id=number, image_id=image_id, points2D=seen)
        model.add_image_with_trivial_frame(image, cam_from_world)
    for index, xyz in enumerate(points):
        track = pycolmap.Track()
        for image_id in range(1, len(NAMES) + 1):
            track.add_element(image_id, index)
        model.add_point3D(xyz, track, np.array([10, 20 * index, 30], np.uint8))
    folder = tmp_path / "out"
    (folder / "reconstruction" / "0").mkdir(parents=True)
    model.write(folder / "reconstruction" / "0")
    write_copies(model, folder / "reconstruction" / "0")
    write_json(folder / "summary.json", {"stages": {}, "dataset": {"images": str(tmp_path / "photos"), "masks": None}})
    return folder
