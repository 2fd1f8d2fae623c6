"""Several pair sources together: `pairs=[sequential,retrieval]`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np

from sfm_lightglue.pairs.collection import Collection
from sfm_lightglue.pairs.pairing import PairSource, check_source, create_source, descriptor_options, found_pairs
from sfm_lightglue.products import Pair


@dataclass(frozen=True)
class UnionOptions:
    """Options of several sources."""

    name: str
    sources: Mapping[str, Any]
    """Options of each source, by the key under which the group `pairs` holds them."""

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError("pairs=union joins the sources of a list: give one, such as pairs=[sequential,retrieval]")


def source_names(options: Any) -> tuple[str, ...]:
    """The names of the sources that options describe: of all sources of a union, or of the only one."""
    return tuple(options.sources) if isinstance(options, UnionOptions) else (str(options.name),)


class UnionPairs:
    """The pairs of all sources, in the order in which they are listed."""

    def __init__(self, sources: Sequence[PairSource]) -> None:
        self.sources = tuple(sources)

    @classmethod
    def create(cls, options: UnionOptions) -> UnionPairs:
        """The source that joins the sources with these options."""
        return cls([create_source(source) for source in options.sources.values()])

    def __call__(self, collection: Collection) -> list[Pair]:
        """See `union_pairs`."""
        return union_pairs(found_pairs(source, collection) for source in self.sources)

    def descriptor_options(self, collection: Collection) -> Any:
        """Those of the first source that has any."""
        return next(filter(None, (descriptor_options(source, collection) for source in self.sources)), None)

    def check(self, collection: Collection) -> None:
        """Checks every source, see `pairing.check_source`."""
        for source in self.sources:
            check_source(source, collection)


def union_pairs(lists: Iterable[Iterable[Pair]]) -> list[Pair]:
    """The pairs of all lists, each once, sorted by name.

    The reasons of a pair that is found several times are joined by commas in the order of the lists; a reason that repeats is
    kept once. Its score is the highest one, and NaN if no list gives a score.
    """
    union: dict[Pair, Pair] = {}
    for pairs in lists:
        for pair in pairs:
            known = union.get(pair)
            if known is None:
                union[pair] = pair
                continue
            reasons = dict.fromkeys([*known.reason.split(","), *pair.reason.split(",")])
            score = float(np.fmax(known.score, pair.score))  # fmax ignores NaN
            union[pair] = Pair(pair.name0, pair.name1, ",".join(filter(None, reasons)), score)
    return sort_pairs(union.values())


def best_of(pairs: Iterable[Pair]) -> list[Pair]:
    """Each pair once, sorted, with the reason and score that come first in the order of ranks: `poses#2` before `poses#5`."""
    best: dict[tuple[str, str], tuple[int, Pair]] = {}
    for pair in pairs:
        key, rank = (pair.name0, pair.name1), int(pair.reason.rpartition("#")[2])
        if key not in best or rank < best[key][0]:
            best[key] = rank, pair
    return [pair for _, (_, pair) in sorted(best.items())]


def sort_pairs(pairs: Iterable[Pair]) -> list[Pair]:
    """The pairs sorted by their names. It is five times as fast as `sorted`, which compares pairs one by one in Python."""
    return sorted(pairs, key=attrgetter("name0", "name1"))
