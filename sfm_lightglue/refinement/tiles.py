"""Small tiles of a photo around its keypoints. A tile takes 1.4 kB, so that a photo is not kept in memory or decoded again.

Tiles are cut from the photo at its full size. If the detector saw a much smaller image, they are cut from the photo resized to
px of `PIXEL` detection px: a window of smaller px would show too little of the surroundings of a keypoint that is not exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float64, Int, Int64, UInt8

from sfm_lightglue.images import UnreadableImage, load_image, to_grey
from sfm_lightglue.images.resizing import resized_to
from sfm_lightglue.products import Features

HALF_TILE = 18
"""A tile has this many px on each side of its middle: room for windows that are larger in one photo, and for moves."""
PIXEL = 0.64
"""Smallest px of the tiles, detection px."""


@dataclass(frozen=True)
class Tiles:
    """Tiles around some keypoints of a photo."""

    pixels: UInt8[np.ndarray, "n t t"]
    """Grey values."""
    centres: Int64[np.ndarray, "n 2"]
    """Middle of each tile, px of the resized photo."""
    rows: Int64[np.ndarray, " m"]
    """The tile of each keypoint of the photo; -1 without one."""
    scale: Float64[np.ndarray, " 2"]
    """Size of a px of the resized photo along x and y, px of the photo."""

    @property
    def num_bytes(self) -> int:
        """Memory of all arrays, bytes."""
        return self.pixels.nbytes + self.centres.nbytes + self.rows.nbytes

    def to_tile(self, points: Float[np.ndarray, "k 2"], tiles: Int[np.ndarray, " k"]) -> Float64[np.ndarray, "k 2"]:
        """Points of the photo as positions in the given tiles, counted from their middle."""
        places: np.ndarray = (points + 0.5) / self.scale - 0.5 - self.centres[tiles]
        return places


def cut_tiles(images: Path, features: Features, keypoints: Int[np.ndarray, " n"]) -> Tiles:
    """The tiles around the keypoints with these numbers. Beyond the edge of the photo, its last pixels are repeated.

    Raises: UnreadableImage if the photo cannot be decoded, or has another size than the features say.
    """
    image = load_image(images, features.name, use_alpha=False)
    if (found := image.full_size or image.size) != features.image_size:
        raise UnreadableImage(f"it has {found[0]} x {found[1]} px, its features are from {features.image_size}")
    size = _tile_size(features)
    pixels = image.pixels if size == image.size else resized_to(image.pixels, size)
    grey = np.pad(np.rint(to_grey(pixels) * 255).astype(np.uint8), HALF_TILE, mode="edge")
    side = 2 * HALF_TILE + 1
    windows = np.lib.stride_tricks.sliding_window_view(grey, (side, side))
    centres, rows, scale = _places(features, keypoints)
    return Tiles(windows[centres[:, 1], centres[:, 0]], centres, rows, scale)


def blank_tiles(features: Features, keypoints: Int[np.ndarray, " n"]) -> Tiles:
    """As `cut_tiles`, but black, for a photo that cannot be read: nothing correlates with them."""
    side = 2 * HALF_TILE + 1
    return Tiles(np.zeros((len(keypoints), side, side), np.uint8), *_places(features, keypoints))


def _places(features: Features, keypoints: Int[np.ndarray, " n"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The fields `centres`, `rows` and `scale` of the tiles around the keypoints with these numbers."""
    size = np.array(_tile_size(features))
    scale = np.array(features.image_size) / size
    centres = np.rint((features.keypoints[keypoints].astype(np.float64) + 0.5) / scale - 0.5).astype(np.int64)
    rows = np.full(len(features), -1, np.int64)
    rows[keypoints] = np.arange(len(keypoints))
    return np.clip(centres, 0, size - 1), rows, scale


def _tile_size(features: Features) -> tuple[int, int]:
    """(width, height) px of the photo that tiles are cut from."""
    factor = min(1.0, 1 / (PIXEL * features.pixel_scale))
    width, height = (max(1, round(side * factor)) for side in features.image_size)
    return width, height
