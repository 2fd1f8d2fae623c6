"""The search: which turn each group of photos has, relative to the largest group."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from sfm_lightglue.orient.trials import Compare, Outcome
from sfm_lightglue.products import Pair

MAX_POOL = 12
"""Photos of the large group among which the partners of a photo are chosen."""
MAX_REPRESENTATIVES = 2
"""Photos of a group that are tried until the turn of the group is clear."""
MAX_FAILURES, FAILURES_PER_PAIR = 10, 0.02
"""The search ends after this many groups without a clear turn, or this many for each pair of the run if these are more."""
MAX_FAILURES_IF_NONE = 3
"""And after this many if no pair is verified: most such photos have nothing in common. Four photos may have four turns."""


@dataclass
class Search:
    """The state of a search. `group` grows by each group whose turn becomes clear."""

    compare: Compare
    group: list[str]
    """Photos whose turns are known relative to each other."""
    neighbours: Mapping[str, Sequence[str]]
    """The photos with which each photo is paired in the run, the best first."""
    turns: dict[str, int] = field(default_factory=dict)
    """Quarter turns clockwise of each photo in `group`."""
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    """The last outcome of each photo in a group that was tried."""
    progress: Callable[[int], object] = lambda num_photos: None
    """Called with the number of photos in each group after its first try."""

    def run(self, groups: Iterable[Sequence[str]], max_failures: int) -> None:
        """Tries each group with the photos of `group`, and the failed ones again with the photos that joined since."""
        self.turns |= dict.fromkeys(self.group, 0)
        waiting = [(members, set[str]()) for members in groups]
        failures, grew = 0, True
        while waiting and grew and failures < max_failures:
            grew, failed = False, []
            for members, seen in waiting:
                fresh = [name for name in self.group if name not in seen]
                if failures >= max_failures or not fresh:
                    failed.append((members, seen))
                    continue
                outcome = self._try(members, fresh)
                if not seen:
                    self.progress(len(members))
                self.outcomes |= dict.fromkeys(members, outcome)
                if outcome.is_clear:
                    self.turns |= dict.fromkeys(members, outcome.best)
                    self.group += members
                    grew = True
                else:
                    failures += 1
                    failed.append((members, seen | set(fresh)))
            waiting = failed

    def _try(self, members: Sequence[str], partners: Sequence[str]) -> Outcome:
        """The first clear outcome of the group's best connected photos, or else their sum."""
        inliers = [0, 0, 0, 0]
        for name in members[:MAX_REPRESENTATIVES]:
            outcome = self.compare(name, self._pool(members, partners), self.turns)
            if outcome.is_clear:
                return outcome
            inliers = [before + now for before, now in zip(inliers, outcome.inliers, strict=True)]
        return Outcome(tuple(inliers))

    def _pool(self, members: Sequence[str], partners: Sequence[str]) -> list[str]:
        """At most MAX_POOL partners: half of them paired with the members in the run, the others evenly spaced by name."""
        allowed = set(partners)
        paired = [name for member in members for name in self.neighbours.get(member, ()) if name in allowed]
        near = list(dict.fromkeys(paired))[: MAX_POOL // 2]
        others = sorted(allowed - set(near))
        room = MAX_POOL - len(near)
        step = max(1.0, len(others) / room)
        return near + [others[int(i * step)] for i in range(min(room, len(others)))]


def settle(turns: Mapping[str, int], largest: Collection[str], tagged: Collection[str]) -> int:
    """The turn that becomes upright, in quarters: only turns relative to the largest group were found.

    Each photo of the largest group votes for turn 0. A photo outside it votes for its own turn if EXIF turns it. If two turns
    have as many votes, that with more votes from EXIF wins.

    Args:
        turns: Quarter turns clockwise of each photo, relative to the largest group.
        largest: The photos of the largest group.
        tagged: The photos that EXIF turns.
    """
    from_exif = Counter(turns[name] for name in tagged if name in turns)
    votes = Counter(turns[name] for name in {*largest, *tagged} if name in turns)
    return max(range(4), key=lambda turn: (votes[turn], from_exif[turn], -turn))


def max_failures(size: int, num_pairs: int) -> int:
    """Groups without a clear turn after which the search ends, for a largest group of `size` photos."""
    return max(MAX_FAILURES, int(FAILURES_PER_PAIR * num_pairs)) if size > 1 else MAX_FAILURES_IF_NONE


def neighbours_of(pairs: Iterable[Pair]) -> dict[str, list[str]]:
    """The photos paired with each photo, those with the highest similarity first."""
    ranked: dict[str, list[tuple[float, str]]] = {}
    for pair in pairs:
        score = -pair.score if pair.score == pair.score else 0.0
        ranked.setdefault(pair.name0, []).append((score, pair.name1))
        ranked.setdefault(pair.name1, []).append((score, pair.name0))
    return {name: [other for _, other in sorted(found)] for name, found in ranked.items()}
