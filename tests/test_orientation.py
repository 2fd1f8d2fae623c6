"""Orientation: the maps between the stored and the upright frame are exact, for all eight codes of EXIF."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as PILImage
from PIL import ImageOps

from sfm_lightglue import orientation as turning
from sfm_lightglue.products import Features, Image

CODES = range(1, 9)
SIZE = (13, 7)


def upright_by_pil(pixels: np.ndarray, code: int) -> np.ndarray:
    """What Pillow makes of a photo with this EXIF orientation."""
    stored, exif = io.BytesIO(), PILImage.Exif()
    exif[0x0112] = code
    PILImage.fromarray(pixels).save(stored, "PNG", exif=exif)
    return np.asarray(ImageOps.exif_transpose(PILImage.open(stored)))


def random_features(code: int = 1, seed: int = 0) -> Features:
    rng = np.random.default_rng(seed)
    return Features(
        keypoints=(rng.random((20, 2)) * SIZE - 0.5).astype(np.float32),
        scores=rng.random(20).astype(np.float32),
        descriptors=rng.random((20, 4)).astype(np.float32),
        image_size=SIZE,
        scales=rng.random(20).astype(np.float32),
        orientations=rng.uniform(-np.pi, np.pi, 20).astype(np.float32),
        orientation=code,
    )


@pytest.mark.parametrize("code", CODES)
def test_pixels_are_turned_as_pillow_turns_them(code: int) -> None:
    pixels = np.random.default_rng(code).integers(0, 256, (SIZE[1], SIZE[0], 3), np.uint8)
    turned = turning.turn_pixels(pixels, code)
    np.testing.assert_array_equal(turned, upright_by_pil(pixels, code))
    np.testing.assert_array_equal(turning.turn_pixels_back(turned, code), pixels)
    assert turned.flags.c_contiguous, "torch takes no arrays with negative steps"
    assert (turned.shape[1], turned.shape[0]) == turning.upright_size(SIZE, code)
    assert turning.turn_pixels(pixels[..., 0], code).shape == turned.shape[:2]


@pytest.mark.parametrize("code", CODES)
def test_a_marked_pixel_lands_on_its_point_without_a_shift(code: int) -> None:
    """The centre of each pixel has whole coordinates in both frames, so half a pixel of error would show."""
    for x, y in [(0, 0), (12, 0), (0, 6), (12, 6), (5, 2)]:
        pixels = np.zeros((SIZE[1], SIZE[0]), np.uint8)
        pixels[y, x] = 255
        rows, columns = np.nonzero(upright_by_pil(pixels, code))
        seen = np.array([[columns[0], rows[0]]])
        assert turning.to_upright(np.array([[x, y]]), SIZE, code).tolist() == seen.tolist()
        assert turning.to_stored(seen, SIZE, code).tolist() == [[x, y]]


@given(
    st.sampled_from([*CODES]),
    st.integers(16, 60_000),
    st.integers(16, 60_000),
    st.floats(0, 1, width=32),
    st.floats(0, 1, width=32),
)
def test_the_way_there_and_back_is_exact_to_float32(code: int, width: int, height: int, x: float, y: float) -> None:
    stored = np.array([[x * width - 0.5, y * height - 0.5]], np.float32)
    upright = turning.to_upright(stored, (width, height), code)
    back = turning.to_stored(upright, (width, height), code)
    spacing = float(np.spacing(np.float32(max(width, height))))
    assert np.abs(back - stored).max() <= spacing / 2, "one rounding of the upright point, at most half a step of float32"
    limits = np.array(turning.upright_size((width, height), code))
    assert (upright >= -0.5 - spacing).all() and (upright <= limits - 0.5 + spacing).all()


def test_upright_points_are_not_touched_at_all() -> None:
    points = np.array([[1e-7, 0.1], [1234.567, 4e-9]], np.float32)
    np.testing.assert_array_equal(turning.to_stored(points, (4000, 3000), 1), points)
    features = random_features()
    assert turning.upright_features(features) is features and turning.stored_features(features, 1) is features


@pytest.mark.parametrize("code", CODES)
def test_angles_turn_with_the_points(code: int) -> None:
    """A step along the angle in the upright photo is a step along the converted angle in the stored photo."""
    angles = np.linspace(-np.pi, np.pi, 25)[:-1].astype(np.float32)
    start = np.full((len(angles), 2), 3.0)
    upright = start + np.stack([np.cos(angles), np.sin(angles)], axis=1)
    step = turning.to_stored(upright, SIZE, code) - turning.to_stored(start, SIZE, code)
    stored = turning.angles_to_stored(angles, code)
    np.testing.assert_allclose(np.stack([np.cos(stored), np.sin(stored)], axis=1), step, atol=2e-6)  # float32 of points up to 13
    np.testing.assert_allclose(np.exp(1j * turning.angles_to_upright(stored, code)), np.exp(1j * angles), atol=5e-7)
    assert stored.dtype == np.float32 and (np.abs(stored) <= np.float32(np.pi)).all()


@pytest.mark.parametrize("code", CODES)
def test_features_of_the_upright_photo_go_to_the_stored_photo_and_back(code: int) -> None:
    upright = dataclasses.replace(random_features(), image_size=turning.upright_size(SIZE, code))
    stored = turning.stored_features(upright, code)
    assert stored.image_size == SIZE and stored.orientation == code
    np.testing.assert_array_equal(stored.keypoints, turning.to_stored(upright.keypoints, SIZE, code))
    np.testing.assert_array_equal(stored.scales, upright.scales)
    np.testing.assert_array_equal(stored.descriptors, upright.descriptors)
    back = turning.upright_features(stored)
    assert back.image_size == upright.image_size and back.orientation == 1
    np.testing.assert_allclose(back.keypoints, upright.keypoints, atol=5e-7)
    np.testing.assert_allclose(back.orientations, upright.orientations, atol=5e-7)


def test_a_mask_is_turned_with_its_photo() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (7, 13, 3), np.uint8)
    image = Image("a", pixels, mask=pixels[..., 0] > 99, orientation=6)
    upright = turning.upright_image(image)
    assert upright.size == (7, 13) and upright.orientation == 1 and upright.mask is not None
    np.testing.assert_array_equal(upright.mask, upright.pixels[..., 0] > 99)


@pytest.mark.parametrize("code", CODES)
def test_further_turns_are_turns_of_the_upright_picture(code: int) -> None:
    pixels = np.random.default_rng(code).integers(0, 256, (7, 13), np.uint8)
    for turns in range(-1, 5):
        further = turning.turn_pixels(pixels, turning.turned_further(code, turns))
        np.testing.assert_array_equal(further, np.rot90(turning.turn_pixels(pixels, code), -turns))


@pytest.mark.parametrize("code", CODES)
def test_colmap_gets_a_view_that_a_camera_can_have(code: int) -> None:
    """The keypoints of a mirrored photo are flipped left-right: then a rotation, without a mirror, leads to the upright photo."""
    features = random_features(code)
    points, expected = turning.colmap_keypoints(features), features.keypoints.astype(np.float64) + 0.5
    if code in (2, 4, 5, 7):
        expected[:, 0] = SIZE[0] - expected[:, 0]
    np.testing.assert_array_equal(points, expected)
    rotation = turning.camera_upright_from_stored(code)
    assert np.linalg.det(rotation) == pytest.approx(1)
    rays = np.column_stack([points - np.array(SIZE) / 2, np.ones(20)])
    upright = turning.upright_features(features)
    seen = upright.keypoints + 0.5 - np.array(upright.image_size) / 2
    np.testing.assert_allclose((rays @ rotation.T)[:, :2], seen, atol=1e-5)


def test_an_unknown_code_is_refused() -> None:
    for code in (0, 9, -1):
        with pytest.raises(ValueError, match="expected an EXIF code, 1 to 8"):
            turning.check_orientation(code)
