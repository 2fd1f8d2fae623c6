"""The mapper is chosen by the agreement of its model with all verified matches."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pycolmap
import pytest
from known_scene import MAPPER_OPTIONS, KnownScene, make_database

from sfm_lightglue.model_files import read_model
from sfm_lightglue.reconstruction import ReconstructionOptions, reconstruct
from sfm_lightglue.reconstruction import choosing as module
from sfm_lightglue.reconstruction.choosing import agreement, map_with_best_mapper

AUTO = dataclasses.replace(MAPPER_OPTIONS, name="auto")
PAIRS = [(first, second) for first in range(6) for second in range(first + 1, 6)]


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_database(tmp_path_factory.mktemp("scene"), KnownScene(6), range(6), PAIRS, noise_px=0.3)


@pytest.fixture(scope="module")
def model_folder(database: Path) -> Path:
    """A model of six photos, made with `reconstruction=auto`; `0` is in it, and `reason.txt`."""
    output = database.parent / "reconstruction"
    report = reconstruct(database, database.parent / "images", output, AUTO)
    (database.parent / "reason.txt").write_text("\n".join(report.cameras))
    assert report.models[0].num_images == 6 and [model.folder for model in report.models] == ["0"]
    return output


def test_both_mappers_are_compared_if_all_focal_lengths_are_known(database: Path, model_folder: Path) -> None:
    reason = (database.parent / "reason.txt").read_text()
    assert "with the global model (6 of 6 photos)" in reason and "with the incremental one (6)" in reason
    assert sorted(path.name for path in model_folder.iterdir()) == ["0", "settings.json"]


def test_a_wrong_pose_lowers_the_agreement(database: Path, model_folder: Path) -> None:
    model = read_model(model_folder / "0")
    right = agreement([model], database, [4.0])[0]
    assert 0.95 < right <= 1
    assert agreement([model], database, [0.4])[0] < right
    frame = model.frame(model.image(1).frame_id)
    turn = pycolmap.Rigid3d(pycolmap.Rotation3d(np.array([0, 0.1, 0])), np.zeros(3))
    frame.rig_from_world = turn * frame.rig_from_world
    assert agreement([model], database, [4.0])[0] < right - 0.2


def test_photos_that_are_not_registered_lower_the_agreement(database: Path, model_folder: Path) -> None:
    model = read_model(model_folder / "0")
    right = agreement([model], database, [4.0])[0]
    model.deregister_frame(model.image(1).frame_id)
    assert agreement([model], database, [4.0])[0] == pytest.approx(right * 10 / 15, rel=0.05)


@pytest.mark.parametrize("scores, expected", [((0.9, 0.8), "global"), ((0.9, 0.9), "incremental"), ((0.0, 0.0), "incremental")])
def test_the_incremental_model_stays_unless_the_global_one_agrees_better(
    database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scores: tuple[float, float], expected: str
) -> None:
    found = iter([(scores[0], 6), (scores[1], 6)])
    monkeypatch.setattr(module, "_score_of_largest", lambda *_: next(found))
    (tmp_path / "out").mkdir()

    def run(folder: Path, options: ReconstructionOptions) -> bool:
        (folder / "0").mkdir()
        (folder / "0" / options.name).touch()
        return False

    chosen, reason, interrupted = map_with_best_mapper(database, tmp_path / "out", AUTO, run)
    assert chosen.name == expected and reason.startswith(f"{expected} mapper: ") and not interrupted
    assert [path.name for path in (tmp_path / "out" / "0").iterdir()] == [expected]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_guessed_focal_lengths_leave_the_incremental_mapper(
    database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_num_guessed_cameras", lambda _: 2)
    used = []
    chosen, reason, _ = map_with_best_mapper(database, tmp_path, AUTO, lambda folder, options: bool(used.append(options.name)))
    assert used == [chosen.name] == ["incremental"] and reason == "incremental mapper: 2 focal lengths are guesses"


def test_ctrl_c_keeps_the_models_that_are_there(database: Path, tmp_path: Path) -> None:
    def run(folder: Path, options: ReconstructionOptions) -> bool:
        return True

    (tmp_path / "out").mkdir()
    chosen, _, interrupted = map_with_best_mapper(database, tmp_path / "out", AUTO, run)
    assert interrupted and chosen.name == "global"
