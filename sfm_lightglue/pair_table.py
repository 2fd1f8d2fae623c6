"""The rows of `pairs.tsv`, made one by one from arrays of numbers, and sums of them for each photo."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np

from sfm_lightglue.products import Pair
from sfm_lightglue.reasons import NOT_MATCHED, VERIFIED, Limits, Partner, judge_pair
from sfm_lightglue.storage import GeometryNumbers


@dataclass(frozen=True)
class PairRow:
    """A line of `pairs.tsv`. None, and an empty cell, is what is not known."""

    photo0: str
    photo1: str
    source: str
    """Why the pair was chosen: `exhaustive`, `sequential+4`, `retrieval#3`, ..., see `products.Pair.reason`."""
    score: float | None
    """Similarity of the photos from retrieval."""
    matches: int | None
    inliers: int | None
    """Matches that agree with the best two-view geometry; of a rejected pair as far as it is known."""
    inlier_ratio: float | None
    """Inliers per match, 0..1."""
    mean_score: float | None
    """Mean matching score of the inliers, 0..1."""
    configuration: str
    """COLMAP's name of the two-view geometry; DEGENERATE if it was rejected."""
    verdict: str
    """One of `reasons.PAIR_VERDICTS`."""
    reason: str
    """Why it was rejected, or what its geometry lacks; empty if there is nothing to explain."""
    advice: str
    """What to try."""


@dataclass(frozen=True)
class PhotoSums:
    """Numbers of the pairs of one photo."""

    pairs: int = 0
    verified_pairs: int = 0
    matches: int = 0
    """Of all its pairs."""
    inliers: int = 0
    """Of its verified pairs."""
    mean_score: float | None = None
    """Mean matching score of these inliers, 0..1; None if it is not known."""


@dataclass(frozen=True)
class PairNumbers:
    """Some columns of the rows of pairs, each (p,)."""

    matched: np.ndarray
    """bool: whether the pair was matched or verified."""
    verified: np.ndarray
    """bool: whether it has a two-view geometry."""
    matches: np.ndarray
    """int64: 0 if not known, as for `inliers`."""
    inliers: np.ndarray
    mean_score: np.ndarray
    """float64: NaN if not known."""

    @classmethod
    def of(cls, rows: Sequence[PairRow]) -> PairNumbers:
        """The numbers of some rows; fast for a `PairTable`."""
        if isinstance(rows, PairTable):
            found = rows.numbers.rows
            matches, inliers = np.maximum(rows.num_matches, 0), np.maximum(found["num_agreeing"], 0)
            return cls(rows.num_matches >= 0, rows.numbers.verified, matches.astype(np.int64), inliers, found["mean_score"])
        return cls(
            np.array([row.verdict != NOT_MATCHED for row in rows], bool),
            np.array([row.verdict == VERIFIED for row in rows], bool),
            np.array([_whole(row.matches) for row in rows], np.int64),
            np.array([_whole(row.inliers) for row in rows], np.int64),
            np.array([np.nan if row.mean_score is None else row.mean_score for row in rows], np.float64),
        )


def _whole(value: float | None) -> int:
    """A count that may be missing, as a whole number."""
    return 0 if value is None or not math.isfinite(value) else int(value)


class PairTable(Sequence[PairRow]):
    """The rows of the pairs. A row is made when it is asked for: a million pairs take 50 MB, and their rows would take 1 GB.

    Args:
        pairs: The pairs, in the order of the rows.
        numbers: What is known about their geometries.
        num_matches: int (p,): number of matches, -1 if the pair was not matched. Not used for pairs with a geometry.
        keypoints: Number of keypoints of each photo by name.
        limits: The limits of the run.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        numbers: GeometryNumbers,
        num_matches: np.ndarray,
        keypoints: Mapping[str, int],
        limits: Limits,
    ) -> None:
        self.pairs, self.numbers, self.keypoints, self.limits = pairs, numbers, keypoints, limits
        self.num_matches = np.where(numbers.found, numbers.rows["num_matches"], num_matches)

    def __len__(self) -> int:
        return len(self.pairs)

    @overload
    def __getitem__(self, index: int) -> PairRow: ...
    @overload
    def __getitem__(self, index: slice) -> list[PairRow]: ...
    def __getitem__(self, index: int | slice) -> PairRow | list[PairRow]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        pair, geometry, count = self.pairs[index], self.numbers.geometry(index), int(self.num_matches[index])
        num_matches = None if count < 0 else count
        keypoints = self.keypoints.get(pair.name0), self.keypoints.get(pair.name1)
        finding = judge_pair(geometry, num_matches, keypoints, self.limits)
        inliers = geometry.num_agreeing if geometry is not None else None
        return PairRow(
            photo0=pair.name0,
            photo1=pair.name1,
            source=pair.reason,
            score=None if math.isnan(pair.score) else pair.score,
            matches=num_matches,
            inliers=inliers,
            inlier_ratio=inliers / num_matches if inliers is not None and num_matches else None,
            mean_score=geometry.mean_score if geometry is not None else None,
            configuration=geometry.configuration if geometry is not None else "",
            verdict=finding.verdict,
            reason=finding.reason,
            advice=finding.advice,
        )

    def __iter__(self) -> Iterator[PairRow]:
        return map(self.__getitem__, range(len(self)))

    # --- as seen from the photos ---

    @functools.cached_property
    def photos(self) -> dict[str, int]:
        """The photos of the pairs, and their numbers."""
        return {name: i for i, name in enumerate(sorted({name for pair in self.pairs for name in (pair.name0, pair.name1)}))}

    @functools.cached_property
    def ends(self) -> np.ndarray:
        """int64 (p, 2): numbers of both photos of each pair."""
        numbers = (self.photos[name] for pair in self.pairs for name in (pair.name0, pair.name1))
        return np.fromiter(numbers, np.int64, 2 * len(self.pairs)).reshape(-1, 2)

    @functools.cached_property
    def _rows_of(self) -> list[np.ndarray]:
        """The rows of each photo, by its number."""
        ends = self.ends.reshape(-1)
        order = np.argsort(ends, kind="stable")
        return np.split(order // 2, np.searchsorted(ends[order], np.arange(1, len(self.photos))))

    def verified_edges(self) -> np.ndarray:
        """int64 (v, 2): numbers of both photos of each verified pair."""
        edges: np.ndarray = self.ends[self.numbers.verified]
        return edges

    def sums(self) -> dict[str, PhotoSums]:
        """Numbers of the pairs of each photo, by name."""
        verified, agreeing, scores = self.numbers.verified, self.numbers.rows["num_agreeing"], self.numbers.rows["mean_score"]
        inliers = np.where(verified, np.maximum(agreeing, 0), 0)
        scored = np.where(np.isnan(scores), 0, inliers)

        def total(values: np.ndarray) -> list[float]:
            weights = np.repeat(values.astype(np.float64), 2)
            sums: list[float] = np.bincount(self.ends.reshape(-1), weights, len(self.photos)).tolist()
            return sums

        values = [np.ones(len(self)), verified, np.maximum(self.num_matches, 0), inliers, scored, scored * np.nan_to_num(scores)]
        return {
            name: PhotoSums(int(pairs), int(num_verified), int(matches), int(agreed), score / count if count else None)
            for name, pairs, num_verified, matches, agreed, count, score in zip(self.photos, *map(total, values), strict=True)
        }

    def partners(self, photo: str, model_of: Mapping[str, int]) -> list[Partner]:
        """The pairs of a photo, as seen from it. `model_of` gives the numbers of the models that have photos."""
        if photo not in self.photos:
            return []
        partners = []
        for row in map(self.__getitem__, self._rows_of[self.photos[photo]].tolist()):
            other = row.photo1 if row.photo0 == photo else row.photo0
            numbers = row.matches or 0, row.inliers or 0, row.mean_score
            partners.append(Partner(other, row.verdict, row.reason, *numbers, row.configuration, model_of.get(other)))
        return partners

    def verified_partners(self, photo: str) -> list[str]:
        """The photos that have a verified pair with a photo."""
        if photo not in self.photos:
            return []
        rows = self._rows_of[self.photos[photo]]
        pairs = [self.pairs[row] for row in rows[self.numbers.verified[rows]].tolist()]
        return [pair.name1 if pair.name0 == photo else pair.name0 for pair in pairs]
