"""Nearest neighbours of global descriptors: which images look most alike."""

from __future__ import annotations

from collections.abc import Sequence, Set

import numpy as np
import torch

from sfm_lightglue.products import Pair

STEP = 2.0**-16
"""Similarities are rounded to this step (1.5e-5), which exceeds rounding errors. Equal pictures then tie, and names decide."""
EXCLUDED = torch.iinfo(torch.int32).min
"""Stands in place of the similarity of two images that must not be paired."""


def top_k_pairs(
    names: Sequence[str],
    descriptors: np.ndarray,
    num_neighbours: int,
    *,
    queries: Set[str] | None = None,
    positions: np.ndarray | None = None,
    min_distance: int = 1,
    min_score: float | None = None,
    reason: str = "retrieval",
    block: int = 1024,
    device: str = "cpu",
) -> list[Pair]:
    """Pairs of each image with the most similar images, sorted by name.

    The similarity is the cosine of two descriptors, rounded to `STEP`. If two images are equally similar, the earlier name ranks
    first. If two images find each other, the pair is kept once, with the better rank. An image whose descriptor is zero gets no
    pairs. The result does not depend on the order of the input. The full table of similarities is never in memory: besides
    the input the function needs 30 `block`^2 + 16 `block` d bytes.

    Args:
        names: Names of the n images, each once, in any order.
        descriptors: (n, d), float32 or float16, of any length, in the order of `names`.
        num_neighbours: Number of most similar images that each image is paired with, at least 1.
        queries: Only these images look for neighbours. None: all images do.
        positions: Integers (n,), such as the index in a video; by default the index of the name in sorted order.
        min_distance: Two images whose positions are less than this apart are not paired; the next best images take their place.
        min_score: Pairs with a lower similarity are dropped.
        reason: The reason of a pair is `reason#RANK`, with ranks from 1. Its score is the similarity.
        block: Number of rows and of columns of the table of similarities that are computed at a time.
        device: Device of torch for the computation.

    Raises:
        ValueError: A name repeats, `descriptors` does not have one finite row for each name, or a number is below 1.
    """
    if num_neighbours < 1 or min_distance < 1:
        raise ValueError(f"num_neighbours is {num_neighbours}, min_distance {min_distance}: expected at least 1 of each")
    norms = _norms(names, descriptors)
    order = np.array(sorted(range(len(names)), key=names.__getitem__), np.int64)
    ordered = [names[i] for i in order]
    places = torch.as_tensor(
        np.arange(len(names)) if positions is None else np.asarray(positions, np.int64)[order], device=device
    )
    usable = norms[order] > 0
    asking = usable if queries is None else usable & np.array([name in queries for name in ordered], bool)

    def unit_rows(indices: np.ndarray) -> torch.Tensor:  # b d
        rows = torch.as_tensor(descriptors[order[indices]]).to(device, torch.float32)
        return torch.nn.functional.normalize(rows, dim=1)

    found = [np.zeros((0, 4))]  # columns: index0, index1, rank, similarity
    for rows in _blocks(np.flatnonzero(asking), block):
        queried = unit_rows(rows)
        best = torch.zeros((2, len(rows), 0), dtype=torch.int32, device=device)  # similarities in steps, indices of images
        for columns in _blocks(np.flatnonzero(usable), block):
            steps = (queried @ unit_rows(columns).T).div_(STEP).round_().to(torch.int32)
            steps[(places[rows, None] - places[columns]).abs_() < min_distance] = EXCLUDED
            indices = torch.as_tensor(columns, dtype=torch.int32, device=device).expand_as(steps)
            # The best so far stand to the left of the new ones, because their names are earlier.
            both = torch.cat([best, _best(steps, indices, num_neighbours)], dim=2)
            best = _best(both[0], both[1], num_neighbours)
        found.append(_table(rows, *best.cpu().numpy()))
    table = np.concatenate(found)
    return _pairs(ordered, table if min_score is None else table[table[:, 3] >= min_score], reason)


def _norms(names: Sequence[str], descriptors: np.ndarray) -> np.ndarray:
    """float64 (n,): lengths of the descriptors, after the checks."""
    if len(set(names)) != len(names) or descriptors.ndim != 2 or len(descriptors) != len(names):
        raise ValueError(
            f"{len(names)} names ({len(set(names))} different) with descriptors {descriptors.shape}: expected a row for each name"
        )
    norms = np.array([np.linalg.norm(row.astype(np.float32)) for row in descriptors], np.float64)
    if not np.isfinite(norms).all():
        raise ValueError(f"the global descriptor of {names[int(np.argmin(np.isfinite(norms)))]} is not finite")
    return norms


def _blocks(indices: np.ndarray, block: int) -> list[np.ndarray]:
    return [indices[start : start + block] for start in range(0, len(indices), block)]


def _best(steps: torch.Tensor, indices: torch.Tensor, count: int) -> torch.Tensor:
    """int32 (2, r, k): the `count` largest `steps` (r, c) of each row, largest first, and their `indices` (r, c).

    The sort is stable: equal steps stay in their order from left to right. torch.topk leaves that order open.
    """
    steps, order = torch.sort(steps, dim=1, descending=True, stable=True)
    return torch.stack([steps[:, :count], indices.gather(1, order[:, :count])])


def _table(rows: np.ndarray, steps: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """float64 (m, 4): index0 < index1, rank and similarity of all neighbours (r, k) of the images `rows` (r,)."""
    row, rank = np.nonzero(steps != EXCLUDED)
    index, neighbour, similarity = rows[row], indices[row, rank], steps[row, rank] * STEP
    return np.stack([np.minimum(index, neighbour), np.maximum(index, neighbour), rank + 1, similarity], axis=1)


def _pairs(ordered: Sequence[str], table: np.ndarray, reason: str) -> list[Pair]:
    """Each pair of the table (m, 4) once, with its best rank, sorted."""
    table = table[np.lexsort((table[:, 2], table[:, 1], table[:, 0]))]
    first = np.ones(len(table), bool)
    first[1:] = (table[1:, :2] != table[:-1, :2]).any(axis=1)
    return [Pair(ordered[int(i)], ordered[int(j)], f"{reason}#{int(rank)}", score) for i, j, rank, score in table[first].tolist()]
