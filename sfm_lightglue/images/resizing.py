"""Resizing and grey values of decoded photos."""

from __future__ import annotations

import numpy as np
from PIL import Image as PILImage


def resize_longest(pixels: np.ndarray, resize_max: int | None, enlarge_max: float = 1.0) -> np.ndarray:
    """uint8 (h', w', 3): the photo resized with antialiasing, so that its longest side is at most `resize_max` px.

    A smaller photo is enlarged to that size, but at most `enlarge_max` times. None for `resize_max` changes nothing.
    """
    height, width = pixels.shape[:2]
    scale = 1.0 if resize_max is None else min(enlarge_max, resize_max / max(height, width))
    if scale == 1:
        return pixels
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return resized_to(pixels, size)


def resized_to(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 (h', w', 3): the photo resized with antialiasing to `size` (width, height) px."""
    return np.array(PILImage.fromarray(pixels).resize(size, PILImage.Resampling.LANCZOS))


def to_grey(pixels: np.ndarray) -> np.ndarray:
    """float32 (h, w) in 0..1: luma of RGB pixels (ITU-R BT.601, which the networks were trained with)."""
    return (pixels.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)) / np.float32(255)
