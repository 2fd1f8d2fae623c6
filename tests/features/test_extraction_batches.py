"""The stage images -> features with an extractor that takes several photos at a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage

from sfm_lightglue.features.extractor import BatchExtractor
from sfm_lightglue.features.stage import extract_features
from sfm_lightglue.networks.weights import WeightsRecord
from sfm_lightglue.products import Features, Image
from sfm_lightglue.storage import H5Reader

NAMES = ["a.png", "b.png", "c.png", "d.png", "e.png"]


class MeanColour:
    """Finds one keypoint, described by the photo's mean colour. A photo of one colour makes its whole batch fail."""

    weights: tuple[WeightsRecord, ...] = ()
    batch_size = 3

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.single: list[str] = []

    def extract_many(self, images: Sequence[Image]) -> list[Features]:
        self.batches.append([image.name for image in images])
        return [self.describe(image) for image in images]

    def __call__(self, image: Image) -> Features:
        self.single.append(image.name)
        return self.describe(image)

    def describe(self, image: Image) -> Features:
        if image.pixels.std() == 0:
            raise RuntimeError("out of memory")
        mean = image.pixels.mean(axis=(0, 1), keepdims=True)[0].astype(np.float32)
        return Features(np.ones((1, 2), np.float32), np.ones(1, np.float32), mean, image.size, name=image.name)


def write_photo(path: Path, seed: int) -> None:
    """A photo of noise; a higher seed gives a brighter one."""
    size = (24, 32, 3) if seed % 2 else (32, 24, 3)
    PILImage.fromarray(np.random.default_rng(seed).integers(0, 20 * (seed + 1), size, np.uint8)).save(path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for seed, name in enumerate(NAMES):
        write_photo(tmp_path / "photos" / name, seed)
    return tmp_path / "photos"


def stored(path: Path) -> dict[str, list[float]]:
    with H5Reader(path) as reader:
        return {name: reader.features(name).descriptors[0].tolist() for name in reader.names()}


@pytest.mark.parametrize("num_workers", [1, 2])
def test_batches_follow_the_order_of_names_and_each_photo_gets_its_own_features(photos: Path, num_workers: int) -> None:
    extractor = MeanColour()
    assert isinstance(extractor, BatchExtractor)
    report = extract_features(photos, photos.parent / "features.h5", extractor, num_workers=num_workers)
    assert (report.num_images, report.num_computed, report.skipped) == (5, 5, {})
    assert sorted(extractor.batches) == [NAMES[:3], NAMES[3:]] and extractor.single == []
    # descriptors are stored in half precision
    expected = {name: np.asarray(PILImage.open(photos / name)).mean(axis=(0, 1)).tolist() for name in NAMES}
    assert stored(photos.parent / "features.h5") == {name: pytest.approx(mean, rel=1e-3) for name, mean in expected.items()}


def test_only_missing_photos_form_batches(photos: Path) -> None:
    extract_features(photos, photos.parent / "features.h5", MeanColour())
    write_photo(photos / "b.png", 9)
    write_photo(photos / "f.png", 10)
    extractor = MeanColour()
    assert extract_features(photos, photos.parent / "features.h5", extractor).num_computed == 2
    assert extractor.batches == [["b.png", "f.png"]]


def test_a_photo_that_fails_does_not_take_its_batch_with_it(photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    PILImage.new("RGB", (32, 24)).save(photos / "b.png")
    (photos / "c.png").write_bytes(b"no photo")
    extractor = MeanColour()
    report = extract_features(photos, photos.parent / "features.h5", extractor)
    assert sorted(extractor.batches) == [["a.png", "b.png"], ["d.png", "e.png"]]
    assert extractor.single == ["a.png", "b.png"]
    assert report.skipped["b.png"] == "RuntimeError: out of memory" and "unreadable" in report.skipped["c.png"]
    assert list(stored(photos.parent / "features.h5")) == ["a.png", "d.png", "e.png"]
    assert "a batch of 2 photos failed" in caplog.text


def test_photos_of_a_batch_with_too_few_results_are_processed_alone(photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    extractor = MeanColour()
    extractor.extract_many = lambda images: []  # type: ignore[method-assign]
    assert extract_features(photos, photos.parent / "features.h5", extractor).num_images == 5
    assert sorted(extractor.single) == NAMES and "gave 0 results for 3 images" in caplog.text


def test_a_batch_of_one_is_a_single_call(photos: Path) -> None:
    extractor = MeanColour()
    extractor.batch_size = 1
    extract_features(photos, photos.parent / "features.h5", extractor)
    assert extractor.batches == [] and sorted(extractor.single) == NAMES
