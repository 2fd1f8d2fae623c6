"""Every image with every other image."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations

from sfm_lightglue.pairs.collection import Collection
from sfm_lightglue.products import Pair


@dataclass(frozen=True)
class ExhaustiveOptions:
    """Options of `configs/pairs/exhaustive.yaml`."""

    name: str


class ExhaustivePairs:
    """All pairs of a collection."""

    @classmethod
    def create(cls, options: ExhaustiveOptions) -> ExhaustivePairs:
        """The source; it has no options."""
        return cls()

    def __call__(self, collection: Collection) -> list[Pair]:
        """See `exhaustive_pairs`."""
        return exhaustive_pairs(collection.names)


def exhaustive_pairs(names: Iterable[str]) -> list[Pair]:
    """All n (n - 1) / 2 pairs of the n different names, sorted, with the reason `exhaustive`."""
    return [Pair(name0, name1, "exhaustive") for name0, name1 in combinations(sorted(set(names)), 2)]
