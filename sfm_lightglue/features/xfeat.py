"""XFeat keypoints and descriptors (arXiv:2404.19174), with kornia's network."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from kornia.feature import InterpolateSparse2d, XFeatModel
from torch import Tensor

from sfm_lightglue.features.extractor import check_at_least, is_featureless, no_features
from sfm_lightglue.features.tensors import local_maxima, make_features, rgb_tensor, strongest
from sfm_lightglue.images import MIN_SIDE, resize_longest
from sfm_lightglue.networks.checkpoints import load_strictly
from sfm_lightglue.networks.heatmaps import expected_offsets, windows
from sfm_lightglue.networks.weights import WeightsRecord, load_weights
from sfm_lightglue.products import Features, Image
from sfm_lightglue.ranges import check_ranges

DESCRIPTOR_SIZE = 64
STRIDE = 32
"""Side of a cell of the network's deepest level, px."""


@dataclass(frozen=True)
class XFeatOptions:
    """Options. Their default values are in configs/features/xfeat.yaml."""

    name: str
    weights: str
    """A name, or a file in the authors' format."""
    resize_max: int | None
    """Longest side of the image in which keypoints are detected, px; None: full size. Then both sides are rounded down to
    multiples of 32."""
    enlarge_max: float
    """Largest factor by which smaller photos are enlarged, up to resize_max; 1: never."""
    max_keypoints: int
    detection_threshold: float
    """Smallest probability of a keypoint, 0..1."""
    nms_radius: int
    """The probability of a keypoint is the highest within this distance along x and y, px of the resized image."""
    subpixel: bool
    """Move each keypoint to the expected position in its 5x5 window."""

    def __post_init__(self) -> None:
        check_at_least(self, resize_max=MIN_SIDE, enlarge_max=1, max_keypoints=1, detection_threshold=0, nms_radius=1)
        check_ranges(self, "features", detection_threshold="<= 1")


class XFeatExtractor:
    """Runs the network on the RGB image. A score is the probability of a keypoint times its reliability, both 0..1."""

    def __init__(self, options: XFeatOptions, network: XFeatModel, device: str, weights: WeightsRecord) -> None:
        self.options, self.network, self.device, self.weights = options, network, device, (weights,)

    @classmethod
    def create(cls, options: XFeatOptions, device: str) -> XFeatExtractor:
        """The extractor with its weights loaded.

        Raises: FileNotFoundError if the weights cannot be found or downloaded, ValueError if they are not XFeat's.
        """
        state, record = load_weights(options.weights)
        network = XFeatModel()
        load_strictly(network, state)
        return cls(options, network.to(device).eval(), device, record)

    @torch.inference_mode()
    def __call__(self, image: Image) -> Features:
        """The features of one image."""
        pixels = resize_longest(image.pixels, self.options.resize_max, self.options.enlarge_max)
        if is_featureless(pixels):
            return no_features(image, DESCRIPTOR_SIZE)
        height, width = (max(1, side // STRIDE) * STRIDE for side in pixels.shape[:2])
        resized = F.interpolate(rgb_tensor(pixels, self.device), (height, width), mode="bilinear", align_corners=False)
        dense, logits, reliability = self.network(resized)
        heatmap = F.pixel_shuffle(logits.softmax(dim=1)[:, :64], 8)[0, 0]  # class 64: no keypoint in the cell
        peaks = local_maxima(heatmap, self.options.nms_radius, self.options.detection_threshold)
        scores = heatmap[peaks[:, 1], peaks[:, 0]] * _sample(reliability, peaks, (width, height), "bilinear")[:, 0]
        # `make_features` scales keypoints with the rounded sizes and keeps pixel centres. kornia multiplies pixel indices by
        # the scale, which loses half of the difference between the two pixel sizes: 0.02 px at 1024 px, 0.5 px at 63 px.
        kept = strongest(image, (width, height), peaks, scores, self.options.max_keypoints)
        keypoints = peaks[kept].float()
        if self.options.subpixel:
            keypoints = keypoints + expected_offsets(windows(heatmap, peaks[kept], radius=2))
        descriptors = F.normalize(_sample(F.normalize(dense, dim=1), peaks[kept], (width, height), "bicubic"), dim=1)
        return make_features(image, (width, height), keypoints, scores[kept], descriptors)


def _sample(dense: Tensor, pixels: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """The values (n, c) of a map (1, c, h, w) at pixels (n, 2) of an image of `size` (width, height), as in XFeat's training."""
    return InterpolateSparse2d(mode)(dense, pixels[None].float(), size[1], size[0])[0]
