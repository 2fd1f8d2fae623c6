"""The stage two-view geometries -> database: writes the COLMAP database `database.db`.

Reads `features.h5`, `matches.h5` and `verification.h5`. The database is written anew each time, in one transaction and under a
temporary name. Its keypoints are in COLMAP's pixels: the centre of the top-left pixel is at (0.5, 0.5).
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pycolmap

from sfm_lightglue.cameras import Camera, CameraAssignment, choose_cameras
from sfm_lightglue.colmap import colmap_log
from sfm_lightglue.execution.executor import Executor
from sfm_lightglue.files import remove_stale, written_whole
from sfm_lightglue.geometries.stage import VerificationReport, check_geometries, check_names, read_matches, verify_pairs
from sfm_lightglue.geometries.verification import VerificationOptions
from sfm_lightglue.orientation import colmap_keypoints
from sfm_lightglue.products import Pair, TwoViewGeometry
from sfm_lightglue.storage import H5Reader

logger = logging.getLogger(__name__)

SQLITE_SUFFIXES = ("-journal", "-wal", "-shm")
"""SQLite keeps files with these suffixes beside an open database."""


@dataclass(frozen=True)
class DatabaseOptions:
    """How the cameras are chosen; configs/database holds the values."""

    intrinsics: str
    """`exif`, `single`, `per_folder`, `per_image`, `poses`, a camera or a file, see `cameras.choose_cameras`."""
    camera_model: str
    """COLMAP's model of the cameras whose intrinsics are not given, such as SIMPLE_RADIAL."""


@dataclass(frozen=True)
class DatabaseReport:
    """Numbers of the stage `database`."""

    num_images: int
    num_cameras: int
    num_pairs: int
    num_verified_pairs: int


@dataclass(frozen=True)
class BuildReport(VerificationReport, DatabaseReport):
    """Numbers of the stages `verify` and `database` together."""


def write_database(
    features: Path | str,
    matches: Path | str,
    geometries: Path | str,
    pairs: Iterable[Pair],
    output: Path | str,
    cameras: CameraAssignment,
    *,
    names: Iterable[str] | None = None,
) -> DatabaseReport:
    """Writes the COLMAP database `output`: images, cameras, keypoints, matches of all pairs, geometries of the verified pairs.

    Equal input gives equal rows: images are numbered from 1 in the order of their names. An existing database is replaced.

    Args:
        features: file of features.
        matches: file of matches; every pair must be in it.
        geometries: file of two-view geometries, see `geometries.stage.verify_pairs`; every pair must be in it.
        pairs: the pairs to write.
        output: the database to write.
        cameras: the cameras that the pairs were verified with, see `cameras.choose_cameras`.
        names: the images to write; by default all images of `features`.

    Raises:
        KeyError: A pair has no matches or was not verified, or an image has no features.
        ValueError: A pair has an image that is not in `names`, or was verified with other features, matches or cameras.
    """
    output, ordered = Path(output), sorted(set(pairs))
    with H5Reader(features) as feature_reader, H5Reader(matches) as match_reader, H5Reader(geometries) as geometry_reader:
        images = sorted(feature_reader.names() if names is None else set(names))
        check_names(ordered, images, feature_reader)
        check_geometries(ordered, geometry_reader, feature_reader, match_reader, cameras.cameras)
        with _new_database(output) as database:
            image_ids = _write_images(database, images, cameras, feature_reader)
            num_verified = _write_pairs(database, ordered, image_ids, match_reader, geometry_reader)
    num_cameras = len({cameras.groups[name] for name in images})
    return DatabaseReport(len(images), num_cameras, len(ordered), num_verified)


def is_outdated(database: Path | str, geometries: Path | str, pairs: Iterable[Pair]) -> bool:
    """True if a database does not hold the verified pairs of a file of geometries: a stage before it has run again since.

    Compares numbers of pairs and of verified matches. False for a file that is not a COLMAP database.
    """
    query = "SELECT COUNT(*), COALESCE(SUM(rows), 0) FROM two_view_geometries WHERE rows > 0"
    try:
        with contextlib.closing(sqlite3.connect(f"{Path(database).resolve().as_uri()}?mode=ro", uri=True)) as connection:
            stored = connection.execute(query).fetchone()
        with H5Reader(geometries) as reader:
            numbers = [reader.num_inliers(pair.name0, pair.name1) for pair in set(pairs)]
    except sqlite3.Error:
        return False
    except KeyError:  # a pair was not verified yet
        return True
    return (sum(number > 0 for number in numbers), sum(numbers)) != tuple(stored)


def build_database(
    images: Path | str,
    features: Path | str,
    matches: Path | str,
    pairs: Iterable[Pair],
    output: Path | str,
    options: VerificationOptions,
    *,
    intrinsics: str,
    camera_model: str,
    known_cameras: Mapping[str, Camera] | None = None,
    names: Iterable[str] | None = None,
    executor: Executor | None = None,
) -> BuildReport:
    """Verifies all pairs and writes the COLMAP database `output`; the geometries are in `verification.h5` beside it.

    `images` is the folder of the photos. See `cameras.choose_cameras` for `intrinsics`, `camera_model` and `known_cameras`,
    `geometries.stage.verify_pairs` and `write_database` for the rest and for the errors that are raised.
    """
    pairs, geometries = list(pairs), Path(output).with_name("verification.h5")
    with H5Reader(features) as reader:
        names = sorted(reader.names() if names is None else set(names))
        check_names([], names, reader)
        sizes = {name: reader.image_size(name) for name in names}
    cameras = choose_cameras(Path(images), sizes, intrinsics, camera_model, known_cameras or {})
    verified = verify_pairs(features, matches, pairs, geometries, options, cameras.cameras, names=names, executor=executor)
    written = write_database(features, matches, geometries, pairs, output, cameras, names=names)
    return BuildReport(**{**asdict(verified), **asdict(written)})


@contextlib.contextmanager
def _new_database(path: Path) -> Iterator[pycolmap.Database]:
    """An empty database in one transaction. It becomes `path` when the block ends, see `files.written_whole`."""
    _remove_stale(path)
    with written_whole(path) as temporary, colmap_log(None):
        with pycolmap.Database.open(temporary) as database, pycolmap.DatabaseTransaction(database):
            yield database
        for suffix in SQLITE_SUFFIXES:  # a killed process may have left them; SQLite would apply them to the new database
            path.with_name(f"{path.name}{suffix}").unlink(missing_ok=True)


def _remove_stale(path: Path) -> None:
    """Deletes the temporary databases that killed processes left beside `path`, and SQLite's files beside them."""
    remove_stale(path)
    for suffix in SQLITE_SUFFIXES:
        for stale in path.parent.glob(f"*.tmp{suffix}"):
            if stale.name.startswith(f"{path.name}."):
                stale.unlink(missing_ok=True)


def _write_images(
    database: pycolmap.Database, names: Iterable[str], cameras: CameraAssignment, features: H5Reader
) -> dict[str, int]:
    """Writes cameras, rigs, frames, images and keypoints; returns the id of each image."""
    camera_ids = cameras.camera_ids(names)
    image_ids: dict[str, int] = {}
    rig_ids: dict[int, int] = {}
    for name, camera_id in camera_ids.items():
        if camera_id not in rig_ids:
            rig_ids[camera_id] = _write_camera(database, cameras.cameras[name], camera_id)
        image_ids[name] = _write_image(database, name, camera_id, rig_ids[camera_id])
        keypoints = colmap_keypoints(features.features(name, with_descriptors=False))
        database.write_keypoints(image_ids[name], keypoints.astype(np.float32))
    return image_ids


def _write_camera(database: pycolmap.Database, camera: Camera, camera_id: int) -> int:
    """Writes a camera and the rig that has only this camera; returns the id of the rig."""
    row = camera.to_colmap()
    row.camera_id = camera_id
    database.write_camera(row, use_camera_id=True)
    rig = pycolmap.Rig()
    rig.add_ref_sensor(row.sensor_id)
    return database.write_rig(rig)


def _write_image(database: pycolmap.Database, name: str, camera_id: int, rig_id: int) -> int:
    """Writes an image and the frame that has only this image; returns the id of the image."""
    image = pycolmap.Image(name=name, camera_id=camera_id)
    image.image_id = database.write_image(image)
    frame = pycolmap.Frame()
    frame.rig_id = rig_id
    frame.add_data_id(image.data_id)
    database.write_frame(frame)
    return image.image_id


def _write_pairs(
    database: pycolmap.Database, pairs: Iterable[Pair], image_ids: Mapping[str, int], matches: H5Reader, geometries: H5Reader
) -> int:
    """Writes the matches of all pairs and the geometries of the verified ones; returns the number of verified pairs."""
    num_verified = 0
    for pair in pairs:
        ids = image_ids[pair.name0], image_ids[pair.name1]
        database.write_matches(*ids, read_matches(matches, pair).indices.astype(np.uint32))
        geometry = geometries.geometry(pair.name0, pair.name1)
        if geometry.is_verified:
            database.write_two_view_geometry(*ids, geometry_to_colmap(geometry))
            num_verified += 1
    return num_verified


def geometry_to_colmap(geometry: TwoViewGeometry) -> pycolmap.TwoViewGeometry:
    """COLMAP's record of a two-view geometry."""
    record = pycolmap.TwoViewGeometry()
    record.config = pycolmap.TwoViewGeometryConfiguration.__members__[geometry.configuration]
    record.inlier_matches = np.ascontiguousarray(geometry.inlier_matches, np.uint32)
    for name, matrix in (("E", geometry.E), ("F", geometry.F), ("H", geometry.H)):
        if matrix is not None:
            setattr(record, name, matrix)
    return record
