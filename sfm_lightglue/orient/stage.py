"""The stage verified pairs -> orientations: reads `features.h5`, `pairs.txt` and `verification.h5`, writes `orientations.tsv`.

Photos that verify with few others may lie on their side although EXIF does not say so. They are matched again in four turns, as
small pictures, with a few photos of the largest group. Only the decisions are written here: the stage `extract` applies them.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfm_lightglue.execution.progress import progress_bar
from sfm_lightglue.images import UnreadableImage, read_orientation, read_pose_tags
from sfm_lightglue.orient.decisions import Decision, content_hash, read_decisions, turned_orientations, write_decisions
from sfm_lightglue.orient.groups import find_groups
from sfm_lightglue.orient.search import Search, max_failures, neighbours_of, settle
from sfm_lightglue.orient.trials import Outcome, Trials
from sfm_lightglue.orientation import UPRIGHT, turned_further
from sfm_lightglue.run_folder import RunFolder

logger = logging.getLogger(__name__)


NOT_TRIED = "not tried"
"""Beginning of the reason of a decision without a trial."""


@dataclass(frozen=True)
class OrientationReport:
    """What a call of `find_orientations` did."""

    num_groups: int
    """Groups of photos that verify well with each other."""
    tried: list[str]
    """The photos that were tried in four turns, or belong to a group of which some were."""
    turned: dict[str, str]
    """Name of each photo that the pictures turned, in this call or before -> its new orientation and the reason."""
    changed: list[str]
    """The photos that this call turned."""
    num_decided: int = 0
    """Photos that were tried, in this call or before."""

    def after(self, before: OrientationReport | None) -> OrientationReport:
        """The report of this call and of an earlier one in the same run."""
        if before is None:
            return self
        tried, changed = sorted({*before.tried, *self.tried}), sorted({*before.changed, *self.changed})
        return dataclasses.replace(self, tried=tried, changed=changed)

    def to_json(self) -> dict[str, Any]:
        """The record for summary.json."""
        return {"num_groups": self.num_groups, "num_tried": self.num_decided, "turned": self.turned}


def find_orientations(
    folder: RunFolder,
    images: Path,
    names: Sequence[str],
    open_trials: Callable[[Mapping[str, int]], Trials],
    among: Collection[str] | None = None,
) -> OrientationReport:
    """Decides the turns of photos that verify with few others, and writes them to `orientations.tsv`.

    Args:
        folder: Output folder in which the stages up to `verify` have run.
        images: Folder of the photos.
        names: The photos that have features.
        open_trials: From the code of EXIF of each photo to the trials. Called only if there is something to try.
        among: Only groups of photos with one of these are tried; None for all.

    Raises:
        ValueError: If `orientations.tsv` is damaged.
    """
    known = read_decisions(folder.orientations, images)
    with folder.open_features() as features, folder.open_verification() as verified:
        here = {name for name in names if features.num_keypoints(name)}
        pairs = [pair for pair in folder.read_pairs() if {pair.name0, pair.name1} <= here]
        inliers = {pair: verified.num_inliers(pair.name0, pair.name1) for pair in pairs}
        # No turn helps a photo without keypoints, or one that the user's list of pairs leaves out.
        paired = sorted({name for pair in pairs for name in (pair.name0, pair.name1)})
        orientations = {name: features.orientation(name) for name in paired}
    first, *others = find_groups(orientations, inliers) or [[]]
    waiting = [group for group in others if _is_open(group, known, len(first)) and (among is None or {*group} & {*among})]
    if not waiting:
        return OrientationReport(bool(first) + len(others), [], _described(known), [], _num_tried(known))
    trials = open_trials(orientations)
    with progress_bar(sum(map(len, waiting)), "orient", "img") as bar:
        search = Search(trials.compare, list(first), neighbours_of(pairs), progress=bar.update)
        search.run(waiting, max_failures(len(first), len(pairs)))
    decided = _decisions(search, first, orientations, images, known)
    changed = sorted(name for name, decision in decided.items() if decision.orientation != orientations[name])
    not_tried = {name for group in waiting for name in group} - {*search.turns, *search.outcomes, *known}
    after = known | decided
    report = OrientationReport(1 + len(others), sorted(search.outcomes), _described(after), changed, _num_tried(after))
    _log(report)
    if changed and not turned_orientations(known) and not any(_has_orientation(images / name) for name in search.group):
        logger.info("orient: EXIF does not say what is up, so the photos turn to the largest group, which may lie on its side")
    known |= decided
    known |= {name: _not_tried(name, orientations[name], len(search.group), images) for name in not_tried}
    write_decisions(folder.orientations, known.values())
    return report


def _is_open(group: Sequence[str], known: Mapping[str, Decision], size: int) -> bool:
    """True if a photo of the group was neither turned before nor tried with a group of this size."""
    return any(name not in known or not (known[name].turned or known[name].group >= size) for name in group)


def _decisions(
    search: Search, largest: Collection[str], orientations: Mapping[str, int], images: Path, known: Mapping[str, Decision]
) -> dict[str, Decision]:
    """The decision for each photo that was tried, and for photos that must turn with the others.

    `known` are decisions before: a photo that they turned stays turned, unless its turn changes.
    """
    tagged = [name for name in search.turns if _is_turned_by_exif(images / name, orientations[name])]
    shift, decided = settle(search.turns, largest, tagged), {}
    for name in sorted({*search.outcomes, *(search.turns if shift else ())}):
        outcome, is_clear = search.outcomes.get(name), name in search.turns
        turn = (search.turns[name] - shift) % 4 if is_clear else 0
        if not turn and name in known and known[name].turned:
            decided[name] = known[name]
            continue
        best = max(outcome.inliers) if outcome else 0
        code, reason = turned_further(orientations[name], turn), _reason(turn, shift, is_clear, outcome)
        decided[name] = Decision(name, code, turn != 0, reason, best, len(search.group), content_hash(images / name))
    return decided


def _reason(turn: int, shift: int, is_clear: bool, outcome: Outcome | None) -> str:
    """Why a photo is turned by `turn` quarters, or not.

    Args:
        turn: The decision.
        shift: How far the largest group was from upright, in quarters counter-clockwise.
        is_clear: True if the turn relative to the largest group is known.
        outcome: Inliers relative to the largest group; None for a photo of this group.
    """
    if not is_clear:
        return f"no turn is clearly the best: {outcome}"
    if not shift:
        return f"turned: {outcome}" if turn else f"best as it is: {outcome}"
    decision = "turned" if turn else "not turned"
    if outcome is None:
        return f"{decision} with its group: EXIF of more photos says so"
    return f"{decision}: the largest group turns, because EXIF of more photos says so; relative to it before, {outcome}"


def _not_tried(name: str, orientation: int, size: int, images: Path) -> Decision:
    """The decision for a photo when the search has ended before it. The same command again does not try it either."""
    reason = f"{NOT_TRIED}: too many photos before it had no clear turn"
    return Decision(name, orientation, False, reason, 0, size, content_hash(images / name))


def _is_turned_by_exif(path: Path, orientation: int) -> bool:
    """True if EXIF says to turn the photo, and the pictures have not decided otherwise before.

    Code 1 does not count: cameras without a sensor of orientation write it too.
    """
    try:
        return UPRIGHT != read_orientation(path) == orientation
    except UnreadableImage:
        return False


def _has_orientation(path: Path) -> bool:
    """True if EXIF has an orientation, also code 1."""
    try:
        return read_pose_tags(path)[1] != 0
    except UnreadableImage:
        return False


def _num_tried(decisions: Mapping[str, Decision]) -> int:
    return sum(not decision.reason.startswith(NOT_TRIED) for decision in decisions.values())


def _described(decisions: Mapping[str, Decision]) -> dict[str, str]:
    turned = {name: decision for name, decision in sorted(decisions.items()) if decision.turned}
    return {name: f"orientation {decision.orientation}, {decision.reason}" for name, decision in turned.items()}


def _log(report: OrientationReport) -> None:
    names = ", ".join(report.changed[:5]) + (f" and {len(report.changed) - 5} more" if len(report.changed) > 5 else "")
    logger.info(
        "orient: %d photos that verify with few others were tried in four turns, %d are turned%s",
        len(report.tried),
        len(report.changed),
        f": {names} (reasons in orientations.tsv)" if names else "",
    )
