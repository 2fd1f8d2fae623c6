"""More pairs for photos that verify with few others, from what the pairs before have shown.

If photo A verifies with B, and B with C, then A and C may show the same place. They surely do if keypoints of B are inliers
of both pairs. Source: Agarwal et al., Building Rome in a Day, ICCV 2009 (query expansion).
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sfm_lightglue.mistakes import count_of
from sfm_lightglue.pairs.budget import rank_of
from sfm_lightglue.pairs.union import sort_pairs
from sfm_lightglue.pairs.view_graph import components_of
from sfm_lightglue.products import Pair
from sfm_lightglue.storage import H5Reader

logger = logging.getLogger(__name__)

MIN_COMMON = 5
"""Smallest number of keypoints of a common partner that two photos must share to be proposed. Below it, few pairs verify."""
MAX_PARTNERS = 30
"""Partners of a photo, the best ones, through which a photo finds others."""
WIDER = ("num_neighbours", "loop_neighbours", "overlap")
"""Options of pair sources that are doubled to find the next pairs."""
MARK = "round{}:"
"""Begins the reason of a pair of a later round."""


@dataclass(frozen=True)
class VerifiedGraph:
    """Photos, and the pairs among them that were verified."""

    names: tuple[str, ...]
    """All photos, sorted."""
    inliers: Mapping[Pair, int]
    """Number of inliers of each verified pair."""
    reader: H5Reader
    """The open file of two-view geometries."""

    @classmethod
    def read(cls, names: Sequence[str], pairs: Sequence[Pair], reader: H5Reader) -> VerifiedGraph:
        """The graph of these photos and those of `pairs` that are verified in the file of two-view geometries."""
        numbers = reader.geometry_numbers(pairs)
        found = np.flatnonzero(numbers.verified)
        counts = numbers.rows["num_agreeing"][found].tolist()
        return cls(tuple(sorted(names)), {pairs[i]: count for i, count in zip(found.tolist(), counts, strict=True)}, reader)

    @functools.cached_property
    def partners(self) -> dict[str, list[str]]:
        """The verified partners of each photo, those with most inliers first."""
        found: dict[str, list[tuple[int, str]]] = {name: [] for name in self.names}
        for pair, count in self.inliers.items():
            found[pair.name0].append((-count, pair.name1))
            found[pair.name1].append((-count, pair.name0))
        return {name: [other for _, other in sorted(others)] for name, others in found.items()}

    @functools.cached_property
    def components(self) -> dict[str, int]:
        """The connected part of each photo, see `view_graph.components_of`."""
        return components_of(self.names, self.inliers)

    def lacking(self, min_partners: int) -> dict[str, int]:
        """How many verified partners each photo lacks, photos that lack none left out.

        It should have `min_partners`, or all other photos if they are fewer.
        """
        wanted = min(min_partners, len(self.names) - 1)
        return {name: wanted - len(others) for name, others in self.partners.items() if len(others) < wanted}

    def keypoints_towards(self, name: str, other: str) -> np.ndarray:
        """int32 (k,): the keypoints of a photo that are inliers of the pair with another one."""
        pair = Pair(name, other)
        inliers = self.reader.geometry(pair.name0, pair.name1).inlier_matches
        return inliers[:, 0 if pair.name0 == name else 1]


def propose_pairs(
    graph: VerifiedGraph, tried: Sequence[Pair], wider: Sequence[Pair], min_partners: int, number: int
) -> list[Pair]:
    """The pairs of the round `number`, sorted. The same input gives the same pairs.

    Each photo gets as many new pairs as it lacks partners, see `VerifiedGraph.lacking`:

    1. with partners of its partners, if keypoints of the partner between them are inliers of both pairs; those with most such
       keypoints first. The reason is `roundN:friend#RANK`, the score the share of common keypoints.
    2. with the next photos that the pair source finds. The reason is `roundN:` and the source's own.

    Then each two connected parts of the graph get up to `min_partners` of the next pairs of the pair source between them.

    Args:
        graph: The verified pairs of all rounds before.
        tried: All pairs of the rounds before, verified or not.
        wider: Pairs of the same source with more neighbours; those among `tried` are ignored.
        min_partners: See above.
        number: Number of the round, from 2.
    """
    known, mark = set(tried), MARK.format(number)
    proposed: dict[Pair, Pair] = {}
    lacks = graph.lacking(min_partners)
    for name in lacks:
        for rank, (other, share) in enumerate(_friends(graph, name, known)[: lacks[name]], start=1):
            pair = Pair(name, other, f"{mark}friend#{rank}", share)
            if pair not in proposed or rank_of(pair) < rank_of(proposed[pair]):
                proposed[pair] = pair
    given = Counter(name for pair in proposed for name in (pair.name0, pair.name1))
    between = Counter[tuple[int, int]]()
    untried = [pair for pair in wider if pair not in known and pair not in proposed]
    for pair in sorted(untried, key=lambda pair: (rank_of(pair), pair.name0, pair.name1)):
        ends = pair.name0, pair.name1
        parts = graph.components[pair.name0], graph.components[pair.name1]
        joined = min(parts), max(parts)
        if any(given[name] < lacks.get(name, 0) for name in ends) or (parts[0] != parts[1] and between[joined] < min_partners):
            proposed[pair] = dataclasses.replace(pair, reason=",".join(f"{mark}{reason}" for reason in pair.reason.split(",")))
            given.update(ends)
            between[joined] += 1
    return sort_pairs(proposed.values())


def _friends(graph: VerifiedGraph, name: str, known: set[Pair]) -> list[tuple[str, float]]:
    """Untried partners of a photo's partners, the best first, and the share of keypoints that connects them, 0 to 1."""
    common = Counter[str]()
    shares: dict[str, float] = {}
    for between in graph.partners[name][:MAX_PARTNERS]:
        own = graph.keypoints_towards(between, name)
        for other in graph.partners[between][:MAX_PARTNERS]:
            if other == name or Pair(name, other) in known:
                continue
            theirs = graph.keypoints_towards(between, other)
            count = len(np.intersect1d(own, theirs, assume_unique=True))
            common[other] += count
            shares[other] = max(shares.get(other, 0.0), count / max(min(len(own), len(theirs)), 1))
    best = sorted((other for other, count in common.items() if count >= MIN_COMMON), key=lambda other: (-common[other], other))
    return [(other, shares[other]) for other in best]


def widened(options: Any) -> Any:
    """Options of a pair source, of a union or of `auto`, that find twice as many neighbours. Other sources stay as they are."""
    if isinstance(options, Mapping):
        return {key: widened(value) for key, value in options.items()}
    if not dataclasses.is_dataclass(options) or isinstance(options, type):
        return options
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if field.name in WIDER and isinstance(value, int):
            changes[field.name] = 2 * value
        elif dataclasses.is_dataclass(value) or isinstance(value, Mapping):
            changes[field.name] = widened(value)
    return dataclasses.replace(options, **changes)


def round_of(pair: Pair) -> int:
    """The round in which a pair was selected, by its reason: 1 without a mark."""
    first, colon, _ = pair.reason.partition(":")
    return int(first[5:]) if colon and first[:5] == "round" and first[5:].isdecimal() else 1


@dataclass(frozen=True)
class RoundReport:
    """What a later round of pairs added, and how connected the photos were before it."""

    round: int
    num_pairs: int
    """Pairs that the round adds."""
    num_by_source: dict[str, int]
    """Number of these pairs by the first word of their reasons: `friend` for partners of partners, else the pair source's."""
    num_weak: int
    """Photos that had fewer than `pairs.min_partners` verified partners, or than all other photos if these are fewer."""
    num_components: int
    """Connected parts of the graph of photos and verified pairs before the round."""
    largest_component: int
    """Photos of the largest part."""
    num_alone: int
    """Photos without a verified pair."""


def log_proposals(report: RoundReport) -> None:
    """Tells what a round adds, in a line."""
    if not report.num_pairs:
        untried = f"no other pair is promising for {count_of(report.num_weak, 'photo')} with few verified partners"
        logger.info("round %d: %s", report.round, untried if report.num_weak else "all photos have enough verified partners")
        return
    sources = ", ".join(f"{count} x {source}" for source, count in report.num_by_source.items())
    logger.info(
        "round %d: %s%s for %s with few verified partners; the photos are in %s",
        report.round,
        count_of(report.num_pairs, "more pair"),
        f" ({sources})" if sources else "",
        count_of(report.num_weak, "photo"),
        count_of(report.num_components, "part"),
    )
