"""RaCo keypoints (arXiv:2602.15755) with ALIKED descriptors (arXiv:2304.03608)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from sfm_lightglue.features.extractor import batch_size_on, check_at_least, extract_in_batches
from sfm_lightglue.features.tensors import local_maxima, make_features, rgb_tensor, strongest
from sfm_lightglue.images import MIN_SIDE
from sfm_lightglue.networks.aliked import ALIKED, load_aliked
from sfm_lightglue.networks.heatmaps import interpolated, refined
from sfm_lightglue.networks.precision import AUTO, check_precision, network_dtype, resolved_precision
from sfm_lightglue.networks.raco import RaCo, load_raco
from sfm_lightglue.networks.weights import WeightsRecord, load_weights
from sfm_lightglue.products import Features, Image

TEMPERATURE = 0.5
"""Temperature of the softmax over logits that gives the sub-pixel position, as published."""
DESCRIPTORS = "n16"
"""The variant of ALIKED whose descriptors the published LightGlue was trained with."""


@dataclass(frozen=True)
class RacoOptions:
    """Options. Their default values are in configs/features/raco.yaml."""

    name: str
    weights: str
    """A name, or a file with weights of RaCo."""
    descriptor_weights: str
    """A name, or a file with weights of ALIKED n16."""
    resize_max: int | None
    """Longest side of the image in which keypoints are detected, px; None: full size."""
    enlarge_max: float
    """Largest factor by which smaller photos are enlarged, up to resize_max; 1: never."""
    max_keypoints: int
    num_candidates: int | None
    """The ranker chooses the keypoints among this many with the best detection scores. None: no ranker, the keypoints are those
    with the best detection scores."""
    nms_radius: int
    """The score of a keypoint is the highest within this distance along x and y, px of the resized image."""
    precision: str
    """`float32`, or `low` for 16-bit convolutions at full and half size if the device is faster with them. `auto`: float32."""

    def __post_init__(self) -> None:
        check_precision(self.precision, "features.precision", may_be_auto=True)
        check_at_least(self, resize_max=MIN_SIDE, enlarge_max=1, max_keypoints=1, num_candidates=1, nms_radius=1)
        if self.num_candidates is not None and self.num_candidates < self.max_keypoints:
            raise ValueError(
                f"features.num_candidates={self.num_candidates} is less than features.max_keypoints={self.max_keypoints}: the "
                "ranker chooses keypoints among the candidates. Set it higher (twice as many), or to null to go without ranker"
            )


class RacoExtractor:
    """Runs both networks on the RGB image. A score is a logit of the detector, or the ranker's score if the ranker chooses."""

    def __init__(
        self, options: RacoOptions, detector: RaCo, descriptor: ALIKED, device: str, weights: tuple[WeightsRecord, ...]
    ) -> None:
        self.options, self.detector, self.descriptor, self.device, self.weights = options, detector, descriptor, device, weights
        self.chose_precision = False
        self.batch_size = batch_size_on(device)

    @classmethod
    def create(cls, options: RacoOptions, device: str) -> RacoExtractor:
        """The extractor with its weights loaded.

        Raises: FileNotFoundError if the weights cannot be found or downloaded, ValueError if they are of other networks.
        """
        (detector_state, detector_record), (descriptor_state, descriptor_record) = (
            load_weights(name) for name in (options.weights, options.descriptor_weights)
        )
        detector, descriptor = load_raco(detector_state), load_aliked(DESCRIPTORS, descriptor_state)
        precision = resolved_precision(options.precision, device, low_is_enough=False)
        dtype = network_dtype(precision, device)
        detector.lower(dtype)
        descriptor.lower(dtype)
        for network in (detector, descriptor):
            network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        extractor = cls(replace(options, precision=precision), detector, descriptor, device, (detector_record, descriptor_record))
        extractor.chose_precision = options.precision == AUTO
        return extractor

    def __call__(self, image: Image) -> Features:
        """The features of one image."""
        return self.extract_many([image])[0]

    def extract_many(self, images: Sequence[Image]) -> list[Features]:
        """The features of each image. Up to `batch_size` images of the same size run together."""
        size = self.descriptor.variant.descriptor_size
        return extract_in_batches(images, self.options.resize_max, self.options.enlarge_max, self.batch_size, self._extract, size)

    @torch.inference_mode()
    def _extract(self, images: list[Image], pixels: np.ndarray) -> list[Features]:
        """The features of b images. `pixels` are the resized images, uint8 (b, h, w, 3)."""
        rgb = rgb_tensor(pixels, self.device)
        size = pixels.shape[2], pixels.shape[1]
        logits, levels = self.detector(rgb), self.descriptor(rgb)
        ranking = None if self.options.num_candidates is None else self.detector.ranker_scores(rgb)
        features = []
        for i, image in enumerate(images):
            keypoints, scores = detect(logits[i], self.options.nms_radius)
            kept = strongest(image, size, keypoints, scores, self.options.num_candidates or self.options.max_keypoints)
            keypoints, scores = keypoints[kept], scores[kept]
            if ranking is not None:
                scores = interpolated(ranking[i], keypoints)
                best = scores.argsort(descending=True, stable=True)[: self.options.max_keypoints]
                keypoints, scores = keypoints[best], scores[best]
            features.append(make_features(image, size, keypoints, scores, self.descriptor.describe(levels, i, keypoints)))
        return features


def detect(logits: Tensor, radius: int) -> tuple[Tensor, Tensor]:
    """Sub-pixel keypoints float32 (n, 2) from a map of logits (h, w), row by row, and the logits of their pixels (n,).

    The published code also finds keypoints at the edge of the image, which its sub-pixel step moves out of the image, and all
    pixels of an area of one colour if it lacks better ones. Here they are left out.

    Args:
        logits: one for each pixel.
        radius: px, within which a keypoint's logit is the highest. No keypoint is as near to the edge of the image.
    """
    pixels = local_maxima(logits, radius, -torch.inf)
    return refined(logits, pixels, radius, TEMPERATURE), logits[pixels[:, 1], pixels[:, 0]]
