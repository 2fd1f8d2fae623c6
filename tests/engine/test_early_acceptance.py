"""Pairs with many matches end early, and no other pair changes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lightglue_inputs import random_network, random_points

from sfm_lightglue.engine.batch import Batch
from sfm_lightglue.engine.early_acceptance import EarlyAcceptance, flag_matchable, judge_matches
from sfm_lightglue.engine.lightglue import LightGlueEngine
from sfm_lightglue.engine.results import PairMatches

DEPTH = {"depth_confidence": 0.999999, "width_confidence": -1}
"""The network itself stops after its last layer only."""
ALWAYS, NEVER = EarlyAcceptance(-1.0, 0, 0.0), EarlyAcceptance(-1.0, 10**6, 0.0)


def match_with(rule: EarlyAcceptance | None, **settings: float) -> list[PairMatches]:
    engine = LightGlueEngine(random_network(**settings), early_acceptance=rule)
    pairs = [random_points(), random_points(80)]
    sides = [[engine.prepare(p.keypoints, p.descriptors, p.size) for p in pair] for pair in pairs]
    return engine.match_many([(first, second) for first, second in sides])


def test_accepted_pairs_end_after_the_layer_with_the_matches_of_that_layer() -> None:
    accepted, usual = match_with(ALWAYS, **DEPTH), match_with(None, **DEPTH)
    stopped = match_with(None, depth_confidence=1e-9, width_confidence=-1)  # after the first layer, if any point is certain
    assert {found.stop_layer for found in accepted} == {1} and {found.stop_layer for found in usual} == {4}
    for found, right in zip(accepted, stopped, strict=True):
        assert torch.equal(found.indices, right.indices) and torch.equal(found.scores, right.scores)


def test_pairs_with_few_matches_and_networks_without_adaptive_depth_are_not_changed() -> None:
    for rule, settings in ((NEVER, DEPTH), (ALWAYS, {"depth_confidence": -1, "width_confidence": -1})):
        for found, right in zip(match_with(rule, **settings), match_with(None, **settings), strict=True):
            assert found.stop_layer == right.stop_layer == 4 and torch.equal(found.indices, right.indices)


@pytest.mark.parametrize(("certain", "matchable", "accepted"), [(16, 6, True), (15, 6, False), (16, 5, False)])
def test_both_images_need_certain_points_with_a_match(certain: int, matchable: int, accepted: bool) -> None:
    """20 points in two images of 10; `matchable` of the certain ones in image 1 have a match, all in image 0."""
    engine = LightGlueEngine(random_network())
    points = random_points()[0]
    image = engine.prepare(points.keypoints[:10], points.descriptors[:10], points.size)
    batch = Batch.of(np.array([0]), [image, image], np.array([0, 10]), engine.numerics.dtype)
    is_certain = torch.arange(20) >= 20 - certain
    matchability = torch.where(torch.arange(20) < 10 + matchable, 0.9, 0.1)
    rule = EarlyAcceptance(0.75, 6, 0.9)
    counts = batch.count(torch.stack([~is_certain, flag_matchable(matchability, is_certain, rule)]))
    found = judge_matches(batch, *counts, rule)
    assert found.tolist() == [accepted]
