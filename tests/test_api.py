"""The Python API and `match-pair` on two photos of the demo scene."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from PIL import Image

import sfm_lightglue
from sfm_lightglue.features.extractor import Extractor
from sfm_lightglue.geometry import sampson_error
from sfm_lightglue.image_matches import ImageMatches
from sfm_lightglue.images import UnreadableImage
from sfm_lightglue.match_pair import match_pair
from sfm_lightglue.matches.lightglue import LightGlueMatcher
from sfm_lightglue.matches.matcher import Matcher
from sfm_lightglue.networks.weights import available_weights, find_weights
from sfm_lightglue.poses import fundamental_matrix, read_poses

DEMO = Path(__file__).resolve().parents[1] / "datasets" / "demo"
NAMES = ("04.jpg", "06.jpg")

pytestmark = pytest.mark.skipif(
    not {"aliked-n16", "aliked-lightglue"} <= {entry.name for entry, path in available_weights() if path},
    reason="ALIKED's weights are not here: python -m sfm_lightglue weights fetch aliked-n16 aliked-lightglue",
)


@pytest.fixture(scope="module")
def extractor() -> Extractor:
    return sfm_lightglue.create_extractor("aliked", resize_max=400, max_keypoints=400)


@pytest.fixture(scope="module")
def matcher() -> Matcher:
    return sfm_lightglue.create_matcher("lightglue", trained_for="aliked")


@pytest.fixture(scope="module")
def matched(extractor: Extractor, matcher: Matcher) -> ImageMatches:
    paths = [DEMO / "images" / name for name in NAMES]
    return sfm_lightglue.match_images(paths[0], paths[1], extractor=extractor, matcher=matcher)


def test_matches_lie_on_the_true_epipolar_lines_in_pixels_of_the_photos(matched: ImageMatches) -> None:
    cameras = read_poses(DEMO / "poses.txt")
    errors = sampson_error(
        fundamental_matrix(cameras[NAMES[0]], cameras[NAMES[1]]),
        matched.matched_keypoints0 + 0.5,
        matched.matched_keypoints1 + 0.5,
    )
    assert len(errors) > 60
    assert np.median(errors) < 0.7  # px of the photo; keypoints were detected at half its size
    assert np.mean(errors < 4) > 0.95


def test_dense_and_sparse_matches_agree_in_both_directions(matched: ImageMatches) -> None:
    index0 = np.flatnonzero(matched.matches0 > -1)
    index1 = matched.matches0[index0]
    np.testing.assert_array_equal(matched.keypoints0[index0], matched.matched_keypoints0)
    np.testing.assert_array_equal(matched.keypoints1[index1], matched.matched_keypoints1)
    np.testing.assert_array_equal(matched.matching_scores0[index0], matched.scores)
    np.testing.assert_array_equal(matched.matching_scores1[index1], matched.scores)
    np.testing.assert_array_equal(matched.matches1[index1], index0)
    assert (matched.matches1 > -1).sum() == len(index0)


def test_a_threshold_drops_weaker_matches_and_keeps_the_rest(
    matched: ImageMatches, extractor: Extractor, matcher: Matcher
) -> None:
    threshold = float(np.median(matched.scores))
    paths = [DEMO / "images" / name for name in NAMES]
    strict = sfm_lightglue.match_images(paths[0], paths[1], threshold=threshold, extractor=extractor, matcher=matcher)
    np.testing.assert_array_equal(strict.scores, matched.scores[matched.scores >= threshold])
    assert (strict.matches0[matched.matching_scores0 < threshold] == -1).all()


def test_a_batch_of_photos_of_different_sizes_gives_what_single_pairs_give(
    matched: ImageMatches, extractor: Extractor, matcher: Matcher
) -> None:
    first, second = (np.asarray(Image.open(DEMO / "images" / name)) for name in NAMES)
    firsts, seconds = [first, second[:300], first[:, :500]], [second, first, second[40:]]
    together = sfm_lightglue.match_images(firsts, seconds, extractor=extractor, matcher=matcher)
    for image0, image1, result in zip(firsts, seconds, together, strict=True):
        alone = sfm_lightglue.match_images(image0, image1, extractor=extractor, matcher=matcher)
        np.testing.assert_array_equal(result.matches0, alone.matches0)
        np.testing.assert_array_equal(result.scores, alone.scores)
    np.testing.assert_array_equal(together[0].matches0, matched.matches0)


def test_paths_arrays_and_pil_images_are_the_same_photo(extractor: Extractor) -> None:
    path = DEMO / "images" / NAMES[0]
    picture = Image.open(path)
    expected = sfm_lightglue.load_image(str(path)).pixels
    np.testing.assert_array_equal(sfm_lightglue.load_image(picture).pixels, expected)
    np.testing.assert_array_equal(sfm_lightglue.load_image(np.asarray(picture)).pixels, expected)


def test_pil_images_of_other_modes_are_read_as_from_their_files(tmp_path: Path) -> None:
    ramp = np.linspace(1000, 60000, 40 * 60).reshape(40, 60).astype(np.uint16)
    clear = Image.fromarray(np.dstack([np.full((40, 60, 3), 90, np.uint8), np.tile(np.arange(60, dtype=np.uint8) * 4, (40, 1))]))
    for name, picture in (("grey16.png", Image.fromarray(ramp)), ("clear.png", clear)):
        picture.save(tmp_path / name)
        expected = sfm_lightglue.load_image(tmp_path / name).pixels
        assert np.ptp(expected.astype(int)) > 100
        np.testing.assert_array_equal(sfm_lightglue.load_image(Image.open(tmp_path / name)).pixels, expected)


def test_a_file_that_is_no_photo_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(UnreadableImage, match=r"empty\.jpg: the file is empty"):
        sfm_lightglue.load_image(tmp_path / "empty.jpg")


def test_the_features_that_lightglue_was_trained_for_can_be_named() -> None:
    weights = str(find_weights("aliked-lightglue-half"))  # of the same shape
    named = cast(LightGlueMatcher, sfm_lightglue.create_matcher(trained_for="superpoint", weights=weights))
    assert named.options.trained_for == "superpoint"
    assert cast(LightGlueMatcher, sfm_lightglue.create_matcher()).options.trained_for == "superpoint-open"


@pytest.mark.parametrize("pixels", [np.zeros((40, 40, 3), np.float32), np.zeros((40, 40, 4), np.uint8), np.zeros(40, np.uint8)])
def test_pixels_of_another_kind_are_refused(pixels: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected uint8 pixels"):
        sfm_lightglue.load_image(pixels)


def test_sequences_of_different_length_are_refused(extractor: Extractor, matcher: Matcher) -> None:
    path = DEMO / "images" / NAMES[0]
    with pytest.raises(ValueError, match="image0 has 1 photos, image1 has 2: expected lists of the same length"):
        sfm_lightglue.match_images([path], [path, path], extractor=extractor, matcher=matcher)
    with pytest.raises(ValueError, match="found one image and a list of images"):
        sfm_lightglue.match_images((path,), path, extractor=extractor, matcher=matcher)  # type: ignore[call-overload]


def test_features_that_lightglue_was_not_trained_for_are_refused(extractor: Extractor, matcher: Matcher) -> None:
    xfeat_like = sfm_lightglue.Features(np.ones((5, 2), np.float32), np.ones(5), np.ones((5, 64), np.float32), (80, 60))
    with pytest.raises(ValueError, match=r"64-d descriptors.*'aliked'.*128-d"):
        matcher(xfeat_like, xfeat_like)


def test_match_pair_prints_a_table_or_json_and_draws_a_picture(tmp_path: Path) -> None:
    paths = [str(DEMO / "images" / name) for name in NAMES]
    overrides = [f"output={tmp_path}", "features.max_keypoints=300", "features.resize_max=400"]
    table = match_pair(paths[0], paths[1], overrides, as_json=False)
    content = json.loads(match_pair(paths[0], paths[1], overrides, as_json=True))
    assert f"matches: {content['num_matches']}, verified: {content['num_verified']}" in table
    assert content["num_matches"] == sum(index > -1 for index in content["matches0"]) > 40
    assert content["num_verified"] > 0.7 * content["num_matches"]
    assert Image.open(content["picture"]).width > 800
