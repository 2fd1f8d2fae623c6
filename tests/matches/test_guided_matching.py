"""Guided matching: it completes the matches of easy pairs, takes no other part of a repeated structure, and leaves hard pairs as
they are."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from lightglue_inputs import random_network, random_points

from sfm_lightglue.engine.rules import GuidedMatching, GuidedPass
from sfm_lightglue.matches.guided import MIN_SIMILARITY, GuidedPoints, _within, complete_matches
from sfm_lightglue.matches.lightglue import GUIDED_MATCHING, LightGlueMatcher, LightGlueOptions
from sfm_lightglue.matches.stage import match_pairs
from sfm_lightglue.networks.weights import WeightsRecord
from sfm_lightglue.products import Features, Matches, Pair
from sfm_lightglue.storage import H5Reader, ShardStore, features_to_group, matches_to_group

RULE, SECOND = GUIDED_MATCHING["superpoint-open"].passes
GROWTH = 3.0


@dataclass(frozen=True)
class Scene:
    """Keypoint i of image 0 and keypoint i of image 1 show point i; later keypoints of image 1 show something else."""

    points0: GuidedPoints
    points1: GuidedPoints
    num_common: int

    def seeds(self, wrong: float = 0.1, count: int = 200) -> Matches:
        """Matches of the first keypoints, a part of them wrong."""
        index1 = np.arange(count)
        last = index1[int(count * (1 - wrong)) :]
        index1[len(index1) - len(last) :] = np.roll(last, 1)
        return Matches(np.stack([np.arange(count), index1], axis=1).astype(np.int32), np.full(count, 0.9, np.float32), 3)

    def found(self, rule: GuidedPass = RULE, **seeds: float) -> Matches | None:
        return complete_matches(self.points0, self.points1, self.seeds(**seeds), GROWTH, rule)  # type: ignore[arg-type]


def scene(kinds_of_descriptors: int = 10**6, noise: float = 0.04, seed: int = 0) -> Scene:
    """A step: a wall 10 m away on the left, one 14 m away and slanted on the right. Camera 1 stands 1 m to the side and turned.

    With few kinds of descriptors many points look alike, as windows of a facade do.
    """
    rng = np.random.default_rng(seed)
    count, others = 800, 200
    x, y = rng.uniform(-4.5, 4.5, count), rng.uniform(-3, 3, count)
    points = np.stack([x, y, np.where(x < 0, 10.0, 14.0 + 0.3 * x)], axis=1)
    turn = np.deg2rad(5)
    rotation = np.array([[np.cos(turn), 0, -np.sin(turn)], [0, 1, 0], [np.sin(turn), 0, np.cos(turn)]])
    views = []
    for in_camera in (points, points @ rotation.T - [1.0, 0.05, 0]):
        pixels = in_camera[:, :2] / in_camera[:, 2:] * 900 + [512, 384]
        views.append(pixels + rng.normal(0, 0.5, pixels.shape))
    appearance = rng.normal(size=(min(kinds_of_descriptors, count), 64))[rng.integers(0, kinds_of_descriptors, count) % count]
    if kinds_of_descriptors > count:
        appearance = rng.normal(size=(count, 64))
    descriptors = [appearance + noise * 8 * rng.normal(size=appearance.shape) for _ in range(2)]
    views[1] = np.concatenate([views[1], rng.uniform([100, 100], [900, 700], (others, 2))])
    descriptors[1] = np.concatenate([descriptors[1], rng.normal(size=(others, 64))])
    both = [
        GuidedPoints(view, (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32))
        for view, values in zip(views, descriptors, strict=True)
    ]
    return Scene(both[0], both[1], count)


def test_all_keypoints_get_their_matches() -> None:
    pair = scene()
    found = pair.found()
    assert found is not None and found.is_guided and found.stop_layer == 3
    assert (found.indices[:, 0] == found.indices[:, 1]).mean() > 0.995 and len(found) > 0.95 * pair.num_common
    assert (np.diff(found.indices[:, 0]) > 0).all() and len(set(found.indices[:, 1].tolist())) == len(found)
    assert found.scores.dtype == np.float32 and found.scores.min() >= MIN_SIMILARITY and found.scores.max() <= 1
    right = (pair.points0.descriptors[found.indices[:, 0]] * pair.points1.descriptors[found.indices[:, 1]]).sum(axis=1)
    np.testing.assert_allclose(found.scores, right, rtol=1e-5)


def test_other_parts_of_a_repeated_structure_are_not_matched() -> None:
    """800 points with 20 different looks: their most similar descriptors in the other image are nearly all elsewhere."""
    pair = scene(kinds_of_descriptors=20)
    nearest = (pair.points0.descriptors @ pair.points1.descriptors.T).argmax(axis=1)
    assert (nearest == np.arange(800)).mean() < 0.1
    found = pair.found()
    assert found is not None and len(found) > 700
    assert (found.indices[:, 0] == found.indices[:, 1]).mean() > 0.98


def test_keypoints_without_a_clear_choice_are_not_matched() -> None:
    """Keypoints 300 to 399 of image 1 are there twice, 1 px apart and with the same descriptors."""
    pair = scene()
    twice = slice(300, 400)
    keypoints = np.concatenate([pair.points1.keypoints, pair.points1.keypoints[twice] + [1, 0]])
    descriptors = np.concatenate([pair.points1.descriptors, pair.points1.descriptors[twice]])
    points1 = GuidedPoints(keypoints, descriptors)
    runs = [complete_matches(pair.points0, points1, pair.seeds(), GROWTH, RULE) for _ in range(2)]
    assert runs[0] is not None and runs[1] is not None and len(runs[0]) > 640
    assert not np.isin(runs[0].indices[:, 0], np.arange(300, 400)).any()
    np.testing.assert_array_equal(runs[0].indices, runs[1].indices)


@pytest.mark.parametrize(
    ("seeds", "changes"),
    [({"count": 79}, {}), ({"wrong": 0.5}, {}), ({}, {"min_mean_score": 0.95}), ({}, {"min_share": 1.4})],
)
def test_pairs_with_few_or_doubtful_seeds_or_few_matches_are_left_to_the_network(seeds: dict, changes: dict) -> None:
    assert scene().found() is not None  # without the change
    assert scene().found(replace(RULE, **changes), **seeds) is None


def test_seeds_of_no_common_geometry_lead_to_nothing() -> None:
    pair, rng = scene(), np.random.default_rng(0)
    seeds = replace(pair.seeds(), indices=np.stack([np.arange(200), rng.permutation(200)], axis=1).astype(np.int32))
    assert complete_matches(pair.points0, pair.points1, seeds, GROWTH, RULE) is None


def test_a_thorough_pass_keeps_the_seeds_that_agree() -> None:
    """Half of the seeds have descriptors that the search cannot match; the wrong seeds are no matches in either case."""
    pair, rng = scene(), np.random.default_rng(1)
    other = rng.normal(size=(100, 64)).astype(np.float32)
    descriptors = pair.points0.descriptors.copy()
    descriptors[:100] = other / np.linalg.norm(other, axis=1, keepdims=True)
    pair = replace(pair, points0=replace(pair.points0, descriptors=descriptors))
    loose = replace(RULE, min_share=0.5)
    found, kept = pair.found(loose), pair.found(replace(loose, keeps_seeds=True))
    assert found is not None and kept is not None and kept.is_guided
    for matches, least in ((found, 0), (kept, 95)):
        first = matches.indices[matches.indices[:, 0] < 100]
        assert least <= len(first) <= 100 and (len(first) > 20) == (least > 0)
        assert (np.diff(matches.indices[:, 0]) > 0).all() and len(set(matches.indices[:, 1].tolist())) == len(matches)
        assert (matches.indices[:, 0] == matches.indices[:, 1]).mean() > 0.99
    assert (kept.scores[kept.indices[:, 0] < 100] == np.float32(0.9)).mean() > 0.9  # the network's
    assert len(kept) > len(found) + 70


def test_points_within_circles_are_those_of_the_plain_search() -> None:
    rng = np.random.default_rng(0)
    centers, points, radius = rng.uniform(-50, 150, (60, 2)), rng.uniform(0, 100, (300, 2)), rng.uniform(1, 20, 60)
    expected = np.argwhere(((centers[:, None] - points[None]) ** 2).sum(axis=2) < radius[:, None] ** 2)
    within = _within(centers, radius, points)
    assert within is not None
    found = np.stack(within, axis=1)
    np.testing.assert_array_equal(found[np.lexsort((found[:, 1], found[:, 0]))], expected)


def test_the_search_among_keypoints_in_one_place_is_left_to_the_network() -> None:
    """The same scene, a hundredth as large: 1000 keypoints in 8 x 6 px would all be candidates of each other."""
    pair = scene()
    small = [replace(points, keypoints=points.keypoints / 100) for points in (pair.points0, pair.points1)]
    assert complete_matches(*small, pair.seeds(), GROWTH, RULE) is None
    centers = np.zeros((10, 2))
    assert _within(centers, np.ones(10), np.zeros((1000, 2))) is None
    assert _within(centers, np.ones(10), np.zeros((1000, 2)), max_candidates=1000) is not None


EASY = GuidedPass(0.25, 170, 2, 10, 0, 30, 0.5, 0.0, 0.5, keeps_seeds=False)
THOROUGH = replace(EASY, min_keypoints=175, num_layers=3, keeps_seeds=True)
RECORD = WeightsRecord("random", "none", "0" * 64, "CC0", False)


def matcher(monkeypatch: pytest.MonkeyPatch, *passes: GuidedPass) -> LightGlueMatcher:
    """With a small random network."""
    if passes:
        monkeypatch.setitem(GUIDED_MATCHING, "aliked", GuidedMatching(passes))
    options = LightGlueOptions("lightglue", "aliked", None, None, None, None, False, False, bool(passes), "float32")
    return LightGlueMatcher(options, random_network(), "cpu", RECORD)


def images() -> list[Features]:
    points = [*random_points(400), random_points(150)[0]]  # the last one is too small for two passes
    strengths = [np.random.default_rng(i).uniform(size=len(p.keypoints)).astype(np.float32) for i, p in enumerate(points)]
    return [
        Features(p.keypoints.numpy(), strength, p.descriptors.numpy(), p.size, name=f"{i}.png")
        for i, (p, strength) in enumerate(zip(points, strengths, strict=True))
    ]


def test_only_easy_pairs_are_guided_and_the_others_stay_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    photos, guided, whole = images(), matcher(monkeypatch, EASY), matcher(monkeypatch)
    prepared = [guided.prepare(photo) for photo in photos]
    easy, small = guided.match_many([(prepared[0], prepared[1]), (prepared[0], prepared[2])])
    assert easy.is_guided and not small.is_guided and 1 <= easy.stop_layer <= 2
    former = whole(photos[0], photos[1])
    in_both = set(map(tuple, easy.indices.tolist())) & set(map(tuple, former.indices.tolist()))
    assert len(in_both) > 0.8 * len(former) > 50
    hard = replace(EASY, min_seeds=10**6)
    for rule, pairs in ((EASY, [(0, 2)]), (hard, [(0, 1), (0, 2)]), (replace(EASY, min_distinct=10**6), [(0, 1)])):
        for i, j in pairs:
            found, right = matcher(monkeypatch, rule)(photos[i], photos[j]), whole(photos[i], photos[j])
            assert not found.is_guided and found.stop_layer == right.stop_layer
            np.testing.assert_array_equal(found.indices, right.indices)
            np.testing.assert_array_equal(found.scores, right.scores)


def test_a_pair_that_the_first_pass_fails_for_goes_through_the_second(monkeypatch: pytest.MonkeyPatch) -> None:
    photos, hard = images(), replace(EASY, min_seeds=10**6)
    expected = matcher(monkeypatch, THOROUGH)(photos[0], photos[1])
    assert expected.is_guided
    for first in (hard, replace(EASY, min_distinct=10**6)):
        found = matcher(monkeypatch, first, THOROUGH)(photos[0], photos[1])
        np.testing.assert_array_equal(found.indices, expected.indices)
        np.testing.assert_array_equal(found.scores, expected.scores)
    whole = matcher(monkeypatch)(photos[0], photos[1])
    for change in ("min_seeds", "min_distinct", "min_coherent", "min_keypoints"):
        too_much = replace(THOROUGH, **{change: 180 if change == "min_keypoints" else 10**6})  # image 1 has 350 keypoints
        found = matcher(monkeypatch, hard, too_much)(photos[0], photos[1])
        assert not found.is_guided
        np.testing.assert_array_equal(found.indices, whole.indices)
    easy = matcher(monkeypatch, EASY, THOROUGH)(photos[0], photos[1])
    np.testing.assert_array_equal(easy.indices, matcher(monkeypatch, EASY)(photos[0], photos[1]).indices)


def test_the_state_of_all_keypoints_is_computed_only_for_pairs_that_need_it(monkeypatch: pytest.MonkeyPatch) -> None:
    guided = matcher(monkeypatch, EASY)
    calls: list[int] = []
    state = guided._state
    monkeypatch.setattr(guided, "_state", lambda features: (calls.append(len(features)), state(features))[1])
    first, second = (guided.prepare(photo) for photo in images()[:2])
    guided.match_many([(first, second)])
    assert calls == [170, 170]
    guided.guided = GuidedMatching((replace(EASY, min_seeds=10**6),))
    guided.match_many([(first, second)])
    guided.match_many([(second, first)])
    assert calls == [170, 170, 400, 350]
    assert first.num_bytes > first.all_keypoints.num_bytes  # type: ignore[union-attr]


def test_stored_matches_say_whether_they_were_guided() -> None:
    found = Matches(np.zeros((1, 2), np.int32), np.ones(1, np.float32), 3)
    assert matches_to_group(found, 1).attributes == {"": {"stop_layer": 3, "num_matches": 1}}  # as in earlier versions
    assert matches_to_group(replace(found, is_guided=True), 1).attributes[""]["guided"] == 1


def test_the_stage_counts_the_guided_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = images()
    with ShardStore(tmp_path / "features.h5", {}) as store:
        for photo in photos:
            store.add(photo.name, features_to_group(photo), f"stamp of {photo.name}")
        store.merge()
    pairs = [Pair("0.png", "1.png"), Pair("0.png", "2.png")]
    monkeypatch.setattr(LightGlueMatcher, "create", classmethod(lambda cls, options, device: matcher(monkeypatch, EASY)))
    for num_computed in (2, 0):
        report = match_pairs(tmp_path / "features.h5", pairs, tmp_path / "matches.h5", matcher(monkeypatch, EASY), num_workers=2)
        assert (report.num_computed, report.num_guided) == (num_computed, 1)
    with H5Reader(tmp_path / "matches.h5") as reader:
        assert [reader.find_matches(*names).is_guided for names in (("1.png", "0.png"), ("0.png", "2.png"))] == [True, False]  # type: ignore[union-attr]
