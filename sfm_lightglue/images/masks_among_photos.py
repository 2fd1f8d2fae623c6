"""Masks that lie beside their photos, in one folder: which pictures are masks and not photos."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from sfm_lightglue.images.names import mask_names, stem
from sfm_lightglue.photo_names import folded

FOR_ALL = "mask"
"""Name, without extension, of a mask that counts for all photos of its folder."""


def part_of(folder: Path, path: Path) -> str | None:
    """How the names of the pictures in `path` begin, relative to `folder`; empty for the folder itself, None if it is outside."""
    path, folder = path.resolve(), folder.resolve()
    if path == folder:
        return ""
    return f"{path.relative_to(folder).as_posix()}/" if folder in path.parents else None


def masks_beside_photos(names: Iterable[str]) -> set[str]:
    """The names that are masks of other photos in the same folder.

    These are PNG files named like the mask of another picture: `a.png` beside `a.jpg`, `a.jpg.png`, `a_mask.png`, `mask.png`, and
    `cam1.png` beside the folder `cam1`.
    """
    names = sorted(names)
    keys: dict[str, set[str]] = {}
    for name in names:
        for key in mask_names(name):
            keys.setdefault(folded(key), set()).add(name)
    folders = {folded(parent.as_posix()) for name in names for parent in PurePosixPath(name).parents}
    masks: set[str] = set()
    for name in names:
        key = folded(stem(name))
        others = {other for other in keys.get(key, ()) if folded(other) != folded(name)}
        if _is_png(name) and (others or key in folders or PurePosixPath(key).name == FOR_ALL):
            masks.add(name)
    return masks if len(masks) < len(names) else set()


def _is_png(name: str) -> bool:
    return name.lower().endswith(".png")
