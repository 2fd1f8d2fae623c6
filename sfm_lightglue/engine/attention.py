"""Softmax attention over segments of concatenated tokens, in the form that suits a device and a precision.

All functions share one signature: queries (T0, d), keys and values (T1, d), each with its h heads' channels side by side; the
segment i of the queries sees the segment i of the keys and nothing else. Segments are given by their borders, ascending, the
first 0; no segment is empty. The scale of the logits is in the queries already. Results (T0, d) go to `out`, which may have gaps
between its rows.
"""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sfm_lightglue.engine.workspace import Workspace

CHUNK = 256
"""Queries in work at a time in `attend_in_chunks`: the logits of four heads and 2048 keys are 4 MB then."""

Borders = Sequence[int]


def attend(query: Tensor, key: Tensor, value: Tensor, out: Tensor, borders: tuple[Borders, Borders], num_heads: int) -> None:
    """By torch's fused attention, segment by segment."""
    for rows, columns in segments(*borders):
        parts = (_heads_first(part, num_heads)[None] for part in (query[rows], key[columns], value[columns]))
        context = F.scaled_dot_product_attention(*parts, scale=1.0)  # type: ignore[misc, arg-type]
        _heads_first(out[rows], num_heads).copy_(context[0])


def attend_in_chunks(
    query: Tensor, key: Tensor, value: Tensor, out: Tensor, borders: tuple[Borders, Borders], num_heads: int, space: Workspace
) -> None:
    """By two products and a softmax in the precision given: in bfloat16 1.4 times the speed of torch's fused attention on CPUs
    that have no AMX."""
    for rows, columns in segments(*borders):
        queries, targets = _heads_first(query[rows], num_heads), _heads_first(out[rows], num_heads)
        # Strided queries and targets cost nothing, strided keys and values are copied anew in each product.
        keys, values = (_heads_first(part[columns], num_heads).contiguous() for part in (key, value))
        for start in range(0, queries.shape[1], CHUNK):
            chunk = queries[:, start : start + CHUNK]
            logits = space.take("logits", (num_heads, chunk.shape[1], keys.shape[1]), query.dtype)
            torch.bmm(chunk, keys.mT, out=logits)
            torch.softmax(logits, dim=-1, out=logits)
            torch.bmm(logits, values, out=targets[:, start : start + CHUNK])


@functools.cache
def has_tiles() -> bool:
    """Whether this CPU has AMX; False where torch cannot tell. On bfloat16 torch's fused attention is then the fastest of torch:
    2048 keypoints take it 11 ms, `attend_in_chunks` 19, and 50 to 100 where many weights underflow."""
    return getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()


def attend_on_gpu(
    query: Tensor, key: Tensor, value: Tensor, out: Tensor, borders: tuple[Borders, Borders], num_heads: int
) -> None:
    """All segments at once: by flash attention where torch offers it for this GPU and precision, else padded."""
    varlen_attn = flash_attention(query.device, query.dtype, query.shape[1] // num_heads)
    if varlen_attn is None:
        attend_padded(query, key, value, out, borders, num_heads)
        return
    of_heads = (part.unflatten(1, (num_heads, -1)) for part in (query, key, value))
    longest = (_longest(side) for side in borders)
    # One split of the keys: the result for a pair must not depend on the others in the batch.
    context = varlen_attn(*of_heads, *_on_device(borders, query.device), *longest, scale=1.0, num_splits=1)
    out.unflatten(1, (num_heads, -1)).copy_(context)


def attend_padded(
    query: Tensor, key: Tensor, value: Tensor, out: Tensor, borders: tuple[Borders, Borders], num_heads: int
) -> None:
    """By torch's fused attention on segments filled up to the longest, for any GPU and precision; float32 has no other."""
    starts = _on_device(borders, query.device)
    (rows, _), (columns, is_column) = (_padded(start, _longest(side)) for start, side in zip(starts, borders, strict=True))
    parts = (
        part[places].unflatten(2, (num_heads, -1)).transpose(1, 2)  # b h n hd
        for part, places in ((query, rows), (key, columns), (value, columns))
    )
    context = F.scaled_dot_product_attention(*parts, attn_mask=is_column[:, None, None], scale=1.0)  # type: ignore[misc]
    out[rows] = context.transpose(1, 2).flatten(2)


@functools.cache
def flash_attention(device: torch.device, dtype: torch.dtype, head_dim: int) -> Callable[..., Any] | None:
    """Torch's `varlen_attn`, None where it does not run or cannot be told `num_splits`.

    It needs a GPU of Nvidia's generation Ampere or later, 16 bits, and heads of a multiple of 8 channels, at most 256.
    """
    if device.type != "cuda" or dtype == torch.float32 or head_dim % 8 or head_dim > 256:
        return None
    if torch.version.hip or not torch.backends.cuda.is_flash_attention_available():
        return None
    if torch.cuda.get_device_capability(device) < (8, 0):
        return None
    try:
        from torch.nn.attention.varlen import varlen_attn  # here, since older torch lacks it and CPUs need not load it
    except ImportError:
        return None
    return varlen_attn if "num_splits" in inspect.signature(varlen_attn).parameters else None


def _on_device(borders: tuple[Borders, Borders], device: torch.device) -> Tensor:
    """int32 (2, segments + 1), sent without waiting for the GPU."""
    return torch.tensor([list(side) for side in borders], dtype=torch.int32).to(device, non_blocking=True)


def _longest(borders: Borders) -> int:
    return max(end - start for start, end in itertools.pairwise(borders))


def _padded(borders: Tensor, longest: int) -> tuple[Tensor, Tensor]:
    """Places int64 (b, longest) of the tokens of b segments, shorter ones filled with their last token; which are no filling.

    Results for the filling are thus copies of the last token's own: to write them there again changes nothing.
    """
    lengths = borders.diff()[:, None]
    steps = torch.arange(longest, device=borders.device)
    return (borders[:-1, None] + steps.minimum(lengths - 1)).long(), steps < lengths


def segments(borders0: Borders, borders1: Borders) -> list[tuple[slice, slice]]:
    """Rows of the queries and of the keys that belong together."""
    ends = zip(borders0, borders0[1:], borders1, borders1[1:], strict=False)
    return [(slice(start0, end0), slice(start1, end1)) for start0, end0, start1, end1 in ends]


def _heads_first(tokens: Tensor, num_heads: int) -> Tensor:
    """View (h, n, d / h) of (n, d)."""
    return tokens.unflatten(1, (num_heads, -1)).transpose(0, 1)
