"""Completion: what a line can become, and the scripts in the shells that are installed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sfm_lightglue import cli
from sfm_lightglue.commands.completion import SCRIPTS, completions
from sfm_lightglue.config_files import choices


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("sfm-lightglue ru", ["run"]),
        ("sfm-lightglue run p o fea", ["features=", "features."]),
        ("sfm-lightglue run p o features=", [f"features={name}" for name in choices("features")]),
        ("sfm-lightglue run p o features=disk,ali", ["features=disk,aliked"]),
        ("sfm-lightglue run p o pairs=[sequential,ret", ["pairs=[sequential,retrieval"]),
        ("sfm-lightglue run p o features.max_k", ["features.max_keypoints="]),
        ("sfm-lightglue run p o features.var", []),
        ("sfm-lightglue run p o features=aliked features.var", ["features.variant="]),
        ("sfm-lightglue run p o pairs=[sequential,retrieval] pairs.sequential.over", ["pairs.sequential.overlap="]),
        ("sfm-lightglue run p o features.subpixel=", ["features.subpixel=true", "features.subpixel=false"]),
        ("sfm-lightglue run p o features.max_keypoints=", ["features.max_keypoints=2048"]),
        ("sfm-lightglue run +dataset=de", ["+dataset=demo"]),
        ("sfm-lightglue run p o features.ori", ["features.orientation="]),
        ("sfm-lightglue run p o experiment=", ["experiment=fast", "experiment=quality"]),
        ("sfm-lightglue run p o --q", ["--quiet"]),
        ("sfm-lightglue run p o --cfg ", ["job"]),
        ("sfm-lightglue train training=superpoint training.loop.st", ["training.loop.steps="]),
        ("sfm-lightglue help features.max_k", ["features.max_keypoints="]),
        ("sfm-lightglue help matc", ["match", "match-pair", "matches=", "matches."]),
        ("sfm-lightglue weights fetch xf", ["xfeat", "xfeat-lighterglue"]),
        ("sfm-lightglue datasets fetch fou", ["fountain_p11"]),
        ("sfm-lightglue completion z", ["zsh"]),
        ("sfm-lightglue run ", []),
        ("sfm-lightglue run 'my ph", []),
        ("sfm-lightglue run p o dataset.masks=", []),
        ("sfm-lightglue no-command x", []),
    ],
)
def test_a_line_is_completed(line: str, expected: list[str]) -> None:
    assert completions(line) == expected


def test_after_photos_and_output_come_the_options() -> None:
    found = completions("sfm-lightglue run p o ")
    assert {"features=", "pairs=", "experiment=", "output="} <= set(found)


def test_the_script_asks_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    for shell, script in SCRIPTS.items():
        assert cli.main(["completion", shell]) == 0
        assert capsys.readouterr().out == script
    assert cli.main(["completion", "--line", "sfm-lightglue ext"]) == 0
    assert capsys.readouterr().out == "extract\n"
    assert cli.main(["completion", "tcsh"]) == 1
    assert "usage: completion bash | zsh | fish; found 'tcsh'" in capsys.readouterr().err


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a program `sfm-lightglue` that runs this package, first in PATH."""
    path = tmp_path / "sfm-lightglue"
    root = Path(__file__).resolve().parents[2]
    path.write_text(f'#!/bin/sh\nPYTHONPATH="{root}" exec "{sys.executable}" -m sfm_lightglue "$@"\n', encoding="utf-8")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return tmp_path


def run_shell(name: str, script: str) -> list[str]:
    """The lines that a script prints in a shell. The test is skipped if the shell is not installed."""
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    flags = {"bash": ["--norc"], "zsh": ["-f"], "fish": ["--no-config"]}[name]
    done = subprocess.run([name, *flags, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert not done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("sfm-lightglue run p o features=ali", ["aliked"]),
        ("sfm-lightglue run p o features.max_k", ["features.max_keypoints="]),
        ("sfm-lightglue mat", ["match", "match-pair"]),
        ("sfm-lightglue run p o dataset.masks=", []),
    ],
)
def test_bash_gets_what_follows_the_last_separator(program: Path, line: str, expected: list[str]) -> None:
    ask = f"COMP_LINE='{line}' COMP_POINT={len(line)}; _sfm_lightglue sfm-lightglue; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    printed = run_shell("bash", f'eval "$(sfm-lightglue completion bash)"; {ask}')
    assert [line for line in printed if line] == expected


def test_fish_completes_a_choice(program: Path) -> None:
    ask = "complete -C 'sfm-lightglue run p o features=ali'"
    assert run_shell("fish", f"sfm-lightglue completion fish | source; {ask}") == ["features=aliked"]


def test_zsh_reads_the_script(program: Path) -> None:
    assert run_shell(
        "zsh", 'autoload -U compinit; compinit -D; eval "$(sfm-lightglue completion zsh)"; whence -w _sfm_lightglue'
    ) == ["_sfm_lightglue: function"]
