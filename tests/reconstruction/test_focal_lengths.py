"""If the mapper finds no first pair, it tries other focal lengths."""

from __future__ import annotations

from pathlib import Path

import pycolmap

from sfm_lightglue.reconstruction.focal_lengths import FACTORS, map_with_other_focal_lengths

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


def test_focal_lengths_are_tried_until_one_gives_a_model(tmp_path: Path) -> None:
    database, output, tried = make_database(tmp_path / "database.db"), tmp_path / "out", []
    output.mkdir()

    def run(copy: Path) -> bool:
        tried.append(focal_length(copy))
        if tried[-1] > 768:
            (output / "0").mkdir()
        return False

    notes, interrupted = map_with_other_focal_lengths(database, output, run)
    assert tried == [FACTORS[0] * 640, FACTORS[1] * 640], "the view graph says nothing about one photo"
    assert "the guess of 1.8 times the longest side" in notes[0] and not interrupted
    assert focal_length(database) == 768, "the database stays"
    assert [path.name for path in tmp_path.iterdir() if path.name not in ("database.db", "out")] == []


def test_known_focal_lengths_stay(tmp_path: Path) -> None:
    database = make_database(tmp_path / "database.db", known=True)
    assert map_with_other_focal_lengths(database, tmp_path, lambda copy: True) == ([], False)


def test_ctrl_c_ends_the_trials(tmp_path: Path) -> None:
    database = make_database(tmp_path / "database.db")
    (tmp_path / "out").mkdir()
    assert map_with_other_focal_lengths(database, tmp_path / "out", lambda copy: True)[1]
