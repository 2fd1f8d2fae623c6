"""What an extractor is, and the steps that all extractors share: before the network, from heatmap to maxima, and the last."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from kornia.geometry.subpix import nms2d
from torch import Tensor

from sfm_lightglue.geometry import keypoints_to_full_image
from sfm_lightglue.images import MIN_SIDE
from sfm_lightglue.networks.weights import WeightsRecord
from sfm_lightglue.products import Features, Image


class Extractor(Protocol):
    """Finds and describes keypoints; built once per process, safe to call from several threads.

    It resizes as it likes and returns pixels of the full image; keypoints where the mask is False are dropped before the
    strongest are chosen; the same image gives the same bits.
    """

    weights: tuple[WeightsRecord, ...]

    def __call__(self, image: Image) -> Features: ...


def is_featureless(pixels: np.ndarray) -> bool:
    """True for uint8 pixels (h, w, 3) in which there is nothing to find: a side below MIN_SIDE px, or one colour.

    Asked before the network, because networks do answer there: ALIKED and DISK find the corners of a black image.
    """
    return min(pixels.shape[:2]) < MIN_SIDE or bool((pixels == pixels[0, 0]).all())


def rgb_tensor(pixels: np.ndarray, device: str) -> Tensor:
    """float32 (1, 3, h, w) in 0..1 from uint8 pixels (h, w, 3)."""
    return torch.tensor(pixels, device=device).permute(2, 0, 1)[None].float() / 255


def local_maxima(heatmap: Tensor, radius: int, threshold: float) -> Tensor:
    """int64 (n, 2): (x, y) pixels of the heatmap (h, w) above `threshold` and above all others in their square, row by row.

    The square reaches `radius` px to each side and lies within the heatmap.
    """
    inside = torch.zeros_like(heatmap, dtype=torch.bool)
    inside[radius : heatmap.shape[0] - radius, radius : heatmap.shape[1] - radius] = True
    window = (2 * radius + 1, 2 * radius + 1)
    is_maximum = nms2d(heatmap[None, None], window, mask_only=True)[0, 0] & inside & (heatmap > threshold)
    return is_maximum.nonzero().flip(1)


def strongest(image: Image, size: tuple[int, int], keypoints: Tensor, scores: Tensor, max_keypoints: int) -> Tensor:
    """int64 (k,): indices of the `max_keypoints` best scores (n,) of keypoints that the image's mask keeps, best first.

    Keypoints (n, 2) are pixels of the image resized to `size` (width, height). Equal scores stay in their order.
    """
    order = torch.argsort(scores, descending=True, stable=True)
    if image.mask is not None:
        full = keypoints_to_full_image(keypoints[order].cpu().numpy(), size, image.size)
        x, y = np.clip(np.rint(full).astype(np.int64), 0, np.array(image.size) - 1).T
        order = order[torch.from_numpy(image.mask[y, x]).to(order.device)]
    return order[:max_keypoints]


def make_features(image: Image, size: tuple[int, int], keypoints: Tensor, scores: Tensor, descriptors: Tensor) -> Features:
    """The record for keypoints (n, 2) px of the image resized to `size` (width, height), descriptors (n, d)."""
    return Features(
        keypoints=keypoints_to_full_image(keypoints.cpu().numpy(), size, image.size),
        scores=scores.float().cpu().numpy(),
        descriptors=descriptors.float().contiguous().cpu().numpy(),
        image_size=image.size,
        uncertainty=(image.size[0] / size[0] + image.size[1] / size[1]) / 2,
        name=image.name,
    )


def no_features(image: Image, descriptor_size: int) -> Features:
    """The record of an image in which nothing was found."""
    return make_features(image, image.size, torch.zeros(0, 2), torch.zeros(0), torch.zeros(0, descriptor_size))


def check_at_least(options: object, **minima: float) -> None:
    """Raises: ValueError where a field of the options (None passes) is below its minimum."""
    for name, minimum in minima.items():
        value = getattr(options, name)
        if value is not None and not value >= minimum:
            raise ValueError(f"features.{name} must be at least {minimum}, found {value}")
