"""Which photos are panoramas of the whole sphere (equirectangular projection, twice as wide as high)."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image as PILImage

from sfm_lightglue.images.decoding import UnreadableImage, open_photo

WIDTH = 256
"""Pictures are compared at this width, px."""
MAX_SEAM = 2.0
"""Left and right edge of a panorama are neighbours: they differ at most this many times as much as neighbouring columns."""
MIN_CONTRAST = 4.0
"""Standard deviation along the edges, grey levels: edges of one colour, as around the circles of a fisheye lens, say nothing."""
MAX_POLE = 0.35
"""The first row of a panorama is one point, the zenith: its standard deviation is at most this share of the whole picture's."""


MAX_LOOKED_AT = 9
"""Photos of one size that are decoded, spread over their names. Half of them must look like panoramas: 2.5 % of the photos in
which one thing is shown before a plain wall do so too."""


def find_panoramas(images: Path, sizes: Mapping[str, tuple[int, int]]) -> list[str]:
    """The photos that show the whole sphere, sorted: those of a size twice as wide as high, if enough of them look like it.

    Args:
        images: folder of the photos.
        sizes: (width, height) px by name. Photos of other shapes are not opened.
    """
    groups: dict[tuple[int, int], list[str]] = defaultdict(list)
    for name in sorted(sizes):
        if sizes[name][0] == 2 * sizes[name][1]:
            groups[sizes[name]].append(name)
    found = []
    for names in groups.values():
        looked_at = names[:: -(-len(names) // MAX_LOOKED_AT)]
        if 2 * sum(is_panorama(images / name) for name in looked_at) >= len(looked_at):
            found += names
    return sorted(found)


def is_panorama(path: Path) -> bool:
    """Whether a photo shows the whole sphere: it is twice as wide as high, and XMP says so, or its edges meet.

    Cameras and stitchers write `GPano:ProjectionType` into XMP. Without it the left and right edge must continue each other, and
    the first row must have nearly one colour. Photos of other shapes are not decoded. False for unreadable photos.
    """
    try:
        with open_photo(path) as image:
            if image.width != 2 * image.height:
                return False
            xmp = image.info.get("xmp", b"")
            text = xmp.decode("utf-8", "replace") if isinstance(xmp, bytes) else str(xmp)
            if said := re.search(r"GPano:ProjectionType\W+(\w+)", text):
                return said[1].lower() == "equirectangular"
            image.draft("L", (WIDTH, WIDTH // 2))
            return _is_closed(np.asarray(image.convert("L").resize((WIDTH, WIDTH // 2), PILImage.Resampling.BOX), np.float64))
    except (UnreadableImage, OSError):
        return False


def _is_closed(grey: np.ndarray) -> bool:
    """Whether a picture (h, w) of a whole sphere could look like this."""
    if min(grey[:, 0].std(), grey[:, -1].std()) < MIN_CONTRAST or grey[0].std() > MAX_POLE * grey.std():
        return False
    neighbours = np.abs(np.diff(grey, axis=1)).mean()
    return bool(np.abs(grey[:, 0] - grey[:, -1]).mean() <= MAX_SEAM * neighbours)
