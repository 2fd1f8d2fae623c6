"""What can be wrong with a run: told before any work, together, and without leaving a folder behind."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image as PILImage
from safetensors.numpy import save_file

from sfm_lightglue import api, checks, cli, viewer
from sfm_lightglue.config import compose_config
from sfm_lightglue.features import stage
from sfm_lightglue.mistakes import raise_together
from sfm_lightglue.products import Image
from sfm_lightglue.run_folder import RunFolder
from sfm_lightglue.run_options import resolve
from sfm_lightglue.stages import stage_names
from sfm_lightglue.storage import SettingsChanged

SIFT = ("features=sift", "matches=nearest_neighbor")
POSE = "1 0 0 0 0 0 0 100 100 32 24"


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A working folder with three photos of 64 x 48 px in `photos`; what Hydra changes is put back."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    monkeypatch.setattr(sys, "argv", ["sfm-lightglue"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for i in range(3):
        noise = np.random.default_rng(i).integers(0, 256, (48, 64, 3), np.uint8)
        PILImage.fromarray(noise).save(tmp_path / "photos" / f"{i}.jpg")
    yield tmp_path
    for handler in set(root.handlers) - set(handlers):
        handler.close()
    root.handlers[:], root.level = handlers, level


def write_files(folder: Path) -> None:
    """Files with one mistake each."""
    (folder / "short.txt").write_text("0.jpg 1 0 0 0 0 0 0\n")
    (folder / "others.txt").write_text(f"a.jpg {POSE} 64 48\n")
    (folder / "part.txt").write_text(f"0.jpg {POSE} 64 48\n")
    (folder / "large.txt").write_text("".join(f"{i}.jpg {POSE} 640 480\n" for i in range(3)))
    (folder / "intrinsics.txt").write_text("0.jpg PINHOLE 64 48 100 100 32 24\n1.jpg PINHOLE 64 48 100 100 32 24\n")
    (folder / "unknown.txt").write_text("0.jpg 9.jpg\n")
    (folder / "one.txt").write_text("0.jpg\n")
    (folder / "text.h5").write_text("no HDF5")
    with h5py.File(folder / "flat.h5", "w") as file:
        file["keypoints"] = np.zeros((0, 2), np.float32)
    with h5py.File(folder / "others.h5", "w") as file:
        file["a.jpg/keypoints"] = np.zeros((0, 2), np.float32)
        file["a.jpg/b.jpg/matches0"] = np.zeros(0, np.int16)
    with h5py.File(folder / "part.h5", "w") as file:
        file["0.jpg/global_descriptor"] = np.ones(8, np.float32)
    save_file({"weight": np.zeros(1, np.float32)}, folder / "wrong.safetensors")
    (folder / "file").touch()


TRIANGULATION = ("reconstruction=triangulation", "database.intrinsics=single")
MISTAKES = [
    (["dataset.poses=none.txt"], "pose file none.txt does not exist"),
    (["dataset.poses=short.txt"], r"short\.txt:1"),
    (["dataset.poses=others.txt"], "none is a photo of the 3"),
    ([*TRIANGULATION], "reconstruction=triangulation needs the poses of the photos"),
    ([*TRIANGULATION, "dataset.poses=others.txt"], "none is a photo of the 3"),
    (["database.intrinsics=poses"], "database.intrinsics=poses takes the intrinsics from a file of poses"),
    (["database.intrinsics=poses", "dataset.poses=part.txt"], "2 of 3 images have no intrinsics, the first is '1.jpg'"),
    (["database.intrinsics=poses", "dataset.poses=large.txt"], r"for 640 x 480 px, but the photo has 64 x 48 px"),
    (["database.intrinsics=intrinsics.txt"], "1 of 3 images have no intrinsics, the first is '2.jpg'"),
    (["database.intrinsics=PINHOLE,1,2"], "camera model PINHOLE takes the parameters"),
    (["database.camera_model=PINHOL"], "Did you mean 'PINHOLE'"),
    (["pairs=list", "pairs.path=none.txt"], "list of pairs none.txt does not exist"),
    (["pairs=list", "pairs.path=unknown.txt"], "9.jpg"),
    (["pairs=list", "pairs.path=one.txt"], "one.txt"),
    (["pairs=retrieval", "pairs.global_descriptors=none.h5"], "none.h5 does not exist"),
    (["pairs=retrieval", "pairs.global_descriptors=part.h5"], "no global_descriptor of 2 of 3 photos"),
    (["pairs=retrieval", "pairs.num_neighbours=0"], "pairs.num_neighbours must be at least 1, found 0"),
    (["features=superpoint", "features.weights=none.pth"], "none.pth"),
    (["features=superpoint", "features.weights=wrong.safetensors"], "wrong.safetensors|no SuperPoint|weights"),
    (["features=superpoint", "matches=lightglue", "matches.weights=wrong.safetensors"], "wrong.safetensors|LightGlue"),
    (
        ["features=superpoint", "matches=lightglue", "matches.trained_for=xfeat"],
        "128-d descriptors, LightGlue for 'xfeat'",
    ),
    (["matches=superglue"], "noncommercial research only"),
    (["features=sift", "features.max_keypoints=abc"], "'features.max_keypoints': Value 'abc'"),
    (["features=imported", "matches=nearest_neighbor"], "the option 'features.path' must be given"),
    (["features=imported", "features.path=none.h5"], "features.path=none.h5 does not exist"),
    (["features=imported", "features.path=text.h5"], "text.h5 is not a readable HDF5 file"),
    (["features=imported", "features.path=others.h5"], "of none of the 3 photos"),
    (["features=imported", "features.path=flat.h5"], "features.path=flat.h5 has no groups with datasets"),
    (["matches=imported", "matches.path=flat.h5"], "matches.path=flat.h5 has no groups with datasets"),
    (["matches=imported", "matches.path=none.h5"], "matches.path=none.h5 does not exist"),
    (["matches=imported", "matches.path=others.h5"], "matches of other photos, such as 'a.jpg'"),
    (["geometries.max_error_px=0"], "geometries.max_error_px must be more than 0, found 0"),
    (["reconstruction.max_error_px=-1"], "reconstruction.max_error_px must be more than 0"),
    (["execution.device=cuda:77"], "execution.device='cuda:77' cannot be used"),
    (["execution.cache_mb=-1"], "execution.cache_mb must be at least 0"),
    (["dataset.masks=none"], "masks none does not exist"),
    (["dataset.positions=none.txt"], "none.txt"),
    (["dataset.list=none.txt"], "none.txt"),
    (["strict=maybe"], "strict=maybe is neither true nor false"),
    (["output="], "output= is empty: give a folder"),
    (["output=null"], "output= is empty: give a folder"),
    (["output=outputs/None"], "no output folder was given"),
    (["output=file"], "output=file cannot be a folder: .*file is a file"),
    (["output=file/out"], "output=file/out cannot be a folder: .*file is a file"),
    (["output=photos"], "output=photos is the folder of the photos"),
]


@pytest.mark.parametrize(
    ("overrides", "expected"), MISTAKES, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_a_mistake_is_found_before_any_work(
    folder: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], expected: str
) -> None:
    write_files(folder)
    before = sorted(folder.rglob("*"))
    output = [] if any(override.startswith("output") for override in overrides) else ["output=out"]
    assert cli.main(["run", "dataset=folder", "dataset.images=photos", *output, *SIFT, *overrides]) == 1
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.count("\n") == 1, message
    with pytest.raises(ValueError, match=expected):
        raise ValueError(message)
    assert sorted(folder.rglob("*")) == before


def test_all_mistakes_are_told_together(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["geometries.max_error_px=0", "geometries.confidence=2", "dataset.poses=none.txt", "dataset.masks=none", "extra=1"]
    assert cli.main(["run", "photos", "out", *SIFT, *given[:-1], f"+{given[-1]}", "execution.device=cuda:77"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "error: 6 mistakes, found before any work:"
    assert [
        any(word in line for line in lines[1:])
        for word in ("max_error_px", "confidence", "none.txt", "masks", "extra", "cuda:77")
    ]
    assert all(line.startswith("- ") for line in lines[1:]) and len(lines) == 7
    assert {path.name for path in folder.iterdir()} == {"photos"}


def test_a_file_that_is_no_file_of_ours_is_one_mistake(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "out").mkdir()
    (folder / "out" / "features.h5").write_text("no HDF5")
    assert cli.main(["run", "photos", "out", *SIFT]) == 1
    message = capsys.readouterr().err
    assert message.startswith("error: out/features.h5 was not written by sfm_lightglue") and message.count("\n") == 1


def test_a_mistake_in_one_job_stops_a_sweep_before_the_first(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "photos", "out", *SIFT, "geometries.max_error_px=1,0", "-m"]) == 1
    assert capsys.readouterr().err == "error: geometries.max_error_px must be more than 0, found 0.0\n"
    assert {path.name for path in folder.iterdir()} == {"photos"}


def test_python_gets_the_same_message(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"2 mistakes, found before any work:\n- geometries.*\n- .*none\.txt"):
        api.run("photos", "out", *SIFT, "geometries.max_error_px=0", "dataset.poses=none.txt")
    assert not (folder / "out").exists()


def test_names_that_would_share_a_key_are_found(folder: Path) -> None:
    (folder / "photos" / "a").mkdir()
    for name in ("a/b.jpg", "a-b.jpg"):
        shutil.copy(folder / "photos" / "0.jpg", folder / "photos" / name)
    with pytest.raises(ValueError, match="have the same key"):
        api.run("photos", "out", *SIFT)


def test_a_stage_alone_is_checked_for_what_it_needs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = ["pairs=list", "pairs.path=none.txt", "geometries.max_error_px=0"]
    assert cli.main(["extract", "photos", "out", *SIFT, *wrong[:2]]) == 0  # a list of pairs can be made later
    assert cli.main(["pairs", "photos", "out", *SIFT, *wrong[:2]]) == 1
    assert "list of pairs none.txt does not exist" in capsys.readouterr().err
    assert cli.main(["extract", "photos", "out2", *SIFT, "dataset.masks=none"]) == 1
    assert not (folder / "out2").exists()


def test_features_of_other_settings_are_found_before_they_are_needed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["extract", "photos", "out", *SIFT, "features.max_keypoints=100"]) == 0
    logs = len([*(folder / "out" / "logs").iterdir()])
    given = ["features.max_keypoints=200", "geometries.max_error_px=0"]
    assert cli.main(["run", "photos", "out", *SIFT, *given]) == 1
    message = capsys.readouterr().err
    assert "options.max_keypoints: 100 -> 200" in message and "geometries.max_error_px" in message
    assert len([*(folder / "out" / "logs").iterdir()]) == logs
    with pytest.raises(SettingsChanged, match="max_keypoints: 100 -> 200"):
        api.run("photos", "out", *SIFT, given[0])


def test_a_read_only_place_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(ValueError, match=r"output=out/a cannot be written: .* is read-only"):
        api.run("photos", "out/a", *SIFT)


def test_a_disk_that_is_much_too_small_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 2**20))  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"1\.0 MB free, and the features of 3 photos need about 3\.\d MB to"):
        api.run("photos", "out", *SIFT)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, 0))  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="has no free space: the disk is full, read-only or no real disk"):
        api.run("photos", "out", *SIFT)


def test_files_of_others_are_refused_before_any_work(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "out" / "reconstruction").mkdir(parents=True)
    for name in ("database.db", "reconstruction/notes.txt", "summary.json"):
        (folder / "out" / name).write_text("mine")
    h5py.File(folder / "out" / "features.h5", "w").close()
    before = sorted(folder.rglob("*"))
    assert cli.main(["run", "photos", "out", *SIFT]) == 1
    message = capsys.readouterr().err
    for name in ("database.db", "reconstruction", "features.h5"):
        assert f"out/{name} was not written by sfm_lightglue" in message
    assert "out/summary.json" in message
    assert sorted(folder.rglob("*")) == before


def test_photos_where_results_are_written_are_refused(folder: Path) -> None:
    shutil.copytree("photos", "out/reconstruction/images")
    with pytest.raises(ValueError, match="lie where a run writes its results"):
        api.run("out/reconstruction/images", "out", *SIFT)


def test_every_check_names_commands_that_exist() -> None:
    commands = {"run", "evaluate", *stage_names()}
    for check, names in checks.CHECKS:
        assert names and {*names} <= commands, check


@pytest.mark.slow
def test_a_thousand_photos_are_checked_in_seconds(folder: Path) -> None:
    for i in range(1000):
        os.link(folder / "photos" / "0.jpg", folder / "photos" / f"more{i}.jpg")
    (folder / "part.txt").write_text("".join(f"more{i}.jpg PINHOLE 64 48 100 100 32 24\n" for i in range(1000)))
    begin = time.process_time()
    with pytest.raises(ValueError, match="3 of 1003 images have no intrinsics"):
        api.run("photos", "out", *SIFT, "database.intrinsics=part.txt")
    assert time.process_time() - begin < 5  # measured 0.6


def test_heic_photos_without_their_decoder_are_told_before_any_work(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    find_spec = checks.find_spec
    monkeypatch.setattr(checks, "find_spec", lambda name: None if name == "pillow_heif" else find_spec(name))
    options = compose_config(["dataset=folder", f"dataset.images={folder / 'photos'}", "output=out", *SIFT])
    (folder / "photos" / "a.heic").touch()
    for _ in range(2):
        checks._check_heic(checks.Inputs(resolve(options), lambda: ["0.jpg", "1.jpg", "2.jpg", "a.heic"]))
    assert caplog.text.count("1 of 4 photos are HEIC") == 1 and "pip install pillow-heif" in caplog.text
    for name in "bc":
        (folder / "photos" / f"{name}.HEIC").touch()
    with pytest.raises(ValueError, match=r"3 of 6 photos are HEIC, such as a\.heic.*pip install pillow-heif"):
        api.run("photos", "out", *SIFT)


# --- the exit status ---------------------------------------------------------------------------------------------------------


def test_nothing_reconstructed_is_a_failure_with_its_reason(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "photos", "out", *SIFT]) == 1  # noise
    printed = capsys.readouterr()
    assert "nothing could be reconstructed" in printed.out
    last = printed.err.splitlines()[-1]
    assert last.startswith("error: nothing was reconstructed: none of 3 pairs has a two-view geometry (3 x ")
    assert "plots" not in last or any((folder / "out" / "plots").iterdir())
    assert last.endswith("All files are kept in out") and (folder / "out" / "database.db").is_file()
    assert cli.main(["reconstruct", "photos", "out", *SIFT]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == last
    summary = api.run("photos", "out", *SIFT)  # Python gets the summary
    assert f"error: {summary.failure}" == last


def test_a_lack_of_keypoints_is_the_reason_and_masks_are_blamed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    PILImage.new("L", (64, 48)).save(folder / "mask.png")
    assert cli.main(["run", "photos", "out", *SIFT, "dataset.masks=mask.png"]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert "3 of 3 photos have no keypoints, such as 0.jpg, 1.jpg, 2.jpg" in last
    assert "3 photos have a mask" in last and "plots" not in last
    assert cli.main(["run", "photos", "out", *SIFT, "dataset.masks=mask.png"]) == 1  # nothing is computed
    assert capsys.readouterr().err.splitlines()[-1] == last
    for i in range(3):
        PILImage.new("RGB", (64, 48)).save(folder / "photos" / f"{i}.jpg")
    assert cli.main(["run", "photos", "black", *SIFT]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert "3 of 3 photos have no keypoints" in last and "black, blank" in last and "mask" not in last


def test_results_in_segments_are_found_by_all_that_ask_for_them(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stage, "MERGE_PHOTOS", 0)
    for i in range(3):
        PILImage.new("RGB", (64, 48)).save(folder / "photos" / f"{i}.jpg")
    assert cli.main(["run", "photos", "out", *SIFT]) == 1
    assert not (folder / "out" / "features.h5").exists()
    assert "3 of 3 photos have no keypoints" in capsys.readouterr().err.splitlines()[-1]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 2**20))  # type: ignore[attr-defined]
    assert cli.main(["extract", "photos", "out", *SIFT]) == 0, "features that are there need no more room"
    assert viewer._orientations(RunFolder(folder / "out")) == {f"{i}.jpg": 1 for i in range(3)}
    imported = ["features=imported", "features.path=out/features.h5"]
    with pytest.raises(FileNotFoundError, match=r"features\.path=out/features\.h5 is a large result .* `export hloc OUT FOLDER`"):
        api.run("photos", "out2", *imported, "matches=nearest_neighbor")


def test_one_photo_is_told_to_be_too_few(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(2):
        (folder / "photos" / f"{i}.jpg").write_bytes(b"no photo")
    assert cli.main(["run", "photos", "out", *SIFT]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: nothing was reconstructed: 1 of 3 photos could be used, and two are needed")


def test_every_failed_job_of_a_sweep_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["pairs=sequential", "pairs.overlap=1", "pairs.quadratic_overlap=false", "features.max_keypoints=20,30", "-m"]
    assert cli.main(["run", "photos", "out", *SIFT, *given]) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: nothing was reconstructed")]
    assert [line.rpartition("=")[2] for line in sorted(lines)] == ["20", "30"]


def test_a_message_of_several_lines_stays_together() -> None:
    with pytest.raises(ValueError) as caught:
        raise_together([ValueError("a\nb"), KeyError("weights are missing:\n  searched here\n  and there"), ValueError("a")])
    assert str(caught.value).splitlines() == [
        "3 mistakes, found before any work:",
        "- a",
        "- b",
        "- weights are missing:",
        "    searched here",
        "    and there",
    ]
    raise_together([])


def test_a_picture_without_keypoints_has_what_the_lightglue_for_sift_needs() -> None:
    features = api.create_extractor("sift", device="cpu")(Image("black.png", np.zeros((64, 64, 3), np.uint8)))
    assert features.scales is not None and features.orientations is not None
    assert len(features) == len(features.scales) == len(features.orientations) == 0
