"""The stage features -> pairs: asks a pair source for the pairs of a collection."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from sfm_lightglue.execution.shards import Shard
from sfm_lightglue.pairs import global_descriptors
from sfm_lightglue.pairs.budget import SelectionOptions, limit_pairs
from sfm_lightglue.pairs.collection import Collection
from sfm_lightglue.pairs.pairing import Choice, PairSource, create_source, descriptor_options, found_pairs
from sfm_lightglue.pairs.second_round import RoundReport, VerifiedGraph, log_proposals, propose_pairs, widened
from sfm_lightglue.pairs.union import union_pairs
from sfm_lightglue.pairs.view_graph import graph_parts
from sfm_lightglue.products import Pair
from sfm_lightglue.storage import H5Reader

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SelectionReport:
    """Which pairs a call of `plan_pairs` selected, and why."""

    num_pairs: int
    sources: tuple[str, ...]
    """Names of the sources that gave the pairs."""
    because: str
    """Why `pairs=auto` chose these sources; empty if the user has chosen."""
    num_by_source: dict[str, int]
    """Number of pairs by the first word of their reasons: `exhaustive`, `sequential`, `loop`, ... A pair may have several."""
    num_before_limits: int
    """Number of pairs before `pairs.max_pairs` and `pairs.max_pairs_per_image`."""
    num_components: int
    """Connected parts of the graph of photos and selected pairs; a photo without any pair is a part of its own."""
    largest_component: int
    """Photos of the largest part."""
    num_alone: int
    """Photos without any pair."""


def plan_pairs(
    source: PairSource, collection: Collection, names_of_sources: Sequence[str], limits: SelectionOptions
) -> tuple[list[Pair], SelectionReport]:
    """The pairs of a source within the limits, as `select_pairs` gives them, and a report.

    Args:
        source: The pair source.
        collection: The photos.
        names_of_sources: Names of the sources that the user has chosen.
        limits: Budgets of pairs.

    Raises: ValueError as `select_pairs`.
    """
    choice = Choice(tuple(names_of_sources), "")
    if callable(choose := getattr(source, "choose", None)):
        choice = choose(collection)
    found = select_pairs(source, collection)
    pairs = limit_pairs(found, limits.max_pairs, limits.max_pairs_per_image)
    parts = graph_parts(collection.names, pairs)
    return pairs, SelectionReport(
        len(pairs), choice.sources, choice.because, count_sources(pairs), len(found), **dataclasses.asdict(parts)
    )


def describe_share(source: PairSource, collection: Collection, shard: Shard) -> int:
    """Does what one of several processes can do for a pair source: it describes a share of the images. Returns how many.

    `plan_pairs` of one process then finds the pairs. Sources that do not compare whole images leave nothing to do.

    Raises: ShardMismatch as `Shard.share`.
    """
    options = descriptor_options(source, collection)
    if options is not None:
        return global_descriptors.describe_share(options, collection, shard)
    logger.info("these pairs need no descriptors of whole images: there is nothing to divide")
    shard.share(collection.names, [False] * len(collection.names))
    return 0


def count_sources(pairs: Iterable[Pair]) -> dict[str, int]:
    """Number of pairs by the first word of their reasons, such as `retrieval`, sorted. A pair may have several reasons."""
    counts = Counter(
        kind for pair in pairs for kind in {re.split("[#+]", reason.rpartition(":")[2])[0] for reason in pair.reason.split(",")}
    )
    return dict(sorted(counts.items()))


def expand_pairs(
    options: Any, collection: Collection, tried: Sequence[Pair], geometries: H5Reader, limits: SelectionOptions, number: int
) -> tuple[list[Pair], RoundReport]:
    """The pairs that round `number` adds to those before, see `second_round.propose_pairs`, and a report.

    Args:
        options: Options of the pair source of the first round. It is asked again, for twice as many neighbours.
        collection: The photos.
        tried: The pairs of all rounds before.
        geometries: The open file of their two-view geometries.
        limits: `min_partners`, and the budgets of the new pairs.
        number: Number of the round, from 2.
    """
    graph = VerifiedGraph.read(collection.names, tried, geometries)
    num_weak = len(graph.lacking(limits.min_partners))
    wider: list[Pair] = []
    if 2 * len(tried) < len(collection.names) * (len(collection.names) - 1):
        wider = select_pairs(create_source(widened(options)), collection)
    proposed = propose_pairs(graph, tried, wider, limits.min_partners, number)
    proposed = limit_pairs(proposed, limits.max_pairs, limits.max_pairs_per_image)
    parts = graph_parts(collection.names, graph.inliers)
    report = RoundReport(number, len(proposed), count_sources(proposed), num_weak, **dataclasses.asdict(parts))
    log_proposals(report)
    return proposed, report


def select_pairs(source: PairSource, collection: Collection) -> list[Pair]:
    """The pairs that a source finds in a collection: each once, sorted by name, with reasons and scores.

    A pair that the source repeats keeps all its reasons, joined by commas, and its highest score.

    Raises:
        ValueError: The source pairs an image that is not in the collection, or gives anything but pairs.
    """
    pairs = found_pairs(source, collection)
    known = set(collection.names)
    unknown = next((name for pair in pairs for name in (pair.name0, pair.name1) if name not in known), None)
    if unknown is not None:
        raise ValueError(f"{type(source).__name__} pairs {unknown!r}, which is not among the {len(known)} images")
    keys = [(pair.name0, pair.name1) for pair in pairs]
    is_sorted = all(key0 < key1 for key0, key1 in pairwise(keys))
    return pairs if is_sorted else union_pairs([pairs])
