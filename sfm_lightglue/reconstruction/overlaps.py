"""Which photos of two models would show the same things if the models were joined, and whether they match."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pycolmap

MAX_ANGLE_DEG = 20.0
"""A point that one photo sees is probably visible from another direction that differs less than this."""
MIN_SEEN = 30
"""Points of one photo that another photo would see, for both to show the same things."""


@dataclass(frozen=True)
class VerifiedPairs:
    """The pairs of images in a database, by the ids of their images (the smaller one first)."""

    matches: dict[tuple[int, int], np.ndarray]
    """Verified matches of each verified pair: uint32 (k, 2) indices of keypoints."""
    tried: set[tuple[int, int]]
    """All pairs with matches, verified or not."""

    @classmethod
    def read(cls, database: Path) -> VerifiedPairs:
        """All pairs of a database."""
        with pycolmap.Database.open(database) as rows:
            tried = {_ids(pair) for pair in rows.read_num_matches()[0]}
            inliers = zip(*rows.read_two_view_geometry_num_inliers(), strict=True)
            verified = sorted(_ids(pair) for pair, count in inliers if count)
            matches = {pair: np.asarray(rows.read_two_view_geometry(*pair).inlier_matches, np.uint32) for pair in verified}
        return cls(matches, tried)

    @functools.cached_property
    def partners(self) -> dict[int, list[int]]:
        """The images that are verified with each image, sorted."""
        return _partners(self.matches)

    @functools.cached_property
    def tried_partners(self) -> dict[int, list[int]]:
        """The images that have matches with each image, sorted."""
        return _partners(self.tried)

    def between(self, images0: Set[int], images1: Set[int]) -> list[tuple[int, int]]:
        """The verified pairs of an image in `images0` and another one in `images1`, sorted."""
        few, many = sorted((images0, images1), key=len)
        return sorted({(min(pair), max(pair)) for pair in _across(self.partners, few, many)})


def _partners(pairs: Iterable[tuple[int, int]]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for first, second in pairs:
        found.setdefault(first, []).append(second)
        found.setdefault(second, []).append(first)
    return {image: sorted(others) for image, others in sorted(found.items())}


def _ids(pair_id: int) -> tuple[int, int]:
    first, second = pycolmap.pair_id_to_image_pair(pair_id)
    return int(first), int(second)


def find_contradictions(
    model0: pycolmap.Reconstruction,
    model1: pycolmap.Reconstruction,
    pairs: VerifiedPairs,
    *,
    images0: Iterable[int] | None = None,
    images1: Iterable[int] | None = None,
) -> tuple[int, int]:
    """Numbers of pairs of photos, one in each model, that would show the same things: (verified, matched but not verified).

    `images0` and `images1` limit the photos of each model; None takes all that are registered. Both models are in the same
    coordinates. Different parts of a building that look alike overlap if they are joined by mistake: then many photos would have
    to match and do not.
    """
    ids0 = frozenset(model0.reg_image_ids() if images0 is None else images0)
    ids1 = frozenset(model1.reg_image_ids() if images1 is None else images1)
    seen0, seen1 = (functools.cache(functools.partial(_seen_points, model)) for model in (model0, model1))
    counts = [0, 0]
    for image0, image1 in _across(pairs.tried_partners, ids0, ids1):
        (points0, center0), (points1, center1) = seen0(image0), seen1(image1)
        forth = _num_visible(points1, center1, model0, image0, center0)
        back = _num_visible(points0, center0, model1, image1, center1)
        if min(forth / max(1, len(points1)), back / max(1, len(points0))) >= 0.5 and min(forth, back) >= MIN_SEEN:
            counts[(min(image0, image1), max(image0, image1)) not in pairs.matches] += 1
    return counts[0], counts[1]


def _across(partners: Mapping[int, Sequence[int]], images0: Set[int], images1: Set[int]) -> Iterator[tuple[int, int]]:
    """Each pair of an image in `images0` and a partner of it in `images1`, in order."""
    return ((image0, image1) for image0 in sorted(images0) for image1 in partners.get(image0, ()) if image1 in images1)


def _seen_points(model: pycolmap.Reconstruction, image_id: int) -> tuple[np.ndarray, np.ndarray]:
    """The points that an image observes, float64 (n, 3), and its centre (3,)."""
    image = model.image(image_id)
    ids = [point.point3D_id for point in image.get_observation_points2D()]
    points = np.array([model.point3D(point_id).xyz for point_id in ids]).reshape(-1, 3)
    return points, np.asarray(image.projection_center())


def _num_visible(
    points: np.ndarray, seen_from: np.ndarray, model: pycolmap.Reconstruction, image_id: int, center: np.ndarray
) -> int:
    """How many of the points (n, 3), seen from one place, are inside another photo and seen from a similar direction."""
    image, camera = model.image(image_id), model.camera(model.image(image_id).camera_id)
    in_cam = points @ image.cam_from_world().matrix()[:, :3].T + image.cam_from_world().matrix()[:, 3]
    first, second = seen_from - points, center - points
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    is_similar = np.einsum("ni,ni->n", first, second) >= np.cos(np.deg2rad(MAX_ANGLE_DEG)) * lengths
    candidates = in_cam[is_similar & (in_cam[:, 2] > 0)]
    if not len(candidates):
        return 0
    middle = np.array([camera.principal_point_x, camera.principal_point_y])
    pixels = candidates[:, :2] / candidates[:, 2:] * camera.mean_focal_length() + middle
    return int(np.sum(((pixels >= 0) & (pixels < [camera.width, camera.height])).all(axis=1)))
