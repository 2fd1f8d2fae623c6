"""Which files are decoded: only formats that count as photos, and sizes that fit into the memory of the machine."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage

from sfm_lightglue.images import UnreadableImage, decoding, limits, load_image, read_header
from sfm_lightglue.memory import MemoryBudget

# --- formats ---------------------------------------------------------------------------------------------------------------


def test_an_eps_file_that_is_named_jpg_starts_no_interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "gs"
    script.write_text(f"#!/bin/sh\ntouch '{tmp_path / 'started'}'\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)  # it may have looked for Ghostscript before
    (tmp_path / "holiday.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n%%EndComments\nshowpage\n")
    with pytest.raises(UnreadableImage, match="cannot identify"):
        load_image(tmp_path, "holiday.jpg")
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize("format_", ["TGA", "PCX", "SGI", "ICO", "PDF", "DDS"])
def test_formats_that_do_not_count_as_photos_are_refused_under_any_name(tmp_path: Path, format_: str) -> None:
    PILImage.new("RGB", (32, 32)).save(tmp_path / "a.jpg", format=format_)
    with pytest.raises(UnreadableImage):
        load_image(tmp_path, "a.jpg")


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_pixels_of_a_tiff_stay_as_stored(tmp_path: Path, orientation: int, compression: str | None) -> None:
    """PIL turns TIFF files by their orientation, and no others; COLMAP does not."""
    pixels, exif = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8), PILImage.Exif()
    exif[0x0112] = orientation
    PILImage.fromarray(pixels).save(tmp_path / "a.tif", exif=exif, compression=compression)
    image = load_image(tmp_path, "a.tif")
    np.testing.assert_array_equal(image.pixels, pixels)
    assert read_header(tmp_path / "a.tif").size == image.size == (64, 48)
    with decoding.open_photo(tmp_path / "a.tif") as opened:
        assert decoding.exif_orientation(opened) == orientation


# --- sizes -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def pil_limit(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """PIL's limit as a fresh process has it."""
    monkeypatch.setattr(PILImage, "MAX_IMAGE_PIXELS", 1000)
    decoding._prepare_pil.cache_clear()
    yield
    decoding._prepare_pil.cache_clear()


def test_the_limit_follows_the_memory_and_not_pils_constant(tmp_path: Path, pil_limit: None) -> None:
    """The photo is larger than twice PIL's limit here, as a phone's 200 megapixels are larger than twice its default."""
    PILImage.new("RGB", (64, 48)).save(tmp_path / "a.jpg")
    assert load_image(tmp_path, "a.jpg").size == (64, 48)


PHONE = (16320, 12240)


@pytest.mark.parametrize(
    "size, mode, memory, file_bytes, reason",
    [
        (PHONE, "RGB", 8, 40_000_000, ""),
        (PHONE, "RGB", 4, 40_000_000, "take 2.4 GB to decode, this machine has 4.3 GB"),
        (PHONE, "I;16", 8, 400_000_000, "take 6.4 GB"),
        ((12000, 9000), "RGB", 1, 20_000_000, ""),
        ((40000, 40000), "1", 1000, 200_000, "no photo is compressed that much"),
        ((60000, 60000), "RGB", 1000, 500_000_000, ""),
    ],
)
def test_a_photo_is_decoded_if_half_of_the_memory_holds_it(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], mode: str, memory: int, file_bytes: int, reason: str
) -> None:
    monkeypatch.setattr(limits, "memory_bytes", lambda: memory << 30)
    found = limits.too_large(size, mode, file_bytes)
    assert reason in found and bool(reason) == bool(found)


def test_photos_are_decoded_together_only_as_far_as_the_memory_allows() -> None:
    budget, running, peak, lock = MemoryBudget(100), 0, 0, threading.Lock()

    def decode() -> None:
        nonlocal running, peak
        with budget.reserved(40):
            with lock:
                running += 1
                peak = max(peak, running)
            threading.Event().wait(0.01)
            with lock:
                running -= 1

    threads = [threading.Thread(target=decode) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert peak == 2
    with budget.reserved(1000):  # a photo that is too large for the budget goes alone
        pass


# --- very large photos ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(504, 352), (501, 351), (351, 501)])
@pytest.mark.parametrize("longest", [50, 63, 125, 126, 250, 252, 9000])
def test_a_jpeg_is_decoded_at_a_part_of_its_size(tmp_path: Path, size: tuple[int, int], longest: int) -> None:
    """Each pixel is the mean of the pixels that it covers."""
    factor = max([1, *(factor for factor in (2, 4, 8) if max(size) >= factor * longest)])
    y, x = np.mgrid[0 : size[1], 0 : size[0]]
    pixels = np.stack([x * 250 / size[0], y * 250 / size[1], (x + y) * 100 / size[0]], axis=2).astype(np.uint8)
    PILImage.fromarray(pixels).save(tmp_path / "a.jpg", quality=95, subsampling=0)
    image = load_image(tmp_path, "a.jpg", longest=longest)
    assert image.full_size == (None if factor == 1 else size)
    assert image.size == (-(-size[0] // factor), -(-size[1] // factor)) and max(image.size) >= min(longest, max(size))
    whole = pixels[: size[1] // factor * factor, : size[0] // factor * factor].astype(float)
    means = whole.reshape(size[1] // factor, factor, size[0] // factor, factor, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(image.pixels[: means.shape[0], : means.shape[1]], means, atol=6)  # JPEG noise


def test_other_formats_are_decoded_whole(tmp_path: Path) -> None:
    for suffix in ("jpg", "png"):
        PILImage.new("RGB", (1000, 700)).save(tmp_path / f"a.{suffix}")
    assert load_image(tmp_path, "a.jpg", longest=100).size == (125, 88)
    assert load_image(tmp_path, "a.png", longest=100).size == load_image(tmp_path, "a.jpg").size == (1000, 700)


@pytest.mark.slow
def test_a_photo_of_200_megapixels_is_read(tmp_path: Path) -> None:
    small = PILImage.fromarray(np.random.default_rng(0).integers(0, 256, (765, 1020), np.uint8))
    small.resize(PHONE, PILImage.Resampling.NEAREST).save(tmp_path / "a.jpg", quality=60)
    assert read_header(tmp_path / "a.jpg").size == PHONE
    image = load_image(tmp_path, "a.jpg", longest=3200)
    assert image.size == (4080, 3060) and image.full_size == PHONE and image.pixels.std() > 40
