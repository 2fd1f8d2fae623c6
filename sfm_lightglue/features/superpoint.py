"""SuperPoint keypoints and descriptors (arXiv:1712.07629)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sfm_lightglue.features.extractor import (
    batch_size_on,
    check_at_least,
    extract_in_batches,
    make_features,
    strongest,
)
from sfm_lightglue.images import MIN_SIDE, to_grey
from sfm_lightglue.networks.heatmaps import detect_keypoints
from sfm_lightglue.networks.precision import check_precision, network_dtype
from sfm_lightglue.networks.superpoint import (
    DESCRIPTOR_SIZE,
    SMALL_OCTAVE,
    SMALL_SHARE,
    SuperPoint,
    SuperPointOutput,
    load_superpoint,
    octave_to_image,
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
    enlarge_max: float
    """How many times smaller photos are enlarged at most, up to that; 1 = never."""
    max_keypoints: int
    small_share: float | None
    """Of them, found at a quarter of that size at most; None: SMALL_SHARE for weights with octaves, else none."""
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
        if self.small_share is not None and self.small_share > 1:
            raise ValueError(f"features.small_share is a share, 0..1, found {self.small_share}")
        check_at_least(
            self,
            resize_max=MIN_SIDE,
            enlarge_max=1,
            small_share=0,
            max_keypoints=1,
            detection_threshold=0,
            nms_radius=0,
            border=0,
        )


class SuperPointExtractor:
    """Runs on the grey image; its last width % 8 columns and height % 8 rows hold no keypoints."""

    def __init__(self, options: SuperPointOptions, network: SuperPoint, device: str, weights: WeightsRecord) -> None:
        self.options, self.network, self.device, self.weights = options, network, device, (weights,)
        self.centred = weights.metadata.get("descriptor_sampling") == "centred"
        by_weights = SMALL_SHARE if network.octaves else 0.0
        self.small_share = by_weights if options.small_share is None else options.small_share
        self.octaves = (0, SMALL_OCTAVE) if self.small_share > 0 else (0,)
        self.batch_size = batch_size_on(device)

    @classmethod
    def create(cls, options: SuperPointOptions, device: str) -> SuperPointExtractor:
        """Raises: FileNotFoundError where the weights cannot be had, ValueError where they are not SuperPoint's."""
        state, record = load_weights(options.weights)
        network = load_superpoint(state)
        network.lower(network_dtype(options.precision, device))
        network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return cls(options, network, device, record)

    def num_small(self, max_keypoints: int) -> int:
        """How many of so many keypoints are found at a quarter of the size at most."""
        return int(self.small_share * max_keypoints)

    def __call__(self, image: Image) -> Features:
        return self.extract_many([image])[0]

    def extract_many(self, images: Sequence[Image]) -> list[Features]:
        """Features of each image, `batch_size` of equal size at a time."""
        return extract_in_batches(
            images, self.options.resize_max, self.options.enlarge_max, self.batch_size, self._extract, DESCRIPTOR_SIZE
        )

    @torch.inference_mode()
    def _extract(self, images: list[Image], pixels: np.ndarray) -> list[Features]:
        """Features of images whose pixels, resized, are (b, h, w, 3)."""
        grey = np.stack([to_grey(each) for each in pixels])
        outputs = self.network.pyramid(torch.tensor(grey, device=self.device)[:, None], self.octaves)
        size = pixels.shape[2], pixels.shape[1]
        return [self._features(image, size, outputs, i) for i, image in enumerate(images)]

    def _features(self, image: Image, size: tuple[int, int], outputs: Sequence[SuperPointOutput], i: int) -> Features:
        """Of image i of a batch, resized to `size`. The first octave gets what the small one leaves."""
        options = self.options
        room = options.max_keypoints
        found: list[tuple[Tensor, Tensor, Tensor]] = []
        for octave, output in zip(reversed(self.octaves), reversed(outputs), strict=True):
            keypoints, scores = detect_keypoints(
                output.scores[i],
                threshold=options.detection_threshold,
                nms_radius=options.nms_radius,
                max_keypoints=None,  # the mask comes first
                border=options.border,
                subpixel=options.subpixel,
            )
            places = octave_to_image(keypoints, octave)
            kept = strongest(image, size, places, scores, self.num_small(room) if octave else room)
            room -= len(kept)
            descriptors = sample_descriptors(keypoints[kept][None], output.descriptors[i : i + 1], centred=self.centred)[0]
            found.append((places[kept], scores[kept], descriptors))
        keypoints, scores, descriptors = (torch.cat(parts) for parts in zip(*reversed(found), strict=True))
        order = torch.argsort(scores, descending=True, stable=True)
        return make_features(image, size, keypoints[order], scores[order], descriptors[order])
