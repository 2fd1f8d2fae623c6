"""The stage matches -> database: verifies every pair and writes `database.db`.

Verified pairs are kept in `verification.h5`, so that an interrupted or extended run verifies only what is missing. The
database itself is written anew in one transaction under a temporary name. Only here do keypoints take COLMAP's pixel origin.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pycolmap

from sfm_lightglue import __version__
from sfm_lightglue.cameras import Camera, choose_cameras, unique_cameras
from sfm_lightglue.colmap import colmap_log
from sfm_lightglue.execution.devices import num_cores
from sfm_lightglue.execution.progress import progress_bar
from sfm_lightglue.execution.threads import run_jobs
from sfm_lightglue.geometries.verification import (
    CONFIGURATIONS,
    NOT_VERIFIED,
    VerificationOptions,
    geometry_from_item,
    verify_matches,
)
from sfm_lightglue.products import Matches, Pair
from sfm_lightglue.storage import GroupData, H5Reader, ShardStore, match_key

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DatabaseReport:
    """What the stage did."""

    num_images: int
    num_cameras: int
    num_pairs: int
    num_verified_pairs: int
    num_inliers: int
    """Verified matches over all pairs."""
    configurations: dict[str, int]
    """COLMAP's name of the two-view geometry -> number of pairs; DEGENERATE pairs are rejected ones."""
    max_error_px: tuple[float, float]
    """Smallest and largest threshold used, in px of the full images."""


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
    num_workers: int = 0,
) -> DatabaseReport:
    """The COLMAP database `output` of all images with features and all pairs with matches.

    See `choose_cameras` for `intrinsics`, `camera_model` and `known_cameras`. `names` limits the images. Equal input gives equal
    rows: the estimators are seeded, images are numbered in the order of their names. Pairs verified with other options are
    verified anew, with a warning: features and matches, which take long, are refused instead.
    """
    output, ordered = Path(output), sorted(set(pairs))
    with H5Reader(features) as feature_reader, H5Reader(matches) as match_reader:
        names = sorted(set(feature_reader.names()) if names is None else set(names))
        _check_names(ordered, names, feature_reader)
        image_stamps = {name: feature_reader.stamp(name) for pair in ordered for name in (pair.name0, pair.name1)}
        _check_origin(ordered, image_stamps, feature_reader, match_reader)
        sizes = {name: feature_reader.image_size(name) for name in names}
        cameras, groups = choose_cameras(Path(images), sizes, intrinsics, camera_model, known_cameras or {})
        settings = {"options": asdict(options), "features": feature_reader.fingerprint, "version": __version__}
        settings["matches"] = match_reader.fingerprint
        store = ShardStore(output.with_name("verification.h5"), settings, if_settings_changed="recompute")
        with store, colmap_log(None):
            _verify_all(store, feature_reader, match_reader, ordered, image_stamps, cameras, options, num_workers or num_cores())
        with H5Reader(store.path) as verified:
            temporary = output.with_name(f"{output.name}.tmp")
            _write_database(temporary, names, cameras, groups, ordered, feature_reader, match_reader, verified)
            for suffix in ("-wal", "-shm"):  # a killed process may have left them: SQLite would take them for the new file's
                output.with_name(f"{output.name}{suffix}").unlink(missing_ok=True)
            temporary.replace(output)
            items = [verified.file[match_key(pair.name0, pair.name1)] for pair in ordered]
            configurations = Counter(CONFIGURATIONS[int(item.attrs["config"])] for item in items)
            errors = [float(item.attrs["max_error_px"]) for item in items]
            inliers = [item["inlier_matches"].shape[0] for item in items]
    return DatabaseReport(
        num_images=len(names),
        num_cameras=len(set(groups.values())),
        num_pairs=len(ordered),
        num_verified_pairs=sum(count > 0 for count in inliers),
        num_inliers=sum(inliers),
        configurations=dict(sorted(configurations.items())),
        max_error_px=(min(errors, default=0.0), max(errors, default=0.0)),
    )


def _check_names(pairs: list[Pair], names: list[str], reader: H5Reader) -> None:
    """Raises: KeyError where an image has no features, ValueError where a pair has an image that is not among `names`."""
    for name in names:
        if name not in reader.file:
            reader.features(name)  # raises, naming the closest image
    unknown = sorted({name for pair in pairs for name in (pair.name0, pair.name1)} - set(names))
    if unknown:
        raise ValueError(f"{len(unknown)} images of the pairs are missing, such as {unknown[0]!r}: run the stage pairs again")


def _check_origin(pairs: list[Pair], image_stamps: Mapping[str, str], feature_reader: H5Reader, match_reader: H5Reader) -> None:
    """Raises: ValueError where matches are of other features than these; files of other programs do not say of which."""
    origin = match_reader.settings.get("features")
    if origin is None:
        return
    stamps = {pair: match_reader.match_stamp(pair.name0, pair.name1) for pair in pairs}
    changed = [pair for pair in pairs if stamps[pair] not in ("", f"{image_stamps[pair.name0]} {image_stamps[pair.name1]}")]
    if origin != feature_reader.fingerprint:
        what = f"{match_reader.path} was made with other features than those of {feature_reader.path}"
    elif changed:
        pair = changed[0]
        what = f"the features of {len(changed)} pairs changed after they were matched, such as {pair.name0!r} and {pair.name1!r}"
    else:
        return
    raise ValueError(f"{what}: run the stage match again")


def _verify_all(
    store: ShardStore,
    feature_reader: H5Reader,
    match_reader: H5Reader,
    pairs: list[Pair],
    image_stamps: Mapping[str, str],
    cameras: Mapping[str, Camera],
    options: VerificationOptions,
    num_workers: int,
) -> None:
    """Verify the pairs that the store does not hold for these features, matches and cameras."""
    by_key = {match_key(pair.name0, pair.name1): pair for pair in pairs}
    colmap_cameras = {name: camera.to_colmap() for name, camera in cameras.items()}

    def stamp(pair: Pair) -> str:
        of_images = [(image_stamps[name], cameras[name]) for name in (pair.name0, pair.name1)]
        content = match_reader.match_stamp(pair.name0, pair.name1), of_images
        return hashlib.sha256(repr(content).encode()).hexdigest()[:16]

    def verify(key: str) -> GroupData:
        pair = by_key[key]
        matches = _read_matches(match_reader, pair)
        features0, features1 = feature_reader.features(pair.name0), feature_reader.features(pair.name1)
        return verify_matches(colmap_cameras[pair.name0], colmap_cameras[pair.name1], features0, features1, matches, options)

    stamps = {key: stamp(pair) for key, pair in by_key.items()}
    todo = store.missing(stamps)
    with progress_bar(len(stamps), "verify", "pair", len(stamps) - len(todo)) as bar:
        for key, result in run_jobs(verify, todo, num_workers):
            if isinstance(result, Exception):
                raise result
            store.add(key, result, stamps[key])
            bar.update()
    store.merge()


def _read_matches(reader: H5Reader, pair: Pair) -> Matches:
    """Raises: KeyError where the pair was not matched."""
    matches = reader.find_matches(pair.name0, pair.name1)
    if matches is None:
        raise KeyError(f"{reader.path} has no matches of {pair.name0!r} and {pair.name1!r}: run the stage match first")
    return matches


def _write_database(
    path: Path,
    names: list[str],
    cameras: Mapping[str, Camera],
    groups: Mapping[str, str],
    pairs: list[Pair],
    feature_reader: H5Reader,
    match_reader: H5Reader,
    verified: H5Reader,
) -> None:
    """All rows in one transaction: the matches of every pair, the geometries of verified ones. Ids follow the sorted names."""
    for suffix in ("", "-wal", "-shm"):
        path.with_name(f"{path.name}{suffix}").unlink(missing_ok=True)
    camera_numbers = unique_cameras(cameras, groups, names)
    image_ids: dict[str, int] = {}
    with pycolmap.Database.open(path) as database, pycolmap.DatabaseTransaction(database):
        rig_ids: dict[int, int] = {}
        for name in names:
            number = camera_numbers[name]
            camera = cameras[name].to_colmap()
            camera.camera_id = number
            if number not in rig_ids:
                database.write_camera(camera, use_camera_id=True)
                rig = pycolmap.Rig()
                rig.add_ref_sensor(camera.sensor_id)
                rig_ids[number] = database.write_rig(rig)
            image_ids[name] = _write_image(database, name, number, rig_ids[number])
            database.write_keypoints(image_ids[name], feature_reader.features(name).keypoints + np.float32(0.5))
        for pair in pairs:
            ids = image_ids[pair.name0], image_ids[pair.name1]
            database.write_matches(*ids, _read_matches(match_reader, pair).indices.astype(np.uint32))
            item = verified.item(match_key(pair.name0, pair.name1))
            if int(item.attributes[""]["config"]) != NOT_VERIFIED:
                database.write_two_view_geometry(*ids, geometry_from_item(item))


def _write_image(database: pycolmap.Database, name: str, camera_id: int, rig_id: int) -> int:
    """The id of the new image, alone in its frame."""
    image = pycolmap.Image(name=name, camera_id=camera_id)
    image.image_id = database.write_image(image)
    frame = pycolmap.Frame()
    frame.rig_id = rig_id
    frame.add_data_id(image.data_id)
    database.write_frame(frame)
    return image.image_id
