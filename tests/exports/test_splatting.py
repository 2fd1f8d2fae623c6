"""Exports for Gaussian splatting: straight lines, exact cameras and observations, and photos that programs read as they are."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pycolmap
import pytest
from exports.conftest import LINES, NAMES, SIZE, rendered
from PIL import Image as PILImage

from sfm_lightglue.exports import export
from sfm_lightglue.exports.source import ExportOptions
from sfm_lightglue.files import write_json
from sfm_lightglue.model_files import read_model
from sfm_lightglue.products import Features
from sfm_lightglue.storage import ShardStore, features_to_group


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def line_errors(pixels: np.ndarray, camera: pycolmap.Camera) -> np.ndarray:
    """Distances in px between the lines in the picture and where the camera must see them."""
    darkness = 230.0 - pixels[..., 0]
    matrix = camera.calibration_matrix()
    errors = []
    for number, line in enumerate(LINES):
        a, b, c = np.linalg.inv(matrix).T @ line  # in COLMAP's pixels
        a, b, c = np.array([a, b, c]) / np.hypot(a, b)
        others = np.delete(LINES, number, axis=0)
        steep = abs(a) > abs(b)
        for position in range(5, (camera.height if steep else camera.width) - 5):
            along = position + 0.5
            across = -((b * along if steep else a * along) + c) / (a if steep else b)
            window = np.arange(int(across) - 5, int(across) + 6)
            here = (across, along) if steep else (along, across)
            ray = np.linalg.inv(matrix) @ [*here, 1]
            crossing = min(abs(other @ ray) * camera.mean_focal_length() / np.hypot(*other[:2]) for other in others)
            if crossing < 14 or window[0] < 0 or window[-1] >= (camera.width if steep else camera.height):
                continue
            weights = darkness[position, window] if steep else darkness[window, position]
            errors.append((np.sum((window + 0.5) * weights) / weights.sum() - across) * abs(a if steep else b))
    return np.array(errors)


def test_lines_are_straight_and_where_the_cameras_see_them(run: Path, tmp_path: Path) -> None:
    export("splatting", run, tmp_path / "splat")
    model = read_model(tmp_path / "splat" / "sparse" / "0")
    for image in model.images.values():
        camera = model.camera(image.camera_id)
        pixels = np.asarray(PILImage.open(tmp_path / "splat" / "images" / image.name))
        assert camera.model_name == "PINHOLE"
        assert pixels.shape == (camera.height, camera.width, 3)
        errors = line_errors(pixels, camera)
        assert len(errors) > 200
        assert np.abs(errors).max() < 0.1, image.name
    before = line_errors(rendered(1), model.camera(3))
    assert np.abs(before).max() > 0.5, "the lines are curved before"


def test_poses_points_and_observations_are_those_of_the_model(run: Path, tmp_path: Path) -> None:
    export("splatting", run, tmp_path / "splat")
    before, after = read_model(run / "reconstruction" / "0"), read_model(tmp_path / "splat" / "sparse" / "0")
    assert {image.name for image in after.images.values()} == {*NAMES}
    for image_id in before.images:
        old, new = before.image(image_id), after.image(image_id)
        np.testing.assert_allclose(new.cam_from_world().matrix(), old.cam_from_world().matrix(), atol=1e-12)
        for point in new.get_observation_points2D():
            seen = new.project_point(after.point3D(point.point3D_id).xyz)
            np.testing.assert_allclose(seen, point.xy, atol=1e-6)
    for point_id in before.points3D:
        np.testing.assert_array_equal(after.point3D(point_id).xyz, before.point3D(point_id).xyz)
        np.testing.assert_array_equal(after.point3D(point_id).color, before.point3D(point_id).color)


def test_the_files_are_those_that_the_programs_expect(run: Path, tmp_path: Path) -> None:
    said = export("splatting", run, tmp_path / "splat")
    model = [f"sparse/0/{name}.bin" for name in ("cameras", "frames", "images", "points3D", "rigs")]
    assert files(tmp_path / "splat") == sorted(["export.json", *(f"images/{name}" for name in NAMES), *model])
    assert str(tmp_path / "splat") in said
    assert "3 photos and 5 points" in said
    photo = tmp_path / "photos" / "day" / "c.jpg"
    assert (tmp_path / "splat" / "images" / "day" / "c.jpg").read_bytes() == photo.read_bytes(), "no distortion: copied"


def test_smaller_copies_have_the_same_cameras(run: Path, tmp_path: Path) -> None:
    export("splatting", run, tmp_path / "splat", ExportOptions(factors=(2, 4)))
    model = read_model(tmp_path / "splat" / "sparse" / "0")
    for image in model.images.values():
        camera = model.camera(image.camera_id)
        assert camera.width % 4 == camera.height % 4 == 0
        full = PILImage.open(tmp_path / "splat" / "images" / image.name)
        assert full.size == (camera.width, camera.height)
        for factor in (2, 4):
            small = PILImage.open(tmp_path / "splat" / f"images_{factor}" / image.name)
            assert small.size == (camera.width // factor, camera.height // factor)
        if image.name.endswith(".png"):
            half = PILImage.open(tmp_path / "splat" / "images_2" / image.name)
            scaled = pycolmap.Camera(camera.todict())
            scaled.rescale(0.5)
            np.testing.assert_allclose(scaled.params, camera.params / 2)
            np.testing.assert_array_equal(np.asarray(full.reduce(2)), np.asarray(half))
        assert np.abs(line_errors(np.asarray(full), camera)).max() < 0.1
        for point in image.get_observation_points2D():
            np.testing.assert_allclose(image.project_point(model.point3D(point.point3D_id).xyz), point.xy, atol=1e-6)


def test_a_photo_turned_by_exif_keeps_its_pixels_and_loses_the_tag(run: Path, tmp_path: Path) -> None:
    exif = PILImage.Exif()
    exif[0x0112] = 6
    photo = PILImage.open(tmp_path / "photos" / "day" / "c.jpg")
    photo.save(tmp_path / "photos" / "day" / "c.jpg", exif=exif, quality=97, subsampling=0)
    export("splatting", run, tmp_path / "splat")
    written = PILImage.open(tmp_path / "splat" / "images" / "day" / "c.jpg")
    assert written.size == SIZE
    assert 0x0112 not in written.getexif()
    assert np.abs(np.asarray(written).astype(int) - rendered(3)).max() < 12  # JPEG twice


def test_a_mirrored_photo_is_flipped_as_its_model(run: Path, tmp_path: Path) -> None:
    blank = Features(np.zeros((0, 2), np.float32), np.zeros(0, np.float32), np.zeros((0, 4), np.float32), SIZE)
    with ShardStore(run / "features.h5", {}) as store:
        for name in NAMES:
            orientation = 2 if name == "day/c.jpg" else 1
            store.add(name, features_to_group(dataclasses.replace(blank, name=name, orientation=orientation)), "")
        store.merge()
    export("splatting", run, tmp_path / "splat")
    written = np.asarray(PILImage.open(tmp_path / "splat" / "images" / "day" / "c.jpg")).astype(int)
    assert np.abs(written - rendered(3)[:, ::-1]).max() < 12


@pytest.mark.parametrize("extension", ["webp", "tif", "bmp"])
def test_other_formats_become_png_files_with_their_names_in_the_model(run: Path, tmp_path: Path, extension: str) -> None:
    model = read_model(run / "reconstruction" / "0")
    model.image(3).name = f"day/c.{extension}"
    model.write(run / "reconstruction" / "0")
    PILImage.fromarray(rendered(3)).save(tmp_path / "photos" / "day" / f"c.{extension}", lossless=True)
    export("splatting", run, tmp_path / "splat")
    exported = read_model(tmp_path / "splat" / "sparse" / "0")
    assert exported.image(3).name == f"day/c.{extension}.png"
    np.testing.assert_array_equal(np.asarray(PILImage.open(tmp_path / "splat" / "images" / exported.image(3).name)), rendered(3))


def test_a_16_bit_photo_and_a_grey_one_become_rgb(run: Path, tmp_path: Path) -> None:
    PILImage.fromarray(rendered(3)[..., 0].astype(np.uint16) * 257).save(tmp_path / "photos" / "day" / "b.png")
    PILImage.fromarray(rendered(3)[..., 0]).save(tmp_path / "photos" / "day" / "c.jpg", quality=97)
    export("splatting", run, tmp_path / "splat")
    for name in ("day/b.png", "day/c.jpg"):
        written = PILImage.open(tmp_path / "splat" / "images" / name)
        assert written.mode == "RGB"
        assert np.ptp(np.asarray(written)) > 150


def with_mask(run: Path, tmp_path: Path) -> np.ndarray:
    """Gives `a.jpg` a mask; returns it."""
    mask = np.full((SIZE[1], SIZE[0]), 255, np.uint8)
    mask[:, :60] = 0
    (tmp_path / "masks").mkdir()
    PILImage.fromarray(mask).save(tmp_path / "masks" / "a.png")
    summary = json.loads((run / "summary.json").read_text())
    summary["dataset"]["masks"] = str(tmp_path / "masks")
    write_json(run / "summary.json", summary)
    return mask


def test_masks_are_undistorted_too_and_each_photo_has_one(run: Path, tmp_path: Path) -> None:
    with_mask(run, tmp_path)
    said = export("splatting", run, tmp_path / "splat", ExportOptions(factors=(2,)))
    assert "--masks-path masks" in said
    assert [name for name in files(tmp_path / "splat") if name.startswith("masks/")] == [
        "masks/a.png",
        "masks/day/b.png",
        "masks/day/c.png",
    ]
    camera = read_model(tmp_path / "splat" / "sparse" / "0").camera(1)
    mask = np.asarray(PILImage.open(tmp_path / "splat" / "masks" / "a.png"))
    assert mask.shape == (camera.height, camera.width)
    edge = (camera.params[:2] * ((59.5 - 100) / 180) + camera.params[2:])[0]  # near the middle, the distortion is small
    found = np.argmax(mask[camera.height // 2] > 0)
    assert abs(found - edge) < 1.5
    assert {*np.unique(mask)} == {0, 255}
    assert np.asarray(PILImage.open(tmp_path / "splat" / "masks" / "day" / "b.png")).min() == 255
    assert PILImage.open(tmp_path / "splat" / "masks_2" / "a.png").size == (camera.width // 2, camera.height // 2)


def test_masks_can_go_into_the_alpha_channel_or_be_left_out(run: Path, tmp_path: Path) -> None:
    with_mask(run, tmp_path)
    export("splatting", run, tmp_path / "alpha", ExportOptions(alpha=True))
    assert {image.name for image in read_model(tmp_path / "alpha" / "sparse" / "0").images.values()} == {
        "a.jpg.png",
        "day/b.png",
        "day/c.jpg",
    }
    photo = PILImage.open(tmp_path / "alpha" / "images" / "a.jpg.png")
    mask = PILImage.open(tmp_path / "alpha" / "masks" / "a.jpg.png")
    np.testing.assert_array_equal(np.asarray(photo)[..., 3] >= 128, np.asarray(mask) > 0)
    export("splatting", run, tmp_path / "none", ExportOptions(with_masks=False))
    assert not (tmp_path / "none" / "masks").exists()


def test_alpha_of_a_photo_is_kept(run: Path, tmp_path: Path) -> None:
    alpha = np.full((SIZE[1], SIZE[0]), 255, np.uint8)
    alpha[:20] = 0
    PILImage.fromarray(np.dstack([rendered(2), alpha])).save(tmp_path / "photos" / "day" / "b.png")
    export("splatting", run, tmp_path / "splat")
    photo = np.asarray(PILImage.open(tmp_path / "splat" / "images" / "day" / "b.png"))
    assert photo.shape[2] == 4
    assert photo[2, 100, 3] == 0
    assert photo[-2, 100, 3] == 255


def test_the_model_can_be_chosen(run: Path, tmp_path: Path) -> None:
    model = read_model(run / "reconstruction" / "0")
    model.deregister_frame(model.image(3).frame_id)
    (run / "reconstruction" / "1").mkdir()
    model.write(run / "reconstruction" / "1")
    assert "3 photos and 5 points of model 0 of 2" in export("splatting", run, tmp_path / "largest")
    said = export("splatting", run, tmp_path / "other", ExportOptions(model=1))
    assert "2 photos and 5 points of model 1 of 2" in said
    assert not (tmp_path / "other" / "images" / "day" / "c.jpg").exists()
    with pytest.raises(ValueError, match=r"has no model 7: model=0\|1"):
        export("splatting", run, tmp_path / "none", ExportOptions(model=7))


def test_an_off_center_principal_point_is_a_warning(run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    export("splatting", run, tmp_path / "splat")
    assert "px from the middle of the photo" in caplog.text


def test_photos_that_do_not_fit_are_one_error_before_the_work(run: Path, tmp_path: Path) -> None:
    (tmp_path / "photos" / "a.jpg").unlink()
    PILImage.new("RGB", (40, 30)).save(tmp_path / "photos" / "day" / "b.png")
    with pytest.raises(ValueError, match=r"2 photos .*a\.jpg: .*day/b\.png has 40 x 30 px, its camera 200 x 150 px.*photos=DIR"):
        export("splatting", run, tmp_path / "splat")
    assert not (tmp_path / "splat").exists()
    with pytest.raises(FileNotFoundError, match="add photos=DIR"):
        export("splatting", run, tmp_path / "splat", ExportOptions(photos=tmp_path / "gone"))


@pytest.mark.parametrize(("name", "place"), [("splatting", "sparse/0"), ("ply", ".")])
def test_where_the_model_lies_on_the_earth_goes_along(run: Path, tmp_path: Path, name: str, place: str) -> None:
    write_json(run / "reconstruction" / "0" / "georeference.json", {"coordinates": "east, north, up"})
    export(name, run, tmp_path / "new")
    copied = json.loads((tmp_path / "new" / place / "georeference.json").read_text())
    assert copied == {"coordinates": "east, north, up"}
