"""Geometric verification of one pair, on two views with known poses."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pycolmap
import pytest
from omegaconf import OmegaConf

from sfm_lightglue.cameras import Camera
from sfm_lightglue.config_files import config_dir
from sfm_lightglue.geometries.verification import VerificationOptions, verify_matches
from sfm_lightglue.geometry import essential_matrix, sampson_error
from sfm_lightglue.products import Features, Matches, TwoViewGeometry

SIZE = (640, 480)
FOCAL = 600.0
CAMERA = Camera("SIMPLE_PINHOLE", SIZE, (FOCAL, 320.0, 240.0), True)
DEFAULTS = VerificationOptions(**OmegaConf.load(config_dir() / "geometries" / "ransac.yaml"))


@dataclass(frozen=True)
class TwoViews:
    """Two images of one camera; keypoint i of image 0 and keypoint i of image 1 show the same point."""

    features0: Features
    features1: Features
    rotation: np.ndarray
    """(3, 3) cam1_from_cam0."""
    translation: np.ndarray
    """(3,) cam1_from_cam0."""

    @property
    def essential(self) -> np.ndarray:
        return essential_matrix(self.rotation, self.translation)

    @property
    def fundamental(self) -> np.ndarray:
        """(3, 3), for keypoints: the centre of the top-left pixel is at (0, 0)."""
        inverse = np.linalg.inv([[FOCAL, 0, 319.5], [0, FOCAL, 239.5], [0, 0, 1]])
        return inverse.T @ self.essential @ inverse


def make_features(keypoints: np.ndarray, pixel_scale: float = 1.0) -> Features:
    count = len(keypoints)
    return Features(keypoints.astype(np.float32), np.ones(count, np.float32), np.ones((count, 2), np.float32), SIZE, pixel_scale)


def make_matches(indices: np.ndarray) -> Matches:
    return Matches(np.asarray(indices, np.int32).reshape(-1, 2), np.ones(len(indices), np.float32))


def identity(count: int) -> Matches:
    return make_matches(np.column_stack([np.arange(count)] * 2))


def two_views(
    count: int = 200, *, noise_px: float = 0.0, flat: bool = False, baseline: float = 1.0, pixel_scale: float = 1.0
) -> TwoViews:
    """Two views of `count` random points at 4 to 8 times the baseline, on one plane if `flat`.

    `noise_px` is the standard deviation of each coordinate of a keypoint.
    """
    generator = np.random.default_rng(7)
    depths = 5 + 0.5 * generator.random(count) if flat else 4 + 4 * generator.random(count)
    rays = np.column_stack([generator.uniform(-0.45, 0.45, count), generator.uniform(-0.35, 0.35, count), np.ones(count)])
    points0 = rays * depths[:, None]
    if flat:
        points0[:, 2] = 5 + 0.3 * points0[:, 0]
    rotation = pycolmap.Rotation3d(np.array([0.02, 0.1, -0.01])).matrix()
    translation = baseline * np.array([-0.9, 0.1, 0.2])
    points1 = points0 @ rotation.T + translation
    keypoints = [FOCAL * points[:, :2] / points[:, 2:] + (319.5, 239.5) for points in (points0, points1)]
    noisy = [points + noise_px * generator.standard_normal(points.shape) for points in keypoints]
    return TwoViews(make_features(noisy[0], pixel_scale), make_features(noisy[1], pixel_scale), rotation, translation)


def verify(
    views: TwoViews, matches: Matches, options: VerificationOptions = DEFAULTS, *, camera: Camera = CAMERA
) -> TwoViewGeometry:
    return verify_matches(camera.to_colmap(), camera.to_colmap(), views.features0, views.features1, matches, options)


# --- accepted pairs -------------------------------------------------------------------------------------------------------


def test_all_matches_of_an_exact_scene_are_inliers() -> None:
    geometry = verify(two_views(), identity(200))
    assert geometry.configuration == "CALIBRATED"
    np.testing.assert_array_equal(geometry.inlier_matches, identity(200).indices)


def test_the_essential_matrix_belongs_to_the_true_pose() -> None:
    views = two_views()
    estimated, true = verify(views, identity(200)).E, views.essential
    estimated, true = estimated / np.linalg.norm(estimated), true / np.linalg.norm(true)
    error = min(np.abs(estimated - true).max(), np.abs(estimated + true).max())  # its sign is arbitrary
    assert error < 1e-4  # keypoints are float32: 1e-5 px


def test_the_fundamental_matrix_of_unknown_cameras_belongs_to_the_true_pose() -> None:
    views = two_views()
    geometry = verify(views, identity(200), camera=dataclasses.replace(CAMERA, has_prior_focal_length=False))
    assert geometry.configuration == "UNCALIBRATED"
    shift = np.array([[1, 0, -0.5], [0, 1, -0.5], [0, 0, 1]])  # our pixels from COLMAP's
    true = shift.T @ views.fundamental @ shift
    estimated, true = geometry.F / np.linalg.norm(geometry.F), true / np.linalg.norm(true)
    assert min(np.abs(estimated - true).max(), np.abs(estimated + true).max()) < 1e-4


def test_outliers_are_removed_and_true_matches_kept() -> None:
    views = two_views()
    generator = np.random.default_rng(1)
    indices = identity(200).indices.copy()
    indices[120:, 1] = generator.permutation(indices[120:, 1])
    kept = verify(views, make_matches(indices)).inlier_matches
    errors = sampson_error(views.fundamental, views.features0.keypoints[indices[:, 0]], views.features1.keypoints[indices[:, 1]])
    # A wrong match can be close to its epipolar line by chance, so the distance decides and not the index.
    assert {tuple(row) for row in kept} == {tuple(row) for row in indices[errors < DEFAULTS.max_error_px]}
    assert len(kept) < 130


def test_inliers_keep_the_order_of_the_matches() -> None:
    views = two_views()
    matches = make_matches(identity(200).indices[np.random.default_rng(0).permutation(200)])
    np.testing.assert_array_equal(verify(views, matches).inlier_matches, matches.indices)


def test_a_plane_and_a_pure_rotation_have_their_own_configurations() -> None:
    assert verify(two_views(flat=True), identity(200)).configuration.startswith("PLANAR")
    assert verify(two_views(baseline=0.0), identity(200)).configuration in ("PANORAMIC", "PLANAR_OR_PANORAMIC")


# --- the error limit ------------------------------------------------------------------------------------------------------


def test_the_error_limit_is_multiplied_by_the_pixel_scale() -> None:
    options = dataclasses.replace(DEFAULTS, max_error_px=2.0, min_num_inliers=180)
    # 2 px of noise: 68 % of the errors are below 2 px, 99.7 % below 6 px.
    coarse = verify(two_views(noise_px=2.0, pixel_scale=3.0), identity(200), options)
    fine = verify(two_views(noise_px=2.0, pixel_scale=1.0), identity(200), options)
    assert coarse.configuration == "CALIBRATED"
    assert fine.configuration == "DEGENERATE"
    assert coarse.max_error_px == 6.0
    assert fine.max_error_px == 2.0


def test_two_pixel_scales_are_averaged() -> None:
    views = two_views()
    mixed = dataclasses.replace(views, features1=dataclasses.replace(views.features1, pixel_scale=4.0))
    assert verify(mixed, identity(200)).max_error_px == 2.5 * DEFAULTS.max_error_px


# --- rejected pairs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 7, 19])
def test_few_matches_are_rejected(count: int) -> None:
    geometry = verify(two_views(), identity(count))
    assert (geometry.configuration, geometry.rejected_because) == ("DEGENERATE", "few matches")
    assert geometry.inlier_matches.shape == (0, 2)
    assert (geometry.num_matches, geometry.num_needed) == (count, DEFAULTS.min_num_inliers)


@pytest.mark.parametrize("count", [0, 1, 7, 8, 20])
def test_the_estimators_get_enough_matches_even_without_a_limit_on_inliers(count: int) -> None:
    options = dataclasses.replace(DEFAULTS, min_num_inliers=0)
    assert verify(two_views(), identity(count), options).configuration in ("DEGENERATE", "CALIBRATED")


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("size", [(640, 480), (1024, 683)])
@pytest.mark.parametrize("count", [50, 300, 2000])
def test_random_matches_are_rejected(known: bool, size: tuple[int, int], count: int) -> None:
    camera = Camera("SIMPLE_PINHOLE", size, (FOCAL, size[0] / 2, size[1] / 2), known)
    for seed in range(3):
        generator = np.random.default_rng(seed)
        features = [
            dataclasses.replace(make_features(generator.uniform((0, 0), (size[0] - 1, size[1] - 1), (count, 2))), image_size=size)
            for _ in range(2)
        ]
        views = TwoViews(features[0], features[1], np.eye(3), np.zeros(3))
        geometry = verify(views, identity(count), camera=camera)
        assert geometry.rejected_because == "few inliers"
        assert geometry.num_needed is not None and geometry.num_needed > (geometry.num_agreeing or 0)


def test_exactly_min_num_inliers_are_enough() -> None:
    count = DEFAULTS.min_num_inliers
    assert len(verify(two_views(), identity(count)).inlier_matches) == count


def test_a_geometry_with_low_matching_scores_is_rejected() -> None:
    views, sure = two_views(), identity(200)
    assert verify(views, sure).configuration == "CALIBRATED"
    unsure = dataclasses.replace(sure, scores=np.full(200, DEFAULTS.min_mean_score - 0.05, np.float32))
    rejected = verify(views, unsure)
    assert (rejected.rejected_because, rejected.num_agreeing) == ("low score", 200)
    assert rejected.mean_score == pytest.approx(DEFAULTS.min_mean_score - 0.05)
    assert verify(views, unsure, dataclasses.replace(DEFAULTS, min_mean_score=0.0)).configuration == "CALIBRATED"


def test_scores_of_outliers_do_not_count() -> None:
    indices = identity(200).indices.copy()
    indices[100:, 1] = np.random.default_rng(1).permutation(indices[100:, 1])
    matches = dataclasses.replace(make_matches(indices), scores=np.repeat([0.9, 0.1], 100).astype(np.float32))
    assert verify(two_views(), matches).configuration == "CALIBRATED"


@pytest.mark.parametrize("wrong", [(200, 0), (0, 200), (-1, 0), (0, -1)])
def test_indices_outside_the_keypoints_are_refused(wrong: tuple[int, int]) -> None:
    indices = np.vstack([identity(200).indices, wrong])
    with pytest.raises(ValueError, match="the matches belong to other features"):
        verify(two_views(), make_matches(indices))


def test_matches_of_an_image_without_keypoints_are_refused() -> None:
    views = two_views()
    empty = dataclasses.replace(views, features1=make_features(np.zeros((0, 2))))
    with pytest.raises(ValueError, match="200 and 0 keypoints"):
        verify(empty, identity(200))
    assert verify(empty, identity(0)).configuration == "DEGENERATE"


# --- equal input gives equal output ---------------------------------------------------------------------------------------


def test_the_result_is_the_same_in_every_run_and_thread() -> None:
    views = two_views(noise_px=1.0)
    indices = identity(200).indices.copy()
    indices[100:, 1] = np.random.default_rng(1).permutation(indices[100:, 1])
    matches = make_matches(indices)
    expected = verify(views, matches)
    with ThreadPoolExecutor(4) as pool:
        geometries = list(pool.map(lambda _: verify(views, matches), range(12)))
    for geometry in geometries:
        assert geometry.configuration == expected.configuration
        for name in ("inlier_matches", "E", "F", "H"):
            np.testing.assert_array_equal(getattr(geometry, name), getattr(expected, name))


def test_the_seed_decides_the_samples() -> None:
    views = two_views(noise_px=1.5)
    geometries = [verify(views, identity(200), dataclasses.replace(DEFAULTS, seed=seed)) for seed in (0, 1)]
    assert not np.array_equal(geometries[0].F, geometries[1].F)


def test_a_mirrored_photo_is_verified_as_the_view_that_its_camera_had() -> None:
    """The keypoints of a photo that is stored mirrored give the same essential matrix as those of the photo as it was taken."""
    views = two_views()
    stored = views.features1.keypoints * [-1, 1] + [SIZE[0] - 1, 0]
    mirrored = dataclasses.replace(views.features1, keypoints=stored.astype(np.float32), orientation=2)
    count = len(views.features0)
    expected = verify_matches(*[CAMERA.to_colmap()] * 2, views.features0, views.features1, identity(count), DEFAULTS)
    found = verify_matches(*[CAMERA.to_colmap()] * 2, views.features0, mirrored, identity(count), DEFAULTS)
    assert expected.is_verified and expected.E is not None and found.E is not None
    np.testing.assert_allclose(found.E, expected.E, atol=1e-4)
    np.testing.assert_array_equal(found.inlier_matches, expected.inlier_matches)
