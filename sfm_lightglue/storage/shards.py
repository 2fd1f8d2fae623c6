"""Crash-safe writing of one stage's results.

While a stage runs, its results go to segments: `OUT/features.h5.shards/000000.h5` and so on, see `segments.py`. Each is written
whole or not at all, so a killed process leaves no half-written results. A stage that starts again asks the store which results
are missing, and computes only those.

When the stage is complete, up to `merge_items` results are merged into `OUT/features.h5`, which hloc reads. More results stay in
segments, because merging would rewrite all of them for each new one. Segments of similar size are joined now and then: until
there are a million results, each is written again three times, and there are at most about 60 files.

Several processes may write segments of the same file at once, each under its own name: `000004-NAME.h5`. A later store without a
name sees all segments.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from sfm_lightglue.files import FOLDER_MARK, foreign_file, remove_stale, write_json, written_whole
from sfm_lightglue.products import Pair
from sfm_lightglue.settings import describe_changes, fingerprint
from sfm_lightglue.storage.hashes import KEY_SEPARATOR, STAMP_SEPARATOR, code_pairs, hash_pairs, hash_texts
from sfm_lightglue.storage.joining import join, segments_to_join
from sfm_lightglue.storage.layout import explained_damage
from sfm_lightglue.storage.merging import explained_failure, write_merged
from sfm_lightglue.storage.record import GroupData
from sfm_lightglue.storage.segment_folder import (
    SEGMENT,
    TEMPORARY,
    GroupFile,
    age,
    folder_of,
    free_base,
    is_ours,
    list_segments,
    open_segment,
    read_mark,
    state_of,
)
from sfm_lightglue.storage.segment_index import SegmentIndex
from sfm_lightglue.storage.segment_writer import Part, parts_of, write_segment
from sfm_lightglue.storage.segments import Segment

logger = logging.getLogger(__name__)

MERGE_ITEMS = 20_000
"""Largest number of results that are merged into one file. Merging writes all of them again, 1 ms each."""
SIGNATURE = b"\x89HDF\r\n\x1a\n"
"""The first bytes of every HDF5 file that h5py writes."""


def check_output(path: Path | str) -> None:
    """Raises: ValueError if there is a file, or a folder of segments, that no run has written, or if the file is damaged."""
    path, folder = Path(path), folder_of(Path(path))
    if os.path.lexists(path):
        if not path.is_file() or not _begins_as_hdf5(path):
            raise foreign_file(path)
        with explained_damage(path), h5py.File(path, "r") as file:
            has_mark = "fingerprint" in file.attrs
        if not has_mark:
            raise foreign_file(path)
    if os.path.lexists(folder):
        names = [segment.name for segment in folder.iterdir()] if folder.is_dir() else [""]
        if not all(map(is_ours, names)):
            raise foreign_file(folder)


def _begins_as_hdf5(path: Path) -> bool:
    """Whether a file begins as HDF5 files do, or was cut before. A power cut may leave zeros."""
    with path.open("rb") as file:
        begin = file.read(len(SIGNATURE))
    return SIGNATURE.startswith(begin.rstrip(b"\0"))


class SettingsChanged(ValueError):
    """The file on disk was made with other settings than this run asks for."""


class ShardStore:
    """Crash-safe writer of one stage's results: a context manager around the file `path` and its segments.

    `stamps` maps the key of each stored result to its stamp, a string that says from which input it was computed. When the block
    ends, also by an exception or Ctrl-C, all results that were added are on disk. Equal results give equal bytes in the merged
    file, whatever the order in which they were added.

    Args:
        path: the merged file. The segments are in the folder `path` + `.shards`.
        settings: everything that decides the results, as values for JSON; they are stored in the file.
        if_settings_changed: `refuse` raises SettingsChanged when the file has other settings, `recompute` replaces the file.
        shard_items: number of results in a new segment.
        shard_seconds: a segment is written earlier if its first result is older than this.
        writer: name of this writer: letters, digits, `-` and `_`. Give each process its own if several write at once; `merge`
            then only writes the buffered results. Empty if this store is the only one.
        merge_items: largest number of results that `merge` puts into one file; None for `MERGE_ITEMS`.

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
        merge_items: int | None = None,
    ) -> None:
        if writer and not SEGMENT.fullmatch(f"000000-{writer}.h5"):
            raise ValueError(f"writer={writer!r} is not the name of a writer: expected up to 64 letters, digits, - and _")
        self.path, self.shards = Path(path), folder_of(Path(path))
        self.settings = json.loads(json.dumps(settings, sort_keys=True))
        self.fingerprint = fingerprint(self.settings)
        self.if_settings_changed = if_settings_changed
        self.shard_items, self.shard_seconds, self.writer = shard_items, shard_seconds, writer
        self.merge_items = MERGE_ITEMS if merge_items is None else merge_items
        self.stamps: Mapping[str, str] = StoredStamps(self)
        self._segments: list[Segment | GroupFile] = []  # the oldest first
        self._indexed: SegmentIndex | None = None
        self._buffer: dict[str, tuple[str, GroupData | None]] = {}  # None: the key is deleted
        self._buffer_since = 0.0
        self._next_number = 0

    def __enter__(self) -> ShardStore:
        if self.path.is_dir():
            raise ValueError(f"{self.path} is a folder, expected the name of a file such as {self.path}.h5")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._remove_stale()
        paths, checked = list_segments(self.shards), read_mark(self.shards)
        self._next_number = max((age(path)[0] + 1 for path in paths), default=0)
        for path in ([self.path] if self.path.exists() else []) + paths:
            self._load(path, is_checked=checked.get(path.name) == state_of(path))
            self._join_similar()
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            self.flush()
        finally:
            for segment in self._segments:
                segment.close()

    # --- what is stored ---

    def missing(self, stamps: Mapping[str, str]) -> list[str]:
        """Keys of `stamps`, in their order, that are not stored or were computed from other input."""
        keys = list(stamps)
        hashes = hash_texts(keys, KEY_SEPARATOR), hash_texts(stamps.values(), STAMP_SEPARATOR)[:, 0]
        is_stored = self.is_stored(*hashes)
        for number, key in enumerate(keys if self._buffer else ()):
            if key in self._buffer:
                is_stored[number] = self.stamps.get(key) == stamps[key]
        return [key for key, stored in zip(keys, is_stored.tolist(), strict=True) if not stored]

    def missing_pairs(self, pairs: Sequence[Pair], stamps: Mapping[str, str]) -> list[Pair]:
        """Those pairs of images, in their order, that are not stored with the stamp `STAMP0 STAMP1`. Fast for millions of pairs.

        Args:
            pairs: The pairs; keys are as in `match_key`.
            stamps: The stamp of each image.
        """
        self.flush()
        names, firsts, seconds = code_pairs(pairs)
        keys = hash_pairs([name.replace("/", "-") for name in names], firsts, seconds)
        of_names = [stamps[name] for name in names]
        if any(STAMP_SEPARATOR in stamp for stamp in of_names):  # not of a run
            both = zip(firsts.tolist(), seconds.tolist(), strict=True)
            hashes = hash_texts((f"{of_names[i]} {of_names[j]}" for i, j in both), STAMP_SEPARATOR)
        else:
            hashes = hash_pairs(of_names, firsts, seconds)
        found = self.is_stored(keys, hashes[:, 0])
        return [pairs[i] for i in np.flatnonzero(~found).tolist()]

    def missing_places(self, pairs: Sequence[Pair], stamps: Sequence[str]) -> list[int]:
        """Positions of the pairs that are not stored with their stamp, ascending. As `missing_pairs`, for stamps of any form."""
        self.flush()
        names, firsts, seconds = code_pairs(pairs)
        keys = hash_pairs([name.replace("/", "-") for name in names], firsts, seconds)
        found = self.is_stored(keys, hash_texts(stamps, STAMP_SEPARATOR)[:, 0])
        places: list[int] = np.flatnonzero(~found).tolist()
        return places

    def has_pairs(self, pairs: Sequence[Pair]) -> np.ndarray:
        """bool (n,): whether pairs of images are stored, with any stamp. Keys are as in `match_key`."""
        self.flush()
        names, firsts, seconds = code_pairs(pairs)
        found: np.ndarray = self._index.find(hash_pairs([name.replace("/", "-") for name in names], firsts, seconds)) >= 0
        return found

    def is_stored(self, keys: np.ndarray, stamps: np.ndarray) -> np.ndarray:
        """bool (n,): whether results are on disk, for hashes of keys uint64 (n, 2) and of stamps uint64 (n,), see `hashes.py`."""
        entries = self._index.find(keys)
        found = entries >= 0
        found[found] = self._index.stamp[entries[found]] == stamps[found]
        return found

    @property
    def _index(self) -> SegmentIndex:
        if self._indexed is None:
            self._indexed = SegmentIndex(self._segments)
        return self._indexed

    # --- writing ---

    def add(self, key: str, content: GroupData, stamp: str) -> None:
        """Stores a result. It is on disk after at most `shard_items` results or `shard_seconds`.

        Args:
            key: Key of the group; a newer result replaces an older one.
            content: Datasets and attributes of the group.
            stamp: Says from which input the result was computed.
        """
        if not self._buffer:
            self._buffer_since = time.monotonic()
        self._buffer[key] = stamp, content
        if len(self._buffer) >= self.shard_items or time.monotonic() - self._buffer_since > self.shard_seconds:
            self.flush()

    def flush(self) -> None:
        """Writes the buffered results as one segment."""
        if not self._buffer:
            return
        records = ((key, *self._buffer[key]) for key in sorted(self._buffer))
        path = self.shards / f"{self._next_number:06d}{self.writer and '-'}{self.writer}.h5"
        self._write_segment(path, parts_of(records))
        self._segments.append(open_segment(path))
        self._next_number += 1
        self._buffer, self._indexed = {}, None
        self._join_similar()

    def merge(self, drop: Iterable[str] = ()) -> None:
        """Moves the results into the merged file, or keeps the segments if there are more than `merge_items`.

        Results under the keys of `drop` are deleted. One of several writers only writes what is buffered: a store without a name
        merges the segments of all.
        """
        self.flush()
        if self.writer:
            return
        dropped = self._stored_keys(drop)
        if len(self._index) - len(dropped) > self.merge_items:
            self._keep_segments(dropped)
        elif dropped or not self.path.exists() or any(segment.path != self.path for segment in self._segments):
            self._merge(dropped)

    def _merge(self, dropped: set[str]) -> None:
        stored = write_merged(self.path, self._attributes, self._index, dropped)
        former, self._segments, self._indexed = self._segments, [GroupFile(self.path, stored)], None
        for segment in former:
            segment.close()
        for path in (self.shards / FOLDER_MARK, *list_segments(self.shards), *self.shards.glob("*.index")):
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.shards.rmdir()

    def _keep_segments(self, dropped: set[str]) -> None:
        """Lets the segments stand for the file. A merged file becomes the oldest of them."""
        self._buffer = dict.fromkeys(dropped, ("", None))
        self.flush()
        if self.path.exists():
            self._segments[0].close()
            base = free_base(self.shards)
            base.parent.mkdir(exist_ok=True)
            self.path.rename(base)
            self._segments[0], self._indexed = open_segment(base), None
        checked = {segment.path.name: state_of(segment.path) for segment in self._segments}
        if checked != read_mark(self.shards):
            write_json(self.shards / FOLDER_MARK, {"checked": checked})

    def _stored_keys(self, keys: Iterable[str]) -> set[str]:
        keys = list(keys)
        return {key for key, entry in zip(keys, self._index.find(hash_texts(keys, KEY_SEPARATOR)), strict=True) if entry >= 0}

    def _join_similar(self) -> None:
        """Joins segments of similar size. One of several writers joins only its own."""
        while found := segments_to_join([segment for segment in self._segments if self._is_own(segment)]):
            is_all = found == self._segments
            path = found[-1].path
            self._write_segment(path, join(found, keep_deletions=not is_all))
            for segment in found:
                segment.close()
                if segment.path != path:
                    segment.path.unlink(missing_ok=True)
            self._segments[self._segments.index(found[-1])] = open_segment(path)
            self._segments = [segment for segment in self._segments if segment not in found]
            self._indexed = None

    def _is_own(self, segment: Segment | GroupFile) -> bool:
        name = SEGMENT.fullmatch(segment.path.name)
        return segment.path != self.path and name is not None and (not self.writer or name[2] == self.writer)

    # --- files ---

    def _remove_stale(self) -> None:
        """Deletes the temporary files of killed processes. One of several writers deletes only its own."""
        if not self.writer:
            remove_stale(self.path)
        for stale in self.shards.glob("*.tmp"):
            if (name := TEMPORARY.fullmatch(stale.name)) and (not self.writer or name[2] == self.writer):
                stale.unlink(missing_ok=True)

    def _load(self, path: Path, *, is_checked: bool) -> None:
        """Adds a segment, or the merged file, if its settings are equal. A damaged segment is deleted."""
        try:
            segment = open_segment(path)
            if not is_checked and SEGMENT.fullmatch(path.name) and path != self.path:
                with explained_damage(path):
                    segment.check()
        except FileNotFoundError:  # another writer has joined it with others
            return
        except ValueError as error:
            if path == self.path or not SEGMENT.fullmatch(path.name):
                raise
            logger.warning("%s is damaged (%s): its results are computed again", path, error.__cause__ or error)
            path.unlink(missing_ok=True)
            return
        if segment.fingerprint != self.fingerprint:
            segment.close()
            self._settings_changed(path, segment.fingerprint, segment.settings)
            return
        self._segments.append(segment)

    def _settings_changed(self, path: Path, old_fingerprint: str, old: Mapping[str, Any]) -> None:
        if not old_fingerprint:
            raise SettingsChanged(f"{path} was not written by sfm_lightglue: choose another output folder")
        if self.if_settings_changed != "recompute":
            raise SettingsChanged(
                f"{path} was made with other settings ({describe_changes(old, self.settings)}): choose another output folder, "
                f"or give execution.if_settings_changed=recompute to replace it"
            )
        logger.warning("%s was made with other settings (%s): it is replaced", path, describe_changes(old, self.settings))
        for old_file in (self.shards / FOLDER_MARK, Path(f"{path}.index"), path):
            old_file.unlink(missing_ok=True)

    def _write_segment(self, path: Path, parts: Sequence[Part]) -> None:
        self.shards.mkdir(exist_ok=True)
        with written_whole(path) as temporary, explained_failure(path):
            write_segment(temporary, self._attributes, parts)

    @property
    def _attributes(self) -> dict[str, str]:
        return {"settings": json.dumps(self.settings, sort_keys=True), "fingerprint": self.fingerprint}


class StoredStamps(Mapping[str, str]):
    """The stamp of each result in a store by key. Stamps stay on disk until they are asked for."""

    def __init__(self, store: ShardStore) -> None:
        self._store = store

    def __getitem__(self, key: str) -> str:
        if key in self._store._buffer:
            return self._store._buffer[key][0]
        if (entry := self._store._index.find_key(key)) < 0:
            raise KeyError(key)
        return str(self._store._index.record(entry).attrs.get("stamp", ""))

    def __contains__(self, key: object) -> bool:
        return key in self._store._buffer or (isinstance(key, str) and self._store._index.find_key(key) >= 0)

    def __iter__(self) -> Iterator[str]:
        stored = self._store._index.texts(self._store._index.live(), "key")
        yield from sorted({*stored, *self._store._buffer})

    def __len__(self) -> int:
        return len(self._store._index) + len(self._store._buffer.keys() - self._store._stored_keys(self._store._buffer))
