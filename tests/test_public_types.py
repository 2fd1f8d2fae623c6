"""What a type checker sees of the Python API."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

import sfm_lightglue

USER_SCRIPT = """
from pathlib import Path

import numpy as np

from sfm_lightglue import Extractor, ImageMatches, Pair, RunFolder, Summary, create_extractor, match_images, run, select_pairs


def count_matches(image0: Path, image1: Path, extractor: Extractor) -> int:
    result: ImageMatches = match_images(image0, image1, extractor=extractor, threshold=0.2)
    return len(result.scores)


def match_lists(paths: list[Path], arrays: list[np.ndarray], several: tuple[Path, ...]) -> list[ImageMatches]:
    mixed = match_images(["a.jpg", Path("b.jpg")], [arrays[0], "c.jpg"])
    return match_images(paths, arrays) + match_images(several, several) + mixed


pairs: list[Pair] = select_pairs(["a.jpg", "b.jpg"])
summary: Summary = run("photos", "out", "features=disk")
print(count_matches(Path("a.jpg"), Path("b.jpg"), create_extractor("disk")), summary.licences, pairs)
print(RunFolder("out").models())
"""


@pytest.mark.slow
def test_a_script_of_a_user_passes_the_strict_checker_and_mistakes_are_found(tmp_path: Path) -> None:
    (tmp_path / "good.py").write_text(USER_SCRIPT)
    (tmp_path / "wrong.py").write_text("import sfm_lightglue\nreveal_type(sfm_lightglue.run)\nsfm_lightglue.run('photos')\n")
    package = Path(sfm_lightglue.__file__).parents[1]
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--cache-dir", str(tmp_path / "cache")]
    environment = {**os.environ, "MYPYPATH": str(package)}
    result = subprocess.run([*command, "good.py", "wrong.py"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    lines = result.stdout.splitlines()
    assert not [line for line in lines if line.startswith("good.py")], result.stdout + result.stderr
    signature = "(images: pathlib.Path | str, output: pathlib.Path | str, *overrides: str) -> sfm_lightglue.summary.Summary"
    assert signature in lines[0].replace("pathlib._local.", "pathlib.")
    assert 'Missing positional argument "output"' in lines[1]


def test_the_checker_and_the_interpreter_see_the_same_names() -> None:
    tree = ast.parse(Path(sfm_lightglue.__file__).read_text())
    imported = {
        (node.module, alias.asname)
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert imported == {(f"sfm_lightglue.{module}", name) for module, names in sfm_lightglue._MODULES.items() for name in names}


def test_the_package_says_that_it_has_types() -> None:
    assert (Path(sfm_lightglue.__file__).parent / "py.typed").is_file()


@pytest.mark.parametrize("name", sfm_lightglue.__all__)
def test_every_public_name_is_documented_and_annotated(name: str) -> None:
    thing = getattr(sfm_lightglue, name)
    assert inspect.getdoc(thing), name
    if inspect.isfunction(thing):
        annotations = inspect.signature(thing)
        assert annotations.return_annotation is not inspect.Signature.empty
        assert all(parameter.annotation is not inspect.Parameter.empty for parameter in annotations.parameters.values())


def test_documented_names_of_the_api_exist_where_they_are_said_to_be() -> None:
    for module, names in sfm_lightglue._MODULES.items():
        for name in names:
            assert getattr(importlib.import_module(f"sfm_lightglue.{module}"), name) is getattr(sfm_lightglue, name)
