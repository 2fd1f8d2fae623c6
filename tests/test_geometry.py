"""Pixel conventions, and epipolar geometry against projections of known points."""

from __future__ import annotations

import jaxtyping
import numpy as np
import pytest
from PIL import Image as PILImage

from sfm_lightglue.geometry import cross_matrix, essential_matrix, keypoints_to_full_image, sampson_error, warp_points


def random_rotation(rng: np.random.Generator) -> np.ndarray:
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    return rotation * np.sign(np.linalg.det(rotation))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize("size", [(400, 300), (401, 299), (133, 77)])
def test_corners_of_the_resized_image_are_corners_of_the_full_image(size: tuple[int, int]) -> None:
    full = (1600, 1200)
    corners = np.array([[-0.5, -0.5], [size[0] - 0.5, size[1] - 0.5]])
    mapped = keypoints_to_full_image(corners, size, full)
    np.testing.assert_allclose(mapped, [[-0.5, -0.5], [1599.5, 1199.5]], atol=1e-3)
    assert mapped.dtype == np.float32


def test_keypoints_of_a_resized_picture_lie_on_the_same_spot_of_the_full_picture(rng: np.random.Generator) -> None:
    """PIL resizes a picture of a blob by different factors in x and y. The centre of mass of the copy maps to the blob."""
    full, size = (640, 480), (213, 111)
    y, x = np.mgrid[: full[1], : full[0]]
    for centre in rng.uniform((100, 100), (540, 380), (5, 2)):
        blob = np.exp(-((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / (2 * 20**2)).astype(np.float32)
        small = np.asarray(PILImage.fromarray(blob).resize(size, PILImage.Resampling.BILINEAR))
        small_y, small_x = np.mgrid[: size[1], : size[0]]
        found = np.array([[(small * small_x).sum(), (small * small_y).sum()]]) / small.sum()
        np.testing.assert_allclose(keypoints_to_full_image(found, size, full)[0], centre, atol=0.02)  # the border cuts the blob


def test_no_keypoints_map_to_no_keypoints() -> None:
    assert keypoints_to_full_image(np.zeros((0, 2)), (10, 10), (20, 20)).shape == (0, 2)
    assert warp_points(np.eye(3), np.zeros((0, 2))).shape == (0, 2)
    assert sampson_error(np.eye(3), np.zeros((0, 2)), np.zeros((0, 2))).shape == (0,)


def test_a_homography_maps_points_as_homogeneous_vectors(rng: np.random.Generator) -> None:
    homography, points = np.eye(3) + rng.normal(scale=0.1, size=(3, 3)), rng.random((10, 2))
    for point, warped in zip(points, warp_points(homography, points), strict=True):
        x, y, w = homography @ [*point, 1]
        np.testing.assert_allclose(warped, [x / w, y / w])


def test_points_warped_there_and_back_are_the_same(rng: np.random.Generator) -> None:
    homography, points = np.eye(3) + rng.normal(scale=0.1, size=(3, 3)), rng.random((10, 2))
    np.testing.assert_allclose(warp_points(np.linalg.inv(homography), warp_points(homography, points)), points, atol=1e-12)


def test_the_cross_matrix_is_the_cross_product(rng: np.random.Generator) -> None:
    a, b = rng.normal(size=(2, 3))
    np.testing.assert_allclose(cross_matrix(a) @ b, np.cross(a, b))


def test_projections_of_one_point_fulfil_the_essential_matrix(rng: np.random.Generator) -> None:
    rotation, translation = random_rotation(rng), rng.normal(size=3)
    in_cam0 = rng.uniform(-1, 1, (20, 3)) + np.array([0, 0, 5])
    in_cam1 = in_cam0 @ rotation.T + translation
    points0, points1 = in_cam0[:, :2] / in_cam0[:, 2:], in_cam1[:, :2] / in_cam1[:, 2:]
    errors = sampson_error(essential_matrix(rotation, translation), points0, points1)
    np.testing.assert_allclose(errors, 0, atol=1e-12)


def test_the_sampson_error_is_the_distance_to_the_nearest_exact_correspondence(rng: np.random.Generator) -> None:
    """Sideways motion: both rows must be equal, so the nearest exact correspondence moves each point by half the difference."""
    fundamental = essential_matrix(np.eye(3), np.array([1.0, 0, 0]))
    points0 = rng.random((10, 2))
    points1 = points0 + np.column_stack([rng.random(10), np.full(10, 0.2)])
    np.testing.assert_allclose(sampson_error(fundamental, points0, points1), 0.2 / np.sqrt(2))


def test_the_sampson_error_does_not_divide_by_zero() -> None:
    assert np.isfinite(sampson_error(np.zeros((3, 3)), np.ones((1, 2)), np.ones((1, 2)))).all()


def test_tests_check_array_shapes_against_annotations() -> None:
    with pytest.raises(jaxtyping.TypeCheckError, match="points"):
        warp_points(np.eye(3), np.zeros((5, 3)))
