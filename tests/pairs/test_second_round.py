"""The second round of pairs: partners of partners, next neighbours, and pairs between parts of the view graph."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from sfm_lightglue import cli
from sfm_lightglue.config import bind_pairs, compose_config
from sfm_lightglue.pair_files import read_pairs, read_reasons
from sfm_lightglue.pairs.second_round import RoundReport, VerifiedGraph, log_proposals, propose_pairs, round_of, widened
from sfm_lightglue.pairs.union import UnionOptions
from sfm_lightglue.products import Pair, TwoViewGeometry
from sfm_lightglue.stage_lines import stage_line
from sfm_lightglue.storage import GeometryNumbers, H5Reader
from sfm_lightglue.storage.numbers import numbers_of
from sfm_lightglue.summary import Summary

DEMO = Path(__file__).resolve().parents[2] / "datasets" / "demo"


class SeenPoints:
    """Stands for the file of geometries: two photos are verified if they see 8 common points; a keypoint is a point."""

    def __init__(self, seen: dict[str, set[int]]) -> None:
        self.seen = seen

    def geometry(self, name0: str, name1: str) -> TwoViewGeometry:
        common = np.array(sorted(self.seen[name0] & self.seen[name1]), np.int32)
        kind = "CALIBRATED" if len(common) >= 8 else "DEGENERATE"
        matches = np.stack([common, common], axis=1)
        return TwoViewGeometry(kind, matches, len(common), 1.0, num_agreeing=len(common))

    def geometry_numbers(self, pairs: Sequence[Pair]) -> GeometryNumbers:
        return numbers_of(self.geometry(pair.name0, pair.name1) for pair in pairs)


def graph_of(seen: dict[str, set[int]], tried: Sequence[Pair]) -> VerifiedGraph:
    return VerifiedGraph.read(sorted(seen), tried, cast(H5Reader, SeenPoints(seen)))


def walk(names: str, start: int = 0) -> dict[str, set[int]]:
    """Photos of a wall: each sees 20 points and moves on by 5, so three photos that follow each other have 10 in common."""
    return {name: {*range(start + 5 * i, start + 5 * i + 20)} for i, name in enumerate(names)}


def chain(names: str) -> list[Pair]:
    return [Pair(*ends, "retrieval#1", 0.9) for ends in itertools.pairwise(names)]


def test_partners_of_partners_that_share_keypoints_are_proposed() -> None:
    seen, tried = walk("abcdef"), chain("abcdef")
    pairs = propose_pairs(graph_of(seen, tried), tried, [], min_partners=10, number=2)
    assert pairs == [Pair(a, c) for a, c in zip("abcd", "cdef", strict=True)]
    assert {pair.reason for pair in pairs} == {"round2:friend#1"}
    assert pairs[0].score == pytest.approx(10 / 15)
    assert [round_of(pair) for pair in (tried[0], pairs[0])] == [1, 2]
    assert propose_pairs(graph_of(seen, tried), tried, [], min_partners=1, number=2) == []


def test_photos_lack_partners_among_the_photos_that_there_are() -> None:
    seen = {name: {*range(20)} for name in "abcd"}
    tried = [Pair(*ends) for ends in itertools.combinations("abcd", 2)]
    assert graph_of(seen, tried).lacking(10) == {}
    seen["d"] = {*range(100, 120)}
    assert graph_of(seen, tried).lacking(10) == {"a": 1, "b": 1, "c": 1, "d": 3}
    assert graph_of(seen, tried).lacking(2) == {"d": 2}


def test_partners_of_a_partner_that_look_at_its_other_side_are_not_proposed() -> None:
    seen = {"left": {*range(20)}, "middle": {*range(40)}, "right": {*range(20, 40)}}
    tried = [Pair("left", "middle"), Pair("middle", "right")]
    assert propose_pairs(graph_of(seen, tried), tried, [], min_partners=10, number=2) == []


def test_photos_that_still_lack_partners_get_the_next_pairs_of_the_source() -> None:
    seen = {**walk("abc"), "x": {*range(500, 520)}}
    tried = [*chain("abc"), Pair("a", "x", "retrieval#1")]
    wider = [*tried, Pair("b", "x", "retrieval#2", 0.3), Pair("c", "x", "retrieval#3", 0.2), Pair("a", "c", "retrieval#2", 0.5)]
    pairs = propose_pairs(graph_of(seen, tried), tried, wider, min_partners=1, number=2)
    assert [(pair, pair.reason, pair.score) for pair in pairs] == [(Pair("b", "x"), "round2:retrieval#2", 0.3)]
    more = propose_pairs(graph_of(seen, tried), tried, wider, min_partners=2, number=3)
    assert [pair.reason for pair in more] == ["round3:friend#1", "round3:retrieval#2", "round3:retrieval#3"]


def test_connected_parts_get_pairs_between_them_although_no_photo_lacks_partners() -> None:
    seen = {**walk("abcd"), **walk("wxyz", 1000)}
    tried = [Pair(*ends) for group in ("abcd", "wxyz") for ends in itertools.combinations(group, 2)]
    wider = [*tried, *(Pair(a, w, f"retrieval#{rank}", 0.1) for rank, (a, w) in enumerate(itertools.product("abcd", "wxyz"), 4))]
    pairs = propose_pairs(graph_of(seen, tried), tried, wider, min_partners=2, number=2)
    assert pairs == [Pair("a", "w"), Pair("a", "x")]


def test_the_order_of_the_input_does_not_matter() -> None:
    seen, tried = walk("abcdefgh"), chain("abcdefgh")
    wider = [Pair(a, b, f"retrieval#{ord(b) - ord(a)}", 0.5) for a, b in itertools.combinations("abcdefgh", 2)]
    rows = [
        [(pair, pair.reason, pair.score) for pair in propose_pairs(graph_of(seen, one), one, other, 4, 2)]
        for one, other in ((tried, wider), (tried[::-1], wider[::-1]))
    ]
    assert rows[0] == rows[1] and rows[0]


def test_options_of_any_source_are_widened() -> None:
    bound = bind_pairs(compose_config(["pairs=[auto,sequential]"]).pairs)
    assert isinstance(bound, UnionOptions)
    wider: Any = widened(bound)
    assert wider.sources["auto"].retrieval.num_neighbours == 2 * bound.sources["auto"].retrieval.num_neighbours
    assert wider.sources["sequential"].overlap == 20
    assert wider.sources["auto"].max_exhaustive == bound.sources["auto"].max_exhaustive
    radius = dataclasses.replace(bound.sources["auto"].spatial, num_neighbours=None, max_distance_m=5.0)
    assert widened(radius) == radius


@pytest.mark.usefixtures("command_line")
def test_a_run_with_two_rounds_is_repeated_with_the_same_pairs(tmp_path: Path) -> None:
    photos, output = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    for photo in sorted((DEMO / "images").glob("*.jpg"))[:5]:
        shutil.copy2(photo, photos)
    arguments = ["features=sift", "features.max_keypoints=512", "features.resize_max=480", "matches=nearest_neighbor"]
    arguments += ["pairs=sequential", "pairs.overlap=1", "pairs.quadratic_overlap=false"]
    arguments += ["pairs.rounds=2", "pairs.min_partners=3"]
    for stage in ("extract", "pairs", "match", "verify", "expand"):
        assert cli.main([stage, str(photos), str(output), *arguments]) == 0
    first, table = (output / "pairs.txt").read_bytes(), (output / "pairs.tsv").read_bytes()
    rounds = [round_of(pair) for pair in read_reasons(output / "pairs.tsv")]
    assert rounds.count(1) == 4 and rounds.count(2) >= 2
    summary = Summary.read(output)
    assert [(each.round, each.num_pairs, each.num_components) for each in summary.expansion] == [(2, rounds.count(2), 1)]
    assert summary.verification is not None and summary.verification.num_pairs == len(rounds)
    assert cli.main(["expand", str(photos), str(output), *arguments]) == 0
    assert ((output / "pairs.txt").read_bytes(), (output / "pairs.tsv").read_bytes()) == (first, table)
    assert cli.main(["pairs", str(photos), str(output), *arguments]) == 0
    assert len(read_pairs(output / "pairs.txt")) == 4
    (output / "pairs.txt").unlink()  # as if killed between the two files
    for stage in ("pairs", "match", "verify", "expand"):
        assert cli.main([stage, str(photos), str(output), *arguments]) == 0
    assert ((output / "pairs.txt").read_bytes(), (output / "pairs.tsv").read_bytes()) == (first, table)


def test_a_round_or_a_stage_without_work_says_so_or_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for num_pairs, num_weak in ((0, 0), (0, 3), (5, 3)):
        log_proposals(RoundReport(2, num_pairs, {"friend": num_pairs} if num_pairs else {}, num_weak, 1, 9, 0))
    assert [record.getMessage() for record in caplog.records] == [
        "round 2: all photos have enough verified partners",
        "round 2: no other pair is promising for 3 photos with few verified partners",
        "round 2: 5 more pairs (5 x friend) for 3 photos with few verified partners; the photos are in 1 part",
    ]
    assert stage_line("expand", {"rounds": [], "seconds": 0.0}) == ""
    assert stage_line("expand", {"rounds": [{"num_pairs": 5}], "seconds": 0.0}) == "expand: 5 pairs added (0.0 s)"
    assert stage_line("of a plug-in", {"seconds": 1.0}) == "of a plug-in: done (1.0 s)"
