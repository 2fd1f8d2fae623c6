"""Which keypoint is aligned to which. Matches are edges between keypoints, which are numbered through all photos."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int, Int64


def component_labels(num_keypoints: int, edges: Int[np.ndarray, "e 2"]) -> Int64[np.ndarray, " n"]:
    """The smallest number of a keypoint in the connected component of each keypoint."""
    labels = np.arange(num_keypoints)
    while True:
        before = labels.copy()
        lowest = before[edges].min(axis=1)
        for side in (0, 1):
            np.minimum.at(labels, before[edges[:, side]], lowest)  # joins whole trees of labels
        while not np.array_equal(labels, shorter := labels[labels]):
            labels = shorter
        if np.array_equal(labels, before):
            return labels


def find_references(num_keypoints: int, edges: Int[np.ndarray, "e 2"]) -> Int64[np.ndarray, " r"]:
    """The keypoint with most edges of each connected component with an edge, ascending; of equal ones, the first."""
    used = np.unique(edges)
    edges = np.searchsorted(used, edges)
    degree = np.bincount(edges.ravel(), minlength=len(used))
    labels = component_labels(len(used), edges)
    order = np.lexsort((-degree, labels))  # it keeps the order of equal ones
    references: np.ndarray = np.sort(used[order[_is_first(labels[order])]])
    return references


def choose_edges(
    edges: Int[np.ndarray, "e 2"], usable: Bool[np.ndarray, " e"], steps: Int[np.ndarray, " n"]
) -> tuple[Int64[np.ndarray, " c"], Bool[np.ndarray, " c"]]:
    """One edge for each keypoint that is not aligned and has an aligned neighbour.

    Args:
        edges: The two keypoints of each match.
        usable: Matches that may be chosen.
        steps: Alignments between each keypoint and its reference; -1 if it is not aligned. Neighbours with few steps are chosen
            first, and of these those with most edges.

    Returns: The chosen edges, and True for those whose second keypoint is the aligned one.
    """
    degree = np.bincount(edges.ravel(), minlength=len(steps))
    is_aligned = steps[edges] >= 0
    found = np.flatnonzero(usable & (is_aligned[:, 0] != is_aligned[:, 1]))
    flipped = is_aligned[found, 1]
    aligned = np.where(flipped, edges[found, 1], edges[found, 0])
    waiting = np.where(flipped, edges[found, 0], edges[found, 1])
    order = np.lexsort((aligned, -degree[aligned], steps[aligned], waiting))
    chosen = order[_is_first(waiting[order])]
    return found[chosen], flipped[chosen]


def _is_first(values: np.ndarray) -> Bool[np.ndarray, " n"]:
    """True where a value differs from the one before it."""
    first = np.ones(len(values), bool)
    first[1:] = values[1:] != values[:-1]
    return first
