"""Agisoft Metashape's `cameras.xml`, with the photos as they are: cameras keep their distortion.

Source: Agisoft Metashape User Manual, Professional Edition, appendix "Camera models". x is right, y down, z forward as in COLMAP,
and the top-left corner of the photo is at (0, 0).
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import PurePosixPath
from xml.etree import ElementTree

import numpy as np
import pycolmap

from sfm_lightglue.exports.pictures import write_pictures
from sfm_lightglue.exports.source import ExportOptions, Source
from sfm_lightglue.exports.target import Target
from sfm_lightglue.mistakes import shortened

HINT = "run the stages database and reconstruct again with database.camera_model=OPENCV, or export to splatting"


def write(source: Source, target: Target, options: ExportOptions) -> str:
    """Writes `cameras.xml` and `images`. Metashape finds the photo of a camera by its label, the file name without extension.

    Raises: ValueError if Metashape has no such camera model, or if two photos have the same label.
    """
    sensors = {camera.camera_id: _sensor(camera) for camera in source.flat_cameras("Metashape")}
    files = write_pictures(source, target.folder, dataclasses.replace(options, with_masks=False), None).files
    labels = {name: PurePosixPath(files[name]).stem for name in source.names}
    if repeated := [label for label, count in Counter(labels.values()).items() if count > 1]:
        raise ValueError(
            f"Metashape tells photos apart by their names without folder and extension, and some names repeat "
            f"({shortened(sorted(repeated))}): rename the photos and run again, or export to another format"
        )
    document = ElementTree.Element("document", version="1.5.0")
    chunk = ElementTree.SubElement(document, "chunk", label=source.model.name, enabled="true")
    ElementTree.SubElement(chunk, "sensors").extend(sensors.values())
    cameras = ElementTree.SubElement(chunk, "cameras")
    for number, name in enumerate(source.names):
        image = source.reconstruction.find_image_with_name(name)
        about = {"id": str(number), "sensor_id": str(image.camera_id), "label": labels[name], "enabled": "true"}
        camera = ElementTree.SubElement(cameras, "camera", about)
        world_from_cam = np.vstack([image.cam_from_world().inverse().matrix(), [0, 0, 0, 1]])
        ElementTree.SubElement(camera, "transform").text = " ".join(f"{value:.17g}" for value in world_from_cam.ravel())
    ElementTree.indent(document, " ")
    ElementTree.ElementTree(document).write(target.folder / "cameras.xml", encoding="utf-8", xml_declaration=True)
    source.copy_georeference(target.folder)
    return f"{source}\nin Metashape: add the photos of images/, then File > Import > Import Cameras > cameras.xml"


def _sensor(camera: pycolmap.Camera) -> ElementTree.Element:
    """The calibration of a camera. Raises: ValueError if Metashape has no such model."""
    kind, values = _calibration(camera)
    size = {"width": str(camera.width), "height": str(camera.height)}
    sensor = ElementTree.Element("sensor", id=str(camera.camera_id), label=f"camera {camera.camera_id}", type=kind)
    ElementTree.SubElement(sensor, "resolution", size)
    calibration = ElementTree.SubElement(sensor, "calibration", {"type": kind, "class": "adjusted"})
    ElementTree.SubElement(calibration, "resolution", size)
    for name, value in values.items():
        ElementTree.SubElement(calibration, name).text = f"{value:.17g}"
    return sensor


def _calibration(camera: pycolmap.Camera) -> tuple[str, dict[str, float]]:
    """Metashape's type of the camera and its parameters, px. cx and cy count from the middle of the photo."""
    name, params = camera.model_name, camera.params.tolist()
    values = {
        "f": camera.focal_length_y,
        "cx": camera.principal_point_x - camera.width / 2,
        "cy": camera.principal_point_y - camera.height / 2,
        "b1": camera.focal_length_x - camera.focal_length_y,
    }
    if name in ("SIMPLE_PINHOLE", "PINHOLE"):
        return "frame", values
    if name in ("SIMPLE_RADIAL", "RADIAL"):
        return "frame", values | _numbered("k", params[3:])
    if name == "OPENCV":
        k1, k2, p1, p2 = params[4:]
        return "frame", values | _numbered("k", [k1, k2]) | _numbered("p", [p2, p1])  # the other way round than OpenCV's
    if name == "OPENCV_FISHEYE":
        return "equidistant_fisheye", values | _numbered("k", params[4:])
    if name in ("SIMPLE_RADIAL_FISHEYE", "RADIAL_FISHEYE"):
        return "equidistant_fisheye", values | _numbered("k", params[3:])
    raise ValueError(f"Metashape has no camera model like {name} (camera {camera.camera_id}): {HINT}")


def _numbered(letter: str, values: list[float]) -> dict[str, float]:
    return {f"{letter}{number}": value for number, value in enumerate(values, start=1)}
