"""The stage images -> features: reads a folder of photos, writes `features.h5`."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from sfm_lightglue.execution.devices import num_cores
from sfm_lightglue.execution.progress import progress_bar
from sfm_lightglue.execution.threads import run_jobs, torch_threads
from sfm_lightglue.features.extractor import BatchExtractor, Extractor
from sfm_lightglue.images import UnreadableImage, list_images, load_image
from sfm_lightglue.products import Features, Image
from sfm_lightglue.settings import plugin_settings
from sfm_lightglue.storage import GroupData, SettingsChanged, ShardStore, features_to_group

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True)
class ExtractionReport:
    """What the stage did."""

    num_images: int
    """Images with features on disk, of those asked for."""
    num_computed: int
    """Those of them computed now; the rest were there."""
    mean_keypoints: float
    """Keypoints per image, of the images computed now."""
    without_keypoints: list[str]
    """Images computed now in which nothing was detected."""
    skipped: dict[str, str]
    """Photos that could not be used -> why."""


def extract_features(
    images: Path | str,
    output: Path | str,
    extractor: Extractor,
    *,
    names: Sequence[str] | None = None,
    masks: Path | str | None = None,
    num_workers: int = 0,
    if_settings_changed: str = "refuse",
) -> ExtractionReport:
    """Features of all photos of the folder `images`, in the file `output`; photos that are already there are kept.

    A photo is computed again where its content or its mask changed. A photo that cannot be used is reported and skipped;
    features of its former content are dropped. `names` limits the work to some photos; `masks` is a folder of masks (COLMAP's
    naming, black = ignore); `num_workers` is the number of photos in work at a time (of batches, where the extractor takes
    several photos together), 0 for one per core; `if_settings_changed` is `refuse` or `recompute`.

    Raises: SettingsChanged where `output` was made with other settings, or of other photos alone; FileNotFoundError where a
    folder does not exist; the first error where no photo succeeds.
    """
    names = list_images(images) if names is None else sorted(names)
    if masks is not None and not Path(masks).is_dir():
        raise FileNotFoundError(f"the folder of masks {masks} does not exist")
    num_workers = num_workers or num_cores()
    counts: dict[str, int] = {}
    first_error: Exception | None = None  # only one is kept: its traceback holds a photo's pixels in memory

    with ShardStore(output, plugin_settings(extractor), if_settings_changed=if_settings_changed, shard_items=32) as store:
        if if_settings_changed != "recompute":
            _check_collection(Path(images), Path(output), store.stamps)
        stamps, skipped = _photo_stamps(Path(images), names, masks)
        todo = store.missing(stamps)
        with torch_threads(num_workers), progress_bar(len(stamps), "extract", "img", len(stamps) - len(todo)) as bar:
            for name, result in _extract_each(todo, partial(load_image, images, masks=masks), extractor, num_workers):
                bar.update()
                if isinstance(result, Exception):
                    first_error = first_error or result
                    skipped[name] = str(result) if isinstance(result, UnreadableImage) else f"{type(result).__name__}: {result}"
                    logger.warning("%s is skipped: %s", name, skipped[name])
                else:
                    item, counts[name] = result
                    store.add(name, item, stamps[name])
        store.merge(drop=[name for name in skipped if name in stamps])
        num_images = sum(name in store.stamps for name in stamps)
    if skipped and num_images == 0:
        name, reason = next(iter(skipped.items()))
        raise first_error or FileNotFoundError(f"no photo of {images} could be used, {name}: {reason}")
    empty = sorted(name for name, count in counts.items() if count == 0)
    for name in empty:
        logger.warning("%s: no keypoints were found", name)
    mean_keypoints = sum(counts.values()) / max(1, len(counts))
    return ExtractionReport(num_images, len(counts), mean_keypoints, empty, dict(sorted(skipped.items())))


def _extract_each(
    names: Sequence[str], read: Callable[[str], Image], extractor: Extractor, num_workers: int
) -> Iterator[tuple[str, tuple[GroupData, int] | Exception]]:
    """Each photo with what is to be stored and its number of keypoints, or why it failed; several together where the extractor
    gains from that. Which ones does not depend on the order in which they finish."""
    batch_size = extractor.batch_size if isinstance(extractor, BatchExtractor) else 1
    batches = [tuple(names[start : start + batch_size]) for start in range(0, len(names), batch_size)]
    with ThreadPoolExecutor(num_cores()) as readers:
        read_all = readers.map if batch_size > 1 else map

        def extract(batch: tuple[str, ...]) -> list[tuple[GroupData, int] | Exception]:
            images = list(read_all(partial(_attempt, read), batch))
            found = iter(_extract_batch(extractor, [image for image in images if isinstance(image, Image)]))
            results: list[tuple[GroupData, int] | Exception] = []
            for image in images:
                features = next(found) if isinstance(image, Image) else image
                results.append(features if isinstance(features, Exception) else _attempt(_checked_item, image, features))
            return results

        for batch, results in run_jobs(extract, batches, num_workers):
            if isinstance(results, Exception):
                raise results
            yield from zip(batch, results, strict=True)


def _extract_batch(extractor: Extractor, images: list[Image]) -> list[Features | Exception]:
    """The features of each image or why it failed: one that fails takes no other down."""
    if isinstance(extractor, BatchExtractor) and len(images) > 1:
        try:
            features = extractor.extract_many(images)
            if len(features) != len(images):
                raise ValueError(f"extract_many gave {len(features)} results for {len(images)} images")
            return [*features]
        except Exception as error:
            logger.warning("%d photos together failed and are tried one by one: %s", len(images), error)
    return [_attempt(extractor, image) for image in images]


def _attempt(function: Callable[..., Result], *arguments: object) -> Result | Exception:
    try:
        return function(*arguments)
    except Exception as error:
        return error


def _check_collection(images: Path, output: Path, stored: Mapping[str, str]) -> None:
    """Raises: SettingsChanged where photos are stored, and the folder has none of them: the results of another would be lost."""

    def is_here(name: str, stamp: str) -> bool:
        with contextlib.suppress(OSError):
            return stamp.startswith(_content_hash(images / name))
        return False

    if stored and not any(is_here(name, stamp) for name, stamp in sorted(stored.items())):
        raise SettingsChanged(
            f"{output} was made of other photos, such as {min(stored)!r}, none of which is in {images}: choose another output "
            f"folder, or say execution.if_settings_changed=recompute to replace it"
        )


def _photo_stamps(images: Path, names: Sequence[str], masks: Path | str | None) -> tuple[dict[str, str], dict[str, str]]:
    """Content hash of each photo with its mask, and the reasons of files that cannot be opened."""
    stamps, skipped = {}, {}
    for name in names:
        try:
            stamp = _content_hash(images / name)
            if masks is not None and (mask := Path(masks) / f"{name}.png").is_file():
                stamp += f"+{_content_hash(mask)}"
            stamps[name] = stamp
        except OSError as error:
            skipped[name] = f"cannot be read: {error}"
            logger.warning("%s is skipped: %s", name, skipped[name])
    return stamps, skipped


def _content_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _checked_item(image: Image, features: Features) -> tuple[GroupData, int]:
    """What is stored, and the number of keypoints."""
    _check(features, image)
    return features_to_group(features), len(features)


def _check(features: Features, image: Image) -> None:
    """Raises: ValueError where an extractor breaks its contract, before anything of it is stored."""
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
        problem = f"keypoints lie outside the image of {image.size} px"
    if problem:
        raise ValueError(f"the extractor's result for {image.name} is not valid: {problem}")
