"""The matcher `superglue`: its matches, and the inputs that it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sfm_lightglue.matches.superglue import SuperGlueMatcher, SuperGlueOptions
from sfm_lightglue.networks.superglue import SuperGlue, SuperGlueSettings
from sfm_lightglue.products import Features

OPTIONS = SuperGlueOptions("superglue", weights=None, sinkhorn_iterations=20, match_threshold=0.1)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights that change the descriptors little."""
    torch.manual_seed(0)
    network = SuperGlue(SuperGlueSettings())
    with torch.no_grad():
        for layer in network.layers:
            layer.mlp[-1].weight *= 0.1
        network.keypoint_encoder[-1].weight *= 6  # positions and scores have an effect
        torch.nn.init.eye_(network.final_proj.weight).mul_(16)
    path = tmp_path_factory.mktemp("weights") / "superglue.pth"
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def matcher(weights: Path) -> SuperGlueMatcher:
    return SuperGlueMatcher.create(replace(OPTIONS, weights=str(weights)), "cpu")


def features(num: int, seed: int = 0, dim: int = 256) -> Features:
    rng = np.random.default_rng(seed)
    descriptors = rng.normal(size=(num, dim)).astype(np.float32)
    descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)
    keypoints = (rng.uniform(size=(num, 2)) * (640, 480)).astype(np.float32)
    scores = np.sort(rng.uniform(size=num).astype(np.float32))[::-1]
    return Features(keypoints, scores, descriptors, (640, 480), name=f"photo{seed}.jpg")


def test_the_same_points_in_another_order_are_matched(matcher: SuperGlueMatcher) -> None:
    points = features(50)
    order = np.random.default_rng(1).permutation(50)
    moved = replace(points, keypoints=points.keypoints[order], scores=points.scores[order], descriptors=points.descriptors[order])
    result = matcher(points, moved)
    assert result.indices.dtype == np.int32 and len(result) > 40
    np.testing.assert_array_equal(order[result.indices[:, 1]], result.indices[:, 0])
    assert ((result.scores > 0.1) & (result.scores <= 1.001)).all()
    assert result.stop_layer == 18


def test_all_inputs_reach_the_network(matcher: SuperGlueMatcher) -> None:
    points0, points1 = features(30), replace(features(30), image_size=(700, 480))
    expected = matcher.network.match(
        *(
            torch.tensor(np.ascontiguousarray(getattr(p, name)))
            for name in ("keypoints", "descriptors", "scores")
            for p in (points0, points1)
        ),
        points0.image_size,
        points1.image_size,
    )
    result = matcher(points0, points1)
    np.testing.assert_array_equal(result.matches0(30), expected.matches0.numpy())
    np.testing.assert_allclose(result.matching_scores0(30), (expected.scores0 * (expected.matches0 > -1)).numpy(), atol=1e-6)
    for change in ({"image_size": (3000, 480)}, {"scores": np.zeros(30, np.float32)}, {"keypoints": points1.keypoints[::-1]}):
        changed = matcher(points0, replace(points1, **change)).matching_scores0(30)
        assert np.abs(changed - result.matching_scores0(30)).max() > 1e-4, change


def test_half_precision_descriptors_are_accepted(matcher: SuperGlueMatcher) -> None:
    points = features(30)
    half = replace(points, descriptors=points.descriptors.astype(np.float16))
    full = replace(points, descriptors=half.descriptors.astype(np.float32))
    np.testing.assert_array_equal(matcher(half, points).scores, matcher(full, points).scores)


@pytest.mark.parametrize("num0, num1, stop_layer", [(0, 5, 0), (5, 0, 0), (0, 0, 0), (1, 5, 18), (1, 1, 18)])
def test_few_or_no_keypoints_are_no_error(matcher: SuperGlueMatcher, num0: int, num1: int, stop_layer: int) -> None:
    result = matcher(features(num0), features(num1))
    assert len(result) <= min(num0, num1) and result.indices.shape == (len(result), 2)
    assert result.stop_layer == stop_layer


def test_the_record_of_the_weights_is_kept(matcher: SuperGlueMatcher, weights: Path) -> None:
    (record,) = matcher.weights
    assert record.path == str(weights) and len(record.sha256) == 64 and not record.research_only


def test_without_weights_the_licence_is_explained() -> None:
    with pytest.raises(ValueError, match=r"noncommercial research only .* matches\.weights=superglue-outdoor-official"):
        SuperGlueMatcher.create(OPTIONS, "cpu")


def test_features_of_another_kind_are_refused(matcher: SuperGlueMatcher) -> None:
    with pytest.raises(ValueError, match=r"'photo0\.jpg' have 128-d descriptors.*256-d: choose features=superpoint"):
        matcher(features(3, dim=128), features(3))


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"matches\.sinkhorn_iterations must be at least 1, found 0"):
        replace(OPTIONS, sinkhorn_iterations=0)
    with pytest.raises(ValueError, match=r"matches\.match_threshold must lie in 0\.\.1, found 1\.5"):
        replace(OPTIONS, match_threshold=1.5)
