"""Databases with other focal lengths, for scenes that cannot be mapped with the guessed ones."""

from __future__ import annotations

from pathlib import Path

import pycolmap

from sfm_lightglue.reconstruction.focal_lengths import FACTORS, other_focal_lengths

SIZE = (640, 480)


def make_database(path: Path, *, known: bool = False) -> Path:
    """A database with one photo and one camera of 768 px."""
    with pycolmap.Database.open(path) as rows:
        params = [768.0, 320, 240, 0]
        camera = pycolmap.Camera(
            model="SIMPLE_RADIAL", width=SIZE[0], height=SIZE[1], params=params, has_prior_focal_length=known
        )
        rows.write_image(pycolmap.Image(name="a.jpg", camera_id=rows.write_camera(camera)))
    return path


def focal_length(database: Path) -> float:
    with pycolmap.Database.open(database) as rows:
        return float(rows.read_camera(1).params[0])


def test_guessed_focal_lengths_are_replaced_in_copies(tmp_path: Path) -> None:
    database, folder = make_database(tmp_path / "database.db"), tmp_path / "copies"
    folder.mkdir()
    found = [(how, focal_length(copy)) for how, copy in other_focal_lengths(database, folder)]
    assert [focal for _, focal in found] == [factor * 640 for factor in FACTORS], "the view graph says nothing about one photo"
    assert found[1][0] == "the focal length of 1.8 times the longest side"
    assert focal_length(database) == 768, "the database stays"


def test_known_focal_lengths_stay(tmp_path: Path) -> None:
    assert [*other_focal_lengths(make_database(tmp_path / "database.db", known=True), tmp_path)] == []
