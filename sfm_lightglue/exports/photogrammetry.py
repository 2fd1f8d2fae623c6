"""OpenMVG's `sfm_data.json` and Bundler's `bundle.out`, with the photos as they are: cameras keep their distortion.

Both programs have one focal length for both axes. Cameras with two are refused, not rounded.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pycolmap

from sfm_lightglue.exports.pictures import write_pictures
from sfm_lightglue.exports.source import ExportOptions, Source
from sfm_lightglue.exports.target import Target
from sfm_lightglue.files import write_json

HINT = "run the stages database and reconstruct again with database.camera_model=SIMPLE_RADIAL, or export to splatting"
SAME = 1e-9
"""Largest relative difference of two focal lengths that count as one."""
CENTER_PX = 1e-6
"""Largest distance of a principal point from the middle of the photo that counts as none, px."""


def write_openmvg(source: Source, target: Target, options: ExportOptions) -> str:
    """Writes `sfm_data.json` and `images`. In OpenMVG the centre of the top-left pixel is at (0, 0): 0.5 is subtracted.

    Source: https://openmvg.readthedocs.io/en/latest/openMVG/sfm/sfm/
    """
    model = source.reconstruction
    intrinsics = {camera.camera_id: _openmvg_camera(camera) for camera in source.flat_cameras("OpenMVG")}
    files = write_pictures(source, target.folder, dataclasses.replace(options, with_masks=False), None).files
    images = [model.find_image_with_name(name) for name in source.names]
    write_json(
        target.folder / "sfm_data.json",
        {
            "sfm_data_version": "0.3",
            "root_path": str(target.path / "images"),
            "views": [_view(number, image, files[image.name], model) for number, image in enumerate(images)],
            "intrinsics": list(_polymorphic(intrinsics, len(images))),
            "extrinsics": [_extrinsic(number, image) for number, image in enumerate(images)],
            "structure": _structure(model, {image.image_id: number for number, image in enumerate(images)}),
            "control_points": [],
        },
    )
    source.copy_georeference(target.folder)
    return f"{source}\nopenMVG_main_openMVG2openMVS -i {target.path / 'sfm_data.json'} -o scene.mvs"


def write_bundler(source: Source, target: Target, options: ExportOptions) -> str:
    """Writes `bundle.out`, `list.txt` and `images`.

    Bundler's cameras look along -z, y is up, and pixels count from the middle of the photo.

    Source: https://www.cs.cornell.edu/~snavely/bundler/bundler-v0.4-manual.html
    """
    lenses = {camera.camera_id: _bundler_camera(camera) for camera in source.flat_cameras("Bundler")}
    files = write_pictures(source, target.folder, dataclasses.replace(options, with_masks=False), None).files
    images = [source.reconstruction.find_image_with_name(name) for name in source.names]
    (target.folder / "list.txt").write_text("".join(f"images/{files[name]}\n" for name in source.names), encoding="utf-8")
    with (target.folder / "bundle.out").open("w", encoding="ascii", newline="\n") as stream:
        stream.write(f"# Bundle file v0.3\n{len(images)} {source.reconstruction.num_points3D()}\n")
        for image in images:
            stream.write(_bundler_view(image, lenses[image.camera_id]))
        numbers = {image.image_id: number for number, image in enumerate(images)}
        for _, point in sorted(source.reconstruction.points3D.items()):
            stream.write(_bundler_point(point, source.reconstruction, numbers))
    source.copy_georeference(target.folder)
    return str(source)


# --- OpenMVG -----------------------------------------------------------------------------------------------------------------


def _openmvg_camera(camera: pycolmap.Camera) -> tuple[str, dict[str, Any]]:
    """OpenMVG's name of the camera model, and the camera. Raises: ValueError if it has none."""
    _check_focal(camera, "OpenMVG")
    name, params = camera.model_name, camera.params.tolist()
    common = {
        "width": camera.width,
        "height": camera.height,
        "focal_length": camera.focal_length_x,
        "principal_point": [camera.principal_point_x - 0.5, camera.principal_point_y - 0.5],
    }
    if name in ("SIMPLE_PINHOLE", "PINHOLE"):
        return "pinhole", common
    if name in ("SIMPLE_RADIAL", "RADIAL"):
        return "pinhole_radial_k3", {**common, "disto_k3": [*params[3:], *([0.0] * (6 - len(params)))]}
    # Versions of OpenMVG read these with or without `value0`, which must come first.
    if name == "OPENCV":
        k1, k2, p1, p2 = params[4:]
        return "pinhole_brown_t2", {"value0": common, **common, "disto_t2": [k1, k2, 0.0, p1, p2]}
    if name in ("OPENCV_FISHEYE", "SIMPLE_RADIAL_FISHEYE", "RADIAL_FISHEYE"):
        lens = params[4:] if name == "OPENCV_FISHEYE" else params[3:]
        return "fisheye", {"value0": common, **common, "fisheye": [*lens, *([0.0] * (4 - len(lens)))]}
    raise ValueError(f"OpenMVG has no camera model like {name} (camera {camera.camera_id}): {HINT}")


def _view(number: int, image: pycolmap.Image, file: str, model: pycolmap.Reconstruction) -> dict[str, Any]:
    camera, path = model.camera(image.camera_id), PurePosixPath(file)
    data = {
        "local_path": "" if path.parent == PurePosixPath() else path.parent.as_posix(),
        "filename": path.name,
        "width": camera.width,
        "height": camera.height,
        "id_view": number,
        "id_intrinsic": image.camera_id,
        "id_pose": number,
    }
    # The numbers are those of the serialization library cereal: no subclass, and a pointer that is met for the first time.
    return {"key": number, "value": {"polymorphic_id": 1 << 30, "ptr_wrapper": {"id": (1 << 31) + number + 1, "data": data}}}


def _polymorphic(cameras: dict[int, tuple[str, dict[str, Any]]], num_views: int) -> Iterator[dict[str, Any]]:
    """Cameras as cereal writes subclasses: the name of a class stands where it is met for the first time."""
    known: dict[str, int] = {}
    for number, (camera_id, (name, data)) in enumerate(cameras.items(), start=num_views + 1):
        is_new = name not in known
        known.setdefault(name, len(known) + 1)
        class_: dict[str, Any] = {"polymorphic_id": known[name]}
        if is_new:
            class_ = {"polymorphic_id": known[name] | (1 << 31), "polymorphic_name": name}
        yield {"key": camera_id, "value": {**class_, "ptr_wrapper": {"id": (1 << 31) + number, "data": data}}}


def _extrinsic(number: int, image: pycolmap.Image) -> dict[str, Any]:
    rotation = image.cam_from_world().rotation.matrix()
    return {"key": number, "value": {"rotation": rotation.tolist(), "center": image.projection_center().tolist()}}


def _structure(model: pycolmap.Reconstruction, numbers: dict[int, int]) -> list[dict[str, Any]]:
    points = []
    for point_id, point in sorted(model.points3D.items()):
        seen = []
        for element in point.track.elements:
            xy = model.image(element.image_id).point2D(element.point2D_idx).xy - 0.5
            seen.append({"key": numbers[element.image_id], "value": {"id_feat": element.point2D_idx, "x": xy.tolist()}})
        points.append({"key": point_id, "value": {"X": point.xyz.tolist(), "observations": seen}})
    return points


# --- Bundler -----------------------------------------------------------------------------------------------------------------


def _bundler_camera(camera: pycolmap.Camera) -> tuple[float, float, float]:
    """f, k1, k2. Raises: ValueError if the camera has more parameters."""
    _check_focal(camera, "Bundler")
    name = camera.model_name
    off = max(abs(camera.principal_point_x - camera.width / 2), abs(camera.principal_point_y - camera.height / 2))
    if off > CENTER_PX:
        raise ValueError(
            f"camera {camera.camera_id} has its principal point {off:.2f} px from the middle of the photo, and Bundler has it "
            "there: export to another format, or reconstruct without these intrinsics"
        )
    if name in ("SIMPLE_PINHOLE", "PINHOLE"):
        return camera.focal_length_x, 0.0, 0.0
    if name in ("SIMPLE_RADIAL", "RADIAL"):
        k1, *more = camera.params[3:].tolist()
        return camera.focal_length_x, k1, more[0] if more else 0.0
    raise ValueError(f"Bundler has no camera model like {name} (camera {camera.camera_id}): {HINT}")


def _bundler_view(image: pycolmap.Image, lens: tuple[float, float, float]) -> str:
    flipped = np.diag([1.0, -1.0, -1.0]) @ image.cam_from_world().matrix()
    return "".join(_row(row) for row in (lens, *flipped[:, :3], flipped[:, 3]))


def _bundler_point(point: pycolmap.Point3D, model: pycolmap.Reconstruction, numbers: dict[int, int]) -> str:
    seen = []
    for element in point.track.elements:
        image = model.image(element.image_id)
        camera = model.camera(image.camera_id)
        x, y = image.point2D(element.point2D_idx).xy - [camera.width / 2, camera.height / 2]
        seen.append(f"{numbers[element.image_id]} {element.point2D_idx} {x:.12g} {-y:.12g}")
    return f"{_row(point.xyz)}{' '.join(map(str, point.color.tolist()))}\n{len(seen)} {' '.join(seen)}\n"


def _row(values: Any) -> str:
    return " ".join(f"{float(value):.17g}" for value in values) + "\n"


def _check_focal(camera: pycolmap.Camera, program: str) -> None:
    """Raises: ValueError if the focal lengths of both axes differ."""
    x, y = camera.focal_length_x, camera.focal_length_y
    if not math.isclose(x, y, rel_tol=SAME):
        raise ValueError(f"{program} has one focal length, and camera {camera.camera_id} has two ({x:.2f}, {y:.2f} px): {HINT}")
