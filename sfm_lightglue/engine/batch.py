"""The pairs that a call of the engine works on: which tokens are whose, which are still in play, what has been found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sfm_lightglue.engine.assignment import assign, assign_many
from sfm_lightglue.engine.early_rejection import RANK, EarlyRejection, count_distinct
from sfm_lightglue.engine.numerics import Numerics, Tokens, linear
from sfm_lightglue.engine.packing import PackedLayer
from sfm_lightglue.networks.lightglue import LightGlueSettings

SCORES_AT_ONCE = 1 << 26
"""In `assign_many`: 256 MB, and as much again for each of two steps; 16 pairs of 2048 keypoints."""


@dataclass(frozen=True)
class ImageState:
    """Everything of an image that does not depend on its partner; n keypoints, d channels."""

    state: Tensor
    """float32 (n, d), after the self block of the first layer."""
    projections: Tensor
    """(n, 2d), of the cross block of the first layer."""
    cos_sin: Tensor
    """(n, d / h), rotary encoding."""
    descriptors: Tensor | None = None
    """float32 (n, c), of unit length; for early rejection."""

    def __len__(self) -> int:
        return len(self.state)

    @property
    def num_bytes(self) -> int:
        """Memory it takes."""
        parts = self.state, self.projections, self.cos_sin, self.descriptors
        return sum(part.nbytes for part in parts if part is not None)


@dataclass(frozen=True)
class PairMatches:
    """Matches of one pair, on the CPU."""

    indices: Tensor
    """int64 (k, 2), into the keypoints of image 0 and image 1, ordered by the first."""
    scores: Tensor
    """float32 (k,), above the filter threshold."""
    stop_layer: int
    """As in `networks.lightglue.LightGlueMatches`."""
    prune0: Tensor
    prune1: Tensor


class Batch:
    """The tokens of the pairs that are still being matched: first image 0 of each pair, then image 1 of each."""

    def __init__(
        self,
        pairs: Sequence[tuple[ImageState, ImageState]],
        settings: LightGlueSettings,
        numerics: Numerics,
        early_rejection: EarlyRejection | None = None,
    ) -> None:
        self.settings, self.numerics, self.early_rejection = settings, numerics, early_rejection
        all_lengths = np.array([[len(pair[side]) for pair in pairs] for side in (0, 1)], dtype=np.int64)  # 2 pairs
        self.places = np.concatenate([[0], np.cumsum(all_lengths)])
        """Borders of the images in `survived`."""
        is_rejected, self.is_doubtful = _judge_descriptors(pairs, early_rejection)
        """Of all pairs given: those that the descriptors give little hope."""
        self.pairs = np.flatnonzero(all_lengths.all(axis=0) & ~is_rejected)
        """Which of the pairs given are in play; at first those with keypoints in both images, and hope."""
        self.lengths = all_lengths[:, self.pairs]
        """(2, pairs in play): number of points in play."""
        self.num_points = self.lengths.sum(axis=0)
        """Of both images of a pair, at first."""
        self.images = [pairs[int(i)][side] for side in (0, 1) for i in self.pairs]
        device = pairs[0][0].state.device if pairs else torch.device("cpu")
        survived = 1 if settings.width_confidence > 0 else settings.num_layers
        self.survived = torch.full((int(self.places[-1]),), survived, device=device)
        """int64, of all points of all pairs: see `networks.lightglue.LightGlueMatches.prune0`."""
        self.stop_layers = np.zeros(len(pairs), dtype=np.int64)
        self.found: dict[int, tuple[Tensor, Tensor]] = {}
        """Indices (k, 2) and scores (k,) by pair."""
        self.found_at_once: list[tuple[np.ndarray, Tensor, Tensor]] = []
        """Pairs (b,), places in `survived` (b, m, 2) and scores (b, m), -1 for no match: still on the GPU."""
        if self.images:
            state, cos_sin = (torch.cat([getattr(image, key) for image in self.images]) for key in ("state", "cos_sin"))
            self.tokens = Tokens.of(state, cos_sin, numerics.dtype)
            starts = [self.places[side * len(pairs) + i] for side in (0, 1) for i in self.pairs]
            ranges = zip(starts, self.lengths.flat, strict=True)
            self.origin = _send(np.concatenate([np.arange(start, start + length) for start, length in ranges]), device)
            """int64 (T,): place of each token in `survived`."""

    @property
    def borders(self) -> list[int]:
        """Of all images among the tokens."""
        return [0, *np.cumsum(self.lengths).tolist()]

    @property
    def borders_of_sides(self) -> tuple[list[int], list[int]]:
        """Of the images 0 among all images 0, and the same for images 1."""
        return [0, *np.cumsum(self.lengths[0]).tolist()], [0, *np.cumsum(self.lengths[1]).tolist()]

    @property
    def half(self) -> int:
        """Number of tokens of images 0."""
        return int(self.lengths[0].sum())

    def prune(self, logits: Tensor, i: int, layer: PackedLayer, threshold: float) -> None:
        """Ends the pairs that are done after layer i, and drops points from the others (section 3.3).

        From logits (T, 2) of confidence and matchability; points with a confidence from `threshold` on are confident. All
        decisions of a layer need one transfer from the device.
        """
        self.stop_layers[self.pairs] = i + 1
        if i + 1 == self.settings.num_layers:
            self._finish(np.ones(len(self.pairs), dtype=bool), logits, layer)
            self.pairs = self.pairs[:0]
            return
        depth, width = self.settings.depth_confidence, self.settings.width_confidence
        confidence, matchability = logits.sigmoid().unbind(dim=1)
        unconfident = confidence < threshold
        keep = matchability > 1 - width if width > 0 else torch.ones_like(unconfident)
        if depth > 0:
            keep |= confidence <= threshold
        num_unconfident, num_kept = self._count(torch.stack([unconfident, keep]))
        is_done = np.zeros(len(self.pairs), dtype=bool)
        if depth > 0:  # in float32, as in the network: at the limit a rounding decides
            is_done = 1 - num_unconfident.sum(axis=0).astype(np.float32) / self.num_points.astype(np.float32) > np.float32(depth)
        is_rejected = self._is_rejected(matchability, i)
        self._finish(is_done & ~is_rejected, logits, layer)
        self._drop(keep, num_kept, is_done | is_rejected)

    def results(self) -> list[PairMatches]:
        """Of all pairs given, in their order."""
        survived = self.survived.cpu().split(np.diff(self.places).tolist())
        self._collect()
        count, results = len(self.stop_layers), []
        for pair, stop_layer in enumerate(self.stop_layers.tolist()):
            indices, scores = self.found.get(pair, (torch.zeros((0, 2), dtype=torch.int64), torch.zeros(0)))
            results.append(PairMatches(indices.cpu(), scores.cpu(), stop_layer, survived[pair], survived[count + pair]))
        return results

    def _count(self, flags: Tensor) -> np.ndarray:
        """(f, 2, pairs): how many tokens of each image have each of the flags (f, T)."""
        totals = F.pad(flags.cumsum(dim=1, dtype=torch.int32), (1, 0))
        at_borders = totals[:, _send(np.array(self.borders), flags.device)].cpu().numpy()
        return np.diff(at_borders, axis=1).reshape(len(flags), 2, -1)

    def _is_rejected(self, matchability: Tensor, i: int) -> np.ndarray:
        """Which of the doubtful pairs end after layer i without matches: with fewer than `RANK` matchable points in an image."""
        limits = self.early_rejection.min_matchability if self.early_rejection else ()
        if i >= len(limits) or not self.is_doubtful[self.pairs].any():
            return np.zeros(len(self.pairs), dtype=bool)
        (num_matchable,) = self._count(matchability[None] >= limits[i])  # 2 pairs
        return (num_matchable < RANK).any(axis=0) & self.is_doubtful[self.pairs]

    def _finish(self, is_done: np.ndarray, logits: Tensor, layer: PackedLayer) -> None:
        """Finds the matches of the pairs that are done."""
        if on_gpu(self.origin):
            self._finish_at_once(np.flatnonzero(is_done), logits, layer)
            return
        borders, count = self.borders, len(self.pairs)
        for j in np.flatnonzero(is_done):
            rows = [slice(borders[image], borders[image + 1]) for image in (j, count + j)]
            vectors = [linear(self.tokens.state[side], layer.projection_weight, layer.projection_bias) for side in rows]
            matchability = (logits[side, 1] for side in rows)
            scan, threshold = self.numerics.scan_rows, self.settings.filter_threshold
            indices, scores = assign(*vectors, *matchability, threshold, scan)  # type: ignore[call-arg, arg-type]
            pair = int(self.pairs[j])
            starts = self.places[[pair, len(self.stop_layers) + pair]]
            indices = torch.stack([self.origin[side][indices[:, i]] - int(starts[i]) for i, side in enumerate(rows)], dim=1)
            self.found[pair] = indices, scores

    def _finish_at_once(self, done: np.ndarray, logits: Tensor, layer: PackedLayer) -> None:
        """The same for the pairs `done`, counted in those in play, together: one at a time, each of many steps would be small."""
        if not len(done):
            return
        starts, device = np.array(self.borders)[:-1].reshape(2, -1), self.origin.device
        size = max(1, SCORES_AT_ONCE // int(self.lengths[:, done].max(axis=1).prod()))
        for group in np.split(done, range(size, len(done), size)):
            lengths = self.lengths[:, group, None]
            steps = [np.arange(side.max()) for side in lengths]
            tokens = [_send(starts[i, group, None] + np.minimum(steps[i], lengths[i] - 1), device) for i in (0, 1)]  # b m, b n
            vectors = [F.linear(self.tokens.state[side], layer.projection_weight, layer.projection_bias) for side in tokens]
            is_point = [_send(steps[i] < lengths[i], device) for i in (0, 1)]
            matchability = [logits[side, 1] for side in tokens]
            threshold = self.settings.filter_threshold
            partners, scores = assign_many(*vectors, *matchability, *is_point, threshold)  # type: ignore[call-arg, arg-type]
            place0, place1 = (self.origin[side] for side in tokens)
            self.found_at_once.append((self.pairs[group], torch.stack([place0, place1.gather(1, partners)], dim=2), scores))

    def _collect(self) -> None:
        """Takes over what `_finish_at_once` has found."""
        count = len(self.stop_layers)
        for pairs, places, scores in self.found_at_once:
            places, scores = places.cpu(), scores.cpu()
            for i, pair in enumerate(pairs.tolist()):
                is_match = scores[i] >= 0
                first = torch.from_numpy(self.places[[pair, count + pair]])
                self.found[pair] = places[i][is_match] - first, scores[i][is_match]

    def _drop(self, keep: Tensor, num_kept: np.ndarray, is_done: np.ndarray) -> None:
        """Leaves the tokens (T,) with `keep` of the pairs that are not done."""
        if not is_done.any() and (num_kept == self.lengths).all():
            self._survive(keep)
            return
        keep = keep & self._of_tokens(~is_done)
        self._survive(keep)
        goes_on = ~is_done & (num_kept > 0).all(axis=0)
        keep &= self._of_tokens(goes_on)
        self.pairs, self.num_points, self.lengths = self.pairs[goes_on], self.num_points[goes_on], num_kept[:, goes_on]
        kept = _places(keep, int(self.lengths.sum()))
        self.origin = self.origin[kept]
        self.tokens = Tokens.of(self.tokens.state[kept], self.tokens.cos_sin[kept], self.tokens.rows.dtype)

    def _survive(self, keep: Tensor) -> None:
        if self.settings.width_confidence > 0:
            self.survived.index_add_(0, self.origin, keep.to(self.survived))

    def _of_tokens(self, of_pairs: np.ndarray) -> Tensor:
        """A flag of each token, from a flag of each pair."""
        return _send(np.repeat(np.tile(of_pairs, 2), self.lengths.flat), self.origin.device)


def on_gpu(tensor: Tensor) -> bool:
    """Where few large steps are faster than many small ones."""
    return tensor.is_cuda


def _send(array: np.ndarray, device: torch.device) -> Tensor:
    """The array on the device, without waiting for what a GPU has still to do."""
    return torch.from_numpy(array).to(device, non_blocking=True)


def _places(keep: Tensor, count: int) -> Tensor:
    """Ascending places int64 (count,) of the flags (T,) that are set, whose number is known: a GPU need not be waited for."""
    if on_gpu(keep):  # before torch 2.7 nonzero_static is for CPUs alone
        return (~keep).byte().argsort(stable=True)[:count]
    return torch.nonzero_static(keep, size=count)[:, 0]


def _judge_descriptors(
    pairs: Sequence[tuple[ImageState, ImageState]], rule: EarlyRejection | None
) -> tuple[np.ndarray, np.ndarray]:
    """Which pairs are not worth a layer, and which the first layers may end; all numbers come from the device at once."""
    num_distinct, judged, counts = np.full(len(pairs), np.inf), [], []
    for i, (image0, image1) in enumerate(pairs if rule else ()):
        if image0.descriptors is not None and image1.descriptors is not None and min(len(image0), len(image1)) >= RANK:
            judged.append(i)
            counts.append(count_distinct(image0.descriptors, image1.descriptors))
    if judged:
        num_distinct[judged] = torch.stack(counts).cpu().numpy()
    limits = (rule.min_distinct, rule.enough_distinct) if rule else (0, 0)
    return num_distinct < limits[0], num_distinct < limits[1]
