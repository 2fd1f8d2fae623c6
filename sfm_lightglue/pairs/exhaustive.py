"""Every image with every other."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations

from sfm_lightglue.products import Pair


def exhaustive_pairs(names: Iterable[str]) -> list[Pair]:
    """All pairs of different names, sorted: n (n - 1) / 2 of them."""
    return [Pair(name0, name1, "exhaustive") for name0, name1 in combinations(sorted(set(names)), 2)]
