"""The flow images -> features -> pairs -> matches -> geometries -> database -> reconstruction, for one set of options.

Each stage reads and writes files in the output folder, so each can run alone, be repeated, or be fed by another tool. `stages.py`
lists them in order; the functions here connect them with the options of a run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sfm_lightglue.database import is_outdated, write_database
from sfm_lightglue.database_mark import keeps_time
from sfm_lightglue.estimate import MANY_PAIRS, log_matching, log_run
from sfm_lightglue.evaluation.finished_run import evaluate_run
from sfm_lightglue.execution.executor import check_folders
from sfm_lightglue.execution.shards import forget
from sfm_lightglue.features.several import join_features
from sfm_lightglue.features.stage import extract_features
from sfm_lightglue.features.stage import logger as extraction_logger
from sfm_lightglue.files import result_exists
from sfm_lightglue.geometries.stage import verify_pairs
from sfm_lightglue.images import MaskFiles, warn_of_spaces
from sfm_lightglue.kinds import joined_extraction, joined_matching, warnings_once
from sfm_lightglue.matches.imported import ImportedMatcher
from sfm_lightglue.matches.several import join_matches
from sfm_lightglue.matches.stage import match_pairs
from sfm_lightglue.mistakes import count_of
from sfm_lightglue.orient.decisions import read_decisions, turned_orientations
from sfm_lightglue.pair_files import replace_pairs
from sfm_lightglue.pairs.budget import expected_pairs
from sfm_lightglue.pairs.collection import Collection
from sfm_lightglue.pairs.second_round import VerifiedGraph
from sfm_lightglue.pairs.stage import describe_share, plan_pairs
from sfm_lightglue.pairs.union import source_names
from sfm_lightglue.pairs.view_graph import graph_parts
from sfm_lightglue.photo_names import PhotoList, PhotoNames
from sfm_lightglue.pose_priors import find_pose_priors
from sfm_lightglue.poses import read_poses
from sfm_lightglue.presentation import drawing_beside, write_report, write_tables_of
from sfm_lightglue.products import Pair
from sfm_lightglue.reconstruction import reconstruct
from sfm_lightglue.reconstruction.alignment import describe_alignments
from sfm_lightglue.refinement import NO_REFINEMENT, is_too_small_for, refine_keypoints
from sfm_lightglue.run_cameras import assign_cameras, verified_cameras
from sfm_lightglue.run_context import Run
from sfm_lightglue.run_folder import RunFolder
from sfm_lightglue.run_kinds import escalated_pairs, fine_kinds, is_imported, last_learned, parts_of, photos_of
from sfm_lightglue.stages import STAGES, find_stage
from sfm_lightglue.summary import Summary, facts_of
from sfm_lightglue.tables import tables_are_current

logger = logging.getLogger(__name__)


# --- the commands --------------------------------------------------------------------------------------------------------


def run_all(run: Run) -> Summary:
    """Runs every stage in order, writes the tables and `report.html`, and returns the summary. Call `check_inputs` before.

    Tables and page are written too if a stage raises, for what there is.
    """
    with run.folder.locked():
        warn_of_spaces(run.list_photos())
        check_folders(run.executor(), [run.images], run.folder.path)
        _log_plan(run)
        try:
            for stage in STAGES:
                with drawing_beside(run) if stage.name == "reconstruct" else contextlib.nullcontext():
                    stage.load()(run)
                forget(run.folder.shards, stage.name)
        except Exception:
            write_report(run.folder, write_tables_of(run.folder))
            raise
        write_report(run.folder, write_tables_of(run.folder))
        summary = Summary.read(run.folder)
    logger.debug("%s", summary)  # for the log file; the command line prints it
    return summary


def run_stage(run: Run, name: str) -> None:
    """Runs the stage `name` alone. Call `check_inputs` before."""
    if (shard := run.shard(name)) is not None:
        with run.folder.locked_for(shard.writer):
            find_stage(name).load()(run)
        return
    with run.folder.locked():
        before = facts_of(run.folder.read_summary())
        if name == "expand" and run.options.selection.rounds < 2:
            logger.info("expand adds no pairs: pairs.rounds=2 is a second round")
        find_stage(name).load()(run)
        if facts_of(run.folder.read_summary()) != before or not tables_are_current(run.folder):  # a million pairs take a minute
            write_tables_of(run.folder)
        forget(run.folder.shards, name)  # last: a killed `merge` can be repeated


def raise_failure(run: Run) -> None:
    """Raises: ValueError with the likely reason if the run has failed, see `Summary.failure`."""
    if failure := Summary.read(run.folder).failure:
        raise ValueError(failure)


def evaluate(run: Run) -> str:
    """Scores against the dataset's ground truth, as `evaluation.finished_run` finds them. Call `check_inputs` before."""
    dataset = run.options.dataset
    return evaluate_run(run.folder, dataset.images, dataset.poses, dataset.pairs, dataset.homographies)


# --- the stages, named in stages.py --------------------------------------------------------------------------------------


def extract(run: Run) -> None:
    """Detects and describes keypoints: photos -> features.h5, and for several kinds features-KIND.h5."""
    with run.recorded("extract") as record:
        listed, records, chosen = run.listed_photos(), dict[str, dict[str, Any]](), escalated_pairs(run)
        names_of = {part.kind: photos_of(part.kind, listed.names, chosen) for part in run.kinds or [run]}
        masks = run.find_masks(listed.names)
        with warnings_once(extraction_logger):
            for part in parts_of(run, "extract"):
                if names := names_of[part.kind]:
                    records[part.kind] = _extract_kind(part, names, masks)
        if run.kinds and run.shard("extract") is None:
            files = {part.kind: part.folder.features for part in run.kinds}
            changed = run.execution.if_settings_changed
            join_features(files, run.folder.features, names=listed.names, only=names_of, if_settings_changed=changed)
        record |= joined_extraction(records)
        record["skipped"] |= _missing_photos(listed, run.options.dataset.list)


def _extract_kind(run: Run, names: Sequence[str], masks: MaskFiles | None) -> dict[str, Any]:
    """Detects and describes the keypoints of one kind, and returns the record about it."""
    extractor, executor = run.extractor(), run.executor()
    check_folders(executor, [run.images])
    report = extract_features(
        run.images,
        run.folder.features,
        extractor,
        names=names,
        masks=masks,
        orientation=_chosen_orientations(run),
        executor=executor,
        if_settings_changed=run.execution.if_settings_changed,
        shard=run.shard("extract"),
        kind=run.kind,
    )
    return {"weights": [weights.to_json() for weights in extractor.weights], **dataclasses.asdict(report)}


def pairs(run: Run) -> None:
    """Selects pairs of images: features.h5 -> pairs.txt, and pairs.tsv with the reason of each pair."""
    with run.recorded("pairs") as record, collection_of(run) as collection:
        choice = run.options.pairs
        if (shard := run.shard("pairs")) is not None:  # `merge` selects the pairs
            record["num_computed"] = describe_share(choice.create(), collection, shard)
            return
        selected, report = plan_pairs(choice.create(), collection, source_names(choice.options), run.options.selection)
        replace_pairs(run.folder.pairs, run.folder.pair_reasons, selected)
        record |= {"weights": [weights.to_json() for weights in collection.weights.values()], **dataclasses.asdict(report)}
        if not selected:
            logger.warning("no pairs of images were selected")


def match(run: Run) -> None:
    """Matches the features of each pair: features.h5 and pairs.txt -> matches.h5, and for several kinds matches-KIND.h5."""
    with run.recorded("match") as record:
        pairs, records, chosen = run.folder.read_pairs(), dict[str, dict[str, Any]](), escalated_pairs(run)
        pairs_of = {kind: [pair for pair in pairs if pair in some] for kind, some in chosen.items()}
        for part in parts_of(run, "match"):
            if (wanted := pairs_of.get(part.kind, pairs)) or part.kind not in chosen:
                records[part.kind] = _match_kind(part, wanted)
        if run.kinds and run.shard("match") is None:
            files = {part.kind: part.folder.matches for part in run.kinds}
            changed = run.execution.if_settings_changed
            join_matches(run.folder.features, files, pairs, run.folder.matches, only=pairs_of, if_settings_changed=changed)
        record |= joined_matching(records)


def _match_kind(run: Run, pairs: Sequence[Pair]) -> dict[str, Any]:
    """Matches the features of one kind, and returns the record about it. With several kinds, photos may lack a kind."""
    matcher = run.matcher()
    if run.kind:
        if not result_exists(run.folder.features):
            raise FileNotFoundError(f"{run.folder.features} does not exist: run the stage extract first")
        with run.folder.open_features() as reader:
            known = set(reader.names())
        pairs = [pair for pair in pairs if pair.name0 in known and pair.name1 in known]
    if not isinstance(matcher, ImportedMatcher) and run.shard("match") is None:
        log_matching(run.folder.features, run.folder.matches, pairs, matcher, run.execution)
    report = match_pairs(
        run.folder.features,
        pairs,
        run.folder.matches,
        matcher,
        executor=run.executor_reading(),
        cache_mb=run.execution.cache_mb,
        if_settings_changed=run.execution.if_settings_changed,
        shard=run.shard("match"),
        kind=run.kind,
    )
    return {"weights": [weights.to_json() for weights in matcher.weights], **dataclasses.asdict(report)}


def verify(run: Run) -> None:
    """Estimates the two-view geometry of each pair: features.h5 and matches.h5 -> verification.h5."""
    with run.recorded("verify") as record:
        cameras, pairs = assign_cameras(run), run.folder.read_pairs()
        report = verify_pairs(
            run.folder.features,
            run.folder.matches,
            pairs,
            run.folder.verification,
            run.options.geometries,
            cameras.cameras,
            undecided=cameras.undecided,
            names=cameras.cameras,
            executor=run.executor_reading("cpu"),
            shard=run.shard("verify"),
        )
        record |= {"seed": run.options.geometries.seed, **dataclasses.asdict(report)}
        if run.shard("verify") is not None:  # `merge` looks at the whole graph
            return
        with run.folder.open_verification() as reader:
            graph = VerifiedGraph.read(sorted(cameras.cameras), pairs, reader)
        record |= dataclasses.asdict(graph_parts(graph.names, graph.inliers))


def refine(run: Run) -> None:
    """Aligns the verified keypoints of all photos: verification.h5 and photos -> keypoints.h5.

    It does nothing with `refinement=none`, with more verified matches than `refinement.max_matches`, or if all are fine already.
    """
    with run.recorded("refine") as record:
        record["refined"] = _is_refined(run)
        if record["refined"]:
            folder, cameras = run.folder, verified_cameras(run).cameras
            inputs = folder.features, folder.matches, folder.verification, folder.read_pairs()
            options, fine = run.options.refinement, fine_kinds(run)
            report = refine_keypoints(run.images, *inputs, folder.keypoints, options, cameras, fine)
            record |= dataclasses.asdict(report)


def database(run: Run) -> None:
    """Imports features, matches and verified geometries into COLMAP: verification.h5 -> database.db."""
    with run.recorded("database") as record:
        assignment = verified_cameras(run)
        report = write_database(
            run.folder.features,
            run.folder.matches,
            run.folder.verification,
            run.folder.read_pairs(),
            run.folder.database,
            assignment,
            names=assignment.cameras,
            pose_priors=find_pose_priors(run.images, assignment.cameras, run.options.dataset.positions),
            keypoints=_refined_keypoints(run),
        )
        record |= {"intrinsics": run.options.database.intrinsics, **dataclasses.asdict(report)}


def reconstruct_models(run: Run) -> None:
    """Reconstructs the scene: database.db -> reconstruction/0 ... n."""
    with run.recorded("reconstruct") as record:
        options, known_poses = run.options.reconstruction, {}
        if run.options.dataset.poses and (options.name == "triangulation" or options.position_priors == "poses"):
            poses = read_poses(Path(run.options.dataset.poses))
            poses |= PhotoNames(run.list_photos(), run.images).match(run.options.dataset.poses, poses)
            known_poses = {name: pose.cam_from_world for name, pose in poses.items()}
        _warn_if_outdated(run.folder)
        report = reconstruct(
            run.folder.database,
            run.images,
            run.folder.reconstruction,
            options,
            known_poses=known_poses,
            executor=run.executor("cpu") if options.name == "clusters" else None,
        )
        record |= {"mapper": options.name, "seed": options.seed, **dataclasses.asdict(report)}
        for model in record["models"]:
            del model["registered"]  # photos.tsv has them
        with keeps_time(run.folder.database):
            record["alignment"] = describe_alignments(run.folder.reconstruction, run.folder.database, options)


# --- details -------------------------------------------------------------------------------------------------------------


def _log_plan(run: Run) -> None:
    """Says how many pairs there will be; if they are many, also how long extraction and matching will take."""
    names, options = run.list_photos(), run.options
    expected = expected_pairs(options.pairs.options, len(names), options.selection)
    if expected is None:
        return
    sources = "+".join(source_names(options.pairs.options))
    logger.info("plan: %s, at most %s (pairs=%s)", count_of(len(names), "photo"), count_of(expected, "pair"), sources)
    for part in run.kinds[: 1 if options.escalate else None] or [run]:
        if expected >= MANY_PAIRS and not result_exists(part.folder.features) and not is_imported(part):
            log_run(run.images, names, expected, part.extractor(), part.matcher(), run.execution)


def _missing_photos(listed: PhotoList, path: str | None) -> dict[str, str]:
    """Name of a listed photo that is not in the folder -> the reason why it is skipped. Each is logged."""
    skipped = {name: f"it is in line {number} of {path}, but not in the photo folder" for name, number in listed.missing.items()}
    for name, reason in skipped.items():
        logger.warning("%s is skipped: %s", name, reason)
    return skipped


def collection_of(run: Run) -> Collection:
    """The photos that have features, with everything a pair source may ask about them.

    Of several kinds of features, similar photos are found with the last learned one that all photos have.
    """
    dataset, kinds = run.options.dataset, run.kinds
    part = last_learned(kinds[:1] if run.options.escalate else kinds) if kinds else run
    return Collection(
        part.photos_with_features(),
        images=run.images,
        features=part.folder.features,
        poses=dataset.poses,
        positions=dataset.positions,
        device=run.device,
        run=run.folder,
        make_executor=functools.partial(run.executor_reading, "cpu"),
    )


def _chosen_orientations(run: Run) -> str | dict[str, int]:
    """How the photos are turned, for `extract_features`."""
    if run.options.orientation != "auto":
        return run.options.orientation
    return turned_orientations(read_decisions(run.folder.orientations, run.images))


def _warn_if_outdated(folder: RunFolder) -> None:
    """Warns if `database.db` lacks what `verification.h5` holds, because `verify` ran again and `database` did not."""
    inputs = folder.database, folder.verification, folder.pairs
    if all(map(result_exists, inputs)) and is_outdated(folder.database, folder.verification, folder.read_pairs()):
        logger.warning("%s does not hold the pairs of %s: run the stage database first to reconstruct from them", *inputs[:2])


def _is_refined(run: Run) -> bool:
    """Whether the stage refine has something to do; says so if there is too much."""
    if run.options.refinement.name == NO_REFINEMENT or len(fine_kinds(run)) == max(1, len(run.kinds)):
        return False
    return not _has_too_many_matches(run)


def _has_too_many_matches(run: Run) -> bool:
    """Whether more matches were verified than can be refined; says so."""
    limit = run.options.refinement.max_matches
    if is_too_small_for(run.folder.verification, limit):
        return False
    with run.folder.open_verification() as reader:
        number = reader.geometry_numbers(run.folder.read_pairs()).num_inliers
    if number > limit:
        logger.info("%d verified matches are more than refinement.max_matches=%d: keypoints stay as detected", number, limit)
    return number > limit


def _refined_keypoints(run: Run) -> Path | None:
    """The file of refined keypoints; None if the detector's shall be taken, or, with a warning, if there is none."""
    if not _is_refined(run):
        return None
    if not result_exists(run.folder.keypoints):
        logger.warning(
            "%s does not exist: the database gets the keypoints of the detector. The stage refine makes finer ones; "
            "refinement=none wants none",
            run.folder.keypoints,
        )
        return None
    return run.folder.keypoints
