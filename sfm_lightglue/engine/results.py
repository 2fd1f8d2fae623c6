"""The matches of the pairs that stop after a layer, and the results of all pairs of a call."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from sfm_lightglue.engine.assignment import Scan, assign, assign_many
from sfm_lightglue.engine.batch import Batch, on_gpu, send
from sfm_lightglue.engine.numerics import linear
from sfm_lightglue.engine.packing import PackedLayer

SCORES_AT_ONCE = 1 << 26
"""Scores that `assign_many` computes together, as of 16 pairs of 2048 keypoints. They take 256 MB, and two steps as much again
each."""


@dataclass(frozen=True)
class PairMatches:
    """Matches of one pair, on the CPU."""

    indices: Int64[Tensor, "k 2"]
    """Index of the keypoint in image 0 and in image 1, ordered by the first."""
    scores: Float32[Tensor, " k"]
    """Above the filter threshold."""
    stop_layer: int
    """As in `networks.lightglue.LightGlueMatches`."""
    prune0: Int64[Tensor, " m"]
    prune1: Int64[Tensor, " n"]


@dataclass(frozen=True)
class FoundMatches:
    """Matches of b pairs, on the device."""

    pairs: Int64[np.ndarray, " b"]
    """Index of each pair among the pairs given to the engine."""
    points: Int64[Tensor, "b m 2"]
    """Numbers of the keypoints, as in `Batch.points`."""
    scores: Float32[Tensor, "b m"]
    """-1 for no match."""


class Results:
    """The results of the n pairs given to the engine, filled while the layers run."""

    def __init__(self, lengths: Int64[np.ndarray, "2 n"], prune: int, device: torch.device) -> None:
        """No matches yet.

        Args:
            lengths: number of keypoints of each image.
            prune: first value of `PairMatches.prune0`.
            device: the device of the engine.
        """
        self.stop_layers = np.zeros(lengths.shape[1], dtype=np.int64)
        self.first_points = np.cumsum([0, *lengths.flat])[:-1].reshape(lengths.shape)
        """int64 (2, n): number of the first keypoint of each image, as in `Batch.points`."""
        self._lengths = lengths
        self._prune = torch.full((int(lengths.sum()),), prune, device=device)  # of the keypoints of all pairs
        self._found: list[FoundMatches] = []

    def add(self, found: list[FoundMatches]) -> None:
        """Adds matches of pairs that have none yet."""
        self._found += found

    def count_survivors(self, points: Int64[Tensor, " T"], keep: Bool[Tensor, " T"]) -> None:
        """Adds 1 to `prune` of the keypoints with these numbers, as in `Batch.points`, if their flag is set."""
        self._prune.index_add_(0, points, keep.to(self._prune))

    def collect(self) -> list[PairMatches]:
        """The results, in the order of the pairs."""
        prune = self._prune.cpu().split(self._lengths.flatten().tolist())
        matches = {}
        for found in self._found:
            points, scores = found.points.cpu(), found.scores.cpu()
            for i, pair in enumerate(found.pairs.tolist()):
                is_match = scores[i] >= 0
                matches[pair] = points[i][is_match] - torch.from_numpy(self.first_points[:, pair]), scores[i][is_match]
        nothing = torch.zeros((0, 2), dtype=torch.int64), torch.zeros(0)
        num_pairs = len(self.stop_layers)
        return [
            PairMatches(*matches.get(i, nothing), stop_layer, prune[i], prune[num_pairs + i])
            for i, stop_layer in enumerate(self.stop_layers.tolist())
        ]


def find_matches(
    batch: Batch,
    finished: Bool[np.ndarray, " p"],
    logits: Float32[Tensor, "T 2"],
    layer: PackedLayer,
    *,
    threshold: float,
    scan: Scan,
) -> list[FoundMatches]:
    """The matches of the pairs of a batch that stop after a layer.

    Args:
        batch: p pairs with T tokens.
        finished: the pairs that stop.
        logits: of confidence and matchability.
        layer: the layer after which the pairs stop.
        threshold: a match has a score above this.
        scan: see `assignment.assign`.
    """
    stops = np.flatnonzero(finished)
    if not on_gpu(batch.points):
        return [_find_in_pair(batch, int(j), logits, layer, threshold, scan) for j in stops]
    if not len(stops):
        return []
    num_at_once = max(1, SCORES_AT_ONCE // int(batch.lengths[:, stops].max(axis=1).prod()))
    groups = np.split(stops, range(num_at_once, len(stops), num_at_once))
    return [_find_in_group(batch, group, logits, layer, threshold) for group in groups]


def _find_in_pair(batch: Batch, j: int, logits: Tensor, layer: PackedLayer, threshold: float, scan: Scan) -> FoundMatches:
    """The matches of pair j of the batch."""
    side0, side1 = (slice(batch.borders[image], batch.borders[image + 1]) for image in (j, len(batch) + j))
    vectors0, vectors1 = (
        linear(batch.tokens.state[side], layer.projection_weight, layer.projection_bias) for side in (side0, side1)
    )
    indices, scores = assign(vectors0, vectors1, logits[side0, 1], logits[side1, 1], threshold, scan)
    points = torch.stack([batch.points[side0][indices[:, 0]], batch.points[side1][indices[:, 1]]], dim=1)
    return FoundMatches(batch.pairs[j : j + 1], points[None], scores[None])


def _find_in_group(batch: Batch, group: np.ndarray, logits: Tensor, layer: PackedLayer, threshold: float) -> FoundMatches:
    """The matches of some pairs of the batch (b,) together: on a GPU, a step for one pair alone would be small."""
    starts, device = np.array(batch.borders)[:-1].reshape(2, -1), batch.points.device
    lengths = batch.lengths[:, group, None]  # 2 b 1
    tokens, is_point = [], []
    for i in (0, 1):  # the last token of an image fills its row up to the longest image
        steps = np.arange(lengths[i].max())
        tokens.append(send(starts[i, group, None] + np.minimum(steps, lengths[i] - 1), device))  # b m, b n
        is_point.append(send(steps < lengths[i], device))
    vectors0, vectors1 = (F.linear(batch.tokens.state[side], layer.projection_weight, layer.projection_bias) for side in tokens)
    logits0, logits1 = (logits[side, 1] for side in tokens)
    partners, scores = assign_many(vectors0, vectors1, logits0, logits1, is_point[0], is_point[1], threshold)
    points0, points1 = (batch.points[side] for side in tokens)
    return FoundMatches(batch.pairs[group], torch.stack([points0, points1.gather(1, partners)], dim=2), scores)
