"""A live viewer for the models of a run in a browser, with the library viser: all points, and cameras to look through.

`report.html` shows a sample of the points; this viewer shows all of them, and streams them from this machine.
"""

from __future__ import annotations

import functools
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pycolmap

from sfm_lightglue.files import result_exists
from sfm_lightglue.images import UnreadableImage, load_image
from sfm_lightglue.images.resizing import resize_longest
from sfm_lightglue.orientation import UPRIGHT, camera_upright_from_stored
from sfm_lightglue.run_folder import RunFolder

PICTURE = 320
"""Longest side of a photo at its camera, px. It is loaded when the camera is clicked."""
MAX_POINTS = 5_000_000
"""Points that a browser can show fluently; of a larger model an even choice."""
CAMERA_SIZE = 0.04
"""Depth of the drawn cameras, in parts of the distance between the middle of the points and a typical point."""

POINT_SIZE = 0.003
"""Diameter of the points, in parts of the same distance."""


class Viewer:
    """A server that shows the models of a run. Nothing is sent anywhere but to browsers that open its address.

    Raises: FileNotFoundError without the folder, ValueError if it has no model, or viser is not installed.
    """

    def __init__(self, run: RunFolder, *, port: int = 8080, host: str = "127.0.0.1") -> None:
        if not run.path.is_dir():
            raise FileNotFoundError(f"{run.path} does not exist: expected the output folder of a run")
        self._models = run.models()
        if not self._models:
            raise ValueError(f"{run.path} has no model: run the stage reconstruct first; the command report shows what is there")
        self._photos = run.photos()
        self._orientations = _orientations(run)
        self._server = _start_server(host, port)
        names = [folder.name for folder in self._models]
        model = self._server.gui.add_dropdown("Model", names, initial_value=names[0])
        self._size = self._server.gui.add_slider("Point size", min=0.1, max=5.0, step=0.1, initial_value=1.0)
        self._about = self._server.gui.add_markdown("")
        self._cloud: Any = None
        self._point_size = 1.0
        self._size.on_update(lambda _: self._resize_points())
        model.on_update(lambda _: self._show(self._models[names.index(model.value)]))
        self._show(self._models[0])

    @property
    def address(self) -> str:
        """Where a browser finds it."""
        return f"http://{self._server.get_host().replace('0.0.0.0', 'localhost')}:{self._server.get_port()}"

    def serve(self) -> NoReturn:
        """Waits until Ctrl-C raises KeyboardInterrupt."""
        while True:
            time.sleep(1)

    def stop(self) -> None:
        """Ends the server."""
        self._server.stop()

    def _show(self, folder: Path) -> None:
        """Shows a model in place of the one before."""
        model = RunFolder.open_model(folder)
        scene = self._server.scene
        scene.reset()
        points, colors = _points_of(model)
        images = [model.image(number) for number in sorted(model.reg_image_ids())]
        middle = np.median(points, axis=0) if len(points) else np.zeros(3)
        scale = float(np.median(np.linalg.norm(points - middle, axis=1))) if len(points) else 1.0
        scene.set_up_direction(_up(images, self._orientations))
        self._point_size = POINT_SIZE * scale
        self._cloud = scene.add_point_cloud(
            "/points", points.astype(np.float32), colors, point_size=self._point_size, point_shape="circle", precision="float32"
        )
        self._resize_points()
        for image in images:
            self._add_camera(image, CAMERA_SIZE * scale)
        shown = f" ({len(points)} shown)" if len(points) < model.num_points3D() else ""
        self._about.content = f"{len(images)} cameras, {model.num_points3D()} points{shown}. Click a camera for its photo."

    def _resize_points(self) -> None:
        """Gives the points the size that the slider says."""
        self._cloud.point_size = self._point_size * self._size.value

    def _add_camera(self, image: pycolmap.Image, size: float) -> None:
        """Adds the pyramid of a camera. A click loads its photo and looks through it."""
        camera = image.camera
        assert camera is not None, f"{image.name} has no camera"
        world_from_cam = image.cam_from_world().inverse()
        x, y, z, w = world_from_cam.rotation.quat
        handle = self._server.scene.add_camera_frustum(
            f"/cameras/{image.image_id}",
            fov=np.pi / 2 if camera.is_spherical() else 2 * float(np.arctan2(camera.height / 2, camera.focal_length_y)),
            aspect=camera.width / camera.height,
            scale=size,
            color=(200, 30, 30),
            wxyz=(w, x, y, z),
            position=world_from_cam.translation,
        )
        handle.on_click(functools.partial(self._look_through, handle, image.name))

    def _look_through(self, handle: Any, name: str, event: Any) -> None:
        """Loads the photo of a camera that was clicked, and moves the viewpoint of this browser there."""
        handle.image = self._picture(name)
        if event.client is not None:
            event.client.camera.wxyz, event.client.camera.position = handle.wxyz, handle.position
        self._about.content = name

    def _picture(self, name: str) -> np.ndarray | None:
        """The photo as it is stored, reduced; None if it cannot be read."""
        try:
            return None if self._photos is None else resize_longest(load_image(self._photos, name).pixels, PICTURE)
        except (UnreadableImage, OSError):
            return None


def _start_server(host: str, port: int) -> Any:
    """viser's server. Raises: ValueError with the command that installs it."""
    if find_spec("viser") is None:
        raise ValueError('the viewer needs a package: pip install "sfm-lightglue[view]"; the command report needs none')
    import viser

    return viser.ViserServer(host=host, port=port, label="sfm_lightglue", verbose=False)


def _orientations(run: RunFolder) -> dict[str, int]:
    """The EXIF code of each photo that has features."""
    if not result_exists(run.features):
        return {}
    with run.open_features() as reader:
        return reader.orientations(reader.names())


def _points_of(model: pycolmap.Reconstruction) -> tuple[np.ndarray, np.ndarray]:
    """float64 (n, 3) positions and uint8 (n, 3) colours of the points, at most MAX_POINTS."""
    numbers = np.sort(np.fromiter(model.point3D_ids(), np.int64))
    chosen = [model.point3D(int(number)) for number in numbers[:: max(1, -(-len(numbers) // MAX_POINTS))]]
    points = np.array([point.xyz for point in chosen]).reshape(-1, 3)
    return points, np.array([point.color for point in chosen], np.uint8).reshape(-1, 3)


def _up(images: list[pycolmap.Image], orientations: dict[str, int]) -> np.ndarray:
    """The mean upward direction of the cameras in the world."""
    turns = [camera_upright_from_stored(orientations.get(image.name, UPRIGHT)) for image in images]
    downs = [(turn @ image.cam_from_world().rotation.matrix())[1] for turn, image in zip(turns, images, strict=True)]
    up = -np.array(downs).reshape(-1, 3).sum(axis=0)
    return np.asarray(up / max(float(np.linalg.norm(up)), 1e-12))
