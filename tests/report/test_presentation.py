"""Pictures are drawn beside the mapping, once."""

from __future__ import annotations

from pathlib import Path

import pytest
from stub_run import make_run

from sfm_lightglue import presentation
from sfm_lightglue.config import compose_config
from sfm_lightglue.files import write_json
from sfm_lightglue.run_context import Run


def test_pictures_of_matches_are_drawn_beside_the_mapping_only_if_there_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, calls = make_run(tmp_path, ["a.jpg", "b.jpg", "c.jpg"]), list[Path]()

    summary = folder.read_summary()
    del summary["stages"]["plots"]
    write_json(folder.summary, summary)

    def draw(images: Path, run: object) -> list[str]:
        calls.append(images)
        return ["plots/matches_0.jpg"]

    monkeypatch.setattr(presentation, "draw_match_gallery", draw)
    monkeypatch.setattr(presentation, "draw_reconstruction", lambda *_: None)
    run = Run.create(compose_config([f"dataset.images={tmp_path}", f"output={folder.path}"]))
    with presentation.drawing_beside(run):
        pass
    assert calls == [tmp_path]
    presentation.draw_plots(run)
    assert calls == [tmp_path] and run.ahead == {}
    assert folder.read_summary()["stages"]["plots"]["files"][0] == "plots/matches_0.jpg"
    summary = folder.read_summary()
    del summary["stages"]["plots"]
    write_json(folder.summary, summary)
    overrides = [f"dataset.images={tmp_path}", f"output={folder.path}", "features=[sift,superpoint]", "matches.escalate=true"]
    with presentation.drawing_beside(Run.create(compose_config(overrides))):  # the stage may change the matches
        pass
    assert calls == [tmp_path]
    presentation.draw_plots(run)
    calls.clear()
    with presentation.drawing_beside(run):  # a repeated run first looks whether they are up to date
        pass
    assert calls == [] and run.ahead == {}
