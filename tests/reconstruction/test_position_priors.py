"""GPS positions as priors: a bent model gets its shape from them, and a good model keeps its own, even if they are wrong."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pycolmap
import pytest
from known_scene import MAPPER_OPTIONS

from sfm_lightglue.georeference import Origin
from sfm_lightglue.model_files import read_model
from sfm_lightglue.positions import MIN_PRIORS
from sfm_lightglue.reconstruction.adjustment import adjust_model, adjust_models
from sfm_lightglue.reconstruction.alignment import read_gps_positions
from sfm_lightglue.reconstruction.position_priors import KnownPositions, adjust_to_positions, known_positions
from sfm_lightglue.similarity import align_similarity

OPTIONS = dataclasses.replace(
    MAPPER_OPTIONS,
    refine_intrinsics=True,
    refine_principal_point="false",
    adjustment_scale_px=0.5,
    adjustment_max_error_px=2.0,
    position_priors="gps",
)
SIZE, FOCAL = (1200, 900), 1000.0
NUM_PHOTOS = 20
ORIGIN = Origin(48.0, 9.0, 300.0)
"""Of the positions in the tests: the place (0, 0, 0)."""
NAMES = [f"{index:02d}.jpg" for index in range(NUM_PHOTOS)]


def make_flight(
    second_term: float = 0.0, *, seed: int = 0
) -> tuple[pycolmap.Reconstruction, pycolmap.CorrespondenceGraph, np.ndarray]:
    """A model of a flight along a line, its matches, and the true centres: east, north, up, m.

    The photos look down from 60 m. Their lens has a second radial term that the model's camera does not have: it bends the model.
    """
    generator = np.random.default_rng(seed)
    truth = pycolmap.Camera(model="RADIAL", width=SIZE[0], height=SIZE[1], params=[FOCAL, 600, 450, -0.05, second_term])
    points = np.column_stack(
        [generator.uniform(-45, 45, 700), generator.uniform(-40, 280, 700), 2 * generator.standard_normal(700)]
    )
    model, graph = pycolmap.Reconstruction(), pycolmap.CorrespondenceGraph()
    camera = pycolmap.Camera(camera_id=1, model="SIMPLE_RADIAL", width=SIZE[0], height=SIZE[1], params=[FOCAL, 600, 450, -0.05])
    model.add_camera_with_trivial_rig(camera)
    tracks: list[list[pycolmap.TrackElement]] = [[] for _ in points]
    centers = np.column_stack(
        [3 * generator.standard_normal(NUM_PHOTOS), 12.0 * np.arange(NUM_PHOTOS), np.full(NUM_PHOTOS, 60.0)]
    )
    for index, center in enumerate(centers):
        rotation = pycolmap.Rotation3d(0.05 * generator.standard_normal(3)).matrix() @ np.diag([1, -1, -1])
        in_camera = (points - center) @ rotation.T
        seen = truth.img_from_cam(in_camera)
        visible = np.flatnonzero(((seen > 0) & (seen < SIZE)).all(axis=1) & (np.abs(in_camera[:, :2]).max(axis=1) < 60))
        keypoints = seen[visible] + 0.3 * generator.standard_normal((len(visible), 2))
        for position, point in enumerate(visible):
            tracks[point].append(pycolmap.TrackElement(index + 1, position))
        image = pycolmap.Image(NAMES[index], keypoints, camera_id=1, image_id=index + 1)
        model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(pycolmap.Rotation3d(rotation), -rotation @ center))
        graph.add_image(index + 1, len(visible))
    for point, track in zip(points, tracks, strict=True):
        if len(track) >= 2:
            model.add_point3D(point, pycolmap.Track(elements=track))
    graph.finalize()
    return model, graph, centers


@pytest.fixture(scope="module")
def bent() -> tuple[pycolmap.Reconstruction, np.ndarray]:
    """A model that its camera has bent, after the final adjustment, and the true centres."""
    return _adjusted(0.03)


@pytest.fixture(scope="module")
def good() -> tuple[pycolmap.Reconstruction, np.ndarray]:
    return _adjusted(0.0)


def _adjusted(second_term: float) -> tuple[pycolmap.Reconstruction, np.ndarray]:
    model, graph, centers = make_flight(second_term)
    adjust_model(model, graph, OPTIONS)
    return model, centers


def positions_at(places: np.ndarray, accuracy_m: float = 1.0, names: list[str] = NAMES) -> KnownPositions:
    return KnownPositions(names, places, np.full((len(places), 2), accuracy_m), "m", 0.01, gives_coordinates=False)


def noise(deviation_m: float) -> np.ndarray:
    return deviation_m * np.random.default_rng(0).standard_normal((NUM_PHOTOS, 3))


def errors(model: pycolmap.Reconstruction, centers: np.ndarray) -> float:
    """Mean distance of the cameras from the truth, m, after the best similarity."""
    found = np.array([model.find_image_with_name(name).projection_center() for name in NAMES])
    scale, rotation, translation = align_similarity(found, centers)
    return float(np.linalg.norm(scale * found @ rotation.T + translation - centers, axis=1).mean())


def test_positions_unbend_a_model(bent: tuple[pycolmap.Reconstruction, np.ndarray]) -> None:
    model, centers = bent
    straight, note = adjust_to_positions(model, positions_at(centers + noise(0.1), 0.1), OPTIONS)
    assert errors(straight, centers) < 0.4 * errors(model, centers)
    assert note.startswith(
        "20 positions are priors, with standard deviations of 0.1 m horizontally and 0.1 m vertically: distance"
    )
    assert straight.num_points3D() == model.num_points3D()


def test_the_model_stays_in_its_own_coordinates(good: tuple[pycolmap.Reconstruction, np.ndarray]) -> None:
    model, centers = good
    turned = copy.deepcopy(model)
    turned.transform(pycolmap.Sim3d(0.1, pycolmap.Rotation3d(np.array([0.3, 0.2, 0.1])), np.array([1.0, 2.0, 3.0])))
    adjusted, _ = adjust_to_positions(turned, positions_at(centers + noise(1.0)), OPTIONS)
    moved = [
        adjusted.find_image_with_name(name).projection_center() - turned.find_image_with_name(name).projection_center()
        for name in NAMES
    ]
    assert np.linalg.norm(moved, axis=1).max() < 0.1


def test_noise_of_positions_does_not_bend_a_good_model(good: tuple[pycolmap.Reconstruction, np.ndarray]) -> None:
    model, centers = good
    adjusted, _ = adjust_to_positions(model, positions_at(centers + noise(3.0)), OPTIONS)
    assert errors(adjusted, centers) < errors(model, centers) + 0.05


@pytest.mark.parametrize("accuracy_m", [1.0, 0.1])
def test_wrong_positions_do_not_bend_a_good_model(good: tuple[pycolmap.Reconstruction, np.ndarray], accuracy_m: float) -> None:
    """They are 10 m too high at both ends, and the photos may say that they are precise."""
    model, centers = good
    wrong = centers + np.outer(10 * (np.linspace(-1, 1, NUM_PHOTOS)) ** 2, [0, 0, 1])
    adjusted, note = adjust_to_positions(model, positions_at(wrong, accuracy_m), OPTIONS)
    assert errors(adjusted, centers) < 0.3
    assert "wild positions: " in note


def test_wild_positions_count_for_nothing(bent: tuple[pycolmap.Reconstruction, np.ndarray]) -> None:
    model, centers = bent
    places = centers + noise(0.1)
    places[[2, 9, 13, 17]] += (3000.0, -500.0, 200.0)
    adjusted, note = adjust_to_positions(model, positions_at(places, 0.1), OPTIONS)
    assert errors(adjusted, centers) < 0.5 * errors(model, centers)
    assert note.endswith("wild positions: 4")


def test_the_result_is_the_same_each_time_and_the_given_model_stays(
    bent: tuple[pycolmap.Reconstruction, np.ndarray], tmp_path: Path
) -> None:
    model, centers = bent
    for number in range(3):
        (tmp_path / str(number)).mkdir()
    model.write(tmp_path / "0")
    written = []
    for number in (1, 2):
        adjusted, _ = adjust_to_positions(model, positions_at(centers + noise(1.0)), OPTIONS)
        adjusted.write(tmp_path / str(number))
        written.append([path.read_bytes() for path in sorted((tmp_path / str(number)).iterdir())])
    assert written[0] == written[1]
    before = [path.read_bytes() for path in sorted((tmp_path / "0").iterdir())]
    model.write(tmp_path / "0")
    assert [path.read_bytes() for path in sorted((tmp_path / "0").iterdir())] == before


@pytest.mark.parametrize(
    ("places", "reason"),
    [
        (np.zeros((NUM_PHOTOS, 3)), "positions are no priors: all its photos have the same position"),
        (100 * np.random.default_rng(0).random((NUM_PHOTOS, 3)), "positions are no priors: they disagree with the model by"),
    ],
)
def test_positions_that_say_nothing_are_no_priors(
    good: tuple[pycolmap.Reconstruction, np.ndarray], places: np.ndarray, reason: str
) -> None:
    model, _ = good
    adjusted, note = adjust_to_positions(model, positions_at(places), OPTIONS)
    assert adjusted is model
    assert note.startswith(reason)


@pytest.mark.parametrize("count", [2, MIN_PRIORS - 1])
def test_a_few_positions_are_no_priors(good: tuple[pycolmap.Reconstruction, np.ndarray], count: int) -> None:
    model, centers = good
    adjusted, note = adjust_to_positions(model, positions_at(centers[:count], names=NAMES[:count]), OPTIONS)
    assert adjusted is model
    assert note.startswith(f"positions are no priors: {count} of its photos have ")


def test_positions_that_fit_no_photo_better_are_refused(good: tuple[pycolmap.Reconstruction, np.ndarray]) -> None:
    model, centers = good
    places = centers + np.outer(2 * np.sin(np.arange(NUM_PHOTOS)), [1, 0, 0])
    precise = dataclasses.replace(OPTIONS, adjustment_scale_px=50.0)  # observations that hardly count
    adjusted, note = adjust_to_positions(model, positions_at(places, 0.001), precise)
    assert adjusted is model and note.startswith("positions are no priors, because they do not fit the photos: distance")


def test_the_accuracy_comes_from_the_database(tmp_path: Path) -> None:
    model, graph, centers = make_flight(0.03)
    database = write_database(tmp_path / "database.db", model, graph, centers, accuracy_m=(0.02, 0.05))
    np.testing.assert_allclose(read_gps_positions(database).accuracies, np.tile([0.02, 0.05], (NUM_PHOTOS, 1)))
    unknown = write_database(tmp_path / "unknown.db", model, graph, centers, accuracy_m=None)
    assert np.isnan(read_gps_positions(unknown).accuracies).all()
    for path, std, expected in ((unknown, None, 1.0), (unknown, 0.3, 0.3), (database, 0.3, 0.02)):
        found = known_positions(path, dataclasses.replace(OPTIONS, position_std=std))
        assert found is not None and found.accuracies[0, 0] == pytest.approx(expected)


def test_known_poses_give_the_shape_and_the_coordinates(bent: tuple[pycolmap.Reconstruction, np.ndarray], tmp_path: Path) -> None:
    model, centers = bent
    poses = {name: np.column_stack([np.eye(3), -place]) for name, place in zip(NAMES, centers / 1000, strict=True)}
    options = dataclasses.replace(OPTIONS, position_priors="poses", position_std=1e-4)
    positions = known_positions(tmp_path / "none.db", options, poses)
    assert positions is not None
    adjusted, note = adjust_to_positions(model, positions, options)
    assert "standard deviations of 0.0001 units" in note
    found = np.array([adjusted.find_image_with_name(name).projection_center() for name in NAMES])
    assert np.linalg.norm(1000 * found - centers, axis=1).mean() < 0.4 * errors(model, centers)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"position_priors": "gsp"}, "position_priors=gsp: expected gps, poses or none"),
        ({"adjustment_scale_px": None}, "reconstruction.adjustment_scale_px=null leaves it out"),
        ({"name": "triangulation"}, "reconstruction=triangulation leaves it out"),
        ({"position_priors": "poses"}, "reconstruction.position_std=0.05"),
        ({"position_std": 0}, "position_std"),
        ({"position_std": 1e-300}, "position_std must be at least 1e-6 and at most 1e6"),
        ({"position_std": 1e300}, "position_std"),
    ],
)
def test_options_that_do_not_fit_are_told(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(OPTIONS, **changes)


@pytest.mark.parametrize("wanted", ["gps", "none"])
def test_models_are_adjusted_to_the_positions_in_the_database(tmp_path: Path, wanted: str) -> None:
    model, graph, centers = make_flight(0.03)
    database = write_database(tmp_path / "database.db", model, graph, centers, accuracy_m=(0.1, 0.1))
    (tmp_path / "models" / "0").mkdir(parents=True)
    model.write(tmp_path / "models" / "0")
    notes = adjust_models(tmp_path / "models", database, dataclasses.replace(OPTIONS, position_priors=wanted))
    error = errors(read_model(tmp_path / "models" / "0"), centers)
    assert error < 0.06 if wanted == "gps" else error > 0.1
    assert [note.startswith("model 0, 20 positions are priors") for note in notes] == [True] * (wanted == "gps")


def test_a_failure_with_the_positions_keeps_the_final_adjustment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model, graph, centers = make_flight()
    database = write_database(tmp_path / "database.db", model, graph, centers, accuracy_m=(0.1, 0.1))
    written = []
    for wanted in ("none", "gps"):
        folder = tmp_path / wanted / "0"
        folder.mkdir(parents=True)
        model.write(folder)
        with monkeypatch.context() as patched:
            patched.setattr("sfm_lightglue.reconstruction.adjustment.adjust_to_positions", _fails)
            notes = adjust_models(folder.parent, database, dataclasses.replace(OPTIONS, position_priors=wanted))
        written.append([path.read_bytes() for path in sorted(folder.iterdir())])
    assert written[0] == written[1]
    expected = "model 0, positions are no priors: the adjustment to them failed (no solution)"
    assert notes[-1] == expected
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [expected]


def _fails(*_: object) -> None:
    raise ValueError("no solution")


def write_database(
    path: Path,
    model: pycolmap.Reconstruction,
    graph: pycolmap.CorrespondenceGraph,
    centers: np.ndarray,
    accuracy_m: tuple[float, float] | None,
) -> Path:
    """A database with the photos of a model, its tracks as verified matches, and the positions."""
    matches: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for point in model.points3D.values():
        seen = sorted((element.image_id, element.point2D_idx) for element in point.track.elements)
        for first, second in itertools.combinations(seen, 2):
            matches.setdefault((first[0], second[0]), []).append((first[1], second[1]))
    with pycolmap.Database.open(path) as rows, pycolmap.DatabaseTransaction(rows):
        rows.write_camera(model.camera(1), use_camera_id=True)
        for image_id, place in zip(sorted(model.reg_image_ids()), ORIGIN.to_geodetic(centers), strict=True):
            image = pycolmap.Image(model.image(image_id).name, camera_id=1, image_id=image_id)
            rows.write_image(image, use_image_id=True)
            rows.write_keypoints(image_id, np.array([point.xy for point in model.image(image_id).points2D], np.float32))
            prior = pycolmap.PosePrior(position=place, coordinate_system=pycolmap.PosePriorCoordinateSystem.WGS84)
            if accuracy_m is not None:
                prior.position_covariance = np.diag([accuracy_m[0], accuracy_m[0], accuracy_m[1]]) ** 2
            prior.corr_data_id = image.data_id
            rows.write_pose_prior(prior)
        for (first, second), found in sorted(matches.items()):
            geometry = pycolmap.TwoViewGeometry()
            geometry.config = int(pycolmap.TwoViewGeometryConfiguration.CALIBRATED)
            geometry.inlier_matches = np.array(sorted(found), np.uint32)
            rows.write_two_view_geometry(first, second, geometry)
    return path
