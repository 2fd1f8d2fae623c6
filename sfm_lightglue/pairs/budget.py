"""Budgets of pairs: the best ones that a limit allows, without cutting the view graph where that can be avoided."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sfm_lightglue.mistakes import count_of
from sfm_lightglue.pairs.view_graph import Components
from sfm_lightglue.products import Pair
from sfm_lightglue.ranges import check_ranges

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SelectionOptions:
    """Options of `configs/pipeline.yaml` for every pair source."""

    rounds: int
    """Rounds of pairs. From the second on, photos with few verified partners get more pairs, see `second_round.py`."""
    min_partners: int
    """Photos with fewer verified partners get more pairs in the next round."""
    max_pairs: int | None
    """Largest number of pairs of a round; None has no limit."""
    max_pairs_per_image: int | None
    """Largest number of pairs of a photo in a round; None has no limit."""

    def __post_init__(self) -> None:
        check_ranges(self, "pairs", rounds=">= 1", min_partners=">= 1", max_pairs=">= 1", max_pairs_per_image=">= 1")


def limit_pairs(pairs: Sequence[Pair], max_pairs: int | None, max_pairs_per_image: int | None) -> list[Pair]:
    """The best of the pairs that the limits allow, sorted.

    The better of two pairs has the smaller rank in its reasons (`retrieval#3` and `sequential+3` have rank 3), then the higher
    score, then the earlier names. First come the best pairs that connect the photos (a maximum spanning forest), as far as the
    limits allow it. Then come the best of the others. If nothing tells the pairs apart, neighbours in the order of names are
    kept, with a warning.

    Args:
        pairs: Each pair once, in any order.
        max_pairs: Largest number of pairs; None has no limit.
        max_pairs_per_image: Largest number of pairs of each photo; None has no limit.
    """
    index = {name: i for i, name in enumerate(sorted({name for pair in pairs for name in (pair.name0, pair.name1)}))}
    most = len(pairs) if max_pairs is None else max_pairs
    most_of_one = len(index) if max_pairs_per_image is None else max_pairs_per_image
    if len(pairs) <= most and most_of_one >= len(index) - 1:
        return sorted(pairs, key=_names)
    ends = [(index[pair.name0], index[pair.name1]) for pair in pairs]
    order = _best_first(pairs, ends)
    graph, degrees, kept = Components(len(index)), [0] * len(index), set[int]()

    def keep(i: int) -> None:
        kept.add(i)
        for end in ends[i]:
            degrees[end] += 1

    for must_connect in (True, False):
        for i in order:
            if len(kept) >= most:
                break
            end0, end1 = ends[i]
            if i in kept or degrees[end0] >= most_of_one or degrees[end1] >= most_of_one:
                continue
            if not must_connect or graph.join(end0, end1):
                keep(i)
    if len(kept) < len(pairs):
        _log_cut(len(kept), len(pairs), ends, graph)
    return sorted((pairs[i] for i in kept), key=_names)


def expected_pairs(options: Any, num_photos: int, limits: SelectionOptions) -> int | None:
    """The largest number of pairs that a source with these options gives in the first round; None if that is not known.

    It is known for sources with a number of neighbours, for all pairs, and for unions of these.
    """
    every = num_photos * (num_photos - 1) // 2
    most = _most(options, num_photos)
    if most is None:
        return None
    limit = every if limits.max_pairs is None else limits.max_pairs
    of_images = every if limits.max_pairs_per_image is None else num_photos * limits.max_pairs_per_image // 2
    return min(most, every, limit, of_images)


def _most(options: Any, num_photos: int) -> int | None:
    """As `expected_pairs`, without limits."""
    every = num_photos * (num_photos - 1) // 2
    if isinstance(sources := getattr(options, "sources", None), Mapping):  # a union
        counts = [_most(each, num_photos) for each in sources.values()]
        return None if None in counts else sum(filter(None, counts))
    if (largest := getattr(options, "max_exhaustive", None)) is not None:  # auto
        if num_photos <= largest:
            return every
        return sum(_most(each, num_photos) or 0 for each in (options.retrieval, options.spatial, options.sequential))
    if isinstance(count := getattr(options, "num_neighbours", None), int):
        return num_photos * count
    if isinstance(overlap := getattr(options, "overlap", None), int):
        loops = num_photos // options.loop_every * options.loop_neighbours if options.loop_closure else 0
        return num_photos * (2 * overlap if options.quadratic_overlap else overlap) + loops
    return every if options.name == "exhaustive" else None


def rank_of(pair: Pair) -> float:
    """The smallest rank in the reasons of a pair, such as 3 for `retrieval#3,sequential+7`; infinity without any."""
    return min((int(number) for number in re.findall(r"[#+](\d+)", pair.reason)), default=math.inf)


def _names(pair: Pair) -> tuple[str, str]:
    return pair.name0, pair.name1


def _best_first(pairs: Sequence[Pair], ends: Sequence[tuple[int, int]]) -> list[int]:
    """Indices of the pairs, the best first."""
    ranks = [rank_of(pair) for pair in pairs]
    scores = [-math.inf if math.isnan(pair.score) else pair.score for pair in pairs]
    if all(map(math.isinf, ranks)) and all(map(math.isinf, scores)):
        logger.warning("the pairs have neither ranks nor scores: the limits keep neighbours in the order of names")
        ranks = [float(abs(end1 - end0)) for end0, end1 in ends]
    return sorted(range(len(pairs)), key=lambda i: (ranks[i], -scores[i], ends[i]))


def _log_cut(num_kept: int, num_pairs: int, ends: Sequence[tuple[int, int]], kept: Components) -> None:
    whole = Components(max(max(pair) for pair in ends) + 1)
    num_joins = sum(whole.join(*pair) for pair in ends)
    nodes = range(max(max(pair) for pair in ends) + 1)
    extra = len({kept.find(node) for node in nodes}) - (len(nodes) - num_joins)
    cut = f"; they cut the view graph into {count_of(extra, 'more part')}" if extra else "; the view graph stays as connected"
    logger.info("the limits keep %d of %d pairs%s", num_kept, num_pairs, cut)
