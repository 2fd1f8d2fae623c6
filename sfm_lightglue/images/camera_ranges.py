"""One range of values for all photos of a camera, so that a value has the same brightness in each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path, PurePosixPath

import numpy as np

from sfm_lightglue.images.decoding import UnreadableImage, has_many_bits, open_photo
from sfm_lightglue.images.headers import read_header
from sfm_lightglue.images.limits import decoding_bytes, decoding_memory
from sfm_lightglue.images.value_ranges import Range, UsedValues


def camera_ranges(images: Path | str, names: Sequence[str], num_threads: int = 1) -> Mapping[str, Range]:
    """Name of a photo -> the range to which it is stretched. Photos that are shown by the range of their bits are missing.

    The range of a camera holds the 0.5 % and 99.5 % percentiles of each of its photos. It is rounded outwards, so that a few more
    photos rarely change it. Photos have one camera if their folder, size, kind of pixels and EXIF's camera are equal. All photos
    of more than 8 bits are decoded for this; the others only have their headers read.

    Args:
        images: Folder of the photos.
        names: Names of all photos of the collection. The result does not depend on their order.
        num_threads: Number of photos that are decoded at the same time.
    """
    cameras = {name: camera for name in names if (camera := _camera(Path(images), name)) is not None}
    ranges: dict[str, Range] = {}
    with ThreadPoolExecutor(num_threads) as pool:
        used = dict(zip(cameras, pool.map(lambda name: _used_values(Path(images) / name), cameras), strict=True))
    for _, group in groupby(sorted(cameras, key=lambda name: cameras[name]), key=lambda name: cameras[name]):
        members = {name: values for name in group if (values := used[name]) is not None}
        if members and (stretch := UsedValues.joined(members.values()).stretch) is not None:
            ranges |= dict.fromkeys(members, stretch)
    return ranges


def _camera(images: Path, name: str) -> tuple[str, ...] | None:
    """What photos of one camera have in common; None for a photo of 8 bits, or one that cannot be read."""
    try:
        with open_photo(images / name) as photo:
            if not has_many_bits(photo.mode):
                return None
            size, mode = photo.size, photo.mode
        return PurePosixPath(name).parent.as_posix(), str(size), mode, read_header(images / name).camera_key
    except UnreadableImage:
        return None


def _used_values(path: Path) -> UsedValues | None:
    try:
        with open_photo(path) as photo, decoding_memory.reserved(decoding_bytes(photo.size, photo.mode)):
            return UsedValues.of(np.asarray(photo))
    except UnreadableImage:
        return None
