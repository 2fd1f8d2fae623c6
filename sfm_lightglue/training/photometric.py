"""Random changes of how a photo looks: exposure, contrast, gamma, shadows, blur, noise, JPEG."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image as PILImage
from torch import Tensor


@dataclass(frozen=True)
class PhotometricRange:
    """What is drawn from; the values stand in configs/training. All act on grey values in 0..1."""

    contrast: float
    """The contrast is multiplied by at most this or divided by it."""
    brightness: float
    """Added or taken away at most."""
    gamma: float
    """The largest exponent; its inverse is the smallest."""
    shadow: float
    """How much darker the dark side of a shadow's edge is at most, 0..1."""
    blur: float
    """Largest standard deviation of Gaussian blur, px; motion blurs over at most four times that."""
    noise: float
    """Largest standard deviation."""
    jpeg_quality: int
    """The lowest."""


def change_photo(view: Tensor, rng: np.random.Generator, ranges: PhotometricRange) -> Tensor:
    """A changed copy of a grey view (h, w) in 0..1. Each kind of change befalls a part of the views only."""
    x = view
    if rng.random() < 0.3:
        x = _shadow(x, rng, ranges.shadow)
    if rng.random() < 0.8:
        contrast = math.exp(rng.uniform(-1, 1) * math.log(ranges.contrast))
        x = (x - 0.5) * contrast + 0.5 + rng.uniform(-ranges.brightness, ranges.brightness)
    if rng.random() < 0.4:
        x = x.clamp(0, 1) ** math.exp(rng.uniform(-1, 1) * math.log(ranges.gamma))
    if rng.random() < 0.3:
        x = _gaussian_blur(x, rng.uniform(0.3, ranges.blur))
    elif rng.random() < 0.1:
        x = _motion_blur(x, rng, 4 * ranges.blur)
    if rng.random() < 0.5:
        noise = rng.standard_normal(tuple(x.shape), np.float32)
        x = x + torch.from_numpy(noise) * rng.uniform(0, ranges.noise)
    x = x.clamp(0, 1)
    return _jpeg(x, int(rng.integers(ranges.jpeg_quality, 96))) if rng.random() < 0.3 else x


def _shadow(x: Tensor, rng: np.random.Generator, strength: float) -> Tensor:
    """Darker on one side of a line, sharply or over a long way."""
    height, width = x.shape
    angle, width_of_edge = rng.uniform(0, 2 * np.pi), math.exp(rng.uniform(math.log(2), math.log(width)))
    rows, columns = torch.arange(height) - rng.uniform(0, height), torch.arange(width) - rng.uniform(0, width)
    distance = rows[:, None] * math.sin(angle) + columns[None] * math.cos(angle)
    return x * (1 - rng.uniform(0, strength) * torch.sigmoid(4 * distance / width_of_edge)).to(x.dtype)


def _gaussian_blur(x: Tensor, sigma: float) -> Tensor:
    reach = math.ceil(3 * sigma)
    weights = (-0.5 * (torch.arange(-reach, reach + 1.0) / sigma) ** 2).exp()
    weights /= weights.sum()
    padded = F.pad(x[None, None], (reach,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, weights.view(1, 1, 1, -1)), weights.view(1, 1, -1, 1))[0, 0]


def _motion_blur(x: Tensor, rng: np.random.Generator, longest: float) -> Tensor:
    """The mean along a short line."""
    length, angle = rng.uniform(2, max(2.0, longest)), rng.uniform(0, np.pi)
    reach = math.ceil(length / 2)
    side = 2 * reach + 1
    along = np.linspace(-length / 2, length / 2, 4 * side)
    kernel = np.zeros((side, side), np.float32)
    rows, columns = np.rint(reach + along * np.sin(angle)).astype(int), np.rint(reach + along * np.cos(angle)).astype(int)
    np.add.at(kernel, (rows, columns), np.float32(1 / len(along)))
    return F.conv2d(F.pad(x[None, None], (reach,) * 4, mode="replicate"), torch.from_numpy(kernel)[None, None])[0, 0]


def _jpeg(x: Tensor, quality: int) -> Tensor:
    buffer = io.BytesIO()
    PILImage.fromarray((x * 255).round().byte().numpy()).save(buffer, "JPEG", quality=quality)
    return torch.from_numpy(np.array(PILImage.open(buffer))).float() / 255
