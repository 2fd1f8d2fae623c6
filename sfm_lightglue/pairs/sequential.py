"""Neighbours in time, for videos, stereo pairs and photos taken along a path, if their names follow the order of taking."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sfm_lightglue.pairs.collection import Collection
from sfm_lightglue.pairs.global_descriptors import GlobalDescriptorOptions, check_global_descriptors, global_descriptors
from sfm_lightglue.pairs.rigs import MAX_CAMERAS, SameTimes, rig_folders
from sfm_lightglue.pairs.union import sort_pairs, union_pairs
from sfm_lightglue.products import Pair
from sfm_lightglue.ranges import check_ranges


@dataclass(frozen=True, kw_only=True)
class SequentialOptions(GlobalDescriptorOptions):
    """Options of `configs/pairs/sequential.yaml`. The global descriptors are only used for loop closure."""

    name: str
    order: str
    """Order of the photos of a folder: `name`, or `time` by EXIF's time of exposure. Photos without a time follow at the end."""
    overlap: int
    """Number of following images that each image is paired with."""
    quadratic_overlap: bool
    """Also pair images at the distances 1, 2, 4 ... 2^(overlap - 1)."""
    across_folders: str
    """`auto`: also pair photos of the same time in the folders of a stereo pair or rig. `true`: also their neighbours within the
    overlap. `false`: never."""
    loop_closure: bool
    """Also pair images of the same place that are farther apart, found by retrieval."""
    loop_every: int
    """Every n-th image of a sequence looks for loop closures."""
    loop_neighbours: int
    """Number of most similar images that this image is paired with."""
    loop_min_distance: int
    """Minimum distance, in images, of a loop closure within one folder, because neighbours always look most alike."""
    min_score: float | None
    """Loop closures with a lower similarity (-1 to 1) are dropped."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(
            self,
            "pairs",
            overlap=">= 1",
            loop_every=">= 1",
            loop_neighbours=">= 1",
            loop_min_distance=">= 0",
            min_score=">= -1, <= 1",
        )
        if self.order not in ("name", "time"):
            raise ValueError(f"pairs.order is {self.order}, expected name or time")
        object.__setattr__(self, "across_folders", str(self.across_folders).lower())
        if self.across_folders not in ("auto", "true", "false"):
            raise ValueError(f"pairs.across_folders is {self.across_folders}, expected auto, true or false")


class SequentialPairs:
    """Neighbours in the sequence of each folder, and loop closures between and within folders if the options ask for them."""

    def __init__(self, options: SequentialOptions) -> None:
        self.options = options

    @classmethod
    def create(cls, options: SequentialOptions) -> SequentialPairs:
        """The source with these options."""
        return cls(options)

    def __call__(self, collection: Collection) -> list[Pair]:
        """See `sequential_pairs`. Loop closures have the reasons `loop#RANK`."""
        times = collection.times() if self.options.order == "time" else None
        pairs = sequential_pairs(collection.names, self.options.overlap, self.options.quadratic_overlap, times)
        if self.options.across_folders != "false":
            pairs = sort_pairs([*pairs, *rig_pairs(collection.names, self.options.overlap, self.options.across_folders)])
        if not self.options.loop_closure:
            return pairs
        descriptors = global_descriptors(self.options, collection)
        return union_pairs([pairs, _loop_pairs(self.options, sequences(collection.names, times), descriptors, collection)])

    def descriptor_options(self, collection: Collection) -> GlobalDescriptorOptions | None:
        """The options if loops are closed, unless a file has the descriptors."""
        return self.options if self.options.loop_closure and self.options.global_descriptors is None else None

    def check(self, collection: Collection) -> None:
        """Checks the options, and the file of global descriptors if loops are closed. Raises: ValueError, FileNotFoundError."""
        sequential_pairs([], self.options.overlap, self.options.quadratic_overlap)
        if self.options.loop_closure:
            check_global_descriptors(self.options, collection)


def sequential_pairs(
    names: Iterable[str], overlap: int, quadratic_overlap: bool, times: Mapping[str, float] | None = None
) -> list[Pair]:
    """Pairs of each image with the images that follow it, sorted, with the reason `sequential+DISTANCE`.

    Args:
        names: The images in any order; `sequences` says how they follow each other.
        overlap: Number of following images that each image is paired with, at least 1.
        quadratic_overlap: Also pair images at the distances 1, 2, 4 ... 2^(overlap - 1). They hold a long video together if
            neighbours are blurred. These pairs are added, as in the first versions of COLMAP. COLMAP 4 replaces the pairs with
            the next `overlap` images by them, which leaves gaps (checked with pycolmap 4.2.1).
        times: Time of each image, in any unit; None orders the images by name.

    Raises:
        ValueError: `overlap` is below 1.
    """
    if overlap < 1:
        raise ValueError(f"overlap is {overlap}, expected at least 1: the number of following images to pair with")
    ordered = sequences(names, times)
    longest = max(map(len, ordered), default=0)
    distances = set(range(1, min(overlap + 1, longest)))
    if quadratic_overlap:
        distances |= {2**k for k in range(min(overlap, longest.bit_length()))}
    return sort_pairs(
        Pair(*ends, f"sequential+{distance}")
        for sequence in ordered
        for distance in distances
        for ends in zip(sequence, sequence[distance:], strict=False)  # stops at the shorter one
    )


def rig_pairs(names: Iterable[str], overlap: int, across_folders: str = "auto") -> list[Pair]:
    """Pairs of photos in different folders of a stereo pair or rig, sorted.

    Photos of the same time have the reason `rig`. With `true`, photos of neighbouring times follow with `rig+DISTANCE`. COLMAP
    pairs these too if its database has rigs (`expand_rig_images`).

    Args:
        names: The images in any order. `rigs.rig_folders` says which folders are a rig, and which photos have the same time.
        overlap: Largest distance of neighbouring times, in photos.
        across_folders: `auto` or `true`, see `SequentialOptions`.
    """
    pairs = []
    for same in _rig_folders(sequences(names), across_folders):
        pairs += [Pair(*ends, "rig") for ends in same]
        for distance in range(1, min(overlap + 1, len(same)) if across_folders == "true" else 1):
            for (first0, first1), (later0, later1) in zip(same, same[distance:], strict=False):  # stops at the shorter one
                pairs += [Pair(first0, later1, f"rig+{distance}"), Pair(first1, later0, f"rig+{distance}")]
    return sort_pairs(pairs)


def sequences(names: Iterable[str], times: Mapping[str, float] | None = None) -> list[list[str]]:
    """The names of each folder in order. A sub-folder is a sequence of its own.

    The order is natural (`img2` before `img10`), or by `times`, with names without a time at the end.
    """
    folders: dict[str, list[str]] = {}
    for name in sorted(set(names)):
        folders.setdefault(_folder(name), []).append(name)
    ordered = [sorted(folder, key=_natural_key) for folder in folders.values()]
    if times is None:
        return ordered
    return [sorted(folder, key=lambda name: times.get(name, math.inf)) for folder in ordered]


def _rig_folders(ordered: Sequence[Sequence[str]], across_folders: str) -> list[SameTimes]:
    folders = {_folder(sequence[0]): sequence for sequence in ordered}
    return rig_folders(folders, len(folders) if across_folders == "true" else MAX_CAMERAS)


def _folder(name: str) -> str:
    return name.rpartition("/")[0]


def _natural_key(name: str) -> tuple[list[str | int], str]:
    """Text and numbers in turn, so that numbers compare as numbers; the name itself decides between `img1` and `img01`."""
    parts = re.split("([0-9]+)", name)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name


def _loop_pairs(
    options: SequentialOptions, ordered: Sequence[Sequence[str]], descriptors: np.ndarray, collection: Collection
) -> list[Pair]:
    """Pairs of similar images that are far apart, with the reason `loop#RANK`.

    `descriptors` (n, d) are in the order of the names of the collection; `ordered` is from `sequences`.
    """
    names = collection.names
    queries, position_of, start = set[str](), dict[str, int](), 0
    start_of: dict[str, int] = {}
    first_camera: dict[str, str] = {}
    # The cameras of a rig share their positions, because photos of one time always look alike and would hide the loops. This
    # needs across_folders=true: two walks along one path may have photos with equal numbers too, and they are loops.
    for same in _rig_folders(ordered, options.across_folders) if options.across_folders == "true" else []:
        first_camera.setdefault(_folder(same[0][1]), _folder(same[0][0]))
    for sequence in ordered:
        folder = _folder(sequence[0])
        begin = start_of[folder] = start_of.get(first_camera.get(folder, folder), start)
        queries.update(sequence[:: options.loop_every])
        position_of.update({name: begin + i for i, name in enumerate(sequence)})
        start += len(sequence) + options.loop_min_distance  # the gap puts any two folders far enough apart
    from sfm_lightglue.pairs.nearest import top_k_pairs  # here, not at the top: it imports torch

    return top_k_pairs(
        names,
        descriptors,
        options.loop_neighbours,
        queries=queries,
        positions=np.array([position_of[name] for name in names], np.int64),
        min_distance=options.loop_min_distance,
        min_score=options.min_score,
        reason="loop",
        device=collection.device,
    )
