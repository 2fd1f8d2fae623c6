"""SuperPoint keypoints and descriptors (arXiv:1712.07629)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sfm_lightglue.features.extractor import check_at_least, is_featureless, make_features, no_features, strongest
from sfm_lightglue.images import MIN_SIDE, resize_longest, to_grey
from sfm_lightglue.networks.superpoint import (
    DESCRIPTOR_SIZE,
    SuperPoint,
    detect_keypoints,
    load_superpoint,
    sample_descriptors,
)
from sfm_lightglue.networks.weights import WeightsRecord, load_weights
from sfm_lightglue.products import Features, Image


@dataclass(frozen=True)
class SuperPointOptions:
    """Options; the values stand in configs/features."""

    name: str
    weights: str | None
    """A name, or the path of a file with the original's or Hugging Face's keys."""
    resize_max: int | None
    """Longest side, px, at which keypoints are detected; None keeps the full size."""
    max_keypoints: int
    detection_threshold: float
    """Smallest probability of a keypoint, 0..1."""
    nms_radius: int
    """Keypoints are further than this apart, px of the detection size, along x or y."""
    border: int
    """Width, px of the detection size, of the frame without keypoints."""
    subpixel: bool

    def __post_init__(self) -> None:
        check_at_least(self, resize_max=MIN_SIDE, max_keypoints=1, detection_threshold=0, nms_radius=0, border=0)


class SuperPointExtractor:
    """Runs on the grey image; its last width % 8 columns and height % 8 rows hold no keypoints."""

    def __init__(self, options: SuperPointOptions, network: SuperPoint, device: str, weights: WeightsRecord) -> None:
        self.options, self.network, self.device, self.weights = options, network, device, (weights,)

    @classmethod
    def create(cls, options: SuperPointOptions, device: str) -> SuperPointExtractor:
        """Raises: FileNotFoundError where the weights cannot be had, ValueError where they are not SuperPoint's."""
        if options.weights is None:
            raise ValueError(
                "SuperPoint's published weights are for noncommercial research only and must be asked for by name: "
                "features.weights=superpoint-official, or a file of your own; features=aliked works without"
            )
        state, record = load_weights(options.weights)
        network = load_superpoint(state).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return cls(options, network, device, record)

    @torch.inference_mode()
    def __call__(self, image: Image) -> Features:
        options = self.options
        pixels = resize_longest(image.pixels, options.resize_max)
        if is_featureless(pixels):
            return no_features(image, DESCRIPTOR_SIZE)
        output = self.network(torch.tensor(to_grey(pixels), device=self.device)[None, None])
        keypoints, scores = detect_keypoints(
            output.scores[0],
            threshold=options.detection_threshold,
            nms_radius=options.nms_radius,
            max_keypoints=None,  # the mask comes first
            border=options.border,
            subpixel=options.subpixel,
        )
        size = pixels.shape[1], pixels.shape[0]
        kept = strongest(image, size, keypoints, scores, options.max_keypoints)
        descriptors = sample_descriptors(keypoints[kept][None], output.descriptors)[0]
        return make_features(image, size, keypoints[kept], scores[kept], descriptors)
