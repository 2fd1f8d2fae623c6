"""RaCo: where keypoints are, and which of them will be matched (Shenoi et al., 3DV 2026, arXiv:2602.15755).

Owns the network and its loading. The detector is ALIKED without deformable convolutions. The ranker is a network of its own, at
full size. RaCo has no descriptors: they come from ALIKED. Its third part, which predicts a covariance for each keypoint, is left
out, because features have no place for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from jaxtyping import Float32
from torch import Tensor, nn

from sfm_lightglue.networks.aliked import Block, fold_batch_norm, four_levels, mix_levels, pad_to_multiple, score_head, selu
from sfm_lightglue.networks.checkpoints import load_strictly, rename_key
from sfm_lightglue.networks.cpu import ONE_DNN, in_bands

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of the pixels of ImageNet, RGB. The network sees pixels minus the mean, divided by the deviation."""
CHANNELS = 16, 32, 64, 128
"""Output channels of the four blocks, at 1, 1/2, 1/8 and 1/32 of the image's size."""
RANKER_CHANNELS, RANKER_BLOCKS = 12, 9
PATTERNS = {r"\bmatch_dims\b": "downsample"}
"""Names in the published weights, and ours."""
UNUSED = "covariance_estimator_head."


class RaCo(nn.Module):
    """The detector and the ranker."""

    def __init__(self) -> None:
        super().__init__()
        c1, c2, c3, c4 = CHANNELS
        self.block1 = Block(3, c1, residual=False)
        self.block2, self.block3, self.block4 = Block(c1, c2), Block(c2, c3), Block(c3, c4)
        self.conv1 = nn.Conv2d(c1, c4 // 4, 1, bias=False, dilation=ONE_DNN)
        self.conv2, self.conv3, self.conv4 = (nn.Conv2d(c, c4 // 4, 3, padding=1, bias=False) for c in (c2, c3, c4))
        self.score_head = score_head(c4)
        channels = [3, *[RANKER_CHANNELS] * RANKER_BLOCKS]
        blocks = [Block(c, RANKER_CHANNELS) for c in channels[:-1]]
        self.ranker_head = nn.Sequential(*blocks, nn.Conv2d(RANKER_CHANNELS, 1, 5, padding=2, padding_mode="reflect"))

    def lower(self, dtype: torch.dtype) -> None:
        """Makes the detector's layers of full and half size compute in `dtype`. Both results stay float32."""
        for module in (self.block1, self.block2, self.conv1, self.conv2):
            module.to(dtype)

    def forward(self, images: Float32[Tensor, "b 3 h w"]) -> Float32[Tensor, "b h w"]:
        """Scores of keypoints for RGB images with values in 0..1: logits of a softmax over all pixels of an image."""
        padded, inside = _prepared(images)
        dtype = self.conv1.weight.dtype
        x1, x2, x3, x4 = four_levels(self, padded.to(dtype))
        y2, y3, y4 = (selu(conv(x)).float() for conv, x in ((self.conv2, x2), (self.conv3, x3), (self.conv4, x4)))
        mixed = mix_levels(cast(nn.Conv2d, self.score_head[0]), self.conv1, x1, (y2, y3, y4))
        return self.score_head[1:](mixed)[inside]

    def ranker_scores(self, images: Float32[Tensor, "b 3 h w"]) -> Float32[Tensor, "b h w"]:
        """For each pixel of RGB images with values in 0..1, how likely a keypoint there is matched; higher is better."""
        x, inside = _prepared(images)
        for layer in self.ranker_head:  # one by one: bands through all of them would need a halo of 20 rows
            x = in_bands(layer, x, halo=2, whole=self.training)
        return x[inside]


def load_raco(state: Mapping[str, Any]) -> RaCo:
    """The network in evaluation mode, with batch normalisation folded into the convolutions.

    Args:
        state: The published weights. Those of the covariances are ignored.

    Raises: ValueError if keys are missing or unexpected; the text names them.
    """
    network = RaCo()
    load_strictly(network, {rename_key(key, PATTERNS): value for key, value in state.items() if not key.startswith(UNUSED)})
    fold_batch_norm(network.eval())
    return network


def _prepared(images: Float32[Tensor, "b 3 h w"]) -> tuple[Float32[Tensor, "b 3 hp wp"], tuple[int | slice, ...]]:
    """The normalised and padded images, and the index of the single channel of the images in a result."""
    height, width = images.shape[2:]
    mean, deviation = (images.new_tensor(values)[:, None, None] for values in (MEAN, DEVIATION))
    padded, (left, top) = pad_to_multiple((images - mean) / deviation)
    inside = (slice(None), 0, slice(top, top + height), slice(left, left + width))
    return padded.contiguous(memory_format=torch.channels_last), inside
