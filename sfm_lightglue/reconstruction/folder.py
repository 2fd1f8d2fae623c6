"""The folder `reconstruction`: which of its files a run has written, and how new models replace old ones.

`settings.json` holds the settings of the models and the SHA-256 of each file. Files that are not in it, or that were changed,
belong to the user. They are never deleted: when other models take the place of the old ones, the whole old folder moves aside.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfm_lightglue.files import (
    foreign_file,
    free_path,
    read_own_json,
    remove_stale,
    remove_stale_folders,
    sha256_of,
    write_json,
    written_whole,
)
from sfm_lightglue.georeference import FILE_NAME
from sfm_lightglue.mistakes import shortened
from sfm_lightglue.model_files import BINARY_FILES, COPIES, find_damage, read_model, write_copies

logger = logging.getLogger(__name__)

STATE = "settings.json"
BEGINNINGS = ('{"unfinished":', '{"options":')
"""The first key in `settings.json`; version 0.10 had no other."""
NOTES = ("joining", "discarded", "cameras", "doubtful")
"""Keys in `settings.json` that say what was found out when the models were made."""
NOT_SETTINGS = ("unfinished", *NOTES, "files")
"""Keys in `settings.json` that are no settings."""
GEOREFERENCE_BEGINNINGS = ('{"coordinates":',)
"""The first key in `georeference.json`."""
OUR_NAMES = {*BINARY_FILES, *COPIES, FILE_NAME}
"""Files of a model, for folders of version 0.10, which recorded no files."""


@dataclass(frozen=True)
class ModelsFolder:
    """A folder of models at `path`, which need not exist."""

    path: Path

    def check(self) -> None:
        """Raises: ValueError if no run has written the folder, see `files.foreign_file`."""
        self._read()

    def settings(self) -> dict[str, Any]:
        """The settings that the models were made with. Empty, with a warning, if the folder is damaged; empty without models.

        Raises: ValueError as in `check`.
        """
        state = self._read()
        if not state or state.get("unfinished"):
            return {}
        for number, files in _by_model(state.get("files", {})).items():
            self._write_copies_again(number, files)
            if problem := self._damage(number, files):
                logger.warning("%s is damaged (%s): the models are made again", self.path / number, problem)
                return {}
        return {key: value for key, value in state.items() if key not in NOT_SETTINGS}

    def notes(self) -> dict[str, Any]:
        """What was found out when the models in the folder were made: lists of the report by their names."""
        content = self._read() or {}
        return {key: list(content.get(key, [])) for key in NOTES}

    def users_files(self) -> list[str]:
        """Sorted paths in the folder that no run has written, or that were changed since. Damaged models count as unchanged."""
        recorded = (self._read() or {}).get("files")
        found = [path.relative_to(self.path).as_posix() for path in sorted(self.path.rglob("*")) if self._counts(path)]
        if recorded is None:
            return [name for name in found if name != STATE and not _is_name_of_ours(name)]
        damaged = {folder.name for folder in self.path.iterdir() if folder.name.isdigit() and find_damage(folder)}
        return [name for name in found if name != STATE and not self._is_as_written(name, recorded, damaged)]

    def _is_as_written(self, name: str, recorded: Mapping[str, str], damaged: set[str]) -> bool:
        number, _, file = name.partition("/")
        if number in damaged and file in BINARY_FILES:
            return True
        if file == FILE_NAME and name in recorded and _is_cut_georeference(self.path / name):
            return True
        return name in recorded and _file_hash(self.path / name) == recorded[name]

    def num_images(self) -> int:
        """Images of the largest whole model; 0 without one."""
        largest = 0
        for folder in self.path.iterdir() if self.path.is_dir() else ():
            if folder.name.isdigit() and folder.is_dir():
                with contextlib.suppress(ValueError):
                    largest = max(largest, read_model(folder).num_reg_images())
        return largest

    def _counts(self, path: Path) -> bool:
        """Whether a path may hold something of the user: a file, a link, or an empty folder that is not a model's."""
        if not path.is_dir() or path.is_symlink():
            return True
        return not any(path.iterdir()) and not (path.parent == self.path and path.name.isdigit())

    def _read(self) -> dict[str, Any] | None:
        """The content of `settings.json`; None if there is none, or if it is damaged.

        Raises: ValueError if the folder is not ours.
        """
        if not os.path.lexists(self.path):
            return None
        if not self.path.is_dir():
            raise foreign_file(self.path)
        state = self.path / STATE
        if state.exists():
            try:
                content = read_own_json(state, BEGINNINGS)
            except ValueError as error:
                raise foreign_file(self.path) from error
            if content is None:
                logger.warning("%s is damaged: the models are made again", state)
            return content
        # A run that was interrupted before version 0.11, or a user who deleted the file. COLMAP alone writes no points.ply.
        numbers = [path for path in self.path.iterdir() if path.name.isdigit()]
        if any(self.path.iterdir()) and not any((path / "points.ply").is_file() for path in numbers):
            raise foreign_file(self.path)
        return None

    def _damage(self, number: str, files: Mapping[str, str]) -> str:
        """What is wrong with a model; empty if it is whole, also if the user has changed it."""
        for name, recorded in files.items():
            path = self.path / number / name
            if not path.is_file():
                return f"{name} is missing"
            if _file_hash(path) != recorded and (problem := find_damage(self.path / number)):
                return problem
            if name == FILE_NAME and _is_cut_georeference(path):
                return f"{name} is cut"
        return ""

    def _write_copies_again(self, number: str, files: Mapping[str, str]) -> None:
        """Writes text and PLY files that were cut again, from the binary files. Files that the user has changed stay."""
        folder = self.path / number
        changed = {name for name in files if (folder / name).is_file() and _file_hash(folder / name) != files[name]}
        if not changed & {*COPIES} or changed & {*BINARY_FILES}:
            return
        with contextlib.suppress(ValueError), tempfile.TemporaryDirectory() as temporary:
            write_copies(read_model(folder), Path(temporary))
            for name in sorted(changed & {*COPIES}):
                whole, found = (Path(temporary) / name).read_bytes(), (folder / name).read_bytes().rstrip(b"\0")
                if whole.startswith(found):
                    logger.warning("%s is cut: it is written again", folder / name)
                    remove_stale(folder / name)
                    with written_whole(folder / name) as path:
                        path.write_bytes(whole)

    # --- new models ---

    def start(self) -> Path:
        """A new folder beside `path` for models that are being made. What killed runs left is removed, or put back."""
        remove_stale_folders(self.path, STATE)
        partial = self.path.with_name(f"{self.path.name}.{os.getpid()}.tmp")
        partial.mkdir(parents=True)
        write_json(partial / STATE, {"unfinished": True})
        return partial

    def replace(self, partial: Path, settings: Mapping[str, Any], *, notes: Mapping[str, list[str]], unfinished: bool) -> None:
        """Puts the models in `partial` into place, and records `settings`, notes and the hashes of all files.

        The notes are `joining`, `discarded` and `cameras`.

        If the old folder holds files of the user, it moves aside; or it stays, if its models were the same.
        """
        files = {
            path.relative_to(partial).as_posix(): _file_hash(path)
            for path in sorted(partial.rglob("*"))
            if path.is_file() and path.name != STATE
        }
        head = {"unfinished": True} if unfinished else {}
        write_json(partial / STATE, {**head, **settings, **notes, "files": files})
        if self.path.exists() and (others := self.users_files() or self._unproven()):
            if (self._read() or {}).get("files") == files:
                for name in (*(name for name in files if name not in others), STATE):
                    (self.path / name).parent.mkdir(exist_ok=True)
                    (partial / name).replace(self.path / name)
                shutil.rmtree(partial)
                return
            kept = free_path(self.path, "kept")
            self.path.rename(kept)
            logger.warning("%s has files that no run has written (%s): it is kept as %s", self.path, shortened(others), kept.name)
        old = self.path.with_name(f"{self.path.name}.{os.getpid()}.tmp.old")
        if self.path.exists():
            self.path.rename(old)
        partial.rename(self.path)
        if old.exists():
            shutil.rmtree(old)

    def _unproven(self) -> list[str]:
        """The content of a folder without `settings.json`: it looks like ours, but may be the user's."""
        return [] if (self.path / STATE).exists() else sorted(path.name for path in self.path.iterdir())


def _is_cut_georeference(path: Path) -> bool:
    """Whether a `georeference.json` is ours, but cut or full of zeros. One that the user has rewritten is not."""
    try:
        return path.is_file() and read_own_json(path, GEOREFERENCE_BEGINNINGS) is None
    except ValueError:
        return False


def _file_hash(path: Path) -> str:
    """SHA-256 of a file, or of the file that a link points to; empty if that does not exist."""
    return sha256_of(path) if path.is_file() else ""


def _by_model(files: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Hashes by number of the model and name of the file."""
    models: dict[str, dict[str, str]] = {}
    for path, value in files.items():
        number, _, name = path.partition("/")
        models.setdefault(number, {})[name] = value
    return models


def _is_name_of_ours(path: str) -> bool:
    number, _, name = path.partition("/")
    return number.isdigit() and name in OUR_NAMES
