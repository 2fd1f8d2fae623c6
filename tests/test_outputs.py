"""A folder with files of other people under every name that a run writes stays byte-identical."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pycolmap
import pytest
from PIL import Image as PILImage

from sfm_lightglue import pipeline
from sfm_lightglue.config import compose_config
from sfm_lightglue.orient.decisions import Decision, write_decisions
from sfm_lightglue.outputs import check_outputs
from sfm_lightglue.pair_files import write_pairs, write_reasons
from sfm_lightglue.products import Pair
from sfm_lightglue.run_context import Run, check_inputs
from sfm_lightglue.run_folder import RunFolder
from sfm_lightglue.stages import stage_names

DEMO = Path(__file__).resolve().parents[1] / "datasets" / "demo"
FAST = (
    *("features=sift", "features.max_keypoints=512", "features.resize_max=480"),
    *("matches=nearest_neighbor", "matches.max_ratio=0.85"),
)
NAMES = {
    "features.h5": "extract",
    "features.h5.shards/0.h5": "extract",
    "pairs.txt": "pairs",
    "pairs.tsv": "pairs",
    "matches.h5": "match",
    "matches.h5.shards/notes.tmp": "match",
    "verification.h5": "verify",
    "keypoints.h5": "refine",
    "orientations.tsv": "orient",
    "escalation.tsv": "escalate",
    "database.db": "database",
    "reconstruction/0/images.bin": "reconstruct",
    "plots/matches_0.jpg": "plots",
    "plots/reconstruction.png": "plots",
    "evaluation.json": "evaluate",
}
"""A name that a run writes, or looks into -> the first stage that does."""
ALWAYS = ("summary.json", "photos.tsv", "logs")
"""Names that every stage writes."""


def write_foreign(path: Path) -> None:
    """Writes a file of its kind as other people would."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".h5":
        with h5py.File(path, "w") as file:
            file["a.jpg/keypoints"] = np.zeros((3, 2), np.float32)
    elif path.suffix == ".db":
        with pycolmap.Database.open(path) as database:
            database.write_camera(pycolmap.Camera(model="SIMPLE_PINHOLE", width=2, height=2, params=[1, 1, 1]))
    elif path.suffix in (".jpg", ".png"):
        PILImage.new("RGB", (8, 8), (1, 2, 3)).save(path)
    else:
        path.write_text({".json": '{"images": [], "annotations": []}', ".txt": "a.jpg b.jpg\n"}.get(path.suffix, "mine"))


def contents(folder: Path) -> dict[str, bytes]:
    """Bytes of all files below a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def create_run(images: Path, output: Path) -> Run:
    poses = f"dataset.poses={DEMO / 'poses.txt'}"
    return Run.create(compose_config(["dataset=folder", f"dataset.images={images}", poses, f"output={output}", *FAST]))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for photo in sorted((DEMO / "images").glob("*.jpg"))[:3]:
        shutil.copy2(photo, folder)
    return folder


@pytest.fixture(scope="module")
def finished(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a run over three photos."""
    output = tmp_path_factory.mktemp("finished") / "out"
    run = create_run(photos, output)
    pipeline.run_all(run)
    pipeline.evaluate(run)
    return output


@pytest.fixture
def output(finished: Path, tmp_path: Path) -> Path:
    """A copy of that folder."""
    return Path(shutil.copytree(finished, tmp_path / "out"))


def do(run: Run, stage: str) -> None:
    """Does a stage, `evaluate`, or all of `run`, after the checks."""
    check_inputs(run, stage)
    commands: dict[str, Callable[[], object]] = {"run": lambda: pipeline.run_all(run), "evaluate": lambda: pipeline.evaluate(run)}
    commands.get(stage, lambda: pipeline.run_stage(run, stage))()


@pytest.mark.parametrize("stage", ["run", *stage_names(), "evaluate"])
def test_a_folder_of_others_stays_as_it_is(photos: Path, tmp_path: Path, stage: str) -> None:
    for name in (*NAMES, *ALWAYS):
        write_foreign(tmp_path / name)
    before = contents(tmp_path)
    with pytest.raises(ValueError) as error:
        do(create_run(photos, tmp_path), stage)
    assert contents(tmp_path) == before
    lines = str(error.value).splitlines()
    named = [line.split(" was not written")[0].strip(" -") for line in lines if " was not written" in line]
    stages = {*stage_names()} if stage == "run" else {stage}
    first = {NAMES[name]: name.split("/0")[0] for name in reversed(NAMES)}  # one line for each stage
    first |= {"pairs": "pairs.tsv", "expand": "pairs.tsv", "reconstruct": "reconstruction", "plots": "plots/matches_0.jpg"}
    assert {*named} >= {str(tmp_path / name) for name in (*ALWAYS, *(first[stage] for stage in stages))}


@pytest.mark.parametrize("name", [*NAMES, *ALWAYS])
def test_a_foreign_file_among_ours_is_named_and_stays(photos: Path, output: Path, name: str) -> None:
    path = output / name
    stage = NAMES.get(name, "plots")
    for ours in (output / name.split("/")[0], path):
        if ours.exists() and not (ours.is_dir() and name.startswith("plots/")):
            shutil.rmtree(ours) if ours.is_dir() else ours.unlink()
    write_foreign(path)
    before = contents(output)
    for command in (stage, *(["run"] if stage != "evaluate" else [])):
        with pytest.raises(ValueError, match=r"was changed since"):
            do(create_run(photos, output), command)
    assert contents(output) == before


def test_the_folder_of_a_run_passes_all_checks_and_runs_again(photos: Path, output: Path) -> None:
    check_outputs(RunFolder(output), [*stage_names(), "evaluate"])
    before = contents(output / "reconstruction")
    (output / "notes.txt").write_text("mine")
    (output / "plots" / "matches_9.jpg").write_text("mine")
    pipeline.run_all(create_run(photos, output))
    assert contents(output / "reconstruction") == before
    assert (output / "notes.txt").read_text() == (output / "plots" / "matches_9.jpg").read_text() == "mine"


def test_a_changed_list_of_pairs_is_not_replaced(photos: Path, output: Path) -> None:
    pairs = output / "pairs.txt"
    pairs.write_text("\n".join(pairs.read_text().split("\n")[:-1]))
    before = contents(output)
    for stage in ("pairs", "run"):
        with pytest.raises(ValueError, match=r"pairs\.txt was changed since a run wrote it.*pairs=list pairs\.path=FILE"):
            do(create_run(photos, output), stage)
    assert contents(output) == before
    do(create_run(photos, output), "match")
    pairs.unlink()
    do(create_run(photos, output), "pairs")
    check_outputs(RunFolder(output), ["pairs"])


def test_a_stage_alone_is_not_ended_by_a_damaged_file_of_another(
    photos: Path, output: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = output / "verification.h5"
    path.write_bytes(path.read_bytes()[:100])
    do(create_run(photos, output), "extract")
    assert "photos.tsv and pairs.tsv are not up to date: " in caplog.text and "verification.h5" in caplog.text


def test_lists_of_pairs_with_spaces_or_without_pairs_are_ours(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for pairs in ([], [Pair("a b.jpg", "c.jpg", "list"), Pair("a.jpg", "ü.jpg", "gps", 0.5)]):
        write_reasons(folder.pair_reasons, pairs)
        write_pairs(folder.pairs, pairs)
        check_outputs(folder, ["pairs"])


@pytest.mark.parametrize(
    ("name", "share"),
    [("summary.json", 0), ("summary.json", 0.5), ("evaluation.json", 0.5), ("reconstruction/settings.json", 0.5)],
)
def test_a_cut_file_is_named_and_written_again(
    photos: Path, output: Path, caplog: pytest.LogCaptureFixture, name: str, share: float
) -> None:
    data = (output / name).read_bytes()
    (output / name).write_bytes(data[: int(share * len(data))])
    run = create_run(photos, output)
    pipeline.run_all(run)
    pipeline.evaluate(run)
    if name != "evaluation.json":
        assert f"{Path(name).name} is damaged" in caplog.text
    assert json.loads((output / name).read_text()).keys() == json.loads(data).keys()


@pytest.mark.parametrize(
    ("name", "share"),
    [
        *((f"{name}.h5", share) for name in ("features", "matches", "verification") for share in (0, 0.5, 0.99)),
        *(("orientations.tsv", share) for share in (0, 0.2, 0.9)),
    ],
)
def test_a_cut_file_is_damaged_and_not_called_foreign(photos: Path, output: Path, name: str, share: float) -> None:
    path = output / name
    if name == "orientations.tsv":
        write_decisions(path, [Decision("a.jpg", 6, True, "clear", 30, 3, "abc")])
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    before = contents(output)
    for command in (NAMES[name], "run"):
        with pytest.raises(ValueError) as error:  # before any work
            check_inputs(create_run(photos, output), command)
        lines = [line for line in str(error.value).splitlines() if name in line]
        assert len(lines) == 1 and "delete it" in lines[0] and "not written by" not in str(error.value), lines
    assert contents(output) == before
    path.unlink()
    do(create_run(photos, output), "run")


def test_pictures_of_version_0_10_have_no_mark_and_are_ours(photos: Path, output: Path) -> None:
    for picture in (output / "plots").iterdir():
        with PILImage.open(picture) as image:
            image.copy().save(picture, comment=b"") if picture.suffix == ".jpg" else image.copy().save(picture)
    pipeline.run_all(create_run(photos, output))
    write_foreign(output / "plots" / "matches_0.jpg")  # now the others have a mark
    with pytest.raises(ValueError, match=r"matches_0\.jpg was not written"):
        do(create_run(photos, output), "plots")
