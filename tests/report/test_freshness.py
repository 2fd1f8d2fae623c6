"""A run that finds everything up to date does not draw again."""

from __future__ import annotations

from pathlib import Path

import pytest
from stub_run import make_run

from sfm_lightglue import presentation
from sfm_lightglue.files import write_json
from sfm_lightglue.report.freshness import state_of
from sfm_lightglue.report.gallery import check_pictures, drawn_pictures
from sfm_lightglue.report.page import build_report, is_up_to_date

NAMES = ["a.jpg", "b.jpg", "c.jpg"]


def test_the_page_is_made_again_only_if_something_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path, NAMES)
    assert not is_up_to_date(run)
    build_report(run)
    assert is_up_to_date(run)
    summary = run.read_summary()
    for record in summary["stages"].values():
        record["seconds"] = 7.0
    write_json(run.summary, summary)
    run.pairs.write_bytes(run.pairs.read_bytes())
    assert is_up_to_date(run)
    monkeypatch.setattr(presentation, "build_report", lambda *_: pytest.fail("made again"))
    presentation.write_report(run)

    run.pairs.write_text(run.pairs.read_text() + "a b\n")
    assert not is_up_to_date(run)


@pytest.mark.parametrize("changed", ["verification.h5", "reconstruction/0/points3D.bin", "summary.json", "report.html"])
def test_a_change_of_any_file_counts(tmp_path: Path, changed: str) -> None:
    run = make_run(tmp_path, NAMES)
    build_report(run)
    if changed == "summary.json":
        write_json(run.summary, run.read_summary() | {"dataset": {"images": "elsewhere"}})
    elif changed == "report.html":
        run.report.unlink()
    else:
        with (run.path / changed).open("ab") as file:
            file.write(b"0")
    assert not is_up_to_date(run)


def test_pictures_are_drawn_again_if_one_is_missing_or_the_run_has_changed(tmp_path: Path) -> None:
    run = make_run(tmp_path, NAMES)
    run.plots.mkdir(exist_ok=True)
    (run.plots / "matches_0.jpg").write_bytes(b"")
    summary, state = run.read_summary(), state_of(run)
    summary["stages"]["plots"] = {"seconds": 1.0, "files": ["plots/matches_0.jpg"], "drawn_from": state}
    write_json(run.summary, summary)
    assert state_of(run) == state and drawn_pictures(run, state) == ["plots/matches_0.jpg"]
    assert drawn_pictures(run, "another") is None
    (run.plots / "matches_0.jpg").unlink()
    assert drawn_pictures(run, state) is None


def test_an_empty_picture_of_a_killed_run_is_replaced_and_one_of_the_user_is_not(tmp_path: Path) -> None:
    run = make_run(tmp_path, NAMES)
    run.plots.mkdir(exist_ok=True)
    picture = run.plots / "reconstruction.png"
    picture.touch()
    check_pictures(run)
    picture.write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"reconstruction\.png was not written by sfm_lightglue"):
        check_pictures(run)
