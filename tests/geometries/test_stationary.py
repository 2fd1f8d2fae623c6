"""Overlays that stand still in the frame are found and their matches dropped; scenery that stands still is kept."""

from __future__ import annotations

import itertools
import logging
from pathlib import Path

import numpy as np
import pytest

from sfm_lightglue.cameras import Camera
from sfm_lightglue.geometries.stage import VerificationReport, verify_pairs
from sfm_lightglue.geometries.stationary import GRID, Overlays, drop_stationary, find_overlays
from sfm_lightglue.geometries.verification import VerificationOptions
from sfm_lightglue.geometry import essential_matrix, sampson_error
from sfm_lightglue.products import Features, Matches, Pair
from sfm_lightglue.storage import H5Reader, ShardStore, features_to_group, match_key, matches_to_group

SIZE = (640, 480)
FOCAL = 600.0
NUM_SCENE, NUM_OVERLAY = 150, 80
NAMES = [f"{index}.jpg" for index in range(4)]
CAMERA = Camera("SIMPLE_PINHOLE", SIZE, (FOCAL, 320.0, 240.0), True)

View = tuple[np.ndarray, np.ndarray]
"""Rotation (3, 3) and translation (3,), cam_from_world."""


def views(*, turn: float = 0.06, step: float = 0.5, forward: float = 0.0) -> list[View]:
    """Cameras that turn by `turn` radians and move by `step` to the right and `forward` along the view, at each photo."""
    result = []
    for index in range(len(NAMES)):
        angle = turn * index
        rotation = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
        result.append((rotation, rotation @ -np.array([step * index, 0.05 * index * bool(step), forward * index])))
    return result


def scene(cameras: list[View], *, num_overlay: int = NUM_OVERLAY, noise_px: float = 0.2, static: bool = False) -> list[Features]:
    """Keypoint i of each photo shows point i of the scene. The last `num_overlay` lie on an overlay in the bottom quarter."""
    generator = np.random.default_rng(0)
    depth = generator.uniform(4, 8, NUM_SCENE)
    rays = np.column_stack(
        [generator.uniform(-0.4, 0.4, NUM_SCENE), generator.uniform(-0.35, 0.1, NUM_SCENE), np.ones(NUM_SCENE)]
    )
    overlay = generator.uniform((0, 370), (639, 479), (num_overlay, 2))
    features = []
    for name, (rotation, translation) in zip(NAMES, cameras[:1] * len(NAMES) if static else cameras, strict=True):
        points = (rays * depth[:, None]) @ rotation.T + translation
        keypoints = np.vstack([FOCAL * points[:, :2] / points[:, 2:] + (319.5, 239.5), overlay])
        keypoints += noise_px * generator.standard_normal(keypoints.shape)
        count = len(keypoints)
        visible = np.clip(keypoints, 0, np.array(SIZE) - 1).astype(np.float32)
        features.append(Features(visible, np.ones(count, np.float32), np.ones((count, 2), np.float32), SIZE, name=name))
    return features


def all_matches(count: int) -> Matches:
    return Matches(np.column_stack([np.arange(count)] * 2).astype(np.int32), np.ones(count, np.float32))


def pairs_of(features: list[Features]) -> list[tuple[Features, Features, Matches]]:
    return [(first, second, all_matches(len(first))) for first, second in itertools.combinations(features, 2)]


def find(features: list[Features]) -> Overlays:
    return find_overlays(pairs_of(features), 1.0)


def test_a_hood_is_found_where_it_is_and_its_matches_are_dropped() -> None:
    features = scene(views())
    overlays = find(features)
    assert overlays.describe().startswith("rows 7") and overlays.describe().endswith("-100 %, columns 0-100 %")
    for first, second, matches in pairs_of(features):
        kept = drop_stationary(first, second, matches, overlays)
        assert set(range(NUM_SCENE)) <= set(kept.indices[:, 0].tolist())
        assert len(kept) <= NUM_SCENE + 0.1 * NUM_OVERLAY


def test_without_overlays_nothing_is_found() -> None:
    assert not find(scene(views(), num_overlay=0))


def test_a_tripod_keeps_its_matches() -> None:
    """Everything stands still, so nothing tells an overlay from the scene; also if other photos show the overlay."""
    still, moving = scene(views(), static=True), scene(views())
    assert not find(still)
    first, second, matches = pairs_of(still)[0]
    assert len(drop_stationary(first, second, matches, find(moving))) == len(matches)


@pytest.mark.parametrize("noise_px", [0.0, 0.3])
def test_forward_motion_keeps_the_matches_near_its_direction(noise_px: float) -> None:
    """They hardly move, but the motion grows slowly around them."""
    assert not find(scene(views(turn=0.0, step=0.0, forward=0.02), num_overlay=0, noise_px=noise_px))


def test_an_orbit_keeps_the_matches_at_its_centre() -> None:
    """A camera that stays pointed at a point 6 units away sees it in the middle of all photos."""
    assert not find(scene(views(turn=0.05, step=0.3), num_overlay=0))


def test_the_matches_of_one_pair_alone_do_not_make_an_overlay_in_a_larger_collection() -> None:
    features = scene(views())
    without = scene(views(), num_overlay=0)
    pairs = [pairs_of(features)[0], *pairs_of(without)[1:]]
    assert not find_overlays(pairs, 1.0)
    assert find_overlays(pairs[:1], 1.0)


def test_photos_of_different_sizes_are_not_compared() -> None:
    first, second = scene(views())[:2]
    other = Features(second.keypoints, second.scores, second.descriptors, (800, 600), name=second.name)
    assert not find_overlays([(first, other, all_matches(len(first)))], 1.0)


def test_the_limit_is_in_detection_pixels() -> None:
    """Keypoints of a photo that was reduced to a quarter are accurate to some px of the full photo."""
    features = scene(views(turn=0.0), noise_px=1.2)
    assert not find(features)
    reduced = [Features(f.keypoints, f.scores, f.descriptors, SIZE, pixel_scale=4.0, name=f.name) for f in features]
    assert find(reduced)


@pytest.mark.parametrize("limit", [0.0, -1.0, float("nan")])
def test_a_limit_that_is_not_positive_is_refused(limit: float) -> None:
    with pytest.raises(ValueError, match=r"geometries\.stationary_max_error_px must be more than 0"):
        VerificationOptions(2.0, 15, 0.0, 0.9999, 500, 0, limit, 1.0)


# --- the stage ------------------------------------------------------------------------------------------------------------


def verify(folder: Path, features: list[Features], limit: float | None) -> VerificationReport:
    pairs = [Pair(*names) for names in itertools.combinations(NAMES, 2)]
    folder.mkdir(exist_ok=True)
    with ShardStore(folder / "features.h5", {}) as store:
        for each in features:
            store.add(each.name, features_to_group(each), "")
        store.merge()
    with ShardStore(folder / "matches.h5", {}) as store:
        for pair in pairs:
            count = len(features[0])
            store.add(match_key(pair.name0, pair.name1), matches_to_group(all_matches(count), count), "")
        store.merge()
    options = VerificationOptions(2.0, 15, 0.0, 0.9999, 500, 0, limit, 1.0)
    cameras = dict.fromkeys(NAMES, CAMERA)
    return verify_pairs(folder / "features.h5", folder / "matches.h5", pairs, folder / "verification.h5", options, cameras)


def largest_error_of_the_scene(folder: Path, cameras: list[View], features: list[Features]) -> float:
    """Largest mean epipolar error, px, of the true matches of the scene in the estimated geometries."""
    errors = []
    with H5Reader(folder / "verification.h5") as reader:
        for first, second in itertools.combinations(range(len(NAMES)), 2):
            geometry = reader.geometry(NAMES[first], NAMES[second])
            assert geometry.F is not None and geometry.num_matches == len(features[0])
            points = [features[index].keypoints[:NUM_SCENE] + 0.5 for index in (first, second)]
            errors.append(sampson_error(geometry.F, *points).mean())
    return max(errors)


def test_the_stage_drops_them_and_tells_where(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cameras = views()
    features = scene(cameras)
    with caplog.at_level(logging.WARNING):
        report = verify(tmp_path / "with", features, 1.0)
    assert report.num_stationary_pairs == 6 and report.num_stationary_matches > 0.9 * 6 * NUM_OVERLAY
    (message,) = [record.getMessage() for record in caplog.records if "stand still" in record.getMessage()]
    assert f"{report.num_stationary_matches} matches of 6 of 6 pairs" in message and report.overlays in message
    assert largest_error_of_the_scene(tmp_path / "with", cameras, features) < 0.3
    verify(tmp_path / "without", features, None)
    assert largest_error_of_the_scene(tmp_path / "without", cameras, features) > 0.6


def test_without_overlays_the_geometries_are_the_same(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    features = scene(views(), num_overlay=0)
    report = verify(tmp_path / "with", features, 1.0)
    assert (report.num_stationary_matches, report.num_stationary_pairs, report.overlays) == (0, 0, "")
    assert report == verify(tmp_path / "without", features, None)
    assert not caplog.records
    with H5Reader(tmp_path / "with" / "verification.h5") as first, H5Reader(tmp_path / "without" / "verification.h5") as second:
        assert "overlays" not in first.settings
        for names in itertools.combinations(NAMES, 2):
            np.testing.assert_array_equal(first.geometry(*names).F, second.geometry(*names).F)
            np.testing.assert_array_equal(first.geometry(*names).inlier_matches, second.geometry(*names).inlier_matches)


def test_a_repeated_stage_computes_nothing_and_reports_the_same(tmp_path: Path) -> None:
    features = scene(views())
    report = verify(tmp_path, features, 1.0)
    content = (tmp_path / "verification.h5").read_bytes()
    assert verify(tmp_path, features, 1.0) == report
    assert (tmp_path / "verification.h5").read_bytes() == content


def test_the_true_geometry_of_the_scene_is_what_the_errors_are_measured_against() -> None:
    """The oracle: with the true poses the scene has the noise as its error, and the overlay does not fit."""
    cameras = views()
    features = scene(cameras)
    (rotation0, translation0), (rotation1, translation1) = cameras[0], cameras[3]
    rotation = rotation1 @ rotation0.T
    inverse = np.linalg.inv([[FOCAL, 0, 319.5], [0, FOCAL, 239.5], [0, 0, 1]])
    fundamental = inverse.T @ essential_matrix(rotation, translation1 - rotation @ translation0) @ inverse
    errors = sampson_error(fundamental, features[0].keypoints, features[3].keypoints)
    assert errors[:NUM_SCENE].mean() < 0.3 < 2 < errors[NUM_SCENE:].mean()


def test_a_region_that_ends_within_a_cell_of_the_edge_is_said_to_reach_it() -> None:
    size = 640, 640
    last = GRID - 2  # the last row has no keypoints
    overlays = Overlays(1.0, {size: frozenset((column, row) for column in range(1, 5) for row in (last - 1, last))})
    assert overlays.describe() == f"rows {100 * (last - 1) / GRID:.0f}-100 %, columns 0-{100 * 5 / GRID:.0f} %"
