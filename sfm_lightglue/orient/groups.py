"""Groups of photos that verify well with each other. Photos of a group have the same turn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from sfm_lightglue.products import Pair

SHARE_OF_BEST = 0.25
"""Two photos are connected if their inliers are at least this share of the best pair of either photo. Photos that differ by half
a turn are verified now and then, with 2 to 5 % of the inliers of their best pair (fountain-P11, SuperPoint and LightGlue)."""
SHARE_OF_TYPICAL = 0.1
"""And at least this share of the median over all photos of their best pair."""


def find_groups(names: Iterable[str], inliers: Mapping[Pair, int]) -> list[list[str]]:
    """The connected groups of photos, the largest first; each with its best connected photos first.

    Args:
        names: All photos. A photo without a good pair is a group of its own.
        inliers: Number of verified matches of each pair; 0 for a rejected pair.
    """
    names = sorted(names)
    best = dict.fromkeys(names, 0)
    total = dict.fromkeys(names, 0)
    for pair, count in inliers.items():
        for name in (pair.name0, pair.name1):
            best[name] = max(best[name], count)
            total[name] += count
    typical = float(np.median([count for count in best.values() if count] or [0]))
    root = {name: name for name in names}

    def find(name: str) -> str:
        while root[name] != name:
            root[name] = root[root[name]]
            name = root[name]
        return name

    for pair, count in sorted(inliers.items()):
        weaker = min(best[pair.name0], best[pair.name1])
        if count and count >= max(SHARE_OF_BEST * weaker, SHARE_OF_TYPICAL * typical):
            root[find(pair.name1)] = find(pair.name0)
    members: dict[str, list[str]] = {}
    for name in names:
        members.setdefault(find(name), []).append(name)
    groups = [sorted(group, key=lambda name: (-total[name], name)) for group in members.values()]
    return sorted(groups, key=lambda group: (-len(group), -sum(total[name] for name in group), group))
