"""The stage features -> pairs: asks a pair source for the pairs of a collection."""

from __future__ import annotations

from itertools import pairwise

from sfm_lightglue.pairs.collection import Collection
from sfm_lightglue.pairs.pairing import PairSource, found_pairs
from sfm_lightglue.pairs.union import union_pairs
from sfm_lightglue.products import Pair


def select_pairs(source: PairSource, collection: Collection) -> list[Pair]:
    """The pairs that a source finds in a collection: each once, sorted by name, with reasons and scores.

    A pair that the source repeats keeps all its reasons, joined by commas, and its highest score.

    Raises:
        ValueError: The source pairs an image that is not in the collection, or gives anything but pairs.
    """
    pairs = found_pairs(source, collection)
    known = set(collection.names)
    unknown = next((name for pair in pairs for name in (pair.name0, pair.name1) if name not in known), None)
    if unknown is not None:
        raise ValueError(f"{type(source).__name__} pairs {unknown!r}, which is not among the {len(known)} images")
    keys = [(pair.name0, pair.name1) for pair in pairs]
    is_sorted = all(key0 < key1 for key0, key1 in pairwise(keys))
    return pairs if is_sorted else union_pairs([pairs])
