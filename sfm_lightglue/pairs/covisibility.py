"""Each photo with the photos that share points with it in an existing COLMAP model."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sfm_lightglue.pairs.collection import Collection
from sfm_lightglue.pairs.union import best_of
from sfm_lightglue.photo_names import PhotoNames
from sfm_lightglue.products import Pair
from sfm_lightglue.ranges import check_ranges

if TYPE_CHECKING:
    import pycolmap

logger = logging.getLogger(__name__)

MAX_TRACK = 200
"""Of a longer track, evenly spread images are counted: its pairs grow with the square of its length."""


@dataclass(frozen=True, kw_only=True)
class CovisibilityOptions:
    """Options of `configs/pairs/covisibility.yaml`."""

    name: str
    path: str
    """Folder of a COLMAP model, such as `reconstruction/0` of another run."""
    min_points: int
    """Two photos are paired if they share at least this number of points."""
    num_neighbours: int | None
    """Number of photos with most common points that each photo is paired with; None pairs it with all."""

    def __post_init__(self) -> None:
        check_ranges(self, "pairs", min_points=">= 1", num_neighbours=">= 1")


class CovisibilityPairs:
    """The pairs that an existing model connects."""

    def __init__(self, options: CovisibilityOptions) -> None:
        self.options = options

    @classmethod
    def create(cls, options: CovisibilityOptions) -> CovisibilityPairs:
        """The source with these options."""
        return cls(options)

    def check(self, collection: Collection) -> None:
        """Raises: FileNotFoundError without the model; ValueError if it is damaged or has none of the photos."""
        self._seen(collection)

    def __call__(self, collection: Collection) -> list[Pair]:
        """See `covisible_pairs`. The reasons are `covisibility#RANK`."""
        seen = self._seen(collection)
        if missing := len(collection.names) - len(seen):
            logger.warning(
                "%d of %d photos are not in the model %s: they get no pairs; pairs=[covisibility,retrieval] also pairs them by "
                "retrieval",
                *(missing, len(collection.names), self.options.path),
            )
        return covisible_pairs(seen, self.options.min_points, self.options.num_neighbours)

    def _seen(self, collection: Collection) -> dict[str, np.ndarray]:
        """Ids of the points that each photo of the collection observes in the model."""
        photos, seen = PhotoNames(collection.names, collection.images), observed_points(collection.model(self.options.path))
        found = {photo: points for name, points in seen.items() if (photo := photos.find(name)) is not None}
        if collection.names and not found:
            raise ValueError(
                f"the model pairs.path={self.options.path} has other photos, such as {min(seen, default='none')!r}, and none of "
                f"the {len(collection.names)} photos, such as {collection.names[0]!r}: names are paths below the photo folder"
            )
        return found


def observed_points(model: pycolmap.Reconstruction) -> dict[str, np.ndarray]:
    """Ids (m,) of the points that each registered photo observes, by name."""
    images = [model.image(image_id) for image_id in model.reg_image_ids()]
    return {
        image.name: np.unique(np.array([point.point3D_id for point in image.get_observation_points2D()], np.uint64))
        for image in images
    }


def covisible_pairs(seen: Mapping[str, np.ndarray], min_points: int, num_neighbours: int | None = None) -> list[Pair]:
    """Pairs of photos that share points, sorted by name, with the reasons `covisibility#RANK`.

    The rank is that among the partners of the photo with most common points; the better rank of both photos counts. The score is
    the number of common points by that of the photo that sees fewer, 0 to 1.

    Args:
        seen: Ids of the points that each photo observes, each once.
        min_points: Smallest number of common points.
        num_neighbours: Number of partners of each photo; None keeps all.
    """
    names = sorted(seen)
    counts = _common(names, seen)
    sizes = np.array([len(seen[name]) for name in names])
    partners: dict[int, list[tuple[int, int]]] = {}
    for (first, second), count in counts.items():
        if count >= min_points:
            partners.setdefault(first, []).append((-count, second))
            partners.setdefault(second, []).append((-count, first))
    found = []
    for first, others in sorted(partners.items()):
        for rank, (count, second) in enumerate(sorted(others)[:num_neighbours], start=1):
            score = round(-count / int(min(sizes[first], sizes[second])), 4)
            found.append(Pair(names[first], names[second], f"covisibility#{rank}", score))
    return best_of(found)


def _common(names: list[str], seen: Mapping[str, np.ndarray]) -> dict[tuple[int, int], int]:
    """Number of common points of each two photos, by their indices, for photos that share any."""
    images = np.concatenate([np.full(len(seen[name]), i) for i, name in enumerate(names)] or [np.zeros(0, np.int64)])
    points = np.concatenate([seen[name] for name in names] or [np.zeros(0, np.uint64)])
    order = np.lexsort((images, points))
    images = images[order]
    _, starts, lengths = np.unique(points[order], return_index=True, return_counts=True)
    counts: dict[int, int] = {}
    for length in np.unique(lengths):  # tracks of equal length together
        tracks = images[starts[lengths == length][:, None] + np.arange(length)]  # t l
        if length > MAX_TRACK:
            tracks = tracks[:, np.linspace(0, length - 1, MAX_TRACK).astype(int)]
        row, column = np.triu_indices(tracks.shape[1], 1)
        for block in np.array_split(tracks, -(-tracks.shape[0] * len(row) // 10**7) or 1):
            keys, numbers = np.unique(block[:, row] * len(names) + block[:, column], return_counts=True)
            for key, number in zip(keys.tolist(), numbers.tolist(), strict=True):
                counts[key] = counts.get(key, 0) + number
    return {divmod(key, len(names)): number for key, number in counts.items()}
