"""What is known about the pose of a photo before the reconstruction: its GPS position, and where down is.

Positions come from EXIF, or from a file of positions. Down comes from EXIF's orientation. COLMAP keeps both in its table
`pose_priors`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sfm_lightglue.images import UnreadableImage, read_pose_tags
from sfm_lightglue.mistakes import count_of, shortened, warn_once
from sfm_lightglue.photo_names import PhotoNames
from sfm_lightglue.position_files import read_positions
from sfm_lightglue.positions import GeoPosition

if TYPE_CHECKING:
    import pycolmap

logger = logging.getLogger(__name__)

GRAVITY = {1: (0.0, 1.0, 0.0), 3: (0.0, -1.0, 0.0), 6: (1.0, 0.0, 0.0), 8: (-1.0, 0.0, 0.0)}
"""EXIF's orientation -> direction of gravity in the camera of the stored photo, if the camera looks at the horizon. As COLMAP
writes it: it has none for mirrored photos (2, 4, 5, 7)."""


@dataclass(frozen=True)
class PosePrior:
    """What a photo says about its pose."""

    position: GeoPosition | None
    """Where it was taken; None if unknown."""
    orientation: int
    """EXIF's code of the turn that puts the photo upright, 1 to 8; 0 if unknown."""

    @property
    def has_position(self) -> bool:
        """True if the position has an altitude too. COLMAP has no positions without altitude."""
        return self.position is not None and math.isfinite(self.position.altitude_m)

    def to_colmap(self) -> pycolmap.PosePrior | None:
        """COLMAP's record of the prior, not yet attached to an image; None if it would be empty.

        Its position is latitude, longitude, altitude (WGS84). Its covariance is in m^2 along east, north and up, and NaN if the
        accuracy is unknown. If only the horizontal accuracy is known, the altitude gets the same.
        """
        import pycolmap  # here, because choosing pairs needs only the positions

        gravity = GRAVITY.get(self.orientation)
        if not self.has_position and gravity is None:
            return None
        prior = pycolmap.PosePrior()
        if gravity is not None:
            prior.gravity = np.array(gravity)
        if self.position is not None and self.has_position:
            at = self.position
            prior.position = np.array([at.latitude_deg, at.longitude_deg, at.altitude_m])
            prior.coordinate_system = pycolmap.PosePriorCoordinateSystem.WGS84
            if math.isfinite(at.accuracy_m):
                vertical = at.vertical_accuracy_m if math.isfinite(at.vertical_accuracy_m) else at.accuracy_m
                prior.position_covariance = np.diag([at.accuracy_m, at.accuracy_m, vertical]) ** 2
        return prior


def find_pose_priors(images: Path | str, names: Iterable[str], positions: Path | str | None = None) -> dict[str, PosePrior]:
    """The pose priors of photos by name, sorted, and a line in the log that says how many have a position.

    Args:
        images: Folder of the photos.
        names: The photos: paths below this folder.
        positions: File of positions. If it is given, the positions in EXIF are not used.

    Raises: FileNotFoundError and ValueError as `listed_positions`.
    """
    names = sorted(set(names))
    tags = {name: _read_tags(Path(images) / name) for name in names}
    known = {name: position for name, (position, _) in tags.items() if position is not None}
    if positions is not None:
        known = listed_positions(positions, names)
    priors = {name: PosePrior(known.get(name), tags[name][1]) for name in names}
    if known:
        num_complete = sum(prior.has_position for prior in priors.values())
        logger.info("positions: %d of %d photos, from %s", num_complete, len(names), positions or "EXIF")
        if len(known) > num_complete:
            logger.warning("%d photos have a position without altitude: it is used for pairs only", len(known) - num_complete)
    return priors


def find_positions(images: Path | str, names: Iterable[str], positions: Path | str | None = None) -> dict[str, GeoPosition]:
    """The positions of photos by name, sorted; photos without a position are missing. Arguments as in `find_pose_priors`."""
    names = sorted(set(names))
    if positions is not None:
        return listed_positions(positions, names)
    found = ((name, _read_tags(Path(images) / name)[0]) for name in names)
    return {name: position for name, position in found if position is not None}


def listed_positions(path: Path | str, names: Iterable[str]) -> dict[str, GeoPosition]:
    """The positions of a file for these photos, sorted by name.

    Names are found as in `PhotoNames.find`, and by the file name alone, without folders, if only one photo and one line have it.
    Names of the file that are no photo are logged.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: A line is not understood, the file has none of the photos, or two positions of one.
    """
    photos, listed = PhotoNames(names), read_positions(path)
    names, line_of = photos.names, dict[str, str]()
    for text in listed:
        name = photos.find(text)
        if name is not None and line_of.setdefault(name, text) != text:
            raise ValueError(f"{path} has two positions of {name}: as {line_of[name]} and as {text}")
    others = _by_file_name(set(listed) - set(line_of.values()))
    for file_name, alike in _by_file_name(set(names) - set(line_of)).items():
        if len(alike) == len(others.get(file_name, [])) == 1:
            line_of[alike[0]] = others[file_name][0]
    unknown = sorted(set(listed) - set(line_of.values()))
    if names and not line_of:
        raise ValueError(
            f"{path} has the position of none of the {len(names)} photos: it names {shortened(unknown) or 'none'}, "
            f"the photos are {shortened(names)}"
        )
    if unknown:
        files = count_of(len(unknown), "file that is", "files that are")
        warn_once(f"{path} names {files} not among the photos: {shortened(unknown)}")
    return {name: listed[line_of[name]] for name in names if name in line_of}


def _by_file_name(names: Iterable[str]) -> dict[str, list[str]]:
    """Names by their last part in small letters."""
    found: dict[str, list[str]] = {}
    for name in sorted(names):
        found.setdefault(name.replace("\\", "/").rpartition("/")[2].casefold(), []).append(name)
    return found


def _read_tags(path: Path) -> tuple[GeoPosition | None, int]:
    """Position and orientation of a photo; nothing is known about one that cannot be read."""
    try:
        return read_pose_tags(path)
    except UnreadableImage:
        return None, 0
