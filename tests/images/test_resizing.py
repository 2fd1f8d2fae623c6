"""Photos resized to a longest side, and converted to grey."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image as PILImage

from sfm_lightglue.images import resize_longest, to_grey

PIXELS = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)


@pytest.mark.parametrize(
    "size, resize_max, expected",
    [
        ((1000, 500), 100, (100, 50)),
        ((500, 1000), 100, (50, 100)),
        ((800, 533), 400, (400, 266)),  # 266.5 is rounded to the even number
        ((801, 534), 400, (400, 267)),  # 266.67
        ((1000, 17), 50, (50, 1)),  # 0.85
        ((3000, 20), 30, (30, 1)),  # 0.2, but at least 1
        ((100, 50), 100, (100, 50)),
        ((100, 50), 1600, (100, 50)),
        ((100, 50), None, (100, 50)),
    ],
)
def test_the_longest_side_is_reduced_and_by_default_not_enlarged(
    size: tuple[int, int], resize_max: int | None, expected: tuple[int, int]
) -> None:
    resized = resize_longest(np.zeros((size[1], size[0], 3), np.uint8), resize_max)
    assert resized.shape == (expected[1], expected[0], 3) and resized.dtype == np.uint8


@pytest.mark.parametrize(
    "size, resize_max, expected",
    [
        ((640, 480), 1024, (1024, 768)),
        ((150, 333), 600, (270, 600)),  # 270.27
        ((640, 480), 1600, (1280, 960)),  # twice, not 2.5 times
        ((5, 7), 1024, (10, 14)),
        ((1000, 500), 100, (100, 50)),
        ((100, 50), 100, (100, 50)),
        ((100, 50), None, (100, 50)),
    ],
)
def test_a_small_picture_is_enlarged_on_request(size: tuple[int, int], resize_max: int | None, expected: tuple[int, int]) -> None:
    resized = resize_longest(np.zeros((size[1], size[0], 3), np.uint8), resize_max, 2.0)
    assert resized.shape == (expected[1], expected[0], 3) and resized.dtype == np.uint8


def test_fine_stripes_are_averaged_and_not_aliased() -> None:
    stripes = np.zeros((240, 240, 3), np.uint8)
    stripes[:, ::2] = 200
    inner = resize_longest(stripes, 60)[5:-5, 5:-5]
    np.testing.assert_allclose(inner, 100, atol=2)


def test_a_picture_of_the_right_size_is_returned_unchanged() -> None:
    np.testing.assert_array_equal(resize_longest(PIXELS, PIXELS.shape[1]), PIXELS)


def test_grey_is_the_luma_of_bt601_in_0_to_1() -> None:
    pixels = np.array([[[255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255], [0, 0, 0]]], np.uint8)
    grey = to_grey(pixels)
    np.testing.assert_allclose(grey, [[1, 0.299, 0.587, 0.114, 0]], atol=1e-6)
    assert grey.dtype == np.float32
    pil = np.asarray(PILImage.fromarray(PIXELS).convert("L"))
    np.testing.assert_allclose(to_grey(PIXELS) * 255, pil, atol=1)
