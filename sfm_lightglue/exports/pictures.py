"""The photos of an export: decoded, undistorted, and written as JPEG or PNG, with masks and smaller copies.

The pixels are those that the model was made from: as stored, 8 bit, mirrored if the model is that of the mirrored photo. They
carry no EXIF tag that would make a program turn them. A JPEG or PNG file that needs no change is copied.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image as PILImage

from sfm_lightglue.execution.progress import progress_bar
from sfm_lightglue.exports.source import ExportOptions, Source
from sfm_lightglue.exports.undistortion import Undistortion
from sfm_lightglue.images import Range, UnreadableImage, camera_ranges, exif_orientation, load_image, opaque_parts
from sfm_lightglue.images.decoding import open_photo
from sfm_lightglue.mistakes import count_of, shortened

KEPT = {".jpg": ("JPEG", "MPO"), ".jpeg": ("JPEG", "MPO"), ".png": ("PNG",)}
"""Extensions that exported photos keep, and the formats that they stand for. Others get `.png` added."""
JPEG: Mapping[str, Any] = {"quality": 95, "subsampling": 0}
"""How JPEG files are written; PNG files ignore it."""
MAX_THREADS = 4
"""Photos that are decoded at the same time."""


@dataclass(frozen=True)
class Pictures:
    """The written photos."""

    files: Mapping[str, str]
    """Name of a photo of the model -> its file in `images`."""
    masks: Mapping[str, str]
    """Name of a photo of the model -> its mask in `masks`. Either all photos have one, or none."""


@dataclass(frozen=True)
class Job:
    """What is the same for all photos."""

    photos: Path
    masks: Mapping[str, Path]
    ranges: Mapping[str, Range]
    undistortions: Mapping[str, Undistortion | None]
    """By name of the photo; None: the photo is written with its distortion."""
    mirrored: frozenset[str]
    target: Path
    options: ExportOptions


@dataclass(frozen=True)
class Pixels:
    """A photo as it is written."""

    rgb: np.ndarray
    """uint8 (h, w, 3)."""
    alpha: np.ndarray | None
    """uint8 (h, w), of a photo with transparent parts, or of its mask with `alpha=true`."""
    mask: np.ndarray | None
    """bool (h, w): True where the photo is neither transparent nor masked out."""


def write_pictures(
    source: Source, target: Path, options: ExportOptions, undistortions: Mapping[int, Undistortion] | None
) -> Pictures:
    """Writes all photos of the model to `target/images`, their masks to `target/masks`, and smaller copies beside them.

    Args:
        source: The model and its photos. It gives the cameras by their ids.
        target: The new folder.
        options: Where the photos and masks are, and which copies are wanted.
        undistortions: By id of the camera, from `undistort_model`; None to keep the distortion.

    Raises:
        FileNotFoundError: If the folder of the photos or masks is missing.
        ValueError: If photos are missing, cannot be decoded, or have another size than their camera.
    """
    photos = source.photos(options)
    model = source.reconstruction
    cameras = {image.name: image.camera_id for image in model.images.values()}
    by_name = {name: undistortions[cameras[name]] if undistortions else None for name in source.names}
    sizes = {}
    for name, undistortion in by_name.items():
        camera = undistortion.source if undistortion else model.camera(cameras[name])
        sizes[name] = camera.width, camera.height
    _check_photos(photos, sizes)
    masks, ranges = source.masks(options, photos), camera_ranges(photos, source.names)
    job = Job(photos, masks, ranges, by_name, source.mirrored, target, options)
    with (
        ThreadPoolExecutor(min(os.cpu_count() or 1, MAX_THREADS)) as pool,
        progress_bar(len(source.names), "photos", "photo") as bar,
    ):
        found = {}
        for name, written in zip(source.names, pool.map(lambda name: _write(job, name), source.names), strict=True):
            found[name] = written
            bar.update()
    files = {name: file for name, (file, _) in found.items()}
    _check_names(files.values(), "exported photos")
    return Pictures(files, _write_masks(job, files, {name: mask for name, (_, mask) in found.items() if mask}))


def _check_photos(photos: Path, sizes: Mapping[str, tuple[int, int]]) -> None:
    """Raises: ValueError if photos are missing, cannot be opened, or have another size than their camera."""
    problems = []
    for name, size in sizes.items():
        try:
            with open_photo(photos / name) as photo:
                found = photo.size
            if found != size:
                problems.append(f"{name} has {found[0]} x {found[1]} px, its camera {size[0]} x {size[1]} px")
        except UnreadableImage as error:
            problems.append(f"{name}: {error}")
    if problems:
        raise ValueError(
            f"{count_of(len(problems), 'photo')} of the model cannot be exported from {photos} ({shortened(problems)}): give the "
            "folder of the photos that the run was made from, photos=DIR"
        )


def _write(job: Job, name: str) -> tuple[str, bool]:
    """Writes a photo, and its mask if it has one. Returns the name of its file, and whether it has a mask."""
    undistortion = job.undistortions[name]
    changes = name in job.mirrored or (undistortion is not None and undistortion.changes_pixels)
    is_copy = not changes and not (job.options.alpha and name in job.masks) and _needs_no_change(job.photos / name)
    pixels = None
    if not is_copy or job.options.factors or name in job.masks:
        pixels = _decode(job, name)
    file = _file_name(name, pixels is not None and pixels.alpha is not None)
    path = job.target / "images" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    if is_copy:
        shutil.copyfile(job.photos / name, path)
    elif pixels is not None:
        _save(pixels, path)
    if pixels is None:
        return file, False
    for factor in job.options.factors:
        _save(_reduced(pixels, factor), job.target / f"images_{factor}" / file)
    if pixels.mask is not None:
        _save_mask(pixels.mask, job, _mask_name(file))
    return file, pixels.mask is not None


def _needs_no_change(path: Path) -> bool:
    """Whether all programs read the file as we do: RGB with 8 bits, opaque, not turned by EXIF, and named as what it is."""
    with open_photo(path) as photo:
        is_plain = photo.mode == "RGB" and "transparency" not in photo.info and exif_orientation(photo) == 1
        return is_plain and photo.format in KEPT.get(path.suffix.lower(), ())


def _file_name(name: str, has_alpha: bool) -> str:
    suffix = PurePosixPath(name).suffix.lower()
    return name if suffix == ".png" or (suffix in KEPT and not has_alpha) else f"{name}.png"


def _mask_name(file: str) -> str:
    """nerfstudio's name of the mask of a photo."""
    return PurePosixPath(file).with_suffix(".png").as_posix()


def _decode(job: Job, name: str) -> Pixels:
    """The photo as it is written."""
    photo = load_image(job.photos, name, masks=job.masks, use_alpha=job.options.with_masks, ranges=job.ranges)
    layers = {"rgb": photo.pixels, "alpha": _alpha_of(job.photos / name) if job.options.with_masks else None}
    layers["mask"] = None if photo.mask is None else photo.mask.astype(np.uint8) * 255
    if job.options.alpha and layers["mask"] is not None:
        layers["alpha"] = layers["mask"] if layers["alpha"] is None else np.minimum(layers["alpha"], layers["mask"])
    undistortion = job.undistortions[name]
    for layer, pixels in layers.items():
        if pixels is not None:
            flipped = pixels[:, ::-1] if name in job.mirrored else pixels
            layers[layer] = undistortion.pixels(flipped) if undistortion else flipped
    mask, rgb = layers["mask"], layers["rgb"]
    assert rgb is not None
    return Pixels(np.ascontiguousarray(rgb), layers["alpha"], None if mask is None else mask >= 128)


def _alpha_of(path: Path) -> np.ndarray | None:
    """uint8 (h, w): the alpha channel; None if it is the same everywhere."""
    with open_photo(path) as photo:
        return None if opaque_parts(photo) is None else np.asarray(photo.convert("RGBA").getchannel("A"))


def _reduced(pixels: Pixels, factor: int) -> Pixels:
    """The photo at 1/factor of its size; each pixel is the mean of factor x factor pixels. Its sides are multiples of factor."""
    alpha = None if pixels.alpha is None else _mean(pixels.alpha, factor)
    return Pixels(_mean(pixels.rgb, factor), alpha, None)


def _mean(pixels: np.ndarray, factor: int) -> np.ndarray:
    return np.asarray(PILImage.fromarray(pixels).reduce(factor))


def _save(pixels: Pixels, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    layers = pixels.rgb if pixels.alpha is None else np.dstack([pixels.rgb, pixels.alpha])
    PILImage.fromarray(layers).save(path, **JPEG)


def _save_mask(mask: np.ndarray, job: Job, file: str) -> None:
    """Writes a mask, white where the photo is used, and its smaller copies."""
    pixels = mask.astype(np.uint8) * 255
    for factor in (1, *job.options.factors):
        path = job.target / ("masks" if factor == 1 else f"masks_{factor}") / file
        path.parent.mkdir(parents=True, exist_ok=True)
        PILImage.fromarray(pixels if factor == 1 else np.where(_mean(pixels, factor) < 128, np.uint8(0), np.uint8(255))).save(
            path
        )


def _write_masks(job: Job, files: Mapping[str, str], masked: Mapping[str, bool]) -> dict[str, str]:
    """Writes white masks for the photos without one, if any photo has one: programs expect one for each photo."""
    if not masked:
        return {}
    masks = {name: _mask_name(file) for name, file in files.items()}
    _check_names(masks.values(), "masks")
    for name in sorted(files.keys() - masked.keys()):
        with PILImage.open(job.target / "images" / files[name]) as photo:
            _save_mask(np.ones((photo.height, photo.width), bool), job, masks[name])
    return masks


def _check_names(names: Iterable[str], what: str) -> None:
    """Raises: ValueError if two files have the same name."""
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise ValueError(f"two {what} would have the name {twice[0]}: rename one of the photos, and run again")
