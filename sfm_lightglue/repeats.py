"""Stages that look at the results and, where it helps, repeat others: `orient`, `expand`, `escalate`, `reconstruct`."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sfm_lightglue.escalation import (
    EscalationReport,
    choose_left_out,
    choose_pairs,
    log_choice,
    log_left_out,
    read_escalation,
    write_escalation,
)
from sfm_lightglue.execution.devices import num_cores
from sfm_lightglue.execution.shards import ShardOptions
from sfm_lightglue.files import result_exists
from sfm_lightglue.images import camera_ranges, find_masks
from sfm_lightglue.next_commands import command_of, next_command, next_round
from sfm_lightglue.orient.stage import find_orientations
from sfm_lightglue.orient.trials import Trials, small_options
from sfm_lightglue.pair_files import replace_pairs
from sfm_lightglue.pairs.second_round import RoundReport, VerifiedGraph, round_of
from sfm_lightglue.pairs.stage import expand_pairs
from sfm_lightglue.pairs.union import sort_pairs
from sfm_lightglue.pipeline import (
    collection_of,
    database,
    extract,
    match,
    pairs,
    reconstruct_models,
    refine,
    verify,
)
from sfm_lightglue.reconstruction.models import describe_models
from sfm_lightglue.run_context import Run
from sfm_lightglue.run_kinds import is_imported, last_learned
from sfm_lightglue.summary import TIMES, Summary

logger = logging.getLogger(__name__)


def orient(run: Run) -> None:
    """Turns photos that verify with few others, if the pictures say so: verification.h5 -> orientations.tsv.

    Then it repeats the stages before for the turned photos, as long as more photos can be turned. It does nothing unless
    `features.orientation` is `auto`. With `matches.escalate`, the stage `escalate` does it, for the photos that it concerns.
    """
    if not run.options.escalate:
        _turn(run)


def _turn(run: Run, among: Collection[str] | None = None) -> bool:
    """Turns photos by what the pictures show, only those `among` some if given; returns whether one is turned now."""
    whole = None
    while _turns_by_pictures(run):
        with run.recorded("orient", adds=whole is not None) as record:
            open_trials = functools.partial(_open_trials, run)
            report = find_orientations(run.folder, run.images, run.photos_with_features(), open_trials, among)
            whole = report.after(whole)
            record |= whole.to_json()
        if not report.changed:
            break
        run = dataclasses.replace(run, repeats=True)
        for stage in (extract, pairs, match, verify):
            stage(run)
    return whole is not None and bool(whole.changed)


def expand(run: Run) -> None:
    """Adds pairs for photos that verify with few others, and matches and verifies them: verification.h5 -> pairs.txt.

    It does nothing unless `pairs.rounds` is 2 or more. With `execution=shards`, it only adds the pairs of one round: match and
    verify follow in shards.
    """
    if isinstance(run.execution, ShardOptions):
        _expand_for_shards(run)
        return
    rounds: list[dict[str, Any]] = []
    for number in range(2, run.options.selection.rounds + 1):
        report = _add_round(run, number, rounds)
        if not report.num_pairs:
            break
        rounds.append(dataclasses.asdict(report))
        repeated = dataclasses.replace(run, repeats=True)
        match(repeated)
        verify(repeated)
    if run.options.selection.rounds < 2:
        with run.recorded("expand") as record:
            record["rounds"] = []


def _expand_for_shards(run: Run) -> None:
    """Adds the pairs of the next round, and says which commands match them."""
    rounds = run.options.selection.rounds
    number = next_round(run.folder, rounds)
    before = [dataclasses.asdict(report) for report in Summary.read(run.folder).expansion if number and report.round < number]
    if number is None or not _add_round(run, number, before).num_pairs:
        last = command_of(run.folder, "run", run.options.configuration)
        logger.info("no pairs are added (pairs.rounds=%d). next: %s (once)", rounds, last)
        return
    logger.info("next: %s", next_command(run.folder, "expand", run.options.configuration, rounds, None))


def _add_round(run: Run, number: int, before: Sequence[Mapping[str, Any]]) -> RoundReport:
    """Adds the pairs of a round to pairs.txt. `before` are the reports of the rounds before it."""
    with run.recorded("expand", adds=number > 2) as record, collection_of(run) as collection:
        kept = [pair for pair in run.folder.read_reasons() if round_of(pair) < number]
        with run.folder.open_verification() as reader:
            added, report = expand_pairs(run.options.pairs.options, collection, kept, reader, run.options.selection, number)
        replace_pairs(run.folder.pairs, run.folder.pair_reasons, sort_pairs([*kept, *added]))
        record["rounds"] = [*before, dataclasses.asdict(report)]
    return report


def escalate(run: Run) -> None:
    """Matches the other kinds of features where the first one connects photos weakly: verification.h5 -> escalation.tsv.

    It repeats the stages before for these photos and pairs, until nothing new is weak, and turns those of the photos that still
    verify with few others, as `orient` does. It does nothing unless `matches.escalate` is true.
    """
    if not run.options.escalate:
        with run.recorded("escalate"):
            return
    while True:
        _escalate_weak(run)
        photos = {name for pair in read_escalation(run.folder.escalation) for name in (pair.name0, pair.name1)}
        if not photos or not _turn(run, photos):
            return
        run = dataclasses.replace(run, repeats=True)


def _escalate_weak(run: Run) -> None:
    """Matches the other kinds of features for what is weak, until nothing new is."""
    first: EscalationReport | None = None
    before = run.folder.read_summary()["stages"].get("escalate", {})
    while True:
        with run.recorded("escalate", adds=first is not None) as record:
            known, pairs = read_escalation(run.folder.escalation), run.folder.read_pairs()
            with run.folder.open_verification() as reader:
                graph = VerifiedGraph.read(run.photos_with_features(), pairs, reader)
                chosen, report = choose_pairs(graph, pairs, known)
            log_choice(report, [part.kind for part in run.kinds[1:]], len(chosen) - len(known))
            write_escalation(run.folder.escalation, {*chosen, *known})
            is_repeated = first is None and bool(known) and not {*chosen} - {*known}  # the graph has the other kinds already
            record |= dataclasses.asdict(report) | _before_escalation(first or report, before if is_repeated else {})
        if not {*chosen} - {*known}:
            return
        first, run = first or report, dataclasses.replace(run, repeats=True)
        for stage in (extract, match, verify):
            stage(run)


def _before_escalation(report: EscalationReport, before: Mapping[str, Any]) -> dict[str, Any]:
    """What the first kind of features left open: as it was recorded `before`, or else as the report says."""
    return {key: before.get(key, getattr(report, key)) for key in ("weak", "num_parts", "left_out", "doubtful")}


def reconstruct(run: Run) -> None:
    """Reconstructs the scene: database.db -> reconstruction/0 ... n.

    With `matches.escalate`, photos that are left out or in doubt get the other kinds of features for all their pairs, and the
    stages before are repeated.
    """
    reconstruct_models(run)
    while run.options.escalate and _escalate_left_out(run):
        run = dataclasses.replace(run, repeats=True)
        for stage in (extract, match, verify, refine, database, reconstruct_models):
            stage(run)


def _escalate_left_out(run: Run) -> bool:
    """Chooses all pairs of photos that the mapper left out or that are in doubt, and pairs between two models.

    Returns whether any is new.
    """
    folder = run.folder
    if not all(map(result_exists, (folder.features, folder.pairs, folder.verification))):
        return False
    known, names, stages = read_escalation(folder.escalation), run.photos_with_features(), folder.read_summary()["stages"]
    has_models = bool(stages["reconstruct"]["models"])  # those in the folder may be an earlier run's
    before = {key: value for key, value in stages.get("escalate", {}).items() if key not in TIMES}
    doubtful = stages["reconstruct"]["doubtful"] if has_models and not before.get("doubtful") else []  # once is enough
    found = describe_models(folder.reconstruction, names).models if has_models else []
    models = [model.registered for model in found]
    chosen, left_out = choose_left_out(names, folder.read_pairs(), known, models, doubtful)
    if len(chosen) == len(known):
        return False
    log_left_out(left_out, doubtful, [part.kind for part in run.kinds[1:]], len(chosen) - len(known))
    with run.recorded("escalate", adds=True) as record:
        write_escalation(folder.escalation, chosen)
        photos = {name for pair in chosen for name in (pair.name0, pair.name1)}
        sums = {key: sorted({*before.get(key, ()), *new}) for key, new in (("left_out", left_out), ("doubtful", doubtful))}
        record |= {**before, "num_pairs": len(chosen), "num_photos": len(photos), **sums}
    return True


def _turns_by_pictures(run: Run) -> bool:
    """Whether photos may be turned by what the pictures show: not if features or matches are imported, or match turned photos."""
    for part in run.kinds or [run]:
        for choice in (part.options.features, part.options.matches):
            choice.check()
    return run.options.orientation == "auto" and not is_imported(run) and not all(map(_matches_turned, run.kinds or [run]))


def _matches_turned(run: Run) -> bool:
    """Whether turns of the photos make no difference: the descriptors stay the same, and alone decide what is matched."""
    features, matches = run.options.features.plugin, run.options.matches.plugin
    if not getattr(features, "ignores_turns", False):
        return False
    from sfm_lightglue.matches.nearest_neighbor import NearestNeighborMatcher  # here, not at the top: it imports torch

    return matches is NearestNeighborMatcher


def _open_trials(run: Run, orientations: Mapping[str, int]) -> Trials:
    """Trials of the photos, which have these orientations now, with the extractor and the matcher of the run.

    Of several kinds, they are those of the last learned one: SIFT, which matches turned photos, could not tell their turns.
    """
    run = last_learned(run.kinds) if run.kinds else run
    features = dataclasses.replace(run.options.features, options=small_options(run.options.features.options))
    masks = {} if run.options.dataset.masks is None else find_masks(run.options.dataset.masks, run.list_photos()).files
    ranges = camera_ranges(run.images, [*orientations], num_cores())
    extractor = features.create(run.device)
    return Trials(run.images, masks, ranges, orientations, extractor, run.matcher(), run.options.geometries)
