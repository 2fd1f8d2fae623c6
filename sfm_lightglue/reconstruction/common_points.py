"""Points that two models have in common, and the similarity between the models that these points agree on.

Two models have a point in common if they share a photo in which both use the same keypoint, or if a verified pair of photos, one
in each model, matches its keypoints.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pycolmap

from sfm_lightglue.reconstruction.mappers import ReconstructionOptions
from sfm_lightglue.reconstruction.overlaps import VerifiedPairs
from sfm_lightglue.similarity import Similarity, align_similarity

MIN_COMMON_POINTS = 30
"""Common points that must fit; COLMAP asks for as many to register a photo."""
NUM_SAMPLES = 1000
"""Random samples of three common points at most. With 40 % of wrong points, one in five samples is right."""
MIN_SAMPLES, CONFIDENCE = 100, 0.9999
"""Samples that are always taken, and the probability that one of all samples has no wrong point, at which sampling ends."""
MAX_PHOTO_SAMPLES = 200
"""Pairs of photos of both models that give a similarity each: their poses are right even if most common points are wrong."""
MAX_SCORED = 2000
"""Common points on which the samples are compared."""
NO_POINT = 2**64 - 1
"""COLMAP's id of no point."""


class NotJoined(ValueError):
    """Two models do not fit together. The message gives the reason."""


@dataclass(frozen=True)
class CommonPoints:
    """n pairs of a point in model 0 and one in model 1, each with a photo that sees it. Pairs of points may be repeated."""

    ids: np.ndarray
    """uint64 (n, 2): ids of the points."""
    images: np.ndarray
    """int64 (n, 2): ids of the photos, one in each model."""
    keypoints: np.ndarray
    """int64 (n, 2): indices of the keypoints in these photos."""


@dataclass(frozen=True)
class Part:
    """A model that may be joined, with what is asked about it again and again."""

    model: pycolmap.Reconstruction

    @functools.cached_property
    def images(self) -> frozenset[int]:
        """Ids of the registered images."""
        return frozenset(map(int, self.model.reg_image_ids()))

    @functools.cached_property
    def key(self) -> tuple[int, ...]:
        """The ids of the registered images, sorted."""
        return tuple(sorted(self.images))

    @functools.cached_property
    def points(self) -> dict[int, np.ndarray]:
        """For each registered image: uint64 (n,), the id of the point of each keypoint, or NO_POINT."""
        return {
            image_id: np.array([point.point3D_id for point in self.model.image(image_id).points2D], np.uint64)
            for image_id in sorted(self.images)
        }


def find_common_points(part0: Part, part1: Part, pairs: VerifiedPairs) -> CommonPoints:
    """The points that both models have, once for each pair of photos that shows them, in the order of the photos."""
    points0, points1 = part0.points, part1.points
    ids: list[np.ndarray] = [np.zeros((0, 2), np.uint64)]
    rows: list[np.ndarray] = [np.zeros((0, 4), np.int64)]

    def add(image0: int, image1: int, keypoints0: np.ndarray, keypoints1: np.ndarray) -> None:
        ids0, ids1 = points0[image0][keypoints0], points1[image1][keypoints1]
        both = (ids0 != NO_POINT) & (ids1 != NO_POINT)
        ids.append(np.column_stack([ids0[both], ids1[both]]))
        photos = np.tile([image0, image1], (int(both.sum()), 1))
        rows.append(np.column_stack([photos, keypoints0[both], keypoints1[both]]))

    for image in sorted(part0.images & part1.images):
        same = np.arange(len(points0[image]))
        add(image, image, same, same)
    for first, second in pairs.between(part0.images, part1.images):
        matches = pairs.matches[first, second]
        if first in points0 and second in points1:
            add(first, second, matches[:, 0], matches[:, 1])
        if second in points0 and first in points1:
            add(second, first, matches[:, 1], matches[:, 0])
    values = np.concatenate(rows)
    return CommonPoints(np.concatenate(ids), values[:, :2], values[:, 2:])


def fit_similarity(
    model0: pycolmap.Reconstruction, model1: pycolmap.Reconstruction, common: CommonPoints, options: ReconstructionOptions
) -> tuple[Similarity, np.ndarray]:
    """The similarity model0_from_model1 that most common points agree on, and a bool mask (n,) of these points.

    The best of many is refined: those of two common photos each, and those of three common points each.

    A pair of points agrees if each, seen in the photo of the other, is at most `3 * options.max_error_px` from the keypoint:
    COLMAP's limit for a new photo.

    Raises: NotJoined if there are too few points, or none agree.
    """
    if len(common.ids) < MIN_COMMON_POINTS:
        raise NotJoined(f"they have {len(common.ids)} points in common, {MIN_COMMON_POINTS} are needed")
    target = np.array([model0.point3D(int(point)).xyz for point in common.ids[:, 0]])
    source = np.array([model1.point3D(int(point)).xyz for point in common.ids[:, 1]])
    views, limit = (_Views.of(model0, common, 0), _Views.of(model1, common, 1)), 3 * options.max_error_px

    def agree(similarity: Similarity, rows: np.ndarray) -> np.ndarray:
        inverse = (target[rows] - similarity.translation) @ similarity.rotation / similarity.scale
        errors_px = np.maximum(views[0].errors_px(similarity(source[rows]), rows), views[1].errors_px(inverse, rows))
        fits: np.ndarray = errors_px <= limit
        return fits

    everything, generator = np.arange(len(source)), np.random.default_rng(options.seed)
    some = np.sort(generator.permutation(everything)[:MAX_SCORED])
    best, score = None, 2

    def better(similarity: Similarity) -> None:
        nonlocal best, score
        if similarity.scale > 0 and (number := int(agree(similarity, some).sum())) > score:
            best, score = similarity, number

    for similarity in similarities_of_photos(model0, model1):
        better(similarity)
    for number in range(NUM_SAMPLES):
        if number >= MIN_SAMPLES and (1 - (score / len(some)) ** 3) ** number <= 1 - CONFIDENCE:
            break
        sample = generator.choice(everything, 3, replace=False)
        better(Similarity(*align_similarity(source[sample], target[sample])))
    if best is None:
        raise NotJoined("no similarity fits their common points")
    return _refined(best, source, target, lambda similarity: agree(similarity, everything))


def _refined(
    best: Similarity, source: np.ndarray, target: np.ndarray, agree: Callable[[Similarity], np.ndarray]
) -> tuple[Similarity, np.ndarray]:
    """The least-squares similarity of the points that agree, as long as more points agree with it; and these points."""
    fits = agree(best)
    for _ in range(10):
        refined = Similarity(*align_similarity(source[fits], target[fits]))
        if refined.scale <= 0 or (more := agree(refined)).sum() <= fits.sum():
            break
        best, fits = refined, more
    return best, fits


def similarities_of_photos(model0: pycolmap.Reconstruction, model1: pycolmap.Reconstruction) -> Iterator[Similarity]:
    """Similarities model0_from_model1, each of two photos that both models have; the rotation is that of the first photo.

    Nothing if they share fewer than two photos. At most MAX_PHOTO_SAMPLES pairs are taken, evenly among all.
    """
    both = sorted(set(model0.reg_image_ids()) & set(model1.reg_image_ids()))
    pairs = list(itertools.islice(itertools.permutations(both, 2), 50 * MAX_PHOTO_SAMPLES))
    for first, second in pairs[:: max(1, len(pairs) // MAX_PHOTO_SAMPLES)]:
        poses = [model.image(first).cam_from_world().rotation.matrix() for model in (model0, model1)]
        centers0, centers1 = (
            [np.asarray(model.image(image).projection_center()) for image in (first, second)] for model in (model0, model1)
        )
        length0, length1 = np.linalg.norm(centers0[1] - centers0[0]), np.linalg.norm(centers1[1] - centers1[0])
        if min(length0, length1) > 0:
            scale, rotation = float(length0 / length1), poses[0].T @ poses[1]
            yield Similarity(scale, rotation, centers0[0] - scale * rotation @ centers1[0])


@dataclass(frozen=True)
class _Views:
    """The photo and the keypoint of each of n common points, in one model."""

    poses: np.ndarray
    """float64 (n, 3, 4): cam_from_world."""
    rays: np.ndarray
    """float64 (n, 2): keypoints without distortion, at depth 1."""
    focal_px: np.ndarray
    """float64 (n,)."""

    @classmethod
    def of(cls, model: pycolmap.Reconstruction, common: CommonPoints, side: int) -> _Views:
        ids = common.images[:, side]
        poses, rays, focal_px = np.zeros((len(ids), 3, 4)), np.zeros((len(ids), 2)), np.zeros(len(ids))
        for image_id in sorted({*ids.tolist()}):
            image, rows = model.image(image_id), np.nonzero(ids == image_id)[0]
            camera = model.camera(image.camera_id)
            poses[rows], focal_px[rows] = image.cam_from_world().matrix(), camera.mean_focal_length()
            points = image.points2D
            keypoints = np.array([points[int(index)].xy for index in common.keypoints[rows, side]])
            rays[rows] = camera.cam_from_img(keypoints)
        return cls(poses, rays, focal_px)

    def errors_px(self, points: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """float64 (k,): distances of points (k, 3), in world, from the keypoints `rows` (k,); infinite behind the camera."""
        poses, rays = self.poses[rows], self.rays[rows]
        x, y, depth = (np.einsum("nij,nj->ni", poses[:, :, :3], points) + poses[:, :, 3]).T
        safe = np.where(depth > 0, depth, np.inf)
        errors = np.hypot(x / safe - rays[:, 0], y / safe - rays[:, 1]) * self.focal_px[rows]
        result: np.ndarray = np.where((depth > 0) & np.isfinite(errors), errors, np.inf)
        return result
