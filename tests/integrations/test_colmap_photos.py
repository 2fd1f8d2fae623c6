"""Photos that COLMAP cannot read are undistorted all the same."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pycolmap
import pytest
from PIL import Image as PILImage

from sfm_lightglue.images import UnreadableImage, load_image
from sfm_lightglue.integrations.colmap_photos import write_for_colmap
from sfm_lightglue.products import Features
from sfm_lightglue.storage import ShardStore, features_to_group

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


def test_mirrored_photos_are_flipped_as_their_keypoints(model: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "reconstruction").mkdir(parents=True)
    model = model.rename(run / "reconstruction" / "0")
    exif = PILImage.Exif()
    exif[0x0112] = 2
    for name in ("a.jpg", "b.webp", "sub/d.png"):
        photo = PILImage.open(tmp_path / "photos" / name)
        photo.save(tmp_path / "photos" / name, exif=exif)
    assert "a.jpg.png" not in write_for_colmap(model, tmp_path / "photos", tmp_path / "unknown"), "no features.h5"

    blank = Features(np.zeros((0, 2), np.float32), np.zeros(0, np.float32), np.zeros((0, 4), np.float32), SIZE)
    with ShardStore(run / "features.h5", {}) as store:
        for name, orientation in {"a.jpg": 2, "b.webp": 2, "sub/d.png": 1}.items():  # d.png was used as it is stored
            store.add(name, features_to_group(dataclasses.replace(blank, name=name, orientation=orientation)), "")
        store.merge()
    converted = write_for_colmap(model, tmp_path / "photos", tmp_path / "copy")
    assert converted == ["a.jpg", "b.webp", "e.gif", "sub/c.avif"]
    for name in ("a.jpg", "b.webp"):
        copy = np.asarray(PILImage.open(tmp_path / "copy" / "images" / f"{name}.png"))
        np.testing.assert_array_equal(copy, load_image(tmp_path / "photos", name).pixels[:, ::-1])
    with pytest.raises(FileNotFoundError, match=r"none\.h5 does not exist"):
        write_for_colmap(model, tmp_path / "photos", tmp_path / "other", features=run / "none.h5")


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
