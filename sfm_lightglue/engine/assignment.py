"""Matches from the last states of a pair, without a matrix of all scores in memory.

A score is exp(2 s_ij - lse_i - lse_j + log m_i + log m_j) (paper, eq. 7 and 8): s is the similarity, lse the log-sum-exp of a row
or column of similarities, m the matchability. All factors are at most 1. An entry with a score above a threshold t > 0 is thus
above t in the softmax over its row, and a row has at most 1 / t entries like that. They are the candidates.

The similarities are computed a few rows at a time. Each block leaves its candidates, and the log-sum-exp of its rows and columns.
The scores are exact, and a candidate that is the best of its row and column among the candidates is the best among all entries.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from sfm_lightglue.networks.lightglue import mutual_best

NO_SIMILARITY = -1e9
"""Far below all similarities, yet finite, so that sums with it are not NaN."""
BLOCK_ENTRIES = 1 << 18
"""Number of similarities computed at a time: 1 MB, which stays in a core's cache."""

Scan = Callable[[Tensor, float, Tensor, Tensor], tuple[Tensor, Tensor, Tensor, Tensor]]
"""A function like `scan_rows`."""


def scan_rows(
    rows: Float32[Tensor, "r n"], log_threshold: float, maximum: Float32[Tensor, " n"], total: Float32[Tensor, " n"]
) -> tuple[Float32[Tensor, " r"], Int64[Tensor, " k"], Int64[Tensor, " k"], Float32[Tensor, " k"]]:
    """The log-sum-exp of each row of a block, and the row, column and value of its large entries, in order.

    Args:
        rows: some rows of a matrix; they may be overwritten.
        log_threshold: an entry is large if it is above the log-sum-exp of its row + this.
        maximum: the maximum of each column over all rows seen so far; updated.
        total: the sum of exp(x - maximum) of each column over all rows seen so far; updated.
    """
    largest = rows.amax(dim=1, keepdim=True)
    lse = largest[:, 0] + (rows - largest).exp_().sum(dim=1).log_()
    row, column = (rows > (lse + log_threshold)[:, None]).nonzero().unbind(dim=1)
    value = rows[row, column]
    larger = torch.maximum(maximum, rows.amax(dim=0))
    total.mul_((maximum - larger).exp_()).add_(rows.sub_(larger).exp_().sum(dim=0))
    maximum.copy_(larger)
    return lse, row, column, value


def assign(
    vectors0: Float32[Tensor, "m d"],
    vectors1: Float32[Tensor, "n d"],
    logits0: Float32[Tensor, " m"],
    logits1: Float32[Tensor, " n"],
    threshold: float,
    scan: Scan = scan_rows,
) -> tuple[Int64[Tensor, "k 2"], Float32[Tensor, " k"]]:
    """Indices, ordered by the first, and scores of the matches of one pair.

    Args:
        vectors0, vectors1: projected states; m and n > 0.
        logits0, logits1: of matchability.
        threshold: a match has a score above this.
        scan: `scan_rows`, or a faster function that returns the same.
    """
    log_match0, log_match1 = F.logsigmoid(logits0), F.logsigmoid(logits1)
    if threshold <= 0:
        return _assign_densely(vectors0, vectors1, log_match0, log_match1)
    size0, size1 = len(vectors0), len(vectors1)
    log_threshold = math.log(threshold)
    lse0 = vectors0.new_empty(size0)
    max1, sum1 = vectors0.new_full((size1,), -math.inf), vectors0.new_zeros(size1)
    rows, columns, values = [], [], []
    step = max(1, BLOCK_ENTRIES // size1)
    for start in range(0, size0, step):
        similarity = vectors0[start : start + step] @ vectors1.T  # r n
        lse0[start : start + step], row, column, value = scan(similarity, log_threshold, max1, sum1)
        rows.append(row + start)
        columns.append(column)
        values.append(value)
    row, column, value = torch.cat(rows), torch.cat(columns), torch.cat(values)
    score = 2 * value - lse0[row] - (max1 + sum1.log())[column] + log_match0[row] + log_match1[column]
    accepted = score > log_threshold
    row, column, score = row[accepted], column[accepted], score[accepted]
    kept = _is_best(row, score, size0) & _is_best(column, score, size1)
    return torch.stack([row[kept], column[kept]], dim=1), score[kept].exp()


def assign_many(
    vectors0: Float32[Tensor, "b m d"],
    vectors1: Float32[Tensor, "b n d"],
    logits0: Float32[Tensor, "b m"],
    logits1: Float32[Tensor, "b n"],
    is_point0: Bool[Tensor, "b m"],
    is_point1: Bool[Tensor, "b n"],
    threshold: float,
) -> tuple[Int64[Tensor, "b m"], Float32[Tensor, "b m"]]:
    """The partner of each point of image 0 and the score, -1 for no match, for many pairs at once.

    It takes few, large steps, as a GPU needs, and does not wait for the GPU.

    Args:
        vectors0, vectors1: projected states, padded to the longest image.
        logits0, logits1: of matchability.
        is_point0, is_point1: False for padding.
        threshold: a match has a score above this.
    """
    similarity = vectors0 @ vectors1.mT  # b m n
    similarity.masked_fill_(~(is_point0[:, :, None] & is_point1[:, None]), NO_SIMILARITY)
    of_row = F.logsigmoid(logits0) - similarity.logsumexp(dim=2)
    of_column = F.logsigmoid(logits1) - similarity.logsumexp(dim=1)
    scores = similarity.mul_(2).add_(of_row[:, :, None]).add_(of_column[:, None])
    values, partners = scores.max(dim=2)
    is_mutual = scores.argmax(dim=1).gather(1, partners) == torch.arange(scores.shape[1], device=scores.device)
    is_above = values > (math.log(threshold) if threshold > 0 else -math.inf)
    return partners, torch.where(is_mutual & is_above & is_point0, values.exp(), -1.0)


def _is_best(group: Tensor, score: Tensor, num_groups: int) -> Tensor:
    """Which entries have the highest score of their group. Among equal scores (duplicate keypoints) the first one wins, as in
    torch's maximum."""
    highest = score.new_full((num_groups,), -math.inf).scatter_reduce_(0, group, score, "amax")
    order = torch.arange(len(score), device=score.device)
    candidates = torch.where(score == highest[group], order, len(score))
    first = order.new_full((num_groups,), len(score)).scatter_reduce_(0, group, candidates, "amin")
    return order == first[group]


def _assign_densely(vectors0: Tensor, vectors1: Tensor, log_match0: Tensor, log_match1: Tensor) -> tuple[Tensor, Tensor]:
    """All mutually best pairs of points, with any score."""
    similarity = vectors0 @ vectors1.T
    scores = F.log_softmax(similarity, dim=1) + F.log_softmax(similarity, dim=0) + log_match0[:, None] + log_match1
    rows, columns, values = mutual_best(scores)
    return torch.stack([rows, columns], dim=1), values
