"""Joins models that the mapper left apart, or that were mapped side by side, by points that both have.

A similarity is estimated from the common points, checked, and all is adjusted together, see `common_points` and `merging`. Two
models stay apart, with a reason, if anything does not fit: wrong joins are worse than two good models.
"""

from __future__ import annotations

import copy
import logging
import shutil
from collections import Counter
from collections.abc import Sequence, Set
from pathlib import Path

import numpy as np
import pycolmap

from sfm_lightglue.model_files import read_model
from sfm_lightglue.reconstruction.common_points import (
    MIN_COMMON_POINTS,
    CommonPoints,
    NotJoined,
    Part,
    find_common_points,
    fit_similarity,
)
from sfm_lightglue.reconstruction.mappers import ReconstructionOptions
from sfm_lightglue.reconstruction.merging import adjust, check_adjusted, merge, num_bridging, refine
from sfm_lightglue.reconstruction.models import model_folders, rank_of
from sfm_lightglue.reconstruction.overlaps import VerifiedPairs, find_contradictions
from sfm_lightglue.similarity import Similarity

logger = logging.getLogger(__name__)

MIN_PAIRS = 2
"""Pairs of photos that must each have MIN_POINTS_OF_PAIR of them: one pair may be a wrong match of similar things."""
MIN_POINTS_OF_PAIR = 8
MIN_SHARE = 0.25
"""Share of the common points that must fit; COLMAP asks for the same share to register a photo."""
MAX_PHOTO_TURN_DEG = 5.0
"""Largest rotation between the two poses of a photo that both models have. At least half of the photos must agree so well."""


def join_models(
    output: Path,
    pairs: VerifiedPairs,
    options: ReconstructionOptions,
    tried: set[tuple[tuple[int, ...], ...]],
    database: Path | None = None,
) -> list[str]:
    """Joins the models in the folder `output` where they fit together; returns a sentence about each pair of models, and logs it.

    The models with the most common points are tried first. In each round a model is joined once at most, so that many models of
    equal size become one in few rounds. The joined model takes the folder of the larger one; the folder of the smaller one is
    deleted. Models without common points are not mentioned. `tried` has the ids of the images of each two models that were
    tried: they are not tried again, and those tried now are added. With a `database`, matches between the parts of each joined
    model complete its tracks, and all is adjusted once more, see `merging.refine`.
    """
    parts = {folder: Part(read_model(folder)) for folder in model_folders(output)}
    notes, grown = list[str](), set[Path]()
    while True:
        joined = set[Path]()
        for folder0, folder1, common in _links(parts, pairs, tried):
            if joined & {folder0, folder1}:
                continue
            tried.add((parts[folder0].key, parts[folder1].key))
            sizes = f"{len(parts[folder0].images)} and {len(parts[folder1].images)} images"
            try:
                model, note = join_parts(parts[folder0], parts[folder1], common, pairs, options)
            except NotJoined as reason:
                notes.append(f"models of {sizes} were not joined: {reason}")
                logger.info("%s", notes[-1])
                continue
            notes.append(f"models of {sizes} were joined: {note}")
            logger.info("%s", notes[-1])
            model.write(folder0)
            shutil.rmtree(folder1)
            parts[folder0] = Part(model)
            del parts[folder1]
            joined |= {folder0, folder1}
        grown |= joined
        if not joined:
            break
    for folder in sorted(grown & parts.keys()):
        if database is not None and (refined := refine(parts[folder].model, database, options)) is not None:
            refined.write(folder)
    return notes


def _links(
    parts: dict[Path, Part], pairs: VerifiedPairs, tried: set[tuple[tuple[int, ...], ...]]
) -> list[tuple[Path, Path, CommonPoints]]:
    """Each two models that have common points and were not tried, the larger one first; those with most common points first."""
    ranked = sorted(parts, key=lambda folder: (*rank_of(parts[folder].model), folder.name))
    links = [
        (ranked[number0], ranked[number1], find_common_points(parts[ranked[number0]], parts[ranked[number1]], pairs))
        for number0, number1 in _neighbours([parts[folder].images for folder in ranked], pairs)
        if (parts[ranked[number0]].key, parts[ranked[number1]].key) not in tried
    ]
    return sorted((link for link in links if len(link[2].ids)), key=lambda link: -len(link[2].ids))


def _neighbours(images: Sequence[Set[int]], pairs: VerifiedPairs) -> list[tuple[int, int]]:
    """Numbers of each two sets of images that share an image or have a verified pair between them, sorted."""
    homes: dict[int, list[int]] = {}
    for number, inside in enumerate(images):
        for image in inside:
            homes.setdefault(image, []).append(number)
    found = set()
    for number, inside in enumerate(images):
        reached = {other for image in inside for other in (image, *pairs.partners.get(image, ()))}
        found |= {(number, other) for image in reached for other in homes.get(image, ()) if number < other}
    return sorted(found)


def join_two(
    model0: pycolmap.Reconstruction, model1: pycolmap.Reconstruction, pairs: VerifiedPairs, options: ReconstructionOptions
) -> tuple[pycolmap.Reconstruction, str]:
    """A model with the photos of both, in the coordinates of `model0`, and what it rests on. The given models are not changed.

    Raises: NotJoined with the reason; with an empty one if the models have no points in common.
    """
    part0, part1 = Part(model0), Part(model1)
    common = find_common_points(part0, part1, pairs)
    if not len(common.ids):
        raise NotJoined("")
    return join_parts(part0, part1, common, pairs, options)


def join_parts(
    part0: Part, part1: Part, common: CommonPoints, pairs: VerifiedPairs, options: ReconstructionOptions
) -> tuple[pycolmap.Reconstruction, str]:
    """`join_two` for models whose common points are known. Raises: NotJoined with the reason."""
    model0, moved, shared = part0.model, copy.deepcopy(part1.model), sorted(part0.images & part1.images)
    similarity, fits = fit_similarity(model0, part1.model, common, options)
    chosen = CommonPoints(common.ids[fits], common.images[fits], common.keypoints[fits])
    num_pairs = _check_support(chosen, len(fits))
    _check_photos(model0, moved, similarity, shared)
    moved.transform(pycolmap.Sim3d(similarity.scale, pycolmap.Rotation3d(similarity.rotation), similarity.translation))
    agreeing, contradicting = find_contradictions(
        model0, moved, pairs, images0=part0.images - part1.images, images1=part1.images - part0.images
    )
    if contradicting > agreeing + len(shared):
        also = f", and they have {len(shared)} photos in common" if shared else ""
        raise NotJoined(f"{contradicting} pairs of photos would show the same things but do not match, {agreeing} match{also}")
    joined = merge(part0, moved, chosen)
    added = part1.images - part0.images
    before = num_bridging(joined, added)
    adjust(joined, options)
    check_adjusted(joined, (model0, moved), added, before)
    error = joined.compute_mean_reprojection_error()
    return (
        joined,
        f"{len(chosen.ids)} matches of common points in {num_pairs} pairs of photos, {len(shared)} common photos, "
        f"{error:.2f} px after the adjustment",
    )


def _check_support(chosen: CommonPoints, num_common: int) -> int:
    """Number of pairs of photos with enough of the common points that fit. Raises: NotJoined if there is not enough.

    A photo that both models have counts as a pair of photos.
    """
    counts, num_points = Counter(map(tuple, chosen.images.tolist())), len(np.unique(chosen.ids, axis=0))
    num_pairs = sum(count >= MIN_POINTS_OF_PAIR for count in counts.values())
    found = f"{len(chosen.ids)} of {num_common} matches of common points fit, in {num_pairs} pairs of photos"
    if num_points < MIN_COMMON_POINTS or len(chosen.ids) < MIN_SHARE * num_common or num_pairs < MIN_PAIRS:
        raise NotJoined(f"{found}; {MIN_COMMON_POINTS} points, a share of {MIN_SHARE} and {MIN_PAIRS} pairs are needed")
    return num_pairs


def _check_photos(
    model0: pycolmap.Reconstruction, model1: pycolmap.Reconstruction, similarity: Similarity, shared: list[int]
) -> None:
    """Raises: NotJoined if most photos that both models have look in other directions in the one than in the other."""
    rotations0, rotations1 = (
        np.array([model.image(image).cam_from_world().rotation.matrix() for image in shared]).reshape(-1, 3, 3)
        for model in (model0, model1)
    )
    cosines = (np.einsum("nij,nij->n", rotations0, rotations1 @ similarity.rotation.T) - 1) / 2
    turns_deg = np.degrees(np.arccos(np.clip(cosines, -1, 1)))
    disagreeing = int(np.sum(turns_deg > MAX_PHOTO_TURN_DEG))
    if 2 * disagreeing > len(shared):
        raise NotJoined(
            f"{disagreeing} of {len(shared)} common photos would be turned by more than {MAX_PHOTO_TURN_DEG:.0f} degrees"
        )
