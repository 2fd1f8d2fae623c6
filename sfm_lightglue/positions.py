"""Where photos were taken: GPS positions from EXIF and from text files.

A file of positions has one line `name latitude longitude altitude_m` per photo. Lines that start with # are comments. The
altitude may be missing, and further columns are ignored. If a name contains white space, the columns are separated by tabs.
"""

from __future__ import annotations

import math
import re
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
    accuracy_m: float = math.nan
    """Standard deviation of the horizontal position, m; NaN if unknown."""
    vertical_accuracy_m: float = math.nan
    """Standard deviation of the altitude, m; NaN if unknown."""
    heading_deg: float = math.nan
    """Direction in which the camera looks, clockwise from true north, 0..360; NaN if unknown or relative to magnetic north."""

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


def position_from_exif(gps: Mapping[int, Any], xmp: str = "") -> GeoPosition | None:
    """The position in the GPS directory of a photo's EXIF.

    Args:
        gps: Values by number of the tag, as PIL reads them: 1 and 3 the hemispheres, 2 and 4 degrees, minutes and seconds,
            5 is 1 or 3 below the reference level (sea level or ellipsoid), 6 is the height in m, 16 and 17 the direction of the
            view and its north, 31 the horizontal error in m.
        xmp: The photo's XMP, in which drones give the accuracy, see `_accuracy`.

    Returns:
        None if latitude or longitude is missing or not a number, or if both are 0, which devices write without a fix.

    Source: EXIF 3.0, GPS attribute information.
    """
    try:
        latitude, longitude = _degrees(gps[2]), _degrees(gps[4])
        if _letter(gps, 1) == "S":
            latitude = -latitude
        if _letter(gps, 3) == "W":
            longitude = -longitude
        if not latitude and not longitude:
            return None
        return GeoPosition(latitude, longitude, _altitude(gps), *_accuracy(gps, xmp), _heading(gps))
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None


def _letter(gps: Mapping[int, Any], tag: int) -> str:
    return str(gps.get(tag, "")).strip("\0 ").upper()


def _degrees(parts: Iterable[Any]) -> float:
    """Degrees, minutes and seconds as degrees; the seconds, or minutes and seconds, may be missing."""
    degrees: float = sum(float(part) / 60**i for i, part in enumerate(parts))
    return degrees


def _altitude(gps: Mapping[int, Any]) -> float:
    is_below = gps.get(5) in (1, 3, b"\x01", b"\x03")
    altitude = _number(gps.get(6))
    return -altitude if is_below else altitude


def _heading(gps: Mapping[int, Any]) -> float:
    heading = _number(gps.get(17))
    return heading if 0 <= heading <= 360 and _letter(gps, 16) != "M" else math.nan


def _accuracy(gps: Mapping[int, Any], xmp: str) -> tuple[float, float]:
    """Horizontal and vertical standard deviation in m, NaN if unknown.

    From XMP if it has them: DJI's drones with RTK write RtkStdLat, RtkStdLon and RtkStdHgt, other mapping cameras GPSXYAccuracy
    and GPSZAccuracy. Else from EXIF.
    """
    by_axis = _xmp_number(xmp, "RtkStdLat"), _xmp_number(xmp, "RtkStdLon"), _xmp_number(xmp, "GPSXYAccuracy")
    horizontal = [value for value in by_axis if value > 0] or [_number(gps.get(31))]
    vertical = [value for value in (_xmp_number(xmp, "RtkStdHgt"), _xmp_number(xmp, "GPSZAccuracy")) if value > 0]
    return _positive(max(horizontal)), _positive(max(vertical, default=math.nan))


def _xmp_number(xmp: str, name: str) -> float:
    """The value of a property of XMP, written as an attribute or as an element; NaN if there is none."""
    found = re.search(rf'\b{name}\s*(?:=\s*"([^"]*)"|>([^<]*)<)', xmp)
    return _number(found[1] or found[2]) if found else math.nan


def _positive(value: float) -> float:
    return value if value > 0 else math.nan


def _number(value: Any) -> float:
    """A finite number, or NaN."""
    try:
        number = float(value)
    except (TypeError, ValueError, ZeroDivisionError):
        return math.nan
    return number if math.isfinite(number) else math.nan
