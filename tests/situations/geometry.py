"""Situations of positions, of things that stand still in all photos, and of models."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pycolmap
from known_scene import KnownScene
from PIL import Image as PILImage
from situations.bench import exif, models, pairs_of, run_scene, save_scene

from sfm_lightglue.products import Matches
from sfm_lightglue.storage import ShardStore, features_to_group, match_key, matches_to_group

METRES = 10.0
"""Length of a unit of the scene, for its GPS positions."""
ORIGIN = (48.1, 11.5, 500.0)
"""Latitude and longitude (degrees) and altitude (m) of the centre of the scene."""


def _centres(scene: KnownScene) -> np.ndarray:
    """float64 (n, 3): camera centres in world, units of the scene."""
    return np.array([-pose[:, :3].T @ pose[:, 3] for pose in scene.poses])


def _positions(scene: KnownScene) -> list[tuple[float, float, float]]:
    """Latitude, longitude, altitude of each camera: x points east, z north, y down."""
    metres_per_degree = 111_320.0
    east, down, north = (_centres(scene) * METRES).T
    latitudes = ORIGIN[0] + north / metres_per_degree
    longitudes = ORIGIN[1] + east / (metres_per_degree * np.cos(np.radians(ORIGIN[0])))
    return [tuple(map(float, row)) for row in np.column_stack([latitudes, longitudes, ORIGIN[2] - down])]  # type: ignore[misc]


def _tag_photos(scene: KnownScene, positions: list[tuple[float, float, float]]) -> None:
    for name, position in zip(scene.names, positions, strict=False):
        with PILImage.open(f"scene/images/{name}") as photo:
            photo.save(f"scene/images/{name}", quality=95, exif=exif(position=position))


def _scale_of_the_model(scene: KnownScene, left_out: int | None = None) -> np.ndarray:
    """Distances between cameras in model 0, divided by the true ones in metres."""
    found = {image.name: image.projection_center() for image in models()[0].images.values()}
    kept = [index for index in range(len(scene.names)) if index != left_out]
    truth, placed = _centres(scene)[kept] * METRES, np.array([found[scene.names[index]] for index in kept])
    return np.linalg.norm(placed[1:] - placed[0], axis=1) / np.linalg.norm(truth[1:] - truth[0], axis=1)


# --- GPS -------------------------------------------------------------------------------------------------------------------


def gps_becomes_pose_priors() -> None:
    scene = save_scene()
    _tag_photos(scene, _positions(scene))
    assert run_scene().works()
    with pycolmap.Database.open("out/database.db") as database:
        priors = database.read_all_pose_priors()
    placed = [prior for prior in priors if np.isfinite(prior.position).all()]
    assert len(placed) == 5 and abs(placed[0].position[0] - ORIGIN[0]) < 0.01


def gps_gives_metres() -> None:
    scene = save_scene()
    _tag_photos(scene, _positions(scene))
    assert run_scene().works()
    np.testing.assert_allclose(_scale_of_the_model(scene), 1, atol=0.02)


def alignment_switched_off() -> None:
    scene = save_scene()
    _tag_photos(scene, _positions(scene))
    assert run_scene("reconstruction.align=none").works()
    assert not np.isclose(_scale_of_the_model(scene), 1, atol=0.1).any()


def pairs_of_neighbours() -> None:
    scene = save_scene(6)
    _tag_photos(scene, _positions(scene))
    assert run_scene(command_name="extract").works()
    assert run_scene("pairs=spatial", "pairs.num_neighbours=1", command_name="pairs").works()
    numbers = {(int(name0[:2]), int(name1[:2])) for name0, name1 in pairs_of()}
    assert len(numbers) >= 3 and all(second - first == 1 for first, second in numbers)


def one_wild_position() -> None:
    scene = save_scene(6)
    positions = _positions(scene)
    latitude, longitude, altitude = positions[3]
    positions[3] = (latitude + 0.1, longitude - 0.05, altitude)
    _tag_photos(scene, positions)
    assert run_scene().works()
    np.testing.assert_allclose(_scale_of_the_model(scene, left_out=3), 1, atol=0.02)


def wild_prior() -> None:
    scene = save_scene(6)
    positions = _positions(scene)
    positions[3] = (positions[3][0] + 0.1, *positions[3][1:])
    _tag_photos(scene, positions)
    assert run_scene("reconstruction.position_priors=gps").works()
    summary = Path("out/summary.json").read_text()
    assert "6 positions are priors" in summary and "; wild positions: 1" in summary
    np.testing.assert_allclose(_scale_of_the_model(scene, left_out=3), 1, atol=0.02)


def positions_from_a_table() -> None:
    scene = save_scene()
    rows = [f"{name},{lat:.9f},{lon:.9f},{alt:.3f}" for name, (lat, lon, alt) in zip(scene.names, _positions(scene), strict=True)]
    Path("gps.csv").write_text("\n".join(["name,latitude,longitude,altitude", *rows]) + "\n")
    assert run_scene("dataset.positions=gps.csv").works()
    np.testing.assert_allclose(_scale_of_the_model(scene), 1, atol=0.02)


# --- overlays --------------------------------------------------------------------------------------------------------------


def logo_in_every_photo() -> None:
    """40 keypoints that stand still beside 100 that move: no verified pair may keep a match of those."""
    scene, still = save_scene(), 40
    logo = np.random.default_rng(1).uniform((20, 20), (140, 80), (still, 2)).astype(np.float32)
    for name in ("features.h5", "matches.h5"):
        Path("scene", name).unlink()
    with ShardStore(Path("scene/features.h5"), {}) as store:
        for index, name in enumerate(scene.names):
            moving = scene.features(index)
            ones = np.ones((len(moving) + still, 4), np.float32)
            both = np.concatenate([moving.keypoints, logo])
            features = dataclasses.replace(moving, keypoints=both, scores=ones[:, 0], descriptors=ones)
            store.add(name, features_to_group(features), "")
        store.merge()
    with ShardStore(Path("scene/matches.h5"), {}) as store:
        for first, name0 in enumerate(scene.names):
            for second, name1 in list(enumerate(scene.names))[first + 1 :]:
                moving = scene.matches(first, second)
                same = np.arange(len(moving), len(moving) + still, dtype=np.int32)
                indices = np.concatenate([moving.indices, np.column_stack([same, same])])
                item = matches_to_group(Matches(indices, np.ones(len(indices), np.float32)), len(moving) + still)
                store.add(match_key(name0, name1), item, "")
        store.merge()
    assert run_scene().works("stand still")
    with pycolmap.Database.open("out/database.db") as database:
        _, geometries = database.read_two_view_geometries()
    kept = [geometry.inlier_matches for geometry in geometries]
    assert len(kept) == 10 and all(len(inliers) > 50 and inliers.max() < 100 for inliers in kept)


# --- models ----------------------------------------------------------------------------------------------------------------


def largest_model_first() -> None:
    """Three photos with many points and five with few, without a pair between them: the mapper starts with the three."""
    few = save_scene(8, num_points=60, pairs=[(i, j) for i in range(3, 8) for j in range(i + 1, 8)])
    shutil.move("scene", "few")
    many = save_scene(8, num_points=200, pairs=[(i, j) for i in range(3) for j in range(i + 1, 3)])
    _put_together(many, few, split=3)
    assert run_scene("pairs=list", "pairs.path=scene/pairs.txt").works()
    assert [model.num_reg_images() for model in models()] == [5, 3]


def _put_together(first: KnownScene, second: KnownScene, split: int) -> None:
    """`scene` with the photos before `split` of one scene and the others of the second, and its list of pairs."""
    for name in ("features.h5", "matches.h5"):
        Path("scene", name).unlink()
    groups = [(first, range(split)), (second, range(split, len(first.names)))]
    lines = []
    with ShardStore(Path("scene/features.h5"), {}) as features, ShardStore(Path("scene/matches.h5"), {}) as matches:
        for scene, members in groups:
            for i in members:
                features.add(scene.names[i], features_to_group(scene.features(i)), "")
                for j in range(i + 1, members.stop):
                    item = matches_to_group(scene.matches(i, j), len(scene.points))
                    matches.add(match_key(scene.names[i], scene.names[j]), item, "")
                    lines.append(f"{scene.names[i]} {scene.names[j]}\n")
        features.merge()
        matches.merge()
    Path("scene/pairs.txt").write_text("".join(lines))


def models_below_the_minimum() -> None:
    few = save_scene(6, num_points=60, pairs=[(i, j) for i in range(2, 6) for j in range(i + 1, 6)])
    shutil.move("scene", "few")
    many = save_scene(6, num_points=200, pairs=[(0, 1)])
    _put_together(many, few, split=2)
    assert run_scene("pairs=list", "pairs.path=scene/pairs.txt").works()
    assert [model.num_reg_images() for model in models()] == [4]


def good_model_and_a_run_that_finds_nothing() -> None:
    save_scene()
    assert run_scene().works()
    before = Path("out/reconstruction/0/points3D.bin").read_bytes()
    assert run_scene("reconstruction.min_num_matches=9999", command_name="reconstruct").status == 1
    assert Path("out/reconstruction/0/points3D.bin").read_bytes() == before


def photo_added_in_front() -> None:
    scene = save_scene(6)
    shutil.move("scene/images/00.jpg", "00.jpg")
    assert run_scene().works()
    before = _image_ids()
    shutil.move("00.jpg", "scene/images/00.jpg")
    assert run_scene().works()
    assert len(before) == 5 and {name: number for name, number in _image_ids().items() if name in before} == before
    assert sorted(_image_ids()) == scene.names


def _image_ids() -> dict[str, int]:
    with pycolmap.Database.open("out/database.db") as database:
        return {image.name: image.image_id for image in database.read_all_images()}
