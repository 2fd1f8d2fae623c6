"""Models in local metres by GPS: right axes, wrong positions, positions that do not determine the model."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap
import pytest
from known_scene import MAPPER_OPTIONS as OPTIONS
from known_scene import KnownScene, make_database

from sfm_lightglue.georeference import Georeference, Origin, read_georeference
from sfm_lightglue.images import list_images
from sfm_lightglue.pose_priors import PosePrior, find_positions
from sfm_lightglue.positions import GeoPosition
from sfm_lightglue.reconstruction import reconstruct
from sfm_lightglue.reconstruction.alignment import (
    UNKNOWN_ACCURACY_M,
    GpsPositions,
    NotAligned,
    describe_alignments,
    estimate_georeference,
    read_gps_positions,
)

PHOTOS = Path(__file__).resolve().parents[3] / "shared" / "data"
ORIGIN = Origin(46.84, -91.99, 198.6)
LOCAL_FROM_WORLD = 5.0 * np.array([[0.0, 0, 1], [1, 0, 0], [0, -1, 0]])
"""The scene's y points down; its x becomes north, its z east, and 1 unit is 5 m. The determinant is -1, so x is negated below."""
LOCAL_FROM_WORLD = LOCAL_FROM_WORLD * [-1, 1, 1]


def in_local(points_in_world: np.ndarray) -> np.ndarray:
    return points_in_world @ LOCAL_FROM_WORLD.T + [20.0, -30.0, 2.0]


def centers(scene: KnownScene) -> np.ndarray:
    """float64 (n, 3): true centres of the cameras in local metres."""
    return in_local(np.array([-pose[:, :3].T @ pose[:, 3] for pose in scene.poses]))


def write_priors(database: Path, names: Iterable[str], places: np.ndarray, accuracy_m: float = np.nan) -> None:
    """Pose priors at `places` (n, 3), local metres."""
    geodetic = dict(zip(names, ORIGIN.to_geodetic(places), strict=True))
    with pycolmap.Database.open(database) as rows:
        for image in rows.read_all_images():
            if image.name in geodetic:
                prior = PosePrior(GeoPosition(*map(float, geodetic[image.name]), accuracy_m), 0).to_colmap()
                assert prior is not None
                prior.corr_data_id = image.data_id
                rows.write_pose_prior(prior)


@pytest.fixture(scope="module")
def scene() -> KnownScene:
    return KnownScene()


@pytest.fixture(scope="module")
def folder(scene: KnownScene, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos, a database with the true position of each photo, and its models without alignment in `none`."""
    folder = tmp_path_factory.mktemp("scene")
    database = make_database(folder, scene, range(8), itertools.combinations(range(8), 2))
    write_priors(database, scene.names, centers(scene))
    reconstruct(database, folder / "images", folder / "none", dataclasses.replace(OPTIONS, align="none"))
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> pycolmap.Reconstruction:
    return pycolmap.Reconstruction(folder / "none" / "0")


def positions_at(names: list[str], places: np.ndarray, deviation_m: float = 0.3) -> GpsPositions:
    geodetic = ORIGIN.to_geodetic(places)
    return GpsPositions(
        names, geodetic, np.full(len(names), deviation_m), np.full((len(names), 2), np.nan), Origin.between(geodetic)
    )


def centers_of(model: pycolmap.Reconstruction, names: Iterable[str]) -> np.ndarray:
    found = {model.image(image_id).name: model.image(image_id).projection_center() for image_id in model.reg_image_ids()}
    return np.array([found[name] for name in names])


def test_a_model_is_written_in_metres_with_up_up_and_north_north(folder: Path, scene: KnownScene, tmp_path: Path) -> None:
    report = reconstruct(folder / "database.db", folder / "images", tmp_path / "out", OPTIONS)
    model, georeference = pycolmap.Reconstruction(tmp_path / "out" / "0"), read_georeference(tmp_path / "out" / "0")
    assert georeference is not None and georeference.median_residual_m < 0.01
    geodetic = georeference.to_geodetic(centers_of(model, scene.names))
    np.testing.assert_allclose(ORIGIN.to_local(geodetic), centers(scene), atol=0.01)
    points = np.array([point.xyz for point in model.points3D.values()])
    distances = np.linalg.norm(
        ORIGIN.to_local(georeference.to_geodetic(points))[:, None] - in_local(scene.points)[None], axis=2
    ).min(axis=1)
    assert np.median(distances) < 0.01
    untouched = pycolmap.Reconstruction(folder / "none" / "0")
    assert report.models[0].num_points == untouched.num_points3D()
    assert report.models[0].mean_reprojection_error_px == pytest.approx(untouched.compute_mean_reprojection_error(), abs=1e-6)
    text = pycolmap.Reconstruction()
    text.read_text(tmp_path / "out" / "0")
    np.testing.assert_allclose(centers_of(text, scene.names), centers_of(model, scene.names), atol=1e-6)


def test_the_summary_has_the_residuals_of_each_photo(folder: Path, scene: KnownScene, tmp_path: Path) -> None:
    reconstruct(folder / "database.db", folder / "images", tmp_path / "out", OPTIONS)
    described = describe_alignments(tmp_path / "out", folder / "database.db", OPTIONS)
    assert described["0"]["is_aligned"] and described["0"]["num_inliers"] == 8
    assert list(described["0"]["residuals"]) == scene.names
    json.dumps(described, allow_nan=False)


@pytest.mark.parametrize("changes", [{"align": "none"}, {"name": "triangulation"}])
def test_models_stay_as_they_are_if_asked_or_if_poses_are_known(
    folder: Path, scene: KnownScene, tmp_path: Path, changes: dict[str, Any]
) -> None:
    options = dataclasses.replace(OPTIONS, **changes)
    poses = dict(zip(scene.names, scene.poses, strict=True))
    reconstruct(folder / "database.db", folder / "images", tmp_path / "out", options, known_poses=poses)
    assert read_georeference(tmp_path / "out" / "0") is None
    assert describe_alignments(tmp_path / "out", folder / "database.db", options) == {}
    if changes == {"align": "none"}:
        for name in ("images.bin", "points3D.bin", "frames.bin"):
            assert (tmp_path / "out" / "0" / name).read_bytes() == (folder / "none" / "0" / name).read_bytes()


def test_one_wild_position_does_not_bend_the_model(scene: KnownScene, model: pycolmap.Reconstruction) -> None:
    noise = 0.2 * np.random.default_rng(0).standard_normal((8, 3))
    without = estimate_georeference(model, positions_at(scene.names[1:], (centers(scene) + noise)[1:]), seed=0)
    places = centers(scene) + noise
    places[0] += [1000, 0, 0]
    found = estimate_georeference(model, positions_at(scene.names, places), seed=0)
    assert [name for name, residual in found.residuals.items() if not residual.is_inlier] == [scene.names[0]]
    assert found.residuals[scene.names[0]].horizontal_m == pytest.approx(1000, abs=2)
    assert found.scale == pytest.approx(without.scale, rel=1e-6)
    np.testing.assert_allclose(found.rotation, without.rotation, atol=1e-5)


def test_it_agrees_with_colmap_s_own_alignment(scene: KnownScene, model: pycolmap.Reconstruction) -> None:
    noise = 0.2 * np.random.default_rng(0).standard_normal((8, 3))
    positions = positions_at(scene.names, centers(scene) + noise)
    found = estimate_georeference(model, positions, seed=0)
    assert positions.origin is not None
    options = pycolmap.RANSACOptions(max_error=3.0)
    places = positions.origin.to_local(positions.geodetic)
    colmap = pycolmap.align_reconstruction_to_locations(model, scene.names, places, 3, options)
    assert found.scale == pytest.approx(colmap.scale, rel=1e-6)
    np.testing.assert_allclose(found.rotation, colmap.rotation.matrix(), atol=1e-6)
    np.testing.assert_allclose(found.translation, colmap.translation, atol=1e-4)


@pytest.mark.parametrize(
    ("places", "reason"),
    [
        (lambda true: np.tile(true[:1], (8, 1)), "all its photos have the same position"),
        (lambda true: true * [1, 0, 0], r"do not say where up is|disagree with it"),
        (lambda true: np.random.default_rng(0).normal(0, 3, (8, 3)), "its positions disagree with it: they spread over"),
    ],
)
def test_positions_that_do_not_say_where_the_model_is_are_refused(
    scene: KnownScene, model: pycolmap.Reconstruction, places: Any, reason: str
) -> None:
    with pytest.raises(NotAligned, match=reason):
        estimate_georeference(model, positions_at(scene.names, places(centers(scene))), seed=0)


def test_a_straight_path_leaves_the_turn_about_it_open() -> None:
    straight = np.stack([np.arange(10.0), np.zeros(10), np.zeros(10)], axis=1)
    names = [f"{index}.jpg" for index in range(10)]
    model = model_at(dict(zip(names, straight.tolist(), strict=True)))
    noise = 0.3 * np.random.default_rng(0).standard_normal((10, 3))
    with pytest.raises(NotAligned, match="do not say where up is"):
        estimate_georeference(model, positions_at(names, 5 * straight + noise), seed=0)


def test_two_positions_are_too_few(scene: KnownScene, model: pycolmap.Reconstruction) -> None:
    with pytest.raises(NotAligned, match="2 of its photos have a position, 3 are needed"):
        estimate_georeference(model, positions_at(scene.names[:2], centers(scene)[:2]), seed=0)


@pytest.mark.parametrize(
    ("num_positions", "reason"),
    [(5, "all its photos have the same position"), (2, "2 of its photos have a position, 3 are needed")],
)
def test_the_reason_is_told_again_for_a_model_that_was_kept(
    scene: KnownScene, tmp_path: Path, caplog: pytest.LogCaptureFixture, num_positions: int, reason: str
) -> None:
    database = make_database(tmp_path, scene, range(5), itertools.combinations(range(5), 2))
    write_priors(database, scene.names[:num_positions], np.tile([[1.0, 2, 3]], (num_positions, 1)))
    for _ in range(2):
        reconstruct(database, tmp_path / "images", tmp_path / "out", OPTIONS)
        described = describe_alignments(tmp_path / "out", database, OPTIONS)
        assert described == {"0": {"is_aligned": False, "reason": reason}}
    assert caplog.text.count(f"model 0 keeps its own coordinates: {reason}") == 1
    assert read_georeference(tmp_path / "out" / "0") is None


@pytest.mark.parametrize("content", ["", '{\n "coordinates": "x east', "\0" * 90])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_cut_georeference_is_named_and_made_again(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, content: str, seed: int
) -> None:
    database = folder / "database.db"
    reconstruct(database, folder / "images", tmp_path / "out", OPTIONS)
    path = tmp_path / "out" / "0" / "georeference.json"
    before = path.read_bytes()
    path.write_text(content)
    reconstruct(database, folder / "images", tmp_path / "out", dataclasses.replace(OPTIONS, seed=seed))
    assert "0 is damaged (georeference.json is cut): the models are made again" in caplog.text
    assert path.read_bytes() == before or seed
    assert read_georeference(path.parent) is not None and not (tmp_path / "out.kept-1").exists()


def test_a_georeference_of_the_user_stays_and_is_named(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    database = folder / "database.db"
    reconstruct(database, folder / "images", tmp_path / "out", OPTIONS)
    path = tmp_path / "out" / "0" / "georeference.json"
    path.write_text('{"origin": "my village"}')
    reconstruct(database, folder / "images", tmp_path / "out", OPTIONS)
    assert path.read_text() == '{"origin": "my village"}'
    described = describe_alignments(tmp_path / "out", database, OPTIONS)
    assert not described["0"]["is_aligned"] and "georeference.json" in described["0"]["reason"]
    assert "georeference.json" in caplog.text


def test_several_models_share_the_origin(scene: KnownScene, tmp_path: Path) -> None:
    groups = (range(4), range(4, 8))
    pairs = [pair for group in groups for pair in itertools.combinations(group, 2)]
    database = make_database(tmp_path, scene, range(8), pairs)
    write_priors(database, scene.names, centers(scene))
    reconstruct(database, tmp_path / "images", tmp_path / "out", OPTIONS)
    found = [read_georeference(tmp_path / "out" / number) for number in "01"]
    assert found[0] is not None and found[1] is not None and found[0].origin == found[1].origin
    for number in "01":
        model = pycolmap.Reconstruction(tmp_path / "out" / number)
        names = sorted(model.image(image_id).name for image_id in model.reg_image_ids())
        expected = centers(scene)[[scene.names.index(name) for name in names]]
        np.testing.assert_allclose(ORIGIN.to_local(found[0].to_geodetic(centers_of(model, names))), expected, atol=0.05)


def test_positions_and_accuracies_come_from_the_database(scene: KnownScene, tmp_path: Path) -> None:
    database = make_database(tmp_path, scene, range(3), [(0, 1), (1, 2)])
    write_priors(database, scene.names[:1], np.array([[1.0, 2, 3]]), accuracy_m=2.0)
    write_priors(database, scene.names[2:3], np.array([[4.0, 5, 6]]))
    positions = read_gps_positions(database)
    assert positions.names == [scene.names[0], scene.names[2]]
    np.testing.assert_allclose(ORIGIN.to_local(positions.geodetic), [[1, 2, 3], [4, 5, 6]], atol=1e-6)
    np.testing.assert_allclose(positions.deviations, [2.0, 2.0])  # the unknown one is the median of the known ones


DRONE_CENTERS = [
    (-3.393, 3.538, 0.053),
    (-3.165, 2.002, 0.002),
    (-3.019, 0.435, 0.05),
    (-2.893, -1.148, 0.058),
    (-2.713, -2.715, 0.075),
    (-2.554, -4.32, 0.147),
    (0.458, -3.748, 0.072),
    (0.323, -2.155, 0.047),
    (0.13, -0.649, 0.015),
    (-0.079, 0.907, 0.014),
    (-0.246, 2.457, -0.022),
    (-0.404, 4.0, -0.024),
    (2.482, 4.072, -0.116),
    (2.691, 2.515, -0.143),
    (2.828, 0.973, -0.093),
    (3.009, -0.563, -0.076),
    (3.154, -2.132, -0.038),
    (3.306, -3.717, -0.018),
]
"""Camera centres of drone_brighton18 from a run of this package with its defaults and reconstruction.align=none (0.10, 2026-11):
`model.image(image_id).projection_center()` in the order of the names."""


def model_at(centers: dict[str, tuple[float, float, float]]) -> pycolmap.Reconstruction:
    """A model that has only cameras."""
    model = pycolmap.Reconstruction()
    camera = pycolmap.Camera(model="SIMPLE_PINHOLE", width=64, height=48, params=[50, 32, 24], camera_id=1)
    model.add_camera_with_trivial_rig(camera)
    for index, (name, center) in enumerate(centers.items(), start=1):
        image = pycolmap.Image(name=name, camera_id=1, image_id=index)
        model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(pycolmap.Rotation3d(), -np.array(center)))
    return model


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="needs the folder of photos")
def test_a_drone_flight_is_placed_by_its_exif_and_no_wild_position_bends_it() -> None:
    found = find_positions(PHOTOS / "drone_brighton18" / "images", list_images(PHOTOS / "drone_brighton18" / "images"))
    names, geodetic = list(found), np.array([(at.latitude_deg, at.longitude_deg, at.altitude_m) for at in found.values()])
    model = model_at(dict(zip(names, DRONE_CENTERS, strict=True)))

    def estimate(geodetic: np.ndarray) -> Georeference:
        positions = GpsPositions(
            names, geodetic, np.full(18, UNKNOWN_ACCURACY_M), np.full((18, 2), np.nan), Origin.between(geodetic)
        )
        return estimate_georeference(model, positions, seed=0)

    right = estimate(geodetic)
    assert right.median_residual_m <= 0.4 and all(residual.is_inlier for residual in right.residuals.values())
    for index in (0, 4, 17):
        wild = geodetic.copy()
        wild[index, 0] += 0.009  # 1 km to the north
        bent = estimate(wild)
        assert [name for name, residual in bent.residuals.items() if not residual.is_inlier] == [names[index]]
        assert bent.scale == pytest.approx(right.scale, rel=3e-3)
        assert np.degrees(np.linalg.norm(bent.rotation - right.rotation)) < 0.3
