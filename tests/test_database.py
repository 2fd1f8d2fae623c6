"""The stages matches -> geometries -> database: rows, what is verified again, and interrupted runs."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import random
import shutil
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pycolmap
import pytest
from known_scene import FOCAL, SIZE, KnownScene, make_database
from PIL import Image as PILImage

from sfm_lightglue import database as database_stage
from sfm_lightglue import database_mark, database_rows
from sfm_lightglue.cameras import Camera, CameraAssignment, choose_cameras
from sfm_lightglue.database import (
    BuildReport,
    ImageIds,
    build_database,
    is_outdated,
    number_images,
    write_database,
)
from sfm_lightglue.database_mark import content_hash, is_unchanged, keeps_time
from sfm_lightglue.database_rows import RowWriter, create_database, geometry_to_colmap, transaction
from sfm_lightglue.execution.threads import ThreadExecutor
from sfm_lightglue.files import sha256_of
from sfm_lightglue.geometries import stage
from sfm_lightglue.geometries.verification import VerificationOptions
from sfm_lightglue.pose_priors import PosePrior
from sfm_lightglue.positions import GeoPosition
from sfm_lightglue.products import Features, Matches, Pair, TwoViewGeometry
from sfm_lightglue.storage import H5Reader, ShardStore, features_to_group, match_key, matches_to_group

OPTIONS = VerificationOptions(
    max_error_px=2.0,
    min_num_inliers=20,
    min_mean_score=0.0,
    confidence=0.9999,
    max_num_trials=200,
    seed=0,
    stationary_max_error_px=None,
    min_confirmed=1.0,
)
NAMES = ["a.jpg", "b c.jpg", "b/d.jpg", "z.jpg", "ü/東京 1.jpg"]
"""Names of the images, sorted: the database numbers them in this order."""
NOT_VERIFIED = Pair("a.jpg", "z.jpg")
"""The pair with random matches in the fixtures `built` and `flow`."""


@dataclasses.dataclass(frozen=True)
class Flow:
    """The input of the stages in a folder: photos, features.h5 and matches.h5 of the images `NAMES`."""

    folder: Path
    features: dict[str, Features]
    matches: dict[Pair, Matches]
    intrinsics: str
    """The true camera, as a value of `database.intrinsics`."""

    def write_features(self, settings: str = "", stamp: str = "photo") -> None:
        with ShardStore(self.folder / "features.h5", {"settings": settings}, if_settings_changed="recompute") as store:
            for name, features in self.features.items():
                store.add(name, features_to_group(features), f"{stamp} {name}")
            store.merge()

    def write_matches(self, matches: dict[Pair, Matches], stamp: str = "") -> None:
        with ShardStore(self.folder / "matches.h5", {}) as store:
            for pair, found in matches.items():
                item = matches_to_group(found, len(self.features[pair.name0]))
                store.add(match_key(pair.name0, pair.name1), item, f"{pair.name0} {pair.name1} {stamp}")
            store.merge()

    def build(self, pairs: list[Pair] | None = None, options: VerificationOptions = OPTIONS, **arguments: Any) -> BuildReport:
        return build_database(
            self.folder / "images",
            self.folder / "features.h5",
            self.folder / "matches.h5",
            list(self.matches) if pairs is None else pairs,
            self.database,
            options,
            **{"intrinsics": self.intrinsics, "camera_model": "SIMPLE_RADIAL", **arguments},
        )

    @property
    def database(self) -> Path:
        return self.folder / "database.db"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Flow, BuildReport]:
    """A database with all pairs of five images of the synthetic scene, built once. `NOT_VERIFIED` has random matches."""
    folder, scene = tmp_path_factory.mktemp("built"), KnownScene(len(NAMES))
    features = {name: scene.features(index) for index, name in enumerate(NAMES)}
    matches = {
        Pair(NAMES[first], NAMES[second]): scene.matches(first, second) for first, second in itertools.combinations(range(5), 2)
    }
    wrong = np.random.default_rng(0).permutation(matches[NOT_VERIFIED].indices[:, 1])
    indices = np.column_stack([matches[NOT_VERIFIED].indices[:, 0], wrong]).astype(np.int32)
    matches[NOT_VERIFIED] = dataclasses.replace(matches[NOT_VERIFIED], indices=indices)
    for name in NAMES:
        (folder / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        PILImage.new("RGB", SIZE).save(folder / "images" / name)
    flow = Flow(folder, features, matches, f"SIMPLE_PINHOLE:{FOCAL}:{SIZE[0] / 2}:{SIZE[1] / 2}")
    flow.write_features()
    flow.write_matches(matches)
    return flow, flow.build()


@pytest.fixture
def flow(built: tuple[Flow, BuildReport], tmp_path: Path) -> Flow:
    """The same input in another folder, without geometries and database."""
    original, _ = built
    shutil.copytree(original.folder / "images", tmp_path / "images")
    for name in ("features.h5", "matches.h5"):
        shutil.copy(original.folder / name, tmp_path)
    return Flow(tmp_path, dict(original.features), dict(original.matches), original.intrinsics)


def rows(path: Path) -> dict[str, Any]:
    """All rows of a database, in a form that can be compared."""
    with pycolmap.Database.open(path) as database:
        pairs = database.read_two_view_geometries()
        return {
            "cameras": [str(camera.todict()) for camera in database.read_all_cameras()],
            "rigs": [(rig.rig_id, str(rig.ref_sensor_id)) for rig in database.read_all_rigs()],
            "frames": [
                (frame.frame_id, frame.rig_id, str(sorted(map(str, frame.data_ids)))) for frame in database.read_all_frames()
            ],
            "images": [(image.image_id, image.name, image.camera_id) for image in database.read_all_images()],
            "keypoints": [database.read_keypoints(image.image_id).tolist() for image in database.read_all_images()],
            "matches": [(pair, matches.tolist()) for pair, matches in zip(*database.read_all_matches(), strict=True)],
            "geometries": [(pair, str(geometry.todict())) for pair, geometry in zip(*pairs, strict=True)],
        }


@pytest.fixture
def verified(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows by the number of matches of each pair that is verified."""
    calls: list[int] = []
    verify = stage.verify_matches

    def counted(*arguments: Any) -> Any:
        calls.append(len(arguments[4]))
        return verify(*arguments)

    monkeypatch.setattr(stage, "verify_matches", counted)
    return calls


# --- rows -----------------------------------------------------------------------------------------------------------------


def test_images_are_numbered_in_the_order_of_their_names(built: tuple[Flow, BuildReport]) -> None:
    flow, _ = built
    with pycolmap.Database.open(flow.database) as database:
        images = {image.image_id: image.name for image in database.read_all_images()}
    assert images == dict(enumerate(NAMES, 1))


def test_keypoints_are_in_colmaps_pixels(built: tuple[Flow, BuildReport]) -> None:
    flow, _ = built
    with pycolmap.Database.open(flow.database) as database:
        for number, name in enumerate(NAMES, 1):
            keypoints = database.read_keypoints(number)
            assert keypoints.dtype == np.float32
            np.testing.assert_array_equal(keypoints, flow.features[name].keypoints + np.float32(0.5))


def test_a_shared_camera_has_one_row_and_one_rig_and_each_image_a_frame(
    built: tuple[Flow, BuildReport],
) -> None:
    flow, report = built
    with pycolmap.Database.open(flow.database) as database:
        (camera,), (rig,) = database.read_all_cameras(), database.read_all_rigs()
        frames, images = database.read_all_frames(), database.read_all_images()
    assert (camera.model_name, camera.width, camera.height) == ("SIMPLE_PINHOLE", *SIZE)
    assert camera.params.tolist() == [FOCAL, SIZE[0] / 2, SIZE[1] / 2]
    assert camera.has_prior_focal_length
    assert rig.num_sensors() == 1
    assert rig.ref_sensor_id == camera.sensor_id
    assert [frame.rig_id for frame in frames] == [rig.rig_id] * len(NAMES)
    assert [[data.id for data in frame.data_ids] for frame in frames] == [[image.image_id] for image in images]
    assert report.num_cameras == 1


def test_a_camera_for_each_image_has_the_number_of_the_image_and_a_rig(flow: Flow) -> None:
    report = flow.build(intrinsics="per_image")
    with pycolmap.Database.open(flow.database) as database:
        assert [image.camera_id for image in database.read_all_images()] == [1, 2, 3, 4, 5]
        assert [camera.camera_id for camera in database.read_all_cameras()] == [1, 2, 3, 4, 5]
        assert [rig.ref_sensor_id.id for rig in database.read_all_rigs()] == [1, 2, 3, 4, 5]
        assert not any(camera.has_prior_focal_length for camera in database.read_all_cameras())
    assert report.num_cameras == 5


def test_all_pairs_have_matches_and_verified_pairs_have_geometries(
    built: tuple[Flow, BuildReport],
) -> None:
    flow, report = built
    with pycolmap.Database.open(flow.database) as database:
        for pair, matches in flow.matches.items():
            ids = NAMES.index(pair.name0) + 1, NAMES.index(pair.name1) + 1
            np.testing.assert_array_equal(database.read_matches(*ids), matches.indices)
            assert database.exists_two_view_geometry(*ids) == (pair != NOT_VERIFIED)
            if pair != NOT_VERIFIED:
                geometry = database.read_two_view_geometry(*ids)
                assert geometry.config == int(pycolmap.TwoViewGeometryConfiguration.CALIBRATED)
                np.testing.assert_array_equal(geometry.inlier_matches, matches.indices)
                assert geometry.E is not None
    assert (report.num_pairs, report.num_verified_pairs) == (10, 9)
    assert report.configurations == {"CALIBRATED": 9, "DEGENERATE": 1}
    assert report.num_inliers == sum(len(matches) for pair, matches in flow.matches.items() if pair != NOT_VERIFIED)
    assert report.rejected_because == {"few inliers": 1}
    assert report.max_error_px == (2.0, 2.0)


def test_colmaps_record_of_a_geometry_has_the_same_values(built: tuple[Flow, BuildReport]) -> None:
    with H5Reader(built[0].folder / "verification.h5") as reader:
        geometry = reader.geometry(NAMES[0], NAMES[1])
    record = geometry_to_colmap(geometry)
    assert record.config == pycolmap.TwoViewGeometryConfiguration.CALIBRATED
    np.testing.assert_array_equal(record.inlier_matches, geometry.inlier_matches)
    for name in ("E", "F", "H"):
        np.testing.assert_array_equal(getattr(record, name), getattr(geometry, name))


def test_a_pair_that_is_given_in_both_orders_counts_once(flow: Flow) -> None:
    assert flow.build([Pair("b c.jpg", "a.jpg"), Pair("a.jpg", "b c.jpg")]).num_pairs == 1


def test_only_the_images_in_names_are_written(flow: Flow) -> None:
    flow.build([Pair("a.jpg", "b/d.jpg")], names=["b/d.jpg", "a.jpg"])
    with pycolmap.Database.open(flow.database) as database:
        assert [image.name for image in database.read_all_images()] == ["a.jpg", "b/d.jpg"]


def test_images_without_pairs_or_keypoints_are_written_too(flow: Flow) -> None:
    flow.features["a.jpg"] = dataclasses.replace(
        flow.features["a.jpg"],
        keypoints=np.zeros((0, 2), np.float32),
        scores=np.zeros(0, np.float32),
        descriptors=np.zeros((0, 4)),
    )
    flow.write_features("other")
    report = flow.build([])
    with pycolmap.Database.open(flow.database) as database:
        assert database.num_images() == 5
        assert database.read_keypoints(1).shape[0] == 0
    assert (report.num_pairs, report.num_verified_pairs, report.max_error_px) == (0, 0, (0.0, 0.0))


def test_equal_input_gives_equal_rows_with_any_number_of_workers(flow: Flow, built: tuple[Flow, BuildReport]) -> None:
    flow.build(list(reversed(flow.matches)), executor=ThreadExecutor(3))
    first, _ = built
    assert rows(flow.database) == rows(first.database)
    # SQLite's header of 100 bytes counts how often the file was opened.
    assert flow.database.read_bytes()[100:] == first.database.read_bytes()[100:]


# --- ids ------------------------------------------------------------------------------------------------------------------


def image_ids(path: Path) -> dict[str, tuple[int, int]]:
    """Ids of image and camera by name. The frame of an image and the rig of a camera must have the same ids."""
    with pycolmap.Database.open(path) as database:
        frames = {frame.frame_id: (frame.rig_id, [data.id for data in frame.data_ids]) for frame in database.read_all_frames()}
        rigs = {rig.rig_id: rig.ref_sensor_id.id for rig in database.read_all_rigs()}
        images = {image.name: (image.image_id, image.camera_id) for image in database.read_all_images()}
    assert frames == {image_id: (camera_id, [image_id]) for image_id, camera_id in images.values()}
    assert rigs == {camera_id: camera_id for _, camera_id in images.values()}
    return images


def test_known_images_keep_their_ids_when_others_are_added_or_removed(flow: Flow) -> None:
    def build(*names: str) -> dict[str, tuple[int, int]]:
        pairs = [pair for pair in flow.matches if {pair.name0, pair.name1} <= {*names}]
        flow.build(pairs, names=names, intrinsics="per_image")
        return image_ids(flow.database)

    a, b, c, d, e = NAMES
    assert build(b, d) == {b: (1, 1), d: (2, 2)}
    assert build(*NAMES) == {b: (1, 1), d: (2, 2), a: (3, 3), c: (4, 4), e: (5, 5)}
    assert build(c, d, e) == {d: (2, 2), c: (4, 4), e: (5, 5)}
    assert build(a, e) == {e: (5, 5), a: (6, 6)}
    assert build(b, c) == {b: (1, 1), c: (2, 2)}  # another scene


def test_colmap_continues_an_old_model_with_added_photos(tmp_path: Path) -> None:
    scene = KnownScene(6)
    old, both = tmp_path / "old", tmp_path / "both"
    first = make_database(old, scene, (1, 2, 4), [(1, 2), (1, 4), (2, 4)])
    (tmp_path / "model").mkdir()
    pycolmap.incremental_mapping(first, old / "images", tmp_path / "model")
    before = pycolmap.Reconstruction(tmp_path / "model" / "0")
    both.mkdir()
    shutil.copy(first, both)
    grown = make_database(both, scene, range(6), itertools.combinations(range(6), 2))
    (tmp_path / "grown").mkdir()
    pycolmap.incremental_mapping(grown, both / "images", tmp_path / "grown", input_path=tmp_path / "model" / "0")
    model = pycolmap.Reconstruction(tmp_path / "grown")
    assert {image.name for image in model.images.values()} == {*scene.names}
    assert {before.images[image_id].name == model.images[image_id].name for image_id in before.images} == {True}


def assignment(**groups: str) -> CameraAssignment:
    camera = Camera("SIMPLE_PINHOLE", SIZE, (FOCAL, 320.0, 240.0), True)
    return CameraAssignment(dict.fromkeys(groups, camera), groups)


@pytest.mark.parametrize(
    ("groups", "known", "expected"),
    [
        ({"a": "x", "b": "y", "c": "x"}, {}, {"a": 1, "b": 2, "c": 1}),
        ({"a": "x", "b": "y", "c": "x"}, {"b": (7, 3)}, {"a": 4, "b": 3, "c": 4}),
        ({"a": "x", "b": "x", "c": "x"}, {"a": (1, 1), "b": (2, 2), "c": (3, 2)}, {"a": 2, "b": 2, "c": 2}),  # joined: most
        ({"a": "x", "b": "y", "c": "y"}, {"a": (1, 1), "b": (2, 1), "c": (3, 1)}, {"a": 2, "b": 1, "c": 1}),  # divided: most
        ({"a": "x", "b": "y"}, {"a": (1, 1), "b": (2, 1)}, {"a": 1, "b": 2}),
        ({"a": "x", "b": "y"}, {"z": (5, 5)}, {"a": 1, "b": 2}),
    ],
)
def test_cameras_keep_the_id_that_most_of_their_images_had(
    groups: dict[str, str], known: dict[str, tuple[int, int]], expected: dict[str, int]
) -> None:
    ids = number_images(groups, assignment(**groups), {name: ImageIds(*both) for name, both in known.items()})
    assert {name: both.camera for name, both in ids.items()} == expected


# --- databases of others --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["colmap", "text", "folder", "journal"])
def test_a_database_of_others_is_refused_and_stays(flow: Flow, content: str) -> None:
    foreign = flow.database
    if content == "colmap":
        with pycolmap.Database.open(foreign) as database:
            database.write_camera(pycolmap.Camera(model="SIMPLE_PINHOLE", width=2, height=2, params=[1, 1, 1]))
    elif content == "folder":
        (foreign / "mine").mkdir(parents=True)
    else:
        foreign = foreign if content == "text" else foreign.with_name("database.db-wal")
        foreign.write_text("mine" * 1000)
    before = None if content == "folder" else foreign.read_bytes()
    with pytest.raises(ValueError, match=rf"{foreign.name} was not written by sfm_lightglue.*output=DIR"):
        flow.build()
    assert (foreign.is_dir() if before is None else foreign.read_bytes() == before) and leftovers(flow) <= {foreign.name}


def test_a_database_that_another_program_changed_is_kept_aside(flow: Flow, caplog: pytest.LogCaptureFixture) -> None:
    flow.build()
    with pycolmap.Database.open(flow.database) as database:  # opening is no change
        database.read_all_images()
    flow.build()
    assert not leftovers(flow)
    with pycolmap.Database.open(flow.database) as database:
        database.write_camera(pycolmap.Camera(model="SIMPLE_PINHOLE", width=2, height=2, params=[1, 1, 1]))
    changed = flow.database.read_bytes()
    flow.build()
    assert leftovers(flow) == {"database.kept-1.db"}
    assert (flow.folder / "database.kept-1.db").read_bytes() == changed
    assert "database.db was changed since a run wrote it" in caplog.text
    flow.build()
    assert leftovers(flow) == {"database.kept-1.db"}


@pytest.mark.parametrize("change", ["camera", "nothing"])
def test_a_change_that_a_killed_program_left_in_its_log_is_kept(flow: Flow, change: str) -> None:
    """COLMAP writes to `-wal` first, and to the database when it ends. Opening alone writes there too."""
    flow.build()

    def work() -> None:
        database = pycolmap.Database.open(flow.database)
        if change == "camera":
            database.write_camera(pycolmap.Camera(model="SIMPLE_PINHOLE", width=2, height=2, params=[1, 1, 1]))
        os.kill(os.getpid(), signal.SIGKILL)

    before = flow.database.read_bytes()
    kill_in_a_child(work)
    assert flow.database.read_bytes()[100:] == before[100:] and flow.database.with_name("database.db-shm").exists()
    flow.build()
    kept = flow.folder / "database.kept-1.db"
    assert leftovers(flow) == ({kept.name} if change == "camera" else set())
    if change == "camera":
        with pycolmap.Database.open(kept) as database:
            assert any(camera.width == 2 for camera in database.read_all_cameras())


def without_mark(path: Path) -> None:
    """Removes the mark, as in version 0.10."""
    with path.open("r+b") as file:
        file.seek(68)
        file.write(bytes(4))


def test_a_database_of_version_0_10_is_known_by_its_keypoints_and_keeps_its_ids(flow: Flow) -> None:
    flow.build(names=NAMES[1:3], pairs=[Pair(*NAMES[1:3])])
    without_mark(flow.database)
    flow.build()
    assert [image_ids(flow.database)[name][0] for name in NAMES] == [3, 1, 2, 4, 5]
    assert leftovers(flow) == {"database.kept-1.db"}
    without_mark(flow.database)
    fewer = dataclasses.replace(flow.features[NAMES[0]], keypoints=np.zeros((1, 2), np.float32), scores=np.zeros(1, np.float32))
    flow.features[NAMES[0]] = dataclasses.replace(fewer, descriptors=np.zeros((1, 4), np.float32))
    flow.write_features("other")
    with pytest.raises(ValueError, match=r"database\.db was not written by sfm_lightglue"):
        flow.build([])


# --- what is verified again -----------------------------------------------------------------------------------------------


def test_a_second_run_verifies_nothing(flow: Flow, verified: list[int]) -> None:
    first = flow.build()
    assert len(verified) == 10
    assert flow.build() == first
    assert len(verified) == 10
    assert not leftovers(flow)


def test_a_new_pair_is_the_only_one_verified(flow: Flow, verified: list[int]) -> None:
    flow.build(list(flow.matches)[:-1])
    assert len(verified) == 9
    report = flow.build()
    assert len(verified) == 10
    assert report.num_pairs == 10


def test_a_pair_that_is_no_longer_listed_is_removed_from_the_database(flow: Flow, verified: list[int]) -> None:
    flow.build()
    report = flow.build(list(flow.matches)[:1])
    assert len(verified) == 10
    assert report.num_pairs == 1
    with pycolmap.Database.open(flow.database) as database:
        assert (database.num_matched_image_pairs(), database.num_verified_image_pairs()) == (1, 1)


def test_a_database_without_the_verified_pairs_of_today_is_outdated(flow: Flow) -> None:
    pairs, geometries = list(flow.matches), flow.folder / "verification.h5"
    flow.build()
    assert not is_outdated(flow.database, geometries, pairs)
    assert is_outdated(flow.database, geometries, pairs[:1])
    assert is_outdated(flow.database, geometries, [*pairs, Pair("not", "verified")])
    flow.database.write_bytes(b"no database" * 100)
    assert not is_outdated(flow.database, geometries, pairs)


def test_the_pairs_of_an_image_with_other_intrinsics_are_verified_again(flow: Flow, verified: list[int]) -> None:
    cameras = {name: f"{name} SIMPLE_PINHOLE {SIZE[0]} {SIZE[1]} {FOCAL} 320 240\n" for name in NAMES}
    path = flow.folder / "intrinsics.txt"
    path.write_text("".join(cameras.values()), encoding="utf-8")
    flow.build(intrinsics=str(path))
    path.write_text("".join(cameras.values()).replace("a.jpg SIMPLE_PINHOLE", "a.jpg SIMPLE_FISHEYE"), encoding="utf-8")
    flow.build(intrinsics=str(path))
    assert len(verified) == 10 + 4


def test_pairs_that_were_matched_again_are_verified_again(flow: Flow, verified: list[int]) -> None:
    flow.build()
    flow.write_matches(dict(list(flow.matches.items())[:2]), "again")
    flow.build()
    assert len(verified) == 10 + 2


def test_the_pairs_of_a_photo_with_new_keypoints_are_verified_again(flow: Flow, verified: list[int]) -> None:
    flow.build()
    flow.write_features(stamp="new")
    flow.build()
    assert len(verified) == 20


def test_pairs_that_another_program_matched_again_are_verified_again(flow: Flow, verified: list[int]) -> None:
    """The files of other programs have no stamps and no settings, and any of hloc's keys."""
    for scores in (0.4, 0.6):
        with h5py.File(flow.folder / "matches.h5", "w") as file:
            for pair, matches in flow.matches.items():
                group = file.create_group("_".join(name.replace("/", "-") for name in (pair.name1, pair.name0)))
                matches0 = np.full(len(flow.features[pair.name1]), -1, np.int16)
                matches0[matches.indices[:, 1]] = matches.indices[:, 0]
                group["matches0"] = matches0
                group["matching_scores0"] = np.full(len(matches0), scores, np.float16)
        flow.build()
    assert len(verified) == 20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"settings": "other"}, "was made with other features than"),
        ({"stamp": "new"}, "the features of 10 pairs changed after they were matched, such as 'a.jpg' and 'b c.jpg'"),
    ],
)
def test_matches_of_other_features_are_refused(flow: Flow, change: dict[str, str], message: str) -> None:
    with H5Reader(flow.folder / "features.h5") as reader:
        settings = {"features": reader.fingerprint}
        with ShardStore(flow.folder / "matches.h5", settings, if_settings_changed="recompute") as store:
            for pair, matches in flow.matches.items():
                item = matches_to_group(matches, len(flow.features[pair.name0]))
                store.add(match_key(pair.name0, pair.name1), item, f"{reader.stamp(pair.name0)} {reader.stamp(pair.name1)}")
            store.merge()
    flow.build()
    flow.write_features(**change)
    with pytest.raises(ValueError, match=message):
        flow.build()


@pytest.mark.parametrize("change", ["options", "features"])
def test_all_pairs_are_verified_again_after_a_change_of_options_or_features_with_a_warning(
    flow: Flow, verified: list[int], caplog: pytest.LogCaptureFixture, change: str
) -> None:
    flow.build()
    if change == "features":
        flow.write_features("other")
    flow.build(options=dataclasses.replace(OPTIONS, max_error_px=3.0) if change == "options" else OPTIONS)
    assert len(verified) == 20
    assert f"verification.h5 was made with other settings ({change}" in caplog.text


# --- files ----------------------------------------------------------------------------------------------------------------


def leftovers(flow: Flow) -> set[str]:
    return {path.name for path in flow.folder.iterdir()} - {
        "images",
        "features.h5",
        "matches.h5",
        "database.db",
        "verification.h5",
    }


def test_the_journal_of_a_killed_process_is_not_applied_to_the_new_database(flow: Flow, built: tuple[Flow, BuildReport]) -> None:
    flow.build()
    for suffix in ("-wal", "-shm", ".12.tmp", ".12.tmp-wal"):
        (flow.folder / f"database.db{suffix}").write_bytes(b"of a killed process" * 100)
    flow.build()
    assert not leftovers(flow)
    assert rows(flow.database) == rows(built[0].database)


def test_only_the_temporary_files_of_a_killed_run_are_removed(flow: Flow) -> None:
    for name in ("a [1].db.12.tmp", "a [1].db.12.tmp-wal", "a [1].db.mine.tmp", "a [1].db.tmp"):
        (flow.folder / name).write_bytes(b"of a killed process" * 100)
    arguments = [flow.folder / name for name in ("images", "features.h5", "matches.h5")]
    build_database(*arguments, [], flow.folder / "a [1].db", OPTIONS, intrinsics=flow.intrinsics, camera_model="SIMPLE_RADIAL")
    assert leftovers(flow) == {"a [1].db", "a [1].db.mine.tmp", "a [1].db.tmp"}


def kill_in_a_child(work: Callable[[], object]) -> None:
    """Does the work in a forked process and checks that SIGKILL ended it."""
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            work()
        os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGKILL


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(
    ("target", "attribute", "calls"),
    [
        (stage, "verify_matches", 5),
        (ShardStore, "merge", 1),
        (database_stage, "write_database", 1),
        (database_rows.RowWriter, "add_image", 3),
        (database_rows, "geometry_to_colmap", 4),
        (Path, "replace", 5),  # four times for shards and their merged file, then for the database
    ],
)
def test_a_killed_run_is_resumed_and_gives_the_same_rows(
    flow: Flow,
    built: tuple[Flow, BuildReport],
    verified: list[int],
    monkeypatch: pytest.MonkeyPatch,
    target: Any,
    attribute: str,
    calls: int,
) -> None:
    monkeypatch.setattr(stage, "ShardStore", lambda *given, **named: ShardStore(*given, **named, shard_items=3))

    def killed_run() -> None:
        original, counter = getattr(target, attribute), itertools.count(1)

        def wrapped(*given: Any, **named: Any) -> Any:
            if next(counter) == calls:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*given, **named)

        setattr(target, attribute, wrapped)
        flow.build(executor=ThreadExecutor(1))

    kill_in_a_child(killed_run)
    assert not flow.database.exists()
    flow.build()
    assert rows(flow.database) == rows(built[0].database)
    assert not leftovers(flow)
    assert len(verified) == (7 if attribute == "verify_matches" else 1 if attribute == "merge" else 0)  # 10 pairs in shards of 3


@pytest.mark.parametrize("change", ["written anew", "extended"])
def test_a_failed_run_keeps_the_previous_database(flow: Flow, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    flow.build(names=NAMES[:4], pairs=[pair for pair in flow.matches if NAMES[4] not in (pair.name0, pair.name1)])
    expected = rows(flow.database)

    def fail(*arguments: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(database_rows.RowWriter, "add_pair", fail)
    with pytest.raises(OSError, match="the disk is full"):
        flow.build(intrinsics="single" if change == "written anew" else flow.intrinsics)
    assert rows(flow.database) == expected


# --- what is written to an existing database ------------------------------------------------------------------------------


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A list that grows by the name of the table for each row that is written to a database."""
    calls: list[str] = []
    insert = database_rows.RowWriter._insert

    def counted(self: database_rows.RowWriter, table: str, **cells: Any) -> None:
        calls.append(table)
        insert(self, table, **cells)

    monkeypatch.setattr(database_rows.RowWriter, "_insert", counted)
    return calls


def without(name: str, flow: Flow) -> dict[str, Any]:
    """Arguments for a run without a photo."""
    return {"names": [*{*NAMES} - {name}], "pairs": [pair for pair in flow.matches if name not in (pair.name0, pair.name1)]}


def test_a_database_with_nothing_to_do_is_not_touched(flow: Flow, writes: list[str]) -> None:
    flow.build()
    before, changed_at = flow.database.read_bytes(), flow.database.stat().st_mtime_ns
    writes.clear()
    flow.build()
    assert not writes and flow.database.read_bytes() == before and flow.database.stat().st_mtime_ns == changed_at


def test_only_added_photos_and_pairs_are_written(flow: Flow, built: tuple[Flow, BuildReport], writes: list[str]) -> None:
    report = flow.build(**without(NAMES[-1], flow))
    assert (report.num_images, report.num_pairs, report.num_verified_pairs) == (4, 6, 5)
    writes.clear()
    assert flow.build() == built[1]
    assert Counter(writes) == {
        **dict.fromkeys(("images", "frames", "frame_data", "keypoints"), 1),
        **{"matches": 4, "two_view_geometries": 4},
    }
    assert rows(flow.database) == rows(built[0].database)
    assert content_hash(flow.database) == content_hash(built[0].database)
    assert not leftovers(flow)


def test_pairs_that_changed_or_are_no_longer_listed_are_replaced_in_place(flow: Flow, writes: list[str]) -> None:
    flow.build()
    pairs = [pair for pair in flow.matches if pair != Pair(NAMES[1], NAMES[2])]
    first = pairs[0]
    fewer = dataclasses.replace(flow.matches[first], indices=flow.matches[first].indices[:40], scores=np.ones(40, np.float32))
    flow.write_matches({first: fewer}, "again")
    writes.clear()
    report = flow.build(pairs)
    assert writes == ["matches", "two_view_geometries"] and report.num_verified_pairs == 8
    extended = rows(flow.database), content_hash(flow.database)
    flow.database.unlink()
    flow.build(pairs)
    assert (rows(flow.database), content_hash(flow.database)) == extended


def test_a_changed_photo_or_camera_means_a_new_database(flow: Flow, writes: list[str]) -> None:
    flow.build()
    flow.write_features(stamp="new")
    for arguments in ({}, {"intrinsics": "single"}, without(NAMES[0], flow)):
        writes.clear()
        flow.build(**arguments)
        assert writes.count("images") == len(arguments.get("names", NAMES))
    assert not leftovers(flow)


def test_focal_lengths_that_the_pairs_change_replace_only_the_rows_of_their_cameras(
    flow: Flow, writes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def calibrated(factor: float, model: str) -> Callable[..., Any]:
        params = (factor * FOCAL, SIZE[0] / 2, SIZE[1] / 2) if model == "SIMPLE_PINHOLE" else (factor * FOCAL, 9.0, 9.0, 0.1)
        camera = Camera(model, SIZE, params, True)
        return lambda cameras, *_: (dataclasses.replace(cameras, cameras=dict.fromkeys(cameras.cameras, camera)), [])

    flow.build()
    for change in ((1.001, "SIMPLE_PINHOLE"), (1.002, "SIMPLE_RADIAL")):
        monkeypatch.setattr(database_stage, "calibrate", calibrated(*change))
        writes.clear()
        flow.build()
        assert writes == ["cameras"]
    changed = rows(flow.database), content_hash(flow.database)
    assert "SIMPLE_RADIAL" in changed[0]["cameras"][0]
    writes.clear()
    flow.build()
    assert not writes
    flow.database.unlink()
    flow.build()
    assert (rows(flow.database), content_hash(flow.database)) == changed


def test_a_change_by_another_program_is_found_although_the_time_says_nothing(flow: Flow) -> None:
    flow.build()
    os.utime(flow.database)  # as after a copy
    assert is_unchanged(flow.database)
    signed = flow.database.stat().st_mtime_ns
    with contextlib.closing(sqlite3.connect(flow.database)) as connection:
        connection.execute("UPDATE matches SET data = zeroblob(length(data)) WHERE pair_id = (SELECT MIN(pair_id) FROM matches)")
        connection.commit()
    assert flow.database.stat().st_mtime_ns != signed and not is_unchanged(flow.database)


def test_reading_with_colmap_keeps_the_time_that_says_unchanged(flow: Flow, monkeypatch: pytest.MonkeyPatch) -> None:
    flow.build()
    with keeps_time(flow.database), pycolmap.Database.open(flow.database) as database:
        database.read_all_images()
    monkeypatch.setattr(database_mark, "rows_digest", lambda connection: pytest.fail("the whole database is read"))
    assert is_unchanged(flow.database)


def test_a_database_before_there_were_notes_is_replaced(flow: Flow, built: tuple[Flow, BuildReport]) -> None:
    flow.build()
    with contextlib.closing(sqlite3.connect(flow.database, isolation_level=None)) as connection:
        for table in (database_mark.NOTES, database_mark.STAMPS):
            connection.execute(f"DROP TABLE {table}")
    with flow.database.open("r+b") as file:
        file.seek(database_mark.PLACE)
        file.write(database_mark.MARK + bytes.fromhex(sha256_of(flow.database, skip=100))[:2])
    flow.build()
    assert not leftovers(flow) and rows(flow.database) == rows(built[0].database)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("matrices", ["E", "FEH", ""])
def test_rows_are_those_that_colmap_writes(tmp_path: Path, reverse: bool, matrices: str) -> None:
    generator, (first, second) = np.random.default_rng(0), (2, 1) if reverse else (1, 2)
    matches = Matches(np.array([[0, 3], [1, 2], [4, 0]], np.int32), np.ones(3, np.float32))
    geometry = TwoViewGeometry(
        "CALIBRATED", matches.indices[:2], 3, 2.0, **{name: generator.normal(size=(3, 3)) for name in matrices}
    )
    camera = Camera("OPENCV", SIZE, (500.0, 501.0, 320.0, 240.0, 0.1, 0.2, 0.3, 0.4), False)
    prior = PosePrior(GeoPosition(47.1, 8.2, 400.5, 3.0), 6)
    keypoints = {1: generator.random((5, 2)), 2: np.zeros((0, 2))}
    create_database(tmp_path / "ours.db")
    with transaction(tmp_path / "ours.db", is_new=True) as connection:
        writer = RowWriter(connection)
        for number in (1, 2):
            writer.write_camera(number, camera)
            writer.add_image(f"{number}.jpg", ImageIds(number, number), keypoints[number])
            writer.add_pose_prior(ImageIds(number, number), prior)
        writer.add_pair(first, second, matches, geometry)
        writer.write_notes({})
    with pycolmap.Database.open(tmp_path / "colmap.db") as database:
        for number in (1, 2):
            record = camera.to_colmap()
            record.camera_id = number
            database.write_camera(record, use_camera_id=True)
            rig = pycolmap.Rig(rig_id=number)
            rig.add_ref_sensor(record.sensor_id)
            database.write_rig(rig, use_rig_id=True)
            image = pycolmap.Image(name=f"{number}.jpg", camera_id=number, image_id=number)
            database.write_image(image, use_image_id=True)
            frame = pycolmap.Frame(frame_id=number)
            frame.rig_id = number
            frame.add_data_id(image.data_id)
            database.write_frame(frame, use_frame_id=True)
            database.write_keypoints(number, keypoints[number].astype(np.float32))
            row = prior.to_colmap()
            row.corr_data_id = image.data_id
            database.write_pose_prior(row)
        database.write_matches(first, second, matches.indices.astype(np.uint32))
        database.write_two_view_geometry(first, second, geometry_to_colmap(geometry))
    assert content_hash(tmp_path / "ours.db") == content_hash(tmp_path / "colmap.db")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(
    ("attribute", "calls"), [("add_image", 1), ("add_pair", 1), ("add_pair", 4), ("write_stamps", 2), ("write_notes", 1), ("", 1)]
)
def test_a_killed_extension_leaves_a_database_that_the_next_run_extends(
    flow: Flow, built: tuple[Flow, BuildReport], attribute: str, calls: int
) -> None:
    flow.build(**without(NAMES[-1], flow))
    before = rows(flow.database)

    def killed_run() -> None:
        target = database_rows.RowWriter if attribute else database_stage  # else after the rows are there
        name, counter = attribute or "sign_time", itertools.count(1)
        original = getattr(target, name)

        def wrapped(*given: Any, **named: Any) -> Any:
            if next(counter) == calls:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*given, **named)

        setattr(target, name, wrapped)
        flow.build()

    kill_in_a_child(killed_run)
    kept = Path(shutil.copytree(flow.folder, flow.folder / "killed")) / "database.db"
    assert rows(kept) == (before if attribute else rows(built[0].database))  # as COLMAP sees it
    shutil.rmtree(kept.parent)
    flow.build()
    assert rows(flow.database) == rows(built[0].database)
    assert content_hash(flow.database) == content_hash(built[0].database)
    assert not leftovers(flow)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_kills_at_random_moments_lose_nothing_and_change_nothing(
    flow: Flow, built: tuple[Flow, BuildReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Verification and the extension of the database, killed again and again (SFM_LIGHTGLUE_KILLS times, else 3)."""
    monkeypatch.setattr(stage, "ShardStore", lambda *given, **named: ShardStore(*given, **named, shard_items=1))
    flow.build(**without(NAMES[-1], flow))
    start = time.perf_counter()
    Flow(Path(shutil.copytree(flow.folder, flow.folder / "timed")), flow.features, flow.matches, flow.intrinsics).build()
    seconds, generator = time.perf_counter() - start, random.Random(0)
    shutil.rmtree(flow.folder / "timed")
    for _ in range(int(os.environ.get("SFM_LIGHTGLUE_KILLS", 3))):
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):
                flow.build(executor=ThreadExecutor(1))
            os._exit(0)
        time.sleep(generator.uniform(0, seconds))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        with contextlib.closing(sqlite3.connect(flow.database)) as connection:  # as any other program
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        if not os.WIFSIGNALED(status):  # finished before: begin again
            flow.build(**without(NAMES[-1], flow))
            (flow.folder / "verification.h5").unlink()
            flow.build(**without(NAMES[-1], flow))
    flow.build()
    assert (flow.folder / "verification.h5").read_bytes() == (built[0].folder / "verification.h5").read_bytes()
    assert rows(flow.database) == rows(built[0].database)
    assert content_hash(flow.database) == content_hash(built[0].database)
    assert not leftovers(flow)


# --- mistakes -------------------------------------------------------------------------------------------------------------


def write_only(flow: Flow, pairs: list[Pair], intrinsics: str | None = None) -> None:
    """Writes the database from the existing file of geometries."""
    sizes = dict.fromkeys(NAMES, SIZE)
    cameras = choose_cameras(flow.folder / "images", sizes, intrinsics or flow.intrinsics, "SIMPLE_RADIAL", {})
    features, matches, geometries = (flow.folder / name for name in ("features.h5", "matches.h5", "verification.h5"))
    write_database(features, matches, geometries, pairs, flow.database, cameras)


def test_the_database_is_written_from_existing_geometries(flow: Flow, built: tuple[Flow, BuildReport]) -> None:
    flow.build()
    flow.database.unlink()
    write_only(flow, list(flow.matches))
    assert rows(flow.database) == rows(built[0].database)


def test_a_pair_that_was_not_verified_is_named(flow: Flow) -> None:
    flow.build(list(flow.matches)[:1])
    with pytest.raises(KeyError, match=r"verification.h5 has no geometry of 'a.jpg' and 'b/d.jpg': run the stage verify first"):
        write_only(flow, list(flow.matches))


@pytest.mark.parametrize("change", ["features", "matches", "features again", "cameras"])
def test_geometries_of_other_features_matches_or_cameras_are_refused(flow: Flow, change: str) -> None:
    flow.build()
    if change == "features":
        flow.write_features("other settings")
    elif change == "matches":
        flow.write_matches(flow.matches, "again")
    elif change == "features again":
        flow.write_features(stamp="other photo")
    with pytest.raises(ValueError, match=r"verification.h5.* with other .*: run the stage verify again"):
        write_only(flow, list(flow.matches), "single" if change == "cameras" else None)


def test_a_pair_without_matches_is_named(flow: Flow) -> None:
    (flow.folder / "matches.h5").unlink()
    flow.write_matches({pair: matches for pair, matches in flow.matches.items() if pair != Pair("a.jpg", "b/d.jpg")})
    with pytest.raises(KeyError, match=r"no matches of 'a.jpg' and 'b/d.jpg': run the stage match first"):
        flow.build()


def test_a_pair_with_a_missing_image_is_named(flow: Flow) -> None:
    with pytest.raises(ValueError, match=r"2 images of the pairs are missing, such as 'x.jpg': run the stage pairs again"):
        flow.build([Pair("a.jpg", "x.jpg"), Pair("a.jpg", "y.jpg")])


def test_an_image_without_features_is_named_with_the_closest(flow: Flow) -> None:
    with pytest.raises(KeyError, match=r"no features of image 'zz.jpg', did you mean 'z.jpg'"):
        flow.build([], names=["a.jpg", "zz.jpg"])


def test_the_error_for_a_missing_file_names_the_stage_to_run(flow: Flow) -> None:
    (flow.folder / "matches.h5").unlink()
    with pytest.raises(FileNotFoundError, match=r"matches.h5 does not exist: run the stage that writes it first"):
        flow.build()
