"""The new folder of an export: it appears whole or not at all, and replaces nothing but an earlier export without changes."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfm_lightglue import __version__
from sfm_lightglue.exports.source import Source
from sfm_lightglue.files import locked, read_own_json, remove_stale_folders, sha256_of, write_json
from sfm_lightglue.mistakes import shortened

MARK = "export.json"
"""File in the folder of an export: its format, its source, and the SHA-256 of each file."""
BEGINNINGS = ('{"format":',)
"""The first key in `export.json`."""


@dataclass(frozen=True)
class Target:
    """The folder of an export while it is written."""

    path: Path
    """Where the export will be."""
    folder: Path
    """Where its files are written."""


@contextlib.contextmanager
def new_export(path: Path | str, name: str, source: Source) -> Iterator[Target]:
    """Yields a temporary folder beside `path`. When the block ends, it becomes `path`.

    If the block raises, `path` stays as it is. A killed process leaves `NAME.PID.tmp` behind; the next export removes it.

    Raises: ValueError before the block as in `check_target`, or if another process exports to `path`.
    """
    path = Path(path).expanduser().resolve()
    with _locked(path):
        remove_stale_folders(path, MARK)
        check_target(path, source)
        yield from _written(path, name, source)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keeps other exports to `path` out during the block. The lock is not beside `path`, where it would stay behind."""
    key = hashlib.sha256(str(path).encode()).hexdigest()[:16]
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(Path(tempfile.gettempdir()) / f"sfm_lightglue-export-{key}.lock", wait=False))
        except BlockingIOError as error:
            raise ValueError(f"another export to {path} is running: wait for it, or give another folder") from error
        yield


def _written(path: Path, name: str, source: Source) -> Iterator[Target]:
    folder = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    about = {"format": name, "model": str(source.model.absolute()), "version": __version__}
    folder.mkdir(parents=True)
    try:
        write_json(folder / MARK, {**about, "unfinished": True})
        yield Target(path, folder)
        write_json(folder / MARK, {**about, "files": _hashes(folder)})
        _replace(path, folder)
    finally:
        if folder.exists():
            shutil.rmtree(folder)


def check_target(path: Path, source: Source) -> None:
    """Raises: ValueError if an export to `path` would replace files that are not its own, or if it is among the photos."""
    photos = source.folder.photos()
    if photos is not None and photos.resolve() in (path, *path.parents) and source.folder.path.resolve() not in path.parents:
        raise ValueError(f"{path} is in the folder of the photos: later runs would take the exported photos for photos of yours")
    if not os.path.lexists(path):
        return
    if not path.is_dir():
        raise ValueError(f"{path} is a file: give a new folder for the export")
    if os.path.ismount(path):
        raise ValueError(f"{path} is a mount point, which cannot be replaced: give a new folder in it")
    if not any(path.iterdir()):
        return
    others = _files_of_others(path)
    if others is None:
        raise ValueError(
            f"{path} is not empty, and is no earlier export: give a new folder, so that nothing of yours is replaced"
        )
    if others:
        raise ValueError(
            f"{path} is an earlier export, but has files that were added or changed since ({shortened(others)}): move them away, "
            "or give a new folder"
        )


def _files_of_others(path: Path) -> list[str] | None:
    """Files in an earlier export that it has not written, or that were changed since; None if the folder is no export."""
    try:
        content: dict[str, Any] | None = read_own_json(path / MARK, BEGINNINGS)
    except ValueError:
        return None
    recorded = (content or {}).get("files", {})
    found = {file: hash_ for file, hash_ in _hashes(path).items() if recorded.get(file) != hash_}
    empty = [folder for folder in _folders(path) if not any((path / folder).iterdir())]
    return sorted([*found, *empty])


def _hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of each file by its path in the folder; links and other things that are no files have an empty one."""
    paths = sorted(path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return {
        path.relative_to(folder).as_posix(): sha256_of(path) if path.is_file() and not path.is_symlink() else ""
        for path in paths
        if path != folder / MARK
    }


def _folders(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_dir() and not path.is_symlink()]


def _replace(path: Path, folder: Path) -> None:
    """Puts `folder` in the place of `path`."""
    old = path.with_name(f"{folder.name}.old")
    if path.exists():
        path.rename(old)
    folder.rename(path)
    if old.exists():
        shutil.rmtree(old)
