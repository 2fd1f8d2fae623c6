"""Matches from the last states of a pair, without ever holding a matrix of all scores.

A score is exp(2 s_ij - lse_i - lse_j + log m_i + log m_j) (paper, eq. 7 and 8): s the similarity, lse the log-sum-exp of its row
or column, m the matchability. All factors are at most 1, so a score above a threshold t > 0 needs a softmax over the row above t,
which at most 1 / t entries of a row have. The similarities are computed a few rows at a time; of each block these candidates are
kept, and the log-sum-exp of its rows and columns. Scores are then exact, and a candidate that is the best of its row and of its
column among the candidates is so among all.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from sfm_lightglue.networks.lightglue import mutual_best

NO_SIMILARITY = -1e9
"""Below all similarities by far, yet finite: sums with it do not end in NaN."""
BLOCK_ENTRIES = 1 << 18
"""Similarities in work at a time: 1 MB, which stays in a core's cache."""

Scan = Callable[[Tensor, float, Tensor, Tensor], tuple[Tensor, Tensor, Tensor, Tensor]]
"""A function that does what `scan_rows` does."""


def scan_rows(rows: Tensor, log_threshold: float, maximum: Tensor, total: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What a block of rows (r, n) of a matrix says; the block itself may be overwritten.

    Updates, of each column and with all rows seen before, its maximum (n,) and its total (n,) of exp(x - maximum). Returns the
    log-sum-exp (r,) of each row, and the rows int64 (k,), columns int64 (k,) and values (k,) of the entries above the log-sum-exp
    of their row + `log_threshold`, in order.
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
    vectors0: Tensor, vectors1: Tensor, logits0: Tensor, logits1: Tensor, threshold: float, scan: Scan = scan_rows
) -> tuple[Tensor, Tensor]:
    """Indices int64 (k, 2), ordered by the first, and scores float32 (k,) of the matches with a score above `threshold`.

    From projected states (m, d), (n, d), m and n > 0, and logits of matchability (m,), (n,). `scan` is `scan_rows` or as good.
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
    vectors0: Tensor, vectors1: Tensor, logits0: Tensor, logits1: Tensor, is_point0: Tensor, is_point1: Tensor, threshold: float
) -> tuple[Tensor, Tensor]:
    """The matches of many pairs in few and large steps, as a GPU wants them; nothing waits for the GPU.

    From projected states (b, m, d), (b, n, d), filled up where `is_point0` (b, m), `is_point1` (b, n) is false, and logits of
    matchability (b, m), (b, n). Returns the partner int64 (b, m) of each point of image 0, and scores float32 (b, m), -1 for no
    match.
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
    """Which entries have the highest score of their group; of equal ones (duplicate keypoints) the first, as a maximum takes."""
    highest = score.new_full((num_groups,), -math.inf).scatter_reduce_(0, group, score, "amax")
    order = torch.arange(len(score), device=score.device)
    candidates = torch.where(score == highest[group], order, len(score))
    first = order.new_full((num_groups,), len(score)).scatter_reduce_(0, group, candidates, "amin")
    return order == first[group]


def _assign_densely(vectors0: Tensor, vectors1: Tensor, log_match0: Tensor, log_match1: Tensor) -> tuple[Tensor, Tensor]:
    """All mutually best pairs, whatever their score."""
    similarity = vectors0 @ vectors1.T
    scores = F.log_softmax(similarity, dim=1) + F.log_softmax(similarity, dim=0) + log_match0[:, None] + log_match1
    rows, columns, values = mutual_best(scores)
    return torch.stack([rows, columns], dim=1), values
