"""105 broken, odd and unusual files. Each is decoded as its description says, or refused with a reason."""

from __future__ import annotations

import csv
import multiprocessing
import resource
from pathlib import Path

import numpy as np
import pytest

from sfm_lightglue.images import UnreadableImage, list_images, load_image, read_header

FOLDER = Path(__file__).resolve().parents[3] / "shared" / "data" / "odd_files"
pytestmark = pytest.mark.skipif(not (FOLDER / "expected.tsv").is_file(), reason=f"there is no {FOLDER}")

SIZES = {
    "mode_gray16.png": (400, 267),
    "mode_rgb16.png": (400, 267),
    "size_33x31.png": (33, 31),
    "size_3000x20.jpg": (3000, 20),
    "size_20x3000.jpg": (20, 3000),
    "size_801x533.png": (801, 533),
    "size_6000x4000_smooth.jpg": (6000, 4000),
    "panorama_equirect_2048x1024.jpg": (2048, 1024),
}
"""(width, height) of files with a size in their description."""
GREY = ("mode_gray", "mode_pgm", "mode_onebit", "mode_float32", "mode_la")
TRANSPARENT = {"mode_rgba.png", "mode_la.png"}
"""Files with a transparent left quarter, which becomes white."""


def rows() -> list[dict[str, str]]:
    if not (FOLDER / "expected.tsv").is_file():
        return []
    with (FOLDER / "expected.tsv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def decoded(name: str) -> np.ndarray | None:
    """The pixels, or None if the file is refused. Any other outcome fails the test."""
    try:
        read_header(FOLDER / "images" / name)
        pixels = load_image(FOLDER / "images", name).pixels
    except UnreadableImage as error:
        assert 10 < len(str(error)) <= 300
        return None
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
    return pixels


@pytest.fixture(scope="module")
def good_brightness() -> float:
    pixels = decoded("good_a.jpg")
    assert pixels is not None and pixels.shape == (534, 800, 3)
    return float(pixels.mean())


@pytest.mark.parametrize("row", rows(), ids=lambda row: row["file"][:40])
def test_each_file_is_used_or_refused_as_its_description_says(row: dict[str, str], good_brightness: float) -> None:
    name, expected = row["file"], row["expected"]
    pixels = decoded(name)
    if expected == "skip-with-message" or expected.startswith("skip-with-message,"):
        assert pixels is None
    elif expected.startswith("use") and "skip" not in expected:
        assert pixels is not None
    if pixels is None:
        return
    if name in SIZES:
        assert pixels.shape[1::-1] == SIZES[name]
    if row["kind"] == "name":
        assert pixels.shape[1::-1] == (320, 214)
    if (
        row["kind"] in ("mode", "name", "EXIF", "wrong extension", "size", "duplicate", "multi-frame")
        and "MPO" not in row["note"]
    ):
        opaque = pixels[:, pixels.shape[1] // 4 + 2 :] if name in TRANSPARENT else pixels
        assert opaque.mean() == pytest.approx(good_brightness, abs=8), "the file is as bright as the photo it was made from"
    if name in TRANSPARENT:
        assert (pixels[:, : pixels.shape[1] // 4 - 2] == 255).all()
    if name.startswith(GREY):
        assert (pixels == pixels[..., :1]).all()


@pytest.mark.parametrize(
    "name", ["mode_rgb16.png", "mode_gray16.png", "mode_gray12in16.tif", "mode_float32.tif", "mode_cmyk.jpg"]
)
def test_unusual_modes_show_the_same_picture_as_the_plain_photo(name: str) -> None:
    pixels, plain = decoded(name), decoded("good_a.jpg")
    assert pixels is not None and plain is not None
    # Block means over a coarse grid do not depend on how the picture was resized.
    coarse, expected = (
        np.stack([[block.mean() for block in np.array_split(row, 12, axis=1)] for row in np.array_split(image.mean(2), 8)])
        for image in (pixels, plain)
    )
    assert np.corrcoef(coarse.ravel(), expected.ravel())[0, 1] > 0.99
    np.testing.assert_allclose(coarse, expected, atol=20)  # one grey is luma, the other is the mean of the channels


def test_orientation_tags_change_no_pixel() -> None:
    """Orientations 1 to 4 keep the size. Each file stores the upright picture, turned back."""
    upright = decoded("exif_orientation_1.jpg")
    assert upright is not None
    stored = {2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 6: np.rot90(upright), 8: np.rot90(upright, -1)}
    for orientation, expected in stored.items():
        pixels = decoded(f"exif_orientation_{orientation}.jpg")
        assert pixels is not None and pixels.shape == expected.shape
        assert np.abs(pixels.astype(int) - expected).mean() < 8, "up to JPEG noise"


@pytest.mark.parametrize("name", ["exif_focal_zero.jpg", "exif_focal_absurd.jpg"])
def test_impossible_focal_lengths_are_ignored(name: str) -> None:
    assert read_header(FOLDER / "images" / name).focal_length_px is None


def test_every_file_with_a_photo_extension_is_listed() -> None:
    assert set(list_images(FOLDER / "images")) == {row["file"] for row in rows()} - {"noext_jpeg"}


def _peak_megabytes(name: str) -> float:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert decoded(name) is None
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def test_refusing_the_decompression_bomb_takes_little_memory() -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_peak_megabytes, ("size_bomb_40000x40000.png",)) < 100
