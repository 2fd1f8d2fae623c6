"""The stage images -> features: reads a folder of photos, writes `features.h5`."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import logging
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from sfm_lightglue.continued_choices import log_stored_choices, with_stored_choices
from sfm_lightglue.execution.devices import num_cores
from sfm_lightglue.execution.executor import Executor
from sfm_lightglue.execution.progress import progress_bar
from sfm_lightglue.execution.shards import Shard
from sfm_lightglue.execution.threads import ThreadExecutor
from sfm_lightglue.features.content_ids import NUM_READERS, ContentIds, ids_file
from sfm_lightglue.features.extraction import extract_each, reader_of
from sfm_lightglue.features.extractor import Extractor
from sfm_lightglue.files import sha256_of
from sfm_lightglue.images import (
    MaskFiles,
    UnreadableImage,
    camera_ranges,
    find_pictures,
    list_images,
    masks_of,
    read_orientation,
    similar_name,
)
from sfm_lightglue.mistakes import count_of, shortened
from sfm_lightglue.orientation import UPRIGHT, check_orientation
from sfm_lightglue.settings import plugin_settings
from sfm_lightglue.storage import H5Reader, SettingsChanged, ShardStore

logger = logging.getLogger(__name__)

MERGE_PHOTOS = 2_000
"""Largest number of photos whose features are merged into one file: 1.2 GB with 2048 keypoints, written again by each merge."""


@dataclasses.dataclass(frozen=True)
class ExtractionReport:
    """What a call of `extract_features` did."""

    num_images: int
    """Requested photos that have features on disk now."""
    mean_keypoints: float
    """Mean number of keypoints of these photos; 0 without any."""
    without_keypoints: list[str]
    """Names of these photos that have no keypoints."""
    skipped: dict[str, str]
    """Name of a photo that could not be used -> the reason."""
    num_masks: int = 0
    """Requested photos that have a mask file."""
    transparent: list[str] = dataclasses.field(default_factory=list)
    """Names of photos whose transparent parts were masked out."""
    precision: str = ""
    """`float32` or `low`, in which the network computed them; empty for features without that option."""
    num_computed: int = 0
    """Photos processed in this call; the others were already stored. A summary does not have it: it is about the files."""


def extract_features(
    images: Path | str,
    output: Path | str,
    extractor: Extractor,
    *,
    names: Sequence[str] | None = None,
    masks: Path | str | MaskFiles | None = None,
    orientation: str | Mapping[str, int] = "exif",
    executor: Executor | None = None,
    num_workers: int = 0,
    if_settings_changed: str = "refuse",
    shard: Shard | None = None,
    kind: str = "",
) -> ExtractionReport:
    """Writes the features of all photos of a folder to a file. Photos that are already stored there are kept.

    A photo is processed again if its content, its mask or its orientation changed. A photo that cannot be used is reported and
    skipped, and the features of its former content are dropped. Photos are turned upright for the extractor. Keypoints in the
    file are px of the photo as it is stored.

    Args:
        images: Folder of the photos, searched recursively.
        output: HDF5 file in hloc's format.
        extractor: See `create_extractor`. In other processes the executor creates it again from its class and options.
        names: Photos to process, relative to the folder; None for all.
        masks: Folder of masks, or one mask for all photos; black or transparent = ignore. See `images.find_masks` for the names.
            Masks that were found before are taken as they are.
        orientation: `exif` turns photos upright as EXIF says, `stored` takes them as they are stored. EXIF codes (1 to 8) by name
            replace those in the files.
        executor: Decides where the photos are processed; None for threads of this process.
        num_workers: Number of these threads, 0 for one per core. Each works on one photo, or on one batch if the extractor
            takes several photos together. Not used if an executor is given.
        if_settings_changed: `refuse` or `recompute` features in `output` that were made with other settings.
        shard: The share of this process, if several divide the work (`execution=shards`); the report is then about this share.
        kind: Name of these features in the progress bar, if there are several kinds.

    Returns:
        Numbers of photos and keypoints, and the photos that were skipped, with the reason.

    Raises:
        SettingsChanged: If `output` was made with other settings, or holds no photo of this folder.
        FileNotFoundError: If a folder does not exist.
        ValueError: If masks do not fit their photos, or none does.
        ChildProcessError: If a process of the executor dies.
        OSError: If a disk that the extractor needs is full.
        Exception: The first error, if no photo succeeds.

    Example:
        >>> extractor = create_extractor("superpoint", max_keypoints=512, enlarge_max=1)
        >>> report = extract_features(photos, out / "features.h5", extractor)
        >>> report.num_images, report.mean_keypoints
        (4, 512.0)
    """
    names = list_images(images) if names is None else sorted(names)
    chosen, extractor = extractor, with_stored_choices(extractor, output, is_shared=shard is not None)
    mask_files = masks_of(Path(images), names, masks)
    executor = executor or ThreadExecutor(num_workers)
    computed: dict[str, int] = {}
    first_error: Exception | None = None  # only one is kept: its traceback holds a photo's pixels in memory

    ids = ContentIds(ids_file(output))
    settings, writer = plugin_settings(extractor), "" if shard is None else shard.writer
    options: dict[str, Any] = {"if_settings_changed": if_settings_changed, "writer": writer}
    with ShardStore(output, settings, shard_items=32, merge_items=MERGE_PHOTOS, **options) as store:
        all_names = names
        if shard is not None:
            names = [names[place] for place in shard.share(names, [name in store.stamps for name in names])]
        orientations = photo_orientations(Path(images), names, orientation, extractor)
        stamps, skipped = _photo_stamps(Path(images), names, mask_files, orientations, ids)
        if if_settings_changed != "recompute":
            _check_collection(Path(images), Path(output), store.stamps, stamps)
        ranges = camera_ranges(images, [*stamps] if shard is None else all_names, num_cores())
        stamps = {name: f"{stamp}~{ranges[name]}" if name in ranges else stamp for name, stamp in stamps.items()}
        if todo := store.missing(stamps):
            log_stored_choices(chosen, extractor, output)
        if changed := [name for name in todo if name in store.stamps]:
            logger.info(
                "%s changed, or their masks or turns: their features are computed again: %s",
                *(count_of(len(changed), "photo"), shortened(changed)),
            )
        turned = {name: orientations[name] for name in todo if name in orientations}
        read = reader_of(Path(images), extractor, mask_files, ranges, turned)
        results = extract_each(todo, read, extractor, executor)
        bar = progress_bar(len(stamps), f"extract {kind}".strip(), "img", len(stamps) - len(todo))
        with bar, contextlib.closing(results):  # after an error, the jobs end before the error is raised
            for name, result in results:
                bar.update()
                if isinstance(result, OSError) and result.errno == errno.ENOSPC:
                    raise result  # a full disk is no fault of the photo
                if isinstance(result, Exception):
                    first_error = first_error or result
                    skipped[name] = str(result) if isinstance(result, UnreadableImage) else f"{type(result).__name__}: {result}"
                    logger.warning("%s is skipped: %s", name, skipped[name])
                else:
                    item, computed[name] = result
                    store.add(name, item, stamps[name])
        store.merge(drop=[name for name in skipped if name in stamps])
        if not writer:
            ids.save()
        stored = [name for name in stamps if name in store.stamps]
    if skipped and not stored and shard is None:
        name, reason = next(iter(skipped.items()))
        raise first_error or FileNotFoundError(f"no photo of {images} could be used, {name}: {reason}")
    for name in sorted(name for name, count in computed.items() if count == 0):
        logger.warning("%s: no keypoints were found", name)
    precision = getattr(getattr(extractor, "options", None), "precision", "")
    if shard is not None:
        found = dict(sorted(skipped.items()))
        return ExtractionReport(len(stored), 0.0, [], found, precision=precision, num_computed=len(computed))
    with H5Reader(output) as reader:
        counts = dict(zip(stored, reader.num_keypoints_of(stored).tolist(), strict=True))
        transparent = [name for name in reader.masked(stored) if name not in mask_files]
    if computed.keys() & {*transparent}:
        logger.info("the transparent parts of %s get no keypoints", count_of(len(transparent), "photo"))
    return ExtractionReport(
        num_images=len(stored),
        mean_keypoints=sum(counts.values()) / max(1, len(counts)),
        without_keypoints=[name for name, count in counts.items() if count == 0],
        skipped=dict(sorted(skipped.items())),
        num_masks=len(mask_files),
        transparent=transparent,
        precision=precision,
        num_computed=len(computed),
    )


def _check_collection(images: Path, output: Path, stored: Mapping[str, str], stamps: Mapping[str, str]) -> None:
    """Raises: SettingsChanged if the folder has none of the stored photos: the results of another folder would be lost.

    `stamps` are those of the photos to process.
    """

    def is_here(name: str, stamp: str) -> bool:
        with contextlib.suppress(OSError):
            return stamp.startswith(_content_hash(images / name))
        return False

    if any(name in stored and stored[name].startswith(stamp[:16]) for name, stamp in stamps.items()):
        return
    if stored and not any(is_here(name, stamp) for name, stamp in stored.items() if name not in stamps):
        raise SettingsChanged(
            f"{output} was made from other photos, for example {min(stored)!r}: {images} contains none of them. Choose another "
            "output folder, or set execution.if_settings_changed=recompute to replace the file"
        )


def photo_orientations(
    images: Path, names: Iterable[str], orientation: str | Mapping[str, int], extractor: Extractor
) -> dict[str, int]:
    """Name -> EXIF code for the photos that are not upright as they are stored. See `extract_features` for `orientation`.

    Photos that cannot be read count as upright; reading their pixels gives the reason.

    Raises: ValueError for an unknown choice or code.
    """
    if isinstance(orientation, str) and orientation not in ("exif", "stored"):
        raise ValueError(f"orientation={orientation!r} does not exist: expected exif, stored or codes by name")
    if orientation == "stored" or not getattr(extractor, "turns_photos", True):
        return {}
    given = {} if isinstance(orientation, str) else orientation

    def code_of(name: str) -> int:
        try:
            code = given[name] if name in given else read_orientation(images / name)
        except UnreadableImage:
            return UPRIGHT
        check_orientation(code)
        return code

    names = list(names)
    with ThreadPoolExecutor(max(NUM_READERS, num_cores())) as readers:
        return {name: code for name, code in zip(names, readers.map(code_of, names), strict=True) if code != UPRIGHT}


def _photo_stamps(
    images: Path, names: Sequence[str], masks: Mapping[str, Path], orientations: Mapping[str, int], ids: ContentIds
) -> tuple[dict[str, str], dict[str, str]]:
    """Name -> content id of the photo and its mask, and how it is turned; name -> reason for photos that cannot be opened."""
    stamps, skipped = {}, {}
    found = ids.of_files((name, images / name) for name in names)
    of_masks = ids.of_files((f"mask {path}", path) for path in sorted({masks[name] for name in names if name in masks}))
    present = functools.cache(lambda: find_pictures(images) if images.is_dir() else [])
    for name in names:
        parts = [found[name], *([of_masks[f"mask {masks[name]}"]] if name in masks else [])]
        if error := next((part for part in parts if isinstance(part, OSError)), None):
            skipped[name] = f"cannot be read: {error}"
            if isinstance(error, FileNotFoundError) and (similar := similar_name(name, present())):
                skipped[name] += f". {similar}"
            logger.warning("%s is skipped: %s", name, skipped[name])
            continue
        stamps[name] = "+".join(map(str, parts)) + (f"@{orientations[name]}" if name in orientations else "")
    return stamps, skipped


def _content_hash(path: Path) -> str:
    return sha256_of(path)[:16]
