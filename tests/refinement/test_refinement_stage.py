"""The stage `refine` on photos of a plane, whose keypoints are known exactly."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image as PILImage

from sfm_lightglue import pipeline
from sfm_lightglue.cameras import Camera
from sfm_lightglue.config import compose_config
from sfm_lightglue.config_files import config_dir
from sfm_lightglue.geometries.inputs import geometry_stamps, input_fingerprints
from sfm_lightglue.pair_files import write_pairs as write_pair_list
from sfm_lightglue.products import Features, Matches, Pair, TwoViewGeometry
from sfm_lightglue.refinement import RefinementOptions, RefinementReport, find_refined, is_too_small_for, refine_keypoints
from sfm_lightglue.run_context import Run as RunContext
from sfm_lightglue.run_kinds import fine_kinds
from sfm_lightglue.storage import (
    H5Reader,
    ShardStore,
    features_to_group,
    geometry_to_group,
    joined_features_to_group,
    match_key,
    matches_to_group,
)

SIZE = (240, 200)
NAMES = ["a.png", "b.png", "sub/c.png", "d.png"]
PAIRS = [Pair(*names) for names in itertools.combinations(sorted(NAMES), 2)]
CAMERAS = dict.fromkeys(NAMES, Camera("SIMPLE_PINHOLE", SIZE, (200.0, 120.0, 100.0), True))
OPTIONS = RefinementOptions(**OmegaConf.load(config_dir() / "refinement" / "patches.yaml"))
VIEWS = {  # photo -> from the plane to the photo: a matrix and a move
    "a.png": (np.eye(2), np.zeros(2)),
    "b.png": (np.array([[1.05, 0.1], [-0.05, 0.95]]), np.array([3.3, -4.7])),
    "d.png": (np.array([[0.9, -0.1], [0.1, 1.0]]), np.array([12.4, 2.2])),
    "sub/c.png": (np.array([[1.0, 0.2], [-0.1, 1.0]]), np.array([-8.6, 6.1])),
}


@dataclass(frozen=True)
class Run:
    """The files of the stages before, and the true keypoints."""

    folder: Path
    truth: dict[str, np.ndarray]

    def refine(self, options: RefinementOptions = OPTIONS, fine: Sequence[str] = ()) -> RefinementReport:
        inputs = (self.folder / f"{name}.h5" for name in ("features", "matches", "verification"))
        return refine_keypoints(self.folder / "images", *inputs, PAIRS, self.output, options, CAMERAS, fine)

    @property
    def output(self) -> Path:
        return self.folder / "keypoints.h5"

    def errors(self, name: str) -> np.ndarray:
        """Distance of the refined keypoints of a photo from the point of the plane that photo a.png, the reference, shows."""
        with H5Reader(self.output) as reader:
            found = {each: reader.bare_features(each).keypoints for each in (name, "a.png")}
        (matrix, move), in_plane = VIEWS[name], found["a.png"].astype(np.float64)
        return np.linalg.norm(found[name] - (in_plane @ matrix.T + move), axis=1)


@functools.cache
def pixels(name: str) -> np.ndarray:
    """A photo of the plane, with waves 6 to 30 px long."""
    random = np.random.default_rng(5)
    angle, length = random.uniform(0, np.pi, 60), random.uniform(6, 30, 60)
    waves = 2 * np.pi / length * np.stack([np.cos(angle), np.sin(angle)])
    matrix, move = VIEWS[name]
    places = np.stack(np.meshgrid(*map(np.arange, SIZE)), axis=-1)
    in_plane = (places - move) @ np.linalg.inv(matrix).T
    values = np.sin(in_plane @ waves + random.uniform(0, 2 * np.pi, 60)).sum(-1)
    return np.rint(np.clip(128 + 12 * values, 0, 255)).astype(np.uint8)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Four photos with keypoints that are wrong by 0.7 px, and a mark of the detector's resizing: 1.5."""
    random = np.random.default_rng(0)
    in_plane = random.uniform((60, 60), (180, 140), (40, 2))
    truth = {name: in_plane @ matrix.T + move for name, (matrix, move) in VIEWS.items()}
    with ShardStore(tmp_path / "features.h5", {}) as store:
        for name, points in truth.items():
            (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
            PILImage.fromarray(pixels(name)).save(tmp_path / "images" / name)
            keypoints = (points + random.normal(0, 0.5, points.shape)).astype(np.float32)
            features = Features(keypoints, np.ones(40, np.float32), np.ones((40, 2), np.float32), SIZE, 1.5)
            store.add(name, features_to_group(features), f"stamp of {name}")
        store.merge()
    write_pairs(tmp_path)
    return Run(tmp_path, truth)


def write_pairs(folder: Path, wrong: bool = False) -> None:
    """All keypoints are matched and verified. With `wrong`, keypoints 0 and 1 are exchanged between a.png and b.png."""
    rows = np.column_stack([np.arange(40)] * 2).astype(np.int32)
    found = {pair: rows for pair in PAIRS}
    if wrong:
        found[PAIRS[0]] = np.column_stack([np.arange(40), [1, 0, *range(2, 40)]]).astype(np.int32)
    with ShardStore(folder / "matches.h5", {}, if_settings_changed="recompute") as store:
        for pair, indices in found.items():
            content = matches_to_group(Matches(indices, np.ones(len(indices), np.float32)), 40)
            store.add(match_key(pair.name0, pair.name1), content, f"{pair.name0} {pair.name1} {wrong}")
        store.merge()
    with H5Reader(folder / "features.h5") as features, H5Reader(folder / "matches.h5") as matches:
        stamps, settings = geometry_stamps(PAIRS, features, matches, CAMERAS), input_fingerprints(features, matches)
    with ShardStore(folder / "verification.h5", settings, if_settings_changed="recompute") as store:
        for pair, stamp in zip(PAIRS, stamps, strict=True):
            geometry = TwoViewGeometry("CALIBRATED", found[pair], len(found[pair]), 2.0, E=np.eye(3), F=np.eye(3))
            store.add(match_key(pair.name0, pair.name1), geometry_to_group(geometry), stamp)
        store.merge()


def test_keypoints_move_to_the_same_points_of_the_surface(run: Run) -> None:
    report = run.refine()
    assert report.num_matched_keypoints == 160
    assert report.num_aligned > 100  # three of four keypoints of a track can move
    for name in NAMES[1:]:
        assert np.median(run.errors(name)) < 0.05


def test_wrong_matches_do_not_move_keypoints_to_wrong_points(run: Run) -> None:
    write_pairs(run.folder, wrong=True)
    run.refine()
    with H5Reader(run.output) as reader:
        for name, points in run.truth.items():
            moved = reader.bare_features(name).keypoints
            assert (np.linalg.norm(moved - points, axis=1) < 3).all()
    assert np.median(run.errors("b.png")) < 0.05


def test_keypoints_move_at_most_as_far_as_allowed_and_correlate(run: Run) -> None:
    run.refine(dataclasses.replace(OPTIONS, max_move_px=0.2))
    with H5Reader(run.folder / "features.h5") as before, H5Reader(run.output) as after:
        for name in NAMES:
            move = np.linalg.norm(after.bare_features(name).keypoints - before.bare_features(name).keypoints, axis=1)
            assert move.max() <= 0.2 * 1.5 + 1e-4
    assert run.refine(dataclasses.replace(OPTIONS, min_correlation=1.0)).num_aligned == 0


def test_keypoints_of_kinds_that_are_fine_stay(run: Run) -> None:
    with H5Reader(run.folder / "features.h5") as reader:
        whole = {name: reader.features(name) for name in NAMES}
    halves = {"sift": slice(0, 20), "disk": slice(20, 40)}
    with ShardStore(run.folder / "features.h5", {"kinds": [*halves]}, if_settings_changed="recompute") as store:
        for name, each in whole.items():
            parts = {
                kind: dataclasses.replace(
                    each, keypoints=each.keypoints[rows], scores=each.scores[rows], descriptors=each.descriptors[rows]
                )
                for kind, rows in halves.items()
            }
            store.add(name, joined_features_to_group(parts), f"stamp of {name}")
        store.merge()
    write_pairs(run.folder)
    report = run.refine(fine=["sift"])
    assert report.num_matched_keypoints == 80 and report.num_aligned > 50
    with H5Reader(run.output) as reader:
        for name in NAMES[1:]:
            moved = (reader.bare_features(name).keypoints != whole[name].keypoints).any(axis=1)
            assert not moved[:20].any() and moved[20:].sum() > 15
            assert np.median(run.errors(name)[20:]) < 0.05
    assert run.refine().num_matched_keypoints == 160  # another choice is another result


@pytest.mark.parametrize(
    ("overrides", "fine"),
    [
        (["features=sift"], [""]),
        (["features=sift", "refinement.fine_keypoints=true"], []),
        (["features=disk"], []),
        (["features=[disk,sift]"], ["sift"]),
    ],
)
def test_the_stage_leaves_the_keypoints_of_sift(overrides: list[str], fine: list[str]) -> None:
    made = RunContext.create(compose_config(["+dataset=folder", "dataset.images=none", "output=none", *overrides]))
    assert fine_kinds(made) == fine
    if fine == [""]:
        assert not pipeline._is_refined(made) and pipeline._refined_keypoints(made) is None


def test_a_repeated_call_does_nothing_and_equal_input_gives_equal_bytes(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run.refine()
    content = run.output.read_bytes()
    run.output.unlink()
    assert run.refine() == first
    assert run.output.read_bytes() == content
    monkeypatch.setattr("sfm_lightglue.refinement.stage.refine_points", None)
    assert run.refine() == first
    assert run.output.read_bytes() == content


@pytest.mark.parametrize("damage", ["broken", "missing", "another size"])
def test_a_bad_photo_does_not_end_the_stage_and_its_keypoints_stay(
    run: Run, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    photo = run.folder / "images" / "b.png"
    whole = photo.read_bytes()
    if damage == "another size":
        PILImage.fromarray(pixels("b.png")[:100]).save(photo)
    elif damage == "missing":
        photo.unlink()
    else:
        photo.write_bytes(photo.read_bytes()[:2000])
    with caplog.at_level(logging.WARNING):
        report = run.refine()
    assert [*report.skipped] == ["b.png"]
    assert "the keypoints of b.png are not refined" in caplog.text
    with H5Reader(run.folder / "features.h5") as before, H5Reader(run.output) as after:
        assert np.array_equal(before.bare_features("b.png").keypoints, after.bare_features("b.png").keypoints)
    assert np.median(run.errors("d.png")) < 0.05
    assert [*run.refine().skipped] == ["b.png"]  # said again
    photo.write_bytes(whole)
    assert run.refine().skipped == {}
    content = run.output.read_bytes()
    run.output.unlink()
    run.refine()
    assert run.output.read_bytes() == content  # as if the photo had always been there


def test_keypoints_of_other_matches_are_refused(run: Run) -> None:
    run.refine()
    write_pairs(run.folder, wrong=True)
    with H5Reader(run.folder / "features.h5") as features, H5Reader(run.folder / "matches.h5") as matches:
        stamps = geometry_stamps(PAIRS, features, matches, CAMERAS)
    with pytest.raises(ValueError, match="run the stage refine again"):
        find_refined(run.output, PAIRS, stamps, NAMES)
    run.refine()
    assert [*find_refined(run.output, PAIRS, stamps, NAMES)] == NAMES


def test_a_collection_without_verified_pairs_has_no_refined_keypoints(run: Run) -> None:
    with H5Reader(run.folder / "features.h5") as features, H5Reader(run.folder / "matches.h5") as matches:
        stamps, settings = geometry_stamps(PAIRS, features, matches, CAMERAS), input_fingerprints(features, matches)
    with ShardStore(run.folder / "verification.h5", settings) as store:
        for pair, stamp in zip(PAIRS, stamps, strict=True):
            rejected = TwoViewGeometry("DEGENERATE", np.zeros((0, 2), np.int32), 40, 2.0, rejected_because="few inliers")
            store.add(match_key(pair.name0, pair.name1), geometry_to_group(rejected), stamp)
        store.merge()
    report = run.refine()
    assert (report.num_matched_keypoints, report.num_aligned, report.median_move_px) == (0, 0, 0.0)


def test_too_many_matches_keep_the_keypoints(run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The limit counts the verified matches of all pairs."""
    with H5Reader(run.folder / "verification.h5") as reader:
        number = int(reader.num_inliers_of(PAIRS).sum())
    shutil.copytree(run.folder, tmp_path / "out")
    write_pair_list(tmp_path / "out" / "pairs.txt", PAIRS)
    for limit in (number, number - 1):
        words = [f"dataset.images={run.folder / 'images'}", f"output={tmp_path / 'out'}", f"refinement.max_matches={limit}"]
        made = RunContext.create(compose_config(["+dataset=folder", *words]))
        with caplog.at_level(logging.INFO):
            assert pipeline._has_too_many_matches(made) == (limit < number)
            assert not is_too_small_for(made.folder.verification, limit)
            assert is_too_small_for(made.folder.verification, 1 + made.folder.verification.stat().st_size // 8)
    assert f"{number} verified matches are more than refinement.max_matches={number - 1}" in caplog.text
