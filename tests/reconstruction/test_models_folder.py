"""Files of others beside and inside models, damaged models, and what replaces what."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pycolmap
import pytest
from known_scene import MAPPER_OPTIONS as OPTIONS
from known_scene import KnownScene, make_database

from sfm_lightglue.model_files import BINARY_FILES, TEXT_FILES, find_damage, read_model
from sfm_lightglue.reconstruction import MAPPERS, ReconstructionReport, reconstruct

NUM_IMAGES = 4


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    scene = KnownScene(NUM_IMAGES, 60)
    pairs = itertools.combinations(range(NUM_IMAGES), 2)
    return make_database(tmp_path_factory.mktemp("scene"), scene, range(NUM_IMAGES), pairs, noise_px=0.5)


@pytest.fixture(scope="module")
def finished(database: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models of the scene, made once."""
    output = tmp_path_factory.mktemp("finished") / "reconstruction"
    run(database, output)
    return output


@pytest.fixture
def output(finished: Path, tmp_path: Path) -> Path:
    """A copy of the models."""
    return Path(shutil.copytree(finished, tmp_path / "out" / "reconstruction"))


@pytest.fixture
def mapped(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows with each call of the mapper."""
    calls, real = [], MAPPERS["incremental"]
    monkeypatch.setitem(MAPPERS, "incremental", lambda task: (calls.append(1), real(task)))
    return calls


def run(database: Path, output: Path, **changes: Any) -> ReconstructionReport:
    return reconstruct(database, database.parent / "images", output, dataclasses.replace(OPTIONS, **changes))


def contents(folder: Path) -> dict[str, bytes]:
    """Bytes of all files below a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# --- files of others ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "files",
    [
        {"notes.txt": "mine"},
        {"0/cameras.bin": "mine", "0/images.bin": "mine", "0/points3D.bin": "mine"},
        {"settings.json": '{"mine": 1}', "0/points.ply": "mine"},
        {"": "a file"},
    ],
)
def test_a_folder_of_others_is_refused_and_stays(
    database: Path, tmp_path: Path, files: dict[str, str], mapped: list[int]
) -> None:
    for name, text in files.items():
        path = tmp_path / "out" / name if name else tmp_path / "out"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=r"out was not written by sfm_lightglue.*output=DIR"):
        run(database, tmp_path / "out")
    assert contents(tmp_path) == before and not mapped


def add_fused(model: Path) -> None:
    (model / "dense").mkdir()
    (model / "dense" / "fused.ply").write_text("my dense points")


def edit_points(model: Path) -> None:
    (model / "points.ply").write_text("my cleaned points")


def link_folder(model: Path) -> None:
    (model / "dense").symlink_to(model.parent)


def add_empty_folder(model: Path) -> None:
    (model / "dense").mkdir()


@pytest.mark.parametrize("work", [add_fused, edit_points, link_folder, add_empty_folder])
def test_a_model_with_files_of_the_user_moves_aside_whole(
    database: Path, output: Path, caplog: pytest.LogCaptureFixture, work: Callable[[Path], None]
) -> None:
    work(output / "0")
    before = contents(output)
    assert run(database, output).models  # nothing changed: nothing moves
    assert contents(output) == before and [path.name for path in output.parent.iterdir()] == ["reconstruction"]
    run(database, output, max_error_px=0.8)
    assert sorted(path.name for path in output.parent.iterdir()) == ["reconstruction", "reconstruction.kept-1"]
    kept = output.with_name("reconstruction.kept-1")
    assert contents(kept) == before and (kept / "0" / "dense").is_symlink() == (work is link_folder)
    assert contents(output)["0/points3D.bin"] != before["0/points3D.bin"]
    assert "it is kept as reconstruction.kept-1" in caplog.text
    run(database, output, max_error_px=0.9)
    assert sorted(path.name for path in output.parent.iterdir()) == ["reconstruction", "reconstruction.kept-1"]


def test_an_equal_model_leaves_the_files_of_the_user_in_place(database: Path, output: Path) -> None:
    add_fused(output / "0")
    before = contents(output)
    run(database, output, min_model_size=3)
    after = contents(output)
    assert json.loads(after.pop("settings.json"))["options"]["min_model_size"] == 3
    del before["settings.json"]
    assert after == before and [path.name for path in output.parent.iterdir()] == ["reconstruction"]
    cut(output / "0" / "points3D.bin", 0.5)
    run(database, output, min_model_size=3)
    after = contents(output)
    del after["settings.json"]
    assert after == before


def test_models_of_version_0_10_are_replaced_and_files_beside_them_kept(database: Path, output: Path) -> None:
    state = json.loads((output / "settings.json").read_text())
    del state["files"]
    (output / "settings.json").write_text(json.dumps(state))
    run(database, output, max_error_px=0.8)
    assert [path.name for path in output.parent.iterdir()] == ["reconstruction"]
    shutil.rmtree(output)
    run(database, output)
    (output / "settings.json").write_text(json.dumps(state))
    add_fused(output / "0")
    run(database, output, max_error_px=0.8)
    assert (output.with_name("reconstruction.kept-1") / "0" / "dense" / "fused.ply").read_text() == "my dense points"


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_good_model_is_not_replaced_by_nothing(
    database: Path, output: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, interrupted: bool
) -> None:
    def find_less(task: Any) -> None:
        if interrupted:
            model = read_model(output / "0")
            model.deregister_frame(1)
            (task.output / "0").mkdir()
            model.write(task.output / "0")
            raise InterruptedError

    for mapper in ("incremental", "global"):  # the global one is tried if the other finds nothing
        monkeypatch.setitem(MAPPERS, mapper, find_less)
    before = contents(output)
    if interrupted:
        with pytest.raises(KeyboardInterrupt):
            run(database, output, seed=1)
    else:
        assert run(database, output, seed=1).largest is None
    assert contents(output) == before and [path.name for path in output.parent.iterdir()] == ["reconstruction"]
    assert "keeps its models of an earlier run (the largest has 4 images)" in caplog.text


def test_what_a_killed_run_left_is_removed_or_put_back_and_the_rest_stays(database: Path, output: Path) -> None:
    mine = output.with_name("reconstruction.12.tmp")
    mine.mkdir()
    (mine / "notes.txt").write_text("mine")
    partial = output.with_name("reconstruction.34.tmp")
    partial.mkdir()
    (partial / "settings.json").write_text('{"unfinished": true}')
    output.rename(output.with_name("reconstruction.56.tmp.old"))  # killed between two renames
    run(database, output, seed=1)
    assert sorted(path.name for path in output.parent.iterdir()) == ["reconstruction", "reconstruction.12.tmp"]
    assert (mine / "notes.txt").read_text() == "mine"


# --- damage ---------------------------------------------------------------------------------------------------------------


def cut(path: Path, share: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda output: cut(output / "settings.json", 0.5), "settings.json is damaged"),
        (lambda output: cut(output / "settings.json", 0), "settings.json is damaged"),
        (lambda output: cut(output / "0" / "points3D.bin", 0.5), r"0 is damaged (points3D.bin is cut)"),
        (lambda output: (output / "0" / "images.bin").unlink(), r"0 is damaged (images.bin is missing)"),
        (lambda output: (output / "0" / "points.ply").unlink(), r"0 is damaged (points.ply is missing)"),
        (lambda output: shutil.rmtree(output / "0"), "0 is damaged"),
        (lambda output: (output / "settings.json").unlink(), "it is kept as reconstruction.kept-1"),
    ],
)
def test_a_damaged_model_is_named_and_made_again(
    database: Path, output: Path, finished: Path, mapped: list[int], caplog: pytest.LogCaptureFixture, damage: Any, message: str
) -> None:
    damage(output)
    assert run(database, output).models[0].num_images == NUM_IMAGES
    assert message in caplog.text and mapped == [1]
    assert contents(output) == contents(finished)
    run(database, output)
    assert mapped == [1]


@pytest.mark.parametrize("name", [*TEXT_FILES, "points.ply"])
@pytest.mark.parametrize("share", [0, 0.5, 0.99])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_cut_copy_of_the_model_is_named_and_written_again_from_the_binary_files(
    database: Path, output: Path, mapped: list[int], caplog: pytest.LogCaptureFixture, name: str, share: float, seed: int
) -> None:
    before = contents(output)
    cut(output / "0" / name, share)
    if share == 0.5:  # a power cut may leave zeros
        with (output / "0" / name).open("ab") as file:
            file.write(bytes(100))
    run(database, output, seed=seed)
    assert f"{name} is cut: it is written again" in caplog.text
    assert [path.name for path in output.parent.iterdir()] == ["reconstruction"] and len(mapped) == seed
    if not seed:
        assert contents(output) == before


@pytest.mark.parametrize("name", ["cameras.txt", "points.ply"])
def test_an_edited_copy_of_the_model_stays(database: Path, output: Path, mapped: list[int], name: str) -> None:
    path = output / "0" / name
    for change in (lambda data: data + b"# mine\n", lambda data: data[:-9] + b"mine", lambda data: data.replace(b"#", b"//")):
        path.write_bytes(change(path.read_bytes()))
        before = contents(output)
        run(database, output)
        assert contents(output) == before and not mapped


@pytest.mark.parametrize("name", BINARY_FILES)
def test_every_cut_of_a_binary_file_is_found(finished: Path, tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(finished / "0", tmp_path / "0"))
    data = (folder / name).read_bytes()
    assert find_damage(folder) == ""
    for length in {0, 1, 7, 8, 9, 20, len(data) // 2, len(data) - 3, len(data) - 1}:
        (folder / name).write_bytes(data[:length])
        assert find_damage(folder) == f"{name} is cut"
    for content in (bytes(len(data)), data + b"more", b"\xff" * len(data)):
        (folder / name).write_bytes(content)
        assert find_damage(folder) == f"{name} is cut"
    with pytest.raises(ValueError, match=rf"0 is damaged \({name} is cut\): run the stage reconstruct again"):
        read_model(folder)


def test_models_of_all_kinds_are_whole(finished: Path, tmp_path: Path) -> None:
    rig = pycolmap.Reconstruction()
    for number, model in enumerate(pycolmap.CameraModelId.__members__, 1):
        if model != "INVALID":
            rig.add_camera(pycolmap.Camera.create_from_model_name(number, model, 1.0, 4, 4))
    with_pose, numbers = pycolmap.Rig(rig_id=1), sorted(rig.cameras)
    with_pose.add_ref_sensor(rig.cameras[numbers[0]].sensor_id)
    for number in numbers[1:]:
        pose = pycolmap.Rigid3d() if number % 2 else None
        with_pose.add_sensor(rig.cameras[number].sensor_id, pose)
    rig.add_rig(with_pose)
    rig.write(tmp_path)
    assert find_damage(tmp_path) == ""
    old = Path(shutil.copytree(finished / "0", tmp_path / "old"))
    for name in ("rigs.bin", "frames.bin"):
        (old / name).unlink()
    assert find_damage(old) == "" and read_model(old).num_reg_images() == NUM_IMAGES
    for path in old.glob("*.bin"):
        path.unlink()
    assert read_model(old).num_reg_images() == NUM_IMAGES
