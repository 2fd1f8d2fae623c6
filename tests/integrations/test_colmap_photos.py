"""Photos that COLMAP cannot read are undistorted all the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pycolmap
import pytest
from PIL import Image as PILImage

from sfm_lightglue.images import UnreadableImage, load_image
from sfm_lightglue.integrations.colmap_photos import write_for_colmap

SIZE = 64, 48


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model of five photos, of which COLMAP reads two, with photos in `photos`."""
    reconstruction = pycolmap.Reconstruction()
    camera = pycolmap.Camera(camera_id=1, model="SIMPLE_RADIAL", width=SIZE[0], height=SIZE[1], params=[70, 32, 24, 0.01])
    reconstruction.add_camera_with_trivial_rig(camera)
    (tmp_path / "photos" / "sub").mkdir(parents=True)
    picture = PILImage.fromarray(np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)).resize(SIZE)
    for number, name in enumerate(["a.jpg", "b.webp", "sub/c.avif", "sub/d.png", "e.gif"], start=1):
        picture.save(tmp_path / "photos" / name)
        image = pycolmap.Image(name=name, camera_id=1, image_id=number, points2D=[pycolmap.Point2D([32, 24])])
        reconstruction.add_image_with_trivial_frame(image, pycolmap.Rigid3d())
    track = pycolmap.Track()
    for number in range(1, 6):
        track.add_element(number, 0)
    reconstruction.add_point3D([0, 0, 5], track)
    (tmp_path / "model").mkdir()
    reconstruction.write(tmp_path / "model")
    return tmp_path / "model"


def pictures(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_every_photo_is_undistorted(model: Path, tmp_path: Path) -> None:
    pycolmap.undistort_images(tmp_path / "before", model, tmp_path / "photos")
    assert pictures(tmp_path / "before" / "images") == ["a.jpg", "sub/d.png"], "COLMAP alone"

    converted = write_for_colmap(model, tmp_path / "photos", tmp_path / "readable")
    assert converted == ["b.webp", "e.gif", "sub/c.avif"]
    pycolmap.undistort_images(tmp_path / "dense", tmp_path / "readable" / "sparse", tmp_path / "readable" / "images")
    expected = ["a.jpg", "b.webp.png", "e.gif.png", "sub/c.avif.png", "sub/d.png"]
    assert pictures(tmp_path / "dense" / "images") == pictures(tmp_path / "readable" / "images") == expected
    for name in ("b.webp", "e.gif", "sub/c.avif"):
        copy = np.asarray(PILImage.open(tmp_path / "readable" / "images" / f"{name}.png"))
        np.testing.assert_array_equal(copy, load_image(tmp_path / "photos", name).pixels)


def test_the_model_and_the_photos_stay_as_they_are(model: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    write_for_colmap(model, tmp_path / "photos", tmp_path / "readable")
    assert all(path.read_bytes() == content for path, content in before.items())
    with pytest.raises(ValueError, match="has other files already"):
        write_for_colmap(model, tmp_path / "photos", tmp_path / "photos")


def test_a_missing_photo_is_an_error(model: Path, tmp_path: Path) -> None:
    (tmp_path / "photos" / "b.webp").unlink()
    with pytest.raises(UnreadableImage, match="No such file"):
        write_for_colmap(model, tmp_path / "photos", tmp_path / "readable")
