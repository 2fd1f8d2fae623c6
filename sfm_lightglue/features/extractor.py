"""What an extractor is, and the steps that all extractors share: before the network, from heatmap to maxima, and the last."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from sfm_lightglue.geometry import keypoints_to_full_image
from sfm_lightglue.images import MIN_SIDE, resize_longest
from sfm_lightglue.networks.heatmaps import sliding_maximum, windows
from sfm_lightglue.networks.weights import WeightsRecord
from sfm_lightglue.products import Features, Image

GPU_BATCH = 8
"""Photos of equal size that go through a network together on a GPU; a CPU is as fast with one."""


class Extractor(Protocol):
    """Finds and describes keypoints; built once per process, by its `create(options, device)`; safe to call from several threads.

    Its options are kept as `options`: with `weights` they tell results of other settings apart (docs/architecture.md).

    It resizes as it likes and returns pixels of the full image; keypoints where the mask is False are dropped before the
    strongest are chosen; the same image gives the same bits.
    """

    weights: tuple[WeightsRecord, ...]
    """What was loaded; empty for an extractor without weights."""

    def __call__(self, image: Image) -> Features: ...


@runtime_checkable
class BatchExtractor(Extractor, Protocol):
    """One that may be faster with several photos at a time."""

    batch_size: int
    """How many; 1 where nothing is gained."""

    def extract_many(self, images: Sequence[Image]) -> list[Features]:
        """The features of each image, different from those of single calls by rounding at most."""
        ...


def is_featureless(pixels: np.ndarray) -> bool:
    """True for uint8 pixels (h, w, 3) in which there is nothing to find: a side below MIN_SIDE px, or one colour.

    Asked before the network, because networks do answer there: ALIKED and DISK find the corners of a black image.
    """
    return min(pixels.shape[:2]) < MIN_SIDE or bool((pixels == pixels[0, 0]).all())


def rgb_tensor(pixels: np.ndarray, device: str) -> Tensor:
    """float32 (1, 3, h, w) in 0..1 from uint8 pixels (h, w, 3); (b, 3, h, w) from (b, h, w, 3)."""
    images = torch.tensor(pixels, device=device).movedim(-1, -3).float() / 255
    return images.reshape(-1, *images.shape[-3:])


def local_maxima(heatmap: Tensor, radius: int, threshold: float) -> Tensor:
    """int64 (n, 2): (x, y) pixels of the heatmap (h, w) above `threshold` and above all others in their square, row by row.

    The square reaches `radius` px to each side and lies within the heatmap.
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
    """int64 (k,): indices of the `max_keypoints` best scores (n,) of keypoints that the image's mask keeps, best first.

    Keypoints (n, 2) are pixels of the image resized to `size` (width, height). Equal scores stay in their order.
    """
    order = torch.argsort(scores, descending=True, stable=True)
    if image.mask is not None:
        full = keypoints_to_full_image(keypoints[order].cpu().numpy(), size, image.size)
        order = order[torch.from_numpy(kept_by_mask(image.mask, full)).to(order.device)]
    return order[:max_keypoints]


def kept_by_mask(mask: np.ndarray, keypoints: np.ndarray) -> np.ndarray:
    """bool (n,): whether the mask (h, w) is True at the keypoints (n, 2), px of the full image."""
    x, y = np.clip(np.rint(keypoints).astype(np.int64), 0, np.array(mask.shape[::-1]) - 1).T
    kept: np.ndarray = mask[y, x]
    return kept


def make_features(image: Image, size: tuple[int, int], keypoints: Tensor, scores: Tensor, descriptors: Tensor) -> Features:
    """The record for keypoints (n, 2) px of the image resized to `size` (width, height), descriptors (n, d)."""
    return Features(
        keypoints=keypoints_to_full_image(keypoints.cpu().numpy(), size, image.size),
        scores=scores.float().cpu().numpy(),
        descriptors=descriptors.float().contiguous().cpu().numpy(),
        image_size=image.size,
        pixel_scale=(image.size[0] / size[0] + image.size[1] / size[1]) / 2,
        name=image.name,
    )


def no_features(image: Image, descriptor_size: int) -> Features:
    """The record of an image in which nothing was found."""
    return make_features(image, image.size, torch.zeros(0, 2), torch.zeros(0), torch.zeros(0, descriptor_size))


def extract_in_batches(
    images: Sequence[Image],
    resize_max: int | None,
    enlarge_max: float,
    batch_size: int,
    extract: Callable[[list[Image], np.ndarray], list[Features]],
    descriptor_size: int,
) -> list[Features]:
    """Features of each image: `extract` gets up to `batch_size` images of equal size, with their resized pixels (b, h, w, 3)."""
    features = [no_features(image, descriptor_size) for image in images]
    groups: dict[tuple[int, ...], list[tuple[int, np.ndarray]]] = {}
    for i, image in enumerate(images):
        pixels = resize_longest(image.pixels, resize_max, enlarge_max)
        if not is_featureless(pixels):
            groups.setdefault(pixels.shape, []).append((i, pixels))
    for group in groups.values():
        for start in range(0, len(group), batch_size):
            indices, pixels_of_each = zip(*group[start : start + batch_size], strict=True)
            found = extract([images[i] for i in indices], np.stack(pixels_of_each))
            for i, result in zip(indices, found, strict=True):
                features[i] = result
    return features


def batch_size_on(device: str) -> int:
    """Photos at a time."""
    return GPU_BATCH if torch.device(device).type == "cuda" else 1


def check_at_least(options: object, **minima: float) -> None:
    """Raises: ValueError where a field of the options (None passes) is below its minimum."""
    for name, minimum in minima.items():
        value = getattr(options, name)
        if value is not None and not value >= minimum:
            raise ValueError(f"features.{name} must be at least {minimum}, found {value}")
