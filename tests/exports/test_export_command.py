"""The command `export`: its list, its options, and its messages for mistakes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sfm_lightglue import cli
from sfm_lightglue.exports import FORMATS
from sfm_lightglue.model_files import read_model


def test_a_run_is_exported(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", "colmap-text", str(run), str(tmp_path / "new")]) == 0
    assert capsys.readouterr().out.splitlines()[0] == str(tmp_path / "new")
    (tmp_path / "new" / "export.json").unlink()
    before, after = read_model(run / "reconstruction" / "0"), read_model(tmp_path / "new")
    for image_id in before.images:
        expected = before.image(image_id).cam_from_world().matrix()
        assert after.image(image_id).cam_from_world().matrix() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("arguments", [[], ["list"]])
def test_the_list_names_all_formats(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", *arguments]) == 0
    printed = capsys.readouterr().out
    assert all(f"  {name} " in printed for name in FORMATS)


def test_the_list_loads_nothing_heavy() -> None:
    code = "import sys; from sfm_lightglue.cli import main; main(['export', 'list']); print(sorted(sys.modules))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    modules = printed.splitlines()[-1]
    assert not any(f"'{name}'" in modules for name in ("torch", "pycolmap", "numpy", "hydra", "h5py", "PIL"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["splat", "OUT", "DIR"], "there is no export format 'splat'. Did you mean 'splatting'?"),
        (["ply", "OUT"], "usage: export FORMAT OUT DIR"),
        (["ply", "OUT", "DIR", "more"], "usage: export FORMAT OUT DIR"),
        (["splatting", "OUT", "DIR", "factors=2"], "export splatting has no option 'factors'. Did you mean 'factor'?"),
        (["ply", "OUT", "DIR", "factor=2"], "export ply has no option 'factor'. There are: model"),
        (["splatting", "OUT", "DIR", "factor=3"], "factor=3: expected 2, 4 or 8"),
        (["splatting", "OUT", "DIR", "model=all"], "model=all is not a whole number"),
        (["splatting", "OUT", "DIR", "alpha=yes"], "alpha=yes: expected true or false"),
        (["ply", "gone", "DIR"], "the output folder gone does not exist"),
    ],
)
def test_mistakes_are_explained(
    run: Path, tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"OUT": str(run), "DIR": str(tmp_path / "new")}
    assert cli.main(["export", *(places.get(argument, argument) for argument in arguments)]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_run_without_a_model_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    assert cli.main(["export", "ply", str(tmp_path / "out"), str(tmp_path / "new")]) == 1
    assert "has no model to export" in capsys.readouterr().err


def test_paths_with_an_equals_sign_are_paths(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "a=b"
    run.rename(folder)
    assert cli.main(["export", "ply", str(folder), str(tmp_path / "new=1")]) == 0
    assert (tmp_path / "new=1" / "points.ply").is_file()


def test_the_run_may_be_given_as_the_command_run_takes_it(run: Path, tmp_path: Path) -> None:
    assert cli.main(["export", "ply", f"output={run}", str(tmp_path / "new")]) == 0
    assert (tmp_path / "new" / "points.ply").is_file()
