"""Pictures of more than 8 bits: ordinary ones keep the range of their bits, narrow ones are stretched by camera."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage

from sfm_lightglue.images import camera_ranges, load_image

SIZE = 64, 48


def ramp(low: float, high: float, dtype: type = np.uint16) -> np.ndarray:
    """(48, 64): values from `low` to `high` in random order."""
    values = np.linspace(low, high, SIZE[0] * SIZE[1])
    return np.random.default_rng(0).permutation(values).reshape(SIZE[1], SIZE[0]).astype(dtype)


def write(folder: Path, name: str, values: np.ndarray) -> np.ndarray:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    PILImage.fromarray(values).save(folder / name)
    return values


def grey(folder: Path, name: str, names: list[str] | None = None) -> np.ndarray:
    """uint8 (h, w): the picture alone, or by the range of its camera."""
    ranges = None if names is None else camera_ranges(folder, names)
    pixels = load_image(folder, name, ranges=ranges).pixels
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0]


@pytest.mark.parametrize("low, high, dtype", [(29000, 29600, np.uint16), (290.0, 296.0, np.float32), (0.4, 0.41, np.float32)])
def test_a_narrow_range_fills_the_grey_levels_in_order(tmp_path: Path, low: float, high: float, dtype: type) -> None:
    values = write(tmp_path, "a.tif", ramp(low, high, dtype))
    for pixels in (grey(tmp_path, "a.tif"), grey(tmp_path, "a.tif", ["a.tif"])):
        assert len(np.unique(pixels)) > 180, "three grey levels by the range of the bits"
        order = np.argsort(values.ravel(), kind="stable")
        assert (np.diff(pixels.ravel()[order].astype(int)) >= 0).all()


def test_negative_values_are_not_lost(tmp_path: Path) -> None:
    """Degrees Celsius."""
    write(tmp_path, "a.tif", ramp(-20, 40, np.float32))
    assert len(np.unique(grey(tmp_path, "a.tif"))) > 180


def test_a_value_has_one_brightness_in_all_photos_of_a_camera_whatever_their_order(tmp_path: Path) -> None:
    names = [f"cam/{number}.png" for number in range(6)]
    values = {name: write(tmp_path, name, ramp(29000 + 50 * n, 29400 + 100 * n)) for n, name in enumerate(names)}
    ranges = camera_ranges(tmp_path, names)
    assert len(set(ranges.values())) == 1
    brightness: dict[int, set[int]] = {}
    for name in names:
        pixels = load_image(tmp_path, name, ranges=ranges).pixels[..., 0]
        for value, level in zip(values[name].ravel().tolist(), pixels.ravel().tolist(), strict=True):
            brightness.setdefault(value, set()).add(level)
    assert all(len(levels) == 1 for levels in brightness.values())
    assert camera_ranges(tmp_path, random.Random(0).sample(names, len(names)), num_threads=3) == ranges


def test_cameras_are_told_apart_by_folder_size_and_kind_of_pixels(tmp_path: Path) -> None:
    write(tmp_path, "a/0.png", ramp(29000, 29600))
    write(tmp_path, "b/0.png", ramp(9000, 9100))
    write(tmp_path, "b/1.png", ramp(100, 120)[:40])
    write(tmp_path, "b/2.tif", ramp(290, 296, np.float32))
    ranges = camera_ranges(tmp_path, ["a/0.png", "b/0.png", "b/1.png", "b/2.tif"])
    assert len({*ranges.values()}) == 4 and all(high - low < 900 for low, high in ranges.values())


def test_hot_and_dead_pixels_and_parts_without_data_do_not_count(tmp_path: Path) -> None:
    values = ramp(29000, 29600)
    values[0, :8], values[1, :8] = 65535, 3
    values[10:20] = 0
    write(tmp_path, "a.png", values)
    assert len(np.unique(grey(tmp_path, "a.png")[20:])) > 150
    assert not grey(tmp_path, "a.png")[10:20].any()


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("together", [True, False])
def test_ordinary_photos_keep_the_range_of_their_bits(tmp_path: Path, bits: int, together: bool) -> None:
    full = 2**bits - 1
    values = write(tmp_path, "a.png", ramp(0.1 * full, full))
    names = ["a.png"] if together else None
    np.testing.assert_array_equal(grey(tmp_path, "a.png", names), np.rint(values * (255 / full)).astype(np.uint8))
    assert camera_ranges(tmp_path, ["a.png"]) == {}


def test_a_dull_photo_among_ordinary_ones_of_its_camera_is_not_stretched(tmp_path: Path) -> None:
    write(tmp_path, "a.png", ramp(0, 65535))
    dull = write(tmp_path, "b.png", ramp(40000, 41000))
    np.testing.assert_array_equal(grey(tmp_path, "b.png", ["a.png", "b.png"]), np.rint(dull / 257).astype(np.uint8))


@pytest.mark.parametrize("value", [0, 7, 29000, 65535])
def test_a_picture_of_one_value_stays_as_it_is(tmp_path: Path, value: int) -> None:
    write(tmp_path, "a.png", np.full(SIZE[::-1], value, np.uint16))
    assert len(np.unique(grey(tmp_path, "a.png"))) == 1
    assert grey(tmp_path, "a.png", ["a.png"])[0, 0] == round(value / (255 if value == 7 else 65535 if value else 1) * 255 - 1e-9)


def test_photos_of_eight_bits_and_unreadable_ones_have_no_range(tmp_path: Path) -> None:
    PILImage.new("RGB", SIZE).save(tmp_path / "a.jpg")
    (tmp_path / "b.tif").write_bytes(b"no picture")
    assert camera_ranges(tmp_path, ["a.jpg", "b.tif", "gone.tif"]) == {}
