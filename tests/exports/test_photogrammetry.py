"""OpenMVG, Bundler and Metashape: what their formulas give for each point is where the model's photo shows it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pycolmap
import pytest
from PIL import Image as PILImage

from sfm_lightglue.exports import export
from sfm_lightglue.model_files import read_model


def with_cameras(run: Path, cameras: dict[int, tuple[str, list[float]]]) -> pycolmap.Reconstruction:
    """Gives the model of the run other cameras, with observations where they see the points."""
    model = read_model(run / "reconstruction" / "0")
    for number, (name, params) in cameras.items():
        camera = model.camera(number)
        camera.model = pycolmap.CameraModelId.__members__[name]
        camera.params = params
    for image in model.images.values():
        for point in image.points2D:
            point.xy = image.project_point(model.point3D(point.point3D_id).xyz)
    model.write(run / "reconstruction" / "0")
    return read_model(run / "reconstruction" / "0")


def openmvg_pixel(camera: dict[str, Any], kind: str, xyz: np.ndarray) -> np.ndarray:
    """Pixel of a point in a camera, by the formulas of OpenMVG's documentation; the centre of the top-left pixel is at (0, 0)."""
    x, y = xyz[:2] / xyz[2]
    r2 = x * x + y * y
    if kind == "pinhole_radial_k3":
        k1, k2, k3 = camera["disto_k3"]
        x, y = np.array([x, y]) * (1 + k1 * r2 + k2 * r2**2 + k3 * r2**3)
    elif kind == "pinhole_brown_t2":
        k1, k2, k3, t1, t2 = camera["disto_t2"]
        radial = k1 * r2 + k2 * r2**2 + k3 * r2**3
        tangential = t2 * (r2 + 2 * x * x) + 2 * t1 * x * y, t1 * (r2 + 2 * y * y) + 2 * t2 * x * y
        x, y = x + x * radial + tangential[0], y + y * radial + tangential[1]
    elif kind == "fisheye":
        k1, k2, k3, k4 = camera["fisheye"]
        theta = np.arctan(np.sqrt(r2))
        scale = theta * (1 + k1 * theta**2 + k2 * theta**4 + k3 * theta**6 + k4 * theta**8) / np.sqrt(r2)
        x, y = x * scale, y * scale
    return camera["focal_length"] * np.array([x, y]) + camera["principal_point"]


@pytest.mark.parametrize(
    ("camera", "kind"),
    [
        (("SIMPLE_PINHOLE", [180.0, 101.0, 74.0]), "pinhole"),
        (("RADIAL", [180.0, 101.0, 74.0, -0.2, 0.05]), "pinhole_radial_k3"),
        (("OPENCV", [180.0, 180.0, 101.0, 74.0, -0.2, 0.05, 0.01, -0.02]), "pinhole_brown_t2"),
        (("OPENCV_FISHEYE", [180.0, 180.0, 101.0, 74.0, -0.02, 0.01, 0.001, -0.002]), "fisheye"),
        (("SIMPLE_RADIAL_FISHEYE", [180.0, 101.0, 74.0, -0.02]), "fisheye"),
    ],
)
def test_openmvg_sees_the_points_where_the_photos_show_them(
    run: Path, tmp_path: Path, camera: tuple[str, list[float]], kind: str
) -> None:
    model = with_cameras(run, {2: camera})
    export("openmvg", run, tmp_path / "mvg")
    content = json.loads((tmp_path / "mvg" / "sfm_data.json").read_text())
    kinds: dict[int, str] = {}
    intrinsics = {}
    for entry in content["intrinsics"]:
        value = entry["value"]
        kinds.setdefault(value["polymorphic_id"] & 0xFFFF, value.get("polymorphic_name", ""))
        data = value["ptr_wrapper"]["data"]
        intrinsics[entry["key"]] = kinds[value["polymorphic_id"] & 0xFFFF], data
        assert all(data["value0"][key] == data[key] for key in data.get("value0", {}))
    views = {entry["key"]: entry["value"]["ptr_wrapper"]["data"] for entry in content["views"]}
    poses = {entry["key"]: entry["value"] for entry in content["extrinsics"]}
    assert intrinsics[2][0] == kind
    assert len(content["structure"]) == 5
    for point in content["structure"]:
        assert len(point["value"]["observations"]) == 3
        for observation in point["value"]["observations"]:
            view, pose = views[observation["key"]], poses[views[observation["key"]]["id_pose"]]
            in_camera = np.array(pose["rotation"]) @ (np.array(point["value"]["X"]) - pose["center"])
            name, data = intrinsics[view["id_intrinsic"]]
            np.testing.assert_allclose(openmvg_pixel(data, name, in_camera), observation["value"]["x"], atol=1e-6)
            image = model.find_image_with_name("/".join(filter(None, [view["local_path"], view["filename"]])))
            expected = image.project_point(model.point3D(point["key"]).xyz) - 0.5
            np.testing.assert_allclose(observation["value"]["x"], expected, atol=1e-6)
            assert (Path(content["root_path"]) / view["local_path"] / view["filename"]).is_file()


def test_the_pointers_of_openmvg_are_unique(run: Path, tmp_path: Path) -> None:
    with_cameras(run, {2: ("SIMPLE_RADIAL", [180.0, 100.0, 75.0, 0.1])})
    export("openmvg", run, tmp_path / "mvg")
    content = json.loads((tmp_path / "mvg" / "sfm_data.json").read_text())
    values = [entry["value"] for entry in (*content["views"], *content["intrinsics"])]
    assert len({value["ptr_wrapper"]["id"] for value in values}) == len(values) == 6
    assert all(value["ptr_wrapper"]["id"] > 1 << 31 for value in values)
    named = [value.get("polymorphic_name") for value in values[3:]]
    assert named == ["pinhole_radial_k3", None, "pinhole"], "cereal names a class once"


def test_bundler_sees_the_points_where_the_photos_show_them(run: Path, tmp_path: Path) -> None:
    model = with_cameras(run, {2: ("RADIAL", [180.0, 100.0, 75.0, -0.2, 0.05])})
    export("bundler", run, tmp_path / "bundler")
    names = (tmp_path / "bundler" / "list.txt").read_text().splitlines()
    header, *lines = (tmp_path / "bundler" / "bundle.out").read_text().splitlines()
    assert header == "# Bundle file v0.3"
    numbers = [list(map(float, line.split())) for line in lines]
    assert numbers[0] == [3, 5]
    cameras = [numbers[1 + 5 * number : 6 + 5 * number] for number in range(3)]
    for number in range(5):
        xyz, color, seen = numbers[16 + 3 * number : 19 + 3 * number]
        assert color[2] == 30
        assert seen[0] == 3
        for camera, _, x, y in np.reshape(seen[1:], (3, 4)):
            (focal, k1, k2), *rotation, translation = cameras[int(camera)]
            point = np.array(rotation) @ xyz + translation
            p = -point[:2] / point[2]
            r2 = p @ p
            np.testing.assert_allclose(focal * (1 + k1 * r2 + k2 * r2**2) * p, [x, y], atol=1e-6)
            name = names[int(camera)].removeprefix("images/")
            seen_by_colmap = model.find_image_with_name(name).project_point(np.array(xyz))
            np.testing.assert_allclose([x + 100, 75 - y], seen_by_colmap, atol=1e-6)
            assert PILImage.open(tmp_path / "bundler" / "images" / name).size == (200, 150)


def metashape_pixel(sensor: ElementTree.Element, xyz: np.ndarray) -> np.ndarray:
    """Pixel of a point in a camera, by the formulas of Metashape's manual; the top-left corner of the photo is at (0, 0)."""
    calibration = sensor.find("calibration")
    resolution = sensor.find("resolution")
    assert calibration is not None
    assert resolution is not None

    def value(name: str) -> float:
        return float(calibration.findtext(name, "0"))

    x, y = xyz[:2] / xyz[2]
    if sensor.get("type") == "equidistant_fisheye":
        x, y = np.array([x, y]) * np.arctan(np.hypot(x, y)) / np.hypot(x, y)
    r2 = x * x + y * y
    radial = 1 + sum(value(f"k{number}") * r2**number for number in (1, 2, 3, 4))
    u = x * radial + value("p1") * (r2 + 2 * x * x) + 2 * value("p2") * x * y
    v = y * radial + value("p2") * (r2 + 2 * y * y) + 2 * value("p1") * x * y
    width, height = (int(resolution.get(side, "")) for side in ("width", "height"))
    return np.array([width / 2 + value("cx") + u * value("f") + u * value("b1"), height / 2 + value("cy") + v * value("f")])


@pytest.mark.parametrize(
    "camera",
    [
        ("SIMPLE_PINHOLE", [180.0, 101.0, 74.0]),
        ("PINHOLE", [180.0, 183.0, 101.0, 74.0]),
        ("RADIAL", [180.0, 101.0, 74.0, -0.2, 0.05]),
        ("OPENCV", [180.0, 177.0, 101.0, 74.0, -0.2, 0.05, 0.01, -0.02]),
        ("OPENCV_FISHEYE", [180.0, 182.0, 101.0, 74.0, -0.02, 0.01, 0.001, -0.002]),
        ("SIMPLE_RADIAL_FISHEYE", [180.0, 101.0, 74.0, -0.02]),
    ],
)
def test_metashape_sees_the_points_where_the_photos_show_them(run: Path, tmp_path: Path, camera: tuple[str, list[float]]) -> None:
    model = with_cameras(run, {2: camera})
    export("metashape", run, tmp_path / "metashape")
    root = ElementTree.parse(tmp_path / "metashape" / "cameras.xml").getroot()
    sensors = {sensor.get("id"): sensor for sensor in root.iter("sensor")}
    cameras = [*root.iter("camera")]
    assert [each.get("label") for each in cameras] == ["a", "b", "c"]
    for image, each in zip(sorted(model.images.values(), key=lambda image: image.name), cameras, strict=True):
        world_from_cam = np.array([float(number) for number in each.findtext("transform", "").split()]).reshape(4, 4)
        assert np.linalg.det(world_from_cam[:3, :3]) == pytest.approx(1)
        for point in model.points3D.values():
            in_camera = (np.linalg.inv(world_from_cam) @ [*point.xyz, 1])[:3]
            found = metashape_pixel(sensors[each.get("sensor_id")], in_camera)
            np.testing.assert_allclose(found, image.project_point(point.xyz), atol=1e-6)
        assert (tmp_path / "metashape" / "images" / image.name).is_file()


def test_photos_with_the_same_label_are_refused(run: Path, tmp_path: Path) -> None:
    model = read_model(run / "reconstruction" / "0")
    (tmp_path / "photos" / "day" / "a.jpg").write_bytes((tmp_path / "photos" / "day" / "c.jpg").read_bytes())
    model.find_image_with_name("day/c.jpg").name = "day/a.jpg"
    model.write(run / "reconstruction" / "0")
    with pytest.raises(ValueError, match=r"some names repeat \(a\): rename"):
        export("metashape", run, tmp_path / "new")


@pytest.mark.parametrize(
    ("name", "camera", "message"),
    [
        ("openmvg", ("PINHOLE", [180.0, 181.0, 100.0, 75.0]), "OpenMVG has one focal length, and camera 2 has two"),
        ("openmvg", ("FOV", [180.0, 180.0, 100.0, 75.0, 0.1]), "OpenMVG has no camera model like FOV"),
        ("bundler", ("OPENCV", [180.0, 180.0, 100.0, 75.0, 0, 0, 0, 0]), "Bundler has no camera model like OPENCV"),
        ("bundler", ("SIMPLE_RADIAL", [180.0, 103.0, 75.0, 0]), r"principal point 3\.00 px from the middle"),
        ("metashape", ("FOV", [180.0, 180.0, 100.0, 75.0, 0.1]), "Metashape has no camera model like FOV"),
        *((name, ("EQUIRECTANGULAR", [200.0, 150.0]), "whole sphere") for name in ("openmvg", "bundler", "metashape")),
    ],
)
def test_cameras_that_a_format_lacks_are_refused(
    run: Path, tmp_path: Path, name: str, camera: tuple[str, list[float]], message: str
) -> None:
    with_cameras(run, {2: camera})
    with pytest.raises(ValueError, match=message):
        export(name, run, tmp_path / "new")
    assert not (tmp_path / "new").exists()
