"""The examples in the docstrings of the Python API run and give what they say."""

from __future__ import annotations

import doctest
import inspect
import shutil
from pathlib import Path

import pytest
from PIL import Image as PILImage

import sfm_lightglue

DEMO = Path(__file__).resolve().parents[1] / "datasets" / "demo" / "images"
FLOW = ("list_images", "load_image", "select_pairs", "create_extractor", "create_matcher", "match_images", "extract_features")
FLOW += ("match_pairs", "join_features", "join_matches", "build_database", "reconstruct", "run", "read_georeference")
FLOW += ("plot_matches", "plot_keypoints", "plot_pairs", "plot_reconstruction")
"""Functions in the order in which their examples use each other's files."""

pytestmark = pytest.mark.slow


def test_the_example_of_each_function_runs(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for photo in sorted(DEMO.glob("*.jpg"))[:4]:
        shutil.copy2(photo, tmp_path / "photos")
    given = {**{name: getattr(sfm_lightglue, name) for name in sfm_lightglue.__all__}, "Path": Path}
    given |= {"photos": tmp_path / "photos", "out": tmp_path / "out"}
    runner = doctest.DocTestRunner(verbose=False)
    for name in FLOW:
        text = inspect.getdoc(getattr(sfm_lightglue, name)) or ""
        examples = doctest.DocTestParser().get_doctest(text, dict(given), name, None, None)
        assert examples.examples, f"{name} has no example"
        printed: list[str] = []
        runner.run(examples, out=printed.append)
        assert not runner.failures, "".join(printed)
        if name == "load_image":  # whose example tells the size; the others take a third of the time with small photos
            for path in (tmp_path / "photos").iterdir():
                PILImage.open(path).resize((320, 240)).save(path, quality=95)


def test_every_function_is_in_the_flow() -> None:
    functions = {name for name in sfm_lightglue.__all__ if inspect.isfunction(getattr(sfm_lightglue, name))}
    assert functions == set(FLOW)
