"""`transforms.json`: cameras with OpenGL's axes that see the points where the model's cameras do, and files that exist."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exports.conftest import NAMES
from PIL import Image as PILImage

from sfm_lightglue.exports import export
from sfm_lightglue.exports.source import ExportOptions
from sfm_lightglue.model_files import read_model


def transforms(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "transforms.json").read_text())
    return content


def test_points_project_to_where_the_undistorted_photo_shows_them(run: Path, tmp_path: Path) -> None:
    export("nerfstudio", run, tmp_path / "ns")
    export("splatting", run, tmp_path / "splat")
    model = read_model(tmp_path / "splat" / "sparse" / "0")
    content = transforms(tmp_path / "ns")
    assert content["camera_model"] == "PINHOLE"
    assert np.array_equal(content["applied_transform"], np.eye(4)[:3])
    assert [frame["file_path"] for frame in content["frames"]] == [f"images/{name}" for name in sorted(NAMES)]
    for frame in content["frames"]:
        world_from_camera = np.array(frame["transform_matrix"])
        image = model.find_image_with_name(frame["file_path"].removeprefix("images/"))
        np.testing.assert_allclose(world_from_camera[:3, 3], image.projection_center(), atol=1e-9)
        for point in image.get_observation_points2D():
            x, y, z, _ = np.linalg.inv(world_from_camera) @ [*model.point3D(point.point3D_id).xyz, 1]
            assert z < 0, "OpenGL's camera looks along -z"
            seen = [frame["fl_x"] * x / -z + frame["cx"], frame["fl_y"] * -y / -z + frame["cy"]]
            np.testing.assert_allclose(seen, point.xy, atol=1e-6)
        assert PILImage.open(tmp_path / "ns" / frame["file_path"]).size == (frame["w"], frame["h"])


def test_one_camera_is_written_once(run: Path, tmp_path: Path) -> None:
    model = read_model(run / "reconstruction" / "0")
    for image_id in (1, 2):
        model.deregister_frame(model.image(image_id).frame_id)
    model.write(run / "reconstruction" / "0")
    export("nerfstudio", run, tmp_path / "ns")
    content = transforms(tmp_path / "ns")
    assert len(content["frames"]) == 1
    assert content["fl_x"] == 190
    assert "fl_x" not in content["frames"][0]


def test_the_points_have_their_colors(run: Path, tmp_path: Path) -> None:
    export("nerfstudio", run, tmp_path / "ns")
    data = (tmp_path / "ns" / transforms(tmp_path / "ns")["ply_file_path"]).read_bytes()
    header, _, body = data.partition(b"end_header\n")
    assert b"element vertex 5" in header
    kinds = {b"float": "<f4", b"uchar": "u1"}
    fields = [line.split()[1:] for line in header.splitlines() if line.startswith(b"property")]
    points = np.frombuffer(body, [(name.decode(), kinds[kind]) for kind, name in fields])
    model = read_model(run / "reconstruction" / "0")
    expected = [model.point3D(point_id) for point_id in sorted(model.points3D)]
    found = np.sort(np.stack([points[axis] for axis in "xyz"], axis=1), axis=0)
    np.testing.assert_allclose(found, np.sort([point.xyz for point in expected], axis=0), rtol=1e-6)
    assert sorted(points["green"]) == sorted(point.color[1] for point in expected)


def test_smaller_copies_lie_where_nerfstudio_looks_for_them(run: Path, tmp_path: Path) -> None:
    export("nerfstudio", run, tmp_path / "ns", ExportOptions(factors=(2,)))
    assert sorted(path.name for path in (tmp_path / "ns" / "images_2").iterdir()) == ["a.jpg", "b.png", "c.jpg"]
    model = read_model(run / "reconstruction" / "0")
    model.image(3).name = "night/b.png"
    model.write(run / "reconstruction" / "0")
    with pytest.raises(ValueError, match=r"several photos are called b\.png"):
        export("nerfstudio", run, tmp_path / "twice", ExportOptions(factors=(2,)))


def test_masks_are_named_in_each_frame(run: Path, tmp_path: Path) -> None:
    PILImage.new("L", (200, 150), 255).save(tmp_path / "mask.png")
    export("nerfstudio", run, tmp_path / "ns", ExportOptions(masks=tmp_path / "mask.png"))
    for frame in transforms(tmp_path / "ns")["frames"]:
        assert (
            PILImage.open(tmp_path / "ns" / frame["mask_path"]).size == PILImage.open(tmp_path / "ns" / frame["file_path"]).size
        )
