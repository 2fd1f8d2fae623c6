"""How convolutions are computed fast on a CPU: in bands of rows that its caches hold, and by oneDNN."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

BAND_PIXELS = 2**15
"""A CPU computes the first layers in bands of about so many pixels, which its caches hold."""
ONE_DNN = 2
"""Dilation of 1x1 convolutions. They have no taps to move apart, but torch (2.13) then computes them with oneDNN also on a single
thread, in half the time of its own code."""


def in_bands(layers: Callable[[Tensor], Tensor], x: Tensor, *, halo: int = 0, stride: int = 1, whole: bool = False) -> Tensor:
    """layers(x), computed on a CPU in bands of rows, whose maps stay in its caches, and memory small; in one piece if `whole`.

    `halo` rows of x to each side are what a row of the result depends on, `stride` rows of x become one.
    """
    height, width = x.shape[2:]
    rows = max(16, BAND_PIXELS // width // 8 * 8)  # an even number of strides
    if whole or x.is_cuda or rows >= height:
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
