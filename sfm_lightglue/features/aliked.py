"""ALIKED keypoints and descriptors (arXiv:2304.03608), with the network of kornia."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from kornia.feature import ALIKED
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
from sfm_lightglue.lookup import closest
from sfm_lightglue.networks.superpoint import expected_offsets, load_strictly, windows
from sfm_lightglue.networks.weights import WeightsRecord, load_weights
from sfm_lightglue.products import Features, Image

DESCRIPTOR_SIZES = {"n16": 128, "n16rot": 128, "n32": 128, "t16": 64}
TEMPERATURE = 0.1
"""Of the softmax over scores that gives the sub-pixel position (paper, section III-C): the published networks were trained so."""


@dataclass(frozen=True)
class AlikedOptions:
    """Options; the values stand in configs/features."""

    name: str
    variant: str
    """n16, n16rot (trained with more rotation), n32 (more samples a descriptor) or t16 (small, 64-d descriptors)."""
    weights: str
    """A name, or the path of a file of this variant."""
    resize_max: int | None
    """Longest side, px, at which keypoints are detected; None keeps the full size."""
    max_keypoints: int
    detection_threshold: float
    """Smallest score of a keypoint, 0..1."""
    nms_radius: int
    """A keypoint's score is the highest within this many px of the detection size, along x and y."""

    def __post_init__(self) -> None:
        if self.variant not in DESCRIPTOR_SIZES:
            raise ValueError(
                f"features.variant={self.variant} is no variant of ALIKED. {closest(self.variant, DESCRIPTOR_SIZES)}"
            )
        check_at_least(self, resize_max=MIN_SIDE, max_keypoints=1, detection_threshold=0, nms_radius=1)


class AlikedExtractor:
    """The published networks fire 1 to 4 px beside a corner, by its kind: learnt, repeatable, and not corrected here."""

    def __init__(self, options: AlikedOptions, network: ALIKED, device: str, weights: WeightsRecord) -> None:
        self.options, self.network, self.device, self.weights = options, network, device, (weights,)

    @classmethod
    def create(cls, options: AlikedOptions, device: str) -> AlikedExtractor:
        """Raises: FileNotFoundError where the weights cannot be had, ValueError where they are not of this variant."""
        state, record = load_weights(options.weights)
        network = ALIKED(f"aliked-{options.variant}")
        load_strictly(network, {"dkd.hw_grid": network.dkd.hw_grid, **state})  # a constant, in kornia's module only
        network.eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return cls(options, network, device, record)

    @torch.inference_mode()
    def __call__(self, image: Image) -> Features:
        pixels = resize_longest(image.pixels, self.options.resize_max)
        if is_featureless(pixels):
            return no_features(image, DESCRIPTOR_SIZES[self.options.variant])
        features, score_map = self.network.extract_dense_map(rgb_tensor(pixels, self.device))
        keypoints, scores = _detect(score_map[0, 0], self.options.detection_threshold, self.options.nms_radius)
        size = pixels.shape[1], pixels.shape[0]
        kept = strongest(image, size, keypoints, scores, self.options.max_keypoints)
        keypoints, scores = keypoints[kept], scores[kept]
        (descriptors,), _ = self.network.desc_head(features, [_to_unit(keypoints, size)])
        return make_features(image, size, keypoints, scores, descriptors)


def _detect(score_map: Tensor, threshold: float, radius: int) -> tuple[Tensor, Tensor]:
    """Sub-pixel keypoints float32 (n, 2) and the scores there (n,), from the score map (h, w).

    kornia's own detection gives the maxima above the mean where none is above the threshold, and knows no masks.
    """
    pixels = local_maxima(score_map, radius, threshold)
    nearby = windows(score_map, pixels, radius)  # n k k
    weights = ((nearby - nearby.amax(dim=(1, 2), keepdim=True)) / TEMPERATURE).exp()
    keypoints = pixels + expected_offsets(weights)
    grid = _to_unit(keypoints, (score_map.shape[1], score_map.shape[0]))
    return keypoints, F.grid_sample(score_map[None, None], grid[None, None], align_corners=True)[0, 0, 0]


def _to_unit(keypoints: Tensor, size: tuple[int, int]) -> Tensor:
    """Keypoints (n, 2) scaled so that the centres of the first and last pixels lie at -1 and 1."""
    return 2 * keypoints / (keypoints.new_tensor(size) - 1) - 1
