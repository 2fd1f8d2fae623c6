"""The pair planner: the options of each pairing, and the pairs it selects from the names of a collection."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from sfm_lightglue.execution.progress import progress_bar
from sfm_lightglue.pairs.exhaustive import exhaustive_pairs
from sfm_lightglue.pairs.listed import listed_pairs
from sfm_lightglue.pairs.retrieval import top_k_pairs
from sfm_lightglue.pairs.sequential import sequences, sequential_pairs
from sfm_lightglue.pairs.vlad import learn_codebook, sample_descriptors, vlad
from sfm_lightglue.products import Pair
from sfm_lightglue.registry import closest

logger = logging.getLogger(__name__)

LoadDescriptors: TypeAlias = Callable[[str], np.ndarray]
"""Name of an image -> its local descriptors (n, d)."""
LoadGlobalDescriptors: TypeAlias = Callable[[str, list[str]], np.ndarray]
"""Path of a file and names of images -> their global descriptors (len(names), d)."""


@dataclass(frozen=True)
class ExhaustiveOptions:
    """Options of `configs/pairs/exhaustive.yaml`."""

    name: str


@dataclass(frozen=True)
class SequentialOptions:
    """Options of `configs/pairs/sequential.yaml`."""

    name: str
    overlap: int
    """Each image is paired with so many that follow it."""
    quadratic_overlap: bool
    """Also with those at the distances 1, 2, 4 ... 2^(overlap - 1)."""
    loop_closure: bool
    """Also pairs that retrieval finds farther apart."""
    loop_every: int
    """Every so many images one looks for others of its place."""
    loop_neighbours: int
    """With so many that look most alike."""
    loop_min_distance: int
    """Images of one folder that are fewer images apart close no loop: neighbours always look most alike."""
    num_words: int
    max_samples: int
    seed: int
    min_score: float | None
    global_descriptors: str | None
    """As in `RetrievalOptions`."""

    def __post_init__(self) -> None:
        if self.loop_every < 1:
            raise ValueError(f"pairs.loop_every is {self.loop_every}, expected at least 1")


@dataclass(frozen=True)
class RetrievalOptions:
    """Options of `configs/pairs/retrieval.yaml`."""

    name: str
    num_neighbours: int
    """Each image is paired with so many that look most alike."""
    num_words: int
    """Size of the codebook; an image's descriptor has num_words x local dimensions values."""
    max_samples: int
    """Local descriptors from which the codebook is learnt."""
    seed: int
    min_score: float | None
    """Less similar pairs are dropped; similarity is -1 to 1."""
    global_descriptors: str | None
    """HDF5 file of hloc's `global_descriptor`, in place of the codebook."""


@dataclass(frozen=True)
class ListOptions:
    """Options of `configs/pairs/list.yaml`."""

    name: str
    path: str
    """Text file with a line `name0 name1` for each pair."""
    skip_unknown: bool
    """Leave out pairs of images that the collection does not have, instead of refusing the file."""


PairingOptions: TypeAlias = ExhaustiveOptions | SequentialOptions | RetrievalOptions | ListOptions

PAIRINGS: dict[str, type] = {
    "exhaustive": ExhaustiveOptions,
    "sequential": SequentialOptions,
    "retrieval": RetrievalOptions,
    "list": ListOptions,
}
"""Name in the configuration -> class of its options."""


def select_pairs(
    options: PairingOptions,
    names: Iterable[str],
    *,
    load_descriptors: LoadDescriptors,
    load_global_descriptors: LoadGlobalDescriptors | None = None,
    device: str = "cpu",
) -> list[Pair]:
    """The pairs of `names` that the options ask for: each once, sorted, the same in every run.

    Local descriptors are read for retrieval and loop closure only, or global ones where the options name their file.
    """
    ordered = sorted(set(names))
    if isinstance(options, ExhaustiveOptions):
        return exhaustive_pairs(ordered)
    if isinstance(options, ListOptions):
        return listed_pairs(options.path, ordered, skip_unknown=options.skip_unknown)
    if isinstance(options, SequentialOptions):
        pairs = sequential_pairs(ordered, options.overlap, options.quadratic_overlap)
        if not options.loop_closure:
            return pairs
        descriptors = _global_descriptors(options, ordered, load_descriptors, load_global_descriptors)
        return union_pairs([pairs, _loop_pairs(options, ordered, descriptors, device)])
    if isinstance(options, RetrievalOptions):
        descriptors = _global_descriptors(options, ordered, load_descriptors, load_global_descriptors)
        return top_k_pairs(ordered, descriptors, options.num_neighbours, min_score=options.min_score, device=device)
    raise ValueError(f"{type(options).__name__} are not the options of a pairing. {closest('', PAIRINGS)}")


def union_pairs(lists: Iterable[Iterable[Pair]]) -> list[Pair]:
    """Sorted pairs of all lists, each once; reasons joined by `,` in the order of the lists, the highest score kept."""
    union: dict[Pair, Pair] = {}
    for pairs in lists:
        for pair in pairs:
            known = union.get(pair, pair)
            reasons = dict.fromkeys([*known.reason.split(","), *pair.reason.split(",")])
            score = float(np.fmax(known.score, pair.score))  # fmax passes over NaN
            union[pair] = Pair(pair.name0, pair.name1, ",".join(filter(None, reasons)), score)
    return [union[pair] for pair in sorted(union)]


def _loop_pairs(options: SequentialOptions, names: list[str], descriptors: np.ndarray, device: str) -> list[Pair]:
    queries, position_of, start = set(), {}, 0
    for sequence in sequences(names):
        queries.update(sequence[:: options.loop_every])
        position_of.update({name: start + i for i, name in enumerate(sequence)})
        start += len(sequence) + options.loop_min_distance  # a gap, so that any two folders are far enough apart
    return top_k_pairs(
        names,
        descriptors,
        options.loop_neighbours,
        queries=queries,
        positions=np.array([position_of[name] for name in names], np.int64),
        min_distance=options.loop_min_distance,
        min_score=options.min_score,
        reason="loop",
        device=device,
    )


def _global_descriptors(
    options: RetrievalOptions | SequentialOptions,
    names: list[str],
    load_descriptors: LoadDescriptors,
    load_global_descriptors: LoadGlobalDescriptors | None,
) -> np.ndarray:
    """float16 or as stored (len(names), d): from the file of the options, or VLAD of the local descriptors."""
    if options.global_descriptors is not None:
        if load_global_descriptors is None:
            raise ValueError(f"{options.global_descriptors} cannot be read here: pass load_global_descriptors")
        return load_global_descriptors(options.global_descriptors, names)
    samples = sample_descriptors(names, load_descriptors, options.max_samples, options.seed)
    if not len(samples):
        logger.warning("none of %d images has local features: nothing can be retrieved", len(names))
        return np.zeros((len(names), 1), np.float16)
    codebook = learn_codebook(samples, options.num_words, seed=options.seed)
    descriptors = np.empty((len(names), codebook.size), np.float16)  # half the memory, similarities change by 2e-5
    with progress_bar(len(names), "describe", "image") as bar:
        for i, name in enumerate(names):
            descriptors[i] = vlad(load_descriptors(name), codebook)
            bar.update()
    return descriptors
