"""Situations of exports: folders that are not new, photos that have moved, cameras that a format lacks."""

from __future__ import annotations

import shutil
from pathlib import Path

from situations.bench import FOCAL, command, run_scene, save_scene


def _run() -> None:
    save_scene(3)
    assert run_scene().works()


def folder_with_other_files() -> None:
    _run()
    own = Path("new/notes.txt")
    own.parent.mkdir()
    own.write_bytes(b"of the user")
    assert command("export", "splatting", "out", "new").refuses("is not empty", "new folder")
    assert own.read_bytes() == b"of the user" and [*own.parent.iterdir()] == [own]


def file_added_to_an_export() -> None:
    _run()
    assert command("export", "ply", "out", "new").works()
    Path("new/notes.txt").write_bytes(b"of the user")
    assert command("export", "ply", "out", "new").refuses("notes.txt", "new folder")
    assert Path("new/notes.txt").read_bytes() == b"of the user"


def photos_that_have_moved() -> None:
    _run()
    shutil.move("scene/images", "elsewhere")
    assert command("export", "splatting", "out", "new").refuses("photos=DIR")
    assert command("export", "splatting", "out", "new", "photos=elsewhere").works("3 photos")


def format_that_does_not_exist() -> None:
    Path("out").mkdir()
    assert command("export", "gsplatting", "out", "new").refuses("Did you mean 'splatting'?")


def run_without_a_model() -> None:
    Path("out").mkdir()
    assert command("export", "splatting", "out", "new").refuses("has no model to export")
    assert not Path("new").exists()


def camera_with_two_focal_lengths() -> None:
    save_scene(3)
    assert run_scene(f"database.intrinsics=PINHOLE:{FOCAL}:{FOCAL + 1}:320:240").works()
    assert command("export", "openmvg", "out", "new").refuses("has one focal length", "camera_model")
