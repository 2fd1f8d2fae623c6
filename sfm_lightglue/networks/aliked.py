"""ALIKED: keypoints and descriptors by deformable convolutions and deformable descriptors (Zhao et al., arXiv:2304.03608).

Owns the network and its loading. The published architecture joins four feature levels to one map of 128 channels for every pixel
of the image. The scores come from this map, and the descriptors from the normalised map. This code never builds the map:

- The score head begins with a linear layer, which commutes with the linear upsampling of the levels. So 8 channels are upsampled
  instead of 128.
- A descriptor reads some 70 pixels around its keypoint. Only there are the levels interpolated, joined and normalised.

Keypoints are (x, y) px of the network's input, centre of the top-left pixel at (0, 0).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int64, Integer
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from sfm_lightglue.networks.checkpoints import load_strictly
from sfm_lightglue.networks.cpu import ONE_DNN, in_bands
from sfm_lightglue.networks.sampling import corners, weighted_rows

MULTIPLE = 32
"""The sides of the network's input are multiples of this, px: the size of a pixel of the last level."""
CHUNK_KEYPOINTS = 256
"""Number of keypoints described together. Their samples stay in the caches, and memory does not grow with the keypoints."""


@dataclass(frozen=True)
class Variant:
    """The differences between the published networks."""

    channels: tuple[int, int, int, int]
    """Output channels of the four blocks, at 1, 1/2, 1/8 and 1/32 of the image's size."""
    descriptor_size: int
    num_samples: int
    """Number of positions that a descriptor samples."""


VARIANTS = {
    "t16": Variant((8, 16, 32, 64), 64, 16),
    "n16": Variant((16, 32, 64, 128), 128, 16),
    "n16rot": Variant((16, 32, 64, 128), 128, 16),
    "n32": Variant((16, 32, 64, 128), 128, 32),
}


@dataclass(frozen=True)
class AlikedOutput:
    """The maps of b images, before any keypoint is known."""

    scores: Float32[Tensor, "b h w"]
    """In 0..1."""
    levels: tuple[Tensor, ...]
    """Four feature maps (b, hl, wl, c) of the padded images. The first one is the input of its 1x1 convolution."""
    origin: tuple[int, int]
    """Position (x, y) of the image's first pixel in the padded image."""


class DeformableConv(nn.Module):
    """A 3x3 convolution. At each pixel, another convolution predicts offsets for its nine taps."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.offset_conv = nn.Conv2d(channels_in, 18, 3, padding=1)  # (y, x) of each tap
        self.regular_conv = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)

    def forward(self, x: Float32[Tensor, "b c h w"]) -> Float32[Tensor, "b d h w"]:
        """The convolved map."""
        batch, channels, height, width = x.shape
        reach = max(height, width) / 4
        offsets = self.offset_conv(x).clamp(-reach, reach)
        offsets = offsets.permute(0, 2, 3, 1).reshape(batch, height, width, 9, 2).flip(-1)  # b h w k xy
        step = torch.arange(-1, 2, device=x.device)
        taps = torch.cartesian_prod(step, step).flip(1)
        pixels = torch.cartesian_prod(torch.arange(height, device=x.device), torch.arange(width, device=x.device)).flip(1)
        positions = offsets + (pixels[:, None] + taps).reshape(height, width, 9, 2)
        rows, weights = corners(positions, (width, height))  # b h w k 4
        rows += height * width * torch.arange(batch, dtype=torch.int32, device=x.device).reshape(-1, 1, 1, 1, 1)
        sampled = weighted_rows(x.permute(0, 2, 3, 1).reshape(-1, channels), rows, weights)  # b*h*w*k c
        kernel = self.regular_conv.weight.permute(0, 2, 3, 1).flatten(1)
        result = F.linear(sampled.reshape(-1, 9 * channels), kernel, self.regular_conv.bias)
        return result.reshape(batch, height, width, -1).permute(0, 3, 1, 2)


class Block(nn.Module):
    """Two 3x3 convolutions with batch normalisation and SELU. All blocks but the first have a residual connection."""

    def __init__(self, channels_in: int, channels_out: int, *, deformable: bool = False, residual: bool = True) -> None:
        super().__init__()
        convolution = DeformableConv if deformable else partial(nn.Conv2d, kernel_size=3, padding=1, bias=False)
        self.conv1: nn.Module = convolution(channels_in, channels_out)
        self.bn1: nn.Module = nn.BatchNorm2d(channels_out)
        self.conv2: nn.Module = convolution(channels_out, channels_out)
        self.bn2: nn.Module = nn.BatchNorm2d(channels_out)
        self.downsample = nn.Conv2d(channels_in, channels_out, 1, dilation=ONE_DNN) if residual else None

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        """The features of this level."""
        inner = selu(self.bn1(self.conv1(x)))
        inner = self.bn2(self.conv2(inner))
        if self.downsample is not None:
            inner += self.downsample(x)
        return selu(inner)


class DescriptorHead(nn.Module):
    """Descriptors from features at positions around the keypoints that the network predicts (section III-D)."""

    def __init__(self, size: int, num_samples: int) -> None:
        super().__init__()
        outputs = 2 * num_samples  # x of all samples, then y
        self.offset_conv = nn.Sequential(nn.Conv2d(size, outputs, 3), nn.SELU(inplace=True), nn.Conv2d(outputs, outputs, 1))
        self.sf_conv = nn.Conv2d(size, size, 1, bias=False)
        self.agg_weights = nn.Parameter(torch.rand(num_samples, size, size))

    def offsets(self, patches: Float32[Tensor, "n 9 d"]) -> Float32[Tensor, "n m 2"]:
        """Sample positions (x, y) relative to the keypoints, px, from the features of 3x3 pixels around them, row by row."""
        first, _, last = (cast(nn.Conv2d, layer) for layer in self.offset_conv)
        inner = selu(F.linear(patches.flatten(1), first.weight.permute(0, 2, 3, 1).flatten(1), first.bias))
        return F.linear(inner, last.weight.flatten(1), last.bias).unflatten(1, (2, -1)).transpose(1, 2)

    def forward(self, samples: Float32[Tensor, "n m d"]) -> Float32[Tensor, "n d"]:
        """Unit-length descriptors from the features at the sampled positions."""
        samples = selu(F.linear(samples, self.sf_conv.weight.flatten(1)))
        return F.normalize(samples.flatten(1) @ self.agg_weights.flatten(0, 1), dim=1)


class ALIKED(nn.Module):
    """The network of section III. Its layers have the names of the published weights."""

    def __init__(self, variant: str) -> None:
        super().__init__()
        self.variant = VARIANTS[variant]
        (c1, c2, c3, c4), size = self.variant.channels, self.variant.descriptor_size
        self.block1 = Block(3, c1, residual=False)
        self.block2 = Block(c1, c2)
        self.block3 = Block(c2, c3, deformable=True)
        self.block4 = Block(c3, c4, deformable=True)
        self.conv1, self.conv2, self.conv3, self.conv4 = (
            nn.Conv2d(channels, size // 4, 1, bias=False, dilation=ONE_DNN) for channels in self.variant.channels
        )
        self.score_head = score_head(size)
        self.desc_head = DescriptorHead(size, self.variant.num_samples)

    def lower(self, dtype: torch.dtype) -> None:
        """Makes the layers of full and half size compute in `dtype`. Positions of taps and samples, and scores, stay float32."""
        for module in (self.block1, self.block2, self.conv1, self.conv2):
            module.to(dtype)

    def forward(self, images: Float32[Tensor, "b 3 h w"]) -> AlikedOutput:
        """The scores and levels of RGB images with values in 0..1."""
        height, width = images.shape[2:]
        padded, (left, top) = pad_to_multiple(images)
        dtype = self.conv1.weight.dtype
        x1, x2, x3, x4 = four_levels(self, padded.to(dtype, memory_format=torch.channels_last))
        y2, y3, y4 = (selu(conv(x)).float() for conv, x in ((self.conv2, x2), (self.conv3, x3), (self.conv4, x4)))
        mixed = mix_levels(cast(nn.Conv2d, self.score_head[0]), self.conv1, x1, (y2, y3, y4))
        scores = self.score_head[1:](mixed).sigmoid()[:, 0, top : top + height, left : left + width]
        return AlikedOutput(scores, tuple(x.permute(0, 2, 3, 1) for x in (x1, y2, y3, y4)), (left, top))

    def describe(self, output: AlikedOutput, index: int, keypoints: Float32[Tensor, "n 2"]) -> Float32[Tensor, "n d"]:
        """Unit-length descriptors of the keypoints in image `index` of the batch."""
        levels = [level[index] for level in output.levels]
        height, width = output.scores.shape[1:]
        reach = max(height, width) / 4
        descriptors = [keypoints.new_empty(0, self.variant.descriptor_size)]
        chunk = CHUNK_KEYPOINTS * (1 if keypoints.is_cpu else 16)
        for some in keypoints.split(chunk) if len(keypoints) else ():
            patches = self._features(levels, output.origin, _patch_pixels(some, (width, height)))
            offsets = self.desc_head.offsets(F.normalize(patches, dim=2)).clamp(-reach, reach)
            samples = self._samples(levels, output.origin, some[:, None] + offsets, (width, height))
            descriptors.append(self.desc_head(samples))
        return torch.cat(descriptors)

    def _samples(
        self, levels: list[Tensor], origin: tuple[int, int], positions: Float32[Tensor, "n m 2"], size: tuple[int, int]
    ) -> Float32[Tensor, "n m d"]:
        """Normalised features, interpolated between pixels, at positions in an image of `size` (width, height)."""
        numbers, weights = corners(positions, size)  # n m 4
        pixels = torch.stack([numbers % size[0], numbers // size[0]], dim=-1)
        features = self._features(levels, origin, pixels).flatten(0, -2)
        norms = torch.linalg.vector_norm(features, dim=1).reshape(weights.shape)
        rows = torch.arange(len(features), device=features.device).reshape(weights.shape)
        samples = weighted_rows(features, rows, weights / norms.clamp(min=1e-12))  # normalised without a copy
        return samples.unflatten(0, positions.shape[:2])

    def _features(
        self, levels: list[Tensor], origin: tuple[int, int], pixels: Integer[Tensor, "*n 2"]
    ) -> Float32[Tensor, "*n d"]:
        """The four levels, joined, at pixels of the image. Not yet normalised."""
        height, width = levels[0].shape[:2]
        x, y = (pixel + first for pixel, first in zip(pixels.unbind(-1), origin, strict=True))
        own = levels[0].flatten(0, 1).index_select(0, (y * width + x).flatten())
        features = [selu(F.linear(own, self.conv1.weight.flatten(1))).float()]
        for level in levels[1:]:
            rows, columns = level.shape[:2]
            positions = torch.stack([x * ((columns - 1) / (width - 1)), y * ((rows - 1) / (height - 1))], dim=-1)
            features.append(weighted_rows(level.flatten(0, 1), *corners(positions, (columns, rows))))
        return torch.cat(features, dim=1).unflatten(0, pixels.shape[:-1])


def load_aliked(variant: str, state: Mapping[str, Tensor]) -> ALIKED:
    """The network in evaluation mode, with batch normalisation folded into the convolutions.

    Args:
        variant: a key of `VARIANTS`.
        state: the published weights of this variant.

    Raises: ValueError if keys are missing or unexpected; the text names them.
    """
    network = ALIKED(variant)
    load_strictly(network, state)
    fold_batch_norm(network.eval())
    return network


def fold_batch_norm(network: nn.Module) -> None:
    """Folds batch normalisation into the convolutions of every `Block` of a network in evaluation mode."""
    for block in list(network.modules()):
        for i in "12" if isinstance(block, Block) else "":
            conv, norm = block.get_submodule(f"conv{i}"), cast(nn.BatchNorm2d, block.get_submodule(f"bn{i}"))
            holder, key = (conv, "regular_conv") if isinstance(conv, DeformableConv) else (block, f"conv{i}")
            setattr(holder, key, fuse_conv_bn_eval(cast(nn.Conv2d, getattr(holder, key)), norm))
            setattr(block, f"bn{i}", nn.Identity())


def score_head(size: int) -> nn.Sequential:
    """The layers that make a score from the `size` channels of the joined levels."""
    return nn.Sequential(
        *(nn.Conv2d(size, 8, 1, bias=False), nn.SELU(inplace=True)),
        *(nn.Conv2d(8, 4, 3, padding=1, bias=False), nn.SELU(inplace=True)),
        *(nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.SELU(inplace=True)),
        nn.Conv2d(4, 1, 3, padding=1, bias=False),
    )


def pad_to_multiple(images: Float[Tensor, "b c h w"]) -> tuple[Float[Tensor, "b c hp wp"], tuple[int, int]]:
    """Images whose sides are multiples of `MULTIPLE`, and the position (x, y) of the first pixel in them."""
    height, width = images.shape[2:]
    across, down = -width % MULTIPLE, -height % MULTIPLE
    left, top = across // 2, down // 2
    return F.pad(images, (left, across - left, top, down - top), mode="replicate"), (left, top)


def four_levels(network: nn.Module, images: Float[Tensor, "b 3 h w"]) -> tuple[Tensor, ...]:
    """The results (b, c, hl, wl) of the blocks 1 to 4 of a network, at 1, 1/2, 1/8 and 1/32 of the size of the images."""
    block1, block2, block3, block4 = (network.get_submodule(f"block{i}") for i in "1234")
    x1 = in_bands(block1, images, halo=2, whole=network.training)
    x2 = in_bands(block2, F.avg_pool2d(x1, 2), halo=2, whole=network.training)
    x3 = block3(F.avg_pool2d(x2, 4).float())
    return x1, x2, x3, block4(F.avg_pool2d(x3, 4))


def mix_levels(
    mixer: nn.Conv2d, conv1: nn.Conv2d, x1: Float[Tensor, "b c h w"], others: Sequence[Tensor]
) -> Float32[Tensor, "b e h w"]:
    """A 1x1 convolution `mixer` of the joined levels, at full size.

    It commutes with the linear upsampling of the levels, so its few channels are upsampled instead of all.

    Args:
        mixer: the convolution; its input channels belong to the four levels, a quarter to each.
        conv1: makes the channels of the first level from x1, before SELU.
        x1: the result of the first block.
        others: the channels (b, d, hl, wl) of the other levels.
    """
    first, *weights = mixer.weight.chunk(4, dim=1)
    first = first.to(x1.dtype)
    mixed = in_bands(lambda x: F.conv2d(selu(conv1(x)), first, dilation=ONE_DNN).float(), x1)
    for y, weight in zip(others, weights, strict=True):
        mixed += F.interpolate(F.conv2d(y, weight, dilation=ONE_DNN), mixed.shape[2:], mode="bilinear", align_corners=True)
    return mixed


def selu(x: Tensor) -> Tensor:
    """SELU in place: the layer before does not use its result again."""
    return F.selu(x, inplace=True)


def _patch_pixels(keypoints: Float32[Tensor, "n 2"], size: tuple[int, int]) -> Int64[Tensor, "n 9 2"]:
    """The 3x3 pixels (x, y) around the keypoints, row by row, within an image of `size` (width, height).

    The last column and row of the image are left out, as in the published code: the weights were trained with it.
    """
    corner = torch.stack([(k.long() - 1).clamp(0, max(0, side - 4)) for k, side in zip(keypoints.T, size, strict=True)], dim=1)
    step = torch.arange(3, device=keypoints.device)
    return corner[:, None] + torch.cartesian_prod(step, step).flip(1)
