"""The examples run unchanged, each in its own folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
EXAMPLES = sorted((REPOSITORY / "examples").glob("[0-9]*.py"))
PHOTOS = REPOSITORY / "datasets" / "demo" / "images"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four neighbouring photos of the demo scene."""
    folder = tmp_path_factory.mktemp("photos")
    for photo in sorted(PHOTOS.glob("*.jpg"))[:4]:
        (folder / photo.name).write_bytes(photo.read_bytes())
    return folder


def run_example(name: str, folder: Path, *arguments: str | Path) -> str:
    path = os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, str(REPOSITORY / "examples" / name), *map(str, arguments)]
    result = subprocess.run(command, cwd=folder, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_two_photos(tmp_path: Path) -> None:
    output = run_example("00_two_photos.py", tmp_path)
    assert "1024 and 1024 keypoints" in output
    assert len(output.splitlines()) == 7


def test_a_folder_and_what_its_run_left(tmp_path: Path, photos: Path) -> None:
    quick = ("features.resize_max=640", "features.enlarge_max=1", "features.max_keypoints=512")
    output = run_example("01_folder.py", tmp_path, photos, "out", *quick)
    assert "4 of 4 images" in output and "in the frame of the model" in output
    output = run_example("04_read_a_run.py", tmp_path, "out")
    assert "6 of 6 pairs are verified" in output and "licences of the weights: Apache-2.0" in output


def test_own_extractor(tmp_path: Path, photos: Path) -> None:
    output = run_example("02_own_extractor.py", tmp_path, photos, "out")
    assert output.startswith("4 photos") and "3 pairs" in output
    assert (tmp_path / "out" / "keypoints.jpg").is_file()


def test_hloc_both_ways(tmp_path: Path, photos: Path) -> None:
    output = run_example("03_hloc.py", tmp_path, photos, "out")
    assert "'keypoints': (512, 2)" in output and "4 of 4 images" in output


def test_a_plot_of_matches(tmp_path: Path) -> None:
    output = run_example("05_plots.py", tmp_path)
    assert output.count("with a score of") > 100
    assert (tmp_path / "matches.png").stat().st_size > 100_000


def test_each_example_is_tested() -> None:
    text = Path(__file__).read_text()
    assert EXAMPLES and all(f'"{example.name}"' in text for example in EXAMPLES)
