"""Continues models with the photos that are not in them, by COLMAP's incremental mapper.

The mapper has tried these photos before, from other first pairs or with fewer points. Photos also need only 15 matches with
points instead of COLMAP's 30, if everything else that is known about them agrees. A model that grew replaces the old one only if
nothing became worse.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import pycolmap

from sfm_lightglue.geometry import essential_matrix, sampson_error
from sfm_lightglue.model_files import read_model
from sfm_lightglue.reconstruction.common_points import NO_POINT, NotJoined
from sfm_lightglue.reconstruction.joining import MIN_PAIRS, MIN_POINTS_OF_PAIR, join_models
from sfm_lightglue.reconstruction.mappers import ReconstructionOptions, continue_mapping, image_names
from sfm_lightglue.reconstruction.merging import MIN_KEPT
from sfm_lightglue.reconstruction.models import model_folders, rank_of, registered_names
from sfm_lightglue.reconstruction.overlaps import VerifiedPairs, find_contradictions

logger = logging.getLogger(__name__)

LIMITS = ((30, 1), (15, MIN_PAIRS))
"""Matches of a new photo with points of the model that fit its pose, and pairs of an old and a new photo that agree with it.
First COLMAP's limits, then fewer matches but more pairs: one pair may be a wrong match of similar things."""
MAX_STARTS = 5
"""Models that are continued: the largest ones."""
MAX_TURN_DEG = 3.0
"""Largest rotation of an old photo relative to the others."""
MAX_ERROR_FACTOR = 2.0
"""Largest factor by which the mean reprojection error grows. It always grows if points get more observations."""
MIN_AGREEING = 0.5
"""Share of the verified matches of each new photo with the photos of the model that must agree with the poses."""


def complete_models(output: Path, database: Path, options: ReconstructionOptions) -> tuple[list[str], bool]:
    """Joins and continues the models in the folder `output` until nothing changes.

    Models with known poses (`triangulation`) stay as they are. Returns a sentence about each attempt, and whether Ctrl-C was
    pressed: then the models are whole, and some were not tried.
    """
    notes = list[str]()
    if options.name == "triangulation" or _is_complete(output, database):
        return notes, False
    pairs = VerifiedPairs.read(database)
    joined, continued = set[tuple[tuple[int, ...], ...]](), set[tuple[int, ...]]()  # what was tried
    try:
        while True:
            notes += join_models(output, pairs, options, joined, database)
            found, has_grown = _continue_largest(output, database, pairs, options, continued)
            notes += found
            if not has_grown:
                return notes + drop_contained(output), False
    except InterruptedError:
        return notes, True


def _is_complete(output: Path, database: Path) -> bool:
    """Whether there is no model in the folder `output`, or one that has all images of the database."""
    models = [read_model(folder) for folder in model_folders(output)]
    return not models or (len(models) == 1 and models[0].num_reg_images() == len(image_names(database)))


def _continue_largest(
    output: Path, database: Path, pairs: VerifiedPairs, options: ReconstructionOptions, tried: set[tuple[int, ...]]
) -> tuple[list[str], bool]:
    """Continues the largest model in the folder `output` that grows; returns sentences, and whether one grew. Logs them.

    `tried` has the images of the models that were tried: they are not tried again, and those tried now are added.

    Raises: InterruptedError if Ctrl-C was pressed.
    """
    models = {folder: read_model(folder) for folder in model_folders(output)}
    notes = list[str]()
    for folder in sorted(models, key=lambda folder: (*rank_of(models[folder]), folder.name))[:MAX_STARTS]:
        images = tuple(sorted(models[folder].reg_image_ids()))
        if images in tried:
            continue
        tried.add(images)
        try:
            grown = continue_model(folder, database, pairs, options)
        except NotJoined as reason:
            if str(reason):
                notes.append(f"a model of {len(images)} images was not continued: {reason}")
                logger.info("%s", notes[-1])
            continue
        notes.append(_describe(models[folder], grown))
        logger.info("%s", notes[-1])
        grown.write(folder)
        return notes, True
    return notes, False


def continue_model(folder: Path, database: Path, pairs: VerifiedPairs, options: ReconstructionOptions) -> pycolmap.Reconstruction:
    """The model in `folder` with more photos. The given one is not changed. Writes to a temporary folder beside it.

    Raises:
        NotJoined: the model did not grow, or became worse; the message gives the reason, and is empty if it did not grow.
        InterruptedError: Ctrl-C was pressed.
    """
    model, refused = read_model(folder), NotJoined("")
    for min_inliers, min_pairs in LIMITS:
        if max(count_known_keypoints(model, pairs).values(), default=0) < min_inliers:
            continue
        trial = folder.with_name("continued")
        trial.mkdir()
        try:
            if continue_mapping(database, folder, trial, options, min_inliers):
                raise InterruptedError
            grown = read_model(trial)
            check_continued(model, grown, pairs, options, min_pairs)
        except NotJoined as reason:
            refused = reason if str(reason) else refused
        else:
            return grown
        finally:
            shutil.rmtree(trial)
    raise refused


def _describe(old: pycolmap.Reconstruction, new: pycolmap.Reconstruction) -> str:
    errors = [model.compute_mean_reprojection_error() for model in (old, new)]
    return (
        f"a model of {old.num_reg_images()} images was continued: {new.num_reg_images()} images, {new.num_points3D()} points, "
        f"{errors[0]:.2f} px before and {errors[1]:.2f} px after"
    )


def drop_contained(output: Path) -> list[str]:
    """Deletes each model in the folder `output` whose photos are all in a larger one; returns a sentence about each."""
    models = {folder: read_model(folder) for folder in model_folders(output)}
    ranked = sorted(models, key=lambda folder: (*rank_of(models[folder]), folder.name))
    notes, kept = list[str](), list[set[str]]()
    for folder in ranked:
        names = set(registered_names(models[folder]))
        larger = next((others for others in kept if names <= others), None)
        if larger is None:
            kept.append(names)
            continue
        notes.append(f"a model of {len(names)} images is dropped: all of them are in the model of {len(larger)}")
        logger.info("%s", notes[-1])
        shutil.rmtree(folder)
    return notes


def count_known_keypoints(model: pycolmap.Reconstruction, pairs: VerifiedPairs) -> dict[int, int]:
    """For each image that is not in the model: how many of its keypoints match keypoints with a point of the model."""
    known = {
        image_id: np.array([point.point3D_id != NO_POINT for point in model.image(image_id).points2D], bool)
        for image_id in sorted(model.reg_image_ids())
    }
    found: dict[int, set[int]] = {}
    for (first, second), matches in pairs.matches.items():
        for inside, outside, columns in ((first, second, matches), (second, first, matches[:, ::-1])):
            if inside in known and outside not in known:
                found.setdefault(outside, set()).update(columns[known[inside][columns[:, 0]], 1].tolist())
    return {image_id: len(keypoints) for image_id, keypoints in sorted(found.items())}


def check_continued(
    old: pycolmap.Reconstruction,
    new: pycolmap.Reconstruction,
    pairs: VerifiedPairs,
    options: ReconstructionOptions,
    min_pairs: int,
) -> None:
    """Checks a model that was continued. `min_pairs` pairs of an old and a new photo must agree with the poses.

    Raises: NotJoined with the reason if the model became worse; with an empty one if it did not grow.
    """
    before, after = set(old.reg_image_ids()), set(new.reg_image_ids())
    if lost := len(before - after):
        raise NotJoined(f"{lost} photos would be lost")
    added = sorted(after - before)
    if not added:
        raise NotJoined("")
    seen = [sum(model.image(image_id).num_points3D for image_id in sorted(before)) for model in (old, new)]
    if seen[1] < MIN_KEPT * seen[0]:
        raise NotJoined(f"only {seen[1]} of {seen[0]} observations would remain")
    errors = [model.compute_mean_reprojection_error() for model in (old, new)]
    if errors[1] > MAX_ERROR_FACTOR * errors[0]:
        raise NotJoined(f"the reprojection error would rise from {errors[0]:.2f} to {errors[1]:.2f} px")
    if (turn_deg := largest_turn_deg(old, new)) > MAX_TURN_DEG:
        raise NotJoined(f"a photo would turn by {turn_deg:.1f} degrees")
    _check_agreement(new, added, agreements(new, set(added), pairs, 3 * options.max_error_px), min_pairs)
    matched, unmatched = find_contradictions(new, new, pairs, images0=before, images1=added)
    if unmatched > matched:
        raise NotJoined(f"{unmatched} pairs of photos would show the same things but do not match, {matched} match")


def _check_agreement(
    model: pycolmap.Reconstruction, added: list[int], found: dict[tuple[int, int], tuple[int, int]], min_pairs: int
) -> None:
    """Raises: NotJoined if too few of the matches of a new photo agree, or too few pairs of an old and a new photo."""
    for image_id in added:
        agreeing, total = np.sum([counts for pair, counts in found.items() if image_id in pair], axis=0)
        if agreeing < MIN_AGREEING * total:
            raise NotJoined(f"only {agreeing} of {total} verified matches of {model.image(image_id).name} would fit")
    bridges = [counts for (first, second), counts in found.items() if (first in added) != (second in added)]
    num_pairs = sum(agreeing >= max(MIN_POINTS_OF_PAIR, MIN_AGREEING * total) for agreeing, total in bridges)
    if num_pairs < min_pairs:
        raise NotJoined(f"only {num_pairs} pairs of an old and a new photo would fit, {min_pairs} are needed")


def largest_turn_deg(model0: pycolmap.Reconstruction, model1: pycolmap.Reconstruction) -> float:
    """Largest difference of the rotations of the photos that both models have, after the best rotation of one model."""
    shared = sorted(set(model0.reg_image_ids()) & set(model1.reg_image_ids()))
    rotations0, rotations1 = (
        np.array([model.image(image_id).cam_from_world().rotation.matrix() for image_id in shared]) for model in (model0, model1)
    )
    rotations = rotations1.transpose(0, 2, 1) @ rotations0
    left, _, right = np.linalg.svd(rotations.sum(axis=0))
    mean = left @ np.diag([1, 1, np.linalg.det(left @ right)]) @ right
    cosines = (np.einsum("nij,ij->n", rotations, mean) - 1) / 2
    return float(np.degrees(np.arccos(np.clip(cosines, -1, 1))).max())


def agreements(
    model: pycolmap.Reconstruction, added: set[int], pairs: VerifiedPairs, max_error_px: float
) -> dict[tuple[int, int], tuple[int, int]]:
    """For each verified pair of images of the model, one or both in `added`: matches that agree with the poses, and all matches.

    A match agrees if its Sampson error is at most `max_error_px`.
    """
    registered, found = set(model.reg_image_ids()), dict[tuple[int, int], tuple[int, int]]()
    for pair, matches in pairs.matches.items():
        if registered.issuperset(pair) and not added.isdisjoint(pair):
            errors = _epipolar_errors_px(model, *pair, matches)
            found[pair] = int((errors <= max_error_px).sum()), len(matches)
    return found


def _epipolar_errors_px(model: pycolmap.Reconstruction, first: int, second: int, matches: np.ndarray) -> np.ndarray:
    """float64 (k,): Sampson errors of matches (k, 2) between two registered images; NaN if a ray is unknown."""
    rays, focal_px = [], []
    for image_id, indices in ((first, matches[:, 0]), (second, matches[:, 1])):
        image, camera = model.image(image_id), model.camera(model.image(image_id).camera_id)
        points = np.array([image.points2D[int(index)].xy for index in indices])
        rays.append(camera.cam_from_img(points))
        focal_px.append(camera.mean_focal_length())
    second_from_first = (model.image(second).cam_from_world() * model.image(first).cam_from_world().inverse()).matrix()
    essential = essential_matrix(second_from_first[:, :3], second_from_first[:, 3])
    return sampson_error(essential, rays[0], rays[1]) * float(np.mean(focal_px))
