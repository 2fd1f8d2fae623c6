"""Where photos were taken: GPS positions from EXIF and from text files.

A file of positions has one line `name latitude longitude altitude_m` per photo. Lines that start with # are comments. The
altitude may be missing, and further columns are ignored. If a name contains white space, the columns are separated by tabs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class GeoPosition:
    """A place on the earth (WGS84)."""

    latitude_deg: float
    """-90..90, north is positive."""
    longitude_deg: float
    """-180..180, east is positive."""
    altitude_m: float = math.nan
    """Height in m as the device gives it, mostly above sea level; NaN if unknown."""

    def __post_init__(self) -> None:
        if not (abs(self.latitude_deg) <= 90 and abs(self.longitude_deg) <= 180):
            raise ValueError(
                f"latitude {self.latitude_deg}, longitude {self.longitude_deg}: expected -90..90 and -180..180 degrees"
            )


def read_positions(path: Path | str) -> dict[str, GeoPosition]:
    """The positions of a file by photo name, in the order of the file.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: A line is not understood or repeats a name. The message gives the file and the number of the line.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"the file of positions {path} does not exist")
    positions: dict[str, GeoPosition] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, *fields = line.rstrip("\r").split("\t") if "\t" in line else line.split()
        try:
            if name in positions:
                raise ValueError(f"a second position of {name}")
            if len(fields) < 2:
                raise ValueError(f"found {len(fields)} values after the name")
            positions[name] = GeoPosition(*map(float, fields[:3]))
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}; expected `name latitude longitude altitude_m`") from error
    return positions


def position_from_exif(gps: Mapping[int, Any]) -> GeoPosition | None:
    """The position in the GPS directory of a photo's EXIF.

    Args:
        gps: Values by number of the tag, as PIL reads them: 1 and 3 the hemispheres, 2 and 4 degrees, minutes and seconds,
            5 is 1 below sea level, 6 is the height in m.

    Returns:
        None if latitude or longitude is missing or not a number, or if both are 0, which devices write without a fix.
    """
    try:
        latitude, longitude = _degrees(gps[2]), _degrees(gps[4])
        if str(gps.get(1)).strip("\0 ").upper() == "S":
            latitude = -latitude
        if str(gps.get(3)).strip("\0 ").upper() == "W":
            longitude = -longitude
        if not latitude and not longitude:
            return None
        return GeoPosition(latitude, longitude, _altitude(gps))
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None


def _degrees(parts: Iterable[Any]) -> float:
    """Degrees, minutes and seconds as degrees; the seconds, or minutes and seconds, may be missing."""
    degrees: float = sum(float(part) / 60**i for i, part in enumerate(parts))
    return degrees


def _altitude(gps: Mapping[int, Any]) -> float:
    try:
        altitude = float(gps[6])
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return math.nan
    is_below_sea = gps.get(5) in (1, b"\x01")
    return -altitude if is_below_sea else altitude
