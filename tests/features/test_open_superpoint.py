"""The open SuperPoint, which is part of the package: no download, free to use, and it finds and describes corners."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage

from sfm_lightglue.api import create_extractor, load_image
from sfm_lightglue.features.extractor import Extractor
from sfm_lightglue.features.superpoint import SuperPointExtractor
from sfm_lightglue.networks.superpoint import SuperPoint, load_superpoint, with_octaves
from sfm_lightglue.networks.weights import HYPERCOLUMNS, WeightsRecord, find_weights, load_weights
from sfm_lightglue.products import Image

DEMO = Path(__file__).resolve().parents[2] / "datasets" / "demo" / "images"


@pytest.fixture(scope="module")
def extractor() -> Extractor:
    return create_extractor("superpoint", enlarge_max=1, max_keypoints=1000, resize_max=640)


def test_it_is_part_of_the_package_and_names_its_licence(extractor: Extractor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFM_LIGHTGLUE_OFFLINE", "1")
    assert find_weights("superpoint-open").parent.name == "weights"
    (record,) = extractor.weights
    assert (record.name, record.licence, record.research_only) == ("superpoint-open", "Apache-2.0", False)
    assert record.metadata["licence"] == record.licence and record.metadata["descriptors"] == HYPERCOLUMNS


def test_keypoints_of_the_small_octave_have_the_positions_of_the_full_size() -> None:
    """A corner found in both octaves has one position. An error of half a pixel of the small octave would be 1.5 px."""
    photo = load_image(sorted(DEMO.glob("*"))[0])
    photo = replace(photo, pixels=photo.pixels[:384, :640])  # sides are whole pixels of the small octave
    once = create_extractor("superpoint", enlarge_max=1, max_keypoints=4096, small_share=0.0)
    small = once(Image("small", np.array(PILImage.fromarray(photo.pixels).resize((160, 96), PILImage.Resampling.BOX))))
    found = small_keypoints(photo, 4096)
    assert len(found) > 50
    for keypoints, nearest_px, share in (((small.keypoints + 0.5) * 4 - 0.5, 0.4, 0.9), (once(photo).keypoints, 6.0, 0.3)):
        offsets = found[:, None] - keypoints
        distance = np.linalg.norm(offsets, axis=2)
        near = distance.min(axis=1) < nearest_px
        mean = offsets[np.arange(len(found)), distance.argmin(axis=1)][near].mean(axis=0)
        assert near.mean() > share and np.abs(mean).max() < 0.5


def test_a_photo_from_four_times_as_far_is_matched_by_keypoints_of_the_small_octave() -> None:
    photo = load_image(sorted(DEMO.glob("*"))[0])
    far = Image("far", np.array(PILImage.fromarray(photo.pixels).resize((160, 120), PILImage.Resampling.LANCZOS)))
    right = []
    for share in (0.0, 0.1):
        extractor = create_extractor("superpoint", enlarge_max=1, max_keypoints=1000, resize_max=640, small_share=share)
        near_features, far_features = extractor(photo), extractor(far)
        assert len(near_features) == 1000 and (np.diff(near_features.scores) <= 0).all()
        descriptors0, descriptors1 = (each.descriptors.astype(np.float32) for each in (near_features, far_features))
        similarity = descriptors0 @ descriptors1.T
        best = similarity.argmax(axis=1)
        mutual = similarity.argmax(axis=0)[best] == np.arange(len(best))
        expected = (near_features.keypoints + 0.5) * (np.array(far.size) / photo.size) - 0.5
        error = np.linalg.norm(expected - far_features.keypoints[best], axis=1)
        right.append(int((mutual & (error < 1.5)).sum()))
    assert right[1] > 2 * right[0] and right[1] > 30


def test_the_small_octave_has_its_share_of_keypoints_and_the_published_network_none() -> None:
    photo = load_image(sorted(DEMO.glob("*"))[0])
    assert len(small_keypoints(photo, 500)) == 50
    network, plain = load_superpoint(load_weights("superpoint-open")[0]), SuperPoint().eval()
    record = WeightsRecord("plain", "", "", "", False)
    options = create_extractor("superpoint", enlarge_max=1, max_keypoints=500, resize_max=320).options
    assert SuperPointExtractor(options, network, "cpu", record).octaves == (0, 2)
    assert SuperPointExtractor(options, with_octaves(plain, 3), "cpu", record).octaves == (0, 2)
    assert SuperPointExtractor(options, plain, "cpu", record).octaves == (0,)
    asked = SuperPointExtractor(replace(options, small_share=0.3), plain, "cpu", record)
    assert asked.octaves == (0, 2)


def test_a_photo_without_large_structure_has_all_keypoints_in_the_first_octave() -> None:
    """Random squares of 2 x 2 px whose mean is grey in each 4 x 4 px: nothing is left of them at 1/4 of the size."""
    noise = np.random.default_rng(0).integers(0, 256, (120, 160, 1), np.uint8)
    noise[1::2, ::2], noise[::2, 1::2], noise[1::2, 1::2] = 255 - noise[::2, ::2], 255 - noise[::2, ::2], noise[::2, ::2]
    noise = np.kron(noise, np.ones((2, 2, 1), np.uint8))
    image = Image("noise", np.repeat(noise, 3, axis=2))
    without, features = (
        create_extractor("superpoint", enlarge_max=1, max_keypoints=200, detection_threshold=0.01, small_share=share)(image)
        for share in (0.0, 0.1)
    )
    assert len(features) == 200
    np.testing.assert_array_equal(features.keypoints, without.keypoints)


def test_a_share_above_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"features\.small_share must lie in 0\.\.1, found 200"):
        create_extractor("superpoint", enlarge_max=1, small_share=200)


def test_masks_remove_keypoints_of_all_octaves(extractor: Extractor) -> None:
    photo = load_image(sorted(DEMO.glob("*"))[0])
    mask = np.zeros(photo.size[::-1], bool)
    mask[:, : photo.size[0] // 2] = True
    keypoints = extractor(replace(photo, mask=mask)).keypoints
    assert len(keypoints) > 500 and keypoints[:, 0].max() < photo.size[0] // 2 + 1


def small_keypoints(photo: Image, number: int) -> np.ndarray:
    """Keypoints (n, 2), px of the photo: of `number` keypoints, those detected in the small octave only."""
    without, features = (
        create_extractor("superpoint", enlarge_max=1, max_keypoints=number, small_share=share)(photo) for share in (0.0, 0.1)
    )
    known = {tuple(each) for each in without.keypoints}
    return np.array([each for each in features.keypoints if tuple(each) not in known])


def test_a_photo_that_is_shifted_has_the_same_keypoints_and_descriptors() -> None:
    # Enough keypoints that none is dropped.
    extractor = create_extractor("superpoint", enlarge_max=1, max_keypoints=4096, detection_threshold=0.01)
    pixels = load_image(sorted(DEMO.glob("*"))[0]).pixels[:448, :704]
    shift = np.array([64, 32])  # whole cells of octave 2
    features0 = extractor(Image("a", pixels[:-32, :-64]))
    features1 = extractor(Image("b", pixels[32:, 64:]))
    distance = np.linalg.norm(features0.keypoints[:, None] - shift - features1.keypoints, axis=2)
    inside = ((features0.keypoints - shift >= 64) & (features0.keypoints - shift < [512, 320])).all(axis=1)
    assert inside.sum() > 200
    assert np.mean(distance.min(axis=1)[inside] < 0.1) > 0.9
    nearest = distance.argmin(axis=1)[inside]
    descriptors0, descriptors1 = (features.descriptors.astype(np.float32) for features in (features0, features1))
    matched = (descriptors0[inside] @ descriptors1.T).argmax(axis=1)
    assert np.mean(matched == nearest) > 0.9
