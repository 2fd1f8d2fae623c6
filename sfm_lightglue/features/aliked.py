"""ALIKED keypoints and descriptors (arXiv:2304.03608)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from sfm_lightglue.features.extractor import batch_size_on, check_at_least, extract_in_batches
from sfm_lightglue.features.tensors import make_features, rgb_tensor, strongest
from sfm_lightglue.images import MIN_SIDE
from sfm_lightglue.networks.aliked import ALIKED, VARIANTS, load_aliked
from sfm_lightglue.networks.heatmaps import non_maximum_suppression, refined
from sfm_lightglue.networks.precision import AUTO, check_precision, network_dtype, resolved_precision
from sfm_lightglue.networks.weights import WeightsRecord, load_weights
from sfm_lightglue.products import Features, Image
from sfm_lightglue.ranges import check_ranges
from sfm_lightglue.registry import closest

TEMPERATURE = 0.1
"""Temperature of the softmax over scores that gives the sub-pixel position (section III-C). The published networks were trained
with it."""


@dataclass(frozen=True)
class AlikedOptions:
    """Options. Their default values are in configs/features/aliked.yaml."""

    name: str
    variant: str
    """n16, n16rot (trained with more rotation), n32 (more samples per descriptor) or t16 (small, 64-d descriptors)."""
    weights: str
    """A name, or a file with weights of this variant."""
    resize_max: int | None
    """Longest side of the image in which keypoints are detected, px; None: full size."""
    enlarge_max: float
    """Largest factor by which smaller photos are enlarged, up to resize_max; 1: never."""
    max_keypoints: int
    detection_threshold: float
    """Smallest score of a keypoint, 0..1."""
    nms_radius: int
    """The score of a keypoint is the highest within this distance along x and y, px of the resized image."""
    precision: str
    """`float32`, or `low` for 16-bit convolutions at full and half size if the device is faster with them. `auto`: float32."""

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            raise ValueError(f"features.variant={self.variant} is no variant of ALIKED. {closest(self.variant, VARIANTS)}")
        check_precision(self.precision, "features.precision", may_be_auto=True)
        check_at_least(self, resize_max=MIN_SIDE, enlarge_max=1, max_keypoints=1, detection_threshold=0, nms_radius=1)
        check_ranges(self, "features", detection_threshold="<= 1")


class AlikedExtractor:
    """Runs the network on the RGB image.

    The published networks put the keypoint of a corner 1 to 4 px beside it, depending on the kind of corner. They learnt this, it
    is repeatable, and it is not corrected here.
    """

    def __init__(self, options: AlikedOptions, network: ALIKED, device: str, weights: WeightsRecord) -> None:
        self.options, self.network, self.device, self.weights = options, network, device, (weights,)
        self.chose_precision = False
        self.batch_size = batch_size_on(device)

    @classmethod
    def create(cls, options: AlikedOptions, device: str) -> AlikedExtractor:
        """The extractor with its weights loaded.

        Raises: FileNotFoundError if the weights cannot be found or downloaded, ValueError if they are of another variant.
        """
        state, record = load_weights(options.weights)
        network = load_aliked(options.variant, state)
        precision = resolved_precision(options.precision, device, low_is_enough=False)
        network.lower(network_dtype(precision, device))
        network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        extractor = cls(replace(options, precision=precision), network, device, record)
        extractor.chose_precision = options.precision == AUTO
        return extractor

    def __call__(self, image: Image) -> Features:
        """The features of one image."""
        return self.extract_many([image])[0]

    def extract_many(self, images: Sequence[Image]) -> list[Features]:
        """The features of each image. Up to `batch_size` images of the same size run together."""
        size = self.network.variant.descriptor_size
        return extract_in_batches(images, self.options.resize_max, self.options.enlarge_max, self.batch_size, self._extract, size)

    @torch.inference_mode()
    def _extract(self, images: list[Image], pixels: np.ndarray) -> list[Features]:
        """The features of b images. `pixels` are the resized images, uint8 (b, h, w, 3)."""
        output = self.network(rgb_tensor(pixels, self.device))
        size = pixels.shape[2], pixels.shape[1]
        features = []
        for i, image in enumerate(images):
            keypoints, scores = detect(output.scores[i], self.options.detection_threshold, self.options.nms_radius)
            kept = strongest(image, size, keypoints, scores, self.options.max_keypoints)
            descriptors = self.network.describe(output, i, keypoints[kept])
            features.append(make_features(image, size, keypoints[kept], scores[kept], descriptors))
        return features


def detect(score_map: Tensor, threshold: float, radius: int) -> tuple[Tensor, Tensor]:
    """Sub-pixel keypoints float32 (n, 2) from a score map (h, w), row by row, and the scores of their pixels (n,).

    They are the published code's keypoints, and it ranks them by the scores of their pixels. It reports the interpolated score at
    the keypoint, which ranks worse: sharp peaks lose more by interpolation. Unlike it, this function finds no keypoints in an
    image whose scores are all below the threshold.

    Args:
        score_map: one score for each pixel.
        threshold: the score of a keypoint's pixel is larger.
        radius: px, within which a keypoint's score is the highest. No keypoint is as near to the edge of the image.
    """
    height, width = score_map.shape
    peaks = non_maximum_suppression(score_map[None], radius)[0, radius : height - radius, radius : width - radius]
    pixels = (peaks > threshold).nonzero().flip(1) + radius
    return refined(score_map, pixels, radius, TEMPERATURE), score_map[pixels[:, 1], pixels[:, 0]]
