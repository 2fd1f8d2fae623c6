"""Softmax attention over segments of concatenated tokens, in the form that suits a device and a precision.

All functions share one signature: queries (T0, d), keys and values (T1, d), each with its h heads' channels side by side; the
segment i of the queries sees the segment i of the keys and nothing else. Segments are given by their borders, ascending, the
first 0; no segment is empty. The scale of the logits is in the queries already. Results (T0, d) go to `out`, which may have gaps
between its rows.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sfm_lightglue.engine.workspace import Workspace

CHUNK = 256
"""Queries in work at a time in `attend_in_chunks`: the logits of four heads and 2048 keys are 4 MB then."""

Borders = Sequence[int]


def attend(query: Tensor, key: Tensor, value: Tensor, out: Tensor, borders: tuple[Borders, Borders], num_heads: int) -> None:
    """By torch's fused attention, segment by segment."""
    for rows, columns in _segments(*borders):
        parts = (_heads_first(part, num_heads)[None] for part in (query[rows], key[columns], value[columns]))
        context = F.scaled_dot_product_attention(*parts, scale=1.0)  # type: ignore[misc]
        _heads_first(out[rows], num_heads).copy_(context[0])


def attend_in_chunks(
    query: Tensor, key: Tensor, value: Tensor, out: Tensor, borders: tuple[Borders, Borders], num_heads: int, space: Workspace
) -> None:
    """By two products and a softmax in the precision given: in bfloat16 1.4 times the speed of torch's fused attention."""
    for rows, columns in _segments(*borders):
        queries, targets = _heads_first(query[rows], num_heads), _heads_first(out[rows], num_heads)
        # Strided queries and targets cost nothing, strided keys and values are copied anew in each product.
        keys, values = (_heads_first(part[columns], num_heads).contiguous() for part in (key, value))
        for start in range(0, queries.shape[1], CHUNK):
            chunk = queries[:, start : start + CHUNK]
            logits = space.take("logits", (num_heads, chunk.shape[1], keys.shape[1]), query.dtype)
            torch.bmm(chunk, keys.mT, out=logits)
            torch.softmax(logits, dim=-1, out=logits)
            torch.bmm(logits, values, out=targets[:, start : start + CHUNK])


def attend_on_gpu(
    query: Tensor, key: Tensor, value: Tensor, out: Tensor, borders: tuple[Borders, Borders], num_heads: int
) -> None:
    """By flash attention over all segments at once; float16 or bfloat16 on CUDA."""
    from torch.nn.attention.varlen import varlen_attn  # torch 2.10 and later

    of_heads = (part.unflatten(1, (num_heads, -1)) for part in (query, key, value))
    cumulative = (torch.tensor(list(side), dtype=torch.int32).to(query.device, non_blocking=True) for side in borders)
    longest = (max(end - start for start, end in itertools.pairwise(side)) for side in borders)
    # One split of the keys: the result for a pair must not depend on the others in the batch.
    context = varlen_attn(*of_heads, *cumulative, *longest, scale=1.0, num_splits=1)
    out.unflatten(1, (num_heads, -1)).copy_(context)


def _segments(borders0: Borders, borders1: Borders) -> list[tuple[slice, slice]]:
    ends = zip(borders0, borders0[1:], borders1, borders1[1:], strict=False)
    return [(slice(start0, end0), slice(start1, end1)) for start0, end0, start1, end1 in ends]


def _heads_first(tokens: Tensor, num_heads: int) -> Tensor:
    """View (h, n, d / h) of (n, d)."""
    return tokens.unflatten(1, (num_heads, -1)).transpose(0, 1)
