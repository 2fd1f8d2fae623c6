"""Models are joined by common points where they fit together, and stay apart with a reason where they do not."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pycolmap
import pytest
from known_scene import KnownScene, make_database

from sfm_lightglue.model_files import read_model
from sfm_lightglue.reconstruction.common_points import NotJoined, Part, find_common_points
from sfm_lightglue.reconstruction.joining import join_models, join_two
from sfm_lightglue.reconstruction.mappers import ReconstructionOptions
from sfm_lightglue.reconstruction.overlaps import VerifiedPairs

OPTIONS = ReconstructionOptions(
    name="incremental",
    refine_intrinsics=False,
    refine_principal_point="false",
    find_camera_model=False,
    adjustment_scale_px=None,
    adjustment_max_error_px=1.25,
    join=True,
    min_model_size=2,
    min_num_matches=15,
    max_error_px=4.0,
    extract_colors=False,
    num_threads=1,
    seed=0,
    max_cluster_size=150,
    cluster_overlap=20,
    position_priors="none",
    position_std=None,
    align="none",
)
NUM_IMAGES = 6


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    scene = KnownScene(NUM_IMAGES)
    pairs = itertools.combinations(range(NUM_IMAGES), 2)
    return make_database(tmp_path_factory.mktemp("scene"), scene, range(NUM_IMAGES), pairs, noise_px=0.5)


@pytest.fixture(scope="module")
def whole(database: Path, tmp_path_factory: pytest.TempPathFactory) -> pycolmap.Reconstruction:
    """One model of all images."""
    output = tmp_path_factory.mktemp("whole")
    pycolmap.incremental_mapping(database, database.parent, output)
    return pycolmap.Reconstruction(output / "0")


def part(whole: pycolmap.Reconstruction, images: tuple[int, ...], *, turn: bool = False) -> pycolmap.Reconstruction:
    """A model of some images only, in other coordinates if `turn`."""
    model = copy.deepcopy(whole)
    for image_id in sorted(set(model.reg_image_ids()) - {*images}):
        model.deregister_frame(image_id)
    if turn:
        rotation = pycolmap.Rotation3d(np.array([0.1, 0.7, -0.3, 0.6]) / np.linalg.norm([0.1, 0.7, -0.3, 0.6]))
        model.transform(pycolmap.Sim3d(2.5, rotation, np.array([3.0, -1, 7])))
    return model


def write(output: Path, *models: pycolmap.Reconstruction) -> Path:
    for number, model in enumerate(models):
        (output / str(number)).mkdir(parents=True)
        model.write(output / str(number))
    return output


def between(pairs: VerifiedPairs, kept: set[tuple[int, int]], first: set[int]) -> VerifiedPairs:
    """The pairs without those between `first` and other images, except `kept`."""
    matches = {pair: found for pair, found in pairs.matches.items() if (pair[0] in first) == (pair[1] in first) or pair in kept}
    return VerifiedPairs(matches, {pair for pair in pairs.tried if pair in matches})


@pytest.mark.parametrize("parts", [((1, 2, 3, 4), (5, 6)), ((1, 2, 3), (3, 4, 5, 6))])
def test_parts_of_a_scene_become_one_model(
    database: Path, whole: pycolmap.Reconstruction, tmp_path: Path, parts: tuple[tuple[int, ...], tuple[int, ...]]
) -> None:
    output = write(tmp_path / "out", part(whole, parts[0]), part(whole, parts[1], turn=True))
    (note,) = join_models(output, VerifiedPairs.read(database), OPTIONS, set())
    assert "were joined" in note
    (folder,) = output.iterdir()
    joined = pycolmap.Reconstruction(folder)
    assert joined.is_valid() and set(joined.reg_image_ids()) == set(whole.reg_image_ids())
    assert joined.num_points3D() == whole.num_points3D()
    assert joined.compute_mean_reprojection_error() < 1.05 * whole.compute_mean_reprojection_error()
    assert joined.compute_num_observations() > 0.98 * whole.compute_num_observations()
    errors = pycolmap.compare_reconstructions(joined, whole, alignment_error="proj_center")["errors"]
    assert max(error.rotation_error_deg for error in errors) < 0.05


def test_joining_twice_gives_the_same_bytes(database: Path, whole: pycolmap.Reconstruction, tmp_path: Path) -> None:
    for name in ("a", "b"):
        output = write(tmp_path / name, part(whole, (1, 2, 3)), part(whole, (4, 5, 6), turn=True))
        join_models(output, VerifiedPairs.read(database), OPTIONS, set())
    for file in ("images.bin", "points3D.bin", "cameras.bin"):
        assert (tmp_path / "a" / "0" / file).read_bytes() == (tmp_path / "b" / "0" / file).read_bytes()


def test_one_pair_of_photos_does_not_join(database: Path, whole: pycolmap.Reconstruction) -> None:
    pairs = between(VerifiedPairs.read(database), {(3, 4)}, {1, 2, 3})
    with pytest.raises(NotJoined, match=r"of common points fit, in 1 pairs of photos; .* 2 pairs are needed"):
        join_two(part(whole, (1, 2, 3)), part(whole, (4, 5, 6), turn=True), pairs, OPTIONS)


def test_models_without_common_points_are_not_mentioned(database: Path, whole: pycolmap.Reconstruction) -> None:
    pairs = between(VerifiedPairs.read(database), set(), {1, 2, 3})
    with pytest.raises(NotJoined, match=r"^$"):
        join_two(part(whole, (1, 2, 3)), part(whole, (4, 5, 6)), pairs, OPTIONS)


def test_wrong_matches_do_not_join(database: Path, whole: pycolmap.Reconstruction) -> None:
    generator, pairs = np.random.default_rng(0), VerifiedPairs.read(database)
    wrong = {
        pair: np.column_stack([found[:, 0], generator.permutation(found[:, 1])]) if (pair[0] <= 3) != (pair[1] <= 3) else found
        for pair, found in pairs.matches.items()
    }
    with pytest.raises(NotJoined, match="common points fit"):
        join_two(part(whole, (1, 2, 3)), part(whole, (4, 5, 6), turn=True), VerifiedPairs(wrong, pairs.tried), OPTIONS)


def test_a_mirrored_model_is_not_joined(database: Path, whole: pycolmap.Reconstruction) -> None:
    mirrored = part(whole, (4, 5, 6))
    for point in mirrored.points3D.values():
        point.xyz = point.xyz * [-1, 1, 1]
    with pytest.raises(NotJoined, match="common points fit"):
        join_two(part(whole, (1, 2, 3)), mirrored, VerifiedPairs.read(database), OPTIONS)


def test_models_that_would_overlap_without_matches_are_not_joined(database: Path, whole: pycolmap.Reconstruction) -> None:
    """Two sides of a building that look alike: a few pairs match by mistake, and most that would have to match do not."""
    pairs = VerifiedPairs.read(database)
    few = between(pairs, {(3, 4), (2, 4)}, {1, 2, 3})
    with pytest.raises(NotJoined, match=r"3 pairs of photos would show the same things but do not match, 2 match"):
        join_two(part(whole, (1, 2, 3)), part(whole, (4, 5, 6)), VerifiedPairs(few.matches, pairs.tried), OPTIONS)


def test_common_points_come_from_shared_photos_and_from_matches(database: Path, whole: pycolmap.Reconstruction) -> None:
    pairs, none = VerifiedPairs.read(database), VerifiedPairs({}, set())
    model0, model1 = part(whole, (1, 2, 3)), part(whole, (3, 4, 5))
    shared = find_common_points(Part(model0), Part(model1), none)
    assert {*shared.images[:, 0].tolist()} == {*shared.images[:, 1].tolist()} == {3}
    np.testing.assert_array_equal(shared.ids[:, 0], shared.ids[:, 1])  # both models come from the same one
    matched = find_common_points(Part(part(whole, (1, 2))), Part(part(whole, (5, 6))), pairs)
    assert len(matched.ids) > 100 and np.mean(matched.ids[:, 0] == matched.ids[:, 1]) > 0.99


def split_point(model: pycolmap.Reconstruction) -> pycolmap.Reconstruction:
    """A point with four observations becomes two points of two each, at the same place: a doubled surface."""
    point_id = next(point for point in sorted(model.point3D_ids()) if model.point3D(point).track.length() >= 4)
    xyz, elements = (
        model.point3D(point_id).xyz.copy(),
        [(e.image_id, e.point2D_idx) for e in model.point3D(point_id).track.elements],
    )
    model.delete_point3D(point_id)
    for part_of in (elements[:2], elements[2:]):
        model.add_point3D(xyz, pycolmap.Track(elements=[pycolmap.TrackElement(*element) for element in part_of]))
    return model


def test_all_points_that_matches_link_become_one(database: Path, whole: pycolmap.Reconstruction, tmp_path: Path) -> None:
    parts = split_point(part(whole, (1, 2, 3, 4))), split_point(part(whole, (3, 4, 5, 6), turn=True))
    first, second = (read_model(folder) for folder in sorted(write(tmp_path, *parts).iterdir()))
    joined, _ = join_two(first, second, VerifiedPairs.read(database), OPTIONS)
    assert joined.num_points3D() == whole.num_points3D()
    for point in joined.points3D.values():
        images = [element.image_id for element in point.track.elements]
        assert len(images) == len({*images})


def test_common_photos_that_look_elsewhere_do_not_join(database: Path, whole: pycolmap.Reconstruction) -> None:
    """The common photos of the second model are turned; its points and its other photos would fit."""
    turned = part(whole, (3, 4, 5, 6), turn=True)
    turn = pycolmap.Rigid3d(pycolmap.Rotation3d(np.array([0, np.sin(0.1), 0, np.cos(0.1)])), np.zeros(3))
    for image_id in (3, 4):
        image = turned.image(image_id)
        image.frame.set_cam_from_world(image.camera_id, turn * image.cam_from_world())
    with pytest.raises(NotJoined, match="2 of 2 common photos would be turned by more than 5 degrees"):
        join_two(part(whole, (1, 2, 3, 4)), turned, VerifiedPairs.read(database), OPTIONS)


def test_a_few_points_of_one_common_photo_do_not_join(database: Path, whole: pycolmap.Reconstruction) -> None:
    model = part(whole, (3, 4, 5))
    for point_id in sorted(model.point3D_ids())[20:]:
        model.delete_point3D(point_id)
    with pytest.raises(NotJoined, match="they have 20 points in common, 30 are needed"):
        join_two(part(whole, (1, 2, 3)), model, VerifiedPairs({}, set()), OPTIONS)


def test_many_parts_are_joined_in_rounds_the_strongest_first(
    database: Path, whole: pycolmap.Reconstruction, tmp_path: Path
) -> None:
    output = write(tmp_path / "out", part(whole, (1, 2, 3)), part(whole, (2, 3, 4)), part(whole, (4, 5)), part(whole, (5, 6)))
    notes = join_models(output, VerifiedPairs.read(database), OPTIONS, set(), database)
    assert [note.split(" images")[0] for note in notes] == ["models of 3 and 3", "models of 2 and 2", "models of 4 and 3"]
    (folder,) = output.iterdir()
    joined = pycolmap.Reconstruction(folder)
    assert joined.num_reg_images() == NUM_IMAGES and joined.num_points3D() == whole.num_points3D()


def test_joining_can_be_switched_off(database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sfm_lightglue.reconstruction import stage

    monkeypatch.setattr(stage, "complete_models", lambda *_: (["a sentence"], False))
    for join in (True, False):
        options = dataclasses.replace(OPTIONS, join=join)
        for _ in range(2):  # the second time nothing is computed
            report = stage.reconstruct(database, database.parent, tmp_path / str(join), options)
            assert report.joining == (["a sentence"] if join else [])
