"""What the header of a photo says: its size, and focal length, camera, orientation and GPS position from EXIF."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from PIL import ExifTags
from PIL import Image as PILImage

from sfm_lightglue.images.decoding import exif_orientation, open_photo
from sfm_lightglue.positions import GeoPosition, position_from_exif

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PhotoHeader:
    """What is known about a photo before it is decoded."""

    size: tuple[int, int]
    """(width, height) px as stored."""
    focal_length_px: float | None
    """From EXIF: the 35 mm equivalent, or focal length and focal-plane resolution. None if missing or implausible."""
    camera_key: str
    """Make, model, focal length and size. Photos with the same key come from one camera. Empty if EXIF does not have them."""
    orientation: int = 1
    """EXIF code that turns the stored pixels upright, 1 to 8; 1 without one."""


def read_header(path: Path) -> PhotoHeader:
    """Size and EXIF of a photo. No pixels are decoded (0.1 ms).

    Raises: UnreadableImage if the header cannot be read.
    """
    with open_photo(path) as image:
        exif = _exif(image)
        focal = _focal_length_px(exif, image.size)
        key = ""
        # Photos without a focal length may come from different cameras: a scanner scans photos of many cameras, and a camera
        # records 0 for a lens that it does not know. COLMAP does not let these photos share a camera either.
        focal_lengths = exif.get("FocalLength"), exif.get("FocalLengthIn35mmFilm")
        if (exif.get("Make") or exif.get("Model")) and any(map(_number, focal_lengths)):
            parts = (exif.get("Make"), exif.get("Model"), *focal_lengths, *image.size)
            key = "|".join("" if part is None else str(part).strip(" \0") for part in parts)
        return PhotoHeader(image.size, focal, key, exif_orientation(image))


def read_orientation(path: Path) -> int:
    """The EXIF code that turns the stored pixels upright, 1 to 8; 1 without one. No pixels are decoded.

    Raises: UnreadableImage if the header cannot be read.
    """
    with open_photo(path) as image:
        return exif_orientation(image)


def read_time(path: Path) -> float:
    """When the photo was taken, by EXIF's DateTimeOriginal: seconds since 1970 of the camera's own clock. NaN without one.

    No pixels are decoded. Raises: UnreadableImage if the header cannot be read.
    """
    with open_photo(path) as image:
        exif = _exif(image)
    text = str(exif.get("DateTimeOriginal", "")).strip("\0 ")
    fraction = str(exif.get("SubsecTimeOriginal", "")).strip("\0 ")
    try:
        whole = datetime.strptime(text, "%Y:%m:%d %H:%M:%S").replace(tzinfo=UTC).timestamp()
    except ValueError:
        return math.nan
    return whole + (float(f"0.{fraction}") if fraction.isdecimal() else 0.0)


def read_position(path: Path) -> GeoPosition | None:
    """The GPS position in a photo's EXIF, read without decoding pixels. None if there is none, or the EXIF is unreadable.

    Raises: UnreadableImage if even the header cannot be read.
    """
    return read_pose_tags(path)[0]


def read_pose_tags(path: Path) -> tuple[GeoPosition | None, int]:
    """The GPS position in a photo's EXIF, None without one, and its orientation, 1 to 8, 0 without one. No pixels are decoded.

    Raises: UnreadableImage if even the header cannot be read.
    """
    with open_photo(path) as image:
        try:
            exif = image.getexif()
            gps, orientation = dict(exif.get_ifd(ExifTags.IFD.GPSInfo)), _number(exif.get(ExifTags.Base.Orientation))
        except Exception as error:  # broken EXIF blocks raise many kinds of errors, although the picture itself is fine
            logger.debug("the GPS data of %s is unreadable: %s", path, error)
            return None, 0
        xmp = image.info.get("xmp", b"")
    text = xmp.decode("utf-8", "replace") if isinstance(xmp, bytes) else str(xmp)
    return position_from_exif(gps, text), int(orientation) if orientation in range(1, 9) else 0


def _exif(image: PILImage.Image) -> dict[str, object]:
    """EXIF tags of the main and the Exif directory, by name. Unreadable EXIF counts as no EXIF."""
    try:
        exif = image.getexif()
        tags = dict(exif) | dict(exif.get_ifd(ExifTags.IFD.Exif))
    except Exception as error:  # broken EXIF can raise anything; the photo itself is fine
        logger.debug("EXIF of %s is unreadable: %s", getattr(image, "filename", "?"), error)
        return {}
    return {ExifTags.TAGS.get(tag, str(tag)): value for tag, value in tags.items()}


def _focal_length_px(exif: dict[str, object], size: tuple[int, int]) -> float | None:
    """Focal length in px from EXIF tags, tried in COLMAP's order; None unless it is 0.2 to 10 times the longest side.

    The focal-plane resolution counts only if EXIF's own pixel count agrees with the file, because resized photos keep it.
    """
    diagonal_35mm = 43.2666
    longest = max(size)
    candidates: list[float] = []
    if equivalent := _number(exif.get("FocalLengthIn35mmFilm")):
        candidates.append(equivalent / diagonal_35mm * float(np.hypot(*size)))
    focal_mm, resolution = _number(exif.get("FocalLength")), _number(exif.get("FocalPlaneXResolution"))
    stored_width = _number(exif.get("ExifImageWidth"))
    if focal_mm and resolution and stored_width in (size[0], size[1]):
        unit_mm = {2: 25.4, 3: 10.0, 4: 1.0, 5: 0.001}.get(int(_number(exif.get("FocalPlaneResolutionUnit")) or 2), 25.4)
        candidates.append(focal_mm * resolution / unit_mm)
    return next((focal for focal in candidates if 0.2 * longest < focal < 10 * longest), None)


def _number(value: object) -> float:
    """The value of an EXIF tag as a finite float; 0 if it is not a finite number."""
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, ZeroDivisionError):
        return 0.0
    return number if np.isfinite(number) else 0.0
