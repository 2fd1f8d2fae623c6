"""The command `settings`: what differs from the defaults."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sfm_lightglue import cli
from sfm_lightglue.config import compose_config
from sfm_lightglue.run_options import resolve


def test_the_options_of_a_run_that_differ_are_printed_with_their_defaults(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = resolve(compose_config(["dataset=folder", "dataset.images=photos", "features=aliked", "features.nms_radius=3"]))
    content = {"stages": {}, "configuration": options.configuration}
    (tmp_path / "summary.json").write_text(json.dumps(content), encoding="utf-8")
    assert cli.main(["settings", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "features=aliked   (default superpoint)" in lines
    assert "features.nms_radius=3   (default 2)" in lines
    assert cli.main(["settings", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["features.nms_radius"] == {"value": 3, "default": 2}


def test_the_options_of_a_preset_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["settings", "experiment=fast"]) == 0
    assert "features.max_keypoints=1024   (default 2048)" in capsys.readouterr().out.splitlines()


def test_a_folder_without_a_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["settings", str(tmp_path)]) == 1
    assert "has no summary.json with a configuration: expected the output folder of a run" in capsys.readouterr().err
    assert cli.main(["settings"]) == 1
    assert capsys.readouterr().err.startswith("error: usage: settings OUT")
