"""A COLMAP database with some of the photos of another one, with the same ids."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable
from pathlib import Path

import pycolmap

PAIR_FACTOR = 2147483647
"""COLMAP's id of a pair is this number times the smaller id of its images, plus the larger id."""
IS_PAIR_OF_THEM = f"pair_id / {PAIR_FACTOR} IN kept AND pair_id % {PAIR_FACTOR} IN kept"
ROWS = {
    **dict.fromkeys(("rigs", "rig_sensors", "cameras"), "TRUE"),  # unused ones do no harm
    "images": "image_id IN kept",
    "keypoints": "image_id IN kept",
    "frames": "frame_id IN (SELECT frame_id FROM whole.frame_data WHERE data_id IN kept)",
    "frame_data": "data_id IN kept",
    "matches": IS_PAIR_OF_THEM,
    "two_view_geometries": IS_PAIR_OF_THEM,
}
"""Which rows of each table are copied. Mappers read neither descriptors nor pose priors."""


def write_part(database: Path, names: Iterable[str], output: Path) -> Path:
    """Writes a database with the photos `names`, their cameras, keypoints, matches and verified pairs; returns its path.

    Nobody may write to `database` meanwhile.
    """
    pycolmap.Database.open(output).close()
    # Immutable: without locks and shared memory, which this SQLite and COLMAP's would disturb for each other in one process.
    source = f"{database.absolute().as_uri()}?immutable=1"
    with contextlib.closing(sqlite3.connect(output.absolute().as_uri(), uri=True)) as rows:
        rows.execute("ATTACH ? AS whole", (source,))
        rows.execute("CREATE TEMP TABLE kept (id INTEGER PRIMARY KEY)")
        find = "INSERT INTO kept SELECT image_id FROM whole.images WHERE name = ?"
        rows.executemany(find, [(name,) for name in sorted(names)])
        for table, condition in ROWS.items():
            columns = ", ".join(column[1] for column in rows.execute(f"PRAGMA main.table_info({table})"))
            rows.execute(f"INSERT INTO main.{table} ({columns}) SELECT {columns} FROM whole.{table} WHERE {condition}")
        rows.commit()
    return output
