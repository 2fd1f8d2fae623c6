"""Softmax attention over segments of concatenated tokens, with one function for each kind of device and precision.

All functions have the same arguments:
- query (T0, d), key and value (T1, d): the channels of each of the h heads lie side by side. The queries include the scale of the
  logits.
- out (T0, d): receives the result; its rows may have gaps between them.
- borders: the first token of each segment and the number of tokens at the end, for queries and for keys. Segment i of the queries
  attends to segment i of the keys and to nothing else. No segment is empty.
"""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int32, Int64
from torch import Tensor

from sfm_lightglue.engine.workspace import Workspace

CHUNK = 256
"""Number of queries that `attend_in_chunks` computes at a time: the logits of four heads and 2048 keys then take 4 MB."""

Borders = Sequence[int]


def attend(query: Tensor, key: Tensor, value: Tensor, out: Tensor, borders: tuple[Borders, Borders], num_heads: int) -> None:
    """Attention by torch's fused function, segment by segment."""
    for rows, columns in segments(*borders):
        parts = (_heads_first(part, num_heads)[None] for part in (query[rows], key[columns], value[columns]))
        context = F.scaled_dot_product_attention(*parts, scale=1.0)  # type: ignore[misc, arg-type]
        _heads_first(out[rows], num_heads).copy_(context[0])


def attend_in_chunks(
    query: Tensor, key: Tensor, value: Tensor, out: Tensor, borders: tuple[Borders, Borders], num_heads: int, space: Workspace
) -> None:
    """Attention by two products and a softmax in the precision of the queries. `space` holds the logits.

    In bfloat16, on CPUs without AMX, it is 1.4 times as fast as torch's fused attention.
    """
    for rows, columns in segments(*borders):
        queries, targets = _heads_first(query[rows], num_heads), _heads_first(out[rows], num_heads)
        # Strided queries and targets cost nothing. Strided keys and values would be copied anew for each product.
        keys, values = (_heads_first(part[columns], num_heads).contiguous() for part in (key, value))
        for start in range(0, queries.shape[1], CHUNK):
            chunk = queries[:, start : start + CHUNK]
            logits = space.take("logits", (num_heads, chunk.shape[1], keys.shape[1]), query.dtype)
            torch.bmm(chunk, keys.mT, out=logits)
            torch.softmax(logits, dim=-1, out=logits)
            torch.bmm(logits, values, out=targets[:, start : start + CHUNK])


@functools.cache
def has_tiles() -> bool:
    """Whether this CPU has AMX; False if torch cannot tell.

    With AMX, torch's fused attention is its fastest in bfloat16: 2048 keypoints take 11 ms. `attend_in_chunks` takes 19 ms, or
    50 to 100 ms if many weights underflow.
    """
    return getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()


def attend_on_gpu(
    query: Tensor, key: Tensor, value: Tensor, out: Tensor, borders: tuple[Borders, Borders], num_heads: int
) -> None:
    """Attention in all segments at once: by flash attention if torch offers it for this GPU and precision, else padded."""
    varlen_attn = flash_attention(query.device, query.dtype, query.shape[1] // num_heads)
    if varlen_attn is None:
        attend_padded(query, key, value, out, borders, num_heads)
        return
    of_heads = (part.unflatten(1, (num_heads, -1)) for part in (query, key, value))
    longest = (_longest(side) for side in borders)
    # One split of the keys: the result for a pair must not depend on the other pairs in the batch.
    context = varlen_attn(*of_heads, *_on_device(borders, query.device), *longest, scale=1.0, num_splits=1)
    out.unflatten(1, (num_heads, -1)).copy_(context)


def attend_padded(
    query: Tensor, key: Tensor, value: Tensor, out: Tensor, borders: tuple[Borders, Borders], num_heads: int
) -> None:
    """Attention by torch's fused function on segments padded to the longest. For any GPU and precision; the only one for
    float32."""
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
    """Torch's `varlen_attn`; None if it does not run here or has no argument `num_splits`.

    It needs an Nvidia GPU of the generation Ampere or later, 16 bits, and heads with a multiple of 8 channels, at most 256.
    """
    if device.type != "cuda" or dtype == torch.float32 or head_dim % 8 or head_dim > 256:
        return None
    if torch.version.hip or not torch.backends.cuda.is_flash_attention_available():
        return None
    if torch.cuda.get_device_capability(device) < (8, 0):
        return None
    try:
        from torch.nn.attention.varlen import varlen_attn  # here: older torch lacks it, and CPUs need not load it
    except ImportError:
        return None
    return varlen_attn if "num_splits" in inspect.signature(varlen_attn).parameters else None


def _on_device(borders: tuple[Borders, Borders], device: torch.device) -> Tensor:
    """The borders as int32 (2, segments + 1) on the device. Does not wait for the GPU."""
    return torch.tensor([list(side) for side in borders], dtype=torch.int32).to(device, non_blocking=True)


def _longest(borders: Borders) -> int:
    return max(end - start for start, end in itertools.pairwise(borders))


def _padded(borders: Int32[Tensor, " n"], longest: int) -> tuple[Int64[Tensor, "n-1 {longest}"], Bool[Tensor, "n-1 {longest}"]]:
    """The token indices of each segment, padded with its last token, and False for the padding.

    The results for the padding are copies of the last token's result: writing them to this token again changes nothing.
    """
    lengths = borders.diff()[:, None]
    steps = torch.arange(longest, device=borders.device)
    return (borders[:-1, None] + steps.minimum(lengths - 1)).long(), steps < lengths


def segments(borders0: Borders, borders1: Borders) -> list[tuple[slice, slice]]:
    """The rows of the queries and of the keys of each segment."""
    ends = zip(borders0, borders0[1:], borders1, borders1[1:], strict=False)
    return [(slice(start0, end0), slice(start1, end1)) for start0, end0, start1, end1 in ends]


def _heads_first(tokens: Tensor, num_heads: int) -> Tensor:
    """A view (h, n, d / h) of tokens (n, d)."""
    return tokens.unflatten(1, (num_heads, -1)).transpose(0, 1)
