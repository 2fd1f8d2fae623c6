"""Any output folder opens by its path alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

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


def test_an_error_of_the_block_is_not_taken_for_a_lock(tmp_path: Path) -> None:
    with pytest.raises(BlockingIOError, match="a pipe is full"), RunFolder(tmp_path).locked():
        raise BlockingIOError("a pipe is full")
