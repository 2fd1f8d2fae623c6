"""The mark of a run in a COLMAP database. It shows that a run wrote the database, and whether the database was changed since.

The mark is SQLite's application id, four bytes of the header that COLMAP does not use: two bytes that are always the same, and
two bytes of the hash of the content.
"""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

from sfm_lightglue.files import sha256_of

HEADER_BYTES = 100
"""SQLite's header counts, among other things, how often COLMAP has opened the file."""
PLACE = 68
"""Offset of the application id in the header. Source: https://www.sqlite.org/fileformat.html."""
MARK = b"sG"
"""The first half of the application id."""
SQLITE = b"SQLite format 3\0"


def content_hash(path: Path) -> str:
    """SHA-256 of a database without its header."""
    return sha256_of(path, skip=HEADER_BYTES)


def mark_database(path: Path) -> None:
    """Writes the mark into a database that no program has open."""
    mark = MARK + bytes.fromhex(content_hash(path))[:2]
    with path.open("r+b") as file:
        file.seek(PLACE)
        file.write(mark)


def is_marked(path: Path) -> bool:
    """Whether a run wrote this database. It may have been changed since."""
    with path.open("rb") as file:
        header = file.read(HEADER_BYTES)
    return header.startswith(SQLITE) and header[PLACE : PLACE + len(MARK)] == MARK


def is_unchanged(path: Path) -> bool:
    """Whether a database has the mark of a run, and the content that this run wrote.

    Changes that a killed program left in SQLite's log beside the database (`-wal`) are written into the database first.
    """
    if not _apply_log(path):
        return False
    with path.open("rb") as file:
        mark = file.read(HEADER_BYTES)[PLACE : PLACE + 4]
    return mark == MARK + bytes.fromhex(content_hash(path))[:2]


def _apply_log(path: Path) -> bool:
    """Lets SQLite write its log into a database, as it does whenever a program opens the database. Damaged logs do not count.

    False if that is not possible, for example because another program is writing.
    """
    logs = [path.with_name(f"{path.name}{suffix}") for suffix in ("-wal", "-journal")]
    if not any(log.is_file() and log.stat().st_size for log in logs):
        return True
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=1)) as connection:
            (is_busy, *_), *_ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            return not is_busy
    except sqlite3.Error:
        return False
