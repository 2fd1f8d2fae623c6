"""The records that the stages exchange: Image, Features, Pair, Matches, TwoViewGeometry.

All arrays are numpy arrays, all records are frozen. Coordinates are (x, y) in pixels of the photo as it is stored on disk,
without EXIF rotation. The centre of the top-left pixel is at (0, 0). COLMAP's convention is (0.5, 0.5): cameras, poses,
homographies and the matrices of a TwoViewGeometry use it.
"""

from __future__ import annotations

import itertools
import operator
import warnings
from collections.abc import Iterable
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
    """bool (height, width); keypoints are kept if their pixel is True. None keeps all."""
    full_size: tuple[int, int] | None = None
    """(width, height) px of the photo if it was decoded at a reduced size; None if `pixels` are all."""
    orientation: int = 1
    """EXIF code that turns the pixels upright, see `orientation.py`; 1 for upright pixels."""

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
    """Size of a detection pixel in px of the full image: full size / size of the resized image that the detector saw."""
    scales: np.ndarray | None = None
    """float32 (n,), keypoint diameters in px of the full image (SIFT-like detectors), or None."""
    orientations: np.ndarray | None = None
    """float32 (n,), angles in radians from x towards y (SIFT-like detectors), or None."""
    name: str = ""
    """Name of the image; empty if it is not known."""
    orientation: int = 1
    """EXIF code that turned the photo upright before detection; 1 if it was not turned. Coordinates are of the stored photo;
    `orientation.upright_features` converts them for a matcher."""

    def __len__(self) -> int:
        return len(self.keypoints)

    @property
    def num_bytes(self) -> int:
        """Memory of all arrays, bytes."""
        arrays = self.keypoints, self.scores, self.descriptors, self.scales, self.orientations
        return sum(array.nbytes for array in arrays if array is not None)

    @property
    def uncertainty(self) -> float:
        """The former name of `pixel_scale`."""
        warnings.warn("Features.uncertainty is now called pixel_scale", DeprecationWarning, stacklevel=2)
        return self.pixel_scale


@dataclass(frozen=True, order=True, slots=True)
class Pair:
    """Two images to be matched. `name0` < `name1`: the constructor swaps the names if necessary, so each pair exists once.

    Raises: ValueError if both names are equal.
    """

    name0: str
    name1: str
    reason: str = field(default="", compare=False)
    """Why the pair was chosen: `exhaustive`, `sequential+4`, `retrieval#3`, `loop#1`, `list`; several are joined by `,`."""
    score: float = field(default=float("nan"), compare=False)
    """Similarity of the images: from retrieval, overlap of views, or share of common points, at most 1; NaN if not known."""

    def __post_init__(self) -> None:
        if self.name0 == self.name1:
            raise ValueError(f"{self.name0!r} cannot be paired with itself")
        if self.name0 > self.name1:
            first, second = self.name1, self.name0
            object.__setattr__(self, "name0", first)
            object.__setattr__(self, "name1", second)


def sorted_pairs(pairs: Iterable[Pair]) -> list[Pair]:
    """The pairs by their names, each once. A million take 0.3 s if they are sorted already, and 1.5 s if they nearly are."""
    listed, names_of = [*pairs], operator.attrgetter("name0", "name1")
    names = [*map(names_of, listed)]
    if all(map(operator.lt, names, itertools.islice(names, 1, None))):
        return listed
    return sorted(dict.fromkeys(listed), key=names_of)


@dataclass(frozen=True)
class Matches:
    """Correspondences between the keypoints of two images."""

    indices: np.ndarray
    """int32 (k, 2), indices into keypoints0 and keypoints1. An index occurs at most once per column; column 0 ascends."""
    scores: np.ndarray
    """float32 (k,), matching scores in 0..1."""
    stop_layer: int = 0
    """Number of LightGlue layers that ran (adaptive depth); 0 for other matchers."""
    is_guided: bool = False
    """LightGlue matched only the strongest keypoints; the matches of all come from them (`matches.guided_matching`)."""

    def __len__(self) -> int:
        return len(self.indices)

    def matches0(self, num_keypoints0: int) -> np.ndarray:
        """int64 (num_keypoints0,): for each keypoint of image 0 the index into keypoints1, -1 for no match."""
        return _dense(self.indices, self.indices[:, 1], num_keypoints0, -1, np.int64)

    def matching_scores0(self, num_keypoints0: int) -> np.ndarray:
        """float32 (num_keypoints0,): matching score of each keypoint of image 0, 0 for no match."""
        return _dense(self.indices, self.scores, num_keypoints0, 0, np.float32)

    @staticmethod
    def from_dense(matches0: np.ndarray, scores0: np.ndarray, stop_layer: int = 0) -> Matches:
        """Matches from one entry per keypoint of image 0: `matches0` (n0,) with -1 for no match, and `scores0` (n0,)."""
        index0 = np.flatnonzero(matches0 > -1)
        indices = np.stack([index0, matches0[index0]], axis=1).astype(np.int32)
        return Matches(indices, scores0[index0].astype(np.float32), stop_layer)


@dataclass(frozen=True)
class TwoViewGeometry:
    """The relation of two images that geometric verification estimated from their matches.

    E, F and H relate points in COLMAP's pixels: the centre of the top-left pixel is at (0.5, 0.5).
    """

    configuration: str
    """COLMAP's name: CALIBRATED (E fits best), UNCALIBRATED (F), PLANAR, PANORAMIC or PLANAR_OR_PANORAMIC (H), and others.
    Rejected pairs are DEGENERATE."""
    inlier_matches: np.ndarray
    """int32 (k, 2), the rows of `Matches.indices` that agree with the geometry, in their order; (0, 2) if rejected."""
    num_matches: int
    """Number of matches before verification."""
    max_error_px: float
    """Largest epipolar error of an inlier, px of the full images."""
    E: np.ndarray | None = None
    """float64 (3, 3) essential matrix, x1.T @ E @ x0 = 0 for normalised points; None if it was not estimated."""
    F: np.ndarray | None = None
    """float64 (3, 3) fundamental matrix, x1.T @ F @ x0 = 0; None if it was not estimated."""
    H: np.ndarray | None = None
    """float64 (3, 3) homography, x1 ~ H @ x0; None if it was not estimated."""
    rejected_because: str = ""
    """Empty if verified, else `few matches`, `few inliers` or `low score`."""
    num_stationary: int = 0
    """Matches that were dropped before, because they stand still in an overlay."""
    num_agreeing: int | None = None
    """Matches that agree with the best geometry, also if the pair was rejected; None if it is not known."""
    num_needed: int | None = None
    """Agreeing matches that a pair with these matches needs: the limit, and those that wrong matches give by chance."""
    mean_score: float | None = None
    """Mean matching score of the agreeing matches, 0..1; None if it is not known."""
    confirmed: float | None = None
    """Share of the agreeing matches that third photos confirm, 0..1; None if they were not asked."""
    unsure_configuration: str = ""
    """If only the score is too low: the configuration that the pair would have; else empty."""
    unsure_matches: np.ndarray | None = None
    """If only the score is too low: the agreeing matches, int32 (k, 2); else None."""
    judged_with: str = ""
    """A hash of the pairs among which `confirmed` was found; empty if third photos were not asked."""

    @property
    def is_verified(self) -> bool:
        """True if the pair was not rejected: both images see the same scene."""
        return self.configuration != "DEGENERATE"


def _dense(indices: np.ndarray, values: np.ndarray, size: int, empty: float, dtype: type) -> np.ndarray:
    """An array of `size` entries `empty`, with `values` (k,) at the keypoints of image 0."""
    dense: np.ndarray = np.full(size, empty, dtype)
    dense[indices[:, 0]] = values
    return dense
