"""SuperPoint keypoints and descriptors (arXiv:1712.07629)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from sfm_lightglue.features.extractor import (
    batch_size_on,
    check_at_least,
    extract_in_batches,
    make_features,
    strongest,
)
from sfm_lightglue.images import MIN_SIDE, to_grey
from sfm_lightglue.networks.precision import check_precision, network_dtype
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
    weights: str
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
    precision: str
    """`float32`, or `low`: 16 bit convolutions where the device is faster so."""

    def __post_init__(self) -> None:
        check_precision(self.precision, "features.precision")
        check_at_least(self, resize_max=MIN_SIDE, max_keypoints=1, detection_threshold=0, nms_radius=0, border=0)


class SuperPointExtractor:
    """Runs on the grey image; its last width % 8 columns and height % 8 rows hold no keypoints."""

    def __init__(self, options: SuperPointOptions, network: SuperPoint, device: str, weights: WeightsRecord) -> None:
        self.options, self.network, self.device, self.weights = options, network, device, (weights,)
        self.centred = weights.metadata.get("descriptor_sampling") == "centred"
        self.batch_size = batch_size_on(device)

    @classmethod
    def create(cls, options: SuperPointOptions, device: str) -> SuperPointExtractor:
        """Raises: FileNotFoundError where the weights cannot be had, ValueError where they are not SuperPoint's."""
        state, record = load_weights(options.weights)
        network = load_superpoint(state)
        network.lower(network_dtype(options.precision, device))
        network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return cls(options, network, device, record)

    def __call__(self, image: Image) -> Features:
        return self.extract_many([image])[0]

    def extract_many(self, images: Sequence[Image]) -> list[Features]:
        """Features of each image, `batch_size` of equal size at a time."""
        return extract_in_batches(images, self.options.resize_max, self.batch_size, self._extract, DESCRIPTOR_SIZE)

    @torch.inference_mode()
    def _extract(self, images: list[Image], pixels: np.ndarray) -> list[Features]:
        """Features of images whose pixels, resized, are (b, h, w, 3)."""
        options = self.options
        grey = np.stack([to_grey(each) for each in pixels])
        output = self.network(torch.tensor(grey, device=self.device)[:, None])
        size = pixels.shape[2], pixels.shape[1]
        features = []
        for i, image in enumerate(images):
            keypoints, scores = detect_keypoints(
                output.scores[i],
                threshold=options.detection_threshold,
                nms_radius=options.nms_radius,
                max_keypoints=None,  # the mask comes first
                border=options.border,
                subpixel=options.subpixel,
            )
            kept = strongest(image, size, keypoints, scores, options.max_keypoints)
            descriptors = sample_descriptors(keypoints[kept][None], output.descriptors[i : i + 1], centred=self.centred)[0]
            features.append(make_features(image, size, keypoints[kept], scores[kept], descriptors))
        return features
