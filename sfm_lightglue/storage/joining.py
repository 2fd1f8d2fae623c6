"""Joins segments of similar size to one, so that their number grows with the logarithm of the number of results."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from sfm_lightglue.storage.layout import read_group
from sfm_lightglue.storage.record import GroupData
from sfm_lightglue.storage.segment_folder import GroupFile
from sfm_lightglue.storage.segment_index import DELETED, SegmentIndex
from sfm_lightglue.storage.segment_writer import Part, parts_of, runs_of
from sfm_lightglue.storage.segments import Segment

NUM_JOINED = 16
"""Number of segments of a size class that are joined."""
SIZE_CLASSES = (0, 1 << 20, 1 << 24, 1 << 28, 1 << 32)
"""Limits of the classes, bytes. Larger segments stay: joining them would need as much free space on the disk."""


def segments_to_join(segments: Sequence[Segment | GroupFile]) -> list[Segment | GroupFile]:
    """The newest segments up to a size class of which there are `NUM_JOINED`, the oldest first; none if no class is full."""
    sizes = [segment.path.stat().st_size for segment in segments]
    for smallest, limit in pairwise(SIZE_CLASSES):
        first = next((i + 1 for i in reversed(range(len(sizes))) if sizes[i] >= limit), 0)
        if sum(size >= smallest for size in sizes[first:]) >= NUM_JOINED:
            return list(segments[first:])
    return []


def join(segments: Sequence[Segment | GroupFile], *, keep_deletions: bool) -> list[Part]:
    """The newest results of segments as parts of a new one, in the order of the segments.

    Args:
        segments: The oldest first.
        keep_deletions: Whether older segments may hold results of deleted keys.
    """
    index = SegmentIndex(segments)
    places = index.place[index.is_newest] & ~DELETED
    parts = []
    for number, segment in enumerate(segments):
        columns = segment.index()
        for table_number, table in enumerate(segment.tables):
            if table.schema.is_deletion and not keep_deletions:
                continue
            of_table = columns["table"] == table_number
            rows = columns["row"][of_table]
            keys, stamps = np.zeros((table.num_rows, 2), np.uint64), np.zeros(table.num_rows, np.uint64)
            keys[rows, 0], keys[rows, 1] = columns["high"][of_table], columns["low"][of_table]
            stamps[rows] = columns["stamp"][of_table]
            is_kept = np.zeros(table.num_rows, bool)
            is_kept[places[places >> 32 == ((number << 16) | table_number)] & 0xFFFFFFFF] = True
            if isinstance(segment, GroupFile):  # of an earlier version: small, and read whole
                parts += parts_of(_read(segment, table_number, row) for row in np.flatnonzero(is_kept).tolist())
            else:
                parts.append(Part(table, keys, stamps, runs_of(is_kept)))
    return parts


def _read(file: GroupFile, table: int, row: int) -> tuple[str, str, GroupData]:
    key, stamp = (file.tables[table].text(column, row) for column in ("key", "stamp"))
    return key, stamp, read_group(file.record(table, row))
