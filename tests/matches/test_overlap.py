"""The test of overlap: it counts matches that move together, and ends only the pairs that have few of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from lightglue_inputs import random_network, random_points

from sfm_lightglue.engine.kernels import load_kernels
from sfm_lightglue.engine.rules import GuidedMatching, GuidedPass, OverlapTest
from sfm_lightglue.matches.lightglue import GUIDED_MATCHING, OVERLAP_TEST, LightGlueMatcher, LightGlueOptions
from sfm_lightglue.matches.overlap import Appearance, compare, count_coherent, mutual_neighbors
from sfm_lightglue.networks.weights import WeightsRecord
from sfm_lightglue.products import Features, Matches

TEST = replace(OVERLAP_TEST["superpoint-open"], min_mutual=0.0)
RECORD = WeightsRecord("random", "none", "0" * 64, "CC0", False)
HARD = GuidedPass(0.25, 170, 2, 10, 0, 10**6, 0.5, 0.0, 0.5, keeps_seeds=False)


def moved(points: np.ndarray, turn: float, scale: float) -> np.ndarray:
    return scale * points @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]]) + [70, -30]


def test_a_few_right_matches_among_wrong_ones_are_coherent() -> None:
    rng = np.random.default_rng(0)
    points0, points1 = rng.uniform(0, 1000, (2, 400, 2))
    by_chance = count_coherent(points0, points1)
    assert 3 <= by_chance <= 25
    points1[:80] = points0[:80] + rng.normal(0, 3, (80, 2))  # one in five
    assert count_coherent(points0, points1) > by_chance + 60


@pytest.mark.parametrize(("turn", "scale"), [(np.pi / 2, 1.0), (3.0, 0.3), (-1.0, 5.0)])
def test_turned_and_scaled_images_are_as_coherent(turn: float, scale: float) -> None:
    points = np.random.default_rng(1).uniform(0, 1000, (300, 2))
    assert count_coherent(points, points) == count_coherent(points, moved(points, turn, scale)) == 3000


def test_matches_that_are_mirrored_or_at_one_place_are_not_coherent() -> None:
    points = np.random.default_rng(1).uniform(0, 1000, (300, 2))
    assert count_coherent(points, points * [-1, 1]) < 0.4 * 3000  # each neighbour turns by another angle
    assert count_coherent(points, np.zeros((300, 2))) == 0
    assert count_coherent(points[:10], points[:10]) == 0


def descriptors(dtype: torch.dtype) -> list[torch.Tensor]:
    """700 of 900 and of 800 descriptors show the same, with noise."""
    rng = np.random.default_rng(2)
    common = rng.normal(size=(700, 64))
    both = [np.concatenate([common + rng.normal(size=(700, 64)), rng.normal(size=(count, 64))]) for count in (200, 100)]
    return [torch.nn.functional.normalize(torch.from_numpy(each.astype(np.float32)), dim=1).to(dtype) for each in both]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("is_compiled", [False, True])
def test_mutual_neighbors_are_those_of_the_plain_search(dtype: torch.dtype, is_compiled: bool) -> None:
    kernels = load_kernels() if is_compiled else None
    if is_compiled and (kernels is None or (dtype == torch.bfloat16 and not kernels.supports_bfloat16)):
        pytest.skip("no compiled kernels for this type")
    both = descriptors(dtype)
    index0, index1, ratio = mutual_neighbors(*both, kernels)
    similarity = (both[0].double() @ both[1].double().T).numpy()
    expected = {}
    for i, row in enumerate(similarity):
        j = int(row.argmax())
        if similarity[:, j].argmax() == i:
            others = np.concatenate([np.delete(row, j), np.delete(similarity[:, j], i)])
            expected[i, j] = np.sqrt((1 - row[j]) / (1 - others.max()))
    assert len(expected) > 100
    assert list(zip(index0.tolist(), index1.tolist(), strict=True)) == list(expected)
    np.testing.assert_allclose(ratio, list(expected.values()), rtol=1e-3)


def images(count: int = 400) -> list[Features]:
    """Two images of the same points, and one of other points."""
    points = [*random_points(count), random_points(count)[0]]
    rng = np.random.default_rng(0)
    other = rng.permuted(points[2].descriptors.numpy(), axis=0)
    return [
        Features(p.keypoints.numpy(), np.linspace(1, 0, len(p.keypoints), dtype=np.float32), values, p.size, name=f"{i}.png")
        for i, (p, values) in enumerate(
            zip(points, (points[0].descriptors.numpy(), points[1].descriptors.numpy(), other), strict=True)
        )
    ]


def matcher(monkeypatch: pytest.MonkeyPatch, test: OverlapTest | None, early_rejection: object = True) -> LightGlueMatcher:
    """With a small random network, for which no pair is easy."""
    monkeypatch.setitem(GUIDED_MATCHING, "aliked", GuidedMatching((HARD,)))
    if test is not None:
        monkeypatch.setitem(OVERLAP_TEST, "aliked", test)
    options = LightGlueOptions("lightglue", "aliked", None, None, None, None, early_rejection, False, True, "float32")  # type: ignore[arg-type]
    return LightGlueMatcher(options, random_network(), "cpu", RECORD)


def assert_same(found: Matches, expected: Matches) -> None:
    assert found.stop_layer == expected.stop_layer
    np.testing.assert_array_equal(found.indices, expected.indices)
    np.testing.assert_array_equal(found.scores, expected.scores)


def test_only_pairs_without_coherent_matches_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    photos, whole = images(), matcher(monkeypatch, None, early_rejection=False)
    test = replace(TEST, min_coherent_neighbors=10**6, num_layers=2)  # the network decides
    for rule in (test, replace(TEST, min_coherent_neighbors=100, min_coherent_matches=10**6)):
        rejecting = matcher(monkeypatch, rule)
        prepared = [rejecting.prepare(photo) for photo in photos]
        pairs = [(0, 1), (0, 2), (1, 2), (1, 0)]
        found = rejecting.match_many([(prepared[i], prepared[j]) for i, j in pairs])
        assert [len(each) > 0 for each in found] == [True, False, False, True]
        assert found[1].indices.shape == (0, 2) and found[1].stop_layer <= rule.num_layers and not found[1].is_guided
        for (i, j), each in zip(pairs, found, strict=True):
            assert_same(each, rejecting(photos[i], photos[j]))  # the other pairs of a batch do not matter
            if len(each):
                assert_same(each, whole(photos[i], photos[j]))


def test_images_with_few_keypoints_are_not_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    small = images(170)  # half of what the pass needs
    never = replace(TEST, min_coherent_neighbors=10**6, min_coherent_matches=10**6)
    assert_same(matcher(monkeypatch, never)(small[0], small[1]), matcher(monkeypatch, None, False)(small[0], small[1]))
    large = images()
    assert len(matcher(monkeypatch, never)(large[0], large[1])) == 0


def test_auto_rejects_only_where_matching_is_guided_and_no_pair_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    def rejects(
        early_rejection: object = "auto", kind: str = "superpoint-open", guided: bool | None = None, **more: object
    ) -> bool:
        rest = {"weights": None, "filter_threshold": None, **more}
        options = LightGlueOptions(
            "lightglue",
            kind,
            rest["weights"],
            None,
            None,
            rest["filter_threshold"],
            early_rejection,
            False,
            guided,
            "float32",  # type: ignore[arg-type]
        )
        made = LightGlueMatcher(options, None, "cpu", RECORD)
        assert made.options.early_rejection in (True, False, None)
        assert (made.overlap_test is not None) <= made.rejects
        return made.rejects

    assert rejects() and rejects(None) and rejects(True) and not rejects(False)
    assert not rejects(guided=False) and not rejects(kind="aliked") and not rejects(kind="disk")
    assert not rejects(filter_threshold=0.2) and not rejects(weights="mine.pth") and not rejects(None, weights="mine.pth")
    assert rejects(None, kind="aliked") and rejects(True, guided=False)
    with pytest.raises(ValueError, match="must be true, false, null or auto, found 'yes'"):
        rejects("yes")


def test_descriptors_decide_by_coherence_unless_few_are_mutual(monkeypatch: pytest.MonkeyPatch) -> None:
    image0, image1, other = (
        matcher(monkeypatch, TEST).prepare(photo).appearance  # type: ignore[union-attr]
        for photo in images()
    )
    mixed = Appearance(np.random.default_rng(0).permuted(image1.keypoints, axis=0), image1.descriptors)
    found, *apart = (compare(image0, image, None) for image in (image1, other, mixed))
    assert found.may_overlap(TEST) and not any(each.may_overlap(TEST) for each in apart)
    assert found.mutual == apart[1].mutual > 0.8
    assert all(each.may_overlap(replace(TEST, min_mutual=1.0)) for each in apart)
