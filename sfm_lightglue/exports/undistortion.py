"""Undistorted models and pixels, by COLMAP's own undistorter: PINHOLE cameras without blank pixels at the edges.

COLMAP undistorts photo files that it can read itself; here it gets pixels from our decoder, which reads all formats.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pycolmap


@dataclass(frozen=True)
class Undistortion:
    """From the photos of a camera to undistorted ones."""

    source: pycolmap.Camera
    """The camera of the photos."""
    camera: pycolmap.Camera
    """The PINHOLE camera of the undistorted photos, in COLMAP's pixels."""
    crop: tuple[int, int]
    """Columns and rows that are cut off on the left and at the top, after the undistortion."""

    @property
    def changes_pixels(self) -> bool:
        """Whether the undistorted photo has other pixels than the photo."""
        same_size = (self.source.width, self.source.height) == (self.camera.width, self.camera.height)
        return not (self.source.is_undistorted() and same_size)

    def pixels(self, pixels: np.ndarray) -> np.ndarray:
        """The undistorted pixels uint8 (h, w, 3) or (h, w) of a photo (or a mask of it), interpolated bilinearly."""
        if not self.source.is_undistorted():
            bitmap = pycolmap.Bitmap.from_array(np.ascontiguousarray(pixels))
            bitmap, _ = pycolmap.undistort_image(pycolmap.UndistortCameraOptions(), bitmap, self.source)
            pixels = bitmap.to_array()
        left, top = self.crop
        return pixels[top : top + self.camera.height, left : left + self.camera.width]

    def points(self, points: np.ndarray) -> np.ndarray:
        """float64 (n, 2): points (n, 2) of the photo in the undistorted photo, COLMAP's pixels; NaN if it cannot show them."""
        rays = np.asarray(self.source.cam_from_img(np.ascontiguousarray(points, np.float64).reshape(-1, 2)), np.float64)
        focal = [self.camera.focal_length_x, self.camera.focal_length_y]
        undistorted: np.ndarray = rays * focal + [self.camera.principal_point_x, self.camera.principal_point_y]
        return undistorted


def undistort_model(model: pycolmap.Reconstruction, multiple: int = 1) -> Mapping[int, Undistortion]:
    """Changes the model to that of the undistorted photos, and returns what must be done with the photos of each camera.

    Poses and points stay as they are. Observations move to where they are in the undistorted photo.

    Args:
        model: The model. It is changed.
        multiple: Width and height become multiples of this number; a few columns and rows at the edges are cut off.

    Raises: ValueError if a camera cannot be undistorted, such as a spherical one.
    """
    undistortions = {camera_id: _undistort(camera, multiple) for camera_id, camera in sorted(model.cameras.items())}
    for image_id in sorted(model.images):
        image = model.image(image_id)
        if image.num_points2D():
            moved = undistortions[image.camera_id].points(np.array([point.xy for point in image.points2D]))
            for index, xy in enumerate(moved):
                if np.isfinite(xy).all():
                    image.points2D[index].xy = xy
                elif image.points2D[index].has_point3D():
                    model.delete_observation(image_id, index)
    for camera_id, undistortion in undistortions.items():
        camera = model.camera(camera_id)
        camera.model = undistortion.camera.model
        camera.params = undistortion.camera.params.tolist()
        camera.width, camera.height = undistortion.camera.width, undistortion.camera.height
    model.update_point_3d_errors()
    return undistortions


def _undistort(camera: pycolmap.Camera, multiple: int) -> Undistortion:
    source = pycolmap.Camera(camera.todict())
    if source.is_spherical():
        raise ValueError(
            f"camera {camera.camera_id} is {camera.model_name}: a spherical photo has no PINHOLE camera. Cut it into perspective "
            "views first"
        )
    pinhole = pycolmap.Camera(source.todict()) if source.is_undistorted() else _without_distortion(source)
    width, height = (side - side % multiple for side in (pinhole.width, pinhole.height))
    if not width or not height:
        raise ValueError(f"photos of {pinhole.width} x {pinhole.height} px are too small for factor={multiple}")
    left, top = (pinhole.width - width) // 2, (pinhole.height - height) // 2
    focal = [pinhole.focal_length_x, pinhole.focal_length_y]
    params = [*focal, pinhole.principal_point_x - left, pinhole.principal_point_y - top]
    camera_id = camera.camera_id
    return Undistortion(
        source,
        pycolmap.Camera(camera_id=camera_id, model="PINHOLE", width=width, height=height, params=params),
        (left, top),
    )


def _without_distortion(camera: pycolmap.Camera) -> pycolmap.Camera:
    return pycolmap.undistort_camera(pycolmap.UndistortCameraOptions(), camera)


def off_center_px(cameras: Iterable[pycolmap.Camera]) -> float:
    """Largest distance of a principal point from the middle of the photo along an axis, px."""
    return max(
        max(abs(camera.principal_point_x - camera.width / 2), abs(camera.principal_point_y - camera.height / 2))
        for camera in cameras
    )
