"""Files that are written whole or not at all, and locks between processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sfm_lightglue.files import free_path, locked, read_own_json, remove_stale, write_json, written_whole


def test_a_file_appears_when_the_block_ends(tmp_path: Path) -> None:
    with written_whole(tmp_path / "a.txt") as temporary:
        temporary.write_text("new")
        assert not (tmp_path / "a.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "new"


def test_an_error_keeps_the_old_content_and_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), written_whole(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_stale_files_of_killed_processes_are_removed_and_others_kept(tmp_path: Path) -> None:
    others = ["a.h5", "a.h5.backup.tmp", "a.h5.tmp", "b.h5.123.tmp"]
    for name in ("a.h5.123.tmp", *others):
        (tmp_path / name).touch()
    remove_stale(tmp_path / "a.h5")
    assert sorted(path.name for path in tmp_path.iterdir()) == others


def test_names_for_what_is_kept_are_free(tmp_path: Path) -> None:
    assert free_path(tmp_path / "database.db", "kept").name == "database.kept-1.db"
    (tmp_path / "database.kept-1.db").symlink_to(tmp_path / "nowhere")
    assert free_path(tmp_path / "database.db", "kept").name == "database.kept-2.db"
    assert free_path(tmp_path / "reconstruction", "kept").name == "reconstruction.kept-1"


@pytest.mark.parametrize("content", [b"", b"\0\0\0", b'{\n "stages"', b'{\n "stages": {"extract', b'{ "stages": {}}\0\0', b"{"])
def test_a_cut_json_file_of_ours_has_no_content(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    assert read_own_json(tmp_path / "a.json", ('{"stages":',)) is None


@pytest.mark.parametrize("content", [b"[]", b"{}", b'{"my": "notes"}', b"\xff\xfe", b"key: value"])
def test_a_json_file_of_others_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.json was not written by sfm_lightglue, or was changed since"):
        read_own_json(tmp_path / "a.json", ('{"stages":',))


def test_json_without_numbers_that_json_lacks(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"ü": 1})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n "ü": 1\n}'
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", {"x": float("nan")})


HOLDER = """
import sys, time
from sfm_lightglue.files import locked
with locked(sys.argv[1]):
    print('held', flush=True)
    time.sleep(60)
"""


def test_a_lock_keeps_others_out_until_its_process_is_killed(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with subprocess.Popen([sys.executable, "-c", HOLDER, path], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        with pytest.raises(BlockingIOError, match="another process"), locked(path, wait=False):
            pass
        holder.kill()
    with locked(path, wait=False):
        pass


def test_without_locks_in_the_file_system_work_goes_on_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if os.name == "nt":
        pytest.skip("Windows has no flock")
    import fcntl

    def refuse(*_: object) -> None:
        raise PermissionError("no locks here")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked(tmp_path / ".lock"):
        pass
    assert "do not start a second process" in caplog.text
