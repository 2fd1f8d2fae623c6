"""The pair source `spatial`: nearest photos by GPS, and photos without a position."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PILImage

from sfm_lightglue.georeference import Origin
from sfm_lightglue.images import list_images
from sfm_lightglue.pairs.collection import Collection
from sfm_lightglue.pairs.pairing import check_source, create_source
from sfm_lightglue.pairs.spatial import SpatialOptions, nearest_pairs
from sfm_lightglue.pairs.stage import select_pairs
from sfm_lightglue.positions import GeoPosition
from sfm_lightglue.products import Pair

PHOTOS = Path(__file__).resolve().parents[3] / "shared" / "data"
OPTIONS = SpatialOptions(
    name="spatial",
    num_neighbours=2,
    max_distance_m=None,
    max_heading_difference_deg=None,
    without_position="retrieval",
    codebook="own",
    num_words=8,
    dimensions=64,
    max_samples=100,
    seed=0,
    min_score=None,
    global_descriptors=None,
)


WRONG = {"without_position": "exhaustive"}


def positions_at(places: np.ndarray, origin: Origin = Origin(46.84, -91.99, 0.0)) -> dict[str, GeoPosition]:  # noqa: B008
    geodetic = origin.to_geodetic(places)
    return {f"{index:03d}.jpg": GeoPosition(*map(float, place)) for index, place in enumerate(geodetic)}


def write(path: Path, positions: dict[str, GeoPosition]) -> Path:
    path.write_text("".join(f"{name} {at.latitude_deg} {at.longitude_deg}\n" for name, at in positions.items()))
    return path


def test_the_nearest_photos_are_found_as_by_a_full_table() -> None:
    places = np.random.default_rng(0).uniform(-500, 500, (40, 3)) * [1, 1, 0]
    distances = np.linalg.norm(places[:, None] - places[None], axis=2) + np.diag(np.full(40, np.inf))
    nearest = np.argsort(distances, axis=1)[:, :3]
    expected = {tuple(sorted((f"{i:03d}.jpg", f"{j:03d}.jpg"))) for i in range(40) for j in nearest[i]}
    pairs = nearest_pairs(positions_at(places), 3)
    assert {(pair.name0, pair.name1) for pair in pairs} == expected
    assert pairs == sorted(pairs)


def test_altitude_does_not_count() -> None:
    places = np.array([[0.0, 0, 0], [10, 0, 300], [30, 0, 0]])
    assert nearest_pairs(positions_at(places), 1) == [Pair("000.jpg", "001.jpg"), Pair("001.jpg", "002.jpg")]


def test_photos_farther_apart_than_the_limit_are_not_paired(caplog: pytest.LogCaptureFixture) -> None:
    places = np.array([[0.0, 0, 0], [90, 0, 0], [195, 0, 0]])
    assert nearest_pairs(positions_at(places), 2, 100.0) == [Pair("000.jpg", "001.jpg")]
    assert "1 photos have no other within 100 m, the first is 002.jpg" in caplog.text


def test_without_a_number_all_photos_within_the_radius_are_paired() -> None:
    places = np.array([[0.0, 0, 0], [40, 0, 0], [90, 0, 0], [500, 0, 0], [505, 0, 0]])
    pairs = nearest_pairs(positions_at(places), None, 60.0)
    assert [(int(pair.name0[:3]), int(pair.name1[:3])) for pair in pairs] == [(0, 1), (1, 2), (3, 4)]
    assert [pair.reason for pair in pairs] == ["spatial#1", "spatial#1", "spatial#1"]


def test_photos_that_look_in_other_directions_are_not_paired() -> None:
    positions = positions_at(np.array([[10.0 * i, 0, 0] for i in range(5)]))
    headings = [350.0, 20.0, 180.0, np.nan, 15.0]
    both = zip(positions.items(), headings, strict=True)
    positions = {name: dataclasses.replace(at, heading_deg=heading) for (name, at), heading in both}
    found = {(int(pair.name0[:3]), int(pair.name1[:3])) for pair in nearest_pairs(positions, 4, None, 45.0)}
    assert found == {(0, 1), (0, 4), (1, 4), (0, 3), (1, 3), (2, 3), (3, 4)}


def test_equal_distances_are_decided_by_name_and_the_date_line_divides_nothing() -> None:
    grid = np.array([[x, y, 0.0] for x in range(0, 50, 10) for y in range(0, 50, 10)])
    positions = positions_at(grid, Origin(0.0, 180.0, 0.0))
    pairs = nearest_pairs(positions, 4)
    assert pairs == nearest_pairs(dict(reversed(positions.items())), 4)
    assert Pair("009.jpg", "014.jpg") in pairs and Pair("010.jpg", "015.jpg") in pairs
    assert Pair("000.jpg", "024.jpg") not in pairs


def test_photos_without_a_position_are_paired_by_their_pictures(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    positions = positions_at(np.array([[0.0, 0, 0], [10, 0, 0], [20, 0, 0]]))
    looks = {"000.jpg": 0, "001.jpg": 1, "002.jpg": 0, "x.jpg": 1}
    collection = Collection(
        looks,
        positions=write(tmp_path / "gps.txt", positions),
        load_descriptors=lambda name: np.random.default_rng(looks[name]).standard_normal((50, 8)).astype(np.float32),
    )
    options = dataclasses.replace(OPTIONS, num_neighbours=1)
    pairs = select_pairs(create_source(options), collection)
    near = [Pair("000.jpg", "001.jpg"), Pair("001.jpg", "002.jpg")]
    assert pairs == sorted([*near, Pair("001.jpg", "x.jpg")])
    assert next(pair.reason for pair in pairs if pair.name1 == "x.jpg") == "retrieval#1"
    assert "1 of 4 photos have no position: they are paired by retrieval" in caplog.text
    skipping = dataclasses.replace(options, without_position="skip")
    assert select_pairs(create_source(skipping), collection) == near
    assert "they get no pairs" in caplog.text


def test_photos_without_any_position_are_refused_before_the_work(tmp_path: Path) -> None:
    PILImage.new("RGB", (32, 32)).save(tmp_path / "a.jpg")
    source, collection = create_source(OPTIONS), Collection(["a.jpg"], images=tmp_path)
    for ask in (lambda: check_source(source, collection), lambda: source(collection)):
        with pytest.raises(ValueError, match=r"none of the 1 photos has one: give dataset\.positions=FILE"):
            ask()


@pytest.mark.parametrize(
    "change", [{"num_neighbours": 0}, {"max_distance_m": 0}, {"num_neighbours": None}, {"without_position": "exhaustive"}]
)
def test_options_that_make_no_sense_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"pairs\.{next(iter(change))}"):
        dataclasses.replace(OPTIONS, **change)


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="needs the folder of photos")
def test_neighbours_in_a_flight_are_those_of_the_strips() -> None:
    images = PHOTOS / "drone_brighton18" / "images"
    pairs = select_pairs(create_source(OPTIONS), Collection(list_images(images), images=images))
    following = {(f"DJI_{i:04d}.JPG", f"DJI_{i + 1:04d}.JPG") for i in range(18, 35)}
    between_strips = {("DJI_0023.JPG", "DJI_0024.JPG"), ("DJI_0029.JPG", "DJI_0030.JPG")}  # the drone turns: 26 m
    assert following - between_strips <= {(pair.name0, pair.name1) for pair in pairs}
    assert len(pairs) < 36
