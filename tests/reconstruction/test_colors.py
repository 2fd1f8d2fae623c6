"""Colours of points: equal to COLMAP's where COLMAP can read the photos, and correct where it cannot."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pycolmap
import pytest
from PIL import Image as PILImage

from sfm_lightglue.reconstruction.colors import color_points, interpolate

SIZE = 80, 60
"""(width, height) px of the photos."""
NUM_POINTS = 40


def photo(seed: int) -> PILImage.Image:
    """A smooth colourful picture."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return PILImage.fromarray(small).resize(SIZE, PILImage.Resampling.BICUBIC)


def build_model(names: list[str], keypoints: list[np.ndarray]) -> pycolmap.Reconstruction:
    """A model in which each image observes all points, at `keypoints` (n, 2) in COLMAP's px."""
    model = pycolmap.Reconstruction()
    camera = pycolmap.Camera(camera_id=1, model="SIMPLE_PINHOLE", width=SIZE[0], height=SIZE[1], params=[70, 40, 30])
    model.add_camera_with_trivial_rig(camera)
    for number, (name, points) in enumerate(zip(names, keypoints, strict=True), start=1):
        image = pycolmap.Image(name=name, camera_id=1, image_id=number, points2D=[pycolmap.Point2D(xy) for xy in points])
        model.add_image_with_trivial_frame(image, pycolmap.Rigid3d())
    for index in range(len(keypoints[0])):
        track = pycolmap.Track()
        for number in range(1, len(names) + 1):
            track.add_element(number, index)
        model.add_point3D([index, 0, 1], track)
    return model


def colors_of(model: pycolmap.Reconstruction) -> np.ndarray:
    """int (n, 3), in the order of the points' ids."""
    return np.array([model.point3D(point_id).color for point_id in sorted(model.point3D_ids())], int)


def keypoints_in(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(1, np.array(SIZE) - 1, (NUM_POINTS, 2))


def test_colours_are_those_of_colmap_where_colmap_reads_the_photos(tmp_path: Path) -> None:
    names, keypoints = ["a.png", "sub/b.jpg", "c.bmp"], [keypoints_in(seed) for seed in range(3)]
    (tmp_path / "sub").mkdir()
    for seed, name in enumerate(names):
        photo(seed).save(tmp_path / name)
    model, expected = build_model(names, keypoints), build_model(names, keypoints)
    color_points(model, tmp_path)
    expected.extract_colors_for_all_images(tmp_path)
    assert colors_of(expected).std() > 20
    np.testing.assert_allclose(colors_of(model), colors_of(expected), atol=2)  # two JPEG decoders, each rounds in its own way
    assert np.abs(colors_of(model) - colors_of(expected)).mean() < 0.5


@pytest.mark.parametrize("suffix", ["webp", "avif", "jp2", "gif"])
def test_formats_that_colmap_cannot_read_give_colours_too(tmp_path: Path, suffix: str) -> None:
    """COLMAP leaves these points black."""
    photo(0).save(tmp_path / f"a.{suffix}", quality=95)
    photo(0).save(tmp_path / "plain.png")
    keypoints = [keypoints_in(0)]
    model, black, plain = (build_model([name], keypoints) for name in (f"a.{suffix}", f"a.{suffix}", "plain.png"))
    color_points(model, tmp_path)
    black.extract_colors_for_all_images(tmp_path)
    color_points(plain, tmp_path)
    assert not colors_of(black).any()
    assert np.abs(colors_of(model) - colors_of(plain)).mean() < 12  # the formats are lossy, and GIF has 256 colours


def test_photos_that_are_missing_or_of_another_size_are_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names, keypoints = ["a.png", "gone.png", "small.png"], [keypoints_in(seed) for seed in range(3)]
    photo(0).save(tmp_path / "a.png")
    photo(0).resize((40, 30)).save(tmp_path / "small.png")
    model, alone = build_model(names, keypoints), build_model(names[:1], keypoints[:1])
    with caplog.at_level(logging.WARNING):
        color_points(model, tmp_path)
    color_points(alone, tmp_path)
    np.testing.assert_array_equal(colors_of(model), colors_of(alone))
    assert "gone.png" in caplog.text and "40 x 30 px, its camera 80 x 60 px" in caplog.text


@pytest.mark.parametrize("extracted_with", [{}, {"a.png": 1}, {"a.png": 2}])
def test_a_mirrored_photo_is_flipped_only_if_its_keypoints_were(tmp_path: Path, extracted_with: dict[str, int]) -> None:
    """EXIF alone does not count: photos can be used as they are stored, and imported features have no orientation."""
    exif = PILImage.Exif()
    exif[0x0112] = 2
    photo(0).save(tmp_path / "a.png", exif=exif)
    photo(0).save(tmp_path / "plain.png")
    stored = keypoints_in(0)
    flipped = np.column_stack([SIZE[0] - stored[:, 0], stored[:, 1]])
    model = build_model(["a.png"], [flipped if extracted_with.get("a.png") == 2 else stored])
    plain = build_model(["plain.png"], [stored])
    color_points(model, tmp_path, extracted_with)
    color_points(plain, tmp_path)
    np.testing.assert_array_equal(colors_of(model), colors_of(plain))


def test_points_without_a_readable_photo_are_black_and_a_model_may_have_no_points(tmp_path: Path) -> None:
    model = build_model(["gone.png"], [keypoints_in(0)])
    for point_id in model.point3D_ids():
        model.point3D(point_id).color = [1, 2, 3]
    color_points(model, tmp_path)
    assert not colors_of(model).any()
    color_points(pycolmap.Reconstruction(), tmp_path)


def test_interpolation_agrees_with_the_definition_and_keeps_to_the_edge() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    points = np.random.default_rng(1).uniform(-2, 9, (200, 2))
    for point, found in zip(points, interpolate(pixels, points), strict=True):
        x, y = np.clip(point, 0, [6, 4])
        tent = np.maximum(0, 1 - np.abs(np.arange(7) - x)), np.maximum(0, 1 - np.abs(np.arange(5) - y))
        np.testing.assert_allclose(found, np.einsum("x,y,yxc->c", *tent, pixels.astype(float)), atol=1e-9)
    np.testing.assert_array_equal(interpolate(pixels, np.array([[3.0, 2.0], [6.0, 4.0]])), pixels[[2, 4], [3, 6]])
