"""What a database of a run holds, what it shall hold, and the rows that differ.

Cameras, images and pairs are compared by stamps: hashes of everything that their rows are written from.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sfm_lightglue.cameras import Camera
from sfm_lightglue.database_mark import STAMPS, is_unchanged, open_database, read_notes
from sfm_lightglue.database_rows import ImageIds, pair_ids
from sfm_lightglue.products import Pair


@dataclass(frozen=True)
class Content:
    """Stamps of the rows of a database."""

    source: str
    """Fingerprint of the file of two-view geometries: a hash of its settings and of those of features and matches."""
    cameras: Mapping[int, int]
    """Stamp of each camera by its id."""
    images: Mapping[int, int]
    """Stamp of each image by its id; it does not depend on the intrinsics of the camera."""
    pairs: np.ndarray
    """int64 (p,): COLMAP's ids of the pairs, ascending."""
    stamps: np.ndarray
    """int64 (p,): the stamp of each pair."""


@dataclass(frozen=True)
class Change:
    """The rows that turn one content of a database into another."""

    cameras: Sequence[int]
    """Ids of the cameras to be added or replaced."""
    images: Sequence[int]
    """Ids of the images to be added."""
    deleted: np.ndarray
    """int64: ids of the pairs to be deleted, because they changed or are no longer listed."""
    pairs: np.ndarray
    """int64: positions in `Content.pairs` of the pairs to be added."""

    def __bool__(self) -> bool:
        return bool(len(self.cameras) or len(self.images) or len(self.deleted) or len(self.pairs))

    @classmethod
    def everything(cls, content: Content) -> Change:
        """The rows of a new database."""
        return cls(list(content.cameras), list(content.images), np.zeros(0, np.int64), np.arange(len(content.pairs)))


def wanted_content(
    source: str,
    cameras: Mapping[int, Camera],
    images: Mapping[ImageIds, Any],
    pairs: Sequence[Pair],
    stamps: Sequence[str],
    ids: Mapping[str, ImageIds],
) -> tuple[Content, np.ndarray]:
    """The content that a database shall have.

    Args:
        source: See `Content.source`.
        cameras: Each camera by its id.
        images: What the rows of each image are written from, as values with a `repr`.
        pairs: All pairs, each once.
        stamps: Stamp of the geometry of each pair, 16 hexadecimal digits.
        ids: Ids of each image by name.

    Returns: The content, and the position in `pairs` of each of its pairs: int64 (p,).
    """
    of_cameras = {camera_id: _stamp(camera) for camera_id, camera in cameras.items()}
    of_images = {both.image: _stamp((both, about)) for both, about in images.items()}
    image_id = {name: both.image for name, both in ids.items()}
    numbers = pair_ids(_integers(image_id[pair.name0] for pair in pairs), _integers(image_id[pair.name1] for pair in pairs))
    order = np.argsort(numbers, kind="stable")
    hashes = np.fromiter((int(stamp, 16) for stamp in stamps), np.uint64, len(stamps)).view(np.int64)
    return Content(source, of_cameras, of_images, numbers[order], hashes[order]), order


def stored_content(database: Path) -> Content | None:
    """The content of a database; None if there is none, or it was changed since a run wrote it, or is of an earlier version."""
    if not database.is_file() or not is_unchanged(database):
        return None
    with contextlib.closing(open_database(database)) as connection:
        if not (notes := read_notes(connection)):
            return None
        kind = np.dtype([("id", np.int64), ("stamp", np.int64)])
        rows = np.fromiter(connection.execute(f"SELECT id, stamp FROM {STAMPS} ORDER BY id"), kind)
    of_cameras, of_images, of_pairs = np.split(rows, np.searchsorted(rows["id"], [0, 1 << 31]))  # ids of pairs are larger
    cameras = {-camera_id: stamp for camera_id, stamp in of_cameras.tolist()}
    return Content(str(notes["source"]), cameras, dict(of_images.tolist()), of_pairs["id"], of_pairs["stamp"])


def find_change(stored: Content | None, wanted: Content) -> Change | None:
    """The rows that change; None if the database must be written anew.

    It is written anew if images were removed, changed or got another camera, or if more pairs would be added than stay: that is
    as fast, and leaves no gaps in the file.
    """
    if stored is None or stored.source != wanted.source or not stored.images.items() <= wanted.images.items():
        return None
    place = np.searchsorted(wanted.pairs, stored.pairs)
    stays = place < len(wanted.pairs)
    inside = place[stays]
    stays[stays] = (wanted.pairs[inside] == stored.pairs[stays]) & (wanted.stamps[inside] == stored.stamps[stays])
    is_new = np.ones(len(wanted.pairs), bool)
    is_new[place[stays]] = False
    if is_new.sum() > stays.sum():
        return None
    new_cameras = [camera for camera, stamp in wanted.cameras.items() if stored.cameras.get(camera) != stamp]
    new_images = [image for image in wanted.images if image not in stored.images]
    return Change(new_cameras, new_images, stored.pairs[~stays], np.flatnonzero(is_new))


def _stamp(values: Any) -> int:
    """A hash of values as a number of 64 bits, for SQLite with a sign."""
    return int.from_bytes(hashlib.sha256(repr(values).encode()).digest()[:8], "big", signed=True)


def _integers(values: Iterable[int]) -> np.ndarray:
    return np.fromiter(values, np.int64)
