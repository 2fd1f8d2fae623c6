"""Rows of a COLMAP database: what COLMAP itself would write for cameras, images, keypoints, pose priors, matches and geometries.

COLMAP creates the tables, SQLite of Python fills them: all changes of a run, and the notes in `database_mark.py`, are one
transaction. Keypoints are in COLMAP's pixels: the centre of the top-left pixel is at (0.5, 0.5).
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pycolmap

from sfm_lightglue.cameras import Camera
from sfm_lightglue.colmap import colmap_log
from sfm_lightglue.database_mark import DIGEST_BITS, SCHEMA, STAMPS, row_digest, write_notes
from sfm_lightglue.pose_priors import PosePrior
from sfm_lightglue.products import Matches, TwoViewGeometry

PAIR_FACTOR = 2147483647
"""COLMAP's id of a pair is this number times the smaller id of its images, plus the larger id."""
CAMERA_SENSOR = 0
"""COLMAP's number of the kind of sensor that a camera is."""
PAGE_BYTES = 16384
"""Size of SQLite's pages. A pair has some kB: pages of 4096 bytes, SQLite's default, would hold one each, and waste the rest."""


class ImageIds(NamedTuple):
    """Ids of an image and of its camera in the database. The frame of an image and the rig of a camera have the same ids."""

    image: int
    camera: int


def pair_ids(ids0: np.ndarray, ids1: np.ndarray) -> np.ndarray:
    """int64 (n,): COLMAP's ids of pairs of images, from the ids of both images (n,)."""
    ids0, ids1 = np.asarray(ids0, np.int64), np.asarray(ids1, np.int64)
    numbers: np.ndarray = np.minimum(ids0, ids1) * PAIR_FACTOR + np.maximum(ids0, ids1)
    return numbers


def create_database(path: Path) -> None:
    """An empty COLMAP database with our tables."""
    with colmap_log(None):
        pycolmap.Database.open(path).close()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in ("PRAGMA journal_mode = DELETE", f"PRAGMA page_size = {PAGE_BYTES}", "VACUUM", *SCHEMA):
            connection.execute(statement)


class RowWriter:
    """Adds rows to and deletes rows from a COLMAP database with our tables, in the open transaction.

    `digest` follows the rows, see `database_mark.row_digest`.
    """

    def __init__(self, connection: sqlite3.Connection, digest: int = 0) -> None:
        self.connection, self.digest = connection, digest
        self._columns: dict[str, list[str]] = {}

    def write_camera(self, camera_id: int, camera: Camera) -> None:
        """Adds a camera and the rig that has only this camera, with the same id; replaces the camera if it is there."""
        known = self.connection.execute("SELECT * FROM cameras WHERE camera_id = ?", (camera_id,)).fetchone()
        if known is not None:
            self._count("cameras", known, -1)
            self.connection.execute("DELETE FROM cameras WHERE camera_id = ?", (camera_id,))
            self.connection.execute(f"DELETE FROM {STAMPS} WHERE id = ?", (-camera_id,))
        record = camera.to_colmap()
        self._insert(
            "cameras",
            camera_id=camera_id,
            model=int(record.model.value),
            width=record.width,
            height=record.height,
            params=_blob(record.params, np.float64),
            prior_focal_length=int(record.has_prior_focal_length),
        )
        if known is None:
            self._insert("rigs", rig_id=camera_id, ref_sensor_id=camera_id, ref_sensor_type=CAMERA_SENSOR)

    def add_image(self, name: str, ids: ImageIds, keypoints: np.ndarray) -> None:
        """Adds an image, the frame that has only this image, with the same id, and keypoints (n, 2), COLMAP's pixels."""
        self._insert("images", image_id=ids.image, name=name, camera_id=ids.camera)
        self._insert("frames", frame_id=ids.image, rig_id=ids.camera)
        self._insert("frame_data", frame_id=ids.image, data_id=ids.image, sensor_id=ids.camera, sensor_type=CAMERA_SENSOR)
        rows, cols = keypoints.shape
        self._insert("keypoints", image_id=ids.image, rows=rows, cols=cols, data=_blob(keypoints, np.float32))

    def add_pose_prior(self, ids: ImageIds, prior: PosePrior) -> None:
        """Adds what is known about the pose of an image, if anything is. The row has the id of the image."""
        if (record := prior.to_colmap()) is None:
            return
        self._insert(
            "pose_priors",
            pose_prior_id=ids.image,
            corr_data_id=ids.image,
            corr_sensor_id=ids.camera,
            corr_sensor_type=CAMERA_SENSOR,
            position=_blob(record.position, np.float64),
            position_covariance=_blob(record.position_covariance, np.float64),
            gravity=_blob(record.gravity, np.float64),
            coordinate_system=int(record.coordinate_system.value),
        )

    def add_pair(self, image_id0: int, image_id1: int, matches: Matches, geometry: TwoViewGeometry) -> None:
        """Adds the matches of a pair, and its geometry if it is verified. COLMAP keeps the image with the smaller id first."""
        (number,) = pair_ids(np.array([image_id0]), np.array([image_id1])).tolist()
        step = 1 if image_id0 < image_id1 else -1
        indices = matches.indices[:, ::step]
        self._insert("matches", pair_id=number, rows=len(indices), cols=2, data=_blob(indices, np.uint32))
        if not geometry.is_verified:
            return
        record = geometry_to_colmap(geometry)
        if step < 0:
            record.invert()
        inliers = record.inlier_matches
        matrices = {key: None if (matrix := getattr(record, key)) is None else _blob(matrix, np.float64) for key in "FEH"}
        self._insert(
            "two_view_geometries",
            **{"pair_id": number, "rows": len(inliers), "cols": 2, "data": _blob(inliers, np.uint32)},
            **{"config": int(pycolmap.TwoViewGeometryConfiguration(record.config).value), **matrices},
        )

    def delete_pairs(self, numbers: Iterable[int]) -> None:
        """Deletes the matches, geometries and stamps of pairs, given by COLMAP's ids."""
        for number in numbers:
            for table in ("matches", "two_view_geometries"):
                for row in self.connection.execute(f"SELECT * FROM {table} WHERE pair_id = ?", (number,)):
                    self._count(table, row, -1)
                self.connection.execute(f"DELETE FROM {table} WHERE pair_id = ?", (number,))
            self.connection.execute(f"DELETE FROM {STAMPS} WHERE id = ?", (number,))

    def write_stamps(self, stamps: Iterable[tuple[int, int]]) -> None:
        """Notes what rows were written from, in 64 bits: by the ids of images, of pairs (larger), of cameras (with a minus)."""
        self.connection.executemany(f"INSERT INTO {STAMPS} VALUES (?, ?)", stamps)

    def write_notes(self, notes: Mapping[str, Any]) -> None:
        """Writes our notes, with the digest, and the mark."""
        write_notes(self.connection, {**notes, "digest": f"{self.digest:032x}"})

    def _insert(self, table: str, **cells: Any) -> None:
        """Inserts a row; columns without a value are NULL."""
        if table not in self._columns:
            self._columns[table] = [name for _, name, *_ in self.connection.execute(f"PRAGMA table_info({table})")]
        row = [cells.pop(name, None) for name in self._columns[table]]
        assert not cells, f"COLMAP's table {table} has no columns {sorted(cells)}"
        self.connection.execute(f"INSERT INTO {table} VALUES ({','.join('?' * len(row))})", row)
        self._count(table, row, 1)

    def _count(self, table: str, row: Iterable[Any], sign: int) -> None:
        self.digest = (self.digest + sign * row_digest(table, list(row))) % (1 << DIGEST_BITS)


@contextlib.contextmanager
def transaction(path: Path, *, is_new: bool) -> Iterator[sqlite3.Connection]:
    """A connection to a database in one transaction, which is undone if the block raises or the process is killed.

    With `is_new=True` there is no way back, which is faster: for a file that is deleted after an error.
    """
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for pragma in ("journal_mode = OFF", "synchronous = OFF") if is_new else ("synchronous = FULL",):
            connection.execute(f"PRAGMA {pragma}")
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")
        connection.execute("PRAGMA journal_mode = WAL")  # as COLMAP leaves it


def geometry_to_colmap(geometry: TwoViewGeometry) -> pycolmap.TwoViewGeometry:
    """COLMAP's record of a two-view geometry."""
    record = pycolmap.TwoViewGeometry()
    record.config = pycolmap.TwoViewGeometryConfiguration.__members__[geometry.configuration]
    record.inlier_matches = np.ascontiguousarray(geometry.inlier_matches, np.uint32)
    for name, matrix in (("E", geometry.E), ("F", geometry.F), ("H", geometry.H)):
        if matrix is not None:
            setattr(record, name, matrix)
    return record


def _blob(values: Any, dtype: Any) -> bytes | None:
    """An array as COLMAP stores it: row by row; NULL if it is empty."""
    return np.ascontiguousarray(values, dtype).tobytes() or None
