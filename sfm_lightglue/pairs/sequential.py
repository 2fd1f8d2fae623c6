"""Neighbours in time: for videos and photos taken along a path, named in the order they were taken."""

from __future__ import annotations

import re
from collections.abc import Iterable

from sfm_lightglue.products import Pair


def sequential_pairs(names: Iterable[str], overlap: int, quadratic_overlap: bool) -> list[Pair]:
    """Sorted pairs of each image with its next `overlap` images, reason `sequential+DISTANCE`.

    Quadratic overlap adds those at the distances 1, 2, 4 ... 2^(overlap - 1), which hold a long video together where
    neighbours are blurred. It adds them, as COLMAP first did; COLMAP now takes them instead of the next `overlap` images, which
    leaves gaps (checked with pycolmap 4.2.1). See `sequences` for the order.

    Raises: ValueError where `overlap` is below 1.
    """
    if overlap < 1:
        raise ValueError(f"overlap is {overlap}, expected at least 1: the number of following images to pair with")
    ordered = sequences(names)
    longest = max(map(len, ordered), default=0)
    distances = set(range(1, min(overlap + 1, longest)))
    if quadratic_overlap:
        distances |= {2**k for k in range(min(overlap, longest.bit_length()))}
    return sorted(
        Pair(*ends, f"sequential+{distance}")
        for sequence in ordered
        for distance in distances
        for ends in zip(sequence, sequence[distance:], strict=False)  # stops at the shorter one
    )


def sequences(names: Iterable[str]) -> list[list[str]]:
    """The names of each folder in natural order (`img2` before `img10`): a folder is a sequence, sub-folders are their own."""
    folders: dict[str, list[str]] = {}
    for name in sorted(set(names)):
        folders.setdefault(name.rpartition("/")[0], []).append(name)
    return [sorted(folder, key=_natural_key) for folder in folders.values()]


def _natural_key(name: str) -> tuple[list[str | int], str]:
    """Text and numbers in turn, so that numbers compare as numbers; the name itself decides between `img1` and `img01`."""
    parts = re.split("([0-9]+)", name)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name
