"""SuperPoint: self-supervised interest point detection and description (DeTone et al., arXiv:1712.07629).

Owns the network, the step from its dense descriptors to those of the keypoints, and the formats in which its weights are
published. Training and inference share everything here.
Keypoints are (x, y) px of the network's input, centre of the top-left pixel at (0, 0).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_weights

from sfm_lightglue.networks.checkpoints import KeyPatterns, load_strictly, rename_key
from sfm_lightglue.networks.cpu import ONE_DNN, in_bands

CELL = 8
"""Side of the square of pixels (px) that one cell of the network's output stands for."""
DESCRIPTOR_SIZE = 256
SMALL_OCTAVE = 2
"""In which keypoints are found beside the first, 0: the image at a quarter of its size. Descriptors bear changes of size by 2, so
both together reach from the same size to 6 or 8 times."""
SMALL_SHARE = 0.1
"""Of the keypoints of a network with octaves, in `SMALL_OCTAVE` at most. The published network has none there."""

# The 3x3 convolutions: (channels in, channels out). A VGG-like encoder of four blocks, then the first layers of the heads:
# "Pa" of the point detector, "Da" of the descriptor. The names are those of the published weights.
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

    scores: Tensor
    """(b, 8 hc, 8 wc): probability of a keypoint at each pixel."""
    descriptors: Tensor
    """(b, 256, hc, wc), unit length."""
    logits: Tensor
    """(b, 65, hc, wc) before the softmax: the 64 pixels of a cell, row by row, then "no keypoint in this cell"."""


class SuperPoint(nn.Module):
    """The network of section 3.

    With `batch_norm` each 3x3 convolution is followed by batch normalisation, which training wants; `fold_batch_norm` then
    gives the published architecture without it.

    With `octaves` above 1 the same network describes the image at a half, a quarter, ... of its size too, and a descriptor is the
    sum of those of all octaves, each through a linear map. It then knows the wider surroundings of its keypoint: 84 px, the
    reach of the published network, become 168 and 336.

    `pyramid` finds keypoints in smaller copies of the image too, which are found again in a photo from further away.
    """

    def __init__(self, *, batch_norm: bool = False, octaves: int = 1) -> None:
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
        """Makes the 3x3 convolutions compute in `dtype`, all but the first: it takes little time, and the image stays exact."""
        for name, module in self.named_children():
            if name not in ("conv1a", "bn1a", "convPb", "convDb", "octaves"):
                module.to(dtype)

    def forward(self, grey: Tensor) -> SuperPointOutput:
        """Maps of images (b, 1, h, w) with values in 0..1; rows and columns after the last whole cell have no part in them."""
        return self.pyramid(grey, (0,))[0]

    def pyramid(self, grey: Tensor, octaves: Sequence[int]) -> list[SuperPointOutput]:
        """Maps of images (b, 1, h, w) at some octaves, 2^-octave of their size, rounded up.

        Smaller images are continued by their last rows and columns to whole cells, but their scores end where they do. The
        descriptors of an octave are the sum over those from it on. See `octave_to_image` for where pixels are.
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

    def _sum_of_octaves(self, maps: list[Tensor]) -> Tensor:
        """(b, 256, hc, wc), unit length, from the descriptors (b, 256, ., .) of each octave, the first one's (b, 256, hc, wc).

        The cells of an octave are twice as large as those of the one before and share its upper left corner.
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

    def _encode(self, grey: Tensor) -> Tensor:
        """(b, 128, hc, wc)."""
        x = grey
        for block in "123":
            x = in_bands(partial(self._block, block), x, halo=2, stride=2, whole=self.training and self.batch_norm)
        return self._layer("4b", self._layer("4a", x))

    def _describe(self, x: Tensor) -> Tensor:
        """(b, 256, hc, wc), unit length, from the encoder's (b, 128, hc, wc)."""
        return F.normalize(self.convDb(self._layer("Da", x).float()), dim=1)

    def _block(self, block: str, x: Tensor) -> Tensor:
        return F.max_pool2d(self._layer(f"{block}b", self._layer(f"{block}a", x)), 2)

    def _layer(self, name: str, x: Tensor) -> Tensor:
        convolution = cast(nn.Conv2d, self.get_submodule(f"conv{name}"))
        if not self.training:  # there autocast chooses
            x = x.to(convolution.weight.dtype)
        x = convolution(x)
        if self.batch_norm:
            x = self.get_submodule(f"bn{name}")(x)
        return F.relu(x, inplace=True)


def octave_to_image(keypoints: Tensor, octave: int) -> Tensor:
    """Keypoints (..., 2) px of the image, from those of an octave of `SuperPoint.pyramid`, whose pixels are 2^octave px wide."""
    return (keypoints + 0.5) * 2**octave - 0.5 if octave else keypoints


def sample_descriptors(keypoints: Tensor, dense: Tensor, cell: int = CELL, *, centred: bool = False) -> Tensor:
    """Unit-length descriptors (b, n, d), interpolated bilinearly in `dense` (b, d, hc, wc) at keypoints (b, n, 2).

    The centre of the first cell lies at pixel 3.5. With `centred`, which weights trained here want, that of the last one lies at
    8 wc - 4.5. The published code stretches the grid so that pixel 8 wc - 1 hits it: up to 3.5 px off at the right and lower
    edge. LightGlue's repository, where its published weights come from, and transformers read it that way, so it is part of the
    definition for the published weights.
    """
    height, width = dense.shape[-2:]
    size = keypoints.new_tensor([width, height]) * cell
    grid = (2 * keypoints + 1) / size - 1 if centred else 2 * (keypoints - cell / 2 + 0.5) / (size - cell / 2 - 0.5) - 1  # b n 2
    sampled = F.grid_sample(dense, grid[:, None].to(dense.dtype), mode="bilinear", align_corners=not centred)[:, :, 0]  # b d n
    return F.normalize(sampled, dim=1).transpose(1, 2)


def load_superpoint(state: Mapping[str, Tensor]) -> SuperPoint:
    """The network with published weights, or with octaves, in evaluation mode; `state` as in `convert_state_dict`.

    Raises: ValueError that names missing and unexpected keys.
    """
    converted = convert_state_dict(state)
    network = SuperPoint(octaves=max(1, sum(key.startswith("octaves.") for key in converted)))
    load_strictly(network, converted)
    return network.eval()


def convert_state_dict(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights under this network's names, from the original checkpoint's (the same) or Hugging Face's."""
    return {rename_key(key, _HUGGING_FACE): value for key, value in state.items()}


def with_octaves(network: SuperPoint, octaves: int) -> SuperPoint:
    """A network without batch normalisation, with so many octaves, which count the same where it had another number of them."""
    changed = SuperPoint(octaves=octaves)
    state = {key: value for key, value in network.state_dict().items() if not key.startswith("octaves.")}
    state |= {key: torch.eye(DESCRIPTOR_SIZE)[:, :, None, None] for key in changed.state_dict() if key.startswith("octaves.")}
    if len(changed.octaves) == len(network.octaves):
        state = network.state_dict()
    load_strictly(changed, state)
    return changed.train(network.training)


@torch.no_grad()
def fold_batch_norm(network: SuperPoint) -> SuperPoint:
    """The same function as `network` in evaluation mode, without batch normalisation: what is saved as trained weights."""
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
def unfold_batch_norm(network: SuperPoint, grey: Tensor) -> SuperPoint:
    """The inverse of `fold_batch_norm`: the same function as `network` with batch normalisation, for training to go on.

    The means and variances are those of images (b, 1, h, w) like the ones to be trained on.
    """
    unfolded = SuperPoint(batch_norm=True)
    unfolded.load_state_dict(network.state_dict(), strict=False)
    hooks = []
    for name in _LAYERS:
        norm = cast(nn.BatchNorm2d, unfolded.get_submodule(f"bn{name}"))
        hooks.append(unfolded.get_submodule(f"conv{name}").register_forward_hook(partial(_normalise_to_itself, norm)))
    unfolded.train()(grey)  # in evaluation mode it would see the images in bands
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
