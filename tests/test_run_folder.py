"""Any output folder opens by its path alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import filelock
import pytest

from sfm_lightglue.pair_files import write_pairs
from sfm_lightglue.products import Pair
from sfm_lightglue.run_folder import RunFolder


def test_a_folder_without_a_run_says_what_is_missing(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.models() == [] and folder.largest_model() is None and folder.photos() is None
    assert folder.read_summary() == {"stages": {}}
    with pytest.raises(FileNotFoundError, match=r"pairs\.txt does not exist: run the stage pairs first"):
        folder.read_pairs()
    with pytest.raises(FileNotFoundError, match=r"features\.h5 does not exist"), folder.open_features():
        pass


def test_a_path_may_be_a_string(tmp_path: Path) -> None:
    assert RunFolder(str(tmp_path)).features == tmp_path / "features.h5"
    assert RunFolder(str(tmp_path)) == RunFolder(path=tmp_path)


@pytest.mark.parametrize("content", ["[]", "{}", '{"stages": []}', "my notes"])
def test_a_foreign_summary_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "summary.json").write_text(content)
    with pytest.raises(ValueError, match=r"summary\.json was not written by sfm_lightglue"):
        RunFolder(tmp_path).read_summary()


@pytest.mark.parametrize("content", ["", '{"stages": {"extract"', "\0\0\0"])
def test_a_damaged_summary_is_named_and_empty(tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "summary.json").write_text(content)
    assert RunFolder(tmp_path).read_summary() == {"stages": {}}
    assert "summary.json is damaged: it is written anew" in caplog.text


def test_pairs_photos_and_models_are_found(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    write_pairs(folder.pairs, [Pair("b", "a")])
    folder.summary.write_text(json.dumps({"stages": {}, "dataset": {"images": "photos"}}))
    for name in ("10", "9", "notes"):
        (folder.reconstruction / name).mkdir(parents=True)
    assert folder.read_pairs() == [Pair("a", "b")]
    assert folder.photos() == Path("photos")
    assert [path.name for path in folder.models()] == ["9", "10"]


def test_two_runs_do_not_work_in_one_folder(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from sfm_lightglue.run_folder import RunFolder\n"
        "with RunFolder(Path(sys.argv[1])).locked(): print('inside', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "out")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"inside\n"
        with pytest.raises(ValueError, match="another run is working in"), RunFolder(tmp_path / "out").locked():
            pass
        other.communicate()
    with RunFolder(tmp_path / "out").locked():
        pass


def test_what_killed_runs_left_is_removed_when_the_folder_is_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = ("features.h5", "pairs.txt", "pairs.tsv", "orientations.tsv", "database.db", "summary.json")
    stale = [f"{name}.12.tmp" for name in files] + ["database.db.12.tmp-wal"]
    folders = ["reconstruction.34.tmp/settings.json", "reconstruction.56.tmp/settings.json.56.tmp"]
    others = ["pairs.txt.mine.tmp", "pairs.txt.tmp", "pairs.txt.1a.tmp", "notes.txt.12.tmp", "pairs.txt.12.tmp2"]
    others += ["reconstruction.12.tmp/notes.txt", "pairs.tsv.13.tmp/notes.txt"]
    (tmp_path / "reconstruction.78.tmp").mkdir()
    for name in (*stale, *folders, *others, "reconstruction.9.tmp.old/settings.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("left")
    everything = sorted(tmp_path.rglob("*"))
    with monkeypatch.context() as no_locks:
        no_locks.setattr(filelock.FileLock, "acquire", lambda self: (_ for _ in ()).throw(NotImplementedError))
        with RunFolder(tmp_path).locked():
            pass
    assert sorted(tmp_path.rglob("*")) == everything  # another run may be there
    for put_back in (True, False):  # the old folder becomes `reconstruction` only if there is none
        with RunFolder(tmp_path).locked():
            pass
        left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if not path.is_dir()}
        assert left == {*others, ".lock", "reconstruction/settings.json"}, put_back
        (tmp_path / "reconstruction.9.tmp.old").mkdir()


def test_an_error_of_the_block_is_not_taken_for_a_lock(tmp_path: Path) -> None:
    with pytest.raises(BlockingIOError, match="a pipe is full"), RunFolder(tmp_path).locked():
        raise BlockingIOError("a pipe is full")
