"""Writes the results of segments as one HDF5 file with a group for each, which hloc reads."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Container, Iterator, Mapping
from pathlib import Path

import h5py

from sfm_lightglue.files import FOLDER_MARK, written_whole
from sfm_lightglue.storage.group_writer import GroupWriter
from sfm_lightglue.storage.layout import explained_damage, read_group
from sfm_lightglue.storage.record import GroupData
from sfm_lightglue.storage.segment_folder import folder_of
from sfm_lightglue.storage.segment_index import SegmentIndex
from sfm_lightglue.storage.segment_writer import LIBVER
from sfm_lightglue.storage.sources import SegmentSource, open_source


def write_single_file(path: Path | str, target: Path | str) -> None:
    """Writes the results that `path` stands for as one file, in hloc's layout: a copy, or what the segments hold.

    The bytes do not depend on the segments: they are those of the file that a run would write if it had few results.

    Raises: FileNotFoundError if there are no results, ValueError if a file is damaged, OSError if `target` cannot be written.
    """
    path, target = Path(path), Path(target)
    if not (folder_of(path) / FOLDER_MARK).exists():
        shutil.copyfile(path, target)
        return
    with contextlib.closing(open_source(path)) as source:
        assert isinstance(source, SegmentSource)
        attributes: dict[str, str] = {name: source.attrs[name] for name in ("settings", "fingerprint") if name in source.attrs}
        write_merged(target, attributes, source.index)


def write_merged(
    path: Path, attributes: Mapping[str, str], index: SegmentIndex, dropped: Container[str] = ()
) -> list[tuple[str, str]]:
    """Writes the newest results of segments, sorted by their keys, to the file `path`. Equal results give equal bytes.

    Returns: keys and stamps of the results, without those of the keys `dropped`.
    """
    found: list[tuple[str, str]] = []
    with written_whole(path) as temporary, explained_failure(path), h5py.File(temporary, "w", libver=LIBVER) as file:
        for name, value in attributes.items():
            file.attrs[name] = value
        writer = GroupWriter(file)
        for key, stamp, content in _contents(index):
            if key not in dropped:  # h5py's copy would keep traces of the order of the segments
                writer.write(key, content)
                found.append((key, stamp))
    return found


def _contents(index: SegmentIndex) -> Iterator[tuple[str, str, GroupData]]:
    """Key, stamp and content of each result, sorted by the keys."""
    entries = index.live()
    keys, stamps = index.texts(entries, "key"), index.texts(entries, "stamp")
    for i in sorted(range(len(keys)), key=keys.__getitem__):
        with explained_damage(index.path(int(entries[i]))):
            content = read_group(index.record(int(entries[i])))
        yield keys[i], stamps[i], content


@contextlib.contextmanager
def explained_failure(path: Path) -> Iterator[None]:
    """Turns the errors that h5py raises when it cannot write into an OSError that says so."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # h5py raises either
        raise OSError(f"{path} could not be written, is the disk full? ({error})") from error
