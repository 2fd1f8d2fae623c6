"""Descriptors from hypercolumns: what several layers of a network say about the place of a keypoint, and a small network on top.

Hypercolumns: Hariharan et al., arXiv:1411.5752. Here they are sampled at keypoints alone and in a neighbourhood, so the small
network sees fine and coarse structures around a keypoint at once.

Keypoints are (x, y) px, centre of the top-left pixel at (0, 0).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from sfm_lightglue.networks.sampling import corners, weighted_rows

DESCRIPTOR_SIZE = 128
WIDTHS = 512, 384
"""Sizes of the two hidden layers."""
CHUNK_KEYPOINTS = 512
"""Keypoints described together on a CPU: their hypercolumns stay in its caches."""


@dataclass(frozen=True)
class Level:
    """A map of activations that hypercolumns sample."""

    channels: int
    cell: int
    """Side of a cell of the map, px of the image."""
    reach: int
    """Samples lie at the keypoint and up to this number of cells beside it, along x and along y."""

    @property
    def offsets(self) -> Tensor:
        """float32 (m, 2): (x, y) of the samples around the keypoint in cells, row by row."""
        steps = torch.arange(-self.reach, self.reach + 1.0)
        return torch.cartesian_prod(steps, steps).flip(1)

    @property
    def size(self) -> int:
        """Numbers that the level adds to a hypercolumn."""
        return self.channels * (2 * self.reach + 1) ** 2


LEVELS = (
    Level(64, 4, 1),  # after the second block
    Level(128, 8, 1),  # the encoder's result
    Level(128, 16, 1),  # the same of the image at half size
    Level(128, 32, 1),  # and at a quarter
)
"""The maps that SuperPoint's hypercolumns sample."""


class HypercolumnHead(nn.Module):
    """Unit-length descriptors from hypercolumns: three linear layers."""

    def __init__(self) -> None:
        """Random weights."""
        super().__init__()
        size = sum(level.size for level in LEVELS)
        first, second = WIDTHS
        self.mean: Tensor
        self.scale: Tensor
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))
        self.layers = nn.Sequential(
            *(nn.Linear(size, first), nn.GELU(), nn.LayerNorm(first)),
            *(nn.Linear(first, second), nn.GELU(), nn.Linear(second, DESCRIPTOR_SIZE)),
        )

    @torch.no_grad()
    def lower(self, dtype: torch.dtype) -> None:
        """Makes the layers compute in `dtype`. If that is not float32, the first one standardises the hypercolumns too."""
        if dtype != torch.float32:
            first = cast(nn.Linear, self.layers[0])
            first.weight.mul_(self.scale)
            first.bias.sub_(first.weight @ self.mean)
            self.mean, self.scale = torch.zeros_like(self.mean), torch.ones_like(self.scale)
        self.layers.to(dtype)

    @property
    def dtype(self) -> torch.dtype:
        """In which the layers compute."""
        return cast(nn.Linear, self.layers[0]).weight.dtype

    def forward(self, columns: Float[Tensor, "*n c"]) -> Float[Tensor, "*n 128"]:
        """The descriptors of hypercolumns."""
        is_exact = self.training or self.dtype == torch.float32  # in training autocast chooses the precision
        x = (columns.float() - self.mean) * self.scale if is_exact else columns.to(self.dtype)
        return F.normalize(self.layers(x).float(), dim=-1)

    def describe(self, levels: Sequence[Float[Tensor, "_ _ _"]], keypoints: Float[Tensor, "n 2"]) -> Float[Tensor, "n 128"]:
        """The descriptors of keypoints from the maps of one image, which belong to `LEVELS`."""
        chunk = CHUNK_KEYPOINTS if keypoints.is_cpu else len(keypoints)
        parts = [self(hypercolumns(levels, some)) for some in keypoints.split(chunk)] if len(keypoints) else []
        return torch.cat([keypoints.new_empty(0, DESCRIPTOR_SIZE), *parts])


def hypercolumns(levels: Sequence[Float[Tensor, "_ _ _"]], keypoints: Float[Tensor, "n 2"]) -> Float[Tensor, "n d"]:
    """The hypercolumns of keypoints from the maps of one image: bilinear samples, 0 outside a map.

    Level by level, and in a level sample by sample, of the type of the maps. Fastest if the channels of a map lie side by side in
    memory.
    """
    parts = []
    for level, maps in zip(LEVELS, levels, strict=True):
        height, width = maps.shape[1:]
        positions = ((keypoints + 0.5) / level.cell - 0.5)[:, None] + level.offsets.to(keypoints)
        rows, weights = corners(positions, (width, height))  # n m 4
        table = maps.permute(1, 2, 0).reshape(height * width, -1)
        parts.append(weighted_rows(table, rows, weights.to(table.dtype)).view(len(keypoints), -1))
    return torch.cat(parts, dim=1)
