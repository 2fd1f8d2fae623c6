"""SuperPoint: self-supervised interest point detection and description (DeTone et al., arXiv:1712.07629).

Owns the network, the sampling of descriptors at keypoints, and the formats of its published weights. Training and inference share
everything here. The open weights have another descriptor head than the published network: `hypercolumns.py`.
Keypoints are (x, y) px of the network's input, centre of the top-left pixel at (0, 0).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_weights

from sfm_lightglue.networks.checkpoints import KeyPatterns, load_strictly, rename_key
from sfm_lightglue.networks.cpu import BAND_PIXELS, ONE_DNN, in_bands
from sfm_lightglue.networks.hypercolumns import DESCRIPTOR_SIZE as HEAD_DESCRIPTOR_SIZE
from sfm_lightglue.networks.hypercolumns import LEVELS, HypercolumnHead
from sfm_lightglue.networks.int8 import Int8Convolution, Int8Output, is_fast, max_pool
from sfm_lightglue.networks.winograd import ConvolutionKernels, FirstConvolution, WinogradConvolution

CELL = 8
"""Side of a cell, px: the network's output has one cell for 8 x 8 pixels."""
DESCRIPTOR_SIZE = 256
SMALL_OCTAVE = 2
"""Second octave in which keypoints are detected: the image at 1/4 of its size. Octave 0 is the image itself. Descriptors tolerate
changes of scale by 2, so both octaves together match photos at the same scale and up to 6 or 8 times apart."""
SUMMED_OCTAVES = 3
"""Octaves that a hypercolumn reads: the one of its keypoint and the next two."""
SMALL_SHARE = 0.1
"""Maximum fraction of keypoints detected in `SMALL_OCTAVE`, for weights with octaves. Other weights detect none there."""

# The 3x3 convolutions: (channels in, channels out). First a VGG-like encoder with four blocks, then the first layer of each head:
# "Pa" for the detector, "Da" for the descriptor. The published weights use the same names.
_LAYERS = {
    **{"1a": (1, 64), "1b": (64, 64), "2a": (64, 64), "2b": (64, 64)},
    **{"3a": (64, 128), "3b": (128, 128), "4a": (128, 128), "4b": (128, 128)},
    **{"Pa": (128, 256), "Da": (128, 256)},
}
_POOLED = "1b", "2b", "3b"
INT8_LAYERS = "1b", "2a", "2b", "3a", "3b"
"""The layers that may compute in 8 bits: six sevenths of the arithmetic. Each reads the result of the one before."""

_HUGGING_FACE: KeyPatterns = {
    r"^encoder\.conv_blocks\.(\d)\.conv_([ab])": lambda found: f"conv{int(found[1]) + 1}{found[2]}",
    r"keypoint_decoder\.conv_score_": "convP",
    r"descriptor_decoder\.conv_descriptor_": "convD",
}


@dataclass(frozen=True)
class SuperPointOutput:
    """Maps for b images; hc and wc are the image's height and width in whole cells."""

    scores: Float[Tensor, "b h w"]
    """Probability of a keypoint at each pixel; h = 8 hc and w = 8 wc, in smaller octaves up to 7 less."""
    descriptors: Float[Tensor, "b 256 hc wc"] | None
    """Unit length; None for a network with a descriptor head that reads `levels`."""
    logits: Float[Tensor, "b 65 hc wc"]
    """Before the softmax: the 64 pixels of a cell, row by row, then "no keypoint in this cell"."""
    levels: tuple[Float[Tensor, "b _ _ _"], ...] = ()
    """The maps of `hypercolumns.LEVELS`; empty for a network with dense descriptors."""


class SuperPoint(nn.Module):
    """The network of section 3. `pyramid` also detects keypoints in smaller copies of the image."""

    def __init__(self, *, batch_norm: bool = False, octaves: int = 1, hypercolumns: bool = False) -> None:
        """Random weights.

        Args:
            batch_norm: each 3x3 convolution is followed by batch normalisation, for training. `fold_batch_norm` turns a trained
                network into the published architecture, which has none.
            octaves: number of image sizes (1, 1/2, 1/4, ...) that a descriptor sums up. Each size goes through the same network
                and then through a linear map of its own. A descriptor then sees more of the surroundings of its keypoint: 84 px
                as published, 168 px with two octaves, 336 px with three. 1 is the published network.
            hypercolumns: the descriptors come from `HypercolumnHead` instead of the published descriptor head.
        """
        super().__init__()
        self.batch_norm = batch_norm
        self.head = HypercolumnHead() if hypercolumns else None
        self.octaves = nn.ModuleList(
            nn.Conv2d(DESCRIPTOR_SIZE, DESCRIPTOR_SIZE, 1, bias=False, dilation=ONE_DNN)
            for _ in range(octaves if octaves > 1 else 0)
        )
        for name, (channels_in, channels_out) in _LAYERS.items():
            if name == "Da" and hypercolumns:
                continue
            self.add_module(f"conv{name}", nn.Conv2d(channels_in, channels_out, 3, padding=1))
            if batch_norm:
                self.add_module(f"bn{name}", nn.BatchNorm2d(channels_out))
        self.convPb = nn.Conv2d(256, CELL**2 + 1, 1, dilation=ONE_DNN)
        if not hypercolumns:
            self.convDb = nn.Conv2d(256, DESCRIPTOR_SIZE, 1, dilation=ONE_DNN)

    @property
    def descriptor_size(self) -> int:
        """Dimension of the descriptors."""
        return HEAD_DESCRIPTOR_SIZE if self.head else DESCRIPTOR_SIZE

    def lower(
        self, dtype: torch.dtype, limits: Mapping[str, float] | None = None, kernels: ConvolutionKernels | None = None
    ) -> None:
        """Makes the 3x3 convolutions compute in `dtype`, except the first: it is fast, and should read the image exactly.

        Args:
            dtype: the type of activations and weights.
            limits: makes `INT8_LAYERS` compute in 8 bits instead, on a CPU: the largest input of each; larger ones are cut.
            kernels: compute the 3x3 convolutions on a CPU: in 8 bits those that have limits, the others in float32. On a CPU with
                tiles (AMX) and with limits they compute only the first.
        """
        results = dict(zip(INT8_LAYERS, [*(limits[name] for name in INT8_LAYERS[1:]), None], strict=True)) if limits else {}
        by_tiles = bool(limits) and kernels is not None and kernels.supports_tiles and is_fast()  # oneDNN is faster then
        for name in _LAYERS:
            convolution, limit = getattr(self, f"conv{name}", None), limits.get(name) if limits else None
            if convolution is None:
                continue
            changed: nn.Module = convolution
            if name == "1a" and kernels:
                changed = FirstConvolution(convolution, kernels, limits[INT8_LAYERS[0]] if limits else None)
            elif kernels and not by_tiles:
                pool = 2 if name in _POOLED else 1
                changed = WinogradConvolution(convolution, kernels, pool=pool, limit=limit, result=results.get(name))
            elif name == "1a" and limits:
                changed = Int8Output(convolution, limits[INT8_LAYERS[0]])
            elif limit is not None:
                changed = Int8Convolution(convolution, limit, results[name] or dtype)
            elif name != "1a":
                convolution.to(dtype)
            self.add_module(f"conv{name}", changed)
        if self.head:
            self.head.lower(dtype)

    def forward(self, grey: Float[Tensor, "b 1 h w"]) -> SuperPointOutput:
        """The maps of images with values in 0..1. Rows and columns after the last whole cell are not used."""
        return self.pyramid(grey, (0,))[0]

    def keypoint_logits(self, grey: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b 65 hc wc"]:
        """`SuperPointOutput.logits` alone."""
        return cast(Tensor, self.convPb(self._layer("Pa", self._encode(grey)[-1]).float()))

    def pyramid(self, grey: Float[Tensor, "b 1 h w"], octaves: Sequence[int]) -> list[SuperPointOutput]:
        """The maps of images in each of some octaves. Keypoints from an octave match in photos taken from further away.

        Octave o is the image at 2^-o of its size, rounded up. Smaller images repeat their last row and column up to whole cells;
        their scores are cut back to the image. The descriptors of an octave sum up this octave and the smaller ones, as many as
        the network has. `octave_to_image` converts pixels.

        Args:
            grey: values in 0..1.
            octaves: the octaves wanted, such as (0, 2).
        """
        height, width = grey.shape[2:]
        cells = height // CELL, width // CELL
        if 0 in cells:
            return [self._nothing(grey, cells)] * len(octaves)
        summed = range(SUMMED_OCTAVES if self.head else max(1, len(self.octaves)))
        encoded = {octave + i for octave in octaves for i in summed}
        blocks: dict[int, list[Tensor]] = {}
        found = {}
        for octave in range(max(encoded) + 1):
            if octave:
                grey = F.avg_pool2d(grey[:, :, :height, :width], 2, ceil_mode=True)
                height, width = grey.shape[2:]
                grey = F.pad(grey, (0, -width % CELL, 0, -height % CELL), mode="replicate")
            if octave not in encoded:
                continue
            second, features = self._encode(grey)
            if self.head:
                level = features.to(self.head.dtype)
                blocks[octave] = [second.to(self.head.dtype), level] if octave in octaves else [level]
            else:
                blocks[octave] = [features]
            if octave in octaves:
                logits = self.convPb(self._layer("Pa", features).float())
                scores = F.pixel_shuffle(logits.softmax(dim=1)[:, :-1], CELL)[:, 0]
                found[octave] = scores[:, :height, :width], logits
        if self.head:
            coarser = {octave: tuple(blocks[octave + i][-1] for i in summed) for octave in octaves}
            return [SuperPointOutput(found[o][0], None, found[o][1], (blocks[o][0], *coarser[o])) for o in octaves]
        maps = {octave: self._describe(features) for octave, (features,) in blocks.items()}
        sums = {octave: self._sum_of_octaves([maps[octave + i] for i in summed]) for octave in octaves}
        return [SuperPointOutput(found[o][0], sums[o], found[o][1]) for o in octaves]

    def describe(
        self, output: SuperPointOutput, index: int, keypoints: Float[Tensor, "n 2"], *, centred: bool = False
    ) -> Float[Tensor, "n d"]:
        """Unit-length descriptors of keypoints in image `index` of a batch, px of the octave that `output` belongs to.

        `centred` is for dense descriptors, see `sample_descriptors`.
        """
        if self.head:
            return self.head.describe([level[index] for level in output.levels], keypoints)
        assert output.descriptors is not None
        return sample_descriptors(keypoints[None], output.descriptors[index : index + 1], centred=centred)[0]

    def _nothing(self, grey: Tensor, cells: tuple[int, int]) -> SuperPointOutput:
        """The maps of images without a whole cell, which max pooling refuses."""
        empty = grey.new_zeros(len(grey), 1, *cells)
        scores = grey.new_zeros(len(grey), CELL * cells[0], CELL * cells[1])
        logits = empty.expand(-1, CELL**2 + 1, -1, -1)
        if self.head:
            return SuperPointOutput(scores, None, logits, tuple(empty.expand(-1, level.channels, -1, -1) for level in LEVELS))
        return SuperPointOutput(scores, empty.expand(-1, DESCRIPTOR_SIZE, -1, -1), logits)

    def _sum_of_octaves(self, maps: list[Tensor]) -> Float[Tensor, "b 256 hc wc"]:
        """Unit-length descriptors at the cells of the first octave, from the descriptors (b, 256, ., .) of each octave.

        A cell of an octave is as large as 2 x 2 cells of the octave before. Both grids have the same top-left corner.
        """
        if not self.octaves:
            return maps[0]
        mapped = [linear(each) for linear, each in zip(self.octaves, maps, strict=True)]
        total = mapped.pop()
        while mapped:
            finer = mapped.pop()
            larger = F.interpolate(total, scale_factor=2, mode="bilinear", align_corners=False)
            total = finer + larger[:, :, : finer.shape[2], : finer.shape[3]]
        return F.normalize(total, dim=1)

    def _encode(self, grey: Float[Tensor, "b 1 h w"]) -> tuple[Float[Tensor, "b 64 h//4 w//4"], Float[Tensor, "b 128 h//8 w//8"]]:
        """The results of the second and of the last block. The published heads read the last one."""
        results = [grey]
        whole = self.training and self.batch_norm
        pixels = BAND_PIXELS * (2 if isinstance(self.conv1b, WinogradConvolution) else 1)  # rows of two bands overlap
        for block in "123":
            results.append(in_bands(partial(self._block, block), results[-1], halo=2, stride=2, pixels=pixels, whole=whole))
        second = results[2]
        if isinstance(self.conv3a, Int8Convolution | WinogradConvolution):
            second = self.conv3a.values(second, self.head.dtype if self.head else results[3].dtype)
        return second, self._layer("4b", self._layer("4a", results[3]))

    def _describe(self, x: Float[Tensor, "b 128 hc wc"]) -> Float[Tensor, "b 256 hc wc"]:
        """Unit-length descriptors from the features of the encoder."""
        return F.normalize(self.convDb(self._layer("Da", x).float()), dim=1)

    def _block(self, block: str, x: Tensor) -> Tensor:
        x = self._layer(f"{block}b", self._layer(f"{block}a", x))
        return x if isinstance(self.get_submodule(f"conv{block}b"), WinogradConvolution) else max_pool(x)

    def _layer(self, name: str, x: Tensor) -> Tensor:
        convolution = self.get_submodule(f"conv{name}")
        if not isinstance(convolution, nn.Conv2d):
            return cast(Tensor, convolution(x))
        if not self.training:  # in training autocast chooses the precision
            x = x.to(convolution.weight.dtype)
        x = convolution(x)
        if self.batch_norm:
            x = self.get_submodule(f"bn{name}")(x)
        return F.relu(x, inplace=True)


def octave_to_image(keypoints: Float[Tensor, "*n 2"], octave: int) -> Float[Tensor, "*n 2"]:
    """Keypoints in px of the image, from keypoints in px of an octave of `SuperPoint.pyramid`."""
    return (keypoints + 0.5) * 2**octave - 0.5 if octave else keypoints


def sample_descriptors(
    keypoints: Float[Tensor, "b n 2"], dense: Float[Tensor, "b d hc wc"], cell: int = CELL, *, centred: bool = False
) -> Float[Tensor, "b n d"]:
    """Unit-length descriptors, interpolated bilinearly at the keypoints.

    Args:
        keypoints: (x, y) px of the image.
        dense: one descriptor for each cell.
        cell: side of a cell, px.
        centred: the cells lie where they are, the first at pixel 3.5 and the last at pixel 8 wc - 4.5. Weights trained here need
            this. If False, the grid is stretched as in the published code: pixel 8 wc - 1 reads the last cell, up to 3.5 px off
            at the right and lower edge. The published weights need that: LightGlue's repository, which trained the published
            LightGlue weights, and transformers read the grid in the same way.
    """
    height, width = dense.shape[-2:]
    size = keypoints.new_tensor([width, height]) * cell
    grid = (2 * keypoints + 1) / size - 1 if centred else 2 * (keypoints - cell / 2 + 0.5) / (size - cell / 2 - 0.5) - 1  # b n 2
    sampled = F.grid_sample(dense, grid[:, None].to(dense.dtype), mode="bilinear", align_corners=not centred)[:, :, 0]  # b d n
    return F.normalize(sampled, dim=1).transpose(1, 2)


def load_superpoint(state: Mapping[str, Tensor]) -> SuperPoint:
    """The network in evaluation mode, with published weights or weights with octaves in a format of `convert_state_dict`.

    Raises: ValueError if keys are missing or unexpected; the text names them.
    """
    converted = convert_state_dict(state)
    octaves = max(1, sum(key.startswith("octaves.") for key in converted))
    network = SuperPoint(octaves=octaves, hypercolumns=any(key.startswith("head.") for key in converted))
    load_strictly(network, converted)
    return network.eval()


def convert_state_dict(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights under the names of this network, from the names of Hugging Face. The original checkpoint has our names."""
    return {rename_key(key, _HUGGING_FACE): value for key, value in state.items()}


def with_octaves(network: SuperPoint, octaves: int) -> SuperPoint:
    """A copy of the network, without batch normalisation, with this number of octaves.

    If the network has another number of octaves, all octaves of the copy get the same weight, and their linear maps are lost.

    Raises: ValueError if the descriptors of the network come from hypercolumns.
    """
    if network.head:
        raise ValueError(
            "the descriptors of these weights come from hypercolumns, and this training is for the published descriptor head: "
            "give training=superpoint_light, or other weights as training.start"
        )
    changed = SuperPoint(octaves=octaves)
    state = {key: value for key, value in network.state_dict().items() if not key.startswith("octaves.")}
    state |= {key: torch.eye(DESCRIPTOR_SIZE)[:, :, None, None] for key in changed.state_dict() if key.startswith("octaves.")}
    if len(changed.octaves) == len(network.octaves):
        state = network.state_dict()
    load_strictly(changed, state)
    return changed.train(network.training)


def with_hypercolumns(network: SuperPoint) -> SuperPoint:
    """A copy of the network, without batch normalisation, with a descriptor head for hypercolumns.

    If the network has none, the head has random weights, and the network's own descriptor layers are lost.
    """
    changed = SuperPoint(hypercolumns=True)
    own = network.state_dict()
    load_strictly(changed, {key: own.get(key, value) for key, value in changed.state_dict().items()})
    return changed.train(network.training)


@torch.no_grad()
def fold_batch_norm(network: SuperPoint) -> SuperPoint:
    """A network without batch normalisation that computes what `network` computes in evaluation mode. Its weights are saved.

    Raises: ValueError if the network has no batch normalisation.
    """
    if not network.batch_norm:
        raise ValueError("this SuperPoint has no batch normalisation to fold: it is already in the published form")
    folded = SuperPoint()
    state = {key: value for key, value in network.state_dict().items() if key in folded.state_dict()}
    for name in _LAYERS:
        conv = cast(nn.Conv2d, network.get_submodule(f"conv{name}"))
        norm = cast(nn.BatchNorm2d, network.get_submodule(f"bn{name}"))
        mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
        weight, bias = fuse_conv_bn_weights(conv.weight, conv.bias, mean, variance, norm.eps, norm.weight, norm.bias)
        state |= {f"conv{name}.weight": weight, f"conv{name}.bias": bias}
    load_strictly(folded, state)
    return folded.eval()


@torch.no_grad()
def unfold_batch_norm(network: SuperPoint, grey: Float[Tensor, "b 1 h w"]) -> SuperPoint:
    """The inverse of `fold_batch_norm`: a network with batch normalisation that computes the same, to continue its training.

    The means and variances are measured on the images `grey`, which should be like the training images.
    """
    unfolded = SuperPoint(batch_norm=True)
    unfolded.load_state_dict(network.state_dict(), strict=False)
    hooks = []
    for name in _LAYERS:
        norm = cast(nn.BatchNorm2d, unfolded.get_submodule(f"bn{name}"))
        hooks.append(unfolded.get_submodule(f"conv{name}").register_forward_hook(partial(_normalise_to_itself, norm)))
    unfolded.train()(grey)  # evaluation mode would compute the images in bands
    for hook in hooks:
        hook.remove()
    return unfolded


def _normalise_to_itself(norm: nn.BatchNorm2d, convolution: nn.Module, inputs: Any, output: Tensor) -> None:
    """Makes `norm` leave a convolution's output as it is."""
    variance, mean = torch.var_mean(output, dim=(0, 2, 3), correction=0)
    cast(Tensor, norm.running_mean).copy_(mean)
    cast(Tensor, norm.running_var).copy_(variance)
    norm.bias.copy_(mean)
    norm.weight.copy_((variance + norm.eps).sqrt())
