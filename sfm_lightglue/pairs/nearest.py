"""Nearest neighbours of global descriptors: which images look most alike."""

from __future__ import annotations

from collections.abc import Sequence, Set

import numpy as np
import torch

from sfm_lightglue.products import Pair

STEP = 2.0**-16
"""Similarities are rounded to this step (1.5e-5), which exceeds rounding errors. Equal pictures then tie, and names decide."""
BLOCK = 1024
"""Number of rows and of columns of the table of similarities that are computed at a time: 4 MB."""
NOTHING = torch.iinfo(torch.int64).max
"""Stands in place of a neighbour that is not there. It sorts behind all others."""
EXCLUDED = -2.0
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
    block: int = BLOCK,
    device: str = "cpu",
) -> list[Pair]:
    """Pairs of each image with the most similar images, sorted by name.

    The similarity is the cosine of two descriptors, rounded to `STEP`. If two images are equally similar, the earlier name ranks
    first. If two images find each other, the pair is kept once, with the better rank. An image whose descriptor is zero gets no
    pairs. The result does not depend on the order of the input.

    The search is exact and takes time n^2 d. The full table of similarities is never in memory: besides the input and the result
    the function needs 8 n k + 80 `block`^2 + 16 `block` d bytes for k neighbours.

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
    usable = norms[order] > 0
    asking = usable if queries is None else usable & np.array([name in queries for name in ordered], bool)
    places = np.arange(len(names)) if positions is None else np.asarray(positions, np.int64)[order]
    table = _Table(descriptors, order, places, min_distance, device)
    best = torch.full((len(names), num_neighbours), NOTHING, device=device)  # n k, int64
    is_whole = bool(asking.all())
    for rows in _blocks(np.flatnonzero(asking), block):
        queried = table.unit_rows(rows)
        for columns in _blocks(np.flatnonzero(usable), block):
            if is_whole and columns[0] < rows[0]:
                continue  # the table is symmetric: these similarities were used for `columns` and `rows` before
            similarities = table.similarities(queried, rows, columns)
            _improve(best, rows, columns, similarities)
            if is_whole and columns[0] > rows[0]:
                _improve(best, columns, rows, similarities.T)
    found = _found(best.cpu().numpy())
    return _pairs(ordered, found if min_score is None else found[found[:, 3] >= min_score], reason)


class _Table:
    """The table of similarities of all images, in the order of their names. Blocks of it are computed when asked for."""

    def __init__(self, descriptors: np.ndarray, order: np.ndarray, places: np.ndarray, min_distance: int, device: str) -> None:
        self._descriptors, self._order, self._device = descriptors, order, device
        self._places, self._min_distance = torch.as_tensor(places, device=device), min_distance

    def unit_rows(self, indices: np.ndarray) -> torch.Tensor:
        """float32 (b, d): descriptors of unit length of the images at `indices`."""
        rows = torch.as_tensor(self._descriptors[self._order[indices]]).to(self._device, torch.float32)
        return torch.nn.functional.normalize(rows, dim=1)

    def similarities(self, queried: torch.Tensor, rows: np.ndarray, columns: np.ndarray) -> torch.Tensor:
        """float32 (b, c): similarities of the images at `rows`, whose unit rows are `queried`, and those at `columns`."""
        similarities = queried @ self.unit_rows(columns).T
        if self._min_distance > 1 or (rows[0] <= columns[-1] and columns[0] <= rows[-1]):
            apart = (self._places[rows, None] - self._places[columns]).abs_()
            similarities[apart < self._min_distance] = EXCLUDED
        return similarities


def _improve(best: torch.Tensor, rows: np.ndarray, columns: np.ndarray, similarities: torch.Tensor) -> None:
    """Puts the images at `columns` into the neighbours (n, k) of those at `rows` if they are more similar: (b, c).

    A neighbour is one number: its similarity in steps, negated, and its index below in 32 bits. Smaller numbers are better, and
    no two are equal. Few images exceed the worst of the present neighbours after the first blocks, so most are not sorted.
    """
    mine = best[rows]  # b k
    # 0.5 steps more than the worst one rounds to more steps; images in later columns have later names, so equal ones rank behind.
    threshold = (_steps(mine[:, -1]).float() + 0.5) * STEP
    row, column = torch.nonzero(similarities >= threshold[:, None], as_tuple=True)
    if not len(row):
        return
    steps = torch.round(similarities[row, column].double() / STEP).to(torch.int64)
    counts = torch.bincount(row, minlength=len(rows))
    place = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
    new = torch.full((len(rows), int(counts.max())), NOTHING, device=row.device)
    new[row, place] = (-steps << 32) + torch.as_tensor(columns, device=row.device)[column]
    best[rows] = torch.cat([mine, new], dim=1).topk(mine.shape[1], dim=1, largest=False).values


def _steps(neighbours: torch.Tensor) -> torch.Tensor:
    """Similarity of neighbours in steps; less than that of any two images for `NOTHING`."""
    return torch.where(neighbours == NOTHING, round(-1.5 / STEP), -(neighbours >> 32))


def _norms(names: Sequence[str], descriptors: np.ndarray) -> np.ndarray:
    """float64 (n,): lengths of the descriptors, after the checks."""
    if len(set(names)) != len(names) or descriptors.ndim != 2 or len(descriptors) != len(names):
        raise ValueError(
            f"{len(names)} names ({len(set(names))} different) with descriptors {descriptors.shape}: expected a row for each name"
        )
    blocks = (descriptors[start : start + BLOCK].astype(np.float32) for start in range(0, len(descriptors), BLOCK))
    norms = np.concatenate([np.zeros(0), *(np.linalg.norm(rows, axis=1) for rows in blocks)])
    if not np.isfinite(norms).all():
        raise ValueError(f"the global descriptor of {names[int(np.argmin(np.isfinite(norms)))]} is not finite")
    return norms


def _blocks(indices: np.ndarray, block: int) -> list[np.ndarray]:
    return [indices[start : start + block] for start in range(0, len(indices), block)]


def _found(best: np.ndarray) -> np.ndarray:
    """float64 (m, 4): index0 < index1, rank and similarity of all neighbours int64 (n, k)."""
    index, rank = np.nonzero(best != NOTHING)
    neighbour, similarity = best[index, rank] & 0xFFFFFFFF, -(best[index, rank] >> 32) * STEP
    return np.stack([np.minimum(index, neighbour), np.maximum(index, neighbour), rank + 1, similarity], axis=1)


def _pairs(ordered: Sequence[str], table: np.ndarray, reason: str) -> list[Pair]:
    """Each pair of the table (m, 4) once, with its best rank, sorted."""
    table = table[np.lexsort((table[:, 2], table[:, 1], table[:, 0]))]
    first = np.ones(len(table), bool)
    first[1:] = (table[1:, :2] != table[:-1, :2]).any(axis=1)
    return [Pair(ordered[int(i)], ordered[int(j)], f"{reason}#{int(rank)}", score) for i, j, rank, score in table[first].tolist()]
