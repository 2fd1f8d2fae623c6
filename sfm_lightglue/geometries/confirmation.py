"""Pairs with low matching scores, judged by third photos.

A true match continues: if a keypoint of photo 0 matches one of photo 1, and one of a third photo that sees the same place, then
the latter two match too. Matches between similar structures, such as the sides of a tower, do so rarely: the third photo matches
one of the two photos, and not the other. The share of matches that continue needs no focal lengths, unlike the product of the
rotations around a triangle of photos. A true pair with low scores is imprecise, so it is taken only if one of its photos has few
other pairs.

Sources: Zach et al., What Can Missing Correspondences Tell Us About 3D Structure and Motion?, CVPR 2008 (matches that are missing
in a third photo are evidence); Wilson and Snavely, Network Principles for SfM, ICCV 2013 (local structure of the graph).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections import Counter
from collections.abc import Sequence

import numpy as np

from sfm_lightglue.geometries.verification import VerificationOptions
from sfm_lightglue.products import Pair, TwoViewGeometry
from sfm_lightglue.storage import GeometryNumbers, H5Reader

UNCONFIRMED = 10
"""Matches that are counted as not confirmed from the start, so that a few matches with one third photo are no proof."""
ENOUGH_PAIRS = 3
"""A photo with this many pairs of sufficient score needs no unsure ones. On Temple (16 photos, all with 3 or more), seven more
true pairs of low scores change the AUC at 1 degree from 88.0 to 87.1."""
SINGLE_SHARE = 2 / 3
"""The share is multiplied by this if fewer than two third photos are asked about MIN_ASKED matches or more: a single one may show
a copy of the place. In sparse graphs of Temple and of a rendered front of equal parts, 15 instead of 27 wrong pairs are taken,
and 72 instead of 73 true ones."""
MIN_ASKED = 5
MAX_THIRD_PHOTOS = 30
"""Third photos that are asked about a pair: those that share most matches with both of its photos."""


def judge_unsure(
    pairs: Sequence[Pair],
    stamps: Sequence[str],
    numbers: GeometryNumbers,
    geometries: H5Reader,
    options: VerificationOptions,
) -> list[tuple[int, TwoViewGeometry]]:
    """The geometries that change when the pairs with low scores are judged by third photos, with their positions in `pairs`.

    The verdict depends on all given pairs, so it is found anew if they change. Empty if nothing changes.

    Args:
        pairs: All pairs of the run; they were verified one by one.
        stamps: What the geometry of each pair was computed from.
        numbers: What is known about each pair.
        geometries: The file of the geometries.
        options: The limits.
    """
    is_low = numbers.rows["mean_score"] < options.min_mean_score
    unsure = np.flatnonzero(is_low & (numbers.verified | numbers.low_score)).tolist()
    if not unsure:
        return []
    listed = "\n".join(f"{pair.name0}\n{pair.name1}\n{stamp}" for pair, stamp in zip(pairs, stamps, strict=True))
    graph_stamp = hashlib.sha256(listed.encode()).hexdigest()[:16]
    agreeing = np.flatnonzero(numbers.verified | numbers.low_score).tolist()
    graph = AgreeingPairs({pairs[place]: float(numbers.rows["mean_score"][place]) for place in agreeing}, geometries)
    sure = [pairs[place] for place in np.flatnonzero(numbers.verified & ~is_low).tolist()]
    num_sure = Counter(name for pair in sure for name in (pair.name0, pair.name1))
    changed = []
    for place in unsure:
        pair = pairs[place]
        is_needed = min(num_sure[pair.name0], num_sure[pair.name1]) < ENOUGH_PAIRS
        if not is_needed and np.isnan(numbers.rows["confirmed"][place]):  # rejected, and third photos were not asked before
            continue
        geometry = geometries.geometry(pair.name0, pair.name1)
        if is_needed and geometry.judged_with != graph_stamp:
            confirmed = graph.confirmed_share(pair)
            judged = judged_geometry(geometry, confirmed, is_verified=confirmed >= options.min_confirmed)
            changed.append((place, dataclasses.replace(judged, judged_with=graph_stamp)))
        elif not is_needed:
            judged = judged_geometry(geometry, None, is_verified=False)
            changed.append((place, dataclasses.replace(judged, judged_with="")))
    return changed


def judged_geometry(geometry: TwoViewGeometry, confirmed: float | None, *, is_verified: bool) -> TwoViewGeometry:
    """The geometry of a pair with a low score, verified or rejected for it."""
    agreeing, configuration = agreeing_matches(geometry), geometry.unsure_configuration or geometry.configuration
    if is_verified:
        return dataclasses.replace(
            geometry,
            configuration=configuration,
            inlier_matches=agreeing,
            rejected_because="",
            unsure_configuration="",
            unsure_matches=None,
            confirmed=confirmed,
        )
    return dataclasses.replace(
        geometry,
        configuration="DEGENERATE",
        inlier_matches=np.zeros((0, 2), np.int32),
        rejected_because="low score",
        unsure_configuration=configuration,
        unsure_matches=agreeing,
        confirmed=confirmed,
    )


def agreeing_matches(geometry: TwoViewGeometry) -> np.ndarray:
    """int32 (k, 2): the inliers of a pair that is verified, or would be if its scores were higher."""
    return geometry.inlier_matches if geometry.unsure_matches is None else geometry.unsure_matches


class AgreeingPairs:
    """All pairs with a two-view geometry, as a graph of photos; the pairs with low scores are among them.

    Args:
        scores: Mean score of the inliers of each pair.
        geometries: The file of the geometries; inliers are read when they are needed.
    """

    def __init__(self, scores: dict[Pair, float], geometries: H5Reader) -> None:
        self._scores, self._geometries = scores, geometries
        self._partners: dict[str, set[str]] = {}
        for pair in scores:
            self._partners.setdefault(pair.name0, set()).add(pair.name1)
            self._partners.setdefault(pair.name1, set()).add(pair.name0)
        self._inliers = functools.lru_cache(maxsize=20_000)(self._read)

    def confirmed_share(self, pair: Pair) -> float:
        """The share of the matches of a pair that third photos confirm, 0 to 1.

        If its two photos have no other pairs, the mean score stands for it: there is nothing that a wrong pair could spoil.

        Each third photo is asked about the matches for which it matches a keypoint of the one photo or of the other. It confirms
        those that lead to the same of its keypoints from both sides. It counts as much as the weaker of its two pairs scores.
        One third photo alone is weaker evidence than several, see SINGLE_SHARE.
        """
        if len(self._partners[pair.name0]) == len(self._partners[pair.name1]) == 1:
            return self._scores[pair]
        inliers = self._inliers(pair)
        confirmed, asked, num_third = 0.0, float(UNCONFIRMED), 0
        for third in self._third_photos(pair):
            through0 = _lookup(self._towards(third, pair.name0), inliers[:, 0])
            through1 = _lookup(self._towards(third, pair.name1), inliers[:, 1])
            weight = min(self._scores[Pair(pair.name0, third)], self._scores[Pair(pair.name1, third)])
            is_asked = (through0 >= 0) | (through1 >= 0)
            confirmed += weight * float((is_asked & (through0 == through1)).sum())
            asked += weight * float(is_asked.sum())
            num_third += is_asked.sum() >= MIN_ASKED
        return confirmed / asked * (1.0 if num_third > 1 else SINGLE_SHARE)

    def _third_photos(self, pair: Pair) -> list[str]:
        """The photos that have pairs with both photos, those with most matches first."""
        common = sorted(self._partners[pair.name0] & self._partners[pair.name1])
        if len(common) <= MAX_THIRD_PHOTOS:
            return common
        shared = {name: min(len(self._inliers(Pair(end, name))) for end in (pair.name0, pair.name1)) for name in common}
        return sorted(common, key=lambda name: (-shared[name], name))[:MAX_THIRD_PHOTOS]

    def _towards(self, third: str, name: str) -> np.ndarray:
        """int32 (k, 2): indices of keypoints of a photo, ascending, and of the keypoints of the third photo that they match."""
        pair = Pair(third, name)
        inliers = self._inliers(pair)
        ordered = inliers if pair.name0 == name else inliers[:, ::-1]
        result: np.ndarray = ordered[np.argsort(ordered[:, 0], kind="stable")]
        return result

    def _read(self, pair: Pair) -> np.ndarray:
        return agreeing_matches(self._geometries.geometry(pair.name0, pair.name1))


def _lookup(table: np.ndarray, keypoints: np.ndarray) -> np.ndarray:
    """int32 (n,): the second column of a table (k, 2) for each keypoint in its sorted first column; -1 if it is not there."""
    if not len(table):
        return np.full(len(keypoints), -1, np.int32)
    places = np.minimum(np.searchsorted(table[:, 0], keypoints), len(table) - 1)
    found: np.ndarray = np.where(table[places, 0] == keypoints, table[places, 1], -1)
    return found
