"""Decoding photos to pixels.

Pixels are decoded as the file stores them, as COLMAP does: features, cameras and colours refer to these pixels. `orientation.py`
turns them upright for extractors and pictures.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import ExifTags, UnidentifiedImageError
from PIL import Image as PILImage
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import TiffImageFile

from sfm_lightglue.images.limits import decoding_bytes, too_large
from sfm_lightglue.images.listing import EXTENSIONS, HEIC
from sfm_lightglue.images.value_ranges import Range, UsedValues, to_eight_bits
from sfm_lightglue.memory import memory_bytes

logger = logging.getLogger(__name__)

MIN_SIDE = 16
"""Minimum side of a photo, px. Smaller photos have no keypoints: the receptive fields of all extractors are larger."""


class UnreadableImage(ValueError):
    """A photo cannot be used: it cannot be decoded completely and safely, or it is too small. The message gives the reason.

    Raised for empty, truncated and broken files, for unknown formats, for photos that this machine's memory cannot hold, for
    photos with a side below 16 px, and for photos with an unreadable mask. A run logs it and continues without the photo.
    """


@contextlib.contextmanager
def open_photo(path: Path) -> Iterator[PILImage.Image]:
    """The file as a PIL image in the frame of the stored pixels. Every failure becomes an UnreadableImage with a reason."""
    _prepare_pil()
    try:
        file_bytes = path.stat().st_size
        if file_bytes == 0:
            raise UnreadableImage("the file is empty")
        with PILImage.open(path, formats=formats()) as image:
            if min(image.size) < MIN_SIDE:
                raise UnreadableImage(f"{image.width} x {image.height} px: a side is shorter than {MIN_SIDE} px")
            if reason := too_large(image.size, image.mode, file_bytes):
                raise UnreadableImage(reason)
            if isinstance(image, TiffImageFile):
                _keep_as_stored(image)
            yield image
    except UnreadableImage:
        raise
    except Exception as error:  # for broken files PIL's plug-ins raise OSError, SyntaxError, struct.error, ...
        if isinstance(error, UnidentifiedImageError) and path.suffix.lower() in HEIC and find_spec("pillow_heif") is None:
            raise UnreadableImage("HEIC photos need a package: pip install pillow-heif") from error
        raise UnreadableImage(f"unreadable image ({type(error).__name__}: {error})"[:300]) from error


def _keep_as_stored(image: TiffImageFile) -> None:
    """Keeps PIL from applying the orientation of a TIFF, which it does for no other format."""
    orientation = exif_orientation(image)
    if orientation > 1:
        image.info["orientation"] = orientation
        image.getexif()[ExifTags.Base.Orientation] = 1
        image._size = image.tag_v2[ExifTags.Base.ImageWidth], image.tag_v2[ExifTags.Base.ImageLength]


@functools.cache
def _prepare_pil() -> None:
    """Lets PIL read HEIC if the optional package is installed, and silences PIL's warnings about odd tags and large sizes.

    PIL's own limit of the size becomes one that this machine's memory allows; `too_large` decides about each photo. It runs once
    per process: warnings.catch_warnings around each photo would change the filters permanently when threads overlap.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.")
    if PILImage.MAX_IMAGE_PIXELS is not None:
        PILImage.MAX_IMAGE_PIXELS = max(PILImage.MAX_IMAGE_PIXELS, memory_bytes() // decoding_bytes((1, 1), "RGB"))
    with contextlib.suppress(ImportError):
        importlib.import_module("pillow_heif").register_heif_opener()


@functools.cache
def formats() -> tuple[str, ...]:
    """PIL's names of the formats of the files that count as photos, by `EXTENSIONS`.

    The content of a file decides how it is decoded, not its extension. PIL may use no other format: it would start Ghostscript
    for an EPS file that is named .jpg.
    """
    known = PILImage.registered_extensions()
    return tuple(sorted({known[extension] for extension in EXTENSIONS if extension in known} & PILImage.OPEN.keys()))


def exif_orientation(image: PILImage.Image) -> int:
    """EXIF orientation 1 to 8 of an opened photo; 1 if it has none, or one that does not exist.

    In a PNG file, only tags before the pixels count: PIL would decode all pixels to find others. Programs write them before.
    """
    if image.format == "PNG" and not {"exif", "Raw profile type exif", "XML:com.adobe.xmp"} & image.info.keys():
        return 1
    try:
        code = image.info.get("orientation") or image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception as error:  # broken EXIF can raise anything; the photo itself is fine
        logger.debug("EXIF of %s is unreadable: %s", getattr(image, "filename", "?"), error)
        return 1
    return code if code in range(1, 9) else 1


def reduce_jpeg(image: PILImage.Image, longest: int) -> None:
    """Lets PIL decode a JPEG at 1/2, 1/4 or 1/8 of its size, with `longest` px or more on one side.

    Pixel i of the result covers pixels i * s to (i + 1) * s - 1 of the photo, for a size of 1/s. Sizes are rounded up.
    """
    width, height = image.size
    if isinstance(image, JpegImageFile):
        image.draft(image.mode, (width * longest // max(width, height), height * longest // max(width, height)))


def opaque_parts(image: PILImage.Image) -> np.ndarray | None:
    """bool (h, w): True where the picture is at least half opaque. None without alpha, or if alpha is the same everywhere."""
    image.load()
    if image.mode not in ("RGBA", "LA", "PA", "La", "RGBa") and "transparency" not in image.info:
        return None
    alpha = np.asarray(image.convert("RGBA").getchannel("A"))
    return alpha >= 128 if alpha.min() != alpha.max() else None


def has_many_bits(mode: str) -> bool:
    """Whether pictures of this mode of PIL have one channel of more than 8 bits, or of floats."""
    return mode.startswith("I") or mode == "F"


def to_rgb(image: PILImage.Image, stretch: Range | Literal["bits", "own"] = "own") -> np.ndarray:
    """The pixels uint8 (h, w, 3) of an image of any mode. Transparent parts become white.

    Args:
        image: The image.
        stretch: Values of 16-bit and float images that become black and white. `bits`: the range of the bits in use. `own`: the
            same, or the range of the values in use if few grey levels would be left.
    """
    image.load()
    if has_many_bits(image.mode):
        values = np.asarray(image)
        if stretch == "own":
            stretch = UsedValues.of(values).stretch or "bits"
        return np.repeat(to_eight_bits(values, None if stretch == "bits" else stretch)[..., None], 3, axis=2)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        white = PILImage.new("RGBA", image.size, "white")  # the colours stored under transparent parts are arbitrary
        return np.array(PILImage.alpha_composite(white, image.convert("RGBA")).convert("RGB"))
    return np.array(image.convert("RGB"))
