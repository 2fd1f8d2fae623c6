"""Aligns small patches of two photos with sub-pixel precision.

A patch is a square window of a photo around a keypoint. The window in photo 1 is an affine image of the window in photo 0. The
inverse compositional algorithm finds the affine map for which both have the highest correlation; brightness and contrast may
differ. Coordinates are px of the tiles, counted from the centre of a tile.

Sources: Baker and Matthews, Lucas-Kanade 20 Years On (IJCV 2004), section 3.2; Evangelidis and Psarakis, Parametric Image
Alignment Using Enhanced Correlation Coefficient Maximization (PAMI 2008).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor
from torch.nn import functional

from sfm_lightglue.refinement.tiles import HALF_TILE as HALF_TILE

HALF_WINDOW = 8
"""The window has this many px on each side of its middle."""
NUM_STEPS = 5
"""Steps of the algorithm. Ten move the points no closer to the truth."""
WINDOW_SIGMA = 0.6
"""Standard deviation of the window's weights / HALF_WINDOW."""
MAX_STEP = 0.3
"""Largest change of an entry of the affine matrix in a step."""
BATCH = 256
"""Patches that are aligned together: arrays of 0.3 MB stay in the cache."""


@dataclass(frozen=True)
class Alignment:
    """Where the windows of n pairs of patches agree."""

    positions: Float32[np.ndarray, "n 2"]
    """The point of tile 1 that shows the middle of the window in tile 0."""
    correlations: Float32[np.ndarray, " n"]
    """Normalised correlation of the two windows, -1..1; -1 if the window reaches beyond its tile."""


@torch.inference_mode()
def align(
    tiles0: UInt8[np.ndarray, "n t t"],
    tiles1: UInt8[np.ndarray, "n t t"],
    positions0: Float[np.ndarray, "n 2"],
    positions1: Float[np.ndarray, "n 2"],
    affine: Float[np.ndarray, "n 2 2"],
) -> Alignment:
    """Aligns the windows of n pairs of tiles. Equal input gives equal bits, with any number of threads.

    Args:
        tiles0: tiles with the templates.
        tiles1: tiles in which they are looked for.
        positions0: middle of each window in tile 0.
        positions1: where the search begins in tile 1.
        affine: derivative of the position in tile 1 after the position in tile 0, where the search begins.
    """
    parts = [
        _align(*(torch.from_numpy(values[start : start + BATCH]) for values in (tiles0, tiles1, positions0, positions1, affine)))
        for start in range(0, len(tiles0), BATCH)
    ]
    if not parts:
        return Alignment(np.zeros((0, 2), np.float32), np.zeros(0, np.float32))
    return Alignment(*(torch.cat(values).numpy() for values in zip(*parts, strict=True)))


def _align(
    tiles0: Tensor, tiles1: Tensor, positions0: Tensor, positions1: Tensor, affine: Tensor
) -> tuple[Float[Tensor, "n 2"], Float[Tensor, " n"]]:
    weights = _weights()
    matrix, position = affine.float(), positions1.float()
    pixels0, pixels1 = (tiles[:, None].float() for tiles in (tiles0, tiles1))
    template, slopes = _template(pixels0, positions0.float(), weights)
    weighted = slopes * weights
    normal = weighted @ slopes.mT
    damping = 1e-6 * normal.diagonal(dim1=1, dim2=2).amax(-1)[:, None, None] + 1e-12
    inverse = torch.linalg.inv(normal + damping * torch.eye(6))
    for _ in range(NUM_STEPS):
        difference = _normalised(_sample(pixels1, _places(position, matrix)), weights)[0] - template
        step = (inverse @ (weighted @ difference[..., None]))[..., 0]
        change = step[:, 2:].reshape(-1, 2, 2).clamp(-MAX_STEP, MAX_STEP)
        matrix = matrix @ _inverse(torch.eye(2) + change)
        position = position - (matrix @ step[:, :2, None])[..., 0].clamp(-HALF_TILE, HALF_TILE)
    places = _places(position, matrix)
    final = _normalised(_sample(pixels1, places), weights)[0]
    correlation = (final * template * weights).sum(-1)
    inside = (places.abs().amax(dim=(1, 2)) <= HALF_TILE) & torch.isfinite(correlation)
    return position, torch.where(inside, correlation, -torch.ones(()))


def _template(pixels: Tensor, positions: Tensor, weights: Tensor) -> tuple[Float[Tensor, "n p"], Float[Tensor, "n 6 p"]]:
    """The normalised window of each tile, and its derivatives after a move and an affine change of the window."""
    side = 2 * HALF_WINDOW + 3
    matrix = torch.eye(2).expand(len(positions), 2, 2)
    around = _sample(pixels, _places(positions, matrix, HALF_WINDOW + 1)).reshape(-1, side, side)
    slope_x = (around[:, 1:-1, 2:] - around[:, 1:-1, :-2]).flatten(1) / 2
    slope_y = (around[:, 2:, 1:-1] - around[:, :-2, 1:-1]).flatten(1) / 2
    template, contrast = _normalised(around[:, 1:-1, 1:-1].flatten(1), weights)
    x, y = _window().T
    slopes = torch.stack([slope_x, slope_y, slope_x * x, slope_x * y, slope_y * x, slope_y * y], dim=1) / contrast[:, None]
    slopes = slopes - (slopes * weights).sum(-1, keepdim=True)  # without what brightness and contrast explain
    return template, slopes - (slopes * template[:, None] * weights).sum(-1, keepdim=True) * template[:, None]


def _normalised(values: Float[Tensor, "n p"], weights: Float[Tensor, " p"]) -> tuple[Float[Tensor, "n p"], Float[Tensor, "n 1"]]:
    """The values with mean 0 and variance 1, and their standard deviation before, at least half a grey level."""
    centred = values - (values * weights).sum(-1, keepdim=True)
    contrast = (centred.square() * weights).sum(-1, keepdim=True).sqrt().clamp(min=0.5)
    return centred / contrast, contrast


def _places(position: Float[Tensor, "n 2"], matrix: Float[Tensor, "n 2 2"], half: int = HALF_WINDOW) -> Float[Tensor, "n p 2"]:
    """Where the px of the window lie in the tile: one product of all maps with (x, y, 1) of the window."""
    window = functional.pad(_window(half), (0, 1), value=1.0)
    maps = torch.cat([matrix, position[:, :, None]], dim=2)
    places: Tensor = (maps.flatten(0, 1) @ window.T).unflatten(0, (-1, 2)).mT
    return places


def _sample(pixels: Float[Tensor, "n 1 t t"], places: Float[Tensor, "n p 2"]) -> Float[Tensor, "n p"]:
    """The pixels at some places, interpolated bilinearly."""
    return functional.grid_sample(pixels, places[:, None] / HALF_TILE, padding_mode="border", align_corners=True)[:, 0, 0]


def _window(half: int = HALF_WINDOW) -> Float[Tensor, "p 2"]:
    """(x, y) of the px of a window."""
    line = torch.arange(-half, half + 1, dtype=torch.float32)
    y, x = torch.meshgrid(line, line, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], dim=1)


def _weights() -> Float[Tensor, " p"]:
    """The weight of each px of a window; their sum is 1."""
    weights = torch.exp(-_window().square().sum(-1) / (2 * (WINDOW_SIGMA * HALF_WINDOW) ** 2))
    return weights / weights.sum()


def _inverse(matrix: Float[Tensor, "n 2 2"]) -> Float[Tensor, "n 2 2"]:
    (a, b), (c, d) = (row.unbind(-1) for row in matrix.unbind(-2))
    return torch.stack([d, -b, -c, a], dim=-1).reshape(-1, 2, 2) / (a * d - b * c)[:, None, None]
