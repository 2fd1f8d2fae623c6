"""SuperPoint: self-supervised interest point detection and description (DeTone et al., arXiv:1712.07629).

Owns the network, the sampling of descriptors at keypoints, and the formats of its published weights. Training and inference share
everything here.
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
from sfm_lightglue.networks.cpu import ONE_DNN, in_bands

CELL = 8
"""Side of a cell, px: the network's output has one cell for 8 x 8 pixels."""
DESCRIPTOR_SIZE = 256
SMALL_OCTAVE = 2
"""Second octave in which keypoints are detected: the image at 1/4 of its size. Octave 0 is the image itself. Descriptors tolerate
changes of scale by 2, so both octaves together match photos at the same scale and up to 6 or 8 times apart."""
SMALL_SHARE = 0.1
"""Maximum fraction of keypoints detected in `SMALL_OCTAVE`, for weights with octaves. Other weights detect none there."""

# The 3x3 convolutions: (channels in, channels out). First a VGG-like encoder with four blocks, then the first layer of each head:
# "Pa" for the detector, "Da" for the descriptor. The published weights use the same names.
_LAYERS = {
    **{"1a": (1, 64), "1b": (64, 64), "2a": (64, 64), "2b": (64, 64)},
    **{"3a": (64, 128), "3b": (128, 128), "4a": (128, 128), "4b": (128, 128)},
    **{"Pa": (128, 256), "Da": (128, 256)},
}

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
    descriptors: Float[Tensor, "b 256 hc wc"]
    """Unit length."""
    logits: Float[Tensor, "b 65 hc wc"]
    """Before the softmax: the 64 pixels of a cell, row by row, then "no keypoint in this cell"."""


class SuperPoint(nn.Module):
    """The network of section 3. `pyramid` also detects keypoints in smaller copies of the image."""

    def __init__(self, *, batch_norm: bool = False, octaves: int = 1) -> None:
        """Random weights.

        Args:
            batch_norm: each 3x3 convolution is followed by batch normalisation, for training. `fold_batch_norm` turns a trained
                network into the published architecture, which has none.
            octaves: number of image sizes (1, 1/2, 1/4, ...) that a descriptor sums up. Each size goes through the same network
                and then through a linear map of its own. A descriptor then sees more of the surroundings of its keypoint: 84 px
                as published, 168 px with two octaves, 336 px with three. 1 is the published network.
        """
        super().__init__()
        self.batch_norm = batch_norm
        self.octaves = nn.ModuleList(
            nn.Conv2d(DESCRIPTOR_SIZE, DESCRIPTOR_SIZE, 1, bias=False, dilation=ONE_DNN)
            for _ in range(octaves if octaves > 1 else 0)
        )
        for name, (channels_in, channels_out) in _LAYERS.items():
            self.add_module(f"conv{name}", nn.Conv2d(channels_in, channels_out, 3, padding=1))
            if batch_norm:
                self.add_module(f"bn{name}", nn.BatchNorm2d(channels_out))
        self.convPb = nn.Conv2d(256, CELL**2 + 1, 1, dilation=ONE_DNN)
        self.convDb = nn.Conv2d(256, DESCRIPTOR_SIZE, 1, dilation=ONE_DNN)

    def lower(self, dtype: torch.dtype) -> None:
        """Makes the 3x3 convolutions compute in `dtype`, except the first: it is fast, and should read the image exactly."""
        for name, module in self.named_children():
            if name not in ("conv1a", "bn1a", "convPb", "convDb", "octaves"):
                module.to(dtype)

    def forward(self, grey: Float[Tensor, "b 1 h w"]) -> SuperPointOutput:
        """The maps of images with values in 0..1. Rows and columns after the last whole cell are not used."""
        return self.pyramid(grey, (0,))[0]

    def pyramid(self, grey: Float[Tensor, "b 1 h w"], octaves: Sequence[int]) -> list[SuperPointOutput]:
        """The maps of images in each of some octaves. Keypoints from an octave match in photos taken from further away.

        Octave o is the image at 2^-o of its size, rounded up. Smaller images repeat their last row and column up to whole cells;
        their scores are cut back to the image. The descriptors of an octave sum up this octave and the smaller ones, as many as
        the network has. `octave_to_image` converts pixels.

        Args:
            grey: values in 0..1.
            octaves: the octaves wanted, such as (0, 2).
        """
        batch, _, height, width = grey.shape
        cells = height // CELL, width // CELL
        if 0 in cells:
            empty = grey.new_zeros(batch, 1, *cells)  # max pooling refuses images without a whole cell
            logits, descriptors = empty.expand(-1, CELL**2 + 1, -1, -1), empty.expand(-1, DESCRIPTOR_SIZE, -1, -1)
            nothing = SuperPointOutput(grey.new_zeros(batch, CELL * cells[0], CELL * cells[1]), descriptors, logits)
            return [nothing] * len(octaves)
        summed = range(max(1, len(self.octaves)))
        described = {octave + i for octave in octaves for i in summed}
        found, maps = {}, {}
        for octave in range(max(described) + 1):
            if octave:
                grey = F.avg_pool2d(grey[:, :, :height, :width], 2, ceil_mode=True)
                height, width = grey.shape[2:]
                grey = F.pad(grey, (0, -width % CELL, 0, -height % CELL), mode="replicate")
            if octave not in described:
                continue
            x = self._encode(grey)
            if octave in octaves:
                logits = self.convPb(self._layer("Pa", x).float())
                scores = F.pixel_shuffle(logits.softmax(dim=1)[:, :-1], CELL)[:, 0]
                found[octave] = scores[:, :height, :width], logits
            maps[octave] = self._describe(x)
        outputs = []
        for octave in octaves:
            scores, logits = found[octave]
            descriptors = self._sum_of_octaves([maps[octave + i] for i in summed])
            outputs.append(SuperPointOutput(scores, descriptors, logits))
        return outputs

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

    def _encode(self, grey: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b 128 h//8 w//8"]:
        """The features that both heads read."""
        x = grey
        for block in "123":
            x = in_bands(partial(self._block, block), x, halo=2, stride=2, whole=self.training and self.batch_norm)
        return self._layer("4b", self._layer("4a", x))

    def _describe(self, x: Float[Tensor, "b 128 hc wc"]) -> Float[Tensor, "b 256 hc wc"]:
        """Unit-length descriptors from the features of the encoder."""
        return F.normalize(self.convDb(self._layer("Da", x).float()), dim=1)

    def _block(self, block: str, x: Tensor) -> Tensor:
        return F.max_pool2d(self._layer(f"{block}b", self._layer(f"{block}a", x)), 2)

    def _layer(self, name: str, x: Tensor) -> Tensor:
        convolution = cast(nn.Conv2d, self.get_submodule(f"conv{name}"))
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
    network = SuperPoint(octaves=max(1, sum(key.startswith("octaves.") for key in converted)))
    load_strictly(network, converted)
    return network.eval()


def convert_state_dict(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights under the names of this network, from the names of Hugging Face. The original checkpoint has our names."""
    return {rename_key(key, _HUGGING_FACE): value for key, value in state.items()}


def with_octaves(network: SuperPoint, octaves: int) -> SuperPoint:
    """A copy of the network, without batch normalisation, with this number of octaves.

    If the network has another number of octaves, all octaves of the copy get the same weight, and their linear maps are lost.
    """
    changed = SuperPoint(octaves=octaves)
    state = {key: value for key, value in network.state_dict().items() if not key.startswith("octaves.")}
    state |= {key: torch.eye(DESCRIPTOR_SIZE)[:, :, None, None] for key in changed.state_dict() if key.startswith("octaves.")}
    if len(changed.octaves) == len(network.octaves):
        state = network.state_dict()
    load_strictly(changed, state)
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
