"""An extractor without weights whose descriptors change with the turn of the photo: patches around the maxima of the photo."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sfm_lightglue.products import Features, Image


@dataclass(frozen=True)
class PatchOptions:
    name: str
    max_keypoints: int


class Patches:
    weights = ()

    def __init__(self, options: PatchOptions) -> None:
        self.options = options

    @classmethod
    def create(cls, options: PatchOptions, device: str) -> Patches:
        return cls(options)

    def __call__(self, image: Image) -> Features:
        grey = image.pixels.astype(np.float32).mean(axis=2)
        around = np.lib.stride_tricks.sliding_window_view(grey, (9, 9))  # h-8 w-8 9 9
        is_maximum = grey[4:-4, 4:-4] >= around.max(axis=(2, 3))
        y, x = np.nonzero(is_maximum if image.mask is None else is_maximum & image.mask[4:-4, 4:-4])
        order = np.argsort(-grey[y + 4, x + 4], kind="stable")[: self.options.max_keypoints]
        y, x = y[order], x[order]
        patches = around[y, x].reshape(len(x), 81)
        patches = patches - patches.mean(axis=1, keepdims=True)
        descriptors = patches / np.maximum(np.linalg.norm(patches, axis=1, keepdims=True), 1e-6)
        keypoints = np.stack([x + 4, y + 4], axis=1).astype(np.float32)
        return Features(keypoints, grey[y + 4, x + 4] / 255, descriptors.astype(np.float32), image.size, name=image.name)
