"""What `-q`, `-v` and `--json` print, and on which stream; nothing is left behind by a wrong path."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sfm_lightglue import cli, pipeline, presentation, run_context
from sfm_lightglue.commands.flags import Flags, split_flags
from sfm_lightglue.engine import kernels
from sfm_lightglue.files import write_json
from sfm_lightglue.run_context import Run
from sfm_lightglue.summary import Summary, recorded


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """An empty working folder with photos; the arguments and the logging that Hydra changes are put back."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    monkeypatch.setattr(sys, "argv", ["sfm-lightglue"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for handler in set(root.handlers) - set(handlers):
        handler.close()
    root.handlers[:], root.level = handlers, level


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage `extract` that logs messages of three levels, and a run of it alone."""

    def extract(run: Run) -> None:
        logger = logging.getLogger("sfm_lightglue.any")
        for level in (logging.DEBUG, logging.INFO, logging.WARNING):
            logger.log(level, "message %s", logging.getLevelName(level).lower())
        run.folder.path.mkdir(parents=True, exist_ok=True)
        with recorded(run.folder, "plots", {}):
            pass

    def run_all(run: Run) -> Summary:
        extract(run)
        return Summary.read(run.folder)

    monkeypatch.setattr(run_context, "check_inputs", lambda *_: None)
    monkeypatch.setattr(pipeline, "extract", extract)
    monkeypatch.setattr(pipeline, "run_all", run_all)
    monkeypatch.setattr(presentation, "write_tables", lambda *_: None)


def test_quiet_prints_warnings_only(folder: Path, stage: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "photos", "out", "-q"]) == 0
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "WARNING message warning\n")
    assert cli.main(["run", "photos", "out"]) == 0
    printed = capsys.readouterr()
    assert "time: plots" in printed.out
    assert "INFO message info\n" in printed.err and "debug" not in printed.err


def test_verbose_prints_all_messages_with_their_module(folder: Path, stage: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["extract", "photos", "out", "--verbose"]) == 0
    printed = capsys.readouterr().err
    assert re.search(r"^\d{4}-.* DEBUG sfm_lightglue.any message debug$", printed, re.MULTILINE)


def test_verbose_shows_the_traceback(folder: Path, stage: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(run: object) -> None:
        raise ValueError("wrong")

    monkeypatch.setattr(pipeline, "extract", fail)
    assert cli.main(["extract", "photos", "out"]) == 1
    with pytest.raises(ValueError, match="wrong"):
        cli.main(["extract", "photos", "out", "-v"])


@pytest.mark.parametrize("command", ["run", "extract"])
def test_json_is_one_object_on_stdout(folder: Path, stage: None, capsys: pytest.CaptureFixture[str], command: str) -> None:
    assert cli.main([command, "photos", "out", "--json"]) == 0
    printed = capsys.readouterr()
    content = json.loads(printed.out)
    assert content["output"] == str(folder / "out")
    assert {key: content[key] for key in content if key != "output"} == json.loads((folder / "out/summary.json").read_text())
    assert "message info" in printed.err


def test_a_sweep_prints_an_object_for_each_job(folder: Path, stage: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "photos", "out", "geometries.seed=1,2", "-m", "--json", "-q"]) == 0
    printed = capsys.readouterr()
    outputs = [Path(json.loads(line)["output"]).name for line in printed.out.splitlines()]
    assert outputs == ["geometries.seed=1", "geometries.seed=2"]
    assert set(printed.err.splitlines()) == {"WARNING message warning"}


def test_evaluate_prints_its_scores(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def evaluate(run: Run) -> str:
        write_json(run.folder.evaluation, {"auc": 0.5})
        return "a table"

    monkeypatch.setattr(run_context, "check_inputs", lambda *_: None)
    monkeypatch.setattr(pipeline, "evaluate", evaluate)
    assert cli.main(["evaluate", "photos", "out", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"output": str(folder / "out"), "auc": 0.5}
    assert cli.main(["evaluate", "photos", "out", "-q"]) == 0
    assert capsys.readouterr().out == "a table\n"
    logs = [path.read_text(encoding="utf-8") for path in (folder / "out" / "logs").rglob("sfm_lightglue.log")]
    assert logs and all("a table" in log for log in logs)


@pytest.mark.parametrize(("command", "key"), [("weights", "weights"), ("datasets", "datasets"), ("doctor", "packages")])
def test_lists_and_facts_are_json_on_request(capsys: pytest.CaptureFixture[str], command: str, key: str) -> None:
    assert cli.main([command, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content[key]
    if command == "weights":
        (found,) = [entry for entry in content["weights"] if entry["name"] == "superpoint-open"]
        assert found["licence"] == "Apache-2.0" and Path(found["path"]).is_file()


def test_flags_are_separated_from_other_arguments() -> None:
    assert split_flags(["-q", "a", "--json", "-m"]) == (Flags(quiet=True, json=True), ["a", "-m"])
    assert split_flags(["--json"], allowed=("quiet",)) == (Flags(), ["--json"])


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "nowhere", "out"],
        ["extract", "nowhere", "out", "-q"],
        ["train", "data.images=nowhere"],
        ["train", "data.images=empty", "output=out"],
        ["train", "data.images=photos", "training.loop.steps=0"],
        ["train", "data.images=photos", "training.start=no.safetensors"],
        ["match-pair", "no.jpg", "no.png", "output=out"],
        ["frames", "no.mp4", "out"],
        ["export", "ply", "nowhere", "out"],
    ],
)
def test_a_wrong_path_leaves_no_folder_behind(folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    for name in ("photos", "empty"):
        (folder / name).mkdir()
    (folder / "photos" / "0.jpg").write_bytes(b"")
    assert cli.main(arguments) == 1
    assert capsys.readouterr().out == ""
    assert {path.name for path in folder.iterdir()} == {"photos", "empty"}


@pytest.mark.parametrize(
    ("capability", "switch", "machine", "expected"),
    [
        ("AVX512", None, "x86_64", True),
        ("AVX2", None, "x86_64", True),
        ("DEFAULT", None, "x86_64", False),
        ("AVX512", "0", "x86_64", False),
        ("AVX512", None, "aarch64", False),
    ],
)
def test_kernels_help_where_they_would_run(
    monkeypatch: pytest.MonkeyPatch, capability: str, switch: str | None, machine: str, expected: bool
) -> None:
    monkeypatch.setattr(kernels.torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr(kernels, "load_kernels", lambda: None)
    monkeypatch.delenv("SFM_LIGHTGLUE_KERNELS", raising=False)
    if switch is not None:
        monkeypatch.setenv("SFM_LIGHTGLUE_KERNELS", switch)
    assert kernels.would_help() == expected


@pytest.mark.parametrize(("seconds", "matcher", "expected"), [(60.0, "lightglue", 1), (1.0, "lightglue", 0), (60.0, "other", 0)])
def test_a_slow_run_tells_of_the_kernels_once(
    folder: Path,
    stage: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    seconds: float,
    matcher: str,
    expected: int,
) -> None:
    def run_all(run: Run) -> Any:
        with recorded(run.folder, "match", {}):
            pass
        content = json.loads(run.folder.summary.read_text())
        content["stages"]["match"]["seconds"] = seconds
        write_json(run.folder.summary, content)
        return "done"

    monkeypatch.setattr(pipeline, "run_all", run_all)
    monkeypatch.setattr(kernels, "would_help", lambda: True)
    other = [] if matcher == "lightglue" else ["matches=nearest_neighbor"]
    assert cli.main(["run", "photos", "out", "execution.device=cpu", *other]) == 0
    assert capsys.readouterr().err.count("the command `kernels` compiles them") == expected
