"""SIFT keypoints (Lowe, IJCV 2004) with RootSIFT descriptors, computed by COLMAP."""

from __future__ import annotations

import errno
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pycolmap
import torch

from sfm_lightglue.colmap import colmap_log
from sfm_lightglue.features.extractor import check_at_least, is_featureless, no_features
from sfm_lightglue.features.tensors import make_features, strongest
from sfm_lightglue.images import MIN_SIDE, resize_longest, to_grey
from sfm_lightglue.memory import MemoryBudget, memory_bytes
from sfm_lightglue.networks.weights import WeightsRecord
from sfm_lightglue.products import Features, Image

DESCRIPTOR_SIZE = 128
COLMAPS_LENGTH = 512
"""Length of COLMAP's descriptors, whose values are whole numbers from 0 to 255. Divided by it, they are of length 1 but for their
rounding, and 16 bits hold them exactly."""
DOUBLED_BELOW = 1200
"""Longest side of an image, px, below which it is doubled if nothing else is asked for. Images of 1600 px are matched as exactly
without it, in half of the time (fountain-P11, Herz-Jesus-P8). Of ten tourists' photos of 1050 px, only 3 are registered then."""
BYTES_OF_PIXEL = 90
"""Memory that COLMAP's SIFT takes for each pixel of its first octave."""
MIN_FREE_BYTES = 32 << 20
"""What the disk for temporary files must have free, beside ten times the photo."""


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
    first_octave: int | None
    """-1: double the size of the image before detection (Lowe, section 3.3). 0: do not. None: only images below DOUBLED_BELOW."""

    def __post_init__(self) -> None:
        check_at_least(self, resize_max=MIN_SIDE, enlarge_max=1, max_keypoints=1, peak_threshold=1e-6, first_octave=-1)


class SiftExtractor:
    """Runs COLMAP's SIFT on the grey image. It needs no weights and no GPU.

    Scores are scales: like COLMAP, it keeps the keypoints of the largest structures.
    """

    budget = MemoryBudget(memory_bytes() // 2)
    """For all extractors of the process: photos of 100 megapixels take 36 GB each."""
    weights: tuple[WeightsRecord, ...] = ()
    finds_fine_keypoints = ignores_turns = True

    def __init__(self, options: SiftOptions) -> None:
        self.options, self.device = options, "cpu"
        self.chose_octave = options.first_octave is None

    @classmethod
    def create(cls, options: SiftOptions, device: str) -> SiftExtractor:
        """The extractor. It runs on the CPU, whatever the device."""
        return cls(options)

    def __call__(self, image: Image) -> Features:
        """The features of one image."""
        pixels = resize_longest(image.pixels, self.options.resize_max, self.options.enlarge_max)
        if is_featureless(pixels):
            return _no_features(image)
        grey = (to_grey(pixels) * 255).clip(0, 255).astype(np.uint8)
        first_octave = self.options.first_octave
        if first_octave is None:
            first_octave = -1 if max(grey.shape) < DOUBLED_BELOW else 0
        with self.budget.reserved(int(BYTES_OF_PIXEL * grey.size / 4**first_octave)):
            places, shapes, described = _detect(grey, first_octave, self.options.peak_threshold)
        if len(places) == 0:
            return _no_features(image)
        scales = (np.hypot(shapes[:, 0, 0], shapes[:, 1, 0]) + np.hypot(shapes[:, 0, 1], shapes[:, 1, 1])) / 2
        keypoints = torch.from_numpy(places - np.float32(0.5))  # COLMAP's centre of the first pixel is (0.5, 0.5)
        size = pixels.shape[1], pixels.shape[0]
        kept = strongest(image, size, keypoints, torch.from_numpy(scales), self.options.max_keypoints)
        descriptors = torch.tensor(described[kept.numpy()], dtype=torch.float32) / COLMAPS_LENGTH
        features = make_features(image, size, keypoints[kept], torch.from_numpy(scales)[kept], descriptors)
        diameters = 2 * scales[kept.numpy()] * np.float32(features.pixel_scale)  # COLMAP's scale is a standard deviation
        angles = np.arctan2(shapes[:, 1, 0], shapes[:, 0, 0])[kept.numpy()]
        return replace(features, scales=diameters, orientations=angles)


def _detect(grey: np.ndarray, first_octave: int, peak_threshold: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All keypoints in COLMAP's pixels (n, 2), their affine shapes (n, 2, 2), float32, and descriptors uint8 (n, 128).

    COLMAP's function for photos in memory holds Python's lock while it computes (pycolmap 4.2), so several threads would be no
    faster than one. Its function for files does not. So the pixels go through a folder, and the results through a database.
    """
    detection = pycolmap.FeatureExtractionOptions(use_gpu=False, num_threads=1, max_image_size=max(grey.shape))
    detection.sift.peak_threshold, detection.sift.first_octave = peak_threshold, first_octave
    detection.sift.max_num_features = 2**31 - 1  # COLMAP would cut whole octaves, and before the mask
    with tempfile.TemporaryDirectory(prefix="sfm_lightglue-sift-") as folder, colmap_log(None):
        if shutil.disk_usage(folder).free < 10 * grey.nbytes + MIN_FREE_BYTES:  # COLMAP would end the process
            text = "the disk for temporary files is full, SIFT needs some MB there; TMPDIR names another one"
            raise OSError(errno.ENOSPC, text, folder)
        photo, database = Path(folder) / "photo.pgm", Path(folder) / "database.db"
        photo.write_bytes(b"P5 %d %d 255\n" % grey.shape[::-1] + grey.tobytes())
        pycolmap.extract_features(
            database, folder, image_names=[photo.name], extraction_options=detection, device=pycolmap.Device.cpu
        )
        with pycolmap.Database.open(database) as opened:
            number = opened.read_all_images()[0].image_id
            keypoints, descriptors = opened.read_keypoints(number), opened.read_descriptors(number).data
    return keypoints[:, :2].astype(np.float32), keypoints[:, 2:].astype(np.float32).reshape(-1, 2, 2), descriptors


def _no_features(image: Image) -> Features:
    """The record of an image without keypoints. It has scales and orientations too, which the LightGlue for SIFT needs."""
    nothing = np.zeros(0, np.float32)
    return replace(no_features(image, DESCRIPTOR_SIZE), scales=nothing, orientations=nothing)
