"""The command `view` serves the models of a run, or says what is missing."""

from __future__ import annotations

import sys
import urllib.request
from pathlib import Path

import pytest

from sfm_lightglue import viewer
from sfm_lightglue.commands.view import main
from sfm_lightglue.run_folder import RunFolder

sys.path.insert(0, str(Path(__file__).parent / "report"))
from stub_run import make_run

NAMES = [f"{index}.jpg" for index in range(4)]


def test_without_viser_the_message_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(viewer, "find_spec", lambda name: None)
    make_run(tmp_path, NAMES)
    with pytest.raises(ValueError, match=r'pip install "sfm-lightglue\[view\]"'):
        main([str(tmp_path / "out")])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [([], "usage: view OUT"), (["a", "b"], "usage: view OUT"), (["a", "port=x"], "port=x is no port"), (["--help-me"], "usage")],
)
def test_wrong_arguments_are_explained(arguments: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        main(arguments)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no model: run the stage reconstruct first"):
        viewer.Viewer(RunFolder(tmp_path))
    with pytest.raises(FileNotFoundError, match="does not exist"):
        viewer.Viewer(RunFolder(tmp_path / "typo"))


def test_a_browser_can_load_the_viewer(tmp_path: Path) -> None:
    pytest.importorskip("viser", reason="the extra view is not installed")
    run = make_run(tmp_path, NAMES, models=[range(3), range(2, 4)])
    shown = viewer.Viewer(run, port=8390)
    try:
        with urllib.request.urlopen(shown.address, timeout=20) as answer:
            assert answer.status == 200 and b"<html" in answer.read()[:2000].lower()
        shown._show(run.models()[1])
        assert shown._about.content.startswith("2 cameras")
        assert shown._picture(NAMES[0]).shape == (240, 320, 3) and shown._picture("missing.jpg") is None
    finally:
        shown.stop()
