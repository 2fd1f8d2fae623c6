"""Other ways of mapping, for scenes whose first attempt ends without a model that the verified matches agree with.

The mapper may find no first pair, models so small that they are discarded, or models of a small part of the photos. Then other
focal lengths are tried if those of the database are guesses, first pairs with little parallax, and another mapper. The models
that agree better with all verified matches stay.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import pycolmap

from sfm_lightglue.mistakes import count_of
from sfm_lightglue.model_files import read_model
from sfm_lightglue.reconstruction.choosing import MIN_GAIN, agreement
from sfm_lightglue.reconstruction.focal_lengths import other_focal_lengths
from sfm_lightglue.reconstruction.mappers import ReconstructionOptions, image_names
from sfm_lightglue.reconstruction.models import MIN_POINTS, model_folders, rank_of

logger = logging.getLogger(__name__)

ENOUGH = 0.5
"""Models that agree roughly with this share of the verified matches need no other attempt. Complete models of nine sets agree
with 0.81 to 0.97 of them, models of two photos of a distorted room with 0.04 to 0.11."""
ROUGHLY = 3
"""Factor on the error limit for that: noisy keypoints are no reason for other attempts."""
MIN_AGREEMENT = 0.5
"""The global mapper also makes models of wrong matches: its models must agree with this share of the verified matches."""
MAX_PHOTOS = 200
"""A larger scene of which some photos have a model is not mapped again: that takes long."""
TRIALS = "trials"
"""Folder of the attempts, in the folder of the models."""


class Mapper(Protocol):
    """Maps a database into a folder without models; returns whether Ctrl-C was pressed."""

    def __call__(self, database: Path, output: Path, options: ReconstructionOptions, *, any_start: bool) -> bool:
        """`any_start`: whether the first pair may have little parallax, see `mappers.MAX_FORWARD`."""


@dataclass(frozen=True)
class _Way:
    """Another way of mapping a scene."""

    how: str
    """What is different, as the subject of a sentence."""
    database: Path
    options: ReconstructionOptions
    any_start: bool = False


@dataclass(frozen=True)
class _Models:
    """How good the models in a folder are."""

    score: float
    """Their agreement with the verified matches, 0..1, see `choosing.agreement`."""
    rough_score: float
    """The same with an error limit that is ROUGHLY times as large."""
    num_images: int
    """Photos of the largest model."""


def map_with_fallbacks(database: Path, output: Path, options: ReconstructionOptions, run: Mapper) -> tuple[list[str], bool]:
    """Maps a scene, in other ways too if the first gives no good models; returns as `try_other_ways`, with its arguments."""
    interrupted = run(database, output, options, any_start=False)
    return ([], True) if interrupted else try_other_ways(database, output, options, run)


def try_other_ways(database: Path, output: Path, options: ReconstructionOptions, run: Mapper) -> tuple[list[str], bool]:
    """Maps a scene in other ways if the models in `output` are not good, until some are; the best ones stay there.

    Returns a sentence about what helped, none if nothing did, and whether Ctrl-C was pressed. Logs it.

    Args:
        database: COLMAP database. It is not changed.
        output: folder of the models of the first attempt, if it has made some.
        options: of the first attempt, with the name of its mapper; known poses (`triangulation`) need no other attempt.
        run: maps a database.
    """
    num_images = len(image_names(database))
    if options.name == "triangulation" or _num_verified_pairs(database) == 0:
        return [], False
    first = best = _models_in(output, database, options, num_images)
    if first.rough_score >= ENOUGH or (num_images > MAX_PHOTOS and first.num_images > 0):
        return [], False
    trials, helped, interrupted = output / TRIALS, "", False
    try:
        for number, way in enumerate(_other_ways(database, trials, options)):
            folder = trials / str(number)
            folder.mkdir(parents=True)
            interrupted = run(way.database, folder, way.options, any_start=way.any_start)
            found = _models_in(folder, database, way.options, num_images)
            least = MIN_AGREEMENT if way.options.name == "global" else best.score + MIN_GAIN
            if found.score > least:
                best, helped = found, way.how
                replace_models(folder, output)
            elif interrupted and not model_folders(output):
                replace_models(folder, output)
            if interrupted or best.rough_score >= ENOUGH:
                break
    finally:
        shutil.rmtree(trials, ignore_errors=True)
    return ([_told(first, best, options, helped)] if helped else []), interrupted


def _other_ways(database: Path, folder: Path, options: ReconstructionOptions) -> Iterator[_Way]:
    """Other ways of mapping; databases with other focal lengths are written into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for how, other in other_focal_lengths(database, folder) if options.refine_intrinsics else ():
        yield _Way(how, other, options)
    incremental = replace(options, name="incremental")
    if options.name == "global":
        yield _Way("the incremental mapper", database, incremental)
    yield _Way("a first pair that moved forward, or little,", database, incremental, any_start=True)
    if options.name != "global":
        yield _Way("the global mapper", database, replace(options, name="global"))


def _models_in(output: Path, database: Path, options: ReconstructionOptions, num_images: int) -> _Models:
    """How good the models in a folder are; those that will be discarded do not count."""
    least = min(options.min_model_size, num_images)
    models = [read_model(folder) for folder in model_folders(output)]
    models = [model for model in models if model.num_reg_images() >= least and model.num_points3D() >= MIN_POINTS]
    if not models:
        return _Models(0.0, 0.0, 0)
    score, rough_score = agreement(models, database, (options.max_error_px, ROUGHLY * options.max_error_px))
    return _Models(score, rough_score, min(models, key=rank_of).num_reg_images())


def replace_models(source: Path, output: Path) -> None:
    """Moves the models in the folder `source` to `output`, in place of those that are there."""
    for folder in model_folders(output):
        shutil.rmtree(folder)
    for folder in model_folders(source):
        shutil.move(folder, output / folder.name)


def _told(first: _Models, best: _Models, options: ReconstructionOptions, helped: str) -> str:
    """The sentence about what helped."""
    before = f"the {options.name} mapper found no model"
    if first.num_images:
        before = f"the {options.name} mapper registered only {count_of(first.num_images, 'photo')} in one model"
    said = (
        f"{before}: {helped} gave one of {count_of(best.num_images, 'photo')}, and {100 * best.score:.0f} % of the verified "
        f"matches agree, {100 * first.score:.0f} % before"
    )
    logger.warning("%s", said)
    return said


def _num_verified_pairs(database: Path) -> int:
    with pycolmap.Database.open(database) as rows:
        return int(rows.num_verified_image_pairs())
