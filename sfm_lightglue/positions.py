"""Where photos were taken: the record of a GPS position, and how it is read from EXIF and XMP."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

ALTITUDES_M = -12_000.0, 9_000_000.0
"""Lowest and highest altitude: below the deepest sea, and above the atmosphere."""
LOOKS_DOWN_DEG = -60.0
"""Pitch of a camera, degrees, below which it looks at the ground and has no heading."""
ACCURACIES_M = 1e-6, 1e6
"""Smallest and largest standard deviation."""


MIN_PRIORS = 5
"""Positions that a model needs as priors. Moving, turning and scaling it fits any two of them exactly, and three nearly."""


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
    """Direction in which the camera looks, clockwise from true north, 0..360; NaN if unknown, relative to magnetic north, or if
    the camera looks down."""

    def __post_init__(self) -> None:
        if not (abs(self.latitude_deg) <= 90 and abs(self.longitude_deg) <= 180):
            is_projected = max(abs(self.latitude_deg), abs(self.longitude_deg)) > 360
            raise ValueError(
                f"latitude {self.latitude_deg}, longitude {self.longitude_deg}: expected -90..90 and -180..180 degrees"
                + (". Convert eastings and northings to degrees (EPSG:4326) first" if is_projected else "")
            )
        lowest, highest = ALTITUDES_M
        if self.altitude_m < lowest or self.altitude_m > highest:  # False for NaN
            raise ValueError(f"altitude {self.altitude_m}: expected {lowest:.0f}..{highest:.0f} m")
        for accuracy in (self.accuracy_m, self.vertical_accuracy_m):
            if accuracy < ACCURACIES_M[0] or accuracy > ACCURACIES_M[1]:
                raise ValueError(f"accuracy {accuracy}: expected 0.000001..1000000 m")


def position_from_exif(gps: Mapping[int, Any], xmp: str = "") -> GeoPosition | None:
    """The position in the GPS directory of a photo's EXIF.

    Args:
        gps: Values by number of the tag, as PIL reads them: 1 and 3 the hemispheres, 2 and 4 degrees, minutes and seconds,
            5 is 1 or 3 below the reference level (sea level or ellipsoid), 6 is the height in m, 16 and 17 the direction of the
            view and its north, 31 the horizontal error in m.
        xmp: The photo's XMP, in which drones give the accuracy, see `_accuracy`.

    Returns:
        None if latitude or longitude is missing or not a number, or if both are 0, which devices write without a fix. An altitude
        or accuracy that is out of range counts as unknown.

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
        return GeoPosition(latitude, longitude, _altitude(gps), *_accuracy(gps, xmp), _heading(gps, xmp))
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
    altitude = _number(gps.get(6)) * (-1 if is_below else 1)
    return altitude if ALTITUDES_M[0] <= altitude <= ALTITUDES_M[1] else math.nan


def _heading(gps: Mapping[int, Any], xmp: str) -> float:
    """From EXIF, or from DJI's XMP (yaw of the gimbal). NaN if the gimbal looks down: its yaw only turns the picture then."""
    if _xmp_number(xmp, "GimbalPitchDegree") < LOOKS_DOWN_DEG:
        return math.nan
    heading = _number(gps.get(17))
    if 0 <= heading <= 360 and _letter(gps, 16) != "M":
        return heading
    yaw = _xmp_number(xmp, "GimbalYawDegree")
    return math.nan if math.isnan(yaw) else yaw % 360


def _accuracy(gps: Mapping[int, Any], xmp: str) -> tuple[float, float]:
    """Horizontal and vertical standard deviation in m, NaN if unknown.

    From XMP if it has them: DJI's drones with RTK write RtkStdLat, RtkStdLon and RtkStdHgt, other mapping cameras GPSXYAccuracy
    and GPSZAccuracy. Else from EXIF.
    """
    by_axis = _xmp_number(xmp, "RtkStdLat"), _xmp_number(xmp, "RtkStdLon"), _xmp_number(xmp, "GPSXYAccuracy")
    horizontal = [value for value in by_axis if value > 0] or [_number(gps.get(31))]
    vertical = [value for value in (_xmp_number(xmp, "RtkStdHgt"), _xmp_number(xmp, "GPSZAccuracy")) if value > 0]
    return _plausible(max(horizontal)), _plausible(max(vertical, default=math.nan))


def _xmp_number(xmp: str, name: str) -> float:
    """The value of a property of XMP, written as an attribute or as an element; NaN if there is none."""
    found = re.search(rf'\b{name}\s*(?:=\s*"([^"]*)"|>([^<]*)<)', xmp)
    return _number(found[1] or found[2]) if found else math.nan


def _plausible(value: float) -> float:
    return value if ACCURACIES_M[0] <= value <= ACCURACIES_M[1] else math.nan


def _number(value: Any) -> float:
    """A finite number, or NaN."""
    try:
        number = float(value)
    except (TypeError, ValueError, ZeroDivisionError):
        return math.nan
    return number if math.isfinite(number) else math.nan
