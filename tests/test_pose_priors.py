"""Pose priors in the database: rows as COLMAP writes them, from EXIF or from a file of positions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap
import pytest
from PIL import ExifTags
from PIL import Image as PILImage

from sfm_lightglue.database import BuildReport, build_database
from sfm_lightglue.geometries.verification import VerificationOptions
from sfm_lightglue.images import list_images
from sfm_lightglue.pose_priors import PosePrior, find_pose_priors, find_positions, listed_positions
from sfm_lightglue.positions import GeoPosition
from sfm_lightglue.products import Features
from sfm_lightglue.storage import ShardStore, features_to_group

PHOTOS = Path(__file__).resolve().parents[2] / "shared" / "data"
GPS: dict[int, Any] = {1: "N", 2: (46.0, 30.0, 36.0), 3: "E", 4: (91.0, 15.0, 0.0), 5: b"\0", 6: 198.5}
OPTIONS = VerificationOptions(
    max_error_px=2.0,
    min_num_inliers=20,
    min_mean_score=0.0,
    confidence=0.9999,
    max_num_trials=200,
    seed=0,
    stationary_max_error_px=None,
    min_confirmed=1.0,
)


def make_photo(path: Path, gps: Mapping[int, Any] | None = None, orientation: int | None = None, size: int = 32) -> None:
    photo = PILImage.new("RGB", (size, size))
    exif = photo.getexif()
    if orientation is not None:
        exif[ExifTags.Base.Orientation] = orientation
    if gps:
        exif.get_ifd(ExifTags.IFD.GPSInfo).update(gps)
    photo.save(path, exif=exif)


def build(images: Path, output: Path, positions: Path | None = None) -> BuildReport:
    """A database of photos without keypoints and pairs."""
    with ShardStore(output / "features.h5", {}) as store:
        for name in list_images(images):
            with PILImage.open(images / name) as photo:
                empty = Features(np.zeros((0, 2), np.float32), np.zeros(0, np.float32), np.zeros((0, 4), np.float32), photo.size)
            store.add(name, features_to_group(empty), "")
        store.merge()
    with ShardStore(output / "matches.h5", {}) as store:
        store.merge()
    return build_database(
        images,
        output / "features.h5",
        output / "matches.h5",
        [],
        output / "database.db",
        OPTIONS,
        intrinsics="single" if images.parent == PHOTOS else "per_image",
        camera_model="SIMPLE_RADIAL",
        positions=positions,
    )


def priors_of(database: Path) -> dict[str, pycolmap.PosePrior]:
    """The rows by name of their image, in the order of their ids."""
    with pycolmap.Database.open(database) as rows:
        images = {image.data_id.id: image for image in rows.read_all_images()}
        priors = sorted(rows.read_all_pose_priors(), key=lambda prior: prior.pose_prior_id)
        assert all(prior.corr_data_id == images[prior.corr_data_id.id].data_id for prior in priors)
        return {images[prior.corr_data_id.id].name: prior for prior in priors}


def imported_by_colmap(images: Path, database: Path) -> dict[str, pycolmap.PosePrior]:
    pycolmap.Database.open(database).close()
    pycolmap.import_images(database, images)
    return priors_of(database)


def assert_as_colmap(found: dict[str, pycolmap.PosePrior], expected: dict[str, pycolmap.PosePrior]) -> None:
    """COLMAP reads seconds and altitudes as float32: 6e-9 degrees and 1e-4 m are lost."""
    assert list(found) == list(expected)
    for name, prior in expected.items():
        assert found[name].corr_data_id.id == prior.corr_data_id.id
        assert found[name].coordinate_system == prior.coordinate_system
        np.testing.assert_array_equal(found[name].gravity, prior.gravity)
        np.testing.assert_allclose(found[name].position[:2], prior.position[:2], rtol=0, atol=6e-9)
        np.testing.assert_allclose(found[name].position[2], prior.position[2], rtol=0, atol=1e-4)


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="needs the folder of photos")
@pytest.mark.parametrize(("folder", "accuracy_m"), [("drone_brighton18", math.nan), ("monstree_exif10", 6.0)])
def test_priors_of_real_photos_are_those_that_colmap_writes(folder: str, accuracy_m: float, tmp_path: Path) -> None:
    images = PHOTOS / folder / "images"
    report = build(images, tmp_path)
    found = priors_of(tmp_path / "database.db")
    assert report.num_positions == report.num_images == len(found)
    assert_as_colmap(found, imported_by_colmap(images, tmp_path / "colmap.db"))
    accuracies = {name: np.sqrt(np.diag(prior.position_covariance)) for name, prior in found.items()}
    np.testing.assert_array_equal(accuracies["IMG_1025.JPG" if accuracy_m > 0 else "DJI_0018.JPG"], np.full(3, accuracy_m))


def test_priors_of_any_tags_are_those_that_colmap_writes(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    make_photo(tmp_path / "images" / "plain.jpg")
    for orientation in range(10):
        make_photo(tmp_path / "images" / f"turned{orientation}.jpg", None, orientation)
    tags = {
        "north_east": GPS,
        "south_west_below": {**GPS, 1: "S", 3: "W", 5: b"\1"},
        "no_altitude": {tag: GPS[tag] for tag in (1, 2, 3, 4)},
        "no_reference": {tag: GPS[tag] for tag in (2, 4, 6)},
    }
    for name, gps in tags.items():
        make_photo(tmp_path / "images" / f"{name}.jpg", gps, 6 if name == "no_altitude" else None)
    report = build(tmp_path / "images", tmp_path)
    found = priors_of(tmp_path / "database.db")
    assert report.num_positions == 3 and len(found) == 8
    assert_as_colmap(found, imported_by_colmap(tmp_path / "images", tmp_path / "colmap.db"))


def test_photos_without_exif_have_no_rows(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    make_photo(tmp_path / "images" / "a.png")
    assert build(tmp_path / "images", tmp_path).num_positions == 0
    assert priors_of(tmp_path / "database.db") == {}


def test_accuracy_becomes_the_covariance() -> None:
    covariances = [
        PosePrior(GeoPosition(1, 2, 3, *accuracy), 0).to_colmap().position_covariance  # type: ignore[union-attr]
        for accuracy in ((2.0, 5.0), (2.0,), ())
    ]
    np.testing.assert_array_equal(covariances[0], np.diag([4, 4, 25]))
    np.testing.assert_array_equal(covariances[1], np.diag([4, 4, 4]))
    assert np.isnan(covariances[2]).all()


def test_a_file_of_positions_replaces_those_of_exif(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a.jpg", "b.jpg"):
        make_photo(tmp_path / name, GPS, 6)
    (tmp_path / "gps.txt").write_text("a.jpg 1 2 3\nz.jpg 4 5 6\n")
    with caplog.at_level("INFO"):
        priors = find_pose_priors(tmp_path, ["b.jpg", "a.jpg"], tmp_path / "gps.txt")
    assert priors == {"a.jpg": PosePrior(GeoPosition(1, 2, 3), 6), "b.jpg": PosePrior(None, 6)}
    assert "positions: 1 of 2 photos, from" in caplog.text
    assert "gps.txt names 1 file that is not among the photos: z.jpg" in caplog.text
    assert find_positions(tmp_path, ["a.jpg"]) == {"a.jpg": GeoPosition(46.51, 91.25, 198.5)}


def test_a_file_with_the_position_of_no_photo_is_refused(tmp_path: Path) -> None:
    (tmp_path / "gps.txt").write_text("z.jpg 4 5 6\n")
    with pytest.raises(ValueError, match=r"position of none of the 2 photos: it names z\.jpg, the photos are a\.jpg, b\.jpg"):
        listed_positions(tmp_path / "gps.txt", ["a.jpg", "b.jpg"])


def test_photos_without_altitude_are_told_apart(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "gps.txt").write_text("a.jpg 1 2 3\nb.jpg 4 5\n")
    with caplog.at_level("INFO"):
        find_pose_priors(tmp_path, ["a.jpg", "b.jpg"], tmp_path / "gps.txt")
    assert "positions: 1 of 2 photos" in caplog.text and "1 photos have a position without altitude" in caplog.text
