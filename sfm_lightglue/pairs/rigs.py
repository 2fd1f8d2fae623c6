"""Stereo pairs and rigs: folders of cameras that took photos at the same times, known from the names alone.

`left/0001.png` and `right/0001.png` are one time, and so are `cam0/1403636579.76.png` and `cam1/1403636579.77.png`.
"""

from __future__ import annotations

import itertools
import logging
import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from statistics import median
from typing import TypeAlias

logger = logging.getLogger(__name__)

MIN_SHARED = 0.8
"""Smallest share of photos of the larger folder that have a photo of the same time in the other folder."""
MAX_CAMERAS = 8
"""Largest number of folders that are taken for one rig with `auto`: n cameras give n (n - 1) / 2 pairs for each time."""
MAX_FOLDERS = 64
"""Largest number of folders beside each other that are compared."""

SameTimes: TypeAlias = list[tuple[str, str]]
"""Photos of two folders that were taken together, in order of time."""


def rig_folders(sequences: Mapping[str, Sequence[str]], max_cameras: int = MAX_CAMERAS) -> list[SameTimes]:
    """The photos of equal times of each two folders that evidently belong to one rig.

    The paths of two folders of a rig differ in one part, such as `seq1/left` and `seq1/right`; the last part that can differ
    counts, so that `seq1/cam0` and `seq2/cam0` are not a rig. At least 80 % of the photos of the larger folder have a photo of
    the same time in the other one.

    Args:
        sequences: Photos of each folder in order of time.
        max_cameras: More folders are not taken for a rig, with a warning.
    """
    found: list[SameTimes] = []
    assigned: set[str] = set()
    depth = max((len(PurePosixPath(folder).parts) for folder in sequences), default=0)
    for position in reversed(range(depth)):
        siblings: dict[tuple[str, ...], list[str]] = {}
        for folder in sequences:
            parts = PurePosixPath(folder).parts
            if position < len(parts) and folder not in assigned and len(sequences[folder]) > 1:
                siblings.setdefault((*parts[:position], "*", *parts[position + 1 :]), []).append(folder)
        for group in (group for group in siblings.values() if len(group) <= MAX_FOLDERS):
            times = {folder: same_times(*(sequences[name] for name in folder)) for folder in itertools.combinations(group, 2)}
            related = {pair: same for pair, same in times.items() if _is_rig(same, *(sequences[name] for name in pair))}
            cameras = {name for pair in related for name in pair}
            assigned |= cameras
            if len(cameras) <= max_cameras:
                found += related.values()
            else:
                logger.warning(
                    "%d folders hold photos of the same times, for example %s: more than %d are not taken for a rig, and photos "
                    "are not paired across them; pairs.across_folders=true pairs them",
                    *(len(cameras), min(cameras), max_cameras),
                )
    return found


def same_times(names0: Sequence[str], names1: Sequence[str]) -> SameTimes:
    """Photos of two folders that were taken at the same time, in the order of `names0`; each photo occurs at most once.

    Equal file names without the suffix are the same time. If there are few, the last numbers in the names are compared:
    counters, or times of exposure. They are the same if they differ by less than half of the time between two photos.
    """
    by_stem = {_stem(name): name for name in names1}
    same = [(name, by_stem[_stem(name)]) for name in names0 if _stem(name) in by_stem]
    if _is_rig(same, names0, names1):
        return same
    return max(same, _near_numbers(names0, names1), key=len)


def _near_numbers(names0: Sequence[str], names1: Sequence[str]) -> SameTimes:
    times0, times1 = _times(names0), _times(names1)
    if len(times0) < 2 or len(times1) < 2:
        return []
    interval = max(_interval(times0), _interval(times1))
    numbers1 = [number for number, _ in times1]
    same, used = [], set()
    for number, name in times0:
        i = bisect_left(numbers1, number)
        near = min((j for j in (i - 1, i) if 0 <= j < len(numbers1)), key=lambda j: abs(numbers1[j] - number))
        if abs(numbers1[near] - number) < interval / 2 and near not in used:
            used.add(near)
            same.append((name, times1[near][1]))
    return same


def _is_rig(same: SameTimes, names0: Sequence[str], names1: Sequence[str]) -> bool:
    return len(same) > 1 and len(same) >= MIN_SHARED * max(len(names0), len(names1))


def _stem(name: str) -> str:
    return PurePosixPath(name).stem.casefold()


def _times(names: Sequence[str]) -> list[tuple[float, str]]:
    """The last number in each name, sorted, and the name. Names without a number are left out."""
    found = ((re.findall(r"\d+(?:\.\d+)?", _stem(name)), name) for name in names)
    return sorted((float(numbers[-1]) if "." in numbers[-1] else int(numbers[-1]), name) for numbers, name in found if numbers)


def _interval(times: Sequence[tuple[float, str]]) -> float:
    """The median time between two photos."""
    return median(time1 - time0 for (time0, _), (time1, _) in itertools.pairwise(times))
