"""Turning photos upright: exact maps of pixels, points and angles between the stored and the upright frame of a photo.

An orientation is an EXIF code, 1 to 8. It says how the stored pixels must be turned, and for 2, 4, 5 and 7 also mirrored, to
stand upright. Everything on disk is in the stored frame. Extractors and matchers see the upright frame. Points are (x, y) px with
the centre of the top-left pixel at (0, 0) in both frames. Sizes are (width, height).

Source: EXIF 2.32, tag 274 (Orientation).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from jaxtyping import Float32, Float64, Num

from sfm_lightglue.products import Features, Image

UPRIGHT = 1
MIRRORED = (2, 4, 5, 7)
"""Codes of photos that are stored mirrored."""
QUARTER_TURN = 6
"""The code of a photo that must be turned by a quarter clockwise."""

_STORED_FROM_UPRIGHT = {
    1: np.array([[1, 0], [0, 1]]),
    2: np.array([[-1, 0], [0, 1]]),
    3: np.array([[-1, 0], [0, -1]]),
    4: np.array([[1, 0], [0, -1]]),
    5: np.array([[0, 1], [1, 0]]),
    6: np.array([[0, 1], [-1, 0]]),
    7: np.array([[0, -1], [-1, 0]]),
    8: np.array([[0, -1], [1, 0]]),
}
"""Code -> matrix from (x, y) of the upright photo to (x, y) of the stored photo, both counted from the centre of the photo."""


def check_orientation(orientation: int) -> None:
    """Raises: ValueError if it is not an EXIF code."""
    if orientation not in _STORED_FROM_UPRIGHT:
        raise ValueError(f"orientation {orientation!r} does not exist: expected an EXIF code, 1 to 8")


def turned_further(orientation: int, quarter_turns: int) -> int:
    """The code that turns a photo as `orientation` does and then by quarter turns clockwise."""
    turn = np.linalg.matrix_power(_STORED_FROM_UPRIGHT[QUARTER_TURN], quarter_turns % 4)
    return _code(_STORED_FROM_UPRIGHT[orientation] @ turn)


def unmirrored(orientation: int) -> int:
    """The code of the photo after its stored pixels are flipped left-right if they are mirrored: 1, 3, 6 or 8."""
    return _code(np.diag([-1, 1]) @ _STORED_FROM_UPRIGHT[orientation]) if orientation in MIRRORED else orientation


# --- arrays --------------------------------------------------------------------------------------------------------------


def upright_size(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """(width, height) px of the upright photo from those of the stored photo, and the other way round."""
    return size if _STORED_FROM_UPRIGHT[orientation][0, 0] else (size[1], size[0])


def to_stored(points: Num[np.ndarray, "n 2"], size: tuple[int, int], orientation: int) -> Float32[np.ndarray, "n 2"]:
    """Points of the upright photo as points of the stored photo, exact to the rounding of float32.

    Args:
        points: px of the upright photo.
        size: (width, height) px of the stored photo.
        orientation: EXIF code.
    """
    return _moved(points, _STORED_FROM_UPRIGHT[orientation], upright_size(size, orientation), size)


def to_upright(points: Num[np.ndarray, "n 2"], size: tuple[int, int], orientation: int) -> Float32[np.ndarray, "n 2"]:
    """Points of the stored photo as points of the upright photo: the inverse of `to_stored`, with the same arguments."""
    return _moved(points, _STORED_FROM_UPRIGHT[orientation].T, size, upright_size(size, orientation))


def angles_to_stored(angles: Num[np.ndarray, " n"], orientation: int) -> Float32[np.ndarray, " n"]:
    """Angles in the upright photo as angles in the stored photo, radians from x towards y, in -pi to pi."""
    return _turned_angles(angles, _STORED_FROM_UPRIGHT[orientation])


def angles_to_upright(angles: Num[np.ndarray, " n"], orientation: int) -> Float32[np.ndarray, " n"]:
    """Angles in the stored photo as angles in the upright photo: the inverse of `angles_to_stored`."""
    return _turned_angles(angles, _STORED_FROM_UPRIGHT[orientation].T)


def turn_pixels(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """The stored pixels (h, w) or (h, w, c) turned upright. Code 1 returns the same array."""
    if orientation == UPRIGHT:
        return pixels
    matrix = _STORED_FROM_UPRIGHT[orientation]
    step_x, step_y = matrix.sum(axis=1)
    turned = pixels[::step_y, ::step_x]
    return np.ascontiguousarray(turned if matrix[0, 0] else turned.swapaxes(0, 1))


def turn_pixels_back(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """The stored pixels from pixels that were turned upright: the inverse of `turn_pixels`."""
    return turn_pixels(pixels, _code(_STORED_FROM_UPRIGHT[orientation].T))


def camera_upright_from_stored(orientation: int) -> Float64[np.ndarray, "3 3"]:
    """The rotation from the camera axes (x right, y down, z forward) of the stored photo to those of the upright photo.

    A photo that is stored mirrored counts as flipped left-right, as in COLMAP's models, see `colmap_keypoints`.
    """
    rotation = np.eye(3)
    rotation[:2, :2] = _STORED_FROM_UPRIGHT[unmirrored(orientation)].T
    return rotation


# --- records -------------------------------------------------------------------------------------------------------------


def upright_image(image: Image) -> Image:
    """The photo and its mask turned upright. An upright photo is returned as it is."""
    if image.orientation == UPRIGHT:
        return image
    pixels = turn_pixels(image.pixels, image.orientation)
    mask = None if image.mask is None else turn_pixels(image.mask, image.orientation)
    full_size = None if image.full_size is None else upright_size(image.full_size, image.orientation)
    return replace(image, pixels=pixels, mask=mask, full_size=full_size, orientation=UPRIGHT)


def stored_features(features: Features, orientation: int) -> Features:
    """The features of an upright photo as features of the stored photo, which `orientation` turns upright."""
    if orientation == UPRIGHT:
        return features
    size = upright_size(features.image_size, orientation)
    angles = None if features.orientations is None else angles_to_stored(features.orientations, orientation)
    keypoints = to_stored(features.keypoints, size, orientation)
    return replace(features, keypoints=keypoints, image_size=size, orientations=angles, orientation=orientation)


def upright_features(features: Features) -> Features:
    """The features as matchers see them: keypoints, size and angles of the upright photo.

    Features of a photo that was not turned are returned as they are.
    """
    if features.orientation == UPRIGHT:
        return features
    size, orientation = features.image_size, features.orientation
    angles = None if features.orientations is None else angles_to_upright(features.orientations, orientation)
    keypoints = to_upright(features.keypoints, size, orientation)
    return replace(
        features,
        keypoints=keypoints,
        image_size=upright_size(size, orientation),
        orientations=angles,
        orientation=UPRIGHT,
    )


def colmap_keypoints(features: Features) -> Float64[np.ndarray, "n 2"]:
    """Keypoints as COLMAP gets them: px of the stored photo with the centre of the top-left pixel at (0.5, 0.5).

    No camera sees a mirrored world, so no camera pose fits a photo that is stored mirrored. The keypoints of a mirrored photo are
    those of the photo flipped left-right.
    """
    keypoints = features.keypoints.astype(np.float64) + 0.5
    if features.orientation in MIRRORED:
        keypoints[:, 0] = features.image_size[0] - keypoints[:, 0]
    return keypoints


# --- details -------------------------------------------------------------------------------------------------------------


def _code(matrix: np.ndarray) -> int:
    return next(code for code, known in _STORED_FROM_UPRIGHT.items() if (known == matrix).all())


def _moved(points: np.ndarray, matrix: np.ndarray, size: tuple[int, int], new_size: tuple[int, int]) -> np.ndarray:
    """Points of a photo of `size`, moved by the matrix about the centre of the photo, in a photo of `new_size`."""
    points = np.asarray(points).reshape(-1, 2)
    if (matrix == np.eye(2)).all():
        return points.astype(np.float32)
    centre, new_centre = ((np.array(px, np.float64) - 1) / 2 for px in (size, new_size))
    moved: np.ndarray = (points.astype(np.float64) - centre) @ matrix.T + new_centre
    return moved.astype(np.float32)


def _turned_angles(angles: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Angles of directions after the matrix: it turns them, and if it mirrors, it reverses their sense."""
    sense, turn = np.linalg.det(matrix), np.arctan2(matrix[1, 0], matrix[0, 0])
    turned = turn + sense * np.asarray(angles, np.float64)
    wrapped: np.ndarray = np.remainder(turned + np.pi, 2 * np.pi) - np.pi
    return wrapped.astype(np.float32)
