"""What EXIF says about the camera that took a photo: its focal length in px, and which photos one camera took."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sfm_lightglue.images.sensors import sensor_width_mm

DIAGONAL_35MM = 43.2666
"""Diagonal of a frame of 35 mm film, mm."""
FOCAL_TAGS = ("FocalLength", "FocalLengthIn35mmFilm")
CAMERA_TAGS = ("Make", "Model")
LENS_TAGS = ("BodySerialNumber", "LensModel", "LensSerialNumber", "DigitalZoomRatio")
"""What tells two cameras of one model apart, and two settings of one camera."""
SENSOR_ASPECTS = (1.0, 4 / 3, 3 / 2, 16 / 9)
MAX_ASPECT_DIFFERENCE = 0.02
"""Shapes that differ by less than this share are the same."""


def camera_key(exif: Mapping[str, object], size: tuple[int, int]) -> str:
    """Make, model, focal length and size of the file. Empty if EXIF has no make and model, or no focal length.

    Photos without a focal length may come from different cameras: a scanner scans photos of many cameras, and a camera records 0
    for a lens that it does not know. COLMAP does not let these photos share a camera either.
    """
    if not any(exif.get(tag) for tag in CAMERA_TAGS) or not any(number(exif.get(tag)) for tag in FOCAL_TAGS):
        return ""
    return "|".join([*_texts(exif, (*CAMERA_TAGS, *FOCAL_TAGS)), *map(str, size)])


def lens_key(exif: Mapping[str, object]) -> str:
    """Make, model, serial numbers, lens, focal length and digital zoom, as far as EXIF has them. Empty without a focal length."""
    if not any(number(exif.get(tag)) for tag in FOCAL_TAGS):
        return ""
    return "|".join(_texts(exif, (*CAMERA_TAGS, *FOCAL_TAGS, *LENS_TAGS)))


def focal_length_px(exif: Mapping[str, object], size: tuple[int, int]) -> float | None:
    """Focal length in px of the file from EXIF tags, tried in COLMAP's order; None unless it is 0.2 to 10 times the longest side.

    The order: 35 mm equivalent, focal-plane resolution, and the size of the sensor by make and model. EXIF keeps the size of the
    photo before it was resized or cropped. The focal-plane resolution counts only if EXIF has it.
    """
    longest = max(size)
    original = _original_size(exif, size)
    width, height = original or size
    shrinking = max(size[0] / width, size[1] / height)  # a crop to another shape keeps one side whole
    candidates: list[float] = []
    if equivalent := number(exif.get("FocalLengthIn35mmFilm")):
        candidates.append(equivalent / DIAGONAL_35MM * float(np.hypot(width, height)) * shrinking)
    focal_mm, resolution = number(exif.get("FocalLength")), number(exif.get("FocalPlaneXResolution"))
    if focal_mm and resolution and original:
        unit_mm = {2: 25.4, 3: 10.0, 4: 1.0, 5: 0.001}.get(int(number(exif.get("FocalPlaneResolutionUnit")) or 2), 25.4)
        candidates.append(focal_mm * resolution / unit_mm * _digital_zoom(exif) * shrinking)
    plausible = [focal for focal in candidates if 0.2 * longest < focal < 10 * longest]
    if not plausible and focal_mm and (sensor_mm := sensor_width_mm(*_texts(exif, CAMERA_TAGS))):
        focal = focal_mm / sensor_mm * max(width, height) * _digital_zoom(exif) * shrinking
        plausible = [focal] if 0.2 * longest < focal < 10 * longest else []
    return next(iter(plausible), None)


def _digital_zoom(exif: Mapping[str, object]) -> float:
    """How much the camera enlarged the middle of the photo; 1 if EXIF does not say it."""
    zoom = number(exif.get("DigitalZoomRatio"))
    return zoom if 1 < zoom < 20 else 1.0


def _original_size(exif: Mapping[str, object], size: tuple[int, int]) -> tuple[float, float] | None:
    """(width, height) px that EXIF has for the photo, turned like the file. None if missing, or implausible beside the file.

    The file may have another shape only if it is a crop: not larger than the original, which has a usual shape.
    """
    width, height = number(exif.get("ExifImageWidth")), number(exif.get("ExifImageHeight"))
    if height <= 0 and width in size:
        return size
    if width <= 0 or height <= 0:
        return None
    if (width < height) != (size[0] < size[1]):
        width, height = height, width
    aspect = max(width, height) / min(width, height)
    if abs(aspect / (max(size) / min(size)) - 1) < MAX_ASPECT_DIFFERENCE:
        return width, height
    is_larger = width >= size[0] and height >= size[1]
    is_usual = any(abs(aspect / usual - 1) < MAX_ASPECT_DIFFERENCE for usual in SENSOR_ASPECTS)
    return (width, height) if is_larger and is_usual else None


def number(value: object) -> float:
    """The value of an EXIF tag as a finite float; 0 if it is not a finite number."""
    try:
        found = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, ZeroDivisionError):
        return 0.0
    return found if np.isfinite(found) else 0.0


def _texts(exif: Mapping[str, object], tags: tuple[str, ...]) -> list[str]:
    return ["" if exif.get(tag) is None else str(exif[tag]).strip(" \0") for tag in tags]
