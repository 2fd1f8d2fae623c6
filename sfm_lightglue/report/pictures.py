"""Small upright pictures of the photos for a report: inside the page, or in a folder beside it if there are many."""

from __future__ import annotations

import base64
import concurrent.futures
import io
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sfm_lightglue.execution.devices import num_cores
from sfm_lightglue.files import written_whole
from sfm_lightglue.images import UnreadableImage
from sfm_lightglue.images.decoding import open_photo, to_rgb
from sfm_lightglue.orientation import turn_pixels, turn_pixels_back, unmirrored
from sfm_lightglue.report.draw import MARK, is_marked

logger = logging.getLogger(__name__)

MAX_EMBEDDED = 400
"""If there are more photos, their pictures are files in the folder `report`."""
BYTES_OF_PICTURES = 3_000_000
"""Room for all embedded pictures together, bytes. It decides their size."""
BYTES_PER_PIXEL = 0.13
"""Typical size of these JPEG files, bytes for each pixel."""
LARGEST = 720
"""Longest side of an embedded picture, px."""
IN_FOLDER = 360
"""Longest side of a picture in the folder, px."""
LARGE = 480
"""Longest side of the embedded pictures of photos in the galleries, px, if the others are in the folder."""
QUALITY = 78
ATLAS_SIDE = 2048
"""Width of the picture with the pictures of all cameras for the 3D view, px. WebGL always takes this size."""
ATLAS_CELLS = (128, 96, 64, 48, 32)
"""Sizes of a cell, px: the largest is used with which all photos find a place. With more photos, cameras have no pictures."""


@dataclass(frozen=True)
class Pictures:
    """Pictures of the photos for the page. Photos are counted in the order of their names."""

    sources: list[str]
    """For each photo a data URL or the path of a file beside the page; empty if there is no picture."""
    large: dict[int, str]
    """Larger pictures of some photos; empty if all pictures are inside the page."""
    atlas: dict[str, Any] | None
    """One picture with all cameras' photos as they are stored, and the cell (left, top, right, bottom) px of each."""
    note: str
    """Why a photo has no picture."""


def make_pictures(
    photos: Path | None,
    names: Sequence[str],
    orientations: Mapping[str, int],
    folder: Path,
    *,
    enlarged: Iterable[int],
    posed: Iterable[int],
) -> Pictures:
    """The pictures of all photos that can be read.

    Args:
        photos: Folder of the photos; None if it is not known.
        names: Names of the photos.
        orientations: EXIF codes by which the photos are turned upright.
        folder: Where the pictures go if they do not fit into the page. Pictures there that are newer than the photo are kept.
        enlarged: Numbers of the photos that need a larger picture.
        posed: Numbers of the photos with a pose. Only they are in the atlas.
    """
    if photos is None or not photos.is_dir():
        return Pictures([""] * len(names), {}, None, "The photos are not where they were during the run.")
    is_embedded = len(names) <= MAX_EMBEDDED
    side = (
        min(LARGEST, round((BYTES_OF_PICTURES / BYTES_PER_PIXEL / max(1, len(names)) / 0.75) ** 0.5))
        if is_embedded
        else IN_FOLDER
    )
    with_pose = sorted(posed)
    cell = next((size for size in ATLAS_CELLS if (ATLAS_SIDE // size) ** 2 >= len(with_pose)), 0) if with_pose else 0
    wanted = {*with_pose} if cell else set()
    large_side = 0 if is_embedded else LARGE
    with_large = {*enlarged} if large_side else set()

    def work(number: int) -> tuple[str, str, np.ndarray | None]:
        sizes = side, large_side if number in with_large else 0, cell if number in wanted else 0
        target = None if is_embedded else folder / f"{number:05}.jpg"
        return _picture(photos / names[number], orientations.get(names[number], 1), sizes, target)

    if not is_embedded:
        folder.mkdir(exist_ok=True)
        for stale in folder.glob("[0-9]*.jpg.*.tmp"):  # of killed processes
            stale.unlink()
    with concurrent.futures.ThreadPoolExecutor(num_cores()) as pool:
        made = list(pool.map(work, range(len(names))))
    large = {number: text for number, (_, text, _) in enumerate(made) if text}
    cells = {number: small for number, (_, _, small) in enumerate(made) if small is not None}
    sources = [text if is_embedded or not text else f"{folder.name}/{text}" for text, _, _ in made]
    return Pictures(sources, large, _atlas(cells, cell), "This photo cannot be read.")


def _picture(
    path: Path, orientation: int, sizes: tuple[int, int, int], target: Path | None
) -> tuple[str, str, np.ndarray | None]:
    """The picture of a photo as a data URL or as the name of the file `target`, the larger one, and the small one for the atlas.

    A size of 0 px leaves a picture out. All are empty if the photo cannot be read.
    """
    side, large, cell = sizes
    if target is not None and not large and not cell and _is_current(target, path):
        return target.name, "", None
    try:
        upright = _read(path, max(side, large), orientation)
    except (UnreadableImage, OSError, ValueError, MemoryError) as error:
        logger.debug("%s has no picture in the report: %s", path, error)
        return "", "", None
    stored = turn_pixels_back(np.asarray(_resized(upright, cell)), unmirrored(orientation)) if cell else None
    enlarged = _data_url(_jpeg(_resized(upright, large))) if large else ""
    data = _jpeg(_resized(upright, side))
    if target is None:
        return _data_url(data), enlarged, stored
    with written_whole(target) as temporary:
        temporary.write_bytes(data)
    return target.name, enlarged, stored


def _is_current(picture: Path, photo: Path) -> bool:
    return picture.is_file() and photo.is_file() and is_marked(picture) and picture.stat().st_mtime > photo.stat().st_mtime


def _read(path: Path, side: int, orientation: int) -> Image.Image:
    """The upright photo with at least `side` px on its longest side, if it has as many. JPEG is decoded at a reduced size."""
    with open_photo(path) as image:
        image.draft("RGB", (side, side))
        pixels = to_rgb(image)
    return Image.fromarray(turn_pixels(pixels, orientation))


def _resized(image: Image.Image, side: int) -> Image.Image:
    if max(image.size) <= side:
        return image
    scale = side / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)


def _jpeg(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=QUALITY, optimize=True, comment=MARK)
    return stream.getvalue()


def _data_url(data: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode('ascii')}"


def _atlas(pictures: Mapping[int, np.ndarray], cell: int) -> dict[str, Any] | None:
    """All small pictures in the cells of one picture, row by row; None without pictures."""
    if not pictures:
        return None
    columns = ATLAS_SIDE // cell
    rows = -(-len(pictures) // columns)
    canvas = Image.new("RGB", (min(columns, len(pictures)) * cell, rows * cell))
    cells = {}
    for place, (number, pixels) in enumerate(sorted(pictures.items())):
        left, top = place % columns * cell, place // columns * cell
        canvas.paste(Image.fromarray(pixels), (left, top))
        cells[str(number)] = [left + 0.5, top + 0.5, left + pixels.shape[1] - 0.5, top + pixels.shape[0] - 0.5]
    return {"picture": _data_url(_jpeg(canvas)), "cells": cells}
