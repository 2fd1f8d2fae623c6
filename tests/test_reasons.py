"""The words about lost photos and pairs: each cause has its own reason, with the numbers that decided."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sfm_lightglue.products import TwoViewGeometry
from sfm_lightglue.reasons import Finding, Limits, Partner, PhotoFacts, RunFacts, group_sizes, judge_pair, judge_photo

NO_INLIERS = np.zeros((0, 2), np.int32)
LIMITS = Limits(min_mean_score=0.5, min_model_size=3, min_confirmed=0.3)


def pair(configuration: str = "DEGENERATE", num_matches: int = 210, **evidence: Any) -> Finding:
    geometry = TwoViewGeometry(configuration, NO_INLIERS, num_matches, 2.0, **evidence)
    return judge_pair(geometry, num_matches, (500, 600), LIMITS)


def test_a_verified_pair_needs_no_words() -> None:
    assert pair("CALIBRATED", num_agreeing=80) == Finding("verified")


@pytest.mark.parametrize("configuration", ["PLANAR", "PANORAMIC", "PLANAR_OR_PANORAMIC"])
def test_a_pair_without_depth_is_told(configuration: str) -> None:
    assert pair(configuration).verdict == "verified" and "a plane or a pure rotation" in pair(configuration).reason


def test_a_pair_that_third_photos_confirm_says_so() -> None:
    finding = pair("CALIBRATED", mean_score=0.41, confirmed=0.62)
    assert finding.reason == "the inliers are unsure (mean score 0.41), but third photos confirm 62 % of them"


def test_a_pair_that_moves_like_an_overlay_is_told() -> None:
    assert "like an overlay" in pair("WATERMARK").reason and "dataset.masks" in pair("WATERMARK").advice


@pytest.mark.parametrize(
    ("evidence", "reason"),
    [
        ({"rejected_because": "few matches", "num_matches": 12, "num_needed": 20}, "few matches: 12 matches, 20 are needed"),
        ({"rejected_because": "few matches", "num_matches": 0, "num_needed": 20}, "few matches: no matches, 20 are needed"),
        (
            {"rejected_because": "few inliers", "num_agreeing": 35, "num_needed": 44},
            "few inliers: 35 of 210 matches agree with one geometry, 44 are needed to be more than chance",
        ),
        (
            {"rejected_because": "few inliers", "num_needed": 44},
            "few inliers: too few of 210 matches agree with one geometry, 44 are needed to be more than chance",
        ),
        (
            {"rejected_because": "low score", "num_agreeing": 88, "num_needed": 44, "mean_score": 0.3149},
            "low score: the 88 inliers have a mean score of 0.31, geometries.min_mean_score is 0.5",
        ),
        (
            {"rejected_because": "low score", "num_agreeing": 88, "mean_score": 0.3, "confirmed": 0.123},
            "low score: the 88 inliers have a mean score of 0.30, geometries.min_mean_score is 0.5; "
            "third photos confirm 12 % of them, 30 % are needed",
        ),
        ({"rejected_because": "low score"}, "low score: the inliers are unsure, geometries.min_mean_score is 0.5"),
        ({}, "no two-view geometry was found"),
    ],
)
def test_a_rejected_pair_says_what_it_had_and_what_it_needed(evidence: dict[str, Any], reason: str) -> None:
    finding = pair(**evidence)
    assert (finding.verdict, finding.reason) == ("rejected", reason) and finding.advice


def test_matches_that_stand_still_are_told() -> None:
    finding = pair(num_matches=60, num_stationary=50, rejected_because="few matches", num_needed=20)
    assert "10 matches (50 more stand still in an overlay and were dropped), 20 are needed" in finding.reason
    assert "dataset.masks" in finding.advice


def test_a_photo_with_few_keypoints_explains_its_pair() -> None:
    geometry = TwoViewGeometry("DEGENERATE", NO_INLIERS, 4, 2.0, rejected_because="few matches", num_needed=20)
    assert "one photo has only 30 keypoints" in judge_pair(geometry, 4, (30, 2000), LIMITS).reason
    assert judge_pair(geometry, 0, (0, 2000), LIMITS).reason == "one of the photos has no keypoints"


def test_a_pair_that_the_run_did_not_reach_is_told() -> None:
    assert judge_pair(None, None, (5, 5), LIMITS).verdict == "not matched"
    assert judge_pair(None, 7, (5, 5), LIMITS).verdict == "not verified"


# --- photos --------------------------------------------------------------------------------------------------------------

RUN = RunFacts(LIMITS, [9, 3], 2000.0, ["pairs", "verify", "reconstruct"])


def partner(photo: str = "b.jpg", verdict: str = "verified", model: int | None = None, **others: Any) -> Partner:
    facts = {"reason": "", "matches": 50, "inliers": 40, "mean_score": 0.9, "configuration": "CALIBRATED", **others}
    return Partner(photo, verdict, model=model, **facts)


def photo(run: RunFacts = RUN, **others: Any) -> Finding:
    facts = {"keypoints": 2000, "skipped": "", "model": None, "partners": [], "group": 1, **others}
    return judge_photo(PhotoFacts(**facts), run)


def test_a_registered_photo_needs_no_words() -> None:
    assert photo(model=0) == Finding("registered")


def test_an_unreadable_photo_keeps_the_reason_of_the_decoder() -> None:
    finding = photo(keypoints=None, skipped="the file is empty")
    assert (finding.verdict, finding.reason) == ("unreadable", "the file is empty")


@pytest.mark.parametrize(
    ("reason", "advice"),
    [
        ("HEIC photos need a package: pip install pillow-heif", "install the package"),
        ("unreadable image (OSError: image file is truncated (14 bytes not processed))", "copy it again"),
        ("unreadable image (OSError: Truncated File Read)", "copy it again"),
        ("unreadable image (UnidentifiedImageError: cannot identify image file 'a.jpg')", "convert it to JPEG"),
        ("it is in line 3 of list.txt, but not in the photo folder", "correct the list"),
        ("7 x 5 px: a side is shorter than 16 px", "full size"),
        ("unreadable image (OSError: decoder error -2)", "save it again"),
    ],
)
def test_the_advice_fits_the_reason_of_the_decoder(reason: str, advice: str) -> None:
    assert advice in photo(keypoints=None, skipped=reason).advice


def test_a_photo_without_keypoints_or_partners_is_told() -> None:
    assert photo(keypoints=0).verdict == "no features"
    assert photo().reason == "no partner: it is in no pair"


def test_a_photo_of_another_model_says_which_and_whether_pairs_join_it() -> None:
    reason = photo(model=1, partners=[partner(model=1)]).reason
    assert reason == "in model 1 of 3 photos, apart from the largest of 9; no verified pair joins it to a photo of the largest"
    assert (
        "1 verified pair with photos of the largest, too few common points" in photo(model=1, partners=[partner(model=0)]).reason
    )
    assert photo(model=1).verdict == "other model"


def test_a_photo_whose_pairs_were_all_rejected_names_the_reasons_and_the_best_pair() -> None:
    rejected = [
        partner("b.jpg", "rejected", reason="few matches: 12 matches, 20 are needed", matches=12, inliers=0),
        partner("c.jpg", "rejected", reason="few matches: no matches, 20 are needed", matches=0, inliers=0),
        partner("d.jpg", "rejected", reason="few inliers: 30 of 90 matches", matches=90, inliers=30),
    ]
    assert photo(partners=rejected).reason == (
        "none of its 3 pairs was verified (2 x few matches, 1 x few inliers); the best, with d.jpg: few inliers: 30 of 90 matches"
    )
    assert photo(keypoints=150, partners=rejected).reason.startswith("only 150 keypoints (median of all photos: 2000); ")


def test_a_photo_that_the_mapper_refused_says_how_many_points_it_knows() -> None:
    finding = photo(partners=[partner("b.jpg", model=0), partner("c.jpg", model=0, inliers=30)], known_points=11, group=9)
    assert finding.reason == (
        "the mapper found no sure pose for it: 2 verified pairs with registered photos, the best with b.jpg (40 inliers), "
        "but only 11 keypoints match points of the largest model"
    )


def test_a_small_group_apart_is_told() -> None:
    finding = photo(partners=[partner("b.jpg")], group=2)
    assert "only to photos that are in no model either (b.jpg)" in finding.reason
    assert "a group of 2 is smaller than reconstruction.min_model_size=3" in finding.reason


def test_planes_and_rotations_alone_explain_a_run_without_a_model() -> None:
    run = RunFacts(LIMITS, [], 2000.0, RUN.finished)
    assert "1 verified pair fit a plane" in photo(run, partners=[partner(configuration="PANORAMIC")], group=4).reason
    assert "the mapper found no model" in photo(run, partners=[partner()], group=4).reason


def test_a_run_that_stopped_before_says_so() -> None:
    for finished, where in ((["pairs"], "its pairs were verified"), ([], "pairs were selected")):
        finding = photo(RunFacts(LIMITS, [], 2000.0, finished))
        assert finding.verdict == "pending" and where in finding.reason
    unfinished = RunFacts(LIMITS, [], 2000.0, ["pairs", "verify"])
    assert photo(unfinished, partners=[partner()]).verdict == "pending"
    assert photo(unfinished).verdict == "unregistered", "without a partner, no reconstruction helps"
    assert photo(keypoints=None).verdict == "pending"
    assert photo(partners=[partner(verdict="not verified"), partner("c.jpg", "rejected")]).verdict == "pending"


def test_groups_are_what_verified_pairs_connect() -> None:
    assert group_sizes(4, [(0, 1), (1, 2)]) == [3, 3, 3, 1]
    assert group_sizes(6, [(4, 5), (0, 5), (2, 3), (3, 2), (0, 4)]) == [3, 1, 2, 2, 3, 3]
    assert group_sizes(0, []) == []
