"""What a pair source may ask about the images. Files are read only when they are needed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pycolmap
import pytest
from PIL import Image as PILImage

from sfm_lightglue.pairs.collection import Collection
from sfm_lightglue.positions import GeoPosition
from sfm_lightglue.products import Features
from sfm_lightglue.storage import ShardStore, features_to_group


@pytest.fixture
def features(tmp_path: Path) -> Path:
    """A file with the features of a.jpg and b.jpg."""
    descriptors = np.eye(3, 4, dtype=np.float32)
    with ShardStore(tmp_path / "features.h5", {}) as store:
        for name, width in (("a.jpg", 640), ("b.jpg", 320)):
            found = Features(np.zeros((3, 2), np.float32), np.ones(3, np.float32), descriptors, (width, 240))
            store.add(name, features_to_group(found), "stamp")
        store.merge()
    return tmp_path / "features.h5"


def test_names_are_sorted_and_unique() -> None:
    assert Collection(["b", "a", "b"]).names == ("a", "b")


def test_nothing_is_opened_before_it_is_asked_for(tmp_path: Path) -> None:
    missing = tmp_path / "nothing"
    with Collection(["a.jpg"], images=missing, features=missing, poses=missing, positions=missing) as collection:
        for ask in (lambda: collection.descriptors("a.jpg"), lambda: collection.poses, lambda: collection.positions):
            with pytest.raises(FileNotFoundError, match="nothing"):
                ask()
        for ask in (lambda: collection.global_descriptors(missing), lambda: collection.model(missing)):
            with pytest.raises(FileNotFoundError, match="nothing"):
                ask()


def test_a_question_without_its_file_says_what_to_give() -> None:
    collection = Collection(["a.jpg"])
    for ask, expected in (
        (lambda: collection.descriptors("a.jpg"), "these pairs need local descriptors: give features=FILE"),
        (lambda: collection.poses, r"these pairs need camera poses: give dataset\.poses=FILE"),
        (lambda: collection.positions, r"these pairs need the photos: give dataset\.images=DIR"),
        (lambda: collection.image_size("a.jpg"), r"these pairs need the photos: give dataset\.images=DIR"),
    ):
        with pytest.raises(ValueError, match=expected):
            ask()


def test_descriptors_and_sizes_come_from_the_features(features: Path) -> None:
    with Collection(["a.jpg", "b.jpg"], features=features) as collection:
        np.testing.assert_array_equal(collection.descriptors("a.jpg"), np.eye(3, 4))
        assert collection.image_size("b.jpg") == (320, 240)
    np.testing.assert_array_equal(collection.descriptors("a.jpg"), np.eye(3, 4))  # opened again after the block
    with collection:
        pass


def test_sizes_come_from_the_photos_if_there_are_no_features(tmp_path: Path) -> None:
    PILImage.new("RGB", (64, 48)).save(tmp_path / "a.png")
    assert Collection(["a.png"], images=tmp_path).image_size("a.png") == (64, 48)


def test_poses_and_positions_of_other_images_are_dropped(tmp_path: Path) -> None:
    line = "1 0 0 0 {} 0 0 500 500 320 240 640 480"
    (tmp_path / "poses.txt").write_text(
        "\n".join(f"{name} {line.format(x)}" for x, name in enumerate(["b.jpg", "z.jpg", "a.jpg"]))
    )
    (tmp_path / "gps.txt").write_text("z.jpg 1 2\nb.jpg 3 4 5\n")
    collection = Collection(["a.jpg", "b.jpg", "c.jpg"], poses=tmp_path / "poses.txt", positions=tmp_path / "gps.txt")
    assert {name: pose.center[0] for name, pose in collection.poses.items()} == {"a.jpg": -2, "b.jpg": 0}
    assert list(collection.poses) == ["a.jpg", "b.jpg"]
    assert collection.positions == {"b.jpg": GeoPosition(3, 4, 5)}


def test_an_existing_model_is_read(tmp_path: Path) -> None:
    model = pycolmap.Reconstruction()
    model.add_camera(pycolmap.Camera(model="SIMPLE_PINHOLE", width=64, height=48, params=[50, 32, 24], camera_id=1))
    model.write(tmp_path)
    assert Collection([]).model(tmp_path).num_cameras() == 1
