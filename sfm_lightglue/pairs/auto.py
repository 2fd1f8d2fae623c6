"""The default: all pairs of a small collection, and the pairs that the folder suggests for a large one."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from statistics import median
from typing import Any

from sfm_lightglue.pairs.collection import Collection
from sfm_lightglue.pairs.exhaustive import exhaustive_pairs
from sfm_lightglue.pairs.pairing import Choice, PairSource, check_source, descriptor_options
from sfm_lightglue.pairs.retrieval import RetrievalOptions, RetrievalPairs
from sfm_lightglue.pairs.sequential import SequentialOptions, SequentialPairs, sequences
from sfm_lightglue.pairs.spatial import SpatialOptions, SpatialPairs
from sfm_lightglue.pairs.union import union_pairs
from sfm_lightglue.products import Pair
from sfm_lightglue.ranges import check_ranges

logger = logging.getLogger(__name__)

NUM_SAMPLED = 200
"""Photos whose EXIF is read before the choice. Reading 100,000 headers takes minutes on a network disk."""
MIN_SHARE = 0.5
"""Share of the sampled photos that must have a GPS position, or a time, for it to count."""
MIN_REGULAR = 0.8
"""Share of neighbours in a folder whose numbers differ by the usual step. Random numbers reach 0.46."""
MAX_GAP_S = 60.0
"""Photos that follow each other within this time mostly show the same place."""


@dataclass(frozen=True)
class AutoOptions:
    """Options of `configs/pairs/auto.yaml`."""

    name: str
    max_exhaustive: int
    """Largest number of photos of which all pairs are matched."""
    retrieval: RetrievalOptions
    spatial: SpatialOptions
    sequential: SequentialOptions

    def __post_init__(self) -> None:
        check_ranges(self, "pairs", max_exhaustive=">= 0")


class AutoPairs:
    """All pairs, or the union of retrieval, spatial and sequential pairs, as the number of photos and the folder suggest."""

    def __init__(self, options: AutoOptions) -> None:
        self.options = options

    @classmethod
    def create(cls, options: AutoOptions) -> AutoPairs:
        """The source with these options."""
        return cls(options)

    def __call__(self, collection: Collection) -> list[Pair]:
        """The pairs of the sources that `choose` names."""
        choice, sources = self._decide(collection)
        logger.info("pairs=auto: %s", choice)
        return union_pairs(source(collection) for source in sources) if sources else exhaustive_pairs(collection.names)

    def descriptor_options(self, collection: Collection) -> Any:
        """Those of the first source that `choose` names and that has any."""
        return next(filter(None, (descriptor_options(source, collection) for source in self._decide(collection)[1])), None)

    def check(self, collection: Collection) -> None:
        """Checks the sources that `choose` names, see `pairing.check_source`."""
        for source in self._decide(collection)[1]:
            check_source(source, collection)

    def choose(self, collection: Collection) -> Choice:
        """Which sources give the pairs of this collection, and why."""
        return self._decide(collection)[0]

    def _decide(self, collection: Collection) -> tuple[Choice, list[PairSource]]:
        """The choice and its sources; no sources if all pairs are matched."""
        options, num_photos = self.options, len(collection.names)
        if num_photos <= options.max_exhaustive:
            few = f"{num_photos} photos are not more than pairs.max_exhaustive={options.max_exhaustive}"
            return Choice(("exhaustive",), few), []
        found: dict[str, tuple[str, PairSource]] = {}
        if collection.has_descriptors:
            many = f"{num_photos} photos are more than pairs.max_exhaustive={options.max_exhaustive}"
            found["retrieval"] = many, RetrievalPairs(options.retrieval)
        if why := _why_spatial(collection):
            found["spatial"] = why, SpatialPairs(options.spatial)
        why, order = _why_sequential(collection)
        if why:
            found["sequential"] = why, SequentialPairs(dataclasses.replace(options.sequential, order=order))
        if not found:
            return Choice(
                ("exhaustive",), "the features have no descriptors, and neither EXIF nor the names say what is near"
            ), []
        return Choice(tuple(found), "; ".join(why for why, _ in found.values())), [source for _, source in found.values()]


def _why_spatial(collection: Collection) -> str:
    """Why GPS positions say which photos are near; empty if they do not."""
    if not collection.has_places:
        return ""
    sample = _sample(collection.names)
    found = collection.sample_positions(sample)
    return f"{found} of {len(sample)} photos looked at have a GPS position" if found >= MIN_SHARE * len(sample) else ""


def _why_sequential(collection: Collection) -> tuple[str, str]:
    """Why photos that follow each other show the same place, empty if they may not; and in which order they do."""
    ordered = sequences(collection.names)
    num_steps = sum(len(sequence) - 1 for sequence in ordered)
    if num_steps and _num_regular(ordered) >= MIN_REGULAR * num_steps:
        return "the names are numbered without gaps", "name"
    sample = _sample(collection.names)
    if collection.images is None or len(collection.times(sample)) < MIN_SHARE * len(sample):
        return "", "name"
    times = collection.times()
    timed = sequences(times, times)
    gaps_s = [times[after] - times[before] for sequence in timed for before, after in itertools.pairwise(sequence)]
    if not gaps_s or median(gaps_s) > MAX_GAP_S:
        return "", "name"
    return f"EXIF says that a photo follows the one before after {median(gaps_s):.0f} s", "time"


def _sample(names: Sequence[str]) -> list[str]:
    """At most `NUM_SAMPLED` names, evenly spread."""
    return [*names[:: -(-len(names) // NUM_SAMPLED) or 1]]


def _num_regular(ordered: Sequence[Sequence[str]]) -> int:
    """How many photos follow the one before by the usual step of the numbers in the names of their folder.

    Whole numbers must differ by the step itself, times with decimals by half of it to twice as much.
    """
    regular = 0
    for sequence in ordered:
        found = [re.findall(r"\d+(?:\.\d+)?", PurePosixPath(name).stem) for name in sequence]
        numbers = [float(each[-1]) if each else None for each in found]
        steps = [b - a for a, b in itertools.pairwise(numbers) if a is not None and b is not None]
        if not steps:
            continue
        if any("." in each[-1] for each in found if each):
            usual = median(steps)
            regular += sum(usual / 2 <= step <= 2 * usual for step in steps) if usual > 0 else 0
        else:
            usual, count = Counter(steps).most_common(1)[0]
            regular += count if usual > 0 else 0
    return regular
