"""What happens to each photo in the stage `extract`: it is decoded, turned upright, given to the extractor, and checked."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeAlias, TypeVar

import numpy as np

from sfm_lightglue.execution.devices import num_cores
from sfm_lightglue.execution.executor import Executor, checked_results
from sfm_lightglue.execution.portable import Failure, PortablePlugin
from sfm_lightglue.features.extractor import BatchExtractor, Extractor
from sfm_lightglue.images import Range, load_image
from sfm_lightglue.orientation import UPRIGHT, stored_features, upright_image, upright_size
from sfm_lightglue.products import Features, Image
from sfm_lightglue.storage import GroupData, features_to_group

logger = logging.getLogger(__name__)

USEFUL_PIXELS = 3
"""A JPEG is decoded at a part of its size if that part still has as many pixels for each pixel along a side that the extractor
sees: resizing averages them. With 1.5 or 1.9, keypoints are a little less precise."""

Result = TypeVar("Result")

Extracted: TypeAlias = tuple[GroupData, int]
"""What is stored for a photo, and its number of keypoints."""
Reader: TypeAlias = Callable[[str], tuple[Image, int]]
"""Name of a photo -> the upright photo, and the EXIF code that turned it."""
Job: TypeAlias = Callable[[tuple[str, ...]], list[Extracted | Failure]]
"""Names of a few photos -> the result of each, or why it failed."""


def reader_of(
    images: Path, extractor: Extractor, masks: Mapping[str, Path], ranges: Mapping[str, Range], orientations: Mapping[str, int]
) -> Reader:
    """Reads photos of a folder as the extractor needs them. Picklable.

    Args:
        images: The folder.
        extractor: Decides at what size photos are decoded.
        masks: Mask by name of the photo.
        ranges: Range of the pixel values by name, see `camera_ranges`.
        orientations: EXIF codes of the photos that are not upright as they are stored.
    """
    load = functools.partial(
        load_image,
        images,
        masks=masks,
        use_alpha=not getattr(extractor, "keeps_all_keypoints", False),
        ranges=ranges,
        longest=_useful_size(extractor),
    )
    return functools.partial(_read_upright, load, orientations)


def _read_upright(load: Callable[[str], Image], orientations: Mapping[str, int], name: str) -> tuple[Image, int]:
    """The photo with its mask, turned upright, and the code that turned it."""
    orientation = orientations.get(name, UPRIGHT)
    return upright_image(dataclasses.replace(load(name), orientation=orientation)), orientation


def extract_each(
    names: Sequence[str], read: Reader, extractor: Extractor, executor: Executor
) -> Generator[tuple[str, Extracted | Exception], None, None]:
    """Each photo with its result, or with the error.

    Photos are divided into batches by their order alone, so results do not depend on the order in which batches finish.
    """
    batch_size = extractor.batch_size if isinstance(extractor, BatchExtractor) else 1
    batches = [tuple(names[start : start + batch_size]) for start in range(0, len(names), batch_size)]
    recipe = functools.partial(_open_worker, PortablePlugin(extractor), read)
    with contextlib.closing(checked_results(executor, recipe, batches)) as jobs:
        for batch, results in jobs:
            if isinstance(results, Exception):
                raise results
            for name, result in zip(batch, results, strict=True):
                yield name, result.error if isinstance(result, Failure) else result


@contextlib.contextmanager
def _open_worker(extractor: PortablePlugin[Extractor], read: Reader, device: str) -> Iterator[Job]:
    """The recipe of this stage: a worker with an extractor. The photos of a batch are read in several threads."""
    with ThreadPoolExecutor(num_cores()) as readers:
        yield functools.partial(_extract, extractor.on(device), read, readers)


def _extract(
    extractor: Extractor, read: Reader, readers: ThreadPoolExecutor, batch: tuple[str, ...]
) -> list[Extracted | Failure]:
    """The result of each photo of a batch, or its error."""
    read_all = readers.map if len(batch) > 1 else map
    photos = list(read_all(functools.partial(_attempt, read), batch))
    found = iter(_extract_batch(extractor, [photo[0] for photo in photos if not isinstance(photo, Failure)]))
    results: list[Extracted | Failure] = []
    for photo in photos:
        if isinstance(photo, Failure):
            results.append(photo)
        else:
            features = next(found)
            results.append(features if isinstance(features, Failure) else _attempt(_checked_group, *photo, features))
    return results


def _extract_batch(extractor: Extractor, images: list[Image]) -> list[Features | Failure]:
    """The features of each image, or its error. If the batch fails, its images are tried one by one."""
    if isinstance(extractor, BatchExtractor) and len(images) > 1:
        try:
            features = extractor.extract_many(images)
            if len(features) != len(images):
                raise ValueError(f"extract_many gave {len(features)} results for {len(images)} images")
            return [*features]
        except Exception as error:
            logger.warning("a batch of %d photos failed; they are tried one by one: %s", len(images), error)
    return [_attempt(extractor, image) for image in images]


def _attempt(function: Callable[..., Result], *arguments: object) -> Result | Failure:
    try:
        return function(*arguments)
    except Exception as error:
        return Failure(error)


def _checked_group(image: Image, orientation: int, features: Features) -> Extracted:
    """What is stored for a photo. `image` is the upright photo that the extractor got, `orientation` the code that turned it."""
    _check(features, image)
    full_size = None if image.full_size is None else upright_size(image.full_size, orientation)
    stored = _in_full_photo(stored_features(features, orientation), full_size)
    group = features_to_group(stored)
    if image.mask is not None:
        group = GroupData(group.datasets, {**group.attributes, "": {**group.attributes.get("", {}), "is_masked": True}})
    return group, len(features)


def _useful_size(extractor: Extractor) -> int | None:
    """Longest side, px, beyond which pixels of a photo do not matter to the extractor; None if it may use all."""
    resize_max: int | None = getattr(getattr(extractor, "options", None), "resize_max", None)
    return None if resize_max is None else round(USEFUL_PIXELS * resize_max)


def _in_full_photo(features: Features, full_size: tuple[int, int] | None) -> Features:
    """The features in pixels of the stored photo, if the extractor saw a photo that was decoded at a reduced size."""
    if full_size is None:
        return features
    factor, full = round(max(full_size) / max(features.image_size)), np.array(full_size)
    # JPEG's reduced pixels cover whole pixels of the photo. The last one may reach beyond the edge.
    keypoints = np.minimum((features.keypoints + 0.5) * factor - 0.5, full - 1).astype(np.float32)
    return dataclasses.replace(
        features,
        keypoints=keypoints,
        image_size=full_size,
        pixel_scale=features.pixel_scale * factor,
        scales=None if features.scales is None else features.scales * np.float32(factor),
    )


def _check(features: Features, image: Image) -> None:
    """Raises: ValueError if an extractor breaks its contract."""
    count, problem = len(features.keypoints), None
    arrays = features.keypoints, features.scores, features.descriptors
    shapes = tuple(array.shape for array in arrays)
    if shapes[:2] != ((count, 2), (count,)) or shapes[2][:-1] != (count,):
        problem = f"keypoints, scores, descriptors have shapes {shapes}, expected (n, 2), (n,), (n, d)"
    elif not all(np.isfinite(array).all() for array in arrays):
        problem = "some values are not finite numbers"
    elif features.image_size != image.size:
        problem = f"image_size is {features.image_size}, the photo has {image.size}"
    elif count and not (features.keypoints.min() >= -0.5 and (features.keypoints.max(axis=0) < image.size).all()):
        problem = f"keypoints lie outside the image of {image.size[0]} x {image.size[1]} px"
    if problem:
        raise ValueError(f"the extractor's result for {image.name} is not valid: {problem}")
