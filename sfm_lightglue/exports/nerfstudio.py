"""nerfstudio's `transforms.json`, with undistorted photos and a point cloud.

`transform_matrix` is world_from_camera with OpenGL's camera axes (x right, y up, z backwards). The world is that of the model.
Principal points count from the corner of the top-left pixel, as in COLMAP.

Source: https://docs.nerf.studio/quickstart/data_conventions.html
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pycolmap

from sfm_lightglue.exports.pictures import Pictures
from sfm_lightglue.exports.source import ExportOptions, Source
from sfm_lightglue.exports.splatting import write_undistorted
from sfm_lightglue.exports.target import Target
from sfm_lightglue.files import write_json

OPENGL_FROM_OPENCV = np.diag([1.0, -1.0, -1.0, 1.0])
"""From camera axes x right, y down, z forward to x right, y up, z backwards; it is its own inverse."""
POINTS = "sparse_pc.ply"


def write(source: Source, target: Target, options: ExportOptions) -> str:
    """Writes `transforms.json`, `images`, `sparse_pc.ply` and, if photos have masks, `masks`; with factors smaller copies."""
    _check_names(source, options)
    folder = target.folder
    pictures = write_undistorted(source, folder, options)
    for copies in sorted(folder.glob("images_*")) + sorted(folder.glob("masks_*")):
        _flatten(copies)
    model = source.reconstruction
    model.export_PLY(folder / POINTS)
    frames = [_frame(image, pictures) for image in sorted(model.images.values(), key=lambda one: one.name) if image.has_pose]
    cameras = source.cameras()
    shared = _intrinsics(cameras[0]) if len(cameras) == 1 else {}
    if not shared:
        for frame in frames:
            frame |= _intrinsics(model.camera(model.image(frame["colmap_im_id"]).camera_id))
    content = {
        "camera_model": "PINHOLE",
        **shared,
        "applied_transform": np.eye(4)[:3].tolist(),
        "ply_file_path": POINTS,
        "frames": frames,
    }
    write_json(folder / "transforms.json", content)
    source.copy_georeference(folder)
    return f"{source}\nns-train splatfacto --data {target.path}"


def _frame(image: pycolmap.Image, pictures: Pictures) -> dict[str, Any]:
    cam_from_world = np.vstack([image.cam_from_world().matrix(), [0, 0, 0, 1]])
    frame = {
        "file_path": f"images/{pictures.files[image.name]}",
        "transform_matrix": (np.linalg.inv(cam_from_world) @ OPENGL_FROM_OPENCV).tolist(),
        "colmap_im_id": image.image_id,
    }
    return frame | ({"mask_path": f"masks/{pictures.masks[image.name]}"} if pictures.masks else {})


def _intrinsics(camera: pycolmap.Camera) -> dict[str, Any]:
    return {
        "fl_x": camera.focal_length_x,
        "fl_y": camera.focal_length_y,
        "cx": camera.principal_point_x,
        "cy": camera.principal_point_y,
        "w": camera.width,
        "h": camera.height,
    }


def _check_names(source: Source, options: ExportOptions) -> None:
    """Raises: ValueError if smaller copies of two photos would have the same name: nerfstudio looks for them without folders."""
    names = [PurePosixPath(name).name for name in source.names]
    if options.factors and len({*names}) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(
            f"several photos are called {twice}, and nerfstudio finds smaller copies by the name of the file alone: leave "
            "factor= out, or export to splatting"
        )


def _flatten(folder: Path) -> None:
    """Moves all files in the folders below `folder` into it."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.parent != folder:
            path.rename(folder / path.name)
    for below in sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True):
        below.rmdir()
