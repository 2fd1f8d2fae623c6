"""Guards against HDF5 files that read other files or exhaust the memory.

An HDF5 file can point to other files: by external links, by virtual datasets, and by external storage, which reads any file of
the computer as raw numbers. A file of a few kB can also declare arrays of any size. Everything in `storage` reaches groups and
datasets through this module, which refuses such files, including files that claim to be ours. `values.py` checks the numbers.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py

from sfm_lightglue.memory import memory_bytes
from sfm_lightglue.storage.record import Record

MAX_KEYPOINTS = 4_000_000
"""Largest number of keypoints of an image; dense matchers give a few 100,000."""
MAX_DESCRIPTOR_SIZE = 131_072
"""Largest number of values of a descriptor. Local descriptors have up to 512, global ones up to some 30,000."""
MAX_DEPTH = 32
"""Largest number of nested groups, which are the folders in the name of a photo."""
MAX_GZIP_FACTOR = 1032
"""gzip can make data smaller by this factor. HDF5 inflates a chunk to its end, beyond the size that the file declares."""
UNCHECKED_BYTES = 256_000_000
"""Compressed datasets that can inflate to more bytes than this are inflated under control once, before HDF5 does it."""
NUMBERS = "iufb"
"""Kinds of numpy types that are read: whole numbers, floating-point numbers, booleans."""


class RefusedFile(ValueError):
    """An HDF5 file points to other files, declares arrays that are too large, or is damaged. None of its content is used."""


class Readable:
    """A context in which an error of h5py becomes a `RefusedFile` that names the file `path`. It may be entered many times.

    h5py raises OSError, RuntimeError, KeyError, TypeError or others, depending on which bytes are damaged.
    """

    def __init__(self, path: Path | str) -> None:
        self._path = path

    def __enter__(self) -> Readable:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, RefusedFile):
            raise RefusedFile(f"{self._path} is not a readable HDF5 file ({error}): delete it to compute it again") from error


def has_member(group: h5py.Group, name: str) -> bool:
    """Whether a group has the member `name`. Raises: RefusedFile if it is a soft or an external link."""
    return group.has(name) if isinstance(group, Record) else has_link(group, group.id, name)


def has_link(group: h5py.Group | Record, id: h5py.h5g.GroupID, name: str) -> bool:
    """As `has_member`, for a group with its low-level identifier."""
    if isinstance(name, bytes):  # h5py gives names that are not UTF-8 as they are
        raise RefusedFile(f"{group.file.filename}: the name {name!r} is not UTF-8: write the file again with names in UTF-8")
    links, encoded = id.links, name.encode()
    if not encoded or not links.exists(encoded):
        return False
    if links.get_info(encoded).type == h5py.h5l.TYPE_HARD:
        return True
    kind = "an external link to another file" if links.get_info(encoded).type == h5py.h5l.TYPE_EXTERNAL else "a soft link"
    raise RefusedFile(f"{_place(group, name)} is {kind}: links are not followed, copy the data into the file (h5repack, h5copy)")


def find_dataset(group: h5py.Group, name: str) -> h5py.Dataset | None:
    """The dataset `name` of numbers, or None if there is none. Its size is bounded, and it lies in the file itself.

    Raises: RefusedFile otherwise.
    """
    if isinstance(group, Record):
        return group.find(name)
    if not has_member(group, name):
        return None
    dataset = group[name]
    if not isinstance(dataset, h5py.Dataset):
        raise RefusedFile(f"{_place(group, name)} is a group, expected a dataset")
    check_dataset(dataset, group, name)
    return dataset


def check_dataset(dataset: Any, group: h5py.Group | Record, name: str) -> None:
    """Checks the dataset `name` of a group without reading its numbers: a `h5py.Dataset` or a `FileDataset`.

    Raises: RefusedFile if it is stored in other files, does not hold numbers, or takes too much memory.
    """
    dtype, shape = dataset.dtype, dataset.shape
    if dtype.kind not in NUMBERS:
        raise RefusedFile(f"{_place(group, name)} holds values of type {dtype}, expected numbers")
    num_bytes = math.prod(shape or ()) * dtype.itemsize
    if num_bytes > max_bytes():
        raise RefusedFile(
            f"{_place(group, name)} declares an array of shape {shape}, {num_bytes / 1e9:.1f} GB; on this machine an array may "
            f"have up to {max_bytes() / 1e9:.1f} GB"
        )
    if dataset.id.get_offset() is None:  # else it is one plain block of this file
        _check_layout(dataset, group, name, num_bytes)


def _check_layout(dataset: Any, group: h5py.Group | Record, name: str, num_bytes: int) -> None:
    layout = dataset.id.get_create_plist()
    if layout.get_layout() == h5py.h5d.VIRTUAL:
        raise RefusedFile(f"{_place(group, name)} is a virtual dataset in other files: copy the data into the file (h5repack)")
    if layout.get_external_count():
        other = layout.get_external(0)[0].decode(errors="replace")
        raise RefusedFile(f"{_place(group, name)} is stored in another file, {other!r}: copy the data into the file (h5repack)")
    if layout.get_layout() == h5py.h5d.CHUNKED and (problem := _chunk_problem(dataset, layout, num_bytes)):
        raise RefusedFile(f"{_place(group, name)} of shape {dataset.shape} {problem}: write it again with the defaults of h5py")


def _chunk_problem(dataset: Any, layout: h5py.h5p.PropDCID, num_bytes: int) -> str:
    """Why reading the chunks of a dataset may take much more memory than the dataset; empty if it does not."""
    chunk = layout.get_chunk()
    chunk_bytes = math.prod(chunk) * dataset.dtype.itemsize
    num_chunks = math.prod(-(-side // length) for side, length in zip(dataset.shape, chunk, strict=True))
    filters = [layout.get_filter(i)[0] for i in range(layout.get_nfilters())]
    without_checksums = [code for code in filters if code != h5py.h5z.FILTER_FLETCHER32]
    stored = dataset.id.get_storage_size()
    if chunk_bytes > max_bytes():
        return f"has chunks of {chunk_bytes / 1e9:.1f} GB"
    if any(code != h5py.h5z.FILTER_SHUFFLE for code in without_checksums[:-1]):
        return "is compressed in several steps"
    if stored > 1.01 * num_chunks * chunk_bytes + 1024 * num_chunks:  # incompressible numbers grow a little
        return f"takes {stored} bytes in the file for {num_bytes} bytes of numbers"
    if h5py.h5z.FILTER_DEFLATE in filters and stored * MAX_GZIP_FACTOR > UNCHECKED_BYTES:
        return _inflation_problem(dataset, chunk_bytes, 1 << filters.index(h5py.h5z.FILTER_DEFLATE))
    return ""


def _inflation_problem(dataset: Any, chunk_bytes: int, filter_bit: int) -> str:
    """What is wrong with the compressed chunks; empty if each inflates to its declared size. Damaged chunks are left to HDF5."""
    infos: list[Any] = []
    dataset.id.chunk_iter(infos.append)
    for info in infos:
        mask, rest = dataset.id.read_direct_chunk(info.chunk_offset)
        inflater, size, limit = zlib.decompressobj(), 0, chunk_bytes + 4096  # a checksum may be inside
        while rest and not inflater.eof and not mask & filter_bit and size <= limit:
            try:
                size += len(inflater.decompress(rest, 1 << 20))
            except zlib.error:
                break
            rest = inflater.unconsumed_tail
        if size > limit:
            return f"has a chunk that inflates beyond its {chunk_bytes} bytes"
    return ""


def max_bytes() -> int:
    """Largest array that is read from a file, bytes: an eighth of the memory, see `memory_bytes`, and at most 8 GB."""
    return min(memory_bytes() // 8, 8 << 30)


def leaf_groups(group: h5py.Group) -> Iterator[str]:
    """Keys of all groups that contain datasets, without following links out of the file. Datasets outside groups have no key.

    Raises: RefusedFile for links, groups that contain themselves, and more than `MAX_DEPTH` nested groups.
    """
    return _leaf_groups(group, "", set())


def _leaf_groups(group: h5py.Group, prefix: str, seen: set[tuple[int, int]]) -> Iterator[str]:
    for name in group:
        has_member(group, name)  # raises for links
        found = h5py.h5o.open(group.id, name.encode())
        if not isinstance(found, h5py.h5g.GroupID):
            if not prefix or not isinstance(found, h5py.h5d.DatasetID):
                continue
            yield prefix.rstrip("/")
            return
        child = h5py.Group(found)
        _enter(child, f"{prefix}{name}", seen)
        yield from _leaf_groups(child, f"{prefix}{name}/", seen)


def _enter(group: h5py.Group, key: str, seen: set[tuple[int, int]]) -> None:
    """Notes a group. Raises: RefusedFile if it is there twice, as in a group that contains itself, or too deep."""
    about = h5py.h5o.get_info(group.id)
    if (about.fileno, about.addr) in seen or key.count("/") >= MAX_DEPTH:
        raise RefusedFile(f"{group.file.filename}: the group {key[:80]!r} contains itself, has two names or is nested too deep")
    seen.add((about.fileno, about.addr))


def check_file(file: h5py.File) -> None:
    """Checks all links and all datasets of numbers, without reading the numbers. Raises: RefusedFile."""
    for key in leaf_groups(file):
        for _ in numeric_datasets(file[key]):
            pass


def numeric_datasets(group: h5py.Group) -> Iterator[tuple[str, h5py.Dataset]]:
    """The checked datasets of numbers in a group by name. Texts and empty dataspaces of other programs are left out.

    Raises: RefusedFile if a member is a link, or a dataset is refused.
    """
    for name in group:
        has_member(group, name)  # raises for links
        if isinstance(member := group[name], h5py.Dataset) and member.shape is not None and member.dtype.kind in NUMBERS:
            check_dataset(member, group, name)
            yield name, member


def _place(group: h5py.Group | Record, name: str) -> str:
    return f"{group.file.filename}: {f'{group.name}/{name}'.strip('/')!r}"
