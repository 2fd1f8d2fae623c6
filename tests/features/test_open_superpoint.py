"""The SuperPoint that lies in the package: there without a download, free to use, and it finds and describes corners."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sfm_lightglue.api import create_extractor, load_image
from sfm_lightglue.features.extractor import Extractor
from sfm_lightglue.networks.weights import find_weights
from sfm_lightglue.products import Image

DEMO = Path(__file__).resolve().parents[2] / "datasets" / "demo" / "images"


@pytest.fixture(scope="module")
def extractor() -> Extractor:
    return create_extractor("superpoint", max_keypoints=1000, resize_max=640)


def test_it_lies_in_the_package_and_says_under_which_licence(extractor: Extractor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFM_LIGHTGLUE_OFFLINE", "1")
    assert find_weights("superpoint-open").parent.name == "weights"
    (record,) = extractor.weights
    assert (record.name, record.licence, record.research_only) == ("superpoint-open", "Apache-2.0", False)
    assert record.metadata["licence"] == record.licence and record.metadata["descriptor_sampling"] == "centred"


def test_a_photo_that_is_shifted_has_the_same_keypoints_and_descriptors(extractor: Extractor) -> None:
    pixels = load_image(sorted(DEMO.glob("*"))[0]).pixels[:400, :480]
    shift = np.array([16, 8])  # whole cells
    features0 = extractor(Image("a", pixels[:-8, :-16]))
    features1 = extractor(Image("b", pixels[8:, 16:]))
    distance = np.linalg.norm(features0.keypoints[:, None] - shift - features1.keypoints, axis=2)
    inside = ((features0.keypoints - shift >= 24) & (features0.keypoints - shift < [440, 368])).all(axis=1)
    assert inside.sum() > 200
    assert np.mean(distance.min(axis=1)[inside] < 0.1) > 0.9
    nearest = distance.argmin(axis=1)[inside]
    descriptors0, descriptors1 = (features.descriptors.astype(np.float32) for features in (features0, features1))
    matched = (descriptors0[inside] @ descriptors1.T).argmax(axis=1)
    assert np.mean(matched == nearest) > 0.9
