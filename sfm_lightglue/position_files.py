"""Files of GPS positions: our own, and those of spreadsheets and photogrammetry programs.

- Our own files have no header: `name latitude longitude altitude_m`. Further columns are ignored.
- CSV files of Pix4D, Metashape, ExifTool and spreadsheets have a header that names at least the columns of name, latitude and
  longitude, in any order.
- OpenDroneMap's `geo.txt` begins with the line `EPSG:4326` or `WGS84`. Its columns are `name longitude latitude altitude_m`, and
  the accuracies are in columns 8 and 9.

Lines that start with # are comments, unless they are a header. Blanks, commas, semicolons or tabs separate the columns. The
altitude may be missing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

from sfm_lightglue.positions import GeoPosition
from sfm_lightglue.text_files import numbered_lines, read_text, split_columns

EXPECTED = "expected `name latitude longitude altitude_m` in degrees and metres, or a header such as `name,latitude,longitude`"

OWN_COLUMNS = {"name": 0, "latitude": 1, "longitude": 2, "altitude": 3}
ODM_COLUMNS = {"name": 0, "longitude": 1, "latitude": 2, "altitude": 3, "accuracy": 7, "vertical_accuracy": 8}
"""Source: https://docs.opendronemap.org/geo/ (image, x, y, z, yaw, pitch, roll, horizontal and vertical accuracy)."""

TITLES = {
    "name": "name image imagename filename file label photo photoname path sourcefile",
    "latitude": "latitude lat ylatitude gpslatitude latitudedeg",
    "longitude": "longitude lon long lng xlongitude gpslongitude longitudedeg",
    "altitude": "altitude alt height elevation ele zaltitude gpsaltitude altitudem heightm ellipsoidalheight",
    "accuracy": "accuracy accuracym accuracyhorizontal horizontalaccuracy horzaccuracy hacc accuracyxy accuracyxym xyaccuracy",
    "vertical_accuracy": "accuracyvertical verticalaccuracy vertaccuracy vacc accuracyz accuracyzm zaccuracy",
}
"""Titles of columns in small letters, without units in brackets and without signs."""
GEOGRAPHIC = re.compile(r"(EPSG:(4326|4979)|WGS ?84|\+proj=(longlat|latlong)\b.*)", re.IGNORECASE)
PROJECTED = re.compile(r"(EPSG:\d+|WGS ?84\s+UTM\b.*|\+(proj|init)=.*|PROJCS\[.*)", re.IGNORECASE)
MISSING = {"", "-", "nan", "none", "null", "n/a"}


def read_positions(path: Path | str) -> dict[str, GeoPosition]:
    """The positions of a file by photo name, in the order of the file. The module describes the forms it may have.

    Photos without latitude and longitude, or with 0 for both, which devices write without a fix, are left out.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: A line is not understood or repeats a name, or coordinates are projected. The message gives the file and the
            number of the line.
    """
    positions: dict[str, GeoPosition] = {}
    columns, seen, is_start = OWN_COLUMNS, set(), True
    for number, line in numbered_lines(read_text(path, "file of positions")):
        try:
            if is_start and (described := _described_columns(line)):
                columns, is_start = described, line.lstrip().startswith("#")
                continue
            if line.lstrip().startswith("#"):
                continue
            is_start = False
            name, position = _parse_line(line, columns)
            if name in seen:
                raise ValueError(f"a second position of {name}")
            seen.add(name)
            if position is not None:
                positions[name] = position
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}; {EXPECTED}") from error
    return positions


def _described_columns(line: str) -> dict[str, int] | None:
    """Column of each value, if a line before the first position is a header or names the coordinates; else None.

    Raises: ValueError for coordinates that are not latitude and longitude.
    """
    content = line.strip().lstrip("#").strip()
    if GEOGRAPHIC.fullmatch(content):
        return ODM_COLUMNS
    if projected := PROJECTED.search(content) if line.lstrip().startswith("#") else PROJECTED.fullmatch(content):
        raise ValueError(f"the coordinates are in {projected[0][:60]}: convert them to latitude and longitude (EPSG:4326)")
    titles = [re.sub(r"\[.*?\]|\(.*?\)|[^a-z]", "", title.lower()) for title in split_columns(content)]
    found: dict[str, int] = {}
    for key, known in TITLES.items():
        index = next((index for index, title in enumerate(titles) if title in known.split()), None)
        if index is not None:
            found[key] = index
    if not {"name", "latitude", "longitude"} <= set(found):
        if "name" in found and {"easting", "northing"} <= {re.sub("^[xy](?=east|north)", "", title) for title in titles}:
            raise ValueError("the coordinates are easting and northing: convert them to latitude and longitude (EPSG:4326)")
        if "name" in found and {"x", "y"} <= {*titles}:
            raise ValueError(
                "the coordinates are x and y: convert eastings and northings to latitude and longitude (EPSG:4326) first, and "
                "name the columns latitude and longitude"
            )
        return None
    # A comment may describe only the first columns, such as `# name latitude longitude`.
    return {key: index for key, index in OWN_COLUMNS.items() if index >= len(titles)} | found


def _parse_line(line: str, columns: Mapping[str, int]) -> tuple[str, GeoPosition | None]:
    """Name and position of a photo; None without a position. Raises: ValueError with the reason."""
    cells = split_columns(line)
    name = cells[columns["name"]] if columns["name"] < len(cells) else ""
    if len(cells) < 3 or not name:
        raise ValueError(f"found {len(cells) - 1} values after the name" if name else "found no name")
    values = {key: _number(cells[index]) for key, index in columns.items() if key != "name" and index < len(cells)}
    latitude, longitude = values.get("latitude", math.nan), values.get("longitude", math.nan)
    if (math.isnan(latitude) and math.isnan(longitude)) or latitude == longitude == 0:
        return name, None
    accuracies = [values.get(key, math.nan) for key in ("accuracy", "vertical_accuracy")]
    return name, GeoPosition(latitude, longitude, values.get("altitude", math.nan), *accuracies)


def _number(cell: str) -> float:
    """A number, also with a decimal comma; NaN if the cell is empty. Raises: ValueError for anything else."""
    if cell.lower() in MISSING:
        return math.nan
    number = float(cell.replace(",", "."))
    if not math.isfinite(number):
        raise ValueError(f"found {cell}, expected a finite number")
    return number
