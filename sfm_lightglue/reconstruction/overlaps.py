"""Which photos of two models would show the same things if the models were joined, and whether they match."""

from __future__ import annotations

from collections.abc import Iterable
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
    """Verified matches of each verified pair: int64 (k, 2) indices of keypoints."""
    tried: set[tuple[int, int]]
    """All pairs that were matched, verified or not."""

    @classmethod
    def read(cls, database: Path) -> VerifiedPairs:
        """All pairs of a database."""
        with pycolmap.Database.open(database) as rows:
            verified = zip(*rows.read_two_view_geometries(), strict=True)
            tried = {_ids(pair) for pair, _ in zip(*rows.read_all_matches(), strict=True)}
            matches = {_ids(pair): np.asarray(geometry.inlier_matches, np.int64) for pair, geometry in verified}
        return cls({pair: matches[pair] for pair in sorted(matches) if len(matches[pair])}, tried)


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
    seen0, seen1 = _seen_points(model0, images0), _seen_points(model1, images1)
    counts = [0, 0]
    for image0, (points0, center0) in seen0.items():
        for image1, (points1, center1) in seen1.items():
            pair = min(image0, image1), max(image0, image1)
            if image0 == image1 or pair not in pairs.tried:
                continue
            forth = _num_visible(points1, center1, model0, image0, center0)
            back = _num_visible(points0, center0, model1, image1, center1)
            if min(forth / max(1, len(points1)), back / max(1, len(points0))) >= 0.5 and min(forth, back) >= MIN_SEEN:
                counts[pair not in pairs.matches] += 1
    return counts[0], counts[1]


def _seen_points(model: pycolmap.Reconstruction, images: Iterable[int] | None) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """For each image: the points that it observes, float64 (n, 3), and its centre (3,)."""
    found = {}
    for image_id in sorted(model.reg_image_ids() if images is None else images):
        image = model.image(image_id)
        ids = [point.point3D_id for point in image.get_observation_points2D()]
        points = np.array([model.point3D(point_id).xyz for point_id in ids]).reshape(-1, 3)
        found[image_id] = points, np.asarray(image.projection_center())
    return found


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
