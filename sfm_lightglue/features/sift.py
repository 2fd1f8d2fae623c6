"""SIFT keypoints (Lowe, IJCV 2004) with RootSIFT descriptors, computed by COLMAP."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pycolmap
import torch

from sfm_lightglue.colmap import colmap_log
from sfm_lightglue.features.extractor import check_at_least, is_featureless, no_features
from sfm_lightglue.features.tensors import make_features, strongest
from sfm_lightglue.images import MIN_SIDE, resize_longest, to_grey
from sfm_lightglue.networks.weights import WeightsRecord
from sfm_lightglue.products import Features, Image

DESCRIPTOR_SIZE = 128


@dataclass(frozen=True)
class SiftOptions:
    """Options. Their default values are in configs/features/sift.yaml."""

    name: str
    resize_max: int | None
    """Longest side of the image in which keypoints are detected, px; None: full size."""
    enlarge_max: float
    """Largest factor by which smaller photos are enlarged, up to resize_max; 1: never."""
    max_keypoints: int
    peak_threshold: float
    """Smallest contrast of a keypoint (difference of Gaussians), for intensities in 0..1."""
    first_octave: int
    """-1: double the size of the image before detection (Lowe, section 3.3). 0: do not."""

    def __post_init__(self) -> None:
        check_at_least(self, resize_max=MIN_SIDE, enlarge_max=1, max_keypoints=1, peak_threshold=1e-6, first_octave=-1)


class SiftExtractor:
    """Runs COLMAP's SIFT on the grey image. It needs no weights and no GPU.

    Scores are scales: like COLMAP, it keeps the keypoints of the largest structures. COLMAP holds Python's lock while it computes
    (pycolmap 4.2), so several threads are no faster than one.
    """

    weights: tuple[WeightsRecord, ...] = ()

    def __init__(self, options: SiftOptions, detector: pycolmap.FeatureExtractor) -> None:
        self.options, self.detector = options, detector

    @classmethod
    def create(cls, options: SiftOptions, device: str) -> SiftExtractor:
        """The extractor. It runs on the CPU, whatever the device."""
        detection = pycolmap.FeatureExtractionOptions(use_gpu=False, num_threads=1)
        detection.sift.peak_threshold = options.peak_threshold
        detection.sift.first_octave = options.first_octave
        detection.sift.max_num_features = 2**31 - 1  # COLMAP would cut whole octaves, and before the mask
        with colmap_log(None):
            return cls(options, pycolmap.FeatureExtractor.create(detection, pycolmap.Device.cpu))

    def __call__(self, image: Image) -> Features:
        """The features of one image."""
        pixels = resize_longest(image.pixels, self.options.resize_max, self.options.enlarge_max)
        if is_featureless(pixels):
            return _no_features(image)
        found, described = self.detector.extract_from_float32_array(to_grey(pixels))
        if len(found) == 0:
            return _no_features(image)
        table = np.array([(p.x, p.y, p.compute_scale(), p.compute_orientation()) for p in found], np.float32)
        keypoints = torch.from_numpy(table[:, :2] - 0.5)  # COLMAP's centre of the first pixel is (0.5, 0.5)
        size = pixels.shape[1], pixels.shape[0]
        kept = strongest(image, size, keypoints, torch.from_numpy(table[:, 2]), self.options.max_keypoints)
        descriptors = torch.nn.functional.normalize(torch.tensor(described.data[kept.numpy()], dtype=torch.float32), dim=1)
        features = make_features(image, size, keypoints[kept], torch.from_numpy(table[:, 2])[kept], descriptors)
        diameters = 2 * table[kept.numpy(), 2] * np.float32(features.pixel_scale)  # COLMAP's scale is a standard deviation
        return replace(features, scales=diameters, orientations=table[kept.numpy(), 3])


def _no_features(image: Image) -> Features:
    """The record of an image without keypoints. It has scales and orientations too, which the LightGlue for SIFT needs."""
    nothing = np.zeros(0, np.float32)
    return replace(no_features(image, DESCRIPTOR_SIZE), scales=nothing, orientations=nothing)
