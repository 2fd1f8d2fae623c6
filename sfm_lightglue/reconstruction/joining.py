"""Joins models that the mapper left apart, by points that both have.

Two models have a point in common if they share a photo in which both use the same keypoint, or if a verified pair of photos, one
in each model, matches its keypoints. A similarity is estimated from the common points, checked, and all is adjusted together. Two
models stay apart, with a reason, if anything does not fit: wrong joins are worse than two good models.
"""

from __future__ import annotations

import copy
import itertools
import logging
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pycolmap

from sfm_lightglue.model_files import read_model
from sfm_lightglue.reconstruction.mappers import ReconstructionOptions
from sfm_lightglue.reconstruction.models import model_folders, rank_of
from sfm_lightglue.reconstruction.overlaps import VerifiedPairs, find_contradictions
from sfm_lightglue.similarity import Similarity, align_similarity

logger = logging.getLogger(__name__)

MIN_COMMON_POINTS = 30
"""Common points that must fit; COLMAP asks for as many to register a photo."""
MIN_PAIRS = 2
"""Pairs of photos that must each have MIN_POINTS_OF_PAIR of them: one pair may be a wrong match of similar things."""
MIN_POINTS_OF_PAIR = 8
MIN_SHARE = 0.25
"""Share of the common points that must fit; COLMAP asks for the same share to register a photo."""
MIN_KEPT = 0.8
"""Share of the observations of each model, and of the common points that fit, that must remain after the adjustment."""
NUM_SAMPLES = 1000
"""Random samples of three common points. With 40 % of wrong points, one in five samples is right."""
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


def join_models(
    output: Path, pairs: VerifiedPairs, options: ReconstructionOptions, tried: set[tuple[tuple[int, ...], ...]]
) -> list[str]:
    """Joins the models in the folder `output` where they fit together; returns a sentence about each pair of models, and logs it.

    The joined model takes the folder of the larger one; the folder of the smaller one is deleted. Models without common points
    are not mentioned. `tried` has the ids of the images of each two models that were tried: they are not tried again, and those
    tried now are added.
    """
    models = {folder: read_model(folder) for folder in model_folders(output)}
    notes = list[str]()
    while True:
        ranked = sorted(models, key=lambda folder: (*rank_of(models[folder]), folder.name))
        keys = {folder: tuple(sorted(models[folder].reg_image_ids())) for folder in ranked}
        todo = [both for both in itertools.combinations(ranked, 2) if tuple(keys[folder] for folder in both) not in tried]
        if not todo:
            return notes
        folder0, folder1 = todo[0]
        tried.add((keys[folder0], keys[folder1]))
        sizes = f"{models[folder0].num_reg_images()} and {models[folder1].num_reg_images()} images"
        try:
            joined, note = join_two(models[folder0], models[folder1], pairs, options)
        except NotJoined as reason:
            if str(reason):
                notes.append(f"models of {sizes} were not joined: {reason}")
                logger.info("%s", notes[-1])
            continue
        notes.append(f"models of {sizes} were joined: {note}")
        logger.info("%s", notes[-1])
        joined.write(folder0)
        shutil.rmtree(folder1)
        models[folder0] = joined
        del models[folder1]


def join_two(
    model0: pycolmap.Reconstruction, model1: pycolmap.Reconstruction, pairs: VerifiedPairs, options: ReconstructionOptions
) -> tuple[pycolmap.Reconstruction, str]:
    """A model with the photos of both, in the coordinates of `model0`, and what it rests on. The given models are not changed.

    Raises: NotJoined with the reason; with an empty one if the models have no points in common.
    """
    common = find_common_points(model0, model1, pairs)
    if not len(common.ids):
        raise NotJoined("")
    similarity, fits = fit_similarity(model0, model1, common, options)
    chosen = CommonPoints(common.ids[fits], common.images[fits], common.keypoints[fits])
    num_pairs = _check_support(chosen, len(fits))
    moved = copy.deepcopy(model1)
    moved.transform(pycolmap.Sim3d(similarity.scale, pycolmap.Rotation3d(similarity.rotation), similarity.translation))
    agreeing, contradicting = find_contradictions(model0, moved, pairs)
    if contradicting > agreeing:
        raise NotJoined(f"{contradicting} pairs of photos would show the same things but do not match, {agreeing} match")
    joined = merge(model0, moved, chosen)
    adjust(joined, options)
    _check_adjusted(joined, model0, moved, chosen)
    error = joined.compute_mean_reprojection_error()
    return (
        joined,
        f"{len(chosen.ids)} matches of common points in {num_pairs} pairs of photos, {error:.2f} px after the adjustment",
    )


def find_common_points(model0: pycolmap.Reconstruction, model1: pycolmap.Reconstruction, pairs: VerifiedPairs) -> CommonPoints:
    """The points that both models have, once for each pair of photos that shows them, in the order of the photos."""
    points0, points1 = _points_of_keypoints(model0), _points_of_keypoints(model1)
    ids: list[np.ndarray] = [np.zeros((0, 2), np.uint64)]
    rows: list[np.ndarray] = [np.zeros((0, 4), np.int64)]

    def add(image0: int, image1: int, keypoints0: np.ndarray, keypoints1: np.ndarray) -> None:
        ids0, ids1 = points0[image0][keypoints0], points1[image1][keypoints1]
        both = (ids0 != NO_POINT) & (ids1 != NO_POINT)
        ids.append(np.column_stack([ids0[both], ids1[both]]))
        photos = np.tile([image0, image1], (int(both.sum()), 1))
        rows.append(np.column_stack([photos, keypoints0[both], keypoints1[both]]))

    for image in sorted(points0.keys() & points1.keys()):
        same = np.arange(len(points0[image]))
        add(image, image, same, same)
    for (first, second), matches in pairs.matches.items():
        if first in points0 and second in points1:
            add(first, second, matches[:, 0], matches[:, 1])
        if second in points0 and first in points1:
            add(second, first, matches[:, 1], matches[:, 0])
    values = np.concatenate(rows)
    return CommonPoints(np.concatenate(ids), values[:, :2], values[:, 2:])


def _points_of_keypoints(model: pycolmap.Reconstruction) -> dict[int, np.ndarray]:
    """For each registered image: uint64 (n,), the id of the point of each keypoint, or NO_POINT."""
    images = {image_id: model.image(image_id) for image_id in sorted(model.reg_image_ids())}
    return {image_id: np.array([point.point3D_id for point in image.points2D], np.uint64) for image_id, image in images.items()}


def fit_similarity(
    model0: pycolmap.Reconstruction, model1: pycolmap.Reconstruction, common: CommonPoints, options: ReconstructionOptions
) -> tuple[Similarity, np.ndarray]:
    """The similarity model0_from_model1 that most common points agree on, and a bool mask (n,) of these points.

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

    generator, everything = np.random.default_rng(options.seed), np.arange(len(source))
    some = np.sort(generator.permutation(everything)[:MAX_SCORED])
    best, score = None, 2
    for _ in range(NUM_SAMPLES):
        sample = generator.choice(everything, 3, replace=False)
        similarity = Similarity(*align_similarity(source[sample], target[sample]))
        if similarity.scale > 0 and (number := int(agree(similarity, some).sum())) > score:
            best, score = similarity, number
    if best is None:
        raise NotJoined("no similarity fits their common points")
    fits = agree(best, everything)
    for _ in range(10):  # as long as more points agree
        refined = Similarity(*align_similarity(source[fits], target[fits]))
        if refined.scale <= 0 or (more := agree(refined, everything)).sum() <= fits.sum():
            break
        best, fits = refined, more
    return best, fits


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
            for row in rows:
                ray = camera.cam_from_img(image.points2D[int(common.keypoints[row, side])].xy)
                rays[row] = np.nan if ray is None else np.asarray(ray)[:2]
        return cls(poses, rays, focal_px)

    def errors_px(self, points: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """float64 (k,): distances of points (k, 3), in world, from the keypoints `rows` (k,); infinite behind the camera."""
        poses, rays = self.poses[rows], self.rays[rows]
        x, y, depth = (np.einsum("nij,nj->ni", poses[:, :, :3], points) + poses[:, :, 3]).T
        safe = np.where(depth > 0, depth, np.inf)
        errors = np.hypot(x / safe - rays[:, 0], y / safe - rays[:, 1]) * self.focal_px[rows]
        result: np.ndarray = np.where((depth > 0) & np.isfinite(errors), errors, np.inf)
        return result


def _check_support(chosen: CommonPoints, num_common: int) -> int:
    """Number of pairs of photos with enough of the common points that fit. Raises: NotJoined if there is not enough."""
    counts, num_points = Counter(map(tuple, chosen.images.tolist())), len(np.unique(chosen.ids, axis=0))
    num_pairs = sum(count >= MIN_POINTS_OF_PAIR for count in counts.values())
    found = f"{len(chosen.ids)} of {num_common} matches of common points fit, in {num_pairs} pairs of photos"
    if num_points < MIN_COMMON_POINTS or len(chosen.ids) < MIN_SHARE * num_common or num_pairs < MIN_PAIRS:
        raise NotJoined(f"{found}; {MIN_COMMON_POINTS} points, a share of {MIN_SHARE} and {MIN_PAIRS} pairs are needed")
    return num_pairs


def merge(model0: pycolmap.Reconstruction, moved: pycolmap.Reconstruction, common: CommonPoints) -> pycolmap.Reconstruction:
    """Both models in one, if both are in the same coordinates. Common points become one; shared photos stay as in `model0`.

    A camera that both have is that of `model0`.
    """
    joined = copy.deepcopy(model0)
    known = set(joined.reg_image_ids())
    for image_id in sorted(set(moved.reg_image_ids()) - known):
        image = moved.image(image_id)
        if not joined.exists_camera(image.camera_id):
            joined.add_camera_with_trivial_rig(moved.camera(image.camera_id))
        keypoints = np.array([point.xy for point in image.points2D]).reshape(-1, 2)
        added = pycolmap.Image(image.name, keypoints, camera_id=image.camera_id, image_id=image_id)
        joined.add_image_with_trivial_frame(added, image.cam_from_world())
    same = {int(point1): int(point0) for point0, point1 in reversed(common.ids.tolist())}
    for point_id in sorted(moved.point3D_ids()):
        point = moved.point3D(point_id)
        free = [
            element
            for element in point.track.elements
            if not joined.image(element.image_id).points2D[element.point2D_idx].has_point3D()
        ]
        if point_id in same and joined.exists_point3D(same[point_id]):
            seen = {element.image_id for element in joined.point3D(same[point_id]).track.elements}
            for element in free:
                if element.image_id not in seen:
                    joined.add_observation(same[point_id], element)
        elif len(free) >= 2:
            joined.add_point3D(point.xyz, pycolmap.Track(elements=free), point.color)
    return joined


def adjust(model: pycolmap.Reconstruction, options: ReconstructionOptions) -> None:
    """Adjusts all poses, points and, if wanted, intrinsics together; drops observations with large errors, and adjusts again."""
    colmap, scope = pycolmap.BundleAdjustmentOptions(), pycolmap.BundleAdjustmentConfig()
    for image_id in sorted(model.reg_image_ids()):
        scope.add_image(image_id)
    scope.fix_gauge(pycolmap.BundleAdjustmentGauge.TWO_CAMS_FROM_WORLD)
    colmap.refine_focal_length = colmap.refine_extra_params = options.refine_intrinsics
    colmap.refine_principal_point = options.refine_principal_point
    colmap.print_summary = False
    colmap.ceres.solver_options.num_threads = max(1, options.num_threads)
    for limit in (3 * options.max_error_px, options.max_error_px):
        pycolmap.create_default_bundle_adjuster(colmap, scope, model).solve()
        pycolmap.ObservationManager(model).filter_all_points3D(limit, 1.5)
    pycolmap.create_default_bundle_adjuster(colmap, scope, model).solve()  # pycolmap.bundle_adjustment would log to the terminal
    model.update_point_3d_errors()


def _check_adjusted(
    joined: pycolmap.Reconstruction, model0: pycolmap.Reconstruction, moved: pycolmap.Reconstruction, common: CommonPoints
) -> None:
    """Raises: NotJoined if the adjustment lost photos, or too many observations or common points."""
    num_images = len({*model0.reg_image_ids(), *moved.reg_image_ids()})
    if joined.num_reg_images() < num_images:
        raise NotJoined(f"{num_images - joined.num_reg_images()} photos were lost when they were adjusted together")
    for model in (model0, moved):
        ids = sorted(model.reg_image_ids())
        before = sum(model.image(image_id).num_points3D for image_id in ids)
        after = sum(joined.image(image_id).num_points3D for image_id in ids)
        if after < MIN_KEPT * before:
            raise NotJoined(f"only {after} of {before} observations fit when they were adjusted together")
    sides = {*moved.reg_image_ids()} - {*model0.reg_image_ids()}
    kept = 0
    for point in {*common.ids[:, 0].tolist()}:
        if joined.exists_point3D(point):
            seen = {element.image_id for element in joined.point3D(point).track.elements}
            kept += bool(seen & sides) and bool(seen - sides)
    total = len({*common.ids[:, 0].tolist()})
    if sides and kept < max(MIN_COMMON_POINTS, 0.5 * total):
        raise NotJoined(f"only {kept} of {total} common points fit when they were adjusted together")
