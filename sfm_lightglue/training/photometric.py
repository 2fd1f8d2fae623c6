"""Random photometric changes of photos: light, exposure, contrast, gamma, shadows, blur, noise and JPEG.

They are computed for a whole batch at once, on the device of the batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

# Quantisation of luminance, ITU-T T.81, table K.1. Every encoder scales this table by its quality.
_LUMINANCE = (
    *(16, 11, 10, 16, 24, 40, 51, 61),
    *(12, 12, 14, 19, 26, 58, 60, 55),
    *(14, 13, 16, 24, 40, 57, 69, 56),
    *(14, 17, 22, 29, 51, 87, 80, 62),
    *(18, 22, 37, 56, 68, 109, 103, 77),
    *(24, 35, 55, 64, 81, 104, 113, 92),
    *(49, 64, 78, 87, 103, 121, 120, 101),
    *(72, 92, 95, 98, 112, 100, 103, 99),
)
_BLOCK = 8
_BEST_QUALITY = 95


@dataclass(frozen=True)
class PhotometricRange:
    """Ranges of random photometric changes; configs/training holds the values. All act on grey values in 0..1."""

    contrast: float
    """Maximum factor by which the contrast is multiplied or divided."""
    brightness: float
    """Maximum value that is added or subtracted."""
    gamma: float
    """Maximum exponent; its inverse is the minimum."""
    shadow: float
    """Maximum darkening on the dark side of a shadow's edge, 0..1."""
    lighting: float
    """Standard deviation of the logarithm of a light that varies slowly over the view."""
    blur: float
    """Maximum standard deviation of Gaussian blur, px. Motion blur is at most four times as long."""
    noise: float
    """Maximum standard deviation."""
    jpeg_quality: int
    """Minimum quality."""


def change_photos(views: Tensor, generator: Generator, ranges: PhotometricRange) -> Tensor:
    """Changed copies of grey views (b, 1, h, w) in 0..1. Each kind of change is applied to a random part of the views.

    `generator` is on the device of the views.
    """
    draw = Draws(len(views), generator)
    x = views
    x = torch.where(draw.chosen(0.3), x * _shadows(x, draw, ranges.shadow), x)
    x = torch.where(draw.chosen(0.3), x * _lights(x, draw, ranges.lighting), x)
    contrast = draw.uniform(-math.log(ranges.contrast), math.log(ranges.contrast)).exp()
    brightness = draw.uniform(-ranges.brightness, ranges.brightness)
    x = torch.where(draw.chosen(0.8), (x - 0.5) * contrast + 0.5 + brightness, x)
    gamma = draw.uniform(-math.log(ranges.gamma), math.log(ranges.gamma)).exp()
    x = torch.where(draw.chosen(0.4), x.clamp(0, 1) ** gamma, x)
    which = draw.uniform(0, 1)
    gaussian, motion = _gaussians(draw, ranges.blur), motions(draw, 4 * ranges.blur)
    x = torch.where(which < 0.3, convolve(x, gaussian), x)
    x = torch.where((which > 0.3) & (which < 0.37), convolve(x, motion), x)
    noise = torch.randn(x.shape, generator=generator, device=x.device)
    x = torch.where(draw.chosen(0.5), x + noise * draw.uniform(0, ranges.noise), x)
    x = x.clamp(0, 1)
    return torch.where(draw.chosen(0.3), _jpeg(x, draw.uniform(ranges.jpeg_quality, _BEST_QUALITY)), x)


class Draws:
    """Random numbers (b, 1, 1, 1), one for each view."""

    def __init__(self, number: int, generator: Generator) -> None:
        self.number, self.generator, self.device = number, generator, generator.device

    def uniform(self, low: float, high: float) -> Tensor:
        """Uniform in `low` to `high`."""
        return torch.rand(self.number, 1, 1, 1, generator=self.generator, device=self.device) * (high - low) + low

    def chosen(self, share: float) -> Tensor:
        """True for about this share of the views."""
        return self.uniform(0, 1) < share


def _shadows(x: Tensor, draw: Draws, strength: float) -> Tensor:
    """(b, 1, h, w) factors: darker on one side of a line, with a sharp or a soft edge."""
    height, width = x.shape[2:]
    angle, edge = draw.uniform(0, 2 * math.pi), draw.uniform(math.log(2), math.log(width)).exp()
    rows = torch.arange(height, device=x.device)[:, None] - draw.uniform(0, height)
    columns = torch.arange(width, device=x.device) - draw.uniform(0, width)
    return 1 - draw.uniform(0, strength) * torch.sigmoid(4 * (rows * angle.sin() + columns * angle.cos()) / edge)


def _lights(x: Tensor, draw: Draws, deviation: float) -> Tensor:
    """(b, 1, h, w) factors that vary slowly."""
    coarse = torch.randn(len(x), 1, 4, 5, generator=draw.generator, device=x.device) * deviation
    return F.interpolate(coarse, x.shape[2:], mode="bicubic", align_corners=True).exp()


def _gaussians(draw: Draws, largest: float) -> Tensor:
    """(b, 1, k, k) kernels of sum 1."""
    reach = math.ceil(3 * largest)
    along = (torch.arange(-reach, reach + 1, device=draw.device) / draw.uniform(0.3, largest)) ** 2  # b 1 1 k
    kernels = (-0.5 * (along + along.mT)).exp()
    return kernels / kernels.sum(dim=(2, 3), keepdim=True)


def motions(draw: Draws, longest: float) -> Tensor:
    """(b, 1, k, k) kernels of sum 1 that average along short lines."""
    length, angle = draw.uniform(2, max(2.0, longest)), draw.uniform(0, math.pi)
    reach = math.ceil(max(2.0, longest) / 2)
    steps = torch.arange(-reach, reach + 1, device=draw.device)
    rows, columns = steps[:, None], steps
    along, across = columns * angle.cos() + rows * angle.sin(), rows * angle.cos() - columns * angle.sin()
    kernels = (1 - across.abs()).clamp(min=0) * (length / 2 + 0.5 - along.abs()).clamp(0, 1)
    return kernels / kernels.sum(dim=(2, 3), keepdim=True)


def convolve(x: Tensor, kernels: Tensor) -> Tensor:
    """Convolves each view (b, 1, h, w) with its own kernel (b, 1, k, k)."""
    padded = F.pad(x, (kernels.shape[-1] // 2,) * 4, mode="replicate")
    return F.conv2d(padded.transpose(0, 1), kernels, groups=len(x)).transpose(0, 1)


def _jpeg(x: Tensor, quality: Tensor) -> Tensor:
    """Grey views (b, 1, h, w) after baseline JPEG of these qualities (b, 1, 1, 1). Quality 50 uses the standard's tables."""
    height, width = x.shape[2:]
    scale = torch.where(quality < 50, 50 / quality, 2 - quality / 50)
    table = torch.tensor(_LUMINANCE, device=x.device).view(_BLOCK, _BLOCK)
    step = (table * scale + 0.5).floor().clamp(1, 255)  # b 1 8 8
    cosines = _cosines(x.device)
    padded = F.pad(x * 255 - 128, (0, -width % _BLOCK, 0, -height % _BLOCK), mode="replicate")
    blocks = padded.unflatten(3, (-1, _BLOCK)).unflatten(2, (-1, _BLOCK)).transpose(3, 4)  # b 1 rows columns 8 8
    step = step[:, :, None, None]
    coefficients = (cosines @ blocks @ cosines.T / step).round() * step
    restored = (cosines.T @ coefficients @ cosines).transpose(3, 4).flatten(4, 5).flatten(2, 3)
    return ((restored[..., :height, :width] + 128).round() / 255).clamp(0, 1)


def _cosines(device: torch.device) -> Tensor:
    """(8, 8): the orthonormal cosine transform, one frequency per row."""
    position = torch.arange(_BLOCK, device=device)
    rows = (math.pi / _BLOCK * (position + 0.5) * position[:, None]).cos() * math.sqrt(2 / _BLOCK)
    rows[0] /= math.sqrt(2)
    return rows
