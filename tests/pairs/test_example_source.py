"""A pair source of the user's own: one Python file and one YAML file outside the package, chosen by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags
from PIL import Image as PILImage

from sfm_lightglue import api, cli
from sfm_lightglue.images import list_images
from sfm_lightglue.pair_files import read_pairs
from sfm_lightglue.position_files import read_positions
from sfm_lightglue.positions import GeoPosition
from sfm_lightglue.products import Pair

PHOTOS = Path(__file__).resolve().parents[3] / "shared" / "data" / "drone_brighton18" / "images"


@pytest.fixture
def user_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder of configurations with the YAML file of the example."""
    (tmp_path / "configs" / "pairs").mkdir(parents=True)
    (tmp_path / "configs" / "pairs" / "nearest.yaml").write_text("name: example_source:NearestPairs\nnum_neighbours: 1\n")
    monkeypatch.setenv("SFM_LIGHTGLUE_CONFIGS", str(tmp_path / "configs"))
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    return tmp_path


def photos_along_a_street(folder: Path, metres: dict[str, float]) -> Path:
    """Photos of noise, with GPS positions at these distances along a street to the east."""
    folder.mkdir()
    for name, distance in metres.items():
        photo = PILImage.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
        exif = photo.getexif()
        exif[ExifTags.Base.Make] = "camera"
        exif.get_ifd(ExifTags.IFD.GPSInfo).update(
            {1: "N", 2: (46.0, 30.0, 0.0), 3: "W", 4: (91.0, 0.0, round(3600 - distance * 0.0470, 4)), 5: b"\0", 6: 198.3}
        )
        photo.save(folder / name, exif=exif)
    return folder


@pytest.mark.usefixtures("command_line")
def test_the_command_pairs_runs_a_source_of_the_user_alone_and_in_a_list(user_folder: Path) -> None:
    photos = photos_along_a_street(user_folder / "photos", {"a.jpg": 0, "b.jpg": 900, "c.jpg": 100, "d.jpg": 1000, "e.jpg": 130})
    given = ["+dataset=folder", f"dataset.images={photos}", f"output={user_folder}/out", "features=sift"]
    assert cli.main(["extract", *given]) == 0
    assert cli.main(["pairs", *given, "pairs=nearest"]) == 0
    nearest = [Pair("a.jpg", "c.jpg"), Pair("b.jpg", "d.jpg"), Pair("c.jpg", "e.jpg")]
    assert read_pairs(user_folder / "out" / "pairs.txt") == nearest
    listed = ["pairs=[nearest,sequential]", "pairs.nearest.num_neighbours=2", "pairs.sequential.overlap=1"]
    assert cli.main(["pairs", *given, *listed]) == 0
    table = [line.split("\t") for line in (user_folder / "out" / "pairs.tsv").read_text().splitlines()[1:]]
    reasons = {(name0, name1): reason for name0, name1, reason, *_ in table}
    assert reasons["a.jpg", "b.jpg"] == "sequential+1"
    assert reasons["a.jpg", "c.jpg"] == "nearest#1,nearest#2"
    assert reasons["b.jpg", "e.jpg"] == "nearest#2"


def test_mistakes_with_a_source_of_the_user_are_explained(user_folder: Path) -> None:
    with pytest.raises(ValueError, match=r"pairs=nearst does not exist\. Did you mean 'nearest'\?"):
        api.select_pairs(["a.jpg"], ["nearst"])
    with pytest.raises(ValueError, match=r"unknown option 'pairs\.num_neighbour'\. Did you mean 'num_neighbours'\?"):
        api.select_pairs(["a.jpg"], "nearest", num_neighbour=2)
    with pytest.raises(ValueError, match=r"these pairs need the photos: give dataset\.images=DIR"):
        api.select_pairs(["a.jpg"], "nearest")


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="needs the folder of photos")
def test_the_nearest_photos_of_a_drone_flight_are_found_by_gps(user_folder: Path) -> None:
    names = list_images(PHOTOS)
    pairs = api.select_pairs(names, "nearest", images=PHOTOS, num_neighbours=2)
    listed = read_positions(PHOTOS.parent / "gps.txt")
    expected = set()
    for name in names:
        nearest = sorted(names, key=lambda other: great_circle_angle(listed[name], listed[other]))
        expected |= {Pair(name, other) for other in nearest[1:3]}
    assert pairs == sorted(expected)


def great_circle_angle(place0: GeoPosition, place1: GeoPosition) -> float:
    """Angle in radians between two places as seen from the centre of the earth (haversine formula)."""
    latitudes = np.radians([place0.latitude_deg, place1.latitude_deg])
    step = np.radians([place1.latitude_deg - place0.latitude_deg, place1.longitude_deg - place0.longitude_deg])
    return float(2 * np.arcsin(np.sqrt(np.sin(step[0] / 2) ** 2 + np.prod(np.cos(latitudes)) * np.sin(step[1] / 2) ** 2)))
