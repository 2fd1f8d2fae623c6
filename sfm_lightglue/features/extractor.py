"""The contract of an extractor, and what extractors share without torch. `tensors` has the steps that compute with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from sfm_lightglue.images import MIN_SIDE, resize_longest
from sfm_lightglue.networks.weights import WeightsRecord
from sfm_lightglue.orientation import stored_features, upright_image
from sfm_lightglue.products import Features, Image
from sfm_lightglue.ranges import check_ranges

GPU_BATCH = 8
"""Number of photos of equal size that a network takes together on a GPU. A CPU is as fast with one photo."""


class Extractor(Protocol):
    """Finds and describes keypoints.

    - Each process builds it once, by its classmethod `create(options, device)`, and calls it from several threads.
    - It keeps its options as the attribute `options`. Options and `weights` are stored with the results, so that results of
      other settings are recognised (docs/architecture.md). Another process creates it again from class and options.
    - It may have a classmethod `planned`, which is `create` without the slow part: the network is built by its method `load`, or
      at its first use. Then `given` are the options before `auto` was replaced. A run with nothing to do builds no network.
    - It may resize the image. Keypoints are returned in pixels of the full image.
    - It drops keypoints where the mask is False before it selects the strongest ones.
    - The same image gives the same bits.
    - The stage gives it upright photos. An extractor that does not look at the pixels sets the class attribute
      `turns_photos = False`, and gets photos as they are stored.
    - If it finds keypoints as exactly as patches of photos can be aligned, to a fifth of a pixel, it sets the class attribute
      `finds_fine_keypoints = True`, and the stage refine leaves them as they are.
    - If turned photos get the same keypoints and descriptors, it sets the class attribute `ignores_turns = True`.
    """

    weights: tuple[WeightsRecord, ...]
    """The loaded weights; empty for an extractor without weights."""

    def __call__(self, image: Image) -> Features:
        """The features of the image; no keypoints is a valid result."""
        ...


@runtime_checkable
class BatchExtractor(Extractor, Protocol):
    """An extractor that may be faster with several photos at a time."""

    batch_size: int
    """Number of photos it takes at a time; 1 if a batch is not faster."""

    def extract_many(self, images: Sequence[Image]) -> list[Features]:
        """The features of each image; they differ from the results of single calls at most by rounding."""
        ...


def extract_upright(extractor: Extractor, image: Image) -> Features:
    """The features of the photo, found in its upright pixels and mapped back to the stored photo."""
    if not getattr(extractor, "turns_photos", True):
        return extractor(image)
    return stored_features(extractor(upright_image(image)), image.orientation)


def is_featureless(pixels: np.ndarray) -> bool:
    """True for uint8 pixels (h, w, 3) that cannot have features: a side is shorter than MIN_SIDE px, or all have one colour.

    Extractors ask this before they run a network, because ALIKED and DISK find keypoints in the corners of a black image.
    """
    return min(pixels.shape[:2]) < MIN_SIDE or bool((pixels == pixels[0, 0]).all())


def kept_by_mask(mask: np.ndarray, keypoints: np.ndarray) -> np.ndarray:
    """bool (n,): the value of the mask (h, w) at each keypoint (n, 2), px of the full image."""
    x, y = np.clip(np.rint(keypoints).astype(np.int64), 0, np.array(mask.shape[::-1]) - 1).T
    kept: np.ndarray = mask[y, x]
    return kept


def no_features(image: Image, descriptor_size: int) -> Features:
    """The record of an image without keypoints."""
    none = np.zeros(0, np.float32)
    return Features(none.reshape(0, 2), none, np.zeros((0, descriptor_size), np.float32), image.size, 1.0, name=image.name)


def extract_in_batches(
    images: Sequence[Image],
    resize_max: int | None,
    enlarge_max: float,
    batch_size: int,
    extract: Callable[[list[Image], np.ndarray], list[Features]],
    descriptor_size: int,
) -> list[Features]:
    """Features of each image, extracted in batches of images with equal resized size.

    An image for which `is_featureless` is true has no keypoints.

    Args:
        images: Photos of any sizes.
        resize_max: Longest side after resizing, px; None keeps the size.
        enlarge_max: Largest factor by which a small photo is enlarged.
        batch_size: Maximum number of photos in a batch.
        extract: Called with the photos of a batch and their resized pixels, uint8 (b, h, w, 3); returns their features.
        descriptor_size: Dimension of a descriptor, for photos without keypoints.
    """
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
    """Number of photos that a network takes at a time on the device."""
    return GPU_BATCH if device.split(":")[0] == "cuda" else 1


def check_at_least(options: object, **minima: float) -> None:
    """Raises: ValueError with a line for each field of the options that is below its minimum; None is accepted."""
    check_ranges(options, "features", **{name: f">= {minimum}" for name, minimum in minima.items()})
