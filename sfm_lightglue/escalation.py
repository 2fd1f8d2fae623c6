"""`matches.escalate`: the other kinds of features only where the first kind is not enough, and `escalation.tsv`.

The first kind, usually SIFT, is matched for all pairs. A verified pair with many inliers is strong. A photo with few strong
partners is weak. Strong pairs divide the photos into parts. The other kinds are extracted and matched for pairs that are not
strong and have a weak photo, or photos of two parts.

Many inliers do not make a model: photos that move forward, or only turn, connect well and give no points. So the mapper has the
last word: if it leaves photos out, all their pairs get the other kinds too, and so do the pairs between two models. Nor do many
inliers make a right model: if the models contradict many strong pairs, all pairs of their photos get the other kinds as well.

A pair that was chosen once stays chosen, so that the same command gives the same files.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sfm_lightglue.files import foreign_file, written_whole
from sfm_lightglue.mistakes import count_of, shortened
from sfm_lightglue.pairs.second_round import VerifiedGraph
from sfm_lightglue.pairs.view_graph import components_of
from sfm_lightglue.products import Pair

logger = logging.getLogger(__name__)

STRONG_INLIERS = 50
"""A verified pair with as many inliers is strong: the mapper registers a photo with 30. With this limit no photo of fountain-P11
and Herz-Jesu-P8 is weak (SIFT), and one of ten tourist photos, which has two such partners."""
MIN_STRONG = 3
"""A photo with fewer strong partners is weak, unless all its pairs are strong."""
COLUMNS = ("photo0", "photo1", "reason")
"""The first line of the file."""


@dataclass(frozen=True)
class EscalationReport:
    """What the first kind of features left open, and what the others are matched for."""

    num_pairs: int
    """Pairs that get the other kinds, in this call or before."""
    num_photos: int
    """Photos of these pairs."""
    weak: dict[str, int]
    """Name of each weak photo -> number of its strong partners, before the other kinds."""
    num_parts: int
    """Parts of the graph of photos and strong pairs, before the other kinds."""
    left_out: Sequence[str] = ()
    """Photos that no model had, or not the largest one, before all their pairs got the other kinds."""
    doubtful: Sequence[str] = ()
    """Photos whose strong pairs contradicted the models, before all their pairs got the other kinds."""


def choose_pairs(graph: VerifiedGraph, pairs: Iterable[Pair], known: Iterable[Pair]) -> tuple[list[Pair], EscalationReport]:
    """The pairs that get the other kinds of features: those known before and new ones, sorted, with reasons; and a report.

    Args:
        graph: The photos and their verified pairs.
        pairs: All selected pairs.
        known: Pairs that were chosen before.
    """
    pairs = sorted(pairs)
    strong = {pair for pair, count in graph.inliers.items() if count >= STRONG_INLIERS}
    num_pairs, num_strong = dict.fromkeys(graph.names, 0), dict.fromkeys(graph.names, 0)
    for pair in pairs:
        for name in (pair.name0, pair.name1):
            num_pairs[name] += 1
            num_strong[name] += pair in strong
    weak = {name: count for name, count in num_strong.items() if count < min(MIN_STRONG, num_pairs[name])}
    part = components_of(graph.names, strong)
    chosen = {pair: pair for pair in known if pair in {*pairs}}
    for pair in pairs:
        if pair in strong or pair in chosen:
            continue
        reasons = [f"{name} has {count_of(weak[name], 'strong partner')}" for name in (pair.name0, pair.name1) if name in weak]
        if not reasons and part[pair.name0] != part[pair.name1]:
            reasons = ["no strong pair connects the parts of its photos"]
        if reasons:
            chosen[pair] = Pair(pair.name0, pair.name1, "; ".join(reasons))
    photos = {name for pair in chosen for name in (pair.name0, pair.name1)}
    return sorted(chosen.values()), EscalationReport(len(chosen), len(photos), weak, len({*part.values()}))


def choose_left_out(
    names: Sequence[str],
    pairs: Iterable[Pair],
    known: Iterable[Pair],
    models: Sequence[Collection[str]],
    doubtful: Collection[str] = (),
) -> tuple[list[Pair], list[str]]:
    """The pairs that get the other kinds after the mapper: those known before and new ones, sorted.

    And the photos of the new ones that are not in the largest model.

    Args:
        names: The photos that have features.
        pairs: All selected pairs.
        known: Pairs that were chosen before.
        models: The photos of each model, the largest first.
        doubtful: Photos whose strong pairs contradict the models.
    """
    largest_last = reversed([*enumerate(models)])  # a photo of two models counts in the larger one
    number = {name: i for i, model in largest_last for name in model}
    chosen, in_none = {pair: pair for pair in known}, {*names} - number.keys()
    left_out = set[str]()
    for pair in sorted({*pairs} - chosen.keys()):
        missing = [name for name in (pair.name0, pair.name1) if name in in_none]
        if missing:
            reason = "; ".join(f"{name} is in no model" for name in missing)
        elif number.get(pair.name0) != number.get(pair.name1):
            reason = "its photos are in two models"
        elif contradicting := [name for name in (pair.name0, pair.name1) if name in doubtful]:
            reason = "; ".join(f"pairs of {name} contradict the model" for name in contradicting)
        else:
            continue
        chosen[pair] = Pair(pair.name0, pair.name1, reason)
        left_out |= {name for name in (pair.name0, pair.name1) if number.get(name) != 0}
    return sorted(chosen.values()), sorted(left_out)


def log_left_out(left_out: Sequence[str], doubtful: Sequence[str], kinds: Sequence[str], num_new: int) -> None:
    """Says what the mapper left out, or what is in doubt, and what is tried."""
    photos = left_out or doubtful
    logger.info(
        "escalate: %s %s (%s): %s for %s of them",
        count_of(len(photos), "photo is", "photos are"),
        "not in the largest model" if left_out else "in doubt, because many of their pairs contradict the models",
        shortened(photos),
        " and ".join(kinds),
        count_of(num_new, "more pair"),
    )


def log_choice(report: EscalationReport, kinds: Sequence[str], num_new: int) -> None:
    """Says what is escalated, and why."""
    if not num_new:
        return
    weak = f"{count_of(len(report.weak), 'photo')} with fewer than {MIN_STRONG} partners of {STRONG_INLIERS} inliers"
    logger.info(
        "escalate: %s (%s), in %s: %s for %s of %s",
        weak,
        shortened(sorted(report.weak)) or "none",
        count_of(report.num_parts, "part"),
        " and ".join(kinds),
        count_of(num_new, "pair"),
        count_of(report.num_photos, "photo"),
    )


# --- escalation.tsv ----------------------------------------------------------------------------------------------------------


def read_escalation(path: Path) -> list[Pair]:
    """The chosen pairs, sorted, with their reasons; empty if there is no file.

    Raises: ValueError if the file is damaged, or if no run has written it.
    """
    if not path.is_file():
        return []
    header, data = "\t".join(COLUMNS), path.read_bytes()
    if not header.encode().startswith(data.rstrip(b"\0").split(b"\n", 1)[0]):
        raise foreign_file(path)
    try:
        first, *lines = data.decode("utf-8").rstrip("\n").split("\n")
        if first != header:
            raise ValueError("it is cut")
        return sorted(_parse(line) for line in lines)
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): delete it, `escalate` makes it again") from error


def write_escalation(path: Path, pairs: Iterable[Pair]) -> None:
    """Writes the chosen pairs, sorted, whole or not at all."""
    rows = [(_quoted(pair.name0), _quoted(pair.name1), _quoted(pair.reason)) for pair in sorted(pairs)]
    with written_whole(path) as temporary:
        temporary.write_text("\n".join("\t".join(row) for row in [COLUMNS, *rows]) + "\n", encoding="utf-8")


def check_output(path: Path) -> None:
    """Raises: ValueError if the file exists and is damaged, or no run has written it."""
    if path.is_file():
        read_escalation(path)
    elif os.path.lexists(path):
        raise foreign_file(path)


def _quoted(text: str) -> str:
    """The text; in JSON's notation if a tab or a line break in it would break the table."""
    return json.dumps(text, ensure_ascii=False) if text.startswith('"') or {"\t", "\n", "\r"} & {*text} else text


def _parse(line: str) -> Pair:
    name0, name1, reason = (json.loads(text) if text.startswith('"') else text for text in line.split("\t"))
    return Pair(name0, name1, reason)
