"""Photos on disk: sorted listing, decoding to RGB, masks, EXIF, resizing.

Pixels are always those stored in the file: EXIF orientation is never applied, because COLMAP does not apply it either and
features, cameras and colours must speak of the same pixels.
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
"""Readable where the package pillow-heif is installed."""
EXTENSIONS = (
    *(".jpg", ".jpeg", ".mpo", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pnm", ".jp2", ".avif"),
    *HEIC,
)
MIN_SIDE = 16
"""Smaller pictures hold no keypoint: the receptive fields of all extractors are larger."""


class UnreadableImage(ValueError):
    """The photo cannot be used; the message says why. The run goes on without it."""


@dataclass(frozen=True)
class PhotoHeader:
    """What is known of a photo without decoding it."""

    size: tuple[int, int]
    """(width, height) px as stored."""
    focal_length_px: float | None
    """From EXIF (35 mm equivalent, or focal length with focal-plane resolution), None where absent or absurd."""
    camera_key: str
    """Make, model, focal length and size: photos with the same key come from the same camera. Empty where EXIF lacks them."""


def list_images(folder: Path | str, *, without: Iterable[Path | str] = ()) -> list[str]:
    """Sorted names (paths relative to `folder`, forward slashes) of all photos below it, by file extension.

    Left out: files of other kinds, hidden folders, the `._*` companions that macOS writes beside photos, and what lies in those
    folders of `without` that are below `folder`.

    Raises: FileNotFoundError where the folder does not exist or holds no photo.
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
        raise FileNotFoundError(f"no photos in {folder}: expected files that end in {' '.join(EXTENSIONS)}")
    return names


def load_image(folder: Path | str, name: str, *, masks: Path | str | None = None) -> Image:
    """The decoded photo `folder/name`, with its mask where `masks` holds one (COLMAP's naming: image name + `.png`).

    Raises: UnreadableImage for anything that cannot be decoded completely and safely.
    """
    pixels = _decode(Path(folder) / name)
    mask = None
    if masks is not None and (path := Path(masks) / f"{name}.png").is_file():
        mask = _decode_mask(path, (pixels.shape[1], pixels.shape[0]))
    return Image(name, pixels, mask)


def read_header(path: Path) -> PhotoHeader:
    """Size and EXIF of a photo, read without decoding pixels (0.1 ms).

    Raises: UnreadableImage where even the header cannot be read.
    """
    with _open(path) as image:
        exif = _exif(image)
        focal = _focal_length_px(exif, image.size)
        key = ""
        # Without a focal length nothing says that two photos have the same: a scanner's are of many cameras, and a lens that the
        # camera does not know has 0. COLMAP does not let such photos share a camera either.
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
    """uint8 (h', w', 3): the picture with its longest side at most `resize_max` px, antialiased.

    A smaller one is enlarged to that, though at most `enlarge_max` times.
    """
    height, width = pixels.shape[:2]
    scale = 1.0 if resize_max is None else min(enlarge_max, resize_max / max(height, width))
    if scale == 1:
        return pixels
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.array(PILImage.fromarray(pixels).resize(size, PILImage.Resampling.LANCZOS))


def to_rgb(image: PILImage.Image) -> np.ndarray:
    """uint8 (h, w, 3) of a picture of any mode: 16 bit and float ones scaled by their own range, transparent parts white."""
    image.load()
    if image.mode.startswith("I") or image.mode == "F":
        return np.repeat(_stretch(np.asarray(image, np.float64), image.mode)[..., None], 3, axis=2)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        white = PILImage.new("RGBA", image.size, "white")  # transparent parts become plain, not random colours
        return np.array(PILImage.alpha_composite(white, image.convert("RGBA")).convert("RGB"))
    return np.array(image.convert("RGB"))


def to_grey(pixels: np.ndarray) -> np.ndarray:
    """float32 (h, w) in 0..1: luma of RGB pixels (ITU-R BT.601, as the networks were trained on)."""
    return (pixels.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)) / np.float32(255)


def _is_text(name: str) -> bool:
    """False for file names that are not UTF-8: neither HDF5 nor COLMAP can hold them."""
    if (printable := name.encode("utf-8", "backslashreplace").decode()) != name:
        logger.warning("%s is left out: its file name is not UTF-8, rename it", printable)
        return False
    return True


@functools.cache
def _prepare_pil() -> None:
    """Let PIL read HEIC where the optional package is installed, and not warn of odd tags and large sizes.

    Once for the process: warnings.catch_warnings around each photo would change the filters for good when threads overlap.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.")
    with contextlib.suppress(ImportError):
        importlib.import_module("pillow_heif").register_heif_opener()


def _is_hidden(name: str) -> bool:
    *folders, file = name.split("/")
    return file.startswith("._") or any(folder.startswith(".") for folder in folders)


@contextlib.contextmanager
def _open(path: Path) -> Iterator[PILImage.Image]:
    """The file as a PIL image; every failure to read or decode it becomes UnreadableImage with a reason."""
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
    except Exception as error:  # PIL's plug-ins raise OSError, SyntaxError, struct.error, ... for broken files
        if isinstance(error, UnidentifiedImageError) and path.suffix.lower() in HEIC and find_spec("pillow_heif") is None:
            raise UnreadableImage("HEIC photos need a package: pip install pillow-heif") from error
        raise UnreadableImage(f"unreadable image ({type(error).__name__}: {error})"[:300]) from error


def _decode(path: Path) -> np.ndarray:
    """uint8 (h, w, 3) RGB of the first frame."""
    with _open(path) as image:
        return to_rgb(image)


def _stretch(values: np.ndarray, mode: str) -> np.ndarray:
    """uint8: 16 bit and float pictures scaled to 8 bit by their own range of bits (PIL's convert would saturate them)."""
    values = np.nan_to_num(values, posinf=0, neginf=0)
    top = float(values.max(initial=0))
    is_unit = mode == "F" and top < 2  # 0..1, give or take what resampling overshoots
    bits = 0 if is_unit else next((bits for bits in (8, 10, 12, 14, 16) if top < 2**bits), 32)
    full = {0: 1.0, 32: top}.get(bits, 2.0**bits - 1)
    return np.clip(values * (255 / full), 0, 255).round().astype(np.uint8)


def _decode_mask(path: Path, size: tuple[int, int]) -> np.ndarray:
    """bool (h, w): True where the mask is not black, sampled to the photo's size."""
    try:
        with _open(path) as mask:
            return np.asarray(mask.convert("L").resize(size, PILImage.Resampling.NEAREST)) > 0
    except UnreadableImage as error:
        raise UnreadableImage(f"its mask {path}: {error}") from error


def _exif(image: PILImage.Image) -> dict[str, object]:
    """EXIF tags by name, of the main and the Exif directory; unreadable EXIF counts as none."""
    try:
        exif = image.getexif()
        tags = dict(exif) | dict(exif.get_ifd(ExifTags.IFD.Exif))
    except Exception as error:  # broken EXIF blocks raise anything; the picture itself is fine
        logger.debug("EXIF of %s is unreadable: %s", getattr(image, "filename", "?"), error)
        return {}
    return {ExifTags.TAGS.get(tag, str(tag)): value for tag, value in tags.items()}


def _focal_length_px(exif: dict[str, object], size: tuple[int, int]) -> float | None:
    """Focal length in px from EXIF, in COLMAP's order of trust; None unless it is 0.2 to 10 times the longest side.

    The focal-plane resolution is trusted only where EXIF's own pixel count agrees with the file: resized photos keep it.
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
    """The value of an EXIF tag as a finite float, 0 where it is none."""
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, ZeroDivisionError):
        return 0.0
    return number if np.isfinite(number) else 0.0
