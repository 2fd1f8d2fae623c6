"""Photos on disk: listing, masks, and every pixel format, decoded as independent arithmetic expects."""

from __future__ import annotations

import logging
import os
import struct
import unicodedata
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage

from sfm_lightglue.images import UnreadableImage, list_images, load_image, read_header, resize_longest

HEIGHT, WIDTH = 48, 64


def smooth(low: float, high: float, channels: int = 0) -> np.ndarray:
    """float64 (HEIGHT, WIDTH[, channels]): a ramp that reaches both ends of the range."""
    y, x = np.mgrid[0 : 1 : HEIGHT * 1j, 0 : 1 : WIDTH * 1j]
    ramps = [(x + y) / 2, x * y, 1 - x, 1 - y * x][: max(1, channels)]
    ramp = low + (high - low) * np.stack(ramps, axis=2)
    return ramp if channels else ramp[..., 0]


def rgb(channels: int = 3) -> np.ndarray:
    return smooth(0, 255, channels).round().astype(np.uint8)


def decode(path: Path) -> np.ndarray:
    return load_image(path.parent, path.name).pixels


def png(path: Path, rows: np.ndarray, bit_depth: int, colour_type: int) -> Path:
    """A PNG built byte by byte from big-endian rows (h, bytes)."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, bit_depth, colour_type, 0, 0, 0)
    filtered = b"".join(b"\0" + row.tobytes() for row in rows)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(filtered)) + chunk(b"IEND", b"")
    )
    return path


# --- listing -----------------------------------------------------------------------------------------------------------


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


def test_photos_are_listed_sorted_with_forward_slashes_at_any_depth(tmp_path: Path) -> None:
    touch(tmp_path, "b.jpg", "a.PNG", "sub/z.JpEg", "sub/deep/y.tiff", "folder.jpg/inside.jpg", "notes.txt", "noext", "a.jpg.txt")
    assert list_images(tmp_path) == ["a.PNG", "b.jpg", "folder.jpg/inside.jpg", "sub/deep/y.tiff", "sub/z.JpEg"]


def test_folders_can_be_left_out_but_not_the_folder_itself(tmp_path: Path) -> None:
    for name in ("a.jpg", "masks/a.jpg.png", "masks2/b.jpg", "sub/out/plots/c.png", "sub/d.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    without = [tmp_path, tmp_path.parent, tmp_path / "masks", tmp_path / "sub" / "x" / ".." / "out", "elsewhere"]
    assert list_images(tmp_path, without=without) == ["a.jpg", "masks2/b.jpg", "sub/d.jpg"]


def test_hidden_folders_and_the_companion_files_of_macos_are_skipped_but_not_hidden_photos(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "._a.jpg", "sub/._b.jpg", ".thumbnails/a.jpg", "sub/.cache/c.jpg", ".hidden.jpg")
    assert list_images(tmp_path) == [".hidden.jpg", "a.jpg"]


def test_composed_and_decomposed_letters_are_two_names(tmp_path: Path) -> None:
    names = [unicodedata.normalize(form, "café.jpg") for form in ("NFC", "NFD")]
    touch(tmp_path, *names)
    if len(list(tmp_path.iterdir())) == 1:
        pytest.skip("the file system merges the two names")
    assert list_images(tmp_path) == sorted(names)


def test_names_that_are_not_utf8_are_left_out_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "a.jpg")
    try:
        (tmp_path / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"")
    except OSError:
        pytest.skip("the file system refuses names that are not UTF-8")
    with caplog.at_level(logging.WARNING):
        assert list_images(tmp_path) == ["a.jpg"]
    assert "caf\\udce9.jpg" in caplog.text and "rename" in caplog.text


def test_a_missing_folder_and_a_folder_without_photos_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        list_images(tmp_path / "photos")
    touch(tmp_path, "readme.txt")
    with pytest.raises(FileNotFoundError, match=r"contains no photos: .*\.jpg"):
        list_images(tmp_path)


# --- decoding: every pixel format ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "ppm", "webp"])
def test_eight_bit_rgb_is_decoded_as_it_is(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    PILImage.fromarray(rgb()).save(path, **({"lossless": True} if suffix == "webp" else {}))
    np.testing.assert_array_equal(decode(path), rgb())


@pytest.mark.parametrize("suffix", ["png", "pgm", "gif"])
def test_grey_is_repeated_in_three_channels(tmp_path: Path, suffix: str) -> None:
    PILImage.fromarray(rgb(0)).save(tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(decode(tmp_path / f"a.{suffix}"), np.repeat(rgb(0)[..., None], 3, axis=2))


def expected_grey(values: np.ndarray, full: float) -> np.ndarray:
    return np.repeat(np.clip(np.floor(values / full * 255 + 0.5), 0, 255).astype(np.uint8)[..., None], 3, axis=2)


def close(pixels: np.ndarray, expected: np.ndarray, tolerance: int = 1) -> None:
    assert pixels.dtype == np.uint8 and pixels.shape == expected.shape
    np.testing.assert_allclose(pixels.astype(int), expected.astype(int), atol=tolerance)


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_grey_is_scaled_by_the_bits_in_use(tmp_path: Path, suffix: str, bits: int) -> None:
    values = smooth(0, 2**bits - 1).round().astype(np.uint16)
    PILImage.fromarray(values).save(tmp_path / f"a.{suffix}")
    close(decode(tmp_path / f"a.{suffix}"), expected_grey(values, 2**bits - 1))


def test_sixteen_bit_pgm_is_scaled(tmp_path: Path) -> None:
    values = smooth(0, 65535).round().astype(">u2")
    (tmp_path / "a.pgm").write_bytes(b"P5 %d %d 65535\n" % (WIDTH, HEIGHT) + values.tobytes())
    close(decode(tmp_path / "a.pgm"), expected_grey(values, 65535))


@pytest.mark.parametrize("colour_type, channels", [(2, 3), (6, 4)])
def test_sixteen_bit_colour_keeps_its_upper_bytes(tmp_path: Path, colour_type: int, channels: int) -> None:
    values = smooth(0, 65535, channels)
    values[..., 3:] = 65535
    rows = values.round().astype(">u2").reshape(HEIGHT, -1)
    close(decode(png(tmp_path / "a.png", rows, 16, colour_type)), (values[..., :3] / 257).round())


@pytest.mark.parametrize("top, full", [(1.0, 1.0), (1.05, 1.0), (0.4, 1.0), (255.0, 255.0), (4095.0, 4095.0)])
def test_float_pictures_are_scaled_by_their_range(tmp_path: Path, top: float, full: float) -> None:
    """The range also counts as 0..1 if resampling overshot it a little."""
    values = smooth(0, top).astype(np.float32)
    PILImage.fromarray(values).save(tmp_path / "a.tif")
    close(decode(tmp_path / "a.tif"), expected_grey(values, full))


def test_pixels_that_are_not_finite_are_black_and_leave_the_others_alone(tmp_path: Path) -> None:
    values = smooth(0, 1).astype(np.float32)
    values[5, :3] = np.nan, np.inf, -np.inf
    PILImage.fromarray(values).save(tmp_path / "a.tif")
    expected = values.copy()
    expected[5, :3] = 0
    close(decode(tmp_path / "a.tif"), expected_grey(expected, 1))


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_a_black_picture_of_many_bits_is_black(tmp_path: Path, dtype: type) -> None:
    PILImage.fromarray(np.zeros((HEIGHT, WIDTH), dtype)).save(tmp_path / "a.tif")
    assert not decode(tmp_path / "a.tif").any()


def test_cmyk_is_ink_on_white_paper(tmp_path: Path) -> None:
    inks = rgb(4)
    PILImage.fromarray(inks, "CMYK").save(tmp_path / "a.tif")
    light = 1 - inks.astype(float) / 255
    close(decode(tmp_path / "a.tif"), (light[..., :3] * light[..., 3:] * 255).round())


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_parts_are_white_paper(tmp_path: Path, mode: str) -> None:
    channels = rgb(4) if mode == "RGBA" else rgb(4)[..., [0, 3]]
    PILImage.fromarray(channels, mode).save(tmp_path / "a.png")
    colour, opacity = channels[..., :-1].astype(float), channels[..., -1:] / 255
    expected = np.broadcast_to(colour * opacity + 255 * (1 - opacity), (HEIGHT, WIDTH, 3))
    close(decode(tmp_path / "a.png"), expected.round())


def test_palettes_are_looked_up(tmp_path: Path) -> None:
    palette = np.random.default_rng(0).integers(0, 256, (256, 3), np.uint8)
    picture = PILImage.fromarray(rgb(0), "P")
    picture.putpalette(palette.tobytes())
    picture.save(tmp_path / "a.png")
    np.testing.assert_array_equal(decode(tmp_path / "a.png"), palette[rgb(0)])


def test_a_transparent_palette_colour_is_white(tmp_path: Path) -> None:
    palette = np.random.default_rng(0).integers(0, 256, (256, 3), np.uint8)
    picture = PILImage.fromarray(rgb(0), "P")
    picture.putpalette(palette.tobytes())
    picture.save(tmp_path / "a.png", transparency=7)
    palette[7] = 255
    np.testing.assert_array_equal(decode(tmp_path / "a.png"), palette[rgb(0)])


def test_one_bit_is_black_and_white(tmp_path: Path) -> None:
    bits = rgb(0) > 100
    PILImage.fromarray(bits).save(tmp_path / "a.png")
    np.testing.assert_array_equal(decode(tmp_path / "a.png"), np.repeat(bits[..., None], 3, axis=2) * np.uint8(255))


@pytest.mark.parametrize("suffix", ["gif", "tif"])
def test_the_first_frame_counts(tmp_path: Path, suffix: str) -> None:
    frames = [PILImage.fromarray(np.full((HEIGHT, WIDTH), value, np.uint8)) for value in (10, 200)]
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:])
    assert (decode(tmp_path / f"a.{suffix}") == 10).all()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "I;16", "P"])
def test_decoded_and_resized_pixels_are_arrays_that_torch_accepts(tmp_path: Path, mode: str) -> None:
    """torch warns about arrays that are not writeable."""
    PILImage.fromarray(rgb()).convert("L" if mode == "I;16" else mode).convert(mode).save(tmp_path / "a.png")
    pixels = decode(tmp_path / "a.png")
    for array in (pixels, resize_longest(pixels, 32)):
        assert array.dtype == np.uint8 and array.flags.c_contiguous and array.flags.writeable


# --- masks ---------------------------------------------------------------------------------------------------------------


def photo_with_mask(folder: Path, mask: PILImage.Image, name: str = "sub/a.jpg") -> np.ndarray | None:
    """The mask that is read for the photo `name`. Its file is named as COLMAP does."""
    for path in (folder / "photos" / name, folder / "masks" / f"{name}.png"):
        path.parent.mkdir(parents=True, exist_ok=True)
    PILImage.fromarray(rgb()).save(folder / "photos" / name)
    mask.save(folder / "masks" / f"{name}.png")
    return load_image(folder / "photos", name, masks=folder / "masks").mask


def left_half() -> np.ndarray:
    return np.arange(WIDTH)[None].repeat(HEIGHT, 0) < WIDTH // 2


def test_a_mask_has_the_name_of_its_photo_with_png_added_and_black_is_masked_out(tmp_path: Path) -> None:
    mask = photo_with_mask(tmp_path, PILImage.fromarray(left_half().astype(np.uint8) * 255))
    assert mask is not None and mask.dtype == np.bool_
    np.testing.assert_array_equal(mask, left_half())


def test_photos_without_a_mask_are_used_whole(tmp_path: Path) -> None:
    photo_with_mask(tmp_path, PILImage.new("L", (WIDTH, HEIGHT)))
    PILImage.fromarray(rgb()).save(tmp_path / "photos" / "other.jpg")
    assert load_image(tmp_path / "photos", "other.jpg", masks=tmp_path / "masks").mask is None
    assert load_image(tmp_path / "photos", "sub/a.jpg").mask is None


def test_a_mask_of_another_size_is_sampled_to_the_photo(tmp_path: Path) -> None:
    for values in (left_half()[::2, ::2], np.kron(left_half(), np.ones((3, 3)))):
        mask = photo_with_mask(tmp_path, PILImage.fromarray(values.astype(np.uint8) * 255))
        np.testing.assert_array_equal(mask, left_half())


@pytest.mark.parametrize("mode, value", [("1", 1), ("L", 1), ("L", 255), ("I;16", 1), ("I;16", 255), ("I;16", 65535)])
def test_everything_that_is_not_black_is_kept(tmp_path: Path, mode: str, value: int) -> None:
    """Also in label images, which have small values."""
    dtype = {"1": np.bool_, "L": np.uint8, "I;16": np.uint16}[mode]
    mask = photo_with_mask(tmp_path, PILImage.fromarray((left_half() * value).astype(dtype)))
    np.testing.assert_array_equal(mask, left_half())


def test_colour_and_palette_masks_are_black_only_where_their_colour_is_black(tmp_path: Path) -> None:
    colour = left_half()[..., None] * np.array([0, 0, 255], np.uint8)
    for mode in ("RGB", "RGBA", "P"):
        np.testing.assert_array_equal(photo_with_mask(tmp_path, PILImage.fromarray(colour).convert(mode)), left_half())


def test_a_broken_mask_is_named_in_the_reason(tmp_path: Path) -> None:
    photo_with_mask(tmp_path, PILImage.new("L", (WIDTH, HEIGHT)))
    (tmp_path / "masks" / "sub" / "a.jpg.png").write_bytes(b"no picture")
    with pytest.raises(UnreadableImage, match=r"mask .*a\.jpg\.png"):
        load_image(tmp_path / "photos", "sub/a.jpg", masks=tmp_path / "masks")


# --- photos that cannot be used --------------------------------------------------------------------------------------------


def unreadable(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(UnreadableImage) as caught:
        decode(path)
    return str(caught.value)


def encoded(folder: Path, suffix: str) -> bytes:
    PILImage.fromarray(rgb()).save(folder / f"whole.{suffix}")
    return (folder / f"whole.{suffix}").read_bytes()


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp", "bmp", "jp2"])
def test_photos_cut_anywhere_are_unreadable_and_nothing_else(tmp_path: Path, suffix: str) -> None:
    whole = encoded(tmp_path, suffix)
    for length in np.linspace(1, len(whole) * 0.9, 12).astype(int):
        assert "unreadable image" in unreadable(tmp_path / f"cut.{suffix}", whole[:length])


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp", "gif"])
def test_photos_with_random_wrong_bytes_are_decoded_or_unreadable_and_nothing_else(tmp_path: Path, suffix: str) -> None:
    rng, whole, path = np.random.default_rng(0), encoded(tmp_path, suffix), tmp_path / f"wrong.{suffix}"
    for _ in range(30):
        content = np.frombuffer(whole, np.uint8).copy()
        content[rng.integers(0, len(content), 10)] = rng.integers(0, 256, 10)
        path.write_bytes(content.tobytes())
        for read in (decode, read_header):
            try:
                read(path)
            except UnreadableImage as error:
                assert 10 < len(str(error)) <= 300


@pytest.mark.skipif(find_spec("pillow_heif") is not None, reason="HEIC can be read here")
def test_a_heic_photo_names_the_package_that_reads_it(tmp_path: Path) -> None:
    (tmp_path / "a.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    with pytest.raises(UnreadableImage, match="pip install pillow-heif"):
        load_image(tmp_path, "a.HEIC")


def test_empty_text_and_missing_files_are_unreadable_with_a_reason(tmp_path: Path) -> None:
    assert unreadable(tmp_path / "a.jpg", b"") == "the file is empty"
    assert "cannot identify" in unreadable(tmp_path / "b.jpg", b"<html>404 not found</html>")
    with pytest.raises(UnreadableImage, match="No such file"):
        load_image(tmp_path, "c.jpg")


@pytest.mark.parametrize("size", [(1, 1), (15, 400), (400, 15)])
def test_photos_too_small_for_a_keypoint_are_unreadable(tmp_path: Path, size: tuple[int, int]) -> None:
    PILImage.new("RGB", size).save(tmp_path / "a.png")
    with pytest.raises(UnreadableImage, match=f"{size[0]} x {size[1]} px: a side is shorter than 16 px"):
        decode(tmp_path / "a.png")


def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    """The header promises 1.6 gigapixels, and decoding them would take 4.8 GB."""
    path = png(tmp_path / "bomb.png", np.zeros((HEIGHT, WIDTH), np.uint8), 8, 0)
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">II", 40000, 40000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    assert "40000 x 40000 px" in unreadable(path, bytes(content))


def test_reading_photos_in_threads_leaves_the_warning_filters_as_they_were(tmp_path: Path) -> None:
    for number in range(40):
        PILImage.fromarray(rgb()).save(tmp_path / f"{number}.png")
    load_image(tmp_path, "0.png")
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: load_image(tmp_path, f"{number % 40}.png"), range(400)))
    assert list(warnings.filters) == before
