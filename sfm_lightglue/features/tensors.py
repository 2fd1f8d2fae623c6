"""The steps that extractors share on tensors: preparing pixels, finding maxima, making the record."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sfm_lightglue.features.extractor import kept_by_mask
from sfm_lightglue.geometry import keypoints_to_full_image
from sfm_lightglue.networks.heatmaps import sliding_maximum, windows
from sfm_lightglue.products import Features, Image


def rgb_tensor(pixels: np.ndarray, device: str) -> Tensor:
    """float32 (1, 3, h, w) in 0..1 from uint8 pixels (h, w, 3); (b, 3, h, w) from (b, h, w, 3)."""
    images = torch.tensor(pixels, device=device).movedim(-1, -3).float() / 255
    return images.reshape(-1, *images.shape[-3:])


def local_maxima(heatmap: Tensor, radius: int, threshold: float) -> Tensor:
    """int64 (n, 2): (x, y) of the local maxima of a heatmap (h, w), row by row.

    A local maximum is larger than `threshold` and larger than all other pixels within `radius` px in x and y. This square must be
    completely inside the heatmap.
    """
    side = 2 * radius + 1
    if min(heatmap.shape) < side:
        return torch.zeros(0, 2, dtype=torch.int64, device=heatmap.device)
    height, width = heatmap.shape
    inside = heatmap[radius : height - radius, radius : width - radius]
    pixels = ((inside == sliding_maximum(heatmap, side)) & (inside > threshold)).nonzero().flip(1) + radius
    nearby = windows(heatmap, pixels, radius)  # n k k
    return pixels[(nearby == nearby.amax(dim=(1, 2), keepdim=True)).sum(dim=(1, 2)) == 1]


def strongest(image: Image, size: tuple[int, int], keypoints: Tensor, scores: Tensor, max_keypoints: int) -> Tensor:
    """int64 (k,): indices of the best keypoints that the image's mask keeps, best first, at most `max_keypoints`.

    Args:
        image: The photo with its mask, if it has one.
        size: Width and height to which the photo was resized.
        keypoints: (n, 2), pixels of the resized photo.
        scores: (n,); equal scores stay in their order.
        max_keypoints: Maximum number of keypoints.
    """
    order = torch.argsort(scores, descending=True, stable=True)
    if image.mask is not None:
        full = keypoints_to_full_image(keypoints[order].cpu().numpy(), size, image.size)
        order = order[torch.from_numpy(kept_by_mask(image.mask, full)).to(order.device)]
    return order[:max_keypoints]


def make_features(image: Image, size: tuple[int, int], keypoints: Tensor, scores: Tensor, descriptors: Tensor) -> Features:
    """The record of keypoints (n, 2), px of the image resized to `size` (width, height), scores (n,) and descriptors (n, d)."""
    return Features(
        keypoints=keypoints_to_full_image(keypoints.cpu().numpy(), size, image.size),
        scores=scores.float().cpu().numpy(),
        descriptors=descriptors.float().contiguous().cpu().numpy(),
        image_size=image.size,
        pixel_scale=(image.size[0] / size[0] + image.size[1] / size[1]) / 2,
        name=image.name,
    )
