"""EXIF: orientation is ignored, focal lengths are read only if they are plausible, and photos of one camera have one key."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags
from PIL import Image as PILImage

from sfm_lightglue.images import load_image, read_header

HEIGHT, WIDTH = 48, 64
PIXELS = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)


def exif_photo(path: Path, main: dict[str, object], inner: dict[str, object], size: tuple[int, int] = (WIDTH, HEIGHT)) -> Path:
    """A JPEG with EXIF tags, given by name, in the main and in the Exif directory."""
    exif = PILImage.Exif()
    for name, value in main.items():
        exif[ExifTags.Base[name].value] = value
    exif.get_ifd(ExifTags.IFD.Exif).update({ExifTags.Base[name].value: value for name, value in inner.items()})
    PILImage.fromarray(PIXELS).resize(size).save(path, exif=exif)
    return path


@pytest.mark.parametrize("orientation", range(10))
def test_orientation_is_never_applied(tmp_path: Path, orientation: int) -> None:
    plain = exif_photo(tmp_path / "plain.jpg", {}, {})
    turned = exif_photo(tmp_path / "turned.jpg", {"Orientation": orientation}, {})
    np.testing.assert_array_equal(load_image(tmp_path, turned.name).pixels, load_image(tmp_path, plain.name).pixels)
    assert read_header(turned).size == (WIDTH, HEIGHT) == load_image(tmp_path, "turned.jpg").size


def test_the_35_mm_equivalent_relates_to_the_diagonal_of_35_mm_film(tmp_path: Path) -> None:
    path = exif_photo(tmp_path / "a.jpg", {}, {"FocalLengthIn35mmFilm": 50})
    expected = 50 / np.hypot(36, 24) * np.hypot(WIDTH, HEIGHT)
    assert read_header(path).focal_length_px == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("unit, pixels_per_mm", [(2, 100 / 25.4), (3, 100 / 10), (4, 100 / 1)])
def test_the_focal_plane_resolution_gives_pixels_per_length(tmp_path: Path, unit: int, pixels_per_mm: float) -> None:
    tags = {"FocalLength": 10.0, "FocalPlaneXResolution": 100.0, "FocalPlaneResolutionUnit": unit, "ExifImageWidth": 640}
    path = exif_photo(tmp_path / "a.jpg", {}, tags, (640, 480))
    expected = 10 * pixels_per_mm if 10 * pixels_per_mm > 0.2 * 640 else None
    assert read_header(path).focal_length_px == (expected if expected is None else pytest.approx(expected))


def test_without_a_unit_the_resolution_is_per_inch(tmp_path: Path) -> None:
    path = exif_photo(tmp_path / "a.jpg", {}, {"FocalLength": 25.4, "FocalPlaneXResolution": 60.0, "ExifImageWidth": WIDTH})
    assert read_header(path).focal_length_px == pytest.approx(60)


@pytest.mark.parametrize("stored_width, trusted", [(WIDTH, True), (HEIGHT, True), (4 * WIDTH, False), (0, False), (None, False)])
def test_the_resolution_is_trusted_only_if_the_pixel_count_agrees(
    tmp_path: Path, stored_width: int | None, trusted: bool
) -> None:
    """A resized photo keeps the resolution of the sensor. A rotated photo has width and height exchanged."""
    tags = {"FocalLength": 10.0, "FocalPlaneXResolution": 60.0, "FocalPlaneResolutionUnit": 3}
    path = exif_photo(tmp_path / "a.jpg", {}, tags | ({} if stored_width is None else {"ExifImageWidth": stored_width}))
    assert read_header(path).focal_length_px == (pytest.approx(60) if trusted else None)


@pytest.mark.parametrize(
    "original, size, factor",
    [
        ((640, 480), (320, 240), 0.5),  # resized
        ((480, 640), (320, 240), 0.5),  # resized and turned
        ((640, 480), (640, 360), 1.0),  # cropped to 16:9
        ((640, 480), (320, 180), 0.5),  # both
        ((100, 7), (320, 240), None),  # the original has the shape of no sensor
        ((320, 240), (640, 360), None),  # the original is smaller than its crop
    ],
)
def test_the_focal_length_of_crops_and_resized_photos(
    tmp_path: Path, original: tuple[int, int], size: tuple[int, int], factor: float | None
) -> None:
    """The original has 800 px along the diagonal."""
    pixels = {"ExifImageWidth": original[0], "ExifImageHeight": original[1]}
    equivalent = exif_photo(tmp_path / "a.jpg", {}, {"FocalLengthIn35mmFilm": 50, **pixels}, size)
    expected = 50 / np.hypot(36, 24) * (np.hypot(*size) if factor is None else 800 * factor)
    assert read_header(equivalent).focal_length_px == pytest.approx(expected, rel=1e-4)
    tags = {"FocalLength": 10.0, "FocalPlaneXResolution": 600.0, "FocalPlaneResolutionUnit": 3, "DigitalZoomRatio": 1.5, **pixels}
    plane = exif_photo(tmp_path / "b.jpg", {}, tags, size)
    assert read_header(plane).focal_length_px == (None if factor is None else pytest.approx(900 * factor))


def test_the_35_mm_equivalent_comes_before_the_resolution_unless_it_is_absurd(tmp_path: Path) -> None:
    resolution = {"FocalLength": 10.0, "FocalPlaneXResolution": 60.0, "FocalPlaneResolutionUnit": 3, "ExifImageWidth": WIDTH}
    both = exif_photo(tmp_path / "both.jpg", {}, {**resolution, "FocalLengthIn35mmFilm": 35})
    assert read_header(both).focal_length_px == pytest.approx(35 / 43.2666 * 80, rel=1e-4)
    absurd = exif_photo(tmp_path / "absurd.jpg", {}, {**resolution, "FocalLengthIn35mmFilm": 65000})
    assert read_header(absurd).focal_length_px == pytest.approx(60)


def test_the_sensor_of_a_known_camera_gives_the_focal_length(tmp_path: Path) -> None:
    """Nikon says that the sensor of its D90 is 23.6 mm wide. The photo was resized to a fifth, or enlarged by the camera."""
    camera = {"Make": "NIKON CORPORATION", "Model": "NIKON D90"}
    tags = {"FocalLength": 18.0, "ExifImageWidth": 3200, "ExifImageHeight": 2400}
    resized = exif_photo(tmp_path / "a.jpg", camera, tags, (640, 480))
    assert read_header(resized).focal_length_px == pytest.approx(18 / 23.6 * 640, rel=2e-3)
    upright = exif_photo(tmp_path / "b.jpg", camera, {"FocalLength": 18.0, "DigitalZoomRatio": 2.0}, (480, 640))
    assert read_header(upright).focal_length_px == pytest.approx(2 * 18 / 23.6 * 640, rel=2e-3)
    other = exif_photo(tmp_path / "c.jpg", {"Make": "Ma\xefson", "Model": "unknown"}, {"FocalLength": 18.0})
    assert read_header(other).focal_length_px is None
    wrong = exif_photo(tmp_path / "d.jpg", camera, {"FocalLength": 2.0})
    assert read_header(wrong).focal_length_px is None, "0.08 times the longest side"


@pytest.mark.parametrize("equivalent", [0, 1, 1000, 65000])
def test_a_focal_length_that_no_lens_has_is_ignored(tmp_path: Path, equivalent: int) -> None:
    path = exif_photo(tmp_path / "a.jpg", {}, {"FocalLengthIn35mmFilm": equivalent, "FocalLength": 0.0})
    assert read_header(path).focal_length_px is None


def test_broken_exif_values_count_as_none(tmp_path: Path) -> None:
    tags = {
        "FocalLengthIn35mmFilm": "wide",
        "FocalLength": (1, 0),
        "FocalPlaneXResolution": float("nan"),
        "ExifImageWidth": WIDTH,
    }
    path = exif_photo(tmp_path / "a.jpg", {}, tags)
    assert read_header(path).focal_length_px is None
    assert load_image(tmp_path, path.name).pixels.shape == (HEIGHT, WIDTH, 3)


def test_photos_of_one_camera_lens_and_size_have_the_same_key(tmp_path: Path) -> None:
    make = {"Make": "Maker", "Model": "One"}
    first = exif_photo(tmp_path / "a.jpg", make, {"FocalLength": 8.0})
    again = exif_photo(tmp_path / "b.jpg", {**make, "Orientation": 6}, {"FocalLength": 8.0})
    others = [
        exif_photo(tmp_path / "c.jpg", {**make, "Model": "Two"}, {"FocalLength": 8.0}),
        exif_photo(tmp_path / "d.jpg", make, {"FocalLength": 24.0}),
        exif_photo(tmp_path / "e.jpg", make, {"FocalLength": 8.0}, (HEIGHT, WIDTH)),
    ]
    keys = [read_header(path).camera_key for path in (first, again, *others)]
    assert keys[0] == keys[1] != "" and len(set(keys)) == 4


def test_without_exif_there_is_no_camera_key(tmp_path: Path) -> None:
    PILImage.fromarray(PIXELS).save(tmp_path / "a.png")
    header = read_header(tmp_path / "a.png")
    assert (header.size, header.focal_length_px, header.camera_key) == ((WIDTH, HEIGHT), None, "")
