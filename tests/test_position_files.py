"""Files of GPS positions in the forms that programs write."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from sfm_lightglue.pose_priors import listed_positions
from sfm_lightglue.position_files import read_positions
from sfm_lightglue.positions import GeoPosition

PLACE = GeoPosition(46.5, -91.25, 198.5)


def test_a_file_may_lack_altitudes_and_have_comments_tabs_and_more_columns(tmp_path: Path) -> None:
    path = tmp_path / "gps.txt"
    path.write_bytes(b"\xef\xbb\xbf# name latitude longitude\r\n\r\na.jpg 46.5 -91.25 198.5 6\r\nb c.jpg\t-46.5\t91.25\r\n")
    positions = read_positions(path)
    assert positions["a.jpg"] == GeoPosition(46.5, -91.25, 198.5)
    assert (positions["b c.jpg"].latitude_deg, positions["b c.jpg"].longitude_deg) == (-46.5, 91.25)
    assert math.isnan(positions["b c.jpg"].altitude_m)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("b.jpg 46.5", "found 1 values after the name"),
        ("b.jpg north 91.25", "could not convert string to float: 'north'"),
        ("b.jpg 46.5 inf", "found inf, expected a finite number"),
        ("b.jpg 46.5 -", r"latitude 46\.5, longitude nan: expected -90\.\.90"),
        ("b.jpg 91 0", r"latitude 91\.0, longitude 0\.0: expected -90\.\.90"),
        ("a.jpg 46.5 91.25", r"a second position of a\.jpg"),
    ],
)
def test_a_line_that_is_not_understood_is_refused_with_its_number(tmp_path: Path, line: str, expected: str) -> None:
    (tmp_path / "gps.txt").write_text(f"a.jpg 1 2\n{line}\n")
    with pytest.raises(ValueError, match=rf"gps\.txt:2: {expected}.*; expected `name latitude longitude altitude_m`"):
        read_positions(tmp_path / "gps.txt")


def test_the_error_names_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.txt does not exist"):
        read_positions(tmp_path / "nothing.txt")


@pytest.mark.parametrize(
    "text",
    [
        "a.jpg,46.5,-91.25,198.5\n",
        '"a.jpg";46,5;-91,25;198,5\n',
        "name,lat,lon,alt\na.jpg,46.5,-91.25,198.5\n",
        "alt\tlon\tlat\tname\n198.5\t-91.25\t46.5\ta.jpg\n",
        "Filename,Longitude,Latitude,Height (m)\na.jpg,-91.25,46.5,198.5\n",
        "SourceFile,GPSLatitude,GPSLongitude,GPSAltitude\na.jpg,46.5,-91.25,198.5\n",
        "# name longitude latitude\na.jpg -91.25 46.5 198.5 6\n",
        "# name latitude longitude altitude_m (from EXIF, WGS84)\na.jpg 46.5 -91.25 198.5\n",
        "# Each line has the name and the latitude of a photo.\na.jpg 46.5 -91.25 198.5\n",
        "#Label,X/Longitude,Y/Latitude,Z/Altitude,Error_(m)\na.jpg,-91.25,46.5,198.5,7\n",
        '# CoordinateSystem: GEOGCS["WGS 84"]\n#Label,Longitude,Latitude,Altitude\na.jpg,-91.25,46.5,198.5\n',
        "EPSG:4326\na.jpg -91.25 46.5 198.5\n",
        "WGS84\na.jpg -91.25 46.5 198.5\n",
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_forms_of_other_programs_are_understood(tmp_path: Path, text: str, encoding: str) -> None:
    (tmp_path / "gps.csv").write_bytes(text.replace("\n", "\r\n").encode(encoding))
    assert read_positions(tmp_path / "gps.csv") == {"a.jpg": PLACE}


@pytest.mark.parametrize(
    "text",
    [
        "imagename,latitude [decimal degrees],longitude [decimal degrees],altitude [meter],accuracy horizontal [meter],"
        "accuracy vertical [meter]\na.jpg,46.5,-91.25,198.5,0.02,0.03\n",
        "EPSG:4326\na.jpg -91.25 46.5 198.5 10 0 0 0.02 0.03\n",
    ],
)
def test_accuracies_are_read(tmp_path: Path, text: str) -> None:
    (tmp_path / "gps.csv").write_text(text)
    assert read_positions(tmp_path / "gps.csv") == {"a.jpg": GeoPosition(46.5, -91.25, 198.5, 0.02, 0.03)}


@pytest.mark.parametrize(
    "text",
    [
        "EPSG:32615\na.jpg 576000 5188000 198\n",
        "WGS84 UTM 15N\na.jpg 576000 5188000 198\n",
        "+proj=utm +zone=15 +datum=WGS84\na.jpg 576000 5188000 198\n",
        '# CoordinateSystem: PROJCS["WGS 84 / UTM zone 15N"]\n#Label,X/Easting,Y/Northing,Z/Altitude\na.jpg,1,2,3\n',
        "name,easting,northing,altitude\na.jpg,576000,5188000,198\n",
    ],
)
def test_projected_coordinates_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "geo.txt").write_text(text)
    with pytest.raises(ValueError, match=r"geo\.txt:1: the coordinates are .*: convert them to latitude and longitude"):
        read_positions(tmp_path / "geo.txt")


@pytest.mark.parametrize("text", ["name,x,y,z\na.jpg,500000,5200000,10\n", "a.jpg 500000 5200000 10\n"])
def test_eastings_and_northings_without_a_system_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "geo.txt").write_text(text)
    with pytest.raises(ValueError, match=r"geo\.txt:1: .*[cC]onvert eastings and northings to .*EPSG:4326\) first"):
        read_positions(tmp_path / "geo.txt")


@pytest.mark.parametrize(
    ("cells", "found"),
    [
        ("1e300,,", r"altitude 1e\+300: expected -12000\.\.9000000 m"),
        ("-12001,,", r"altitude -12001\.0"),
        ("198.5,1e300,", r"accuracy 1e\+300: expected 0\.000001\.\.1000000 m"),
        ("198.5,2,1e-300", "accuracy 1e-300"),
        ("198.5,0,2", r"accuracy 0\.0"),
    ],
)
def test_impossible_altitudes_and_accuracies_are_refused_with_their_line(tmp_path: Path, cells: str, found: str) -> None:
    """An altitude of 1e300 m became NaN in the model."""
    (tmp_path / "gps.csv").write_text(f"name,lat,lon,alt,accuracy,accuracy vertical\na.jpg,46.5,-91.25,{cells}\n")
    with pytest.raises(ValueError, match=rf"gps\.csv:2: {found}"):
        read_positions(tmp_path / "gps.csv")


def test_photos_without_a_fix_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "gps.csv").write_text("name,lat,lon,alt\na.jpg,46.5,-91.25,198.5\nb.jpg,,,\nc.jpg,0,0,0\nd.jpg,46.5,-91.25,\n")
    positions = read_positions(tmp_path / "gps.csv")
    assert list(positions) == ["a.jpg", "d.jpg"] and math.isnan(positions["d.jpg"].altitude_m)


def test_photos_are_found_by_their_file_name_if_there_is_only_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "gps.txt").write_text("C:\\flight\\A.JPG 46.5 -91.25 198.5\nb.jpg 1 2\nc.jpg 3 4\n")
    found = listed_positions(tmp_path / "gps.txt", ["day/a.jpg", "left/b.jpg", "right/b.jpg", "c.jpg", "sub/c.jpg"])
    assert list(found) == ["c.jpg", "day/a.jpg"] and found["day/a.jpg"] == PLACE
    assert "names 1 file that is not among the photos: b.jpg" in caplog.text


def test_two_positions_of_one_photo_are_refused(tmp_path: Path) -> None:
    (tmp_path / "gps.txt").write_text("a.jpg 1 2\nb.jpg 1 2\n./a.jpg 3 4\n")
    with pytest.raises(ValueError, match=r"has two positions of a\.jpg: as a\.jpg and as \./a\.jpg"):
        listed_positions(tmp_path / "gps.txt", ["a.jpg", "b.jpg"])
