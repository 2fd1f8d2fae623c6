"""3x3 convolutions in 8 bits, for CPUs with instructions for them (VNNI, AMX): twice as fast as in 16 bits.

Activations after a ReLU are unsigned integers: value = limit / 255 * integer, larger values are cut to the limit. Weights are
signed integers with one scale for each output channel. Products are summed exactly in 32-bit integers, so a result depends
neither on the order of the sum nor on the size of the image. Quantisation as in Jacob et al., arXiv:1712.05877, section 2,
without zero points.

The convolutions are oneDNN's, by the operators that torch uses for quantised models.
"""

from __future__ import annotations

from functools import cache
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

LEVELS = 255
"""Largest integer of an activation."""
WEIGHT_LEVELS = 127
_ONES = [1, 1]  # stride, padding and dilation


class Int8Convolution(nn.Module):
    """A 3x3 convolution with padding 1 and the ReLU after it, for inference."""

    def __init__(self, convolution: nn.Conv2d, limit: float, result: float | torch.dtype) -> None:
        """The convolution in 8 bits.

        Args:
            convolution: its weights and biases, in any precision.
            limit: the largest input; larger ones are cut.
            result: the largest output of a result in 8 bits, which the next convolution reads, or the type of other results.
        """
        super().__init__()
        weight = convolution.weight.detach().float()
        assert weight.shape[2:] == (3, 3) and convolution.padding == (1, 1) and convolution.bias is not None
        self.input_scale = limit / LEVELS
        self.bias = convolution.bias.detach().float()
        self.scales = weight.abs().amax((1, 2, 3)).clamp(min=torch.finfo(torch.float32).tiny) / WEIGHT_LEVELS
        self.zeros = torch.zeros(len(weight), dtype=torch.int64)
        self.output_scale = 1.0 if isinstance(result, torch.dtype) else result / LEVELS
        self.output_type = result if isinstance(result, torch.dtype) else torch.uint8
        integers = torch.round(weight / self.scales[:, None, None, None]).to(torch.int8)
        self.packed = torch.ops.onednn.qconv_prepack(integers, self.scales, self.input_scale, 0, _ONES, _ONES, _ONES, 1, None)

    def forward(self, x: UInt8[Tensor, "b c h w"]) -> Tensor:
        """relu(convolution(x)), b d h w."""
        return torch.ops.onednn.qconv2d_pointwise(
            *(x, self.input_scale, 0, self.packed, self.scales, self.zeros, self.bias),
            *(_ONES, _ONES, _ONES, 1, self.output_scale, 0, self.output_type, "relu", [], ""),
        )

    def values(self, x: UInt8[Tensor, "*n"], dtype: torch.dtype) -> Float[Tensor, "*n"]:
        """The values of an input."""
        return x.to(dtype).mul_(self.input_scale)


class Int8Output(nn.Module):
    """A convolution of one channel in float32 and the ReLU after it, with a result in 8 bits."""

    def __init__(self, convolution: nn.Conv2d, limit: float) -> None:
        """The convolution, 3x3 with padding 1. Results above the limit are cut."""
        super().__init__()
        weight, bias = convolution.weight.detach().float() * (LEVELS / limit), convolution.bias
        assert weight.shape[1:] == (1, 3, 3) and convolution.padding == (1, 1) and bias is not None
        self.weight, self.bias = weight, bias.detach().float() * (LEVELS / limit)

    def forward(self, x: Float[Tensor, "b 1 h w"]) -> UInt8[Tensor, "b d h w"]:
        """The integers."""
        # To int8 and back: torch converts float32 to uint8 one number at a time, seven times as slowly.
        values = F.conv2d(x, self.weight, self.bias - 128, padding=1)
        signed = values.clamp_(-128, 127).round_().to(torch.int8)
        return cast(Tensor, signed.view(torch.uint8).bitwise_xor_(128))


def max_pool(x: Tensor) -> Tensor:
    """Maximum of 2x2 pixels, for x (b c h w) in 8 bits or not. Torch's own does not compute it in 8 bits."""
    if x.dtype != torch.uint8:
        return F.max_pool2d(x, 2)
    height, width = x.shape[2] // 2 * 2, x.shape[3] // 2 * 2
    rows = torch.maximum(x[:, :, :height:2, :width], x[:, :, 1:height:2, :width])
    return torch.maximum(rows[..., ::2], rows[..., 1::2])


@cache
def is_fast() -> bool:
    """Whether this CPU multiplies 8-bit integers fast and without overflow, and this torch can use it."""
    found: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    capability = torch.backends.cpu.get_cpu_capability()  # AVX2 with ATEN_CPU_CAPABILITY=avx2
    has_instructions = (found.get("avx512_vnni") and capability == "AVX512") or (found.get("avx_vnni") and "AVX" in capability)
    return bool(has_instructions) and hasattr(torch.ops.onednn, "qconv2d_pointwise") and _is_exact()


def _is_exact() -> bool:
    """Whether the largest products have the right sum: without these instructions oneDNN adds pairs of them in 16 bits."""
    convolution = nn.Conv2d(64, 16, 3, padding=1)
    nn.init.constant_(convolution.weight, WEIGHT_LEVELS)
    nn.init.zeros_(cast(Tensor, convolution.bias))
    x = torch.full((1, 64, 3, 3), LEVELS, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    return Int8Convolution(convolution, LEVELS, torch.float32)(x)[0, 0, 1, 1].item() == 64 * 9 * WEIGHT_LEVELS * LEVELS
