"""Fast convolutions on a CPU: in bands of rows that fit its caches, and by oneDNN."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Shaped
from torch import Tensor

BAND_PIXELS = 2**15
"""Pixels of a band, about: the caches of a CPU hold the maps of the first layers for this many pixels."""
ONE_DNN = 2
"""Dilation of 1x1 convolutions. It does not change their result, because they have a single tap. It makes torch (2.13) compute
them with oneDNN on a single thread too, in half the time of torch's own code."""


def in_bands(
    layers: Callable[[Tensor], Tensor],
    x: Shaped[Tensor, "b c h w"],
    *,
    halo: int = 0,
    stride: int = 1,
    pixels: int = BAND_PIXELS,
    whole: bool = False,
) -> Shaped[Tensor, "b d hd wd"]:
    """layers(x), computed on a CPU in bands of rows. The maps of a band stay in the caches, and memory stays small.

    Args:
        layers: the computation.
        x: its input.
        halo: rows of x above and below a row that the result for this row depends on.
        stride: rows of x for each row of the result.
        pixels: of a band, about.
        whole: computes the result in one piece.
    """
    height, width = x.shape[2:]
    rows = max(16, pixels // width // 8 * 8)  # an even number of strides
    if whole or not x.is_cpu or rows >= height:
        return layers(x)
    result = None
    for start in range(0, height // stride * stride, rows):
        first = max(0, start - halo)
        band = layers(x[:, :, first : start + rows + halo])[:, :, (start - first) // stride :][:, :, : rows // stride]
        if result is None:
            shape = (*band.shape[:2], height // stride, band.shape[3])
            result = torch.empty(shape, dtype=band.dtype, device=x.device, memory_format=torch.channels_last)
        result[:, :, start // stride :][:, :, : rows // stride] = band
    assert result is not None
    return result
