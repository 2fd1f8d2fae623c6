"""DISK keypoints and descriptors (arXiv:2006.13566), with the network of kornia."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from kornia.feature import DISK
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
from sfm_lightglue.networks.heatmaps import windows
from sfm_lightglue.networks.weights import WeightsRecord, load_weights
from sfm_lightglue.products import Features, Image

DESCRIPTOR_SIZE = 128
STRIDE = 16
"""The U-Net halves its input four times."""


@dataclass(frozen=True)
class DiskOptions:
    """Options; the values stand in configs/features."""

    name: str
    weights: str
    """A name, or the path of a file in the authors' format."""
    resize_max: int | None
    """Longest side, px, at which keypoints are detected; None keeps the full size."""
    enlarge_max: float
    """How many times smaller photos are enlarged at most, up to that; 1 = never."""
    max_keypoints: int
    detection_threshold: float
    """Smallest detection logit."""
    nms_radius: int
    """A keypoint's logit is the highest within this many px of the detection size, along x and y."""
    subpixel: bool

    def __post_init__(self) -> None:
        check_at_least(self, resize_max=MIN_SIDE, enlarge_max=1, max_keypoints=1, nms_radius=1)


class DiskExtractor:
    """Scores are logits."""

    def __init__(self, options: DiskOptions, network: DISK, device: str, weights: WeightsRecord) -> None:
        self.options, self.network, self.device, self.weights = options, network, device, (weights,)

    @classmethod
    def create(cls, options: DiskOptions, device: str) -> DiskExtractor:
        """Raises: FileNotFoundError where the weights cannot be had, ValueError where they are not DISK's."""
        state, record = load_weights(options.weights)
        network = DISK()
        load_strictly(network, state.get("extractor", state))
        return cls(options, network.to(device).eval(), device, record)

    @torch.inference_mode()
    def __call__(self, image: Image) -> Features:
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
    """(n, 2): (x, y) of the maximum of the paraboloid through windows (n, 3, 3) of a heatmap, from their centre, at most 0.5.

    Fitted to logits, which near a keypoint of DISK are quadratic. 0 where the paraboloid has no maximum.
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
    """(1, 3, h', w'): sides of the next multiple of 16, at least 32, by repeating the last row and column (1, 3, h, w).

    Repeated, because a black frame would be an edge to detect; 32, because instance normalisation needs more than one cell.
    """
    height, width = (max(2, -(-side // STRIDE)) * STRIDE for side in pixels.shape[-2:])
    return F.pad(pixels, (0, width - pixels.shape[-1], 0, height - pixels.shape[-2]), mode="replicate")
