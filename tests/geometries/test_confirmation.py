"""Pairs with low scores, judged by third photos."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
from known_scene import FOCAL, SIZE, KnownScene

from sfm_lightglue.cameras import Camera
from sfm_lightglue.geometries import confirmation
from sfm_lightglue.geometries.confirmation import SINGLE_SHARE, UNCONFIRMED, AgreeingPairs
from sfm_lightglue.geometries.inputs import check_geometries
from sfm_lightglue.geometries.stage import VerificationReport, verify_pairs
from sfm_lightglue.geometries.verification import VerificationOptions
from sfm_lightglue.products import Matches, Pair, TwoViewGeometry
from sfm_lightglue.storage import H5Reader, ShardStore, features_to_group, geometry_to_group, match_key, matches_to_group

OPTIONS = VerificationOptions(2.0, 20, 0.5, 0.9999, 200, 0, None, 0.3)
CAMERA = Camera("SIMPLE_PINHOLE", SIZE, (FOCAL, SIZE[0] / 2, SIZE[1] / 2), True)
NAMES = [f"{number}.jpg" for number in range(4)]
"""Each photo of `LOW` has two other pairs."""
PAIRS = [Pair(*names) for names in itertools.combinations(NAMES, 2)]
LOW = PAIRS[0]
"""The pair whose matches have low scores."""


def write_run(folder: Path, *, score: float) -> None:
    """Features and matches of four photos of a scene; the matches of `LOW` have this score, all others 0.9."""
    scene = KnownScene(len(NAMES))
    with ShardStore(folder / "features.h5", {}) as store:
        for index, name in enumerate(NAMES):
            store.add(name, features_to_group(scene.features(index)), name)
        store.merge()
    with ShardStore(folder / "matches.h5", {}) as store:
        for pair in PAIRS:
            first, second = NAMES.index(pair.name0), NAMES.index(pair.name1)
            found = scene.matches(first, second)
            scores = np.full(len(found), score if pair == LOW else 0.9, np.float32)
            group = matches_to_group(Matches(found.indices, scores), len(scene.features(first)))
            store.add(match_key(pair.name0, pair.name1), group, "stamp")
        store.merge()


def verify(folder: Path, pairs: list[Pair] = PAIRS, options: VerificationOptions = OPTIONS) -> VerificationReport:
    files = folder / "features.h5", folder / "matches.h5"
    return verify_pairs(*files, pairs, folder / "verification.h5", options, dict.fromkeys(NAMES, CAMERA), names=NAMES)


def stored(folder: Path, pair: Pair = LOW) -> TwoViewGeometry:
    with H5Reader(folder / "verification.h5") as reader:
        return reader.geometry(pair.name0, pair.name1)


def test_a_true_pair_with_low_scores_is_verified_by_third_photos(tmp_path: Path) -> None:
    write_run(tmp_path, score=0.2)
    report = verify(tmp_path)
    geometry = stored(tmp_path)
    assert geometry.is_verified and geometry.confirmed is not None and geometry.confirmed > 0.8
    assert len(geometry.inlier_matches) == geometry.num_agreeing
    assert (report.num_verified_pairs, report.num_confirmed_pairs, report.rejected_because) == (6, 1, {})


@pytest.mark.parametrize(("score", "is_verified"), [(0.29, False), (0.31, True)])
def test_a_pair_of_photos_without_other_pairs_is_rejected_only_if_its_scores_are_clearly_low(
    tmp_path: Path, score: float, *, is_verified: bool
) -> None:
    write_run(tmp_path, score=score)
    verify(tmp_path, [LOW, PAIRS[-1]])
    assert stored(tmp_path).is_verified == is_verified
    assert stored(tmp_path).confirmed == pytest.approx(score, abs=1e-3)  # stored in 16 bits


def test_a_pair_without_third_photos_is_rejected_if_its_photos_have_others(tmp_path: Path) -> None:
    write_run(tmp_path, score=0.45)
    verify(tmp_path, [LOW, PAIRS[1]])
    assert (stored(tmp_path).rejected_because, stored(tmp_path).confirmed) == ("low score", 0)


def test_photos_with_enough_sure_pairs_need_no_unsure_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confirmation, "ENOUGH_PAIRS", 2)
    write_run(tmp_path, score=0.2)
    assert verify(tmp_path).rejected_because == {"low score": 1}


def test_the_verdict_follows_the_pairs_of_the_run_without_verifying_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path, score=0.2)
    assert verify(tmp_path, [LOW]).rejected_because == {"low score": 1}
    verify(tmp_path)
    judged = (tmp_path / "verification.h5").read_bytes()
    monkeypatch.setattr("sfm_lightglue.geometries.stage.verify_matches", lambda *_: pytest.fail("verified again"))
    monkeypatch.setattr(AgreeingPairs, "confirmed_share", lambda *_: pytest.fail("judged again"))
    assert verify(tmp_path).num_verified_pairs == 6
    assert (tmp_path / "verification.h5").read_bytes() == judged
    monkeypatch.undo()
    assert verify(tmp_path, [LOW]).num_verified_pairs == 0
    assert not len(stored(tmp_path).inlier_matches)


def test_the_order_of_runs_does_not_change_the_bytes(tmp_path: Path) -> None:
    for name, first in (("a", PAIRS), ("b", [LOW, PAIRS[3]])):
        (tmp_path / name).mkdir()
        write_run(tmp_path / name, score=0.2)
        verify(tmp_path / name, first)
        verify(tmp_path / name)
    assert (tmp_path / "a" / "verification.h5").read_bytes() == (tmp_path / "b" / "verification.h5").read_bytes()


def test_a_changed_verdict_changes_the_stamp(tmp_path: Path) -> None:
    write_run(tmp_path, score=0.2)
    stamps = []
    for pairs in ([LOW, PAIRS[-1]], PAIRS):
        verify(tmp_path, pairs)
        files = [H5Reader(tmp_path / f"{name}.h5") for name in ("verification", "features", "matches")]
        with files[0] as geometries, files[1] as features, files[2] as matches:
            stamps.append(check_geometries([LOW, PAIRS[-1]], geometries, features, matches, dict.fromkeys(NAMES, CAMERA)))
    assert stamps[0][0] != stamps[1][0] and stamps[0][1] == stamps[1][1]


def test_the_limit_1_rejects_all_pairs_with_low_scores(tmp_path: Path) -> None:
    write_run(tmp_path, score=0.2)
    assert verify(tmp_path, options=dataclasses.replace(OPTIONS, min_confirmed=1.0)).rejected_because == {"low score": 1}


def share_of(folder: Path, inliers: dict[Pair, np.ndarray], scores: dict[Pair, float]) -> float:
    """The confirmed share of the pair of a and b."""
    with ShardStore(folder / "verification.h5", {}) as store:
        for pair, matches in inliers.items():
            geometry = TwoViewGeometry("CALIBRATED", matches.astype(np.int32), len(matches), 2.0, num_needed=3)
            store.add(match_key(pair.name0, pair.name1), geometry_to_group(geometry), "")
        store.merge()
    with H5Reader(folder / "verification.h5") as reader:
        return AgreeingPairs(scores, reader).confirmed_share(Pair("a", "b"))


def test_the_confirmed_share_is_counted_match_by_match(tmp_path: Path) -> None:
    """The third photo sees keypoints 0 to 9: 0 to 3 alike from both sides, 4 and 5 differently, 6 to 9 from one side."""
    inliers = {
        Pair("a", "b"): np.stack([np.arange(20)] * 2, 1),
        Pair("a", "c"): np.stack([np.arange(9)] * 2, 1),
        Pair("b", "c"): np.array([[3, 3], [1, 1], [2, 2], [0, 0], [4, 5], [5, 4], [9, 9]]),
    }
    scores = {Pair("a", "b"): 0.4, Pair("a", "c"): 0.9, Pair("b", "c"): 0.6}
    share = share_of(tmp_path, inliers, scores)
    assert share == pytest.approx(SINGLE_SHARE * 0.6 * 4 / (UNCONFIRMED + 0.6 * 10))


def test_wrong_matches_end_in_third_photos(tmp_path: Path) -> None:
    """c shows what a shows; its pair with b has other keypoints, as pairs of two sides of a building have."""
    same = np.stack([np.arange(100)] * 2, 1)
    inliers = {Pair("a", "b"): same, Pair("a", "c"): same, Pair("b", "c"): same + 100}
    scores = {Pair("a", "b"): 0.45, Pair("a", "c"): 0.9, Pair("b", "c"): 0.45}
    assert share_of(tmp_path, inliers, scores) < 0.1
    inliers[Pair("b", "c")] = same
    assert share_of(tmp_path, inliers, scores) > 0.5


def test_third_photos_are_the_ones_with_most_matches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """d confirms all matches, c few; with one third photo to be asked, it is d."""
    monkeypatch.setattr(confirmation, "MAX_THIRD_PHOTOS", 1)
    same = np.stack([np.arange(100)] * 2, 1)
    few = np.stack([np.arange(20), np.arange(20) + 1], 1)
    ends = {Pair(end, third): few if third == "c" else same for end in "ab" for third in "cd"}
    inliers = {Pair("a", "b"): same, **ends}
    share = share_of(tmp_path, inliers, dict.fromkeys(inliers, 1.0))
    assert share == pytest.approx(SINGLE_SHARE * 100 / 110)


@pytest.mark.parametrize(("num_asked", "counts_whole"), [(4, False), (5, True)])
def test_one_third_photo_is_weaker_evidence_than_two(tmp_path: Path, num_asked: int, *, counts_whole: bool) -> None:
    """c confirms all 100 matches; d is asked about a few."""
    same = np.stack([np.arange(100)] * 2, 1)
    inliers = {Pair(a, b): same[: num_asked if b == "d" else 100] for a, b in ("ab", "ac", "bc", "ad", "bd")}
    share = share_of(tmp_path, inliers, dict.fromkeys(inliers, 1.0))
    confirmed = 100 + num_asked
    assert share == pytest.approx((1 if counts_whole else SINGLE_SHARE) * confirmed / (UNCONFIRMED + confirmed))
