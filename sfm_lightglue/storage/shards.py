"""Crash-safe writing of one stage's results.

While a stage runs, its results go to shards: `OUT/features.h5.shards/000000.h5` and so on. Each shard is written whole or not
at all, so a killed process leaves no half-written results. When the stage is complete, the shards are merged into
`OUT/features.h5`. A stage that starts again asks the store which results are missing, and computes only those.

Several processes may write shards of the same file at once, each under its own name: `000004-NAME.h5`. A later store without a
name sees all shards, and merges them.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py

from sfm_lightglue.files import foreign_file, remove_stale, written_whole
from sfm_lightglue.settings import describe_changes, fingerprint
from sfm_lightglue.storage.layout import GroupData, explained_damage, read_group, write_group
from sfm_lightglue.storage.safety import leaf_groups

logger = logging.getLogger(__name__)

MAX_OPEN_FILES = 32
LIBVER = ("v110", "v110")
"""The format of HDF5 1.10, with checksums. HDF5 2.0 would write a newer format by default, which HDF5 1.14 cannot read."""
SIGNATURE = b"\x89HDF\r\n\x1a\n"
"""The first bytes of every HDF5 file that h5py writes."""
SHARD = re.compile(r"(\d{6})(?:-([A-Za-z0-9_-]{1,64}))?\.h5")
"""Name of a shard: its number, and the name of its writer if there are several. Newer results have a higher number."""
TEMPORARY_SHARD = re.compile(rf"{SHARD.pattern}\.\d+\.tmp")


def check_output(path: Path | str) -> None:
    """Raises: ValueError if there is a file, or a folder of shards, that no run has written, or if the file is damaged."""
    path, shards = Path(path), Path(f"{path}.shards")
    if os.path.lexists(path):
        if not path.is_file() or not _begins_as_hdf5(path):
            raise foreign_file(path)
        with explained_damage(path), h5py.File(path, "r") as file:
            is_ours = "fingerprint" in file.attrs
        if not is_ours:
            raise foreign_file(path)
    if os.path.lexists(shards):
        names = [shard.name for shard in shards.iterdir()] if shards.is_dir() else [""]
        if not all(SHARD.fullmatch(name) or TEMPORARY_SHARD.fullmatch(name) for name in names):
            raise foreign_file(shards)


def _begins_as_hdf5(path: Path) -> bool:
    """Whether a file begins as HDF5 files do, or was cut before. A power cut may leave zeros."""
    with path.open("rb") as file:
        begin = file.read(len(SIGNATURE))
    return SIGNATURE.startswith(begin.rstrip(b"\0"))


class SettingsChanged(ValueError):
    """The file on disk was made with other settings than this run asks for."""


class ShardStore:
    """Crash-safe writer of one stage's results: a context manager around the file `path` and its shards.

    `stamps` maps the key of each stored result to its stamp, a string that says from which input it was computed. When the block
    ends, also by an exception or Ctrl-C, all results that were added are on disk. Equal results give equal bytes in the merged
    file, whatever the order in which they were added.

    Args:
        path: the merged file. The shards are in the folder `path` + `.shards`.
        settings: everything that decides the results, as values for JSON; they are stored in the file.
        if_settings_changed: `refuse` raises SettingsChanged when the file has other settings, `recompute` replaces the file.
        shard_items: number of results in a shard.
        shard_seconds: a shard is written earlier if its first result is older than this.
        writer: name of this writer: letters, digits, `-` and `_`. Give each process its own if several write at once; `merge`
            then only writes the buffered results. Empty if this store is the only one.

    Raises: ValueError for another name of a writer. When the block is entered: SettingsChanged; ValueError if `path` is a folder
    or the file is damaged.
    """

    def __init__(
        self,
        path: Path | str,
        settings: Mapping[str, Any],
        *,
        if_settings_changed: str = "refuse",
        shard_items: int = 64,
        shard_seconds: float = 20,
        writer: str = "",
    ) -> None:
        if writer and not SHARD.fullmatch(f"000000-{writer}.h5"):
            raise ValueError(f"writer={writer!r} is not the name of a writer: expected up to 64 letters, digits, - and _")
        self.path, self.shards = Path(path), Path(f"{path}.shards")
        self.settings = json.loads(json.dumps(settings, sort_keys=True))
        self.fingerprint = fingerprint(self.settings)
        self.if_settings_changed = if_settings_changed
        self.shard_items, self.shard_seconds, self.writer = shard_items, shard_seconds, writer
        self.stamps: dict[str, str] = {}
        self._places: dict[str, Path] = {}  # key -> file with its newest result
        self._buffer: dict[str, GroupData] = {}
        self._buffer_since = 0.0
        self._next_shard = 0

    def __enter__(self) -> ShardStore:
        if self.path.is_dir():
            raise ValueError(f"{self.path} is a folder, expected the name of a file such as {self.path}.h5")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._remove_stale()
        shards = self._list_shards()
        self._next_shard = _number(shards[-1]) + 1 if shards else 0
        for path in (self.path, *shards):
            if path.exists():
                self._load(path)
        return self

    def __exit__(self, *exception: object) -> None:
        self.flush()

    def missing(self, stamps: Mapping[str, str]) -> list[str]:
        """Keys of `stamps`, in their order, that are not stored or were computed from other input."""
        return [key for key, stamp in stamps.items() if self.stamps.get(key) != stamp]

    def add(self, key: str, content: GroupData, stamp: str) -> None:
        """Stores a result. It is on disk after at most `shard_items` results or `shard_seconds`.

        Args:
            key: Key of the group; a newer result replaces an older one.
            content: Datasets and attributes of the group.
            stamp: Says from which input the result was computed.
        """
        if not self._buffer:
            self._buffer_since = time.monotonic()
        attributes = {**content.attributes, "": {**content.attributes.get("", {}), "stamp": stamp}}
        self._buffer[key] = GroupData(content.datasets, attributes)
        self.stamps[key] = stamp
        if len(self._buffer) >= self.shard_items or time.monotonic() - self._buffer_since > self.shard_seconds:
            self.flush()

    def flush(self) -> None:
        """Writes the buffered results as one shard."""
        if not self._buffer:
            return
        self.shards.mkdir(exist_ok=True)
        path = self.shards / f"{self._next_shard:06d}{self.writer and '-'}{self.writer}.h5"
        with self._write(path) as file:
            for key in sorted(self._buffer):
                write_group(file, key, self._buffer[key])
        self._places |= dict.fromkeys(self._buffer, path)
        self._next_shard += 1
        self._buffer = {}

    def merge(self, drop: Iterable[str] = ()) -> None:
        """Moves the results of all shards into the merged file. Results under the keys of `drop` are deleted.

        One of several writers only writes what is buffered: a store without a name merges the shards of all.
        """
        self.flush()
        if self.writer:
            return
        dropped, shards = self.stamps.keys() & set(drop), self._list_shards()
        if not dropped and not shards and self.path.exists():
            return
        for key in dropped:
            del self.stamps[key], self._places[key]
        with self._write(self.path) as merged:
            for key, content in _read_groups(self._places):  # h5py's copy would keep traces of the shards' order
                write_group(merged, key, content)
        self._places = dict.fromkeys(self._places, self.path)
        for shard in shards:
            shard.unlink()
        with contextlib.suppress(OSError):
            self.shards.rmdir()

    def _remove_stale(self) -> None:
        """Deletes the temporary files of killed processes. One of several writers deletes only its own."""
        if not self.writer:
            remove_stale(self.path)
        for stale in self.shards.glob("*.tmp"):
            if (name := TEMPORARY_SHARD.fullmatch(stale.name)) and (not self.writer or name[2] == self.writer):
                stale.unlink(missing_ok=True)

    def _list_shards(self) -> list[Path]:
        """All shards, the oldest first."""
        shards = [path for path in self.shards.glob("*.h5") if SHARD.fullmatch(path.name)]
        return sorted(shards, key=lambda path: (_number(path), path.name))

    def _load(self, path: Path) -> None:
        """Adds the stamps in a file to `stamps`, if the settings are equal. Shards are read whole; damaged shards are deleted."""
        is_shard = path != self.path
        try:
            with explained_damage(path), h5py.File(path, "r") as file:
                old, settings = str(file.attrs.get("fingerprint", "")), json.loads(file.attrs.get("settings", "{}"))
                stamps = {key: str(file[key].attrs.get("stamp", "")) for key in leaf_groups(file)}
                for key in stamps if is_shard else ():
                    read_group(file[key])
        except ValueError as error:
            if not is_shard:
                raise
            logger.warning("%s is damaged (%s): its results are computed again", path, error.__cause__ or error)
            path.unlink(missing_ok=True)
            return
        if old != self.fingerprint:
            self._settings_changed(path, old, settings)
            return
        self.stamps |= stamps
        self._places |= dict.fromkeys(stamps, path)

    def _settings_changed(self, path: Path, old_fingerprint: str, old: Mapping[str, Any]) -> None:
        if not old_fingerprint:
            raise SettingsChanged(f"{path} was not written by sfm_lightglue: choose another output folder")
        if self.if_settings_changed != "recompute":
            raise SettingsChanged(
                f"{path} was made with other settings ({describe_changes(old, self.settings)}): choose another output folder, "
                f"or give execution.if_settings_changed=recompute to replace it"
            )
        logger.warning("%s was made with other settings (%s): it is replaced", path, describe_changes(old, self.settings))
        path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _write(self, path: Path) -> Iterator[h5py.File]:
        """An open HDF5 file with only the settings. It becomes `path` when the block ends, see `files.written_whole`."""
        with written_whole(path) as temporary:
            try:
                with h5py.File(temporary, "w", libver=LIBVER) as file:
                    file.attrs["settings"] = json.dumps(self.settings, sort_keys=True)
                    file.attrs["fingerprint"] = self.fingerprint
                    yield file
            except (OSError, RuntimeError) as error:  # h5py raises either
                raise OSError(f"{path} could not be written, is the disk full? ({error})") from error


def _number(shard: Path) -> int:
    return int(shard.name[:6])


def _read_groups(places: Mapping[str, Path]) -> Iterator[tuple[str, GroupData]]:
    """The keys of `places`, sorted, and their groups, read from the given files. At most MAX_OPEN_FILES are open at a time."""
    files: dict[Path, h5py.File] = {}  # the least recently used first
    try:
        for key in sorted(places):
            path = places[key]
            with explained_damage(path):
                files[path] = files.pop(path, None) or h5py.File(path, "r")
                content = read_group(files[path][key])
            yield key, content
            if len(files) > MAX_OPEN_FILES:
                files.pop(next(iter(files))).close()
    finally:
        for file in files.values():
            file.close()
