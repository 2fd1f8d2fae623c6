"""What a run does with each of its kinds of features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sfm_lightglue.escalation import read_escalation
from sfm_lightglue.matches.imported import ImportedMatcher
from sfm_lightglue.products import Pair
from sfm_lightglue.run_context import Run


def parts_of(run: Run, stage: str) -> list[Run]:
    """The runs of all kinds of features, or the run itself. Shards divide only the first kind if others follow by escalation."""
    parts = run.kinds or [run]
    return parts[:1] if run.options.escalate and run.shard(stage) is not None else parts


def escalated_pairs(run: Run) -> dict[str, set[Pair]]:
    """With `matches.escalate`, the kinds after the first, and the pairs that were chosen for them; else empty."""
    if not run.options.escalate:
        return {}
    chosen = {*read_escalation(run.folder.escalation)}
    return {part.kind: chosen for part in run.kinds[1:]}


def photos_of(kind: str, names: Sequence[str], chosen: Mapping[str, set[Pair]]) -> list[str]:
    """The photos that get features of a kind: all of them, or those of the pairs that were `chosen` for the kind."""
    if kind not in chosen:
        return list(names)
    wanted = {name for pair in chosen[kind] for name in (pair.name0, pair.name1)}
    return [name for name in names if name in wanted]


def last_learned(kinds: Sequence[Run]) -> Run:
    """The last of several kinds of features that is learned, such as SuperPoint; if there is none, the last one.

    SIFT cannot tell how a photo is turned, and no codebook of the package describes photos by it.
    """
    learned = [part for part in kinds if not getattr(part.options.features.plugin, "ignores_turns", False)]
    return (learned or [*kinds])[-1]


def fine_kinds(run: Run) -> list[str]:
    """The kinds of features whose keypoints the stage refine leaves as they are; the name of a single kind is empty."""
    if run.options.refinement.fine_keypoints:
        return []
    return [part.kind for part in run.kinds or [run] if getattr(part.options.features.plugin, "finds_fine_keypoints", False)]


def is_imported(run: Run) -> bool:
    """Whether features or matches come from files of other programs."""
    if run.kinds:
        return any(map(is_imported, run.kinds))
    return not getattr(run.options.features.plugin, "turns_photos", True) or run.options.matches.plugin is ImportedMatcher
