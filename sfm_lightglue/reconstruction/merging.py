"""Makes one model of two that are in the same coordinates, and adjusts it.

Tracks are united by keypoints: points of both models that use the same keypoint of a common photo, or keypoints that match,
become one point.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Sequence, Set
from pathlib import Path

import numpy as np
import pycolmap

from sfm_lightglue.reconstruction.bundle import bundle_problem
from sfm_lightglue.reconstruction.common_points import MIN_COMMON_POINTS, CommonPoints, NotJoined, Part
from sfm_lightglue.reconstruction.mappers import ReconstructionOptions, incremental_options

MIN_KEPT = 0.8
"""Share of the observations of each model that must remain after the adjustment."""
MIN_BRIDGING = 0.5
"""Share of the points with photos of both models that must remain after the adjustment."""


def merge(part0: Part, moved: pycolmap.Reconstruction, common: CommonPoints) -> pycolmap.Reconstruction:
    """Both models in one. `moved` is in the coordinates of the model of `part0`; common photos keep their poses in that model.

    All points that `common` links, directly or through others, become one, at the mean of their positions; each keypoint is in
    one track, and each photo once in each track. A camera that both have is that of `part0`.
    """
    joined = copy.deepcopy(part0.model)
    for image_id in sorted(set(moved.reg_image_ids()) - part0.images):
        image = moved.image(image_id)
        if not joined.exists_camera(image.camera_id):
            joined.add_camera_with_trivial_rig(moved.camera(image.camera_id))
        keypoints = np.array([point.xy for point in image.points2D]).reshape(-1, 2)
        added = pycolmap.Image(image.name, keypoints, camera_id=image.camera_id, image_id=image_id)
        joined.add_image_with_trivial_frame(added, image.cam_from_world())
    sets = _linked(common.ids)
    for points0, points1 in sets:
        _unite(joined, moved, points0, points1)
    united = {point for _, points in sets for point in points}
    for point_id in sorted(set(moved.point3D_ids()) - united):
        point = moved.point3D(point_id)
        free = [pycolmap.TrackElement(*observation) for observation in _free(joined, _observations(point), set())]
        if len(free) >= 2:
            joined.add_point3D(point.xyz, pycolmap.Track(elements=free), point.color)
    return joined


def _linked(ids: np.ndarray) -> list[tuple[list[int], list[int]]]:
    """Sets of points that are linked by pairs (n, 2) of a point of model 0 and one of model 1: the points of each model."""
    parent: dict[tuple[int, int], tuple[int, int]] = {}

    def root(point: tuple[int, int]) -> tuple[int, int]:
        while (above := parent.setdefault(point, point)) != point:
            parent[point] = parent[above]  # halves the path
            point = above
        return point

    for point0, point1 in np.unique(ids, axis=0).tolist():
        first, second = sorted((root((0, point0)), root((1, point1))))
        parent[second] = first
    found: dict[tuple[int, int], tuple[list[int], list[int]]] = {}
    for point in sorted(parent):
        found.setdefault(root(point), ([], []))[point[0]].append(point[1])
    return [found[first] for first in sorted(found)]


def _unite(joined: pycolmap.Reconstruction, moved: pycolmap.Reconstruction, points0: list[int], points1: list[int]) -> None:
    """Makes one point of the points `points0` of the joined model and the points `points1` of the other one."""
    kept, *others = points0
    points = [joined.point3D(point) for point in points0] + [moved.point3D(point) for point in points1]
    position = np.average([point.xyz for point in points], axis=0, weights=[point.track.length() for point in points])
    tracks = [_observations(point) for point in points[1:]]
    for point in others:
        joined.delete_point3D(point)
    seen = {image_id for image_id, _ in _observations(joined.point3D(kept))}
    for observation in _free(joined, itertools.chain.from_iterable(tracks), seen):
        joined.add_observation(kept, pycolmap.TrackElement(*observation))
    joined.point3D(kept).xyz = position


def _observations(point: pycolmap.Point3D) -> list[tuple[int, int]]:
    """Photo and keypoint of each observation of a point. These numbers stay if the point is deleted; its track does not."""
    return [(element.image_id, element.point2D_idx) for element in point.track.elements]


def _free(model: pycolmap.Reconstruction, observations: Iterable[tuple[int, int]], seen: set[int]) -> list[tuple[int, int]]:
    """The observations whose keypoint has no point yet, of photos that are not in `seen`; their photos are added to it."""
    free = []
    for image_id, keypoint in observations:
        if image_id not in seen and not model.image(image_id).points2D[keypoint].has_point3D():
            free.append((image_id, keypoint))
            seen.add(image_id)
    return free


def adjust(model: pycolmap.Reconstruction, options: ReconstructionOptions) -> None:
    """Adjusts all poses, points and, if wanted, intrinsics together; drops observations with large errors, and adjusts again."""
    for limit in (3 * options.max_error_px, options.max_error_px):
        bundle_problem(model, options, loss_scale_px=None, tolerance=1e-4).solve()  # the last digits are for the last adjustment
        pycolmap.ObservationManager(model).filter_all_points3D(limit, 1.5)
    bundle_problem(model, options, loss_scale_px=None).solve()
    model.update_point_3d_errors()


def refine(model: pycolmap.Reconstruction, database: Path, options: ReconstructionOptions) -> pycolmap.Reconstruction | None:
    """The model after COLMAP's last step of a mapping: tracks are completed and merged by all matches, and all is adjusted.

    Points that two models had apart become one if matches link them and the errors stay within the limits. None if photos or
    too many observations would be lost. The given model is not changed.
    """
    refined, images = copy.deepcopy(model), sorted(model.reg_image_ids())
    colmap, cached = incremental_options(options, len(images)), pycolmap.DatabaseCacheOptions()
    cached.min_num_matches, cached.image_names = options.min_num_matches, {model.image(image_id).name for image_id in images}
    with pycolmap.Database.open(database) as rows:
        cache = pycolmap.DatabaseCache.create(rows, cached)
    adjustment = colmap.get_global_bundle_adjustment()
    adjustment.print_summary = False
    mapper = pycolmap.IncrementalMapper(cache)
    mapper.begin_reconstruction(refined)
    mapper.iterative_global_refinement(
        colmap.ba_global_max_refinements,
        colmap.ba_global_max_refinement_change,
        colmap.get_mapper(),
        adjustment,
        colmap.get_triangulation(),
        normalize_reconstruction=False,
    )
    mapper.end_reconstruction(discard=False)
    before, after = (sum(each.image(image_id).num_points3D for image_id in images) for each in (model, refined))
    return refined if sorted(refined.reg_image_ids()) == images and after >= MIN_KEPT * before else None


def num_bridging(model: pycolmap.Reconstruction, added: Set[int]) -> int:
    """Number of points that both a photo in `added` and one that is not in it observe."""
    count = 0
    for point_id in model.point3D_ids():
        sides = {element.image_id in added for element in model.point3D(point_id).track.elements}
        count += len(sides) == 2
    return count


def check_adjusted(
    joined: pycolmap.Reconstruction, models: Sequence[pycolmap.Reconstruction], added: Set[int], num_before: int
) -> None:
    """Checks a joined model after the adjustment.

    Args:
        joined: The adjusted model.
        models: The models before they were joined.
        added: Ids of the photos that only the second model had.
        num_before: `num_bridging` before the adjustment.

    Raises: NotJoined if photos, or too many observations or bridging points, were lost.
    """
    expected = set().union(*(model.reg_image_ids() for model in models))
    if lost := len(expected - set(joined.reg_image_ids())):
        raise NotJoined(f"{lost} photos were lost when they were adjusted together")
    for model in models:
        ids = sorted(model.reg_image_ids())
        before, after = (sum(each.image(image_id).num_points3D for image_id in ids) for each in (model, joined))
        if after < MIN_KEPT * before:
            raise NotJoined(f"only {after} of {before} observations fit when they were adjusted together")
    kept, needed = num_bridging(joined, added), MIN_BRIDGING * num_before
    if added and kept < max(MIN_COMMON_POINTS, needed):
        raise NotJoined(f"only {kept} of {num_before} points that join them fit when they were adjusted together")
