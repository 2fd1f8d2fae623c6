"""The stage database -> reconstruction: runs a mapper on the verified matches, and describes the models.

Reads `database.db`, the pixel scales and orientations in `features.h5`, and the photos for the colours of the points. Writes
`reconstruction/0` to `reconstruction/n`, the largest model first, each in COLMAP's binary and text format and as `points.ply`.
A killed run leaves the previous reconstruction as it was. Ctrl-C keeps the partial reconstruction. `reconstruction.clusters` is
there only while, or if, `reconstruction=clusters` is not finished, see `clusters`.
"""

from __future__ import annotations

import functools
import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from sfm_lightglue import __version__
from sfm_lightglue.colmap import colmap_log
from sfm_lightglue.database_mark import content_hash, keeps_time
from sfm_lightglue.execution.executor import Executor
from sfm_lightglue.files import result_exists
from sfm_lightglue.mistakes import count_of
from sfm_lightglue.reconstruction.adjustment import adjust_models
from sfm_lightglue.reconstruction.alignment import align_models
from sfm_lightglue.reconstruction.choosing import map_with_best_mapper
from sfm_lightglue.reconstruction.clusters import ClustersFolder, map_clusters
from sfm_lightglue.reconstruction.continuing import complete_models
from sfm_lightglue.reconstruction.contradictions import find_contradictions
from sfm_lightglue.reconstruction.fallbacks import map_with_fallbacks, try_other_ways
from sfm_lightglue.reconstruction.folder import ModelsFolder
from sfm_lightglue.reconstruction.mappers import (
    AUTO,
    CLUSTERS,
    ReconstructionOptions,
    check_images,
    chosen_num_threads,
    has_verified_pairs,
    image_names,
    run_mapper,
)
from sfm_lightglue.reconstruction.models import ReconstructionReport, describe_models, number_models, write_models
from sfm_lightglue.reconstruction.uncertainty import write_uncertainties
from sfm_lightglue.settings import describe_changes
from sfm_lightglue.storage import H5Reader

logger = logging.getLogger(__name__)


def reconstruct(
    database: Path | str,
    images: Path | str,
    output: Path | str,
    options: ReconstructionOptions,
    *,
    features: Path | str | None = None,
    known_poses: Mapping[str, np.ndarray] | None = None,
    executor: Executor | None = None,
) -> ReconstructionReport:
    """Writes models of the scene to `output/0` ... `output/n` and describes them.

    Models with common points are joined if they fit together, see `joining`; then the photos that are left are tried again, see
    `continuing`. Models are numbered by size: images, then points, then the names of the images. Models with fewer images than
    `options.min_model_size` are discarded. If the scene itself has fewer images than that, all of them must be in the model.

    If `output` already has the models of this database with these options, nothing is computed. Other models of earlier runs are
    replaced, with a warning if options changed. If there are files among them that no run has written, the whole old folder is
    kept as `NAME.kept-1`. If nothing can be reconstructed now, the old models stay.

    Args:
        database: COLMAP database with verified pairs.
        images: folder of the photos, for the colours of the points.
        output: folder to write.
        options: options of the mapper. Its px are multiplied by the median of `Features.pixel_scale` over the images.
        features: file of features that the database was built from, for the pixel scales and orientations. Default: `features.h5`
            beside the database. The scale is 1 if that file does not exist or has none of the images, and no photo then counts
            as mirrored.
        known_poses: float64 (3, 4) cam_from_world by image name, for the mapper `triangulation` and `options.position_priors`.
        executor: where the clusters of the mapper `clusters` are mapped; None takes the threads of this process.

    Raises:
        FileNotFoundError: `database` does not exist.
        ValueError: the mapper `triangulation` has no known pose of any image; or no run has written the folder `output`; or
            images of verified pairs are not in the database.
        RuntimeError: the mapper `clusters` could not map a cluster; the others are kept.
        KeyboardInterrupt: Ctrl-C was pressed; the partial models are written.
    """
    database, images, output = Path(database), Path(images), Path(output)
    if not database.is_file():
        raise FileNotFoundError(f"{database} does not exist: run the stage database first")
    with keeps_time(database):
        names = image_names(database)
        check_images(database)
    if features is None and result_exists(database.with_name("features.h5")):
        features = database.with_name("features.h5")
    scale, orientations = _about_photos(features, names) if features is not None else (1.0, {})
    poses = {name: np.round(pose, 12).tolist() for name, pose in sorted((known_poses or {}).items())}
    options = options.scaled(scale)
    settings = {"options": asdict(options), "database": content_hash(database), "poses": poses, "version": __version__}
    folder = ModelsFolder(output)
    previous = folder.settings()
    if previous == json.loads(json.dumps(settings)):
        return replace(describe_models(output, names), **folder.notes())
    _warn_of_changes(output, previous, settings)
    clusters = ClustersFolder(output.with_name(f"{output.name}.clusters"))
    clusters.check()
    partial = folder.start()
    if not has_verified_pairs(database):
        logger.warning("%s has no verified pair of images: there is nothing to reconstruct", database)
    options = replace(options, num_threads=_announced_num_threads(options, len(names)))
    with colmap_log(None):
        if options.name == CLUSTERS:
            cameras, interrupted = map_clusters(database, partial, options, clusters, settings, executor)
        else:
            cameras, interrupted = _map(database, partial, options, known_poses or {})
        joining = list[str]()
        if options.join and not interrupted:
            joining, interrupted = complete_models(partial, database, options)
        candidates = sum(name in (known_poses or {}) for name in names) if options.name == "triangulation" else len(names)
        discarded = number_models(partial, 2 if interrupted else min(options.min_model_size, candidates))
        # Here the models have their final numbers and only COLMAP's binary files: change them and write them back.
        try:
            cameras += [] if interrupted else adjust_models(partial, database, options, known_poses)
        except KeyboardInterrupt:
            interrupted = True
        doubtful = list[str]()
        if not interrupted and (found := find_contradictions(partial, database, options.max_error_px)).in_doubt:
            doubtful, cameras = [*found.photos], [*cameras, found.sentence()]
            logger.warning("%s", found.sentence())
        align_models(partial, database, options)
        cameras += [] if interrupted else write_uncertainties(partial, options)
        write_models(partial, images if options.extract_colors else None, orientations)
    notes: dict[str, Any] = {"joining": joining, "discarded": discarded, "cameras": cameras, "doubtful": doubtful}
    report = replace(describe_models(partial, names), **notes)
    if _is_worse(report, folder, interrupted):
        shutil.rmtree(partial)
    else:
        folder.replace(partial, settings, notes=notes, unfinished=interrupted)
    if interrupted:
        raise KeyboardInterrupt
    clusters.remove()
    return report


def _map(
    database: Path, output: Path, options: ReconstructionOptions, known_poses: Mapping[str, np.ndarray]
) -> tuple[list[str], bool]:
    """Maps the scene into the folder `output`; returns sentences about what helped, and whether Ctrl-C was pressed."""
    run = functools.partial(run_mapper, known_poses=known_poses)
    if options.name != AUTO:
        return map_with_fallbacks(database, output, options, run)
    options, reason, interrupted = map_with_best_mapper(database, output, options, lambda *task: run(database, *task))
    helped, interrupted = ([], True) if interrupted else try_other_ways(database, output, options, run)
    return [reason, *helped], interrupted


def _announced_num_threads(options: ReconstructionOptions, num_images: int) -> int:
    """`chosen_num_threads`, and a line in the log if the option leaves the choice."""
    num_threads = chosen_num_threads(options, num_images)
    if options.num_threads == 0:
        what = "one thread: the same model in every run"
        if num_threads != 1:
            what = "all cores: models differ a little from run to run; reconstruction.num_threads=1 gives the same in every run"
        logger.info("%s are mapped with %s", count_of(num_images, "photo"), what)
    return num_threads


def _is_worse(report: ReconstructionReport, folder: ModelsFolder, interrupted: bool) -> bool:
    """Whether the old models stay: nothing was found now, or an interrupted run found less. Logs it."""
    old, new = folder.num_images(), report.models[0].num_images if report.models else 0
    if old == 0 or new >= old or (new > 0 and not interrupted):
        return False
    reason = "interrupted" if interrupted else "nothing could be reconstructed now"
    logger.warning("%s: %s keeps its models of an earlier run (the largest has %d images)", reason, folder.path, old)
    return True


def _warn_of_changes(output: Path, previous: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Logs which options of the models in `output` differ. A changed database needs no warning."""
    old, new = ({key: all_of.get(key) for key in ("options", "version")} for all_of in (previous, settings))
    if previous and (changes := describe_changes(old, new)):
        logger.warning("%s was made with other settings (%s): it is replaced", output, changes)


def _about_photos(features: Path | str, names: list[str]) -> tuple[float, dict[str, int]]:
    """Median of `Features.pixel_scale` over the images, 1 if the file has none of them; and `Features.orientation` by name."""
    with H5Reader(features) as reader:
        orientations = reader.orientations(names)
        return float(np.median([reader.pixel_scale(name) for name in orientations] or [1.0])), orientations
