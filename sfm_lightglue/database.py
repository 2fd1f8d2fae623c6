"""The stage two-view geometries -> database: writes the COLMAP database `database.db`.

Reads `features.h5`, `matches.h5` and `verification.h5`. If the database of an earlier run holds the images as they are now, only
what is new or changed is written to it: cameras, images and pairs, in one transaction. Else it is written anew under a temporary
name. Images and cameras keep their ids, so that COLMAP can continue an old model. A database that no run has written is never
replaced, and one of ours that was changed since is kept under another name.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import logging
import os
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sfm_lightglue.cameras import Camera, CameraAssignment, choose_cameras
from sfm_lightglue.database_changes import Change, Content, find_change, stored_content, wanted_content
from sfm_lightglue.database_mark import NOTES, SQLITE_SUFFIXES, apply_log, is_marked, is_unchanged, read_notes, sign_time
from sfm_lightglue.database_rows import ImageIds, RowWriter, create_database, transaction
from sfm_lightglue.execution.executor import Executor
from sfm_lightglue.files import foreign_file, free_path, remove_stale, result_exists, written_whole
from sfm_lightglue.geometries.inputs import check_geometries, check_names, read_matches
from sfm_lightglue.geometries.lenses import with_lenses
from sfm_lightglue.geometries.stage import VerificationReport, verify_pairs
from sfm_lightglue.geometries.verification import VerificationOptions
from sfm_lightglue.orientation import colmap_keypoints
from sfm_lightglue.pose_priors import PosePrior, find_pose_priors
from sfm_lightglue.products import Features, Pair, sorted_pairs
from sfm_lightglue.refinement import find_refined
from sfm_lightglue.storage import GeometryNumbers, H5Reader
from sfm_lightglue.view_graph import calibrate

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DatabaseOptions:
    """How the cameras are chosen; configs/database holds the values."""

    intrinsics: str
    """`auto`, `exif`, `single`, `per_folder`, `per_image`, `poses`, a camera or a file, see `cameras.choose_cameras`."""
    camera_model: str
    """COLMAP's model of the cameras whose intrinsics are not given, such as SIMPLE_RADIAL; `auto`: it is found."""


@dataclass(frozen=True)
class DatabaseReport:
    """Numbers of the stage `database`."""

    num_images: int
    num_cameras: int
    num_positions: int
    """Images with a GPS position."""
    num_pairs: int
    num_verified_pairs: int
    cameras: list[str] = field(default_factory=list, kw_only=True)
    """A sentence about photos without a focal length in EXIF: whether they share a camera, and why."""


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
    keypoints: Path | str | None = None,
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
        cameras: the cameras that the pairs were verified with, see `cameras.choose_cameras` and `lenses.with_lenses`. Cameras in
            `cameras.unsure` get focal lengths from the pairs first, see `view_graph.calibrate`.
        names: the images to write; by default all images of `features`.
        pose_priors: positions and gravity by image name, see `pose_priors.find_pose_priors`.
        keypoints: file of refined keypoints, see `refinement.refine_keypoints`; None: the keypoints in `features`.

    Raises:
        KeyError: A pair has no matches or was not verified, or an image has no features.
        ValueError: A pair has an image that is not in `names`, or was verified or refined with other features, matches or
            cameras; or `output` exists and was not written by this function.
    """
    output, ordered = Path(output), sorted_pairs(pairs)
    check_output(output)
    _remove_stale(output)
    with H5Reader(features) as feature_reader, H5Reader(matches) as match_reader, H5Reader(geometries) as geometry_reader:
        images = sorted(feature_reader.names() if names is None else set(names))
        check_names(ordered, images, feature_reader)
        stamps = check_geometries(ordered, geometry_reader, feature_reader, match_reader, cameras.cameras)
        numbers = geometry_reader.geometry_numbers(ordered)
        stored = stored_content(output)  # before the ids are read: it applies what SQLite has left in its log
        cameras, notes = calibrate(cameras, geometries, ordered)
        ids = number_images(images, cameras, _read_ids(output))
        refined = {} if keypoints is None else find_refined(keypoints, ordered, stamps, images)
        source = _Source(feature_reader, match_reader, geometry_reader, cameras.cameras, pose_priors or {}, ids, refined)
        about = source.cameras_by_id(), source.about_images()
        content, order = wanted_content(geometry_reader.fingerprint, *about, ordered, stamps, ids)
        write = functools.partial(source.write, content=content, pairs=ordered, order=order, numbers=numbers)
        change = find_change(stored, content)
        if change is None:
            with _new_database(output) as temporary, transaction(temporary, is_new=True) as connection:
                write(RowWriter(connection), Change.everything(content))
            sign_time(output)
        elif change:
            with transaction(output, is_new=False) as connection:
                write(RowWriter(connection, int(read_notes(connection)["digest"], 16)), change)
            sign_time(output)
    num_positions = sum(prior.has_position for name, prior in (pose_priors or {}).items() if name in ids)
    num_cameras = len({cameras.groups[name] for name in images})
    return DatabaseReport(len(images), num_cameras, num_positions, len(ordered), numbers.num_verified, cameras=notes)


@dataclass(frozen=True)
class _Source:
    """What the rows of a database are written from."""

    features: H5Reader
    matches: H5Reader
    geometries: H5Reader
    cameras: Mapping[str, Camera]
    priors: Mapping[str, PosePrior]
    ids: Mapping[str, ImageIds]
    """Ids by the names of the images."""
    refined: Mapping[str, Features]
    """Features with refined keypoints by name, for the images that have some."""

    def cameras_by_id(self) -> dict[int, Camera]:
        """Each camera, in the order of the first image that has it."""
        found: dict[int, Camera] = {}
        for name, ids in self.ids.items():
            found.setdefault(ids.camera, self.cameras[name])
        return found

    def about_images(self) -> dict[ImageIds, Any]:
        """Everything that the rows of each image are written from, without the intrinsics of its camera."""
        names = list(self.ids)
        stamps = self.features.stamps(names)
        return {
            self.ids[name]: (name, stamp, self.priors.get(name), *self._about_refined(name))
            for name, stamp in zip(names, stamps, strict=True)
        }

    def _about_refined(self, name: str) -> tuple[str, ...]:
        """A hash of the refined keypoints of an image; empty if it has none, as databases of earlier versions have it."""
        return (hashlib.sha256(self.refined[name].keypoints.tobytes()).hexdigest(),) if name in self.refined else ()

    def write(
        self,
        writer: RowWriter,
        change: Change,
        *,
        content: Content,
        pairs: Sequence[Pair],
        order: np.ndarray,
        numbers: GeometryNumbers,
    ) -> None:
        """Writes the rows of a change, with their stamps and notes. `order` are the positions in `pairs` of `content.pairs`."""
        cameras, new = self.cameras_by_id(), set(change.images)
        for camera_id in change.cameras:
            writer.write_camera(camera_id, cameras[camera_id])
        for name, ids in self.ids.items():
            if ids.image not in new:
                continue
            features = self.refined.get(name) or self.features.features(name, with_descriptors=False)
            writer.add_image(name, ids, colmap_keypoints(features))
            if name in self.priors:
                writer.add_pose_prior(ids, self.priors[name])
        writer.delete_pairs(change.deleted.tolist())
        for place in order[change.pairs].tolist():
            pair, geometry = pairs[place], numbers.geometry(place)
            assert geometry is not None, "all pairs were verified"
            if geometry.is_verified:
                geometry = self.geometries.with_arrays(geometry, pair.name0, pair.name1)
            writer.add_pair(self.ids[pair.name0].image, self.ids[pair.name1].image, read_matches(self.matches, pair), geometry)
        writer.write_stamps([(-camera_id, content.cameras[camera_id]) for camera_id in change.cameras])
        writer.write_stamps([(image_id, content.images[image_id]) for image_id in change.images])
        writer.write_stamps(zip(content.pairs[change.pairs].tolist(), content.stamps[change.pairs].tolist(), strict=True))
        writer.write_notes({"source": content.source, "verified": numbers.num_verified, "inliers": numbers.num_inliers})


def is_outdated(database: Path | str, geometries: Path | str, pairs: Iterable[Pair]) -> bool:
    """True if a database does not hold the verified pairs of a file of geometries: a stage before it has run again since.

    Compares numbers of pairs and of verified matches. False for a file that is not a COLMAP database.
    """
    stored = _count_verified(Path(database))
    if stored is None:
        return False
    with H5Reader(geometries) as reader:
        numbers = reader.geometry_numbers(sorted_pairs(pairs))
    return not numbers.found.all() or stored != (numbers.num_verified, numbers.num_inliers)


def _count_verified(database: Path) -> tuple[int, int] | None:
    """Number of verified pairs in a database, and of their matches together; None for any other file."""
    if is_marked(database):
        apply_log(database)
    if notes := dict(_query(database, f"SELECT key, value FROM {NOTES}")):
        return notes["verified"], notes["inliers"]
    counts = _query(database, "SELECT COUNT(*), COALESCE(SUM(rows), 0) FROM two_view_geometries WHERE rows > 0")
    return counts[0] if counts else None


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
    verified = verify_pairs(
        *(features, matches, pairs, geometries, options, cameras.cameras),
        undecided=cameras.undecided,
        names=names,
        executor=executor,
    )
    with H5Reader(geometries) as reader:
        cameras = with_lenses(cameras, reader)
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
def _new_database(path: Path) -> Iterator[Path]:
    """Path of an empty database. It becomes `path` when the block ends, see `files.written_whole`."""
    with written_whole(path) as temporary:
        create_database(temporary)
        yield temporary
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
