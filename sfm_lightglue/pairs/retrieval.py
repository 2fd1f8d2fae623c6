"""Each image with those that look most alike: nearest neighbours of one descriptor per image, by cosine similarity.

The table of all similarities is never held: rows and columns are taken in blocks, and each row keeps its best so far.
"""

from __future__ import annotations

from collections.abc import Sequence, Set

import numpy as np
import torch

from sfm_lightglue.products import Pair

STEP = 2.0**-16
"""Similarities are compared in steps of 1.5e-5, above rounding errors, so that equal pictures tie; the earlier name wins."""
STRIDE = 2.0**31
"""Similarity in steps times this, minus the index of the name, is a float64 key: exact, unique, and in order of both."""


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
    """Sorted pairs of each image with the `num_neighbours` most similar ones; `descriptors` (n, d) in the order of `names`.

    A pair found from both sides is kept once, with the better rank: reason `retrieval#RANK`, counted from 1, score the cosine
    similarity. Only images among `queries` look for neighbours (None: all of them). Images whose integer `positions` (n,) are
    less than `min_distance` apart are passed over, the next best take their place; pairs below `min_score` are dropped. An
    image whose descriptor is zero (no features) gets no pairs. Memory: 30 `block`^2 + 16 `block` d bytes, beside the input.

    Raises: ValueError where names repeat, or descriptors are not one finite row for each name.
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
        queried, best = unit_rows(rows), torch.empty((len(rows), 0), dtype=torch.float64, device=device)
        for columns in _blocks(np.flatnonzero(usable), block):
            keys = _keys(queried @ unit_rows(columns).T, torch.as_tensor(columns, device=device))
            keys[(places[rows, None] - places[columns]).abs() < min_distance] = -torch.inf
            best = _largest(torch.cat([best, _largest(keys, num_neighbours)], dim=1), num_neighbours)
        found.append(_decode(rows, best.cpu().numpy()))
    table = np.concatenate(found)
    return _pairs(ordered, table if min_score is None else table[table[:, 3] >= min_score], reason)


def _norms(names: Sequence[str], descriptors: np.ndarray) -> np.ndarray:
    """float64 (n,), checked."""
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


def _keys(similarities: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """float64 (r, c) that sorts by similarity in steps, then by lower index. Unlike topk of similarities, never ambiguous."""
    return similarities.double().div_(STEP).round_().mul_(STRIDE).sub_(columns)


def _largest(keys: torch.Tensor, count: int) -> torch.Tensor:
    return torch.topk(keys, min(count, keys.shape[1]), dim=1).values


def _decode(rows: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """float64 (m, 4): index0 < index1, rank and similarity of the finite keys (r, k) of `rows`."""
    row, rank = np.nonzero(np.isfinite(keys))
    steps = np.ceil(keys[row, rank] / STRIDE)
    columns = steps * STRIDE - keys[row, rank]
    return np.stack([np.minimum(rows[row], columns), np.maximum(rows[row], columns), rank + 1, steps * STEP], axis=1)


def _pairs(ordered: Sequence[str], table: np.ndarray, reason: str) -> list[Pair]:
    """Each pair of the table (m, 4) once, with its best rank, sorted."""
    table = table[np.lexsort((table[:, 2], table[:, 1], table[:, 0]))]
    first = np.ones(len(table), bool)
    first[1:] = (table[1:, :2] != table[:-1, :2]).any(axis=1)
    return [Pair(ordered[int(i)], ordered[int(j)], f"{reason}#{int(rank)}", score) for i, j, rank, score in table[first].tolist()]
