"""The mark of a run in a COLMAP database: that a run wrote it, from what, and whether it was changed since.

The mark is SQLite's application id, four bytes of the header that COLMAP does not use. Two tables of our own, which COLMAP does
not read, hold the rest: `sfm_lightglue` a digest of all rows of COLMAP's tables and what they were written from,
`sfm_lightglue_rows` the stamp of each image and pair. They change in the same transaction as the rows.

The digest is a sum over the rows, so that it can follow added and deleted rows. A run gives the file a time of change whose
fractions of a second are taken from the digest. If the file still has them, it was not changed, and the rows need not be read.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sfm_lightglue.files import sha256_of

HEADER_BYTES = 100
"""SQLite's header counts, among other things, how often COLMAP has opened the file."""
PLACE = 68
"""Offset of the application id in the header. Source: https://www.sqlite.org/fileformat.html."""
MARK = b"sG"
"""The first half of the application id."""
MARK_ID = int.from_bytes(MARK + b"\0\2", "big")
"""The application id of a database with our tables. Databases before them have two bytes of the hash of the file instead."""
SQLITE_SUFFIXES = ("-journal", "-wal", "-shm")
"""SQLite keeps files with these suffixes beside an open database."""
SQLITE = b"SQLite format 3\0"

NOTES, STAMPS = "sfm_lightglue", "sfm_lightglue_rows"
"""Our tables."""
SCHEMA = (
    f"CREATE TABLE {NOTES} (key TEXT PRIMARY KEY NOT NULL, value) WITHOUT ROWID",
    f"CREATE TABLE {STAMPS} (id INTEGER PRIMARY KEY NOT NULL, stamp INTEGER NOT NULL)",
)
DIGEST_BITS = 128


# --- the digest of the rows ----------------------------------------------------------------------------------------------


def row_digest(table: str, row: Sequence[Any]) -> int:
    """A number of `DIGEST_BITS` bits for a row with all its columns. The digest of a database is the sum over its rows."""
    numbers = [len(cell) if isinstance(cell, bytes) else cell for cell in row]
    digest = hashlib.sha256(repr((table, numbers)).encode())
    for cell in row:
        if isinstance(cell, bytes):
            digest.update(cell)
    return int.from_bytes(digest.digest()[: DIGEST_BITS // 8], "big")


def rows_digest(connection: sqlite3.Connection) -> int:
    """The digest of all tables but ours and SQLite's. It reads the whole database."""
    tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    total = 0
    for table in tables:
        if table not in (NOTES, STAMPS) and not table.startswith("sqlite_"):
            quoted = table.replace('"', '""')
            total += sum(row_digest(table, row) for row in connection.execute(f'SELECT * FROM "{quoted}"'))
    return total % (1 << DIGEST_BITS)


def content_hash(path: Path) -> str:
    """Identifies the rows of a database, 32 hexadecimal digits: equal rows give equal digits.

    The whole database is read, unless a run wrote it and it was not changed since.
    """
    apply_log(path)
    with contextlib.closing(open_database(path)) as connection:
        if _has_signed_time(path, notes := read_notes(connection)):
            return str(notes["digest"])
        return f"{rows_digest(connection):032x}"


# --- notes ---------------------------------------------------------------------------------------------------------------


def open_database(path: Path) -> sqlite3.Connection:
    """Opens a database for reading. Nothing is written, not even SQLite's files beside it; a log there is not read.

    Raises: sqlite3.Error if it is no database.
    """
    return sqlite3.connect(f"{path.resolve().as_uri()}?immutable=1", uri=True)


def read_notes(connection: sqlite3.Connection) -> dict[str, Any]:
    """The content of our table of notes; empty if there is none. Raises: sqlite3.DatabaseError if it is no database."""
    known = connection.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?", (NOTES,)).fetchone()
    return dict(connection.execute(f"SELECT key, value FROM {NOTES}")) if known else {}


def write_notes(connection: sqlite3.Connection, notes: dict[str, Any]) -> None:
    """Writes our notes and the mark, in the open transaction. Call `sign_time` after the database was closed."""
    connection.executemany(f"INSERT OR REPLACE INTO {NOTES} VALUES (?, ?)", sorted(notes.items()))
    connection.execute(f"PRAGMA application_id = {MARK_ID}")


def sign_time(path: Path) -> None:
    """Gives a database a time of change that shows its digest: the last step after a change that a run made."""
    with contextlib.closing(open_database(path)) as connection:
        time_ns = int(time.time()) * 10**9 + _fraction_ns(read_notes(connection))
    os.utime(path, ns=(time_ns, time_ns))


def _has_signed_time(path: Path, notes: dict[str, Any]) -> bool:
    return bool(notes) and path.stat().st_mtime_ns % 10**9 == _fraction_ns(notes)


def _fraction_ns(notes: dict[str, Any]) -> int:
    """Fractions of a second for a digest, ns; a multiple of 100, as file systems of Windows store."""
    return int(notes["digest"], 16) % 10**7 * 100


@contextlib.contextmanager
def keeps_time(path: Path) -> Iterator[None]:
    """Gives a database its former time after a block that only reads it with COLMAP, which writes to the header of the file."""
    apply_log(path)  # what others left there is a change, and must not get the former time
    before = path.stat()
    try:
        yield
    finally:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


# --- whether it is ours --------------------------------------------------------------------------------------------------


def is_marked(path: Path) -> bool:
    """Whether a run wrote this database. It may have been changed since."""
    with path.open("rb") as file:
        header = file.read(HEADER_BYTES)
    return header.startswith(SQLITE) and header[PLACE : PLACE + len(MARK)] == MARK


def is_unchanged(path: Path) -> bool:
    """Whether a database has the mark of a run, and the content that this run wrote.

    Changes that a killed program left in SQLite's log beside the database (`-wal`) are written into the database first.
    """
    if not is_marked(path) or not apply_log(path):
        return False
    try:
        with contextlib.closing(open_database(path)) as connection:
            if not (notes := read_notes(connection)):
                return _has_former_mark(path)
            if _has_signed_time(path, notes):
                return True
            is_same = bool(f"{rows_digest(connection):032x}" == notes["digest"])
    except sqlite3.Error:
        return False
    if is_same:
        sign_time(path)
    return is_same


def _has_former_mark(path: Path) -> bool:
    """Whether the mark holds two bytes of the file's hash: so it was before there were notes."""
    with path.open("rb") as file:
        mark = file.read(HEADER_BYTES)[PLACE : PLACE + 4]
    return mark == MARK + bytes.fromhex(sha256_of(path, skip=HEADER_BYTES))[:2]


def apply_log(path: Path) -> bool:
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
