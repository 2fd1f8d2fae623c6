"""A scene whose first attempt gives no good model is mapped in other ways."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from pathlib import Path

import pycolmap
import pytest
from known_scene import MAPPER_OPTIONS, KnownScene, make_database
from rooms import camera, make_room
from test_mapping import Drive

from sfm_lightglue.reconstruction import ReconstructionOptions, reconstruct
from sfm_lightglue.reconstruction.fallbacks import TRIALS, map_with_fallbacks, try_other_ways
from sfm_lightglue.reconstruction.mappers import run_mapper
from sfm_lightglue.reconstruction.models import model_folders
from sfm_lightglue.reconstruction.part_of_database import write_part

NUM_PHOTOS = 6


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pairs = [*itertools.combinations(range(NUM_PHOTOS), 2)]
    return make_database(tmp_path_factory.mktemp("scene"), KnownScene(NUM_PHOTOS), range(NUM_PHOTOS), pairs, noise_px=0.3)


class Mappers:
    """Maps with the real mappers, those in `finds` alone; the others give a model of `num_photos`, or none."""

    def __init__(self, *finds: tuple[str, bool], num_photos: int = 0) -> None:
        self.finds, self.num_photos, self.tried = finds, num_photos, list[tuple[str, bool]]()

    def __call__(self, database: Path, output: Path, options: ReconstructionOptions, *, any_start: bool) -> bool:
        self.tried.append((options.name, any_start))
        if self.tried[-1] in self.finds:
            return run_mapper(database, output, options, {})
        if self.num_photos:
            names = [f"{index:02d}.jpg" for index in range(self.num_photos)]
            part = write_part(database, names, output / "part.db")
            run_mapper(part, output, dataclasses.replace(options, name="incremental"), {})
            part.unlink()
        return False


@pytest.mark.parametrize("num_photos, before", [(0, "found no model"), (2, "found no model"), (3, "registered only 3 photos")])
def test_the_other_ways_are_tried_however_the_first_attempt_ends(
    database: Path, tmp_path: Path, num_photos: int, before: str
) -> None:
    """Without a model, with one that will be discarded, or with one of a few photos."""
    mappers = Mappers(("global", False), num_photos=num_photos)
    (note,), interrupted = map_with_fallbacks(database, tmp_path, dataclasses.replace(MAPPER_OPTIONS, min_model_size=3), mappers)
    assert mappers.tried == [("incremental", False), ("incremental", True), ("global", False)] and not interrupted
    assert note.startswith(f"the incremental mapper {before}") and "the global mapper gave one of 6 photos" in note
    assert [path.name for path in tmp_path.iterdir()] == ["0"]
    assert pycolmap.Reconstruction(tmp_path / "0").num_reg_images() == NUM_PHOTOS


def test_a_good_model_is_the_only_attempt(database: Path, tmp_path: Path) -> None:
    mappers = Mappers(("incremental", False))
    assert map_with_fallbacks(database, tmp_path, MAPPER_OPTIONS, mappers) == ([], False)
    assert len(mappers.tried) == 1 and not (tmp_path / TRIALS).exists()


def test_the_global_mapper_falls_back_to_the_incremental_one(database: Path, tmp_path: Path) -> None:
    (note,), _ = map_with_fallbacks(
        database, tmp_path, dataclasses.replace(MAPPER_OPTIONS, name="global"), Mappers(("incremental", False))
    )
    assert note.startswith("the global mapper found no model: the incremental mapper gave one of 6 photos")


def test_without_help_the_first_models_stay(database: Path, tmp_path: Path) -> None:
    mappers = Mappers(num_photos=3)
    assert map_with_fallbacks(database, tmp_path, MAPPER_OPTIONS, mappers) == ([], False)
    assert [path.name for path in model_folders(tmp_path)] == ["0"] and len(mappers.tried) == 3


def test_ctrl_c_ends_the_attempts(database: Path, tmp_path: Path) -> None:
    def run(database: Path, output: Path, options: ReconstructionOptions, *, any_start: bool) -> bool:
        return any_start

    assert try_other_ways(database, tmp_path, MAPPER_OPTIONS, run) == ([], True)
    assert [*tmp_path.iterdir()] == []


def test_a_strongly_distorted_lens_gives_a_model_of_all_photos(tmp_path: Path) -> None:
    """The incremental mapper makes models of two photos alone, which are discarded."""
    lens = camera("OPENCV", 1400, 1404, 812, 590, -0.22, 0.09, 0.001, -0.0015)
    room = make_room(tmp_path / "room", [lens], 8, 400, seed=6)
    room.build(camera_model="SIMPLE_RADIAL")  # else its lens is found
    report, model = room.reconstruct(find_camera_model=False)
    assert model.num_reg_images() == 8 and room.errors(model).max() < 0.1, report
    assert report.cameras[0].startswith("the incremental mapper found no model: ")


def test_clusters_of_a_drive_straight_ahead_have_a_first_pair(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scene = Drive(12, 0.25)
    pairs = [(index, index + step) for step in (1, 2, 4) for index in range(len(scene.names) - step)]
    database = make_database(tmp_path, scene, range(len(scene.names)), pairs, noise_px=0.2)
    options = dataclasses.replace(MAPPER_OPTIONS, name="clusters", min_model_size=3, max_cluster_size=6, cluster_overlap=3)
    with caplog.at_level(logging.INFO):
        report = reconstruct(database, tmp_path / "images", tmp_path / "models", options)
    assert "are mapped in 2 clusters" in caplog.text
    assert report.cameras[0].startswith("cluster 0: the incremental mapper found no model: ")
    assert report.models[0].num_images == 12
