"""SuperPoint keypoints and descriptors (arXiv:1712.07629)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from sfm_lightglue.features.extractor import batch_size_on, check_at_least, extract_in_batches
from sfm_lightglue.images import MIN_SIDE, to_grey
from sfm_lightglue.networks.precision import AUTO, check_precision, network_dtype, resolved_precision
from sfm_lightglue.networks.weights import WeightsRecord, load_weights, weights_record
from sfm_lightglue.once import Once
from sfm_lightglue.products import Features, Image
from sfm_lightglue.ranges import check_ranges

if TYPE_CHECKING:  # functions that compute import torch: a run with nothing to do needs none
    from torch import Tensor

    from sfm_lightglue.engine.kernel_calls import Kernels
    from sfm_lightglue.networks.superpoint import SuperPoint, SuperPointOutput

LOW_IS_ENOUGH = frozenset({"superpoint-open"})
"""Weights for which poses from `low` are as exact as from `float32` (docs/speed.md)."""
INT8_LIMITS = {"superpoint-open": {"1b": 12.0, "2a": 10.6, "2b": 7.4, "3a": 6.7, "3b": 6.3}}
"""Weights -> the largest activations that convolutions in 8 bits read: 0.55 of the maxima over 40 training photos. With that the
keypoints of other training photos were nearest to those of float32."""


@dataclass(frozen=True)
class SuperPointOptions:
    """Options. Their default values are in configs/features/superpoint.yaml."""

    name: str
    weights: str
    """A name, or a file with the keys of the original code or of Hugging Face."""
    resize_max: int | None
    """Longest side of the image in which keypoints are detected, px; None: full size."""
    enlarge_max: float
    """Largest factor by which smaller photos are enlarged, up to resize_max; 1: never."""
    max_keypoints: int
    small_share: float | None
    """Maximum fraction of keypoints detected at 1/4 resolution, 0..1. None: SMALL_SHARE for weights with octaves, else 0."""
    detection_threshold: float
    """Smallest probability of a keypoint, 0..1."""
    nms_radius: int
    """Two keypoints are more than this apart along x or along y, px of the resized image."""
    border: int
    """Width of the frame without keypoints, px of the resized image."""
    subpixel: bool
    """Move each keypoint to the expected position in its 5x5 window."""
    precision: str
    """`float32`, or `low` for convolutions in 8 and 16 bits if the device is faster with them. `auto`: low on such a
    device for the weights in `LOW_IS_ENOUGH`, else float32."""

    def __post_init__(self) -> None:
        check_precision(self.precision, "features.precision", may_be_auto=True)
        if self.small_share is not None and self.small_share > 1:
            raise ValueError(f"features.small_share must lie in 0..1, found {self.small_share}")
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
        check_ranges(self, "features", detection_threshold="<= 1")


class SuperPointExtractor:
    """Runs the network on the grey image. The last width % 8 columns and height % 8 rows have no keypoints."""

    def __init__(self, options: SuperPointOptions, network: SuperPoint | None, device: str, weights: WeightsRecord) -> None:
        """Without a network, it is built from the weights by `load`, or at the first use."""
        self.given, self.device, self.weights = options, device, (weights,)
        self._network = Once(lambda: network or self._build())
        self.chose_precision = options.precision == AUTO
        self.shared_precision = "low" if options.weights in LOW_IS_ENOUGH else "float32"
        self.centred = weights.metadata.get("descriptor_sampling") == "centred"
        self.batch_size = batch_size_on(device)

    @classmethod
    def planned(cls, options: SuperPointOptions, device: str) -> SuperPointExtractor:
        """The extractor before its weights are loaded.

        Raises: FileNotFoundError if the weights cannot be found or downloaded, ValueError if there are none of this name.
        """
        return cls(options, None, device, weights_record(options.weights))

    @classmethod
    def create(cls, options: SuperPointOptions, device: str) -> SuperPointExtractor:
        """The extractor with its weights loaded. Raises: as `planned`, and ValueError if the weights are not SuperPoint's."""
        extractor = cls.planned(options, device)
        extractor.load()
        return extractor

    def load(self) -> None:
        """Builds the network now. Raises: ValueError if the weights are not SuperPoint's."""
        self._network()

    @cached_property
    def options(self) -> SuperPointOptions:
        """The options, with the precision that `auto` stands for."""
        if self.given.precision != AUTO:
            return self.given
        is_enough, has_integers = self.given.weights in LOW_IS_ENOUGH, self._int8_limits() is not None
        precision = resolved_precision(AUTO, self.device, low_is_enough=is_enough, has_integers=has_integers)
        return replace(self.given, precision=precision)

    @property
    def network(self) -> SuperPoint:
        """The network with its weights, on the device."""
        return self._network()

    @cached_property
    def small_share(self) -> float:
        """Maximum fraction of keypoints detected at 1/4 resolution."""
        from sfm_lightglue.networks.superpoint import SMALL_SHARE

        has_octaves = self.network.octaves or self.network.head
        return (SMALL_SHARE if has_octaves else 0.0) if self.given.small_share is None else self.given.small_share

    @cached_property
    def octaves(self) -> tuple[int, ...]:
        """The octaves in which keypoints are detected."""
        from sfm_lightglue.networks.superpoint import SMALL_OCTAVE

        return (0, SMALL_OCTAVE) if self.small_share > 0 else (0,)

    def _kernels(self) -> Kernels | None:
        """The compiled kernels, for the CPU."""
        from sfm_lightglue.engine.kernels import load_kernels

        return load_kernels(may_compile=True) if self.device.split(":")[0] == "cpu" else None

    def _int8_limits(self) -> dict[str, float] | None:
        """The limits of convolutions in 8 bits, if the device is fast with them."""
        from sfm_lightglue.networks import int8

        limits = INT8_LIMITS.get(self.given.weights) if self.device.split(":")[0] == "cpu" else None
        return limits if limits and (self._kernels() is not None or int8.is_fast()) else None

    def _build(self) -> SuperPoint:
        import torch

        from sfm_lightglue.networks.superpoint import load_superpoint

        network = load_superpoint(load_weights(self.given.weights)[0])
        precision = self.options.precision
        limits = self._int8_limits() if precision == "low" else None
        network.lower(network_dtype(precision, self.device), limits, self._kernels())
        network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return network

    def num_small(self, max_keypoints: int) -> int:
        """Keypoint budget of the 1/4-resolution level, out of `max_keypoints`."""
        return int(self.small_share * max_keypoints)

    def __call__(self, image: Image) -> Features:
        """The features of one image."""
        return self.extract_many([image])[0]

    def extract_many(self, images: Sequence[Image]) -> list[Features]:
        """The features of each image. Up to `batch_size` images of the same size run together."""
        return extract_in_batches(
            images,
            self.options.resize_max,
            self.options.enlarge_max,
            self.batch_size,
            self._extract,
            self.network.descriptor_size,
        )

    def _extract(self, images: list[Image], pixels: np.ndarray) -> list[Features]:
        """The features of b images. `pixels` are the resized images, uint8 (b, h, w, 3)."""
        import torch

        grey = np.stack([to_grey(each) for each in pixels])
        size = pixels.shape[2], pixels.shape[1]
        with torch.inference_mode():
            outputs = self.network.pyramid(torch.tensor(grey, device=self.device)[:, None], self.octaves)
            return [self._features(image, size, outputs, i) for i, image in enumerate(images)]

    def _features(self, image: Image, size: tuple[int, int], outputs: Sequence[SuperPointOutput], i: int) -> Features:
        """The features of image i of a batch, resized to `size` (width, height).

        The small octave comes first. The first octave gets the rest of the keypoint budget.
        """
        import torch

        from sfm_lightglue.features.tensors import make_features, strongest
        from sfm_lightglue.networks.heatmaps import detect_keypoints
        from sfm_lightglue.networks.superpoint import octave_to_image

        options = self.options
        room = options.max_keypoints
        found: list[tuple[Tensor, Tensor, Tensor]] = []
        for octave, output in zip(reversed(self.octaves), reversed(outputs), strict=True):
            keypoints, scores = detect_keypoints(
                output.scores[i],
                threshold=options.detection_threshold,
                nms_radius=options.nms_radius,
                max_keypoints=None,  # `strongest` applies the mask first
                border=options.border,
                subpixel=options.subpixel,
            )
            places = octave_to_image(keypoints, octave)
            kept = strongest(image, size, places, scores, self.num_small(room) if octave else room)
            room -= len(kept)
            descriptors = self.network.describe(output, i, keypoints[kept], centred=self.centred)
            found.append((places[kept], scores[kept], descriptors))
        keypoints, scores, descriptors = (torch.cat(parts) for parts in zip(*reversed(found), strict=True))
        order = torch.argsort(scores, descending=True, stable=True)
        return make_features(image, size, keypoints[order], scores[order], descriptors[order])
