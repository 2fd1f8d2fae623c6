"""Fisheye and strongly distorting lenses, found from the matches of photos that were verified with cameras without distortion.

A fundamental matrix knows no distortion: towards the borders of a fisheye photo, matches do not fit it. With ordinary lenses
nearly all matches of the strongest pairs fit, with a fisheye lens less than half. Then essential matrices are estimated with some
rough lenses. If many more matches fit with one of them, all pairs are verified with it and the scene is mapped. Both are repeated
with the cameras that the models have.
"""

from __future__ import annotations

import copy
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pycolmap

from sfm_lightglue.model_files import read_model
from sfm_lightglue.reconstruction.choosing import agreement
from sfm_lightglue.reconstruction.fallbacks import Mapper, map_with_fallbacks, replace_models
from sfm_lightglue.reconstruction.mappers import ReconstructionOptions
from sfm_lightglue.reconstruction.models import model_folders, rank_of

logger = logging.getLogger(__name__)

NUM_PAIRS = 8
"""Pairs that lenses are tried on: those with most matches."""
MIN_SHARE = 0.7
"""If this share of their matches fits fundamental matrices (median), no lens is looked for. Nine sets of ordinary photos have
0.89 to 0.99, rendered fisheye photos with 10 % wrong matches 0.33 to 0.49."""
MIN_GAIN = 1.25
"""A lens needs this many times the matches that fit fundamental matrices, ..."""
FISHEYE_GAIN = 1.05
"""... and a fisheye lens this many times those that fit the best other lens."""
FIELDS_DEG = (105, 120, 135, 150, 170, 190, 215)
"""Fields of view along the diagonal of the fisheye lenses that are tried. They have equal angles at equal distances."""
FOCAL_FACTORS, RADIAL_TERMS = (0.6, 0.75, 0.95, 1.2), (-0.1, -0.2, -0.3)
"""Focal lengths / longest side, and radial terms, of the other lenses."""
FISHEYE, ORDINARY = "OPENCV_FISHEYE", "SIMPLE_RADIAL"
MIN_INLIERS = 20
"""Matches that must fit an essential matrix for a pair to be verified, and ..."""
MIN_INLIER_SHARE = 0.25
"""... the share of all its matches that must fit."""
MIN_TRIALS, MAX_TRIALS = 50, 300
"""Trials of RANSAC. COLMAP makes 1000 or more."""
NUM_ROUNDS = 2
"""Verifications and mappings: with the rough lens, and with the camera that the first model has."""

_Counts: TypeAlias = tuple[tuple[int, int], int, int]
"""Image ids of a pair, its verified matches, all its matches."""


@dataclass(frozen=True)
class Lens:
    """A lens that fits the matches of photos of one size better than one without distortion."""

    camera: pycolmap.Camera
    before: int
    """Matches of the tried pairs that fit fundamental matrices, ..."""
    after: int
    """... and those that fit essential matrices with this lens."""
    total: int
    """All their matches."""

    def describe(self) -> str:
        """A sentence."""
        camera = self.camera
        kind = "a fisheye lens" if camera.is_perspective_fisheye() else "a lens with strong distortion"
        return (
            f"photos of {camera.width} x {camera.height} px have {kind}: {self.after} instead of {self.before} of {self.total} "
            f"matches of the strongest pairs fit"
        )


@dataclass(frozen=True)
class _Pairs:
    """Matches of pairs and keypoints of photos, as far as they were asked for."""

    rows: pycolmap.Database
    keypoints: dict[int, np.ndarray] = field(default_factory=dict)

    def matched(self, image_ids: tuple[int, int]) -> tuple[np.ndarray, ...]:
        """The matches of a pair uint32 (n, 2), and the keypoints (n, 2) that they connect, px.

        Raises: ValueError if the database does not have these keypoints.
        """
        matches = np.asarray(self.rows.read_matches(*image_ids), np.uint32).reshape(-1, 2)
        for image_id, last in zip(image_ids, matches.max(axis=0, initial=0).tolist(), strict=True):
            if len(matches) and last >= len(self.of(image_id)):
                raise ValueError(
                    f"the database has matches of keypoint {last} of {self.rows.read_image(image_id).name}, which has "
                    f"{len(self.of(image_id))} keypoints there: it is damaged, or two databases are mixed. Build it again"
                )
        return matches, *(self.of(image_id)[matches[:, column]] for column, image_id in enumerate(image_ids))

    def of(self, image_id: int) -> np.ndarray:
        """float64 (n, 2): the keypoints of an image, px."""
        if image_id not in self.keypoints:
            self.keypoints[image_id] = np.asarray(self.rows.read_keypoints(image_id), np.float64)[:, :2]
        return self.keypoints[image_id]


def find_lenses(database: Path, options: ReconstructionOptions) -> list[Lens]:
    """The lenses that fit the photos of a size much better than lenses without distortion; none for ordinary photos, or if
    the options do not let cameras be found.

    Only cameras of the model that estimated ones start with are looked at. All photos of a size have one lens.
    """
    if not (options.find_camera_model and options.refine_intrinsics):
        return []
    with pycolmap.Database.open(database) as rows:
        sizes = {camera.camera_id: (camera.width, camera.height) for camera in rows.read_all_cameras() if _is_undecided(camera)}
        size_of = {image.image_id: sizes[image.camera_id] for image in rows.read_all_images() if image.camera_id in sizes}
        pairs = _Pairs(rows)
        lenses = [_find_lens(pairs, found, size, options) for size, found in _strongest_pairs(pairs, size_of, options).items()]
    return [lens for lens in lenses if lens is not None]


def _is_undecided(camera: pycolmap.Camera) -> bool:
    """Whether a camera has the model, and no distortion, that estimated ones start with."""
    return bool(camera.model.name == ORDINARY and camera.params[-1] == 0)


def _find_lens(pairs: _Pairs, strongest: Sequence[_Counts], size: tuple[int, int], options: ReconstructionOptions) -> Lens | None:
    """The lens of the photos of a size, see `find_lenses`."""
    if np.median([count / total for _, count, total in strongest]) >= MIN_SHARE:
        return None
    matched = [pairs.matched(image_ids)[1:] for image_ids, _, _ in strongest]
    before, total = sum(pair[1] for pair in strongest), sum(pair[2] for pair in strongest)
    ransac = _ransac(options)
    best: dict[str, Lens] = {}
    for camera in _candidates(size):
        after = 0
        for points0, points1 in matched:
            estimated = pycolmap.estimate_essential_matrix(points0, points1, camera, camera, ransac)
            after += 0 if estimated is None else int(estimated["num_inliers"])
        name = camera.model.name
        if name not in best or after > best[name].after:
            best[name] = Lens(camera, before, after, total)
    chosen = best[FISHEYE] if best[FISHEYE].after > FISHEYE_GAIN * best[ORDINARY].after else best[ORDINARY]
    return chosen if chosen.after >= MIN_GAIN * max(before, NUM_PAIRS) else None


def _strongest_pairs(
    pairs: _Pairs, size_of: Mapping[int, tuple[int, int]], options: ReconstructionOptions
) -> dict[tuple[int, int], list[_Counts]]:
    """The NUM_PAIRS pairs with most matches of each size of photos.

    If the database has no verified pair, perhaps nobody has verified them: the matches that fit fundamental matrices count.

    Args:
        pairs: those of the database.
        size_of: size of each photo with an undecided camera. Pairs of two sizes are left out.
        options: the largest error of a match.
    """
    rows = pairs.rows
    verified = dict(zip(*map(list, rows.read_two_view_geometry_num_inliers()), strict=True))
    found: dict[tuple[int, int], list[_Counts]] = {}
    for pair_id, total in zip(*map(list, rows.read_num_matches()), strict=True):
        first, second = pycolmap.pair_id_to_image_pair(pair_id)
        size = size_of.get(first)
        if size is not None and size == size_of.get(second) and total >= MIN_INLIERS:
            found.setdefault(size, []).append(((first, second), int(verified.get(pair_id, 0)), int(total)))
    strongest = {size: sorted(found[size], key=lambda pair: (-pair[2], pair[0]))[:NUM_PAIRS] for size in sorted(found)}
    if verified:
        return strongest
    return {
        size: [(image_ids, _num_fitting(pairs.matched(image_ids)[1:], options), total) for image_ids, _, total in counts]
        for size, counts in strongest.items()
    }


def _num_fitting(points: tuple[np.ndarray, ...], options: ReconstructionOptions) -> int:
    """How many matches fit a fundamental matrix."""
    points0, points1 = points
    estimated = pycolmap.estimate_fundamental_matrix(points0, points1, _ransac(options))
    return 0 if estimated is None else int(estimated["num_inliers"])


def _candidates(size: tuple[int, int]) -> Iterator[pycolmap.Camera]:
    width, height = size
    for field_deg in FIELDS_DEG:
        focal_px = float(np.hypot(*size)) / np.radians(field_deg)
        yield _camera(FISHEYE, size, [focal_px, focal_px, width / 2, height / 2, 0, 0, 0, 0])
    for factor in FOCAL_FACTORS:
        for term in RADIAL_TERMS:
            yield _camera(ORDINARY, size, [factor * max(size), width / 2, height / 2, term])


def _camera(model: str, size: tuple[int, int], params: Sequence[float]) -> pycolmap.Camera:
    return pycolmap.Camera(model=model, width=size[0], height=size[1], params=list(params), has_prior_focal_length=True)


def _ransac(options: ReconstructionOptions) -> pycolmap.RANSACOptions:
    ransac = pycolmap.RANSACOptions()
    ransac.max_error, ransac.random_seed = options.max_error_px, options.seed
    ransac.min_num_trials, ransac.max_num_trials = MIN_TRIALS, MAX_TRIALS
    return ransac


def cameras_of_lenses(database: Path, lenses: Sequence[Lens]) -> dict[int, pycolmap.Camera]:
    """The cameras of the database that have one of the lenses, with it, by id."""
    of_size = {(lens.camera.width, lens.camera.height): lens.camera for lens in lenses}
    found = {}
    with pycolmap.Database.open(database) as rows:
        for camera in rows.read_all_cameras():
            lens = of_size.get((camera.width, camera.height))
            if lens is not None and _is_undecided(camera):
                found[camera.camera_id] = copy.deepcopy(lens)
                found[camera.camera_id].camera_id = camera.camera_id
    return found


def verify_again(database: Path, output: Path, cameras: Mapping[int, pycolmap.Camera], options: ReconstructionOptions) -> int:
    """Writes a copy of the database with other cameras, and with the pairs of their photos verified again.

    Returns the number of verified matches of these pairs.

    Args:
        database: COLMAP database with the matches of all pairs.
        output: database to write.
        cameras: the other cameras, by id.
        options: the largest error of an observation, px of the photos, is that of a match.
    """
    output.unlink(missing_ok=True)
    shutil.copyfile(database, output)
    limits = pycolmap.TwoViewGeometryOptions()
    limits.min_num_inliers, limits.ransac = MIN_INLIERS, _ransac(options)
    total = 0
    with pycolmap.Database.open(output) as rows, pycolmap.DatabaseTransaction(rows):
        for camera in cameras.values():
            rows.update_camera(camera)
        of_image = {image.image_id: rows.read_camera(image.camera_id) for image in rows.read_all_images()}
        pairs = _Pairs(rows)
        for pair_id, count in sorted(zip(*map(list, rows.read_num_matches()), strict=True)):
            image_ids = pycolmap.pair_id_to_image_pair(pair_id)
            chosen = [of_image[image_id] for image_id in image_ids]
            if count < MIN_INLIERS or not {camera.camera_id for camera in chosen} & {*cameras}:
                continue
            matches = pairs.matched(image_ids)[0]
            both = [pairs.of(image_id) for image_id in image_ids]
            geometry = pycolmap.estimate_two_view_geometry(chosen[0], both[0], chosen[1], both[1], matches, limits)
            if rows.exists_two_view_geometry(*image_ids):
                rows.delete_two_view_geometry(*image_ids)
            num_inliers = len(geometry.inlier_matches)
            if num_inliers >= max(MIN_INLIERS, MIN_INLIER_SHARE * count):
                rows.write_two_view_geometry(*image_ids, geometry)
                total += num_inliers
    return total


def map_with_other_lenses(
    database: Path, work: Path, output: Path, options: ReconstructionOptions, run: Mapper
) -> tuple[Path, list[str], bool] | None:
    """Maps a scene whose photos have a fisheye or strongly distorting lens; None if they do not, or if it does not help.

    It helps if more matches agree with the models than were verified before; after Ctrl-C, partial models count too. Returns the
    database that the models were made from, with the cameras that were found and the pairs that fit them, sentences about it, and
    whether Ctrl-C was pressed. Logs the sentences.

    Args:
        database: COLMAP database. It is not changed.
        work: folder for other databases.
        output: folder of the models, without any.
        options: of the mapper.
        run: maps a database.
    """
    lenses = find_lenses(database, options)
    if not lenses:
        return None
    options, notes = replace(options, name="incremental"), [lens.describe() for lens in lenses]
    with pycolmap.Database.open(database) as rows:
        num_before = int(rows.num_inlier_matches())
    cameras, chosen, best, interrupted = cameras_of_lenses(database, lenses), work / "none", float(num_before), False
    for number in range(NUM_ROUNDS):
        verified, models = work / f"{number}.db", work / f"models{number}"
        models.mkdir()
        verify_again(database, verified, cameras, options)
        helped, interrupted = map_with_fallbacks(verified, models, options, run)
        agreeing = _num_agreeing(models, verified, options)
        if agreeing > best:
            best, chosen = agreeing, verified
            replace_models(models, output)
            notes += helped
        elif interrupted and not chosen.exists():  # the partial models are kept
            best, chosen = agreeing, verified
            replace_models(models, output)
        if interrupted or agreeing <= num_before:
            break
        cameras = _found_cameras(output, cameras)
    if not chosen.exists():
        return None
    notes[-1] += f"; {best:.0f} instead of {num_before} matches agree with the models"
    for note in notes:
        logger.info("%s", note)
    return chosen, notes, interrupted


def _num_agreeing(output: Path, database: Path, options: ReconstructionOptions) -> float:
    """How many verified matches agree with the models, see `choosing.agreement`."""
    models = [read_model(folder) for folder in model_folders(output)]
    with pycolmap.Database.open(database) as rows:
        return agreement(models, database, [options.max_error_px])[0] * int(rows.num_inlier_matches())


def _found_cameras(output: Path, cameras: Mapping[int, pycolmap.Camera]) -> dict[int, pycolmap.Camera]:
    """The cameras as the models have them, those of the larger models first; as they are if they are in none."""
    found = dict(cameras)
    for model in sorted((read_model(folder) for folder in model_folders(output)), key=rank_of, reverse=True):
        for camera_id in {model.image(image_id).camera_id for image_id in model.reg_image_ids()} & {*cameras}:
            found[camera_id] = copy.deepcopy(model.camera(camera_id))
            found[camera_id].has_prior_focal_length = True
    return found
