"""The orientation tag of a photo. Reading it decodes no pixels."""

from __future__ import annotations

from PIL import ExifTags
from PIL import Image as PILImage

TAGS_OF_PNG = {"exif", "Raw profile type exif", "XML:com.adobe.xmp"}


def orientation_of(image: PILImage.Image) -> int | None:
    """The code of EXIF, or of XMP, that turns the pixels of an opened file upright, 1 to 8; None if the file does not say.

    The tags of a PNG file count if they stand before the pixels, as programs write them. Else PIL would decode all pixels.
    """
    if image.format == "PNG" and not TAGS_OF_PNG & image.info.keys():
        return None
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # broken EXIF can raise anything; the photo itself is fine
        return None
    return orientation if orientation in range(1, 9) else None


def orientation_in_pil(image: PILImage.Image) -> int:
    """The code by which PIL itself turns the pixels when it loads an opened file: it does so for TIFF files only."""
    return (orientation_of(image) or 1) if image.format == "TIFF" else 1
