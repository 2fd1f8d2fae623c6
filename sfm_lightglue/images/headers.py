"""What the header of a photo says: its size, and focal length, camera, orientation and GPS position from EXIF."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from PIL import ExifTags
from PIL import Image as PILImage

from sfm_lightglue.images.decoding import exif_orientation, open_photo
from sfm_lightglue.images.exif_cameras import camera_key, focal_length_px, lens_key, number
from sfm_lightglue.positions import GeoPosition, position_from_exif

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PhotoHeader:
    """What is known about a photo before it is decoded."""

    size: tuple[int, int]
    """(width, height) px as stored."""
    focal_length_px: float | None
    """From EXIF, see `exif_cameras.focal_length_px`. None if missing or implausible."""
    camera_key: str
    """Make, model, focal length and size. Photos with the same key come from one camera. Empty if EXIF does not have them."""
    orientation: int = 1
    """EXIF code that turns the stored pixels upright, 1 to 8; 1 without one."""
    lens_key: str = ""
    """Everything that EXIF says about camera, lens and focal length; empty without a focal length."""


def read_header(path: Path) -> PhotoHeader:
    """Size and EXIF of a photo. No pixels are decoded (0.1 ms).

    Raises: UnreadableImage if the header cannot be read.
    """
    with open_photo(path) as image:
        exif = _exif(image)
        focal, key = focal_length_px(exif, image.size), camera_key(exif, image.size)
        return PhotoHeader(image.size, focal, key, exif_orientation(image), lens_key(exif))


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
            gps, orientation = dict(exif.get_ifd(ExifTags.IFD.GPSInfo)), number(exif.get(ExifTags.Base.Orientation))
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
