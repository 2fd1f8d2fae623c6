"""Photos on disk: sorted listing, decoding to RGB, masks, EXIF and resizing.

Pixels stay as the file stores them. EXIF orientation is never applied: COLMAP does not apply it either, and features, cameras
and colours must refer to the same pixels.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import ExifTags, UnidentifiedImageError
from PIL import Image as PILImage

from sfm_lightglue.positions import GeoPosition, position_from_exif
from sfm_lightglue.products import Image

logger = logging.getLogger(__name__)

HEIC = (".heic", ".heif")
"""Readable only if the package pillow-heif is installed."""
EXTENSIONS = (
    *(".jpg", ".jpeg", ".mpo", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pnm", ".jp2", ".avif"),
    *HEIC,
)
MIN_SIDE = 16
"""Minimum side of a photo, px. Smaller photos have no keypoints: the receptive fields of all extractors are larger."""


class UnreadableImage(ValueError):
    """A photo cannot be used: it cannot be decoded completely and safely, or it is too small. The message gives the reason.

    Raised for empty, truncated and broken files, for unknown formats, for photos above 179 megapixels, for photos with a side
    below 16 px, and for photos with an unreadable mask. A run logs it and continues without the photo.
    """


@dataclass(frozen=True)
class PhotoHeader:
    """What is known about a photo before it is decoded."""

    size: tuple[int, int]
    """(width, height) px as stored."""
    focal_length_px: float | None
    """From EXIF: the 35 mm equivalent, or focal length and focal-plane resolution. None if missing or implausible."""
    camera_key: str
    """Make, model, focal length and size. Photos with the same key come from one camera. Empty if EXIF does not have them."""


def list_images(folder: Path | str, *, without: Iterable[Path | str] = ()) -> list[str]:
    """Names of all photos in a folder. The file extension decides what is a photo.

    Hidden folders, the `._*` files that macOS writes beside photos, and file names that are not UTF-8 are skipped.

    Args:
        folder: Folder of the photos, searched recursively.
        without: Folders to skip, such as a folder of masks. Folders outside `folder` are ignored.

    Returns:
        Paths relative to `folder`, with forward slashes, sorted. All other functions use these names.

    Raises:
        FileNotFoundError: If the folder does not exist or contains no photos.

    Example:
        >>> list_images(photos)
        ['00.jpg', '01.jpg', '02.jpg', '03.jpg']
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"image folder {folder} does not exist: give a folder of photos (dataset.images=DIR)")
    names = sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS and path.is_file()
    )
    below = [Path(other).resolve() for other in without if folder.resolve() in Path(other).resolve().parents]
    left_out = tuple(f"{other.relative_to(folder.resolve()).as_posix()}/" for other in below)
    names = [name for name in names if not _is_hidden(name) and not name.startswith(left_out) and _is_text(name)]
    if not names:
        raise FileNotFoundError(f"{folder} contains no photos: expected files that end in {' '.join(EXTENSIONS)}")
    return names


def load_image(folder: Path | str, name: str, *, masks: Path | str | None = None) -> Image:
    """The decoded photo `folder/name`, and its mask if the folder `masks` holds one (COLMAP's naming: image name + `.png`).

    Raises: UnreadableImage if the photo or its mask cannot be decoded completely and safely, or is too small.
    """
    pixels = _decode(Path(folder) / name)
    mask = None
    if masks is not None and (path := Path(masks) / f"{name}.png").is_file():
        mask = _decode_mask(path, (pixels.shape[1], pixels.shape[0]))
    return Image(name, pixels, mask)


def read_header(path: Path) -> PhotoHeader:
    """Size and EXIF of a photo. No pixels are decoded (0.1 ms).

    Raises: UnreadableImage if the header cannot be read.
    """
    with _open(path) as image:
        exif = _exif(image)
        focal = _focal_length_px(exif, image.size)
        key = ""
        # Photos without a focal length may come from different cameras: a scanner scans photos of many cameras, and a camera
        # records 0 for a lens that it does not know. COLMAP does not let these photos share a camera either.
        focal_lengths = exif.get("FocalLength"), exif.get("FocalLengthIn35mmFilm")
        if (exif.get("Make") or exif.get("Model")) and any(map(_number, focal_lengths)):
            parts = (exif.get("Make"), exif.get("Model"), *focal_lengths, *image.size)
            key = "|".join("" if part is None else str(part).strip(" \0") for part in parts)
        return PhotoHeader(image.size, focal, key)


def read_position(path: Path) -> GeoPosition | None:
    """The GPS position in a photo's EXIF, read without decoding pixels. None if there is none, or the EXIF is unreadable.

    Raises: UnreadableImage if even the header cannot be read.
    """
    with _open(path) as image:
        try:
            gps = dict(image.getexif().get_ifd(ExifTags.IFD.GPSInfo))
        except Exception as error:  # broken EXIF blocks raise many kinds of errors, although the picture itself is fine
            logger.debug("the GPS data of %s is unreadable: %s", path, error)
            return None
    return position_from_exif(gps)


def resize_longest(pixels: np.ndarray, resize_max: int | None, enlarge_max: float = 1.0) -> np.ndarray:
    """uint8 (h', w', 3): the photo resized with antialiasing, so that its longest side is at most `resize_max` px.

    A smaller photo is enlarged to that size, but at most `enlarge_max` times. None for `resize_max` changes nothing.
    """
    height, width = pixels.shape[:2]
    scale = 1.0 if resize_max is None else min(enlarge_max, resize_max / max(height, width))
    if scale == 1:
        return pixels
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.array(PILImage.fromarray(pixels).resize(size, PILImage.Resampling.LANCZOS))


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


def to_grey(pixels: np.ndarray) -> np.ndarray:
    """float32 (h, w) in 0..1: luma of RGB pixels (ITU-R BT.601, which the networks were trained with)."""
    return (pixels.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)) / np.float32(255)


def _is_text(name: str) -> bool:
    """False for file names that are not UTF-8. Neither HDF5 nor COLMAP can store them."""
    if (printable := name.encode("utf-8", "backslashreplace").decode()) != name:
        logger.warning("%s is left out because its file name is not UTF-8: rename it", printable)
        return False
    return True


@functools.cache
def _prepare_pil() -> None:
    """Lets PIL read HEIC if the optional package is installed, and silences PIL's warnings about odd tags and large sizes.

    It runs once per process: warnings.catch_warnings around each photo would change the filters permanently when threads overlap.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.")
    with contextlib.suppress(ImportError):
        importlib.import_module("pillow_heif").register_heif_opener()


def _is_hidden(name: str) -> bool:
    *folders, file = name.split("/")
    return file.startswith("._") or any(folder.startswith(".") for folder in folders)


@contextlib.contextmanager
def _open(path: Path) -> Iterator[PILImage.Image]:
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


def _decode(path: Path) -> np.ndarray:
    """uint8 (h, w, 3) RGB of the first frame."""
    with _open(path) as image:
        return to_rgb(image)


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
        with _open(path) as mask:
            return np.asarray(mask.convert("L").resize(size, PILImage.Resampling.NEAREST)) > 0
    except UnreadableImage as error:
        raise UnreadableImage(f"its mask {path}: {error}") from error


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
