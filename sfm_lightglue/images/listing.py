"""The photos of a folder."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

logger = logging.getLogger(__name__)

HEIC = (".heic", ".heif")
"""Readable only if the package pillow-heif is installed."""
EXTENSIONS = (
    *(".jpg", ".jpeg", ".mpo", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pnm", ".jp2", ".avif"),
    *HEIC,
)


def list_images(folder: Path | str, *, without: Iterable[Path | str] = ()) -> list[str]:
    """Names of all photos in a folder. The file extension decides what is a photo.

    Hidden folders, the `._*` files that macOS writes beside photos, and file names that are not UTF-8 are skipped.

    Args:
        folder: Folder of the photos, searched recursively.
        without: Folders and files to skip, such as a folder of masks. Others than those below `folder` are ignored.

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
    below = [Path(other).resolve() for other in without if folder.resolve() in Path(other).resolve().parents]
    left_out = [other.relative_to(folder.resolve()).as_posix() for other in below]
    names = [
        name for name in find_pictures(folder) if not any(name == other or name.startswith(f"{other}/") for other in left_out)
    ]
    if not names:
        raise FileNotFoundError(f"{folder} contains no photos: expected files that end in {' '.join(EXTENSIONS)}")
    return names


def find_pictures(folder: Path) -> list[str]:
    """Sorted names of all pictures below a folder, by extension. Hidden folders and names that are not UTF-8 are left out."""
    names = sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS and path.is_file()
    )
    return [name for name in names if not _is_hidden(name) and _is_text(name)]


def _is_text(name: str) -> bool:
    """False for file names that are not UTF-8. Neither HDF5 nor COLMAP can store them."""
    if (printable := name.encode("utf-8", "backslashreplace").decode()) != name:
        logger.warning("%s is left out because its file name is not UTF-8: rename it", printable)
        return False
    return True


def _is_hidden(name: str) -> bool:
    *folders, file = name.split("/")
    return file.startswith("._") or any(folder.startswith(".") for folder in folders)
