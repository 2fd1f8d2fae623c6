"""The stage two-view geometries -> database: writes the COLMAP database `database.db`.

Reads `features.h5`, `matches.h5` and `verification.h5`. The database is written anew each time, in one transaction and under a
temporary name. Images and cameras that were in the old one keep their ids, so that COLMAP can continue an old model. A database
that no run has written is never replaced, and one of ours that was changed since is kept under another name. Keypoints are in
COLMAP's pixels: the centre of the top-left pixel is at (0.5, 0.5).
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pycolmap

from sfm_lightglue.cameras import Camera, CameraAssignment, choose_cameras
from sfm_lightglue.colmap import colmap_log
from sfm_lightglue.database_mark import SQLITE_SUFFIXES, is_marked, is_unchanged, mark_database
from sfm_lightglue.execution.executor import Executor
from sfm_lightglue.files import foreign_file, free_path, remove_stale, result_exists, written_whole
from sfm_lightglue.geometries.stage import VerificationReport, check_geometries, check_names, read_matches, verify_pairs
from sfm_lightglue.geometries.verification import VerificationOptions
from sfm_lightglue.orientation import colmap_keypoints
from sfm_lightglue.pose_priors import PosePrior, find_pose_priors
from sfm_lightglue.products import Pair, TwoViewGeometry
from sfm_lightglue.storage import H5Reader

logger = logging.getLogger(__name__)


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
    num_positions: int
    """Images with a GPS position."""
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
    pose_priors: Mapping[str, PosePrior] | None = None,
) -> DatabaseReport:
    """Writes the COLMAP database `output`: images, cameras, keypoints, matches of all pairs, geometries of the verified pairs.

    Equal input gives equal rows: images are numbered from 1 in the order of their names. The database of an earlier run is
    replaced; images and cameras that are in both keep their ids, and new ones are numbered after the largest id. A database that
    another program has changed since, or that version 0.10 wrote, is kept as `NAME.kept-1.db`.

    Args:
        features: file of features.
        matches: file of matches; every pair must be in it.
        geometries: file of two-view geometries, see `geometries.stage.verify_pairs`; every pair must be in it.
        pairs: the pairs to write.
        output: the database to write.
        cameras: the cameras that the pairs were verified with, see `cameras.choose_cameras`.
        names: the images to write; by default all images of `features`.
        pose_priors: positions and gravity by image name, see `pose_priors.find_pose_priors`.

    Raises:
        KeyError: A pair has no matches or was not verified, or an image has no features.
        ValueError: A pair has an image that is not in `names`, or was verified with other features, matches or cameras; or
            `output` exists and was not written by this function.
    """
    output, ordered = Path(output), sorted(set(pairs))
    check_output(output)
    with H5Reader(features) as feature_reader, H5Reader(matches) as match_reader, H5Reader(geometries) as geometry_reader:
        images = sorted(feature_reader.names() if names is None else set(names))
        check_names(ordered, images, feature_reader)
        check_geometries(ordered, geometry_reader, feature_reader, match_reader, cameras.cameras)
        ids = number_images(images, cameras, _read_ids(output))
        with _new_database(output) as database:
            image_ids = _write_images(database, ids, cameras, feature_reader)
            num_positions = _write_pose_priors(database, image_ids, pose_priors or {})
            num_verified = _write_pairs(database, ordered, image_ids, match_reader, geometry_reader)
    num_cameras = len({cameras.groups[name] for name in images})
    return DatabaseReport(len(images), num_cameras, num_positions, len(ordered), num_verified)


def is_outdated(database: Path | str, geometries: Path | str, pairs: Iterable[Pair]) -> bool:
    """True if a database does not hold the verified pairs of a file of geometries: a stage before it has run again since.

    Compares numbers of pairs and of verified matches. False for a file that is not a COLMAP database.
    """
    stored = _query(Path(database), "SELECT COUNT(*), COALESCE(SUM(rows), 0) FROM two_view_geometries WHERE rows > 0")
    try:
        with H5Reader(geometries) as reader:
            numbers = [reader.num_inliers(pair.name0, pair.name1) for pair in set(pairs)]
    except KeyError:  # a pair was not verified yet
        return bool(stored)
    return bool(stored) and stored[0] != (sum(number > 0 for number in numbers), sum(numbers))


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
    positions: Path | str | None = None,
    executor: Executor | None = None,
) -> BuildReport:
    """Verifies all pairs and writes the COLMAP database `output`; the geometries are in `verification.h5` beside it.

    `images` is the folder of the photos; `positions` is a file that replaces their positions in EXIF. See
    `cameras.choose_cameras` for `intrinsics`, `camera_model` and `known_cameras`, `geometries.stage.verify_pairs` and
    `write_database` for the rest and for the errors that are raised.
    """
    pairs, geometries = list(pairs), Path(output).with_name("verification.h5")
    check_output(output)
    with H5Reader(features) as reader:
        names = sorted(reader.names() if names is None else set(names))
        check_names([], names, reader)
        sizes = {name: reader.image_size(name) for name in names}
    cameras = choose_cameras(Path(images), sizes, intrinsics, camera_model, known_cameras or {})
    verified = verify_pairs(features, matches, pairs, geometries, options, cameras.cameras, names=names, executor=executor)
    priors = find_pose_priors(images, names, positions)
    written = write_database(features, matches, geometries, pairs, output, cameras, names=names, pose_priors=priors)
    return BuildReport(**{**asdict(verified), **asdict(written)})


def check_output(database: Path | str) -> None:
    """Raises: ValueError if there is a database that no run has written, see `files.foreign_file`.

    Databases of version 0.10 have no mark. They are recognised by their images, with as many keypoints as in `features.h5` beside
    them.
    """
    database = Path(database)
    journals = [database.with_name(f"{database.name}{suffix}") for suffix in SQLITE_SUFFIXES]
    if not os.path.lexists(database):
        for journal in journals:
            if journal.exists():
                raise foreign_file(journal)
    elif not database.is_file() or not (is_marked(database) or _is_from_version_0_10(database)):
        raise foreign_file(database)


def _is_from_version_0_10(database: Path) -> bool:
    stored = dict(_query(database, "SELECT name, COALESCE(rows, 0) FROM images LEFT JOIN keypoints USING (image_id)"))
    features = database.with_name("features.h5")
    if not stored or not result_exists(features):
        return False
    try:
        with H5Reader(features) as reader:
            counts = {name: reader.num_keypoints(name) for name in stored if reader.has(name)}
    except (KeyError, ValueError):
        return False
    return 2 * len(counts) >= len(stored) and all(stored[name] == count for name, count in counts.items())


def _query(database: Path, query: str) -> list[Any]:
    """Rows of a query to a COLMAP database; none for any other file. Nothing is written, not even SQLite's files beside it."""
    try:
        with contextlib.closing(sqlite3.connect(f"{database.resolve().as_uri()}?immutable=1", uri=True)) as connection:
            return connection.execute(query).fetchall()
    except sqlite3.Error:
        return []


class ImageIds(NamedTuple):
    """Ids of an image and of its camera in the database. The frame of an image and the rig of a camera have the same ids."""

    image: int
    camera: int


def number_images(names: Iterable[str], cameras: CameraAssignment, known: Mapping[str, ImageIds]) -> dict[str, ImageIds]:
    """Ids of each image, in the order of `names`: those of `known`, and new ones after the largest of them.

    A camera keeps the id that most of its images had, unless another camera with more of them has it. If none of the images is
    known, all are numbered from 1.
    """
    names = list(names)
    known = known if any(name in known for name in names) else {}
    next_image = itertools.count(max((ids.image for ids in known.values()), default=0) + 1)
    next_camera = itertools.count(max((ids.camera for ids in known.values()), default=0) + 1)
    numbers = cameras.camera_ids(names)  # each camera by the number of its group
    votes = Counter((numbers[name], known[name].camera) for name in names if name in known)
    kept: dict[int, int] = {}
    for (number, camera_id), _ in sorted(votes.items(), key=lambda vote: (-vote[1], vote[0])):
        if number not in kept and camera_id not in kept.values():
            kept[number] = camera_id
    for number in dict.fromkeys(numbers.values()):
        if number not in kept:
            kept[number] = next(next_camera)
    return {name: ImageIds(known[name].image if name in known else next(next_image), kept[numbers[name]]) for name in names}


def _read_ids(database: Path) -> dict[str, ImageIds]:
    """Ids of the images in the database of an earlier run; empty if there is none."""
    rows = _query(database, "SELECT name, image_id, camera_id FROM images") if database.exists() else []
    return {name: ImageIds(image_id, camera_id) for name, image_id, camera_id in rows}


@contextlib.contextmanager
def _new_database(path: Path) -> Iterator[pycolmap.Database]:
    """An empty database in one transaction. It becomes `path` when the block ends, see `files.written_whole`."""
    _remove_stale(path)
    with written_whole(path) as temporary, colmap_log(None):
        with pycolmap.Database.open(temporary) as database, pycolmap.DatabaseTransaction(database):
            yield database
        mark_database(temporary)
        if path.exists() and not is_unchanged(path):
            _keep_changed(path)
        for suffix in SQLITE_SUFFIXES:  # a killed process may have left them; SQLite would apply them to the new database
            path.with_name(f"{path.name}{suffix}").unlink(missing_ok=True)


def _keep_changed(path: Path) -> None:
    """Renames a database that another program or version 0.10 has written to, and SQLite's files beside it."""
    kept = free_path(path, "kept")
    for suffix in ("", *SQLITE_SUFFIXES):
        if (beside := path.with_name(f"{path.name}{suffix}")).exists():
            beside.rename(kept.with_name(f"{kept.name}{suffix}"))
    logger.warning("%s was changed since a run wrote it, or is from version 0.10: it is kept as %s", path, kept.name)


def _remove_stale(path: Path) -> None:
    """Deletes the temporary databases that killed processes left beside `path`, and SQLite's files beside them."""
    for suffix in ("", *SQLITE_SUFFIXES):
        remove_stale(path, suffix)


def _write_images(
    database: pycolmap.Database, ids: Mapping[str, ImageIds], cameras: CameraAssignment, features: H5Reader
) -> dict[str, int]:
    """Writes cameras, rigs, frames, images and keypoints; returns the id of each image."""
    written: set[int] = set()
    for name, (image_id, camera_id) in ids.items():
        if camera_id not in written:
            _write_camera(database, cameras.cameras[name], camera_id)
            written.add(camera_id)
        _write_image(database, name, image_id, camera_id)
        keypoints = colmap_keypoints(features.features(name, with_descriptors=False))
        database.write_keypoints(image_id, keypoints.astype(np.float32))
    return {name: image_id for name, (image_id, _) in ids.items()}


def _write_camera(database: pycolmap.Database, camera: Camera, camera_id: int) -> None:
    """Writes a camera and the rig that has only this camera, with the same id."""
    row = camera.to_colmap()
    row.camera_id = camera_id
    database.write_camera(row, use_camera_id=True)
    rig = pycolmap.Rig(rig_id=camera_id)
    rig.add_ref_sensor(row.sensor_id)
    database.write_rig(rig, use_rig_id=True)


def _write_image(database: pycolmap.Database, name: str, image_id: int, camera_id: int) -> None:
    """Writes an image and the frame that has only this image, with the same id."""
    image = pycolmap.Image(name=name, camera_id=camera_id, image_id=image_id)
    database.write_image(image, use_image_id=True)
    frame = pycolmap.Frame(frame_id=image_id)
    frame.rig_id = camera_id
    frame.add_data_id(image.data_id)
    database.write_frame(frame, use_frame_id=True)


def _write_pose_priors(database: pycolmap.Database, image_ids: Mapping[str, int], priors: Mapping[str, PosePrior]) -> int:
    """Writes what is known about the poses of the images; returns the number of images with a position."""
    num_positions = 0
    for name, image_id in image_ids.items():
        row = priors[name].to_colmap() if name in priors else None
        if row is not None:
            row.corr_data_id = database.read_image(image_id).data_id
            database.write_pose_prior(row)
            num_positions += row.has_position()
    return num_positions


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
