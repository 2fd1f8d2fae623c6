"""Random light and weather of grey views: night with lamps, haze, falling snow and rain, and large structures of other photos.

The changes go far beyond those of `photometric.py`, and come before them. They are computed for a whole batch at once, on its
device. Models of light: haze as in He et al. (CVPR 2009), x t + airlight (1 - t); swapped amplitudes of low frequencies as in FDA
(Yang and Soatto, arXiv:2004.05498).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from sfm_lightglue.training.photometric import Draws, convolve, motions

LAMPS = 6
"""Maximum number of lamps in a view at night."""
BRIGHTNESS = 0.08, 0.4
"""Range of the mean of a view at night: cameras expose longer."""


@dataclass(frozen=True)
class LightRange:
    """Share of the views with each change, 0..1, and its strength; configs/training holds the values."""

    night: float
    darkest: float
    """Smallest light without lamps, relative to the lamps."""
    haze: float
    thickest: float
    """Largest optical depth of haze."""
    falling: float
    """Share of the views with falling snow or rain."""
    flakes: float
    """Maximum brightness that flakes and drops add."""
    swap: float
    """Share of the views that get the amplitudes of low frequencies of another view of the batch."""
    swapped: float
    """Largest frequency that is swapped, as a share of all frequencies, up to 0.5."""
    noise: float
    """Maximum standard deviation of noise in dark pixels' units, 0..1; in half of the views at night."""


def change_light(views: Tensor, generator: Generator, ranges: LightRange) -> Tensor:
    """Changed copies of grey views (b, 1, h, w) in 0..1. `generator` is on the device of the views."""
    draw = Draws(len(views), generator)
    x = torch.where(draw.chosen(ranges.swap), _swapped(views, draw, ranges.swapped), views)
    x = torch.where(draw.chosen(ranges.haze), _hazy(x, draw, ranges.thickest), x)
    x = torch.where(draw.chosen(ranges.falling), _snowy(x, draw, ranges.flakes), x)
    x = torch.where(draw.chosen(ranges.night), _night(x, draw, ranges), x)
    return x.clamp(0, 1)


def _night(x: Tensor, draw: Draws, ranges: LightRange) -> Tensor:
    """Little light from everywhere, and lamps that light their surroundings and glow. Exposed longer, with noise."""
    ambient = draw.uniform(math.log(ranges.darkest), 0).exp()
    lit, glow = torch.zeros_like(x), torch.zeros_like(x)
    for _ in range(LAMPS):
        distance, is_lit = _distance(x, draw), draw.chosen(0.5)
        lit = lit + is_lit * draw.uniform(0.1, 1) / (1 + (distance / draw.uniform(0.05, 0.3)) ** 2)
        glow = glow + is_lit * draw.uniform(0.1, 1) / (1 + (distance / draw.uniform(0.003, 0.02)) ** 2)
    dark = x ** draw.uniform(1, 2) * (ambient + lit) + glow
    exposed = dark * draw.uniform(*BRIGHTNESS) / dark.mean(dim=(1, 2, 3), keepdim=True).clamp(min=1e-3)
    noise = torch.randn(x.shape, generator=draw.generator, device=x.device)
    return exposed + draw.chosen(0.5) * draw.uniform(0, ranges.noise) * noise


def _distance(x: Tensor, draw: Draws) -> Tensor:
    """(b, 1, h, w): the distance to a random place, as a share of the view's width."""
    height, width = x.shape[2:]
    rows = torch.arange(height, device=x.device)[:, None] - draw.uniform(0, height)
    columns = torch.arange(width, device=x.device) - draw.uniform(0, width)
    return (rows.square() + columns.square()).sqrt() / width


def _hazy(x: Tensor, draw: Draws, thickest: float) -> Tensor:
    """Haze that is thicker far away: towards one side of the view, mostly the upper one, and in clouds."""
    height, width = x.shape[2:]
    angle = math.pi / 2 + 0.5 * torch.randn(len(x), 1, 1, 1, generator=draw.generator, device=x.device)
    rows, columns = (torch.linspace(1, 0, length, device=x.device) for length in (height, width))
    far = rows[:, None] * angle.sin() + columns * angle.cos()
    clouds = torch.randn(len(x), 1, 4, 5, generator=draw.generator, device=x.device)
    clouds = F.interpolate(clouds, x.shape[2:], mode="bicubic", align_corners=True)
    depth = draw.uniform(0, thickest) * (0.3 + far.clamp(0, 1) + 0.2 * clouds).clamp(min=0)
    passing = (-depth).exp()
    return x * passing + draw.uniform(0.5, 1) * (1 - passing)


def _snowy(x: Tensor, draw: Draws, brightest: float) -> Tensor:
    """Flakes and drops: bright dots of many sizes, drawn out by their fall."""
    total = torch.zeros_like(x)
    for share in (0.002, 0.008):
        dots = torch.rand(x.shape, generator=draw.generator, device=x.device) < share * draw.uniform(0.2, 1)
        total = total + convolve(dots.float(), motions(draw, 12.0)) * draw.uniform(1, 6)
    return x + draw.uniform(0, brightest) * total.clamp(0, 1)


def _swapped(x: Tensor, draw: Draws, largest: float) -> Tensor:
    """The views with a share of the low frequencies' amplitudes of the next view of the batch."""
    spectrum = torch.fft.rfft2(x)
    phase, amplitude = spectrum.angle(), spectrum.abs()
    rows = torch.fft.fftfreq(x.shape[2], device=x.device)[:, None]
    columns = torch.fft.rfftfreq(x.shape[3], device=x.device)
    is_low = (rows.square() + columns.square()).sqrt() < draw.uniform(0, largest)
    mixed = amplitude.lerp(amplitude.roll(1, dims=0), draw.uniform(0.3, 1))
    return torch.fft.irfft2(torch.polar(torch.where(is_low, mixed, amplitude), phase), s=x.shape[2:]).clamp(0, 1)
