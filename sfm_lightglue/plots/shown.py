"""What is plotted: a photo as it stands in a picture, and photos, keypoints and matches of a run."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from sfm_lightglue.api import Photo, load_image
from sfm_lightglue.files import result_exists
from sfm_lightglue.image_matches import ImageMatches, image_matches
from sfm_lightglue.images import load_image as load_listed
from sfm_lightglue.orientation import to_upright, turn_pixels, upright_size
from sfm_lightglue.products import Features, Image, Pair
from sfm_lightglue.run_folder import RunFolder

GAP = 0.012
"""Space between two photos, as a share of their total width."""


@dataclass(frozen=True)
class Shown:
    """A photo as it is shown: upright, at a place and a scale of the picture."""

    pixels: np.ndarray
    """uint8 (h, w, 3), upright."""
    stored_size: tuple[int, int]
    """(width, height) px of the full photo as stored: the frame of its keypoints."""
    orientation: int
    """EXIF code that turned the photo upright."""
    left: float = -0.5
    """x of its left edge in the picture; its top edge is at -0.5."""
    scale: float = 1.0
    """Size of one of its pixels in the picture."""

    @property
    def extent(self) -> tuple[float, float]:
        """(width, height) in the picture."""
        width, height = upright_size(self.stored_size, self.orientation)
        return width * self.scale, height * self.scale

    def place(self, keypoints: np.ndarray) -> np.ndarray:
        """Positions float64 (k, 2) in the picture of keypoints (k, 2), px of the photo as stored."""
        upright = to_upright(np.asarray(keypoints).reshape(-1, 2), self.stored_size, self.orientation)
        placed: np.ndarray = (upright.astype(np.float64) + 0.5) * self.scale + (self.left, -0.5)
        return placed


def shown(image: Photo | Image, orientation: int | None = None) -> Shown:
    """The photo alone in a picture. `orientation` is an EXIF code; None is the code of the photo itself."""
    record = image if isinstance(image, Image) else load_image(image)
    code = record.orientation if orientation is None else orientation
    return Shown(turn_pixels(record.pixels, code), record.full_size or record.size, code)


def side_by_side(photo0: Shown, photo1: Shown) -> tuple[Shown, Shown]:
    """Both photos in one picture with the pixels of photo 0: photo 1 has the same height, and a gap to its left."""
    scale = photo0.extent[1] / photo1.extent[1]
    gap = GAP * (photo0.extent[0] + scale * photo1.extent[0])
    return photo0, replace(photo1, left=photo0.left + photo0.extent[0] + gap, scale=scale)


def photo_of_run(run: RunFolder, name: str, features: Features) -> Shown:
    """A photo of a run, turned as the run did. Raises: ValueError if the run does not say where its photos are."""
    if (folder := run.photos()) is None:
        raise ValueError(f"{run.summary} does not say where the photos are: give files and arrays instead of names")
    return shown(load_listed(folder, name), features.orientation)


def matches_of_run(run: RunFolder, name0: str, name1: str) -> tuple[Shown, Shown, ImageMatches, np.ndarray | None]:
    """Two photos of a run, their matches, and bool (k,): which are verified; None if the run has not verified them.

    Raises: KeyError if the run has not matched the photos, FileNotFoundError if it has no matches at all.
    """
    with run.open_features() as reader:
        features = [reader.features(name, with_descriptors=False) for name in (name0, name1)]
    with run.open_matches() as reader:
        found = reader.find_matches(name0, name1)
    if found is None:
        raise KeyError(f"{run.matches} has no matches of {name0!r} and {name1!r}: {run.pairs} lists the matched pairs")
    photos = [photo_of_run(run, name, record) for name, record in zip((name0, name1), features, strict=True)]
    return photos[0], photos[1], image_matches(features[0], features[1], found), _verified(run, name0, name1, found.indices)


def _verified(run: RunFolder, name0: str, name1: str, indices: np.ndarray) -> np.ndarray | None:
    if not result_exists(run.verification):
        return None
    pair = Pair(name0, name1)
    with run.open_verification() as reader:
        inliers = reader.geometry(pair.name0, pair.name1).inlier_matches
    return np.isin(indices[:, 0], inliers[:, 0 if pair.name0 == name0 else 1])
