"""The records that travel between the stages: Image, Features, Pair, Matches.

Every array is numpy, every record frozen. Pixel coordinates are (x, y) in pixels of the image as stored on disk (no EXIF
rotation applied), with the centre of the top-left pixel at (0, 0); the only other convention in the package is COLMAP's
(top-left centre at (0.5, 0.5)), and `database.py` is the only place that knows it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Image:
    """One decoded photo."""

    name: str
    """Path relative to the image folder, with forward slashes: the key of the photo everywhere."""
    pixels: np.ndarray
    """uint8 (height, width, 3), RGB, as stored."""
    mask: np.ndarray | None = None
    """bool (height, width); keypoints are kept where it is True. None keeps all."""

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.pixels.shape[1], self.pixels.shape[0]


@dataclass(frozen=True)
class Features:
    """Local features of one image, n keypoints with d-dimensional descriptors, strongest first."""

    keypoints: np.ndarray
    """float32 (n, 2), (x, y) px of the full image, centre of the top-left pixel at (0, 0)."""
    scores: np.ndarray
    """float32 (n,), detection scores, higher is better."""
    descriptors: np.ndarray
    """float32 or float16 (n, d)."""
    image_size: tuple[int, int]
    """(width, height) px of the full image."""
    pixel_scale: float = 1.0
    """Size of one detection pixel in full-image pixels: full size / size at which keypoints were detected."""
    scales: np.ndarray | None = None
    """float32 (n,), keypoint diameters in px of the full image (SIFT-like detectors), or None."""
    orientations: np.ndarray | None = None
    """float32 (n,), angles in radians from x towards y (SIFT-like detectors), or None."""
    name: str = ""
    """Name of the image, where the stage knows it."""

    def __len__(self) -> int:
        return len(self.keypoints)

    @property
    def num_bytes(self) -> int:
        """Memory of the arrays."""
        arrays = self.keypoints, self.scores, self.descriptors, self.scales, self.orientations
        return sum(array.nbytes for array in arrays if array is not None)


@dataclass(frozen=True, order=True)
class Pair:
    """Two images to be matched, in the order of their names however they are given, so that each pair exists once."""

    name0: str
    name1: str
    reason: str = field(default="", compare=False)
    """Why the pair was chosen: `exhaustive`, `sequential+4`, `retrieval#3`, `loop#1`, `list`; several joined by `,`."""
    score: float = field(default=float("nan"), compare=False)
    """Retrieval similarity where there is one, else NaN."""

    def __post_init__(self) -> None:
        if self.name0 == self.name1:
            raise ValueError(f"{self.name0!r} is no pair with itself")
        if self.name0 > self.name1:
            first, second = self.name1, self.name0
            object.__setattr__(self, "name0", first)
            object.__setattr__(self, "name1", second)


@dataclass(frozen=True)
class Matches:
    """Correspondences between the keypoints of two images."""

    indices: np.ndarray
    """int32 (k, 2), indices into keypoints0 and keypoints1; each index at most once per column, column 0 ascending."""
    scores: np.ndarray
    """float32 (k,), matching scores in 0..1."""
    stop_layer: int = 0
    """Number of network layers that ran (LightGlue's adaptive depth), 0 for other matchers."""

    def __len__(self) -> int:
        return len(self.indices)

    def matches0(self, num_keypoints0: int) -> np.ndarray:
        """int64 (num_keypoints0,): index into keypoints1 for each keypoint of image 0, -1 for none."""
        return _dense(self.indices, self.indices[:, 1], num_keypoints0, -1, np.int64)

    def matching_scores0(self, num_keypoints0: int) -> np.ndarray:
        """float32 (num_keypoints0,): matching score of each keypoint of image 0, 0 for none."""
        return _dense(self.indices, self.scores, num_keypoints0, 0, np.float32)

    @staticmethod
    def from_dense(matches0: np.ndarray, scores0: np.ndarray, stop_layer: int = 0) -> Matches:
        """The record for `matches0` (n0,) with -1 for none and `scores0` (n0,)."""
        index0 = np.flatnonzero(matches0 > -1)
        indices = np.stack([index0, matches0[index0]], axis=1).astype(np.int32)
        return Matches(indices, scores0[index0].astype(np.float32), stop_layer)


def _dense(indices: np.ndarray, values: np.ndarray, size: int, empty: float, dtype: type) -> np.ndarray:
    dense: np.ndarray = np.full(size, empty, dtype)
    dense[indices[:, 0]] = values
    return dense
