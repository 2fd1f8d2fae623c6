"""The folder of an export: whole or not at all, and nothing of the user is replaced."""

from __future__ import annotations

from pathlib import Path

import pytest

from sfm_lightglue.exports import export, target
from sfm_lightglue.exports.source import ExportOptions, open_source
from sfm_lightglue.files import write_json


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_earlier_export_is_replaced(run: Path, tmp_path: Path) -> None:
    export("splatting", run, tmp_path / "new")
    export("ply", run, tmp_path / "new")
    assert sorted(content(tmp_path / "new")) == ["export.json", "points.ply"]
    assert [path.name for path in tmp_path.iterdir() if "tmp" in path.name] == []


def test_an_empty_folder_is_used_and_folders_above_are_made(run: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "x" / "y"):
        export("ply", run, folder)
        assert (folder / "points.ply").is_file()


@pytest.mark.parametrize("file", ["notes.txt", "sparse/0/points3D.ply", "images/a.jpg"])
def test_files_of_the_user_are_kept(run: Path, tmp_path: Path, file: str) -> None:
    export("splatting", run, tmp_path / "new")
    (tmp_path / "new" / file).write_text("mine")
    before = content(tmp_path / "new")
    with pytest.raises(ValueError, match=f"added or changed since \\({file}\\)"):
        export("splatting", run, tmp_path / "new")
    assert content(tmp_path / "new") == before


def test_a_folder_that_is_no_export_is_refused(run: Path, tmp_path: Path) -> None:
    before = content(tmp_path)
    with pytest.raises(ValueError, match="is not empty, and is no earlier export"):
        export("ply", run, run)
    with pytest.raises(ValueError, match="is a file"):
        export("ply", run, run / "summary.json")
    with pytest.raises(ValueError, match="in the folder of the photos"):
        export("ply", run, tmp_path / "photos" / "splat")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / target.MARK).write_text('{"mine": 1}')
    with pytest.raises(ValueError, match="is no earlier export"):
        export("ply", run, tmp_path / "other")
    (tmp_path / "other" / target.MARK).unlink()
    (tmp_path / "other").rmdir()
    assert {name: data for name, data in content(tmp_path).items() if name in before} == before
    assert not {*content(tmp_path)} - {*before}


def test_an_export_can_lie_in_the_folder_of_the_run(run: Path) -> None:
    export("ply", run, run / "ply")
    assert (run / "ply" / "points.ply").is_file()


def test_an_error_leaves_the_earlier_export_as_it_is(run: Path, tmp_path: Path) -> None:
    export("splatting", run, tmp_path / "new")
    before = content(tmp_path / "new")
    with pytest.raises(FileNotFoundError, match="photos=DIR"):
        export("splatting", run, tmp_path / "new", ExportOptions(photos=tmp_path / "gone"))
    assert content(tmp_path / "new") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "out", "photos"]


def test_what_killed_exports_left_is_removed_and_does_not_look_finished(run: Path, tmp_path: Path) -> None:
    stale = tmp_path / "new.999999.tmp"
    stale.mkdir()
    write_json(stale / target.MARK, {"format": "ply", "unfinished": True})
    (stale / "points.ply").write_text("half")
    export("ply", run, tmp_path / "new")
    assert not stale.exists()

    (tmp_path / "new").rename(tmp_path / "new.999999.tmp.old")  # killed between two renames
    with pytest.raises(FileNotFoundError, match="photos=DIR"):
        export("splatting", run, tmp_path / "new", ExportOptions(photos=tmp_path / "gone"))
    assert (tmp_path / "new" / "points.ply").is_file(), "put back"


def test_a_link_to_a_folder_stays_a_link(run: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    export("ply", run, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "disk" / "points.ply").is_file()


def test_a_run_can_be_exported_twice_at_once_but_not_to_one_folder(run: Path, tmp_path: Path) -> None:
    with target.new_export(tmp_path / "new", "ply", open_source(run, ExportOptions())):
        with pytest.raises(ValueError, match=r"another export to .*new is running"):
            export("ply", run, tmp_path / "new")
        export("ply", run, tmp_path / "other")
    assert (tmp_path / "new" / target.MARK).is_file()
