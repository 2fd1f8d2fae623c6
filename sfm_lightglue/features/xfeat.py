"""XFeat keypoints and descriptors (arXiv:2404.19174), with the network of kornia."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from kornia.feature import InterpolateSparse2d, XFeatModel
from torch import Tensor

from sfm_lightglue.features.extractor import (
    check_at_least,
    is_featureless,
    local_maxima,
    make_features,
    no_features,
    rgb_tensor,
    strongest,
)
from sfm_lightglue.images import MIN_SIDE, resize_longest
from sfm_lightglue.networks.checkpoints import load_strictly
from sfm_lightglue.networks.heatmaps import expected_offsets, windows
from sfm_lightglue.networks.weights import WeightsRecord, load_weights
from sfm_lightglue.products import Features, Image

DESCRIPTOR_SIZE = 64
STRIDE = 32
"""The deepest level of the network has one cell for 32 x 32 px."""


@dataclass(frozen=True)
class XFeatOptions:
    """Options; the values stand in configs/features."""

    name: str
    weights: str
    """A name, or the path of a file in the authors' format."""
    resize_max: int | None
    """Longest side, px, before it is rounded down to a multiple of 32; None keeps the full size."""
    enlarge_max: float
    """How many times smaller photos are enlarged at most, up to that; 1 = never."""
    max_keypoints: int
    detection_threshold: float
    """Smallest probability of a keypoint, 0..1."""
    nms_radius: int
    """A keypoint's probability is the highest within this many px of the detection size, along x and y."""
    subpixel: bool

    def __post_init__(self) -> None:
        check_at_least(self, resize_max=MIN_SIDE, enlarge_max=1, max_keypoints=1, detection_threshold=0, nms_radius=1)


class XFeatExtractor:
    """Scores are the probability of a keypoint times its reliability, both 0..1."""

    def __init__(self, options: XFeatOptions, network: XFeatModel, device: str, weights: WeightsRecord) -> None:
        self.options, self.network, self.device, self.weights = options, network, device, (weights,)

    @classmethod
    def create(cls, options: XFeatOptions, device: str) -> XFeatExtractor:
        """Raises: FileNotFoundError where the weights cannot be had, ValueError where they are not XFeat's."""
        state, record = load_weights(options.weights)
        network = XFeatModel()
        load_strictly(network, state)
        return cls(options, network.to(device).eval(), device, record)

    @torch.inference_mode()
    def __call__(self, image: Image) -> Features:
        pixels = resize_longest(image.pixels, self.options.resize_max, self.options.enlarge_max)
        if is_featureless(pixels):
            return no_features(image, DESCRIPTOR_SIZE)
        height, width = (max(1, side // STRIDE) * STRIDE for side in pixels.shape[:2])
        resized = F.interpolate(rgb_tensor(pixels, self.device), (height, width), mode="bilinear", align_corners=False)
        dense, logits, reliability = self.network(resized)
        heatmap = F.pixel_shuffle(logits.softmax(dim=1)[:, :64], 8)[0, 0]  # class 64: no keypoint in the cell
        peaks = local_maxima(heatmap, self.options.nms_radius, self.options.detection_threshold)
        scores = heatmap[peaks[:, 1], peaks[:, 0]] * _sample(reliability, peaks, (width, height), "bilinear")[:, 0]
        # The scale of each axis is that of the rounded size. kornia multiplies pixel indices by it, which leaves out
        # half of the difference between a pixel here and a pixel there: 0.02 px at 1024 px, 0.5 px at 63 px.
        kept = strongest(image, (width, height), peaks, scores, self.options.max_keypoints)
        keypoints = peaks[kept].float()
        if self.options.subpixel:
            keypoints = keypoints + expected_offsets(windows(heatmap, peaks[kept], radius=2))
        descriptors = F.normalize(_sample(F.normalize(dense, dim=1), peaks[kept], (width, height), "bicubic"), dim=1)
        return make_features(image, (width, height), keypoints, scores[kept], descriptors)


def _sample(dense: Tensor, pixels: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """(n, c): the map (1, c, h, w) at pixels (n, 2) of the image of `size` (width, height), read as in XFeat's training."""
    return InterpolateSparse2d(mode)(dense, pixels[None].float(), size[1], size[0])[0]
