"""Moves the verified keypoints of all photos to the same points of the surface.

The keypoint with most matches of each track is its reference and stays. The others are aligned to it, or, if the views differ too
much, to a neighbour that is aligned already. A keypoint that correlates with no neighbour, or that would move too far, stays, and
may be the reference of others that do not fit either: matches that are wrong do not join two tracks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64

from sfm_lightglue.refinement.affine import local_affine
from sfm_lightglue.refinement.graph import choose_edges, find_references
from sfm_lightglue.refinement.tiles import Tiles

NUM_TRIES = 5
"""Neighbours to which a keypoint is aligned, one after the other, until it fits to one."""
MAX_STEPS = 4
"""Alignments between a keypoint and its reference: each adds an error."""
SMALL_SHARE = 0.001
"""The work ends when a round would align a smaller share of the keypoints: each round reads photos."""
BATCH = 2048
"""Alignments that a thread does together."""


@dataclass(frozen=True)
class MatchedKeypoints:
    """The verified matches of a collection as edges between keypoints, which are numbered through all photos."""

    first: Int64[np.ndarray, " photos+1"]
    """Number of the first keypoint of each photo; the last entry is the number of all keypoints."""
    positions: Float64[np.ndarray, "n 2"]
    """Px of the photos."""
    max_move: Float64[np.ndarray, " photos"]
    """How far keypoints of each photo may move, px of the photo."""
    edges: Int64[np.ndarray, "e 2"]
    """The two keypoints of each match, pair by pair."""
    pair_starts: Int64[np.ndarray, " pairs+1"]
    """The first edge of each pair; the last entry is the number of edges."""

    @functools.cached_property
    def photo(self) -> Int64[np.ndarray, " n"]:
        """The photo of each keypoint."""
        return np.repeat(np.arange(len(self.first) - 1), np.diff(self.first))


@dataclass(frozen=True)
class RefinedKeypoints:
    """Where all keypoints of a collection are after the alignment."""

    positions: Float64[np.ndarray, "n 2"]
    """Px of the photos."""
    steps: Int64[np.ndarray, " n"]
    """Alignments between each keypoint and its reference; 0 for a reference, -1 for a keypoint that fits to none."""


@dataclass(frozen=True)
class _Jobs:
    """Alignments, sorted by the photos of the templates."""

    edges: Int64[np.ndarray, " j"]
    flipped: Bool[np.ndarray, " j"]
    """True if the second keypoint of the edge is the template."""
    templates: Int64[np.ndarray, " j"]
    targets: Int64[np.ndarray, " j"]

    def __getitem__(self, rows: slice) -> _Jobs:
        return _Jobs(self.edges[rows], self.flipped[rows], self.templates[rows], self.targets[rows])


def refine_points(
    keypoints: MatchedKeypoints,
    tiles_of: Callable[[int], Tiles],
    min_correlation: float,
    pool: Executor,
    tell: Callable[[int], object] = lambda number: None,
) -> RefinedKeypoints:
    """Aligns the keypoints. Equal input gives equal bits.

    Args:
        keypoints: all keypoints and their verified matches.
        tiles_of: the tiles of a photo, by its number; several threads call it.
        min_correlation: smallest correlation of a keypoint with its template.
        pool: threads that align. Those of a round do not depend on each other: each moves other keypoints, to some that stay.
        tell: called after each batch with the number of keypoints that are aligned or references.
    """
    ends, count = keypoints.edges, len(keypoints.positions)
    state = RefinedKeypoints(keypoints.positions.copy(), np.full(count, -1))
    tries, usable = np.zeros(count, np.int64), np.ones(len(ends), bool)
    num_matched = len(np.unique(ends))
    while True:
        waits = (state.steps < 0) & (tries < NUM_TRIES)
        serves = (state.steps >= 0) & (state.steps < MAX_STEPS)
        jobs = _sorted(keypoints, *choose_edges(ends, usable & (waits[ends] | serves[ends]).all(axis=1), state.steps))
        if not len(jobs.edges):
            references = find_references(count, ends[usable & (state.steps[ends] < 0).all(axis=1)])
            state.steps[references] = 0
            if len(references) > SMALL_SHARE * num_matched:
                continue
            break
        batches = [jobs[start : start + BATCH] for start in range(0, len(jobs.edges), BATCH)]
        align = functools.partial(_align_batch, keypoints, tiles_of, min_correlation, state)
        for _ in pool.map(align, batches):
            tell(int((state.steps >= 0).sum()))
        usable[jobs.edges] = False
        tries[jobs.targets] += 1
        if len(jobs.edges) < SMALL_SHARE * num_matched:
            break
    return state


def _sorted(keypoints: MatchedKeypoints, edges: np.ndarray, flipped: np.ndarray) -> _Jobs:
    ends = keypoints.edges[edges]
    templates, targets = np.where(flipped, ends[:, 1], ends[:, 0]), np.where(flipped, ends[:, 0], ends[:, 1])
    order = np.lexsort((targets, keypoints.photo[targets], keypoints.photo[templates]))
    return _Jobs(edges[order], flipped[order], templates[order], targets[order])


def _align_batch(
    keypoints: MatchedKeypoints,
    tiles_of: Callable[[int], Tiles],
    min_correlation: float,
    state: RefinedKeypoints,
    jobs: _Jobs,
) -> None:
    """Does some alignments and writes those that fit into the state."""
    from sfm_lightglue.refinement.alignment import align  # here, not at the top: a run with nothing to do needs no torch

    templates = _Patches.gather(keypoints, tiles_of, state.positions, jobs.templates)
    targets = _Patches.gather(keypoints, tiles_of, state.positions, jobs.targets)
    maps = _local_maps(keypoints, jobs) * templates.scale[:, None, :] / targets.scale[:, :, None]
    found = align(templates.pixels, targets.pixels, templates.positions, targets.positions, maps)
    places = state.positions[jobs.targets] + (found.positions - targets.positions) * targets.scale
    move = np.linalg.norm(places - state.positions[jobs.targets], axis=1)
    fits = (found.correlations >= min_correlation) & (move <= keypoints.max_move[keypoints.photo[jobs.targets]])
    aligned = jobs.targets[fits]
    state.positions[aligned] = places[fits]
    state.steps[aligned] = state.steps[jobs.templates[fits]] + 1


@dataclass(frozen=True)
class _Patches:
    """The tiles of some keypoints of several photos."""

    pixels: np.ndarray
    """uint8 (k, t, t)."""
    positions: np.ndarray
    """float64 (k, 2): the keypoints in their tiles."""
    scale: np.ndarray
    """float64 (k, 2): size of a px of the tiles, px of the photo."""

    @classmethod
    def gather(
        cls,
        keypoints: MatchedKeypoints,
        tiles_of: Callable[[int], Tiles],
        positions: np.ndarray,
        numbers: np.ndarray,
    ) -> _Patches:
        """The patches of the keypoints `numbers` (k,), which are at `positions` (n, 2) now."""
        photos = keypoints.photo[numbers]
        patches = None
        for photo in np.unique(photos).tolist():
            tiles, rows = tiles_of(photo), np.flatnonzero(photos == photo)
            of_tiles = tiles.rows[numbers[rows] - keypoints.first[photo]]
            if patches is None:
                shape = len(numbers), *tiles.pixels.shape[1:]
                patches = cls(np.empty(shape, np.uint8), np.empty((len(numbers), 2)), np.empty((len(numbers), 2)))
            patches.pixels[rows] = tiles.pixels[of_tiles]
            patches.positions[rows] = tiles.to_tile(positions[numbers[rows]], of_tiles)
            patches.scale[rows] = tiles.scale
        assert patches is not None, "a batch has an alignment"
        return patches


def _local_maps(keypoints: MatchedKeypoints, jobs: _Jobs) -> Float64[np.ndarray, "j 2 2"]:
    """The affine map from the photo of each template to that of its target, px of the photos."""
    maps = np.empty((len(jobs.edges), 2, 2))
    pairs = np.searchsorted(keypoints.pair_starts, jobs.edges, side="right") - 1
    groups = 2 * pairs + jobs.flipped
    for group in np.unique(groups).tolist():
        rows, (pair, is_flipped) = np.flatnonzero(groups == group), divmod(group, 2)
        start, end = keypoints.pair_starts[pair : pair + 2]
        points = keypoints.positions[keypoints.edges[start:end]]
        maps[rows] = local_affine(points[:, is_flipped], points[:, 1 - is_flipped], jobs.edges[rows] - start)
    return maps
