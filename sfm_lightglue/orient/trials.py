"""Tries of a photo in four turns, in small pictures: extraction, matching and verification as in the run."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from sfm_lightglue.cameras import GUESSED_FOCAL_FACTOR, Camera
from sfm_lightglue.execution.cache import BoundedCache
from sfm_lightglue.execution.devices import num_cores
from sfm_lightglue.execution.threads import torch_threads
from sfm_lightglue.features.extractor import Extractor
from sfm_lightglue.geometries.verification import VerificationOptions, verify_matches
from sfm_lightglue.images import Range, UnreadableImage, load_image, resize_longest
from sfm_lightglue.matches.matcher import Matcher
from sfm_lightglue.orientation import turned_further, upright_image
from sfm_lightglue.products import Features, Image

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

SMALL = {"resize_max": 512, "max_keypoints": 512, "enlarge_max": 1}
"""Options of an extractor in the trials, if it has them. A trial then takes a tenth of the time of a pair of the run."""
TURNS = range(4)
CACHE_BYTES = 300_000_000
"""Memory for small pictures, and as much for their features. A photo takes 0.5 MB, and its features in one turn as much."""
MAX_PARTNERS = 3
"""Photos that a photo is matched with in each turn: those with most similar descriptors."""
MIN_INLIERS, MIN_RATIO = 30, 3.0
"""The best turn needs this many inliers with all partners together, and this many times the inliers of the next best turn."""

ENOUGH_INLIERS = 2 * MIN_INLIERS
"""If the best turn is clear and has as many after one or two partners, the photo is not matched with the others."""


def small_options(options: Any) -> Any:
    """The options of an extractor for small pictures."""
    known = {field.name for field in dataclasses.fields(options)}
    return dataclasses.replace(options, **{key: value for key, value in SMALL.items() if key in known})


@dataclass(frozen=True)
class Outcome:
    """The inliers of a photo in each of the four turns."""

    inliers: tuple[int, ...]

    @property
    def best(self) -> int:
        """The turn with most inliers, in quarters clockwise."""
        return int(np.argmax(self.inliers))

    @property
    def is_clear(self) -> bool:
        """True if the best turn has enough inliers, and by far more than any other."""
        second, first = sorted(self.inliers)[-2:]
        return first >= MIN_INLIERS and first >= MIN_RATIO * second

    def __str__(self) -> str:
        return f"{', '.join(map(str, self.inliers))} inliers after 0, 1, 2 and 3 quarter turns"


class Trials:
    """Matches small pictures of photos in any turn.

    Args:
        images: Folder of the photos.
        masks: Files of the masks by the name of their photo, from `find_masks` with the names of all photos.
        ranges: Ranges of the 16-bit photos, from `camera_ranges`.
        orientations: Code of EXIF that each photo has now: turn 0.
        extractor: For small pictures, see `small_options`.
        matcher: The matcher of the run.
        options: Limits of the verification.
    """

    def __init__(
        self,
        images: Path,
        masks: Mapping[str, Path],
        ranges: Mapping[str, Range],
        orientations: Mapping[str, int],
        extractor: Extractor,
        matcher: Matcher,
        options: VerificationOptions,
    ) -> None:
        self.images, self.masks, self.ranges, self.orientations = images, masks, ranges, orientations
        self.extractor, self.matcher, self.options = extractor, matcher, options
        from sfm_lightglue.matches.nearest_neighbor import NearestNeighborMatcher, NearestNeighborOptions  # it imports torch

        self._nearest = NearestNeighborMatcher(NearestNeighborOptions("nearest_neighbor", True, 0.9, None))
        self._pictures = BoundedCache(self._picture, lambda picture: picture.pixels.nbytes, CACHE_BYTES)
        self._features = BoundedCache(self._extract, lambda features: features.num_bytes, CACHE_BYTES)

    def compare(self, name: str, partners: Sequence[str], turns: Mapping[str, int]) -> Outcome:
        """The inliers of the photo in four turns with those partners that look most alike, until a turn is clear.

        Args:
            name: The photo.
            partners: Photos that it may overlap with.
            turns: Quarter turns of each partner, on top of its orientation.
        """
        try:
            own = _in_each_turn(lambda turn: self.features(name, turn))
        except UnreadableImage as error:
            logger.warning("%s cannot be tried in four turns: %s", name, error)
            return Outcome((0, 0, 0, 0))
        looked_at: dict[str, Features] = {}
        for partner in partners:
            with contextlib.suppress(UnreadableImage):
                looked_at[partner] = self.features(partner, turns[partner])
        votes = {partner: max(len(self._nearest(turned, found)) for turned in own) for partner, found in looked_at.items()}
        chosen = sorted(votes, key=lambda partner: (-votes[partner], partner))[:MAX_PARTNERS]
        outcome = Outcome((0, 0, 0, 0))
        for partner in chosen:
            found = _in_each_turn(functools.partial(self._inliers_of_turn, own, looked_at[partner]))
            outcome = Outcome(tuple(before + more for before, more in zip(outcome.inliers, found, strict=True)))
            if outcome.is_clear and max(outcome.inliers) >= ENOUGH_INLIERS:
                break
        return outcome

    def features(self, name: str, turn: int) -> Features:
        """The features of the small picture, turned by quarters clockwise on top of its orientation.

        Raises: UnreadableImage if the photo cannot be read any more.
        """
        return self._features((name, turn % 4))

    def _extract(self, key: tuple[str, int]) -> Features:
        name, turn = key
        picture, code = self._pictures(name), turned_further(self.orientations[name], turn)
        return self.extractor(upright_image(dataclasses.replace(picture, orientation=code)))

    def _picture(self, name: str) -> Image:
        """The photo and its mask in the size of the trials, as stored."""
        photo = load_image(self.images, name, masks=self.masks, ranges=self.ranges, longest=SMALL["resize_max"])
        small = resize_longest(photo.pixels, SMALL["resize_max"])
        return Image(name, small, None if photo.mask is None else _resized(photo.mask, small.shape[:2]))

    def _inliers_of_turn(self, turned: Sequence[Features], other: Features, turn: int) -> int:
        return self._inliers(turned[turn], other)

    def _inliers(self, features0: Features, features1: Features) -> int:
        matches = self.matcher(features0, features1)
        camera0, camera1 = _guessed_camera(features0.image_size), _guessed_camera(features1.image_size)
        geometry = verify_matches(camera0, camera1, features0, features1, matches, self.options)
        return len(geometry.inlier_matches)


def _in_each_turn(function: Callable[[int], Result]) -> list[Result]:
    """The results for the four turns, by as many threads as there are cores."""
    workers = min(len(TURNS), num_cores())
    with ThreadPoolExecutor(workers) as pool, torch_threads(workers):
        return list(pool.map(function, TURNS))


def _guessed_camera(size: tuple[int, int]) -> Any:
    return Camera("SIMPLE_PINHOLE", size, (GUESSED_FOCAL_FACTOR * max(size), size[0] / 2, size[1] / 2), False).to_colmap()


def _resized(mask: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The mask at another size, (height, width), by the nearest pixel."""
    rows, columns = (np.arange(new) * old // new for new, old in zip(shape, mask.shape, strict=True))
    resized: np.ndarray = mask[rows[:, None], columns]
    return resized


Compare = Callable[[str, Sequence[str], Mapping[str, int]], Outcome]
"""`Trials.compare`."""
