"""Local east-north-up coordinates and the file beside a model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sfm_lightglue.georeference import Georeference, Origin, Residual, read_georeference, write_georeference

ORIGIN = Origin(46.84, -91.99, 198.6)


def test_axes_are_east_north_and_up_in_metres() -> None:
    """The radii of curvature of the ellipsoid give the lengths of 0.001 degrees."""
    latitude, height = np.radians(46.84), 198.6
    squeezed = 1 - 0.00669437999 * np.sin(latitude) ** 2
    east_m = (6378137 / np.sqrt(squeezed) + height) * np.cos(latitude) * np.radians(0.001)
    north_m = (6378137 * (1 - 0.00669437999) / squeezed**1.5 + height) * np.radians(0.001)
    east = ORIGIN.to_local(np.array([[46.84, -91.989, 198.6]]))[0]
    north = ORIGIN.to_local(np.array([[46.841, -91.99, 198.6]]))[0]
    up = ORIGIN.to_local(np.array([[46.84, -91.99, 208.6]]))[0]
    np.testing.assert_allclose(east, [east_m, 0, 0], atol=0.001)
    np.testing.assert_allclose(north, [0, north_m, 0], atol=0.001)
    np.testing.assert_allclose(up, [0, 0, 10], atol=1e-6)


def test_points_return_to_their_latitude_and_longitude() -> None:
    points = np.random.default_rng(0).uniform(-2000, 2000, (50, 3))
    np.testing.assert_allclose(ORIGIN.to_local(ORIGIN.to_geodetic(points)), points, atol=1e-6)


def test_the_origin_is_in_the_middle_and_no_wild_position_moves_it() -> None:
    positions = np.array([[46.84 + 1e-5 * i, -91.99, 198.0 + i] for i in range(5)])
    assert Origin.between(positions) == Origin(46.84002, -91.99, 200.0)
    assert Origin.between(np.concatenate([positions, [[10.0, 10.0, -500.0]]])).latitude_deg == pytest.approx(46.84002, abs=2e-5)


def test_the_date_line_divides_no_scene() -> None:
    origin = Origin.between(np.array([[10, 179.9999, 5], [10, -179.9999, 5]]))
    assert abs(origin.longitude_deg) == pytest.approx(180, abs=1e-6)


def test_the_file_keeps_everything(tmp_path: Path) -> None:
    residuals = {"a.jpg": Residual(0.3, -0.4, True), "b c.jpg": Residual(900.0, 12.5, False), "ü.jpg": Residual(0.6, 0.8, True)}
    written = Georeference(ORIGIN, 8.5, np.eye(3), np.array([1.0, 2.0, 3.0]), residuals, 0.156)
    assert written.median_residual_m == pytest.approx(1.0)
    write_georeference(tmp_path, written)
    read = read_georeference(tmp_path)
    assert read is not None
    assert (read.origin, read.scale, read.residuals, read.rotation_error_deg) == (ORIGIN, 8.5, residuals, 0.156)
    np.testing.assert_array_equal(read.rotation, written.rotation)
    np.testing.assert_array_equal(read.translation, written.translation)
    np.testing.assert_allclose(read.to_geodetic(np.zeros((1, 3))), [[46.84, -91.99, 198.6]])
    np.testing.assert_allclose(read.to_local(np.array([[46.84, -91.99, 198.6]])), [[0, 0, 0]], atol=1e-9)


def test_a_model_without_a_georeference_has_none_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    assert read_georeference(tmp_path) is None
    for content in ("{", '{"origin": {}}', "[]"):
        (tmp_path / "georeference.json").write_text(content)
        with pytest.raises(ValueError, match=r"georeference\.json is damaged"):
            read_georeference(tmp_path)
