"""The rows of pairs.tsv are made from arrays; sums for the photos equal those of the rows."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from sfm_lightglue.pair_table import PairNumbers, PairTable, PhotoSums
from sfm_lightglue.products import Pair, TwoViewGeometry
from sfm_lightglue.reasons import VERIFIED, Limits
from sfm_lightglue.storage import numbers_of

NONE = np.zeros((0, 2), np.int32)
GEOMETRIES = [
    TwoViewGeometry("CALIBRATED", NONE, 90, 2.0, num_agreeing=70, num_needed=25, mean_score=0.8),
    TwoViewGeometry("PLANAR", NONE, 50, 2.0, num_agreeing=40),
    TwoViewGeometry("DEGENERATE", NONE, 30, 2.0, rejected_because="few inliers", num_agreeing=12, num_needed=21, mean_score=0.4),
    TwoViewGeometry("DEGENERATE", NONE, 4, 2.0, rejected_because="few matches", num_stationary=2, num_needed=20),
    None,
    None,
]


@pytest.fixture
def table() -> PairTable:
    """All pairs of five photos with every kind of geometry in turn. Of those without a geometry, each second one was matched."""
    pairs = [Pair(*names, "list") for names in itertools.combinations("abcde", 2)]
    geometries = [GEOMETRIES[i % len(GEOMETRIES)] for i in range(len(pairs))]
    counts = np.where(np.arange(len(pairs)) % 2, 7, -1)
    return PairTable(pairs, numbers_of(geometries), counts, dict.fromkeys("abcde", 500), Limits(0.2))


def test_numbers_are_those_of_the_geometries() -> None:
    numbers = numbers_of(GEOMETRIES)
    for index, geometry in enumerate(GEOMETRIES):
        assert repr(numbers.geometry(index)) == repr(geometry)
    assert numbers.found.tolist() == [True] * 4 + [False] * 2
    assert (numbers.num_verified, numbers.num_inliers) == (2, 110)
    assert (numbers_of([]).num_verified, numbers_of([]).num_inliers) == (0, 0)


def test_sums_of_the_photos_are_those_of_their_rows(table: PairTable) -> None:
    rows = list(table)
    for name, sums in table.sums().items():
        own = [row for row in rows if name in (row.photo0, row.photo1)]
        verified = [row for row in own if row.verdict == VERIFIED]
        scored = [(row.mean_score, row.inliers or 0) for row in verified if row.mean_score is not None]
        weight = sum(count for _, count in scored)
        mean = sum(score * count for score, count in scored) / weight if weight else None
        expected = PhotoSums(
            len(own), len(verified), sum(row.matches or 0 for row in own), sum(row.inliers or 0 for row in verified), mean
        )
        assert sums == expected
        assert [(partner.photo, partner.verdict) for partner in table.partners(name, {})] == [
            (row.photo1 if row.photo0 == name else row.photo0, row.verdict) for row in own
        ]
        assert table.verified_partners(name) == [row.photo1 if row.photo0 == name else row.photo0 for row in verified]


def test_columns_of_the_table_are_those_of_its_rows(table: PairTable) -> None:
    fast, slow = PairNumbers.of(table), PairNumbers.of(list(table))
    for name in ("matched", "verified", "matches", "inliers", "mean_score"):
        np.testing.assert_array_equal(getattr(fast, name), getattr(slow, name))


def test_a_table_is_a_sequence(table: PairTable) -> None:
    assert len(table) == 10 and table[2:4] == [table[2], table[3]] and table[-1].photo1 == "e"
    assert [row.photo0 for row in table].count("a") == 4
    with pytest.raises(IndexError):
        table[10]
