"""3x3 convolutions by compiled kernels: Winograd's minimal filtering F(4x4, 3x3), with a quarter of the products (Lavin and Gray,
arXiv:1509.09308, section 4.2).

In float32, or with integers: activations after a ReLU are 8 bits as in `int8.py`, and transformed weights 16 bits. Integers are
summed exactly, so a result does not depend on the CPU. Rounding the weights changes a result by less than a twentieth of what the
8-bit weights of `int8.py` do.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Float64, Shaped
from torch import Tensor, nn

from sfm_lightglue.networks.int8 import LEVELS

WEIGHT_LEVELS = 2**15 - 1
"""Largest integer of a transformed weight."""
SUM_LEVELS = 2**31 - 2**25
"""Largest sum of products of integers. What is left holds the rounding of the weights."""
_WEIGHTS = [
    [1 / 4, 0, 0],
    [-1 / 6, -1 / 6, -1 / 6],
    [-1 / 6, 1 / 6, -1 / 6],
    [1 / 24, 1 / 12, 1 / 6],
    [1 / 24, -1 / 12, 1 / 6],
    [0, 0, 1],
]
"""The matrix G of the paper's equation 4.4 (published as 8), which transforms weights."""
_WINDOW = [
    [4, 0, -5, 0, 1, 0],
    [0, -4, -4, 1, 1, 0],
    [0, 4, -4, -1, 1, 0],
    [0, -2, -1, 2, 1, 0],
    [0, 2, -1, -2, 1, 0],
    [0, 4, 0, -5, 0, 1],
]
"""The matrix B^T, which transforms windows of 6 x 6 px."""


@runtime_checkable
class ConvolutionKernels(Protocol):
    """`engine.kernel_calls.Kernels`."""

    strip: int
    """Number of results whose weights are packed together."""
    supports_tiles: bool
    """Whether the CPU has the tiles of AMX."""

    def first_layer(self, grey: Tensor, weights: Tensor, dtype: torch.dtype) -> Tensor:
        """See there."""

    def winograd(
        self, x: Tensor, weights: Tensor, scales: Tensor | None, biases: Tensor, dtype: torch.dtype, pool: int
    ) -> Tensor:
        """See there."""


class WinogradConvolution(nn.Module):
    """A 3x3 convolution with padding 1, the ReLU after it, and max pooling, for inference on a CPU."""

    def __init__(
        self,
        convolution: nn.Conv2d,
        kernels: ConvolutionKernels,
        *,
        pool: int = 1,
        limit: float | None = None,
        result: float | None = None,
    ) -> None:
        """The convolution.

        Args:
            convolution: its weights and biases. Input channels are a multiple of 32, output channels one of 64.
            kernels: compute it.
            pool: 2: the maximum of 2x2 pixels, as `F.max_pool2d`. 1: all pixels.
            limit: the largest input of an input in 8 bits; larger ones are cut. None: the input is float32.
            result: the largest output of a result in 8 bits. None: the result is float32.
        """
        super().__init__()
        weight, bias = convolution.weight.detach(), convolution.bias
        assert weight.shape[2:] == (3, 3) and convolution.padding == (1, 1) and bias is not None
        self.kernels, self.pool = kernels, pool
        self.input_scale = None if limit is None else limit / LEVELS
        self.output_type = torch.float32 if result is None else torch.uint8
        output_scale = 1.0 if result is None else result / LEVELS
        transformed, self.scales = transformed_weights(weight), None
        if self.input_scale is None:
            values = transformed.float() / output_scale
        else:
            scales = integer_scales(transformed)
            values = torch.round(transformed / scales[:, None]).to(torch.int16)
            self.scales = (scales * (self.input_scale / output_scale)).float()
        self.weights = packed(values, kernels.strip)
        self.biases = bias.detach().float() / output_scale

    def forward(self, x: Shaped[Tensor, "b c h w"]) -> Shaped[Tensor, "b d hp wp"]:
        """max_pool(relu(convolution(x))): float32, or uint8 if the result is in 8 bits; channels last in memory."""
        x = x.contiguous(memory_format=torch.channels_last) if x.stride(1) != 1 or x.stride(3) != x.shape[1] else x
        found = [
            self.kernels.winograd(each.permute(1, 2, 0), self.weights, self.scales, self.biases, self.output_type, self.pool)
            for each in x
        ]
        return (found[0][None] if len(found) == 1 else torch.stack(found)).permute(0, 3, 1, 2)

    def values(self, x: Shaped[Tensor, "*n"], dtype: torch.dtype) -> Float[Tensor, "*n"]:
        """The values of an input."""
        return x.to(dtype) if self.input_scale is None else x.to(dtype).mul_(self.input_scale)


class FirstConvolution(nn.Module):
    """A 3x3 convolution of one channel with padding 1, and the ReLU after it, in a tenth of torch's time."""

    def __init__(self, convolution: nn.Conv2d, kernels: ConvolutionKernels, result: float | None = None) -> None:
        """The convolution; see `WinogradConvolution`."""
        super().__init__()
        scale = 1.0 if result is None else LEVELS / result
        weight, bias = convolution.weight.detach().float() * scale, convolution.bias
        assert weight.shape[1:] == (1, 3, 3) and convolution.padding == (1, 1) and bias is not None
        self.kernels, self.output_type = kernels, torch.float32 if result is None else torch.uint8
        self.rows = torch.cat([weight.flatten(1).T, bias.detach().float()[None] * scale]).contiguous()

    def forward(self, x: Float[Tensor, "b 1 h w"]) -> Shaped[Tensor, "b d h w"]:
        """relu(convolution(x))."""
        found = [self.kernels.first_layer(each, self.rows, self.output_type) for each in x[:, 0]]
        return found[0] if len(found) == 1 else torch.cat(found)


def transformed_weights(weight: Float[Tensor, "d c 3 3"]) -> Float64[Tensor, "36 c d"]:
    """The weights G g G^T at each place of a transformed window."""
    matrix = torch.tensor(_WEIGHTS, dtype=torch.float64)
    return torch.einsum("ia,dcab,jb->ijcd", matrix, weight.double(), matrix).flatten(0, 1)


def largest_windows() -> Float64[Tensor, 36]:
    """The largest magnitude at each place of a transformed window of pixels 0..255."""
    matrix = torch.tensor(_WINDOW, dtype=torch.float64)
    plus, minus = matrix.clamp(min=0).sum(1), -matrix.clamp(max=0).sum(1)
    highest, lowest = plus[:, None] * plus + minus[:, None] * minus, plus[:, None] * minus + minus[:, None] * plus
    return LEVELS * torch.maximum(highest, lowest).flatten()


def integer_scales(transformed: Float64[Tensor, "36 c d"]) -> Float64[Tensor, "36 d"]:
    """The smallest scales of integer weights with which neither a weight nor any sum over the channels overflows."""
    sums = transformed.abs().sum(dim=1) * largest_windows()[:, None]
    scales = torch.maximum(sums / SUM_LEVELS, transformed.abs().amax(dim=1) / WEIGHT_LEVELS)
    return scales.clamp(min=torch.finfo(torch.float32).tiny)


def packed(weights: Shaped[Tensor, "36 c d"], strip: int) -> Shaped[Tensor, " _"]:
    """Weights in the order in which kernels read them: strip of results, place, word of 4 bytes, result, channel of the word."""
    places, channels, results = weights.shape
    n = 4 // weights.element_size()
    return weights.view(places, channels // n, n, results // strip, strip).permute(3, 0, 1, 4, 2).flatten()
