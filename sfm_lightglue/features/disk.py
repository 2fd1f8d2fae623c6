"""DISK keypoints and descriptors (arXiv:2006.13566), with kornia's network."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from kornia.feature import DISK
from torch import Tensor

from sfm_lightglue.features.extractor import check_at_least, is_featureless, no_features
from sfm_lightglue.features.tensors import local_maxima, make_features, rgb_tensor, strongest
from sfm_lightglue.images import MIN_SIDE, resize_longest
from sfm_lightglue.networks.checkpoints import load_strictly
from sfm_lightglue.networks.heatmaps import windows
from sfm_lightglue.networks.weights import WeightsRecord, load_weights
from sfm_lightglue.products import Features, Image

DESCRIPTOR_SIZE = 128
STRIDE = 16
"""The U-Net halves its input four times."""


@dataclass(frozen=True)
class DiskOptions:
    """Options. Their default values are in configs/features/disk.yaml."""

    name: str
    weights: str
    """A name, or a file in the authors' format."""
    resize_max: int | None
    """Longest side of the image in which keypoints are detected, px; None: full size."""
    enlarge_max: float
    """Largest factor by which smaller photos are enlarged, up to resize_max; 1: never."""
    max_keypoints: int
    detection_threshold: float
    """Smallest detection logit."""
    nms_radius: int
    """The logit of a keypoint is the highest within this distance along x and y, px of the resized image."""
    subpixel: bool
    """Move each keypoint to the maximum of a paraboloid through 3x3 logits."""

    def __post_init__(self) -> None:
        check_at_least(self, resize_max=MIN_SIDE, enlarge_max=1, max_keypoints=1, nms_radius=1)


class DiskExtractor:
    """Runs the network on the RGB image. Scores are logits."""

    def __init__(self, options: DiskOptions, network: DISK, device: str, weights: WeightsRecord) -> None:
        self.options, self.network, self.device, self.weights = options, network, device, (weights,)

    @classmethod
    def create(cls, options: DiskOptions, device: str) -> DiskExtractor:
        """The extractor with its weights loaded.

        Raises: FileNotFoundError if the weights cannot be found or downloaded, ValueError if they are not DISK's.
        """
        state, record = load_weights(options.weights)
        network = DISK()
        load_strictly(network, state.get("extractor", state))
        return cls(options, network.to(device).eval(), device, record)

    @torch.inference_mode()
    def __call__(self, image: Image) -> Features:
        """The features of one image."""
        pixels = resize_longest(image.pixels, self.options.resize_max, self.options.enlarge_max)
        if is_featureless(pixels):
            return no_features(image, DESCRIPTOR_SIZE)
        height, width = pixels.shape[:2]
        heatmap, dense = self.network.heatmap_and_dense_descriptors(_pad(rgb_tensor(pixels, self.device)))
        heatmap = heatmap[0, 0, :height, :width]
        peaks = local_maxima(heatmap, self.options.nms_radius, self.options.detection_threshold)
        scores = heatmap[peaks[:, 1], peaks[:, 0]]
        kept = strongest(image, (width, height), peaks, scores, self.options.max_keypoints)
        x, y = peaks[kept].T
        keypoints = peaks[kept].float()
        if self.options.subpixel:
            keypoints = keypoints + parabola_offsets(windows(heatmap, peaks[kept], radius=1))
        return make_features(image, (width, height), keypoints, scores[kept], F.normalize(dense[0, :, y, x].T, dim=1))


def parabola_offsets(values: Tensor) -> Tensor:
    """Offsets (n, 2), at most 0.5 px, from the centres of windows (n, 3, 3) of a heat map to the maximum of a fitted paraboloid.

    The fit suits DISK's logits, which are quadratic near a keypoint. An offset is 0 if the paraboloid has no maximum.
    """
    gradient_x, gradient_y = (values[:, 1, 2] - values[:, 1, 0]) / 2, (values[:, 2, 1] - values[:, 0, 1]) / 2
    curvature_x = values[:, 1, 2] + values[:, 1, 0] - 2 * values[:, 1, 1]
    curvature_y = values[:, 2, 1] + values[:, 0, 1] - 2 * values[:, 1, 1]
    mixed = (values[:, 2, 2] - values[:, 2, 0] - values[:, 0, 2] + values[:, 0, 0]) / 4
    determinant = curvature_x * curvature_y - mixed**2
    x = (mixed * gradient_y - curvature_y * gradient_x) / determinant
    y = (mixed * gradient_x - curvature_x * gradient_y) / determinant
    has_maximum = (determinant > 0) & (curvature_x < 0)
    return torch.where(has_maximum[:, None], torch.stack([x, y], dim=1), 0).clamp(-0.5, 0.5)


def _pad(pixels: Tensor) -> Tensor:
    """The image (1, 3, h, w), padded to sides that are multiples of 16 and at least 32, with copies of its last row and column.

    A black frame would be an edge to detect. Instance normalisation needs more than one cell, hence 32.
    """
    height, width = (max(2, -(-side // STRIDE)) * STRIDE for side in pixels.shape[-2:])
    return F.pad(pixels, (0, width - pixels.shape[-1], 0, height - pixels.shape[-2]), mode="replicate")
