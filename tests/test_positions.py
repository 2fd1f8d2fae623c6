"""GPS positions of photos, from EXIF and XMP."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags
from PIL import Image as PILImage

from sfm_lightglue.images import UnreadableImage, list_images, read_position
from sfm_lightglue.position_files import read_positions
from sfm_lightglue.positions import GeoPosition, position_from_exif

PHOTOS = Path(__file__).resolve().parents[2] / "shared" / "data"
GPS: dict[int, Any] = {1: "N", 2: (46.0, 30.0, 36.0), 3: "E", 4: (91.0, 15.0, 0.0), 5: b"\0", 6: 198.5}


DJI = '<r drone-dji:GimbalPitchDegree="{}" drone-dji:GimbalYawDegree="{}"/>'


def test_degrees_minutes_and_seconds_become_degrees_with_a_sign() -> None:
    assert position_from_exif(GPS) == GeoPosition(46.51, 91.25, 198.5)
    assert position_from_exif({**GPS, 1: "S", 3: "W\0", 5: b"\1"}) == GeoPosition(-46.51, -91.25, -198.5)


def test_an_unknown_altitude_is_not_a_number() -> None:
    absurd = ({**GPS, 6: value} for value in (1e300, 9_000_001, math.inf))
    for gps in ({key: GPS[key] for key in (1, 2, 3, 4)}, {**GPS, 6: "?"}, {**GPS, 5: b"\1", 6: 12_001}, *absurd):
        position = position_from_exif(gps)
        assert position is not None and math.isnan(position.altitude_m)


@pytest.mark.parametrize(
    "gps",
    [
        {},
        {**GPS, 2: None},
        {**GPS, 4: ("a", "b", "c")},
        {**GPS, 2: (math.nan, 0, 0)},
        {**GPS, 2: (91, 0, 0)},
        {**GPS, 2: (0, 0, 0), 4: (0, 0, 0)},
    ],
)
def test_a_useless_gps_directory_gives_no_position(gps: dict[int, Any]) -> None:
    assert position_from_exif(gps) is None


@pytest.mark.parametrize(("reference", "sign"), [(b"\0", 1), (b"\1", -1), (b"\2", 1), (b"\3", -1), (3, -1), (None, 1)])
def test_altitudes_below_sea_level_or_ellipsoid_are_negative(reference: object, sign: int) -> None:
    position = position_from_exif({**GPS, 5: reference})
    assert position is not None and position.altitude_m == sign * 198.5


def test_accuracy_and_heading_are_read() -> None:
    position = position_from_exif({**GPS, 16: "T", 17: 359.25, 31: 6.0})
    assert position == GeoPosition(46.51, 91.25, 198.5, 6.0, heading_deg=359.25)
    magnetic = position_from_exif({**GPS, 16: "M\0", 17: 359.25, 31: 0})
    assert magnetic == GeoPosition(46.51, 91.25, 198.5)
    for accuracy in ("?", 1e300, 1e-300, -1):
        assert position_from_exif({**GPS, 16: "T", 17: 400, 31: accuracy}) == magnetic


@pytest.mark.parametrize(
    ("xmp", "expected"),
    [
        ('drone-dji:RtkStdLon="0.011" drone-dji:RtkStdLat="0.012" drone-dji:RtkStdHgt="0.025"', (0.012, 0.025)),
        ("<Camera:GPSXYAccuracy>1.5</Camera:GPSXYAccuracy> <Camera:GPSZAccuracy> 2.5 </Camera:GPSZAccuracy>", (1.5, 2.5)),
        ('drone-dji:RtkStdLon="0" drone-dji:RtkStdLat="0" drone-dji:RtkFlag="0"', (6.0, math.nan)),
    ],
)
def test_the_accuracy_in_xmp_comes_before_that_in_exif(xmp: str, expected: tuple[float, float]) -> None:
    position = position_from_exif({**GPS, 31: 6.0}, xmp)
    assert position is not None
    np.testing.assert_array_equal((position.accuracy_m, position.vertical_accuracy_m), expected)


def test_the_heading_of_a_drone_is_the_yaw_of_its_gimbal_unless_it_looks_down() -> None:
    def heading(pitch: str, yaw: str, **exif: float) -> float:
        position = position_from_exif({**GPS, **({17: exif["direction"], 16: "T"} if exif else {})}, DJI.format(pitch, yaw))
        assert position is not None
        return position.heading_deg

    assert heading("-20.10", "-90.50") == 269.5
    assert heading("+0.00", "+12.30") == 12.3
    assert heading("+0.00", "+12.30", direction=40.0) == 40.0
    assert math.isnan(heading("-89.90", "+12.30", direction=40.0))


def test_xmp_is_found_in_the_photo(tmp_path: Path) -> None:
    photo = PILImage.new("RGB", (32, 32))
    exif = photo.getexif()
    exif.get_ifd(ExifTags.IFD.GPSInfo).update(GPS)
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><r drone-dji:RtkStdLat="0.02" drone-dji:RtkStdHgt="0.03"/></x:xmpmeta>'
    photo.save(tmp_path / "photo.webp", exif=exif, xmp=xmp)
    plain = PILImage.open(tmp_path / "photo.webp").convert("RGB")
    plain.save(tmp_path / "photo.jpg", exif=exif)
    jpeg = (tmp_path / "photo.jpg").read_bytes()
    block = b"http://ns.adobe.com/xap/1.0/\0" + xmp
    (tmp_path / "photo.jpg").write_bytes(jpeg[:2] + b"\xff\xe1" + (len(block) + 2).to_bytes(2, "big") + block + jpeg[2:])
    for name in ("photo.webp", "photo.jpg"):
        assert read_position(tmp_path / name) == GeoPosition(46.51, 91.25, 198.5, 0.02, 0.03)


def test_photos_without_exif_have_no_position_and_broken_photos_are_refused(tmp_path: Path) -> None:
    PILImage.new("RGB", (32, 32)).save(tmp_path / "plain.jpg")
    assert read_position(tmp_path / "plain.jpg") is None
    (tmp_path / "broken.jpg").write_bytes(b"no photo")
    with pytest.raises(UnreadableImage):
        read_position(tmp_path / "broken.jpg")


def test_a_position_survives_the_photo(tmp_path: Path) -> None:
    photo = PILImage.new("RGB", (32, 32))
    exif = photo.getexif()
    exif.get_ifd(ExifTags.IFD.GPSInfo).update(GPS)
    photo.save(tmp_path / "photo.jpg", exif=exif)
    assert read_position(tmp_path / "photo.jpg") == GeoPosition(46.51, 91.25, 198.5)


@pytest.mark.parametrize("folder", ["drone_brighton18", "monstree_exif10"])
def test_positions_of_real_photos_equal_the_list_beside_them(folder: str) -> None:
    if not (PHOTOS / folder).is_dir():
        pytest.skip("needs the folder of photos")
    listed = read_positions(PHOTOS / folder / "gps.txt")
    assert sorted(listed) == list_images(PHOTOS / folder / "images")
    for name, expected in listed.items():
        found = read_position(PHOTOS / folder / "images" / name)
        assert found is not None
        degrees = found.latitude_deg, found.longitude_deg
        np.testing.assert_allclose(degrees, (expected.latitude_deg, expected.longitude_deg), rtol=0, atol=6e-9)  # 8 decimals
        assert found.altitude_m == pytest.approx(expected.altitude_m, abs=6e-4)  # 3 decimals
