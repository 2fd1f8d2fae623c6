"""Decoding photos and masks to pixels.

Pixels stay as the file stores them. EXIF orientation is never applied: COLMAP does not apply it either, and features, cameras
and colours must refer to the same pixels.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image as PILImage
from PIL import UnidentifiedImageError

from sfm_lightglue.images.listing import HEIC
from sfm_lightglue.images.tags import orientation_in_pil
from sfm_lightglue.orientation import turn_pixels_back
from sfm_lightglue.products import Image

MIN_SIDE = 16
"""Minimum side of a photo, px. Smaller photos have no keypoints: the receptive fields of all extractors are larger."""


class UnreadableImage(ValueError):
    """A photo cannot be used: it cannot be decoded completely and safely, or it is too small. The message gives the reason.

    Raised for empty, truncated and broken files, for unknown formats, for photos above 179 megapixels, for photos with a side
    below 16 px, and for photos with an unreadable mask. A run logs it and continues without the photo.
    """


def load_image(folder: Path | str, name: str, *, masks: Path | str | None = None) -> Image:
    """The decoded photo `folder/name`, and its mask if the folder `masks` holds one (COLMAP's naming: image name + `.png`).

    Raises: UnreadableImage if the photo or its mask cannot be decoded completely and safely, or is too small.
    """
    pixels = _decode(Path(folder) / name)
    mask = None
    if masks is not None and (path := Path(masks) / f"{name}.png").is_file():
        mask = _decode_mask(path, (pixels.shape[1], pixels.shape[0]))
    return Image(name, pixels, mask)


@contextlib.contextmanager
def open_photo(path: Path) -> Iterator[PILImage.Image]:
    """The file as a PIL image. Every failure to read or decode it becomes an UnreadableImage with a reason."""
    _prepare_pil()
    try:
        if path.stat().st_size == 0:
            raise UnreadableImage("the file is empty")
        with PILImage.open(path) as image:  # refuses more than 179 megapixels
            if min(image.size) < MIN_SIDE:
                raise UnreadableImage(f"{image.width} x {image.height} px: a side is shorter than {MIN_SIDE} px")
            yield image
    except UnreadableImage:
        raise
    except Exception as error:  # for broken files PIL's plug-ins raise OSError, SyntaxError, struct.error, ...
        if isinstance(error, UnidentifiedImageError) and path.suffix.lower() in HEIC and find_spec("pillow_heif") is None:
            raise UnreadableImage("HEIC photos need a package: pip install pillow-heif") from error
        raise UnreadableImage(f"unreadable image ({type(error).__name__}: {error})"[:300]) from error


@functools.cache
def _prepare_pil() -> None:
    """Lets PIL read HEIC if the optional package is installed, and silences PIL's warnings about odd tags and large sizes.

    It runs once per process: warnings.catch_warnings around each photo would change the filters permanently when threads overlap.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.")
    with contextlib.suppress(ImportError):
        importlib.import_module("pillow_heif").register_heif_opener()


def to_rgb(image: PILImage.Image) -> np.ndarray:
    """The pixels uint8 (h, w, 3) of an image of any mode.

    16-bit and float images are scaled by their own range. Transparent parts become white.
    """
    image.load()
    if image.mode.startswith("I") or image.mode == "F":
        return np.repeat(_stretch(np.asarray(image, np.float64), image.mode)[..., None], 3, axis=2)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        white = PILImage.new("RGBA", image.size, "white")  # the colours stored under transparent parts are arbitrary
        return np.array(PILImage.alpha_composite(white, image.convert("RGBA")).convert("RGB"))
    return np.array(image.convert("RGB"))


def _decode(path: Path) -> np.ndarray:
    """uint8 (h, w, 3) RGB of the first frame."""
    with open_photo(path) as image:
        turned = orientation_in_pil(image)
        return turn_pixels_back(to_rgb(image), turned)


def _stretch(values: np.ndarray, mode: str) -> np.ndarray:
    """uint8: a 16-bit or float image scaled to 8 bit by its own range of bits. PIL's convert would saturate it."""
    values = np.nan_to_num(values, posinf=0, neginf=0)
    top = float(values.max(initial=0))
    is_unit = mode == "F" and top < 2  # values in 0..1, which resampling may exceed a little
    bits = 0 if is_unit else next((bits for bits in (8, 10, 12, 14, 16) if top < 2**bits), 32)
    full = {0: 1.0, 32: top}.get(bits, 2.0**bits - 1)
    return np.clip(values * (255 / full), 0, 255).round().astype(np.uint8)


def _decode_mask(path: Path, size: tuple[int, int]) -> np.ndarray:
    """bool (h, w): the mask at the photo's size; True for pixels that are not black."""
    try:
        with open_photo(path) as mask:
            return np.asarray(mask.convert("L").resize(size, PILImage.Resampling.NEAREST)) > 0
    except UnreadableImage as error:
        raise UnreadableImage(f"its mask {path}: {error}") from error
