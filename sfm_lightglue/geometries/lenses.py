"""Fisheye and strongly distorting lenses, found from the matches before the pairs are verified.

A fundamental matrix knows no distortion: towards the borders of a fisheye photo, matches do not fit it. With ordinary lenses
nearly all matches of the strongest pairs fit, with a fisheye lens less than half. Then essential matrices are estimated with some
rough lenses. The best one is adjusted together with the points of these pairs. If many more matches fit with it, all pairs are
verified with this lens, and the database has it.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import pycolmap

from sfm_lightglue.cameras import Camera, CameraAssignment
from sfm_lightglue.mistakes import count_of
from sfm_lightglue.products import Pair
from sfm_lightglue.storage import H5Reader

NUM_PAIRS = 8
"""Pairs that lenses are tried on: those with most matches."""
NUM_SAMPLED = 200
"""Of each of these pairs, 200 to 400 matches are tried; all if there are fewer."""
MIN_SHARE = 0.87
"""If this share of the matches fits fundamental matrices in more than half of the pairs, no lens is looked for. Nine sets of
ordinary photos have 0.95 to 0.99 (all pairs together), rendered photos with 10 % wrong matches 0.73 to 0.84 with a radial term of
-0.1 to -0.2, and 0.44 to 0.55 with a fisheye lens of 110 degrees."""
MIN_GAIN = 1.08
"""A lens needs this many times the matches that fit fundamental matrices. Ordinary lenses reach 1.00 (nine sets of photos) or
1.02 (rendered, little distortion), a radial term of -0.12 1.11, a fisheye lens of 110 degrees 1.5 to 2.0."""
FISHEYE_GAIN = 1.02
"""A fisheye lens needs this many times the matches that fit the best other lens."""
FIELDS_DEG = (105, 120, 135, 150, 170, 190, 215)
"""Fields of view along the diagonal of the fisheye lenses that are tried. They have equal angles at equal distances."""
FOCAL_FACTORS, RADIAL_TERMS = (0.6, 0.75, 0.95, 1.2), (-0.1, -0.2, -0.3)
"""Focal lengths / longest side, and radial terms, of the other lenses."""
FISHEYE, ORDINARY = "RADIAL_FISHEYE", "RADIAL"
"""Models of the lenses that are tried: focal length, principal point, which stays in the middle, and two radial terms."""
STORED_FISHEYE = "OPENCV_FISHEYE"
"""The model that fisheye photos get: programs read it, and its two further terms are found by the mapper."""
MIN_MATCHES = 20
"""Matches of a pair that is tried."""
MIN_SAME_LENS, MIN_USUAL = 0.88, 0.75
"""A pair has the lens if this many times the matches that fit a fundamental matrix fit it, and this many times the usual share of
its matches. Measured with rendered photos: 0.98 or more if both have the lens. Pairs of other zooms reach 0.3 to 0.8 of the first
or of the second, and rarely more of both."""
MAX_TRIED, MAX_TESTED, MAX_OTHERS = 6, 100, 0.1
"""Pairs of each photo that are tried; photos that are tested; share of them without the lens up to which the rest has it."""
MIN_TRIALS, NUM_ROUGH_TRIALS, MAX_TRIALS = 50, 100, 300
"""Trials of RANSAC, the second number for rough lenses. COLMAP makes 1000 or more."""
NUM_ADJUSTMENTS = 3
"""A lens is adjusted at most this often: with it more matches fit, which adjust it further."""
MIN_ANGLE_DEG = 1.0
"""Matches with a smaller angle between their rays do not adjust a lens."""
LOSS_SCALE_PX = 1.0
"""Scale of Cauchy's loss of the adjustment."""
PLAUSIBLE = (0.1, 10.0, 1.0)
"""Smallest and largest focal length / longest side, and the largest radial term, of an adjusted lens."""

Matched: TypeAlias = tuple[np.ndarray, np.ndarray, float]
"""See `verification.matched_keypoints`."""


@dataclasses.dataclass(frozen=True)
class Lens:
    """A lens that fits the matches of some photos of a group much better than one without distortion."""

    camera: pycolmap.Camera
    before: int
    """Matches of the tried pairs that fit fundamental matrices, ..."""
    after: int
    """... and those that fit essential matrices with this lens."""
    total: int
    """All their matches."""
    without: tuple[str, ...] = ()
    """Photos of the group that have another lens or zoom, sorted."""

    def describe(self) -> str:
        """A sentence."""
        camera = self.camera
        kind = "a fisheye lens" if camera.is_perspective_fisheye() else "a lens with distortion"
        others = f"; {count_of(len(self.without), 'photo')} of this size have another one" if self.without else ""
        return (
            f"photos of {camera.width} x {camera.height} px have {kind}: {self.after} instead of {self.before} of "
            f"{self.total} matches fit that were tried{others}"
        )

    def to_settings(self) -> dict[str, Any]:
        """Model, focal length px and radial terms, as values for JSON; rounded, so that all computers find the same."""
        focal_px, _, _, *radial = self.camera.params
        params = [round(float(focal_px), 1), *(round(float(term), 4) for term in radial)]
        return {"model": self.camera.model.name, "params": params, "without": list(self.without)}


def find_lens(matched: Sequence[Matched], size: tuple[int, int]) -> Lens | None:
    """The lens that fits the matches of some pairs much better than one without distortion; None for ordinary photos.

    Args:
        matched: matches of the strongest pairs of photos with this lens, see `strongest_pairs`.
        size: (width, height) px of the photos.
    """
    matched = [_thinned(*pair) for pair in matched]
    if _are_ordinary(matched):
        return None
    fitting = sum(map(_num_fitting, matched))
    best: dict[str, tuple[int, pycolmap.Camera]] = {}
    for camera in _candidates(size):
        count, name = _num_agreeing(matched, camera, NUM_ROUGH_TRIALS), camera.model.name
        if name not in best or count > best[name][0]:
            best[name] = count, camera
    found = {name: _adjusted_until_best(matched, camera) for name, (_, camera) in best.items()}
    count, camera = found[FISHEYE if found[FISHEYE][0] > FISHEYE_GAIN * found[ORDINARY][0] else ORDINARY]
    total = sum(len(pair[0]) for pair in matched)
    return Lens(camera, fitting, count, total) if count >= MIN_GAIN * max(fitting, NUM_PAIRS) else None


def photos_without(lens: Lens, names: Iterable[str], pairs: Iterable[Pair], read: Callable[[Pair], Matched]) -> tuple[str, ...]:
    """The photos of a group that do not have its lens, sorted: other zooms, or cameras, of the same size.

    The photos with the fewest fitting pairs are taken out one by one, until at least half of the pairs of each photo with the
    others fit. Some photos stand for all if nearly all of them have the lens.

    Args:
        lens: found from some of their pairs.
        names: the photos of the group.
        pairs: pairs of these photos, those with most matches first.
        read: gives the matches of a pair.
    """
    fits, trials = dict[Pair, bool](), Counter[str]()
    for pair in pairs:
        ends = {name for name in (pair.name0, pair.name1) if trials[name] < MAX_TRIED}
        if ends and (len(trials) < MAX_TESTED or ends & {*trials}):
            trials.update((pair.name0, pair.name1))
            fits[pair] = _fits(lens, _thinned(*read(pair)))
    having = {*trials}
    while having:
        votes = {name: [1, 2] for name in having}  # twice the fitting pairs, and all; a photo without pairs has half of one
        for pair, fit in fits.items():
            if pair.name0 in having and pair.name1 in having:
                for name in (pair.name0, pair.name1):
                    votes[name][0] += 2 * fit
                    votes[name][1] += 2
        worst = min(having, key=lambda name: (votes[name][0] / votes[name][1], name))
        if 2 * votes[worst][0] >= votes[worst][1]:
            break
        having.discard(worst)
    failed = {*trials} - having
    return tuple(sorted(failed if len(failed) <= MAX_OTHERS * len(trials) else {*names} - having))


def _fits(lens: Lens, matched: Matched) -> bool:
    """Whether the matches of a pair fit a lens as well as those that it was found from, and better than none."""
    count = _num_agreeing([matched], lens.camera, MAX_TRIALS)
    usual = lens.after / lens.total
    return count >= max(MIN_SAME_LENS * _num_fitting(matched), MIN_USUAL * usual * len(matched[0]))


def strongest_pairs(pairs: Sequence[Pair], counts: np.ndarray, group_of: Mapping[str, str]) -> dict[str, list[Pair]]:
    """The pairs of the photos of each group, those with most matches first. Pairs of two groups are left out.

    Args:
        pairs: the pairs.
        counts: (len(pairs),): the number of their matches.
        group_of: the group of each photo whose lens is not known, by name.
    """
    found: dict[str, list[tuple[int, Pair]]] = {}
    for pair, count in zip(pairs, counts.tolist(), strict=True):
        group = group_of.get(pair.name0)
        if group is not None and group == group_of.get(pair.name1) and count >= MIN_MATCHES:
            found.setdefault(group, []).append((-count, pair))
    return {group: [pair for _, pair in sorted(found[group])] for group in sorted(found)}


def with_lenses(cameras: CameraAssignment, geometries: H5Reader) -> CameraAssignment:
    """The cameras that the pairs in a file of geometries were verified with: photos with a lens that was found have it.

    Args:
        cameras: the cameras that the stage verify began with.
        geometries: the file.
    """
    changed = lens_cameras(cameras.cameras, cameras.undecided, geometries.settings.get("lenses", {}))
    return dataclasses.replace(
        cameras,
        cameras={**cameras.cameras, **changed},
        groups={name: f"{group} with a lens" if name in changed else group for name, group in cameras.groups.items()},
        unsure=cameras.unsure - {*changed},
        undecided={name: group for name, group in cameras.undecided.items() if name not in changed},
    )


def lens_cameras(
    cameras: Mapping[str, Camera], undecided: Mapping[str, str], lenses: Mapping[str, Mapping[str, Any]]
) -> dict[str, Camera]:
    """The cameras of the photos with a lens that was found, by name.

    Args:
        cameras: the cameras of all photos, with their sizes.
        undecided: see `CameraAssignment`.
        lenses: lenses by group of `undecided`, see `Lens.to_settings`.
    """
    others = {name for lens in lenses.values() for name in lens["without"]}
    return {
        name: _camera_of(lenses[group], cameras[name].size)
        for name, group in undecided.items()
        if group in lenses and name not in others
    }


def _camera_of(lens: Mapping[str, Any], size: tuple[int, int]) -> Camera:
    """The camera of photos of a size with a lens."""
    focal_px, *radial = lens["params"]
    center = size[0] / 2, size[1] / 2
    if lens["model"] == FISHEYE:
        return Camera(STORED_FISHEYE, size, (focal_px, focal_px, *center, *radial, 0.0, 0.0), True)
    return Camera(ORDINARY, size, (focal_px, *center, *radial), True)


def _thinned(points0: np.ndarray, points1: np.ndarray, max_error_px: float) -> Matched:
    """Each n-th match of a pair, NUM_SAMPLED to twice as many."""
    step = max(1, len(points0) // NUM_SAMPLED)
    return points0[::step], points1[::step], max_error_px


def _are_ordinary(matched: Sequence[Matched]) -> bool:
    """Whether most matches of more than half of the pairs fit fundamental matrices."""
    num_ordinary = 0
    for pair in matched:
        num_ordinary += _num_fitting(pair) >= MIN_SHARE * len(pair[0])
        if 2 * num_ordinary > len(matched):
            return True
    return not matched


def _num_fitting(matched: Matched) -> int:
    """How many matches fit a fundamental matrix."""
    points0, points1, max_error_px = matched
    estimated = pycolmap.estimate_fundamental_matrix(points0, points1, _ransac(max_error_px))
    return 0 if estimated is None else int(estimated["num_inliers"])


def _adjusted_until_best(matched: Sequence[Matched], camera: pycolmap.Camera) -> tuple[int, pycolmap.Camera]:
    """The camera, adjusted as long as more matches fit, and their number."""
    count = _num_agreeing(matched, camera, MAX_TRIALS)
    for _ in range(NUM_ADJUSTMENTS):
        adjusted = _adjusted(matched, camera)
        if adjusted.has_bogus_params(*PLAUSIBLE):
            break
        before, count = count, max(count, _num_agreeing(matched, adjusted, MAX_TRIALS))
        if count == before:
            break
        camera = adjusted
    return count, camera


def _candidates(size: tuple[int, int]) -> Iterator[pycolmap.Camera]:
    """The rough lenses."""
    for field_deg in FIELDS_DEG:
        yield _lens(FISHEYE, size, float(np.hypot(*size)) / np.radians(field_deg), 0)
    for factor in FOCAL_FACTORS:
        for term in RADIAL_TERMS:
            yield _lens(ORDINARY, size, factor * max(size), term)


def _lens(model: str, size: tuple[int, int], focal_px: float, term: float) -> pycolmap.Camera:
    params = [focal_px, size[0] / 2, size[1] / 2, term, 0]
    return pycolmap.Camera(model=model, width=size[0], height=size[1], params=params, camera_id=1)


def _ransac(max_error_px: float, max_trials: int = MAX_TRIALS) -> pycolmap.RANSACOptions:
    ransac = pycolmap.RANSACOptions()
    ransac.max_error, ransac.random_seed = max_error_px, 0
    ransac.min_num_trials, ransac.max_num_trials = MIN_TRIALS, max_trials
    return ransac


def _num_agreeing(matched: Iterable[Matched], camera: pycolmap.Camera, max_trials: int) -> int:
    """How many matches fit essential matrices with a camera."""
    return sum(len(points0) for points0, _, _ in _two_view_models(matched, camera, max_trials))


def _two_view_models(
    matched: Iterable[Matched], camera: pycolmap.Camera, max_trials: int = MAX_TRIALS
) -> Iterator[tuple[np.ndarray, np.ndarray, pycolmap.Rigid3d]]:
    """The matches of each pair that fit an essential matrix with a camera, float64 (n, 2) twice, and its cam1_from_cam0."""
    for points0, points1, max_error_px in matched:
        estimated = pycolmap.estimate_essential_matrix(points0, points1, camera, camera, _ransac(max_error_px, max_trials))
        if estimated is not None:
            fits = np.asarray(estimated["inlier_mask"], bool)
            yield points0[fits], points1[fits], estimated["cam2_from_cam1"]


def _adjusted(matched: Iterable[Matched], camera: pycolmap.Camera) -> pycolmap.Camera:
    """The camera after an adjustment of its focal length and radial terms, with the points and the second pose of each pair."""
    model, scope = pycolmap.Reconstruction(), pycolmap.BundleAdjustmentConfig()
    model.add_camera_with_trivial_rig(camera)
    for points0, points1, cam1_from_cam0 in _two_view_models(matched, camera):
        points3d, kept = _triangulated(camera, points0, points1, cam1_from_cam0)
        first = model.num_images() + 1
        for image_id, pose, points in ((first, pycolmap.Rigid3d(), points0), (first + 1, cam1_from_cam0, points1)):
            image = pycolmap.Image(name=str(image_id), camera_id=1, image_id=image_id)
            image.points2D = pycolmap.Point2DList([pycolmap.Point2D(point) for point in points[kept]])
            model.add_image_with_trivial_frame(image, pose)
            scope.add_image(image_id)
        scope.set_constant_rig_from_world_pose(model.image(first).frame_id)
        for number, point in enumerate(points3d):
            track = pycolmap.Track()
            track.add_element(first, number)
            track.add_element(first + 1, number)
            model.add_point3D(point, track)
    if model.num_points3D() == 0:
        return camera
    options = pycolmap.BundleAdjustmentOptions()
    options.refine_principal_point = options.print_summary = False
    options.ceres.loss_function_type, options.ceres.loss_function_scale = pycolmap.LossFunctionType.CAUCHY, LOSS_SCALE_PX
    solver = options.ceres.solver_options
    solver.num_threads, solver.max_num_iterations = 1, 50
    solver.max_trust_region_radius = solver.initial_trust_region_radius  # nothing fixes the scale of each pair but this
    pycolmap.create_default_ceres_bundle_adjuster(options, scope, model).solve()
    return pycolmap.Camera(model.camera(1).todict())


def _triangulated(
    camera: pycolmap.Camera, points0: np.ndarray, points1: np.ndarray, cam1_from_cam0: pycolmap.Rigid3d
) -> tuple[list[np.ndarray], list[int]]:
    """The points of matches in the frame of photo 0, in front of both photos, and the positions of these matches."""
    rays0, rays1 = camera.cam_ray_from_img(points0), camera.cam_ray_from_img(points1)
    cosines = np.einsum("ni,ni->n", rays0 @ cam1_from_cam0.rotation.matrix().T, rays1)
    points, kept = [], []
    for number in np.flatnonzero(cosines < np.cos(np.radians(MIN_ANGLE_DEG))).tolist():
        point = pycolmap.triangulate_mid_point(cam1_from_cam0, rays0[number], rays1[number])
        if point is not None and rays0[number] @ point > 0 and rays1[number] @ (cam1_from_cam0 * point) > 0:
            points.append(point)
            kept.append(number)
    return points, kept
