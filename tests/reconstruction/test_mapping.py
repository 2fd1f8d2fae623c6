"""The stage database -> reconstruction, on a synthetic scene with known poses and points."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap
import pytest
from known_scene import COLOR, FOCAL, SIZE, KnownScene, make_database
from known_scene import MAPPER_OPTIONS as OPTIONS
from PIL import Image as PILImage

from sfm_lightglue import api
from sfm_lightglue.reconstruction import MAPPERS, ReconstructionOptions, ReconstructionReport, reconstruct
from sfm_lightglue.reconstruction.mappers import incremental_options
from sfm_lightglue.storage import H5Reader, ShardStore, features_to_group

FREE_MAPPERS = ("incremental", "global", "hierarchical")
"""COLMAP's mappers that find the poses; test_clusters.py has the mapper `clusters`."""


def options(name: str = "incremental", **changes: Any) -> ReconstructionOptions:
    return dataclasses.replace(OPTIONS, name=name, **changes)


@pytest.fixture(scope="module")
def scene() -> KnownScene:
    return KnownScene()


@pytest.fixture(scope="module")
def database(scene: KnownScene, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with all images and pairs of the scene."""
    return make_database(tmp_path_factory.mktemp("scene"), scene, range(len(scene.names)), all_pairs(scene))


@pytest.fixture(scope="module")
def noisy_database(scene: KnownScene, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same database with 1 px of noise and a focal length that is 3 % too short."""
    folder = tmp_path_factory.mktemp("noisy")
    return make_database(folder, scene, range(len(scene.names)), all_pairs(scene), focal=680.0, noise_px=1.0)


def all_pairs(scene: KnownScene) -> list[tuple[int, int]]:
    return list(itertools.combinations(range(len(scene.names)), 2))


def run(database: Path, output: Path, chosen: ReconstructionOptions = OPTIONS, **arguments: Any) -> ReconstructionReport:
    return reconstruct(database, database.parent / "images", output, chosen, **arguments)


def true_poses(scene: KnownScene) -> dict[str, np.ndarray]:
    """(3, 4) cam_from_world by image name."""
    return dict(zip(scene.names, scene.poses, strict=True))


def center(pose: np.ndarray) -> np.ndarray:
    return -pose[:, :3].T @ pose[:, 3]


def aligned_errors(model: pycolmap.Reconstruction, poses: dict[str, np.ndarray]) -> tuple[float, float]:
    """Largest position error of a camera, as a share of the scene, and largest angle in degrees.

    The model is first aligned to the truth with a similarity (Umeyama, 1991).
    """
    estimated = [image.cam_from_world().matrix() for image in model.images.values()]
    true = [poses[image.name] for image in model.images.values()]
    points, target = (np.array([center(pose) for pose in both]) for both in (estimated, true))
    a, b = points - points.mean(0), target - target.mean(0)
    u, singular, vt = np.linalg.svd(b.T @ a)
    flip = np.diag([1, 1, np.linalg.det(u @ vt)])
    rotation = u @ flip @ vt
    scale = np.trace(np.diag(singular) @ flip) / (a**2).sum()
    distance = np.linalg.norm(scale * a @ rotation.T - b, axis=1).max() / np.linalg.norm(b, axis=1).max()
    cosines = [(np.trace(pose[:, :3] @ rotation.T @ truth[:, :3].T) - 1) / 2 for pose, truth in zip(estimated, true, strict=True)]
    return distance, float(np.degrees(np.arccos(np.clip(cosines, -1, 1))).max())


# --- models ---------------------------------------------------------------------------------------------------------------


class Drive(KnownScene):
    """A camera that moves straight ahead by `step` with each photo; the points are 12 to 30 away."""

    def __init__(self, num_images: int = 6, step: float = 0.5) -> None:
        super().__init__(num_images)
        generator = np.random.default_rng(0)
        depths = generator.uniform(12, 30, (len(self.points), 1))
        self.points = np.hstack([depths * generator.uniform((-0.33, -0.22), (0.33, 0.22), (len(depths), 2)), depths])
        self.poses = [np.column_stack([np.eye(3), [0, 0, -step * index]]) for index in range(len(self.names))]


def test_a_drive_straight_ahead_has_a_first_pair(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scene = Drive()
    pairs = [(index, index + step) for step in (1, 2) for index in range(len(scene.names) - step)]
    database = make_database(tmp_path, scene, range(len(scene.names)), pairs, noise_px=0.2)
    run(database, tmp_path / "models")
    assert "found no model: a first pair that moved forward, or little, gave one of 6 photos" in caplog.text
    model = pycolmap.Reconstruction(tmp_path / "models" / "0")
    position, _ = aligned_errors(model, true_poses(scene))  # centres on a line do not say how the model is turned around it
    rotations = [image.cam_from_world().rotation for image in model.images.values()]
    turned_deg = max(np.rad2deg((rotation * rotations[0].inverse()).angle()) for rotation in rotations)
    assert model.num_reg_images() == 6 and position < 0.01 and turned_deg < 0.1


@pytest.mark.parametrize("mapper", FREE_MAPPERS)
def test_every_mapper_finds_all_poses(database: Path, scene: KnownScene, tmp_path: Path, mapper: str) -> None:
    report = run(database, tmp_path / "out", options(mapper))
    assert report.largest == "0"
    assert report.unregistered == []
    assert report.models[0].registered == sorted(scene.names)
    model = pycolmap.Reconstruction(tmp_path / "out" / "0")
    distance, angle_deg = aligned_errors(model, true_poses(scene))
    assert distance < 1e-4  # keypoints are float32: 3e-5 px of 600
    assert angle_deg < 1e-2


@pytest.mark.parametrize("mapper", MAPPERS)
def test_given_intrinsics_stay_exactly_as_they_are(noisy_database: Path, scene: KnownScene, tmp_path: Path, mapper: str) -> None:
    run(noisy_database, tmp_path / "out", options(mapper), known_poses=true_poses(scene))
    (camera,) = pycolmap.Reconstruction(tmp_path / "out" / "0").cameras.values()
    assert camera.params.tolist() == [680.0, SIZE[0] / 2, SIZE[1] / 2]


@pytest.mark.parametrize("mapper", MAPPERS)
def test_a_wrong_focal_length_is_corrected_if_intrinsics_are_refined(scene: KnownScene, tmp_path: Path, mapper: str) -> None:
    database = make_database(tmp_path / "in", scene, range(len(scene.names)), all_pairs(scene), focal=680.0)
    run(database, tmp_path / "out", options(mapper, refine_intrinsics=True), known_poses=true_poses(scene))
    (camera,) = pycolmap.Reconstruction(tmp_path / "out" / "0").cameras.values()
    assert camera.focal_length == pytest.approx(FOCAL, rel=1e-3)


def test_known_poses_are_kept_exactly_by_triangulation(database: Path, scene: KnownScene, tmp_path: Path) -> None:
    poses = true_poses(scene)
    report = run(database, tmp_path / "out", options("triangulation"), known_poses=poses)
    assert report.unregistered == []
    model = pycolmap.Reconstruction(tmp_path / "out" / "0")
    for image in model.images.values():
        np.testing.assert_allclose(image.cam_from_world().matrix(), poses[image.name], rtol=0, atol=1e-14)
    points = np.array([point.xyz for point in model.points3D.values()])
    nearest = np.linalg.norm(points[:, None] - scene.points[None], axis=2).min(axis=1)
    assert len(points) > 0.9 * len(scene.points)
    assert nearest.max() < 1e-3


def test_triangulation_leaves_out_images_without_a_pose(database: Path, scene: KnownScene, tmp_path: Path) -> None:
    poses = true_poses(scene)
    missing = scene.names[2]
    del poses[missing]
    report = run(
        database, tmp_path / "out", options("triangulation"), known_poses={**poses, "no such image.jpg": poses[scene.names[0]]}
    )
    assert report.unregistered == [missing]
    assert report.models[0].num_points > 0


def test_two_images_are_enough(scene: KnownScene, tmp_path: Path) -> None:
    database = make_database(tmp_path / "in", scene, (0, 3), [(0, 3)])
    report = run(database, tmp_path / "out")
    assert report.models[0].num_images == 2
    assert report.models[0].num_points > 20


@pytest.mark.parametrize("mapper", FREE_MAPPERS)
def test_unconnected_images_give_several_models_and_the_largest_is_named(scene: KnownScene, tmp_path: Path, mapper: str) -> None:
    groups = (range(3), range(3, len(scene.names)))
    pairs = [pair for group in groups for pair in itertools.combinations(group, 2)]
    database = make_database(tmp_path / "in", scene, range(len(scene.names)), pairs)
    report = run(database, tmp_path / "out", options(mapper))
    assert sorted(model.num_images for model in report.models) == sorted(len(group) for group in groups)
    largest = next(model for model in report.models if model.folder == report.largest)
    assert largest.registered == sorted(scene.names[3:])
    assert report.unregistered == sorted(scene.names[:3])
    assert report.num_images == len(scene.names)


@pytest.mark.parametrize("mapper", MAPPERS)
@pytest.mark.parametrize("num_images", [0, 3])
def test_nothing_verified_gives_an_empty_report_and_one_warning(
    scene: KnownScene, tmp_path: Path, caplog: pytest.LogCaptureFixture, mapper: str, num_images: int
) -> None:
    database = make_database(tmp_path / "in", scene, range(max(num_images, 1)), [])
    if num_images == 0:
        database.unlink()
        pycolmap.Database.open(database).close()
    report = run(database, tmp_path / "out", options(mapper), known_poses=true_poses(scene))
    assert report == ReconstructionReport([], None, num_images, scene.names[:num_images])
    assert sum("no verified pair" in message for message in caplog.messages) == 1


def with_other_models(real: Any, change: Callable[[Path, pycolmap.Reconstruction], None]) -> Callable[[Any], None]:
    """The mapper `real`, after which `change` may add models beside the folder `1` that it has made."""

    def mapper(task: Any) -> None:
        real(task)
        (task.output / "0").rename(task.output / "1")
        change(task.output, pycolmap.Reconstruction(task.output / "1"))

    return mapper


def without_images(model: pycolmap.Reconstruction, count: int, folder: Path) -> None:
    """Writes the model without its first `count` images to `folder`."""
    for frame in sorted(model.reg_frame_ids())[:count]:
        model.deregister_frame(frame)
    folder.mkdir()
    model.write(folder)


@pytest.mark.parametrize("mapper", FREE_MAPPERS)
def test_models_are_numbered_by_images_and_then_by_points(
    database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mapper: str
) -> None:
    def add_smaller_models(output: Path, model: pycolmap.Reconstruction) -> None:
        without_images(model, 1, output / "0")
        for point in sorted(model.point3D_ids())[:20]:
            model.delete_point3D(point)
        without_images(model, 0, output / "2")
        without_images(model, 2, output / "10")

    monkeypatch.setitem(MAPPERS, mapper, with_other_models(MAPPERS[mapper], add_smaller_models))
    report = run(database, tmp_path / "out", options(mapper, min_model_size=3, join=False))
    whole = report.num_images
    assert [(model.folder, model.num_images) for model in report.models] == [
        ("0", whole),
        ("1", whole - 1),
        ("2", whole - 1),
        ("3", whole - 3),
    ]
    assert report.models[1].num_points == report.models[2].num_points + 20
    assert report.largest == "0" and report.unregistered == []
    for model in report.models:  # the text files are those of the final numbers
        assert f"Number of images: {model.num_images}," in (tmp_path / "out" / model.folder / "images.txt").read_text()


@pytest.mark.parametrize("mapper", FREE_MAPPERS)
def test_models_below_the_minimum_are_discarded_by_every_mapper(
    database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, mapper: str
) -> None:
    change = with_other_models(MAPPERS[mapper], lambda output, model: without_images(model, 6, output / "0"))
    monkeypatch.setitem(MAPPERS, mapper, change)
    report = run(database, tmp_path / "out", options(mapper, min_model_size=3, join=False))
    assert [(model.folder, model.num_images) for model in report.models] == [("0", report.num_images)]
    assert "a model with 2 images is discarded: reconstruction.min_model_size=3" in caplog.text


def test_two_photos_give_their_model_and_two_of_many_do_not(scene: KnownScene, tmp_path: Path) -> None:
    two = make_database(tmp_path / "two", scene, (0, 3), [(0, 3)])
    assert [model.num_images for model in run(two, tmp_path / "out two", options(min_model_size=3)).models] == [2]
    many = make_database(tmp_path / "many", scene, range(5), [(0, 3)])
    assert run(many, tmp_path / "out", options(min_model_size=3)).models == []


def test_models_with_few_points_are_discarded_and_the_rest_numbered_from_0(
    database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = MAPPERS["incremental"]

    def with_empty_models(task: Any) -> None:
        real(task)
        (task.output / "0").rename(task.output / "1")
        for folder in ("0", "2"):
            (task.output / folder).mkdir()
            pycolmap.Reconstruction().write(task.output / folder)

    monkeypatch.setitem(MAPPERS, "incremental", with_empty_models)
    report = run(database, tmp_path / "out")
    assert [(model.folder, model.num_images) for model in report.models] == [("0", report.num_images)]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0", "settings.json"]


def test_the_report_agrees_with_the_files(database: Path, tmp_path: Path) -> None:
    report = run(database, tmp_path / "out").models[0]
    folder = tmp_path / "out" / "0"
    names = {f"{name}.{suffix}" for name in ("cameras", "images", "points3D", "rigs", "frames") for suffix in ("bin", "txt")}
    assert {path.name for path in folder.iterdir()} == names | {"points.ply"}
    lines = [line for line in (folder / "points3D.txt").read_text().splitlines() if not line.startswith("#")]
    tracks = [(len(line.split()) - 8) // 2 for line in lines]  # POINT3D_ID X Y Z R G B ERROR, then IMAGE_ID POINT2D_IDX each
    assert report.num_points == len(lines)
    assert report.num_observations == sum(tracks)
    assert report.mean_track_length == pytest.approx(sum(tracks) / len(lines))
    assert report.mean_reprojection_error_px < 1e-3
    assert f"element vertex {len(lines)}\n".encode() in (folder / "points.ply").read_bytes()


@pytest.mark.parametrize("mapper", MAPPERS)
@pytest.mark.parametrize("wanted", [True, False])
def test_points_have_the_colors_of_the_photos_if_wanted(
    database: Path, scene: KnownScene, tmp_path: Path, mapper: str, wanted: bool
) -> None:
    run(database, tmp_path / "out", options(mapper, extract_colors=wanted), known_poses=true_poses(scene))
    model = pycolmap.Reconstruction(tmp_path / "out" / "0")
    colors = np.array([point.color for point in model.points3D.values()], float)
    np.testing.assert_allclose(colors, np.broadcast_to(COLOR if wanted else 0, colors.shape), atol=3)  # JPEG is lossy


def test_points_have_the_colors_of_photos_that_colmap_cannot_read(scene: KnownScene, tmp_path: Path) -> None:
    database = make_database(tmp_path, scene, range(3), [(0, 1), (0, 2), (1, 2)])
    for photo in (tmp_path / "images").iterdir():
        PILImage.new("RGB", SIZE, COLOR).save(photo, "WEBP", lossless=True)
    run(database, tmp_path / "out", options(extract_colors=True))
    colors = [point.color for point in pycolmap.Reconstruction(tmp_path / "out" / "0").points3D.values()]
    np.testing.assert_array_equal(colors, np.broadcast_to(COLOR, (len(colors), 3)))


def test_colors_are_flipped_for_the_photos_whose_keypoints_are(scene: KnownScene, tmp_path: Path) -> None:
    """`features.h5` says which, not EXIF: photos can be used as they are stored."""
    database = make_database(tmp_path, scene, range(3), [(0, 1), (0, 2), (1, 2)])
    ramp = np.broadcast_to(np.linspace(0, 255, SIZE[0])[None, :, None], (SIZE[1], SIZE[0], 3)).astype(np.uint8)
    exif = PILImage.Exif()
    exif[0x0112] = 2

    def colors(pixels: np.ndarray, features: Path) -> np.ndarray:
        for photo in (tmp_path / "images").iterdir():
            PILImage.fromarray(pixels).save(photo, "PNG", exif=exif)
        run(database, tmp_path / features.stem, options(extract_colors=True), features=features)
        model = pycolmap.Reconstruction(tmp_path / features.stem / "0")
        return np.array([model.point3D(point_id).color for point_id in sorted(model.point3D_ids())], int)

    turned = rewrite_features(database, "turned.h5", orientation=2)
    found = colors(ramp, database.with_name("features.h5"))
    np.testing.assert_array_equal(colors(ramp[:, ::-1], turned), found)
    model = pycolmap.Reconstruction(tmp_path / "features" / "0")
    columns = [
        np.mean([model.image(element.image_id).points2D[element.point2D_idx].xy[0] for element in point.track.elements])
        for _, point in sorted(model.points3D.items())
    ]
    np.testing.assert_allclose(found[:, 0], (np.array(columns) - 0.5) * 255 / (SIZE[0] - 1), atol=1.5)


# --- equal input gives equal output, and is not computed twice ------------------------------------------------------------


@pytest.mark.parametrize("mapper", MAPPERS)
def test_two_runs_give_the_same_bytes(noisy_database: Path, scene: KnownScene, tmp_path: Path, mapper: str) -> None:
    poses = true_poses(scene) if mapper == "triangulation" else None
    for output in ("out0", "out1"):
        run(noisy_database, tmp_path / output, options(mapper), known_poses=poses)
    for name in ("cameras.bin", "images.bin", "points3D.bin", "points.ply"):
        assert (tmp_path / "out0" / "0" / name).read_bytes() == (tmp_path / "out1" / "0" / name).read_bytes()


@pytest.fixture
def mapped(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the mappers that ran, in order."""
    names: list[str] = []
    for name, mapper in MAPPERS.items():
        monkeypatch.setitem(MAPPERS, name, lambda task, name=name, mapper=mapper: (names.append(name), mapper(task)))
    return names


def test_an_unchanged_database_is_not_mapped_again(database: Path, tmp_path: Path, mapped: list[str]) -> None:
    first = run(database, tmp_path / "out")
    pycolmap.Database.open(database).close()
    assert run(database, tmp_path / "out") == first
    assert mapped == ["incremental"]


def test_another_option_or_mapper_or_database_is_mapped_again(
    database: Path, scene: KnownScene, tmp_path: Path, mapped: list[str]
) -> None:
    run(database, tmp_path / "out")
    run(database, tmp_path / "out", options(max_error_px=3.0))
    run(database, tmp_path / "out", options("global"))
    assert mapped == ["incremental", "incremental", "global"]
    other = make_database(tmp_path / "other", scene, range(4), itertools.combinations(range(4), 2))
    assert run(other, tmp_path / "out", options("global")).num_images == 4
    assert len(mapped) == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "out"]


def test_other_options_replace_the_models_with_a_warning_and_other_matches_without(
    database: Path, scene: KnownScene, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(database, tmp_path / "out")
    other = make_database(tmp_path / "other", scene, range(4), itertools.combinations(range(4), 2))
    run(other, tmp_path / "out")
    assert "other settings" not in caplog.text
    run(other, tmp_path / "out", options(max_error_px=3.0))
    assert "out was made with other settings (options.max_error_px: 4.0 -> 3.0): it is replaced" in caplog.text


def rewrite_features(database: Path, name: str = "features.h5", **changes: Any) -> Path:
    """Writes a file of features beside the database, with these changes in all images; returns its path."""
    path = database.with_name(name)
    with H5Reader(database.with_name("features.h5")) as reader, ShardStore(path.with_suffix(".new"), {}) as store:
        for image in reader.names():
            features = dataclasses.replace(reader.features(image), **changes)
            store.add(image, features_to_group(features), "")
        store.merge()
    return path.with_suffix(".new").replace(path)


def test_error_limits_are_multiplied_by_the_pixel_scale(noisy_database: Path, tmp_path: Path, mapped: list[str]) -> None:
    shutil.copytree(noisy_database.parent, tmp_path / "scene")
    database = tmp_path / "scene" / "database.db"
    same = run(database, tmp_path / "same", options(max_error_px=4.0)).models[0]
    strict = run(database, tmp_path / "out", options(max_error_px=1.0)).models[0]
    coarse = rewrite_features(database, "coarse.h5", pixel_scale=4.0)
    assert run(database, tmp_path / "out", options(max_error_px=1.0), features=coarse).models[0] == same
    assert strict.num_observations < 0.9 * same.num_observations
    rewrite_features(database, pixel_scale=4.0)
    assert run(database, tmp_path / "out", options(max_error_px=1.0)).models[0] == same
    assert mapped == ["incremental"] * 3


def test_error_limits_are_px_of_the_photos_without_a_file_of_features(noisy_database: Path, tmp_path: Path) -> None:
    database = Path(shutil.copy2(noisy_database, tmp_path))
    alone = reconstruct(database, noisy_database.parent / "images", tmp_path / "out", OPTIONS)
    assert alone == run(noisy_database, tmp_path / "same")
    with pytest.raises(FileNotFoundError, match=r"other\.h5 does not exist"):
        run(noisy_database, tmp_path / "out", features=tmp_path / "other.h5")


def test_the_python_api_scales_error_limits_as_the_pipeline_does(noisy_database: Path, tmp_path: Path) -> None:
    shutil.copytree(noisy_database.parent, tmp_path / "scene")
    database = tmp_path / "scene" / "database.db"
    rewrite_features(database, pixel_scale=3.0)
    api.reconstruct(database, database.parent / "images", tmp_path / "out", max_error_px=1.0)
    assert json.loads((tmp_path / "out" / "settings.json").read_text())["options"]["max_error_px"] == 3.0


def test_other_poses_are_triangulated_again(database: Path, scene: KnownScene, tmp_path: Path, mapped: list[str]) -> None:
    poses = true_poses(scene)
    run(database, tmp_path / "out", options("triangulation"), known_poses=poses)
    run(database, tmp_path / "out", options("triangulation"), known_poses=poses)
    assert len(mapped) == 1
    del poses[scene.names[0]]
    run(database, tmp_path / "out", options("triangulation"), known_poses=poses)
    assert len(mapped) == 2


# --- interrupted ----------------------------------------------------------------------------------------------------------


def in_a_child(work: Callable[[], object], disturb: Callable[[int], object]) -> int:
    """Does the work in a forked process and calls `disturb` with its id. Returns its wait status; 42 means KeyboardInterrupt."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            work()
            code = 0
        except KeyboardInterrupt:
            code = 42
        finally:
            os._exit(code)
    disturb(child)
    return os.waitpid(child, 0)[1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("after_images", [0, 2, 4])
def test_ctrl_c_keeps_a_readable_partial_model_and_the_next_run_completes(
    database: Path, scene: KnownScene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mapped: list[str], after_images: int
) -> None:
    reading, writing = os.pipe()

    def wait_for_ctrl_c(task: Any) -> None:
        os.write(writing, b".")
        while not task.token.is_cancelled:
            time.sleep(0.01)

    def slow_mapper(task: Any) -> None:
        registered = itertools.count(1)
        if after_images == 0:
            wait_for_ctrl_c(task)
        real(dataclasses.replace(task, on_image=lambda: next(registered) == after_images and wait_for_ctrl_c(task)))

    real = MAPPERS["incremental"]
    with monkeypatch.context() as patch:
        patch.setitem(MAPPERS, "incremental", slow_mapper)
        status = in_a_child(
            lambda: run(database, tmp_path / "out"), lambda child: (os.read(reading, 1), os.kill(child, signal.SIGINT))
        )
    assert os.waitstatus_to_exitcode(status) == 42
    assert json.loads((tmp_path / "out" / "settings.json").read_text())["unfinished"]
    for folder in (path for path in (tmp_path / "out").iterdir() if path.is_dir()):
        assert after_images <= pycolmap.Reconstruction(folder).num_reg_images() < len(scene.names)
    assert run(database, tmp_path / "out").unregistered == []
    assert mapped == ["incremental"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_kill_leaves_the_previous_reconstruction(database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(database, tmp_path / "out")
    before = (tmp_path / "out" / "0" / "points3D.bin").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("sfm_lightglue.reconstruction.stage.write_models", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        status = in_a_child(lambda: run(database, tmp_path / "out", options(seed=1)), lambda child: None)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert (tmp_path / "out" / "0" / "points3D.bin").read_bytes() == before
    run(database, tmp_path / "out", options(seed=1))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


# --- mistakes -------------------------------------------------------------------------------------------------------------


def test_a_missing_database_names_the_stage_to_run(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"database.db does not exist: run the stage database first"):
        run(tmp_path / "database.db", tmp_path / "out")


def test_triangulation_needs_poses_and_keeps_the_previous_model_without_them(database: Path, tmp_path: Path) -> None:
    run(database, tmp_path / "out")
    with pytest.raises(ValueError, match=r"needs the poses of the photos: dataset.poses=FILE"):
        run(database, tmp_path / "out", options("triangulation"))
    assert (tmp_path / "out" / "0" / "images.bin").is_file()


def test_an_unknown_mapper_is_refused_with_the_closest() -> None:
    with pytest.raises(ValueError, match=r"there is no mapper 'incremantal'. Did you mean 'incremental'\?"):
        options("incremantal")


def test_the_mapper_is_less_exact_only_if_a_final_adjustment_follows() -> None:
    exact = incremental_options(OPTIONS, 10)
    quick = incremental_options(dataclasses.replace(OPTIONS, adjustment_scale_px=0.2), 10)
    known = incremental_options(dataclasses.replace(OPTIONS, name="triangulation", adjustment_scale_px=0.2), 10)
    assert exact.ba_local_function_tolerance == exact.ba_global_function_tolerance == 0 and exact.ba_global_frames_ratio == 1.1
    assert quick.ba_local_function_tolerance > quick.ba_global_function_tolerance > 0 and quick.ba_global_frames_ratio > 1.1
    assert known.ba_local_function_tolerance == 0 and known.ba_global_points_ratio == 1.1
