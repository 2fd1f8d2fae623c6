"""Which pairs get all kinds of features, and the table of them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import cast

import pytest

import sfm_lightglue  # noqa: F401  loads libz before pycolmap
from sfm_lightglue import escalation, pipeline
from sfm_lightglue.config import compose_config
from sfm_lightglue.escalation import choose_pairs, read_escalation, write_escalation
from sfm_lightglue.geometries import stage as verification
from sfm_lightglue.geometries.verification import verify_matches
from sfm_lightglue.pairs.second_round import VerifiedGraph
from sfm_lightglue.products import Pair
from sfm_lightglue.reconstruction import contradictions
from sfm_lightglue.run_context import Run
from sfm_lightglue.storage import H5Reader

DEMO = Path(__file__).resolve().parents[1] / "datasets" / "demo" / "images"
ALL = [Pair(first, second) for first in "abcdefgh" for second in "abcdefgh" if first < second]


def graph_of(inliers: dict[str, int]) -> VerifiedGraph:
    """The photos a to h, and verified pairs such as `ab`."""
    return VerifiedGraph(tuple("abcdefgh"), {Pair(*key): count for key, count in inliers.items()}, cast(H5Reader, None))


def clique(names: str, inliers: int) -> dict[str, int]:
    return {first + second: inliers for first in names for second in names if first < second}


def test_a_graph_of_strong_pairs_stays_as_it_is() -> None:
    chosen, report = choose_pairs(graph_of(clique("abcdefgh", 50)), ALL, [])
    assert chosen == [] and report == escalation.EscalationReport(0, 0, {}, 1)


def test_all_pairs_of_a_weak_photo_that_are_not_strong_are_chosen() -> None:
    inliers = clique("abcdefg", 500) | {"ah": 150, "bh": 49}
    chosen, report = choose_pairs(graph_of(inliers), ALL, [])
    assert chosen == [Pair(name, "h") for name in "bcdefg"]
    assert {pair.reason for pair in chosen} == {"h has 1 strong partner"}
    assert report == escalation.EscalationReport(6, 7, {"h": 1}, 1)


def test_pairs_between_two_parts_are_chosen_although_no_photo_is_weak() -> None:
    chosen, report = choose_pairs(graph_of(clique("abcd", 200) | clique("efgh", 200) | {"ae": 40}), ALL, [])
    assert chosen == [Pair(first, second) for first in "abcd" for second in "efgh"]
    assert (report.weak, report.num_parts) == ({}, 2)


def test_a_photo_with_few_pairs_is_weak_only_if_one_of_them_is() -> None:
    pairs = [Pair("a", "b"), Pair("b", "c")]
    graph = VerifiedGraph(("a", "b", "c"), {Pair("a", "b"): 50, Pair("b", "c"): 50}, cast(H5Reader, None))
    assert choose_pairs(graph, pairs, [])[0] == []
    graph = VerifiedGraph(("a", "b", "c"), {Pair("a", "b"): 50, Pair("b", "c"): 49}, cast(H5Reader, None))
    assert choose_pairs(graph, pairs, [])[0] == [Pair("b", "c")]


def test_pairs_once_chosen_stay_chosen() -> None:
    known = [Pair("a", "b", "before"), Pair("a", "x")]
    chosen, report = choose_pairs(graph_of(clique("abcdefgh", 50)), ALL, known)
    assert [(pair, pair.reason) for pair in chosen] == [(Pair("a", "b"), "before")] and report.num_pairs == 1


def test_the_mapper_has_the_last_word() -> None:
    known = [Pair("a", "h", "before")]
    chosen, left_out = escalation.choose_left_out("abcdefgh", ALL, known, ["abcd", "cef"])
    assert left_out == [*"efgh"] and Pair("a", "h") in chosen
    assert next(pair.reason for pair in chosen if pair == known[0]) == "before"
    inside = {Pair(*key) for key in ("ab", "ac", "ad", "bc", "bd", "cd", "ef")}
    assert {*ALL} - {*chosen} == inside, "pairs within a model; of two models, a photo counts for the larger one"
    reasons = {pair: pair.reason for pair in chosen}
    assert reasons[Pair("c", "e")] == "its photos are in two models"
    assert reasons[Pair("g", "h")] == "g is in no model; h is in no model"
    assert escalation.choose_left_out("abcdefgh", ALL, ALL, []) == (ALL, [])


def test_photos_in_doubt_get_all_kinds() -> None:
    chosen, left_out = escalation.choose_left_out("abcd", ALL[:3], [ALL[0]], ["abcd"], doubtful=["c"])
    assert (chosen, left_out) == ([Pair("a", "b"), Pair("a", "c")], [])
    assert chosen[1].reason == "pairs of c contradict the model"


def test_the_table_round_trips_with_any_name(tmp_path: Path) -> None:
    pairs = [Pair("a b", "c", "why; not"), Pair('"q"', "t\tt", "\n")]
    write_escalation(tmp_path / "escalation.tsv", pairs)
    found = read_escalation(tmp_path / "escalation.tsv")
    assert found == sorted(pairs) and [pair.reason for pair in found] == [pair.reason for pair in sorted(pairs)]
    assert read_escalation(tmp_path / "none.tsv") == []


@pytest.mark.parametrize(("text", "expected"), [("mine", "was not written by"), ("photo0\tphoto1\treason\na\tb\n", "is damaged")])
def test_other_files_are_refused(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "escalation.tsv").write_text(text)
    with pytest.raises(ValueError, match=expected):
        read_escalation(tmp_path / "escalation.tsv")


def test_a_run_escalates_only_what_is_weak_and_repeats_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "images").mkdir()
    for name in ("00.jpg", "01.jpg", "02.jpg", "03.jpg"):
        shutil.copy(DEMO / name, tmp_path / "images")
    run = Run.create(
        compose_config(
            [
                *("+dataset=folder", f"dataset.images={tmp_path / 'images'}", f"output={tmp_path / 'out'}"),
                *("features=[sift,superpoint]", "matches=nearest_neighbor", "matches.escalate=true", "pairs=sequential"),
                *("features.sift.resize_max=320", "features.sift.max_keypoints=200", "pairs.overlap=1"),
                *("features.superpoint.resize_max=320", "features.superpoint.max_keypoints=100"),
            ]
        )
    )
    for stage in ("extract", "pairs", "match", "verify"):
        pipeline.run_stage(run, stage)
    assert not (tmp_path / "out" / "features-superpoint.h5").exists()
    with run.folder.open_verification() as reader:
        pairs = run.folder.read_pairs()
        inliers = dict(zip(pairs, reader.num_inliers_of(pairs).tolist(), strict=True))
    weakest = min(inliers, key=lambda pair: (inliers[pair], pair))
    monkeypatch.setattr(escalation, "STRONG_INLIERS", sorted(inliers.values())[1])
    verified = list[str]()
    monkeypatch.setattr(verification, "verify_matches", lambda *given: verified.append(given[2].name) or verify_matches(*given))
    pipeline.run_stage(run, "escalate")
    assert verified == [weakest.name0]  # its photos have other pairs, which keep their geometry
    assert read_escalation(run.folder.escalation) == [weakest]
    with H5Reader(tmp_path / "out" / "features-superpoint.h5") as reader:
        assert reader.names() == [weakest.name0, weakest.name1]
    with run.folder.open_features() as reader, run.folder.open_matches() as matches:
        assert [len(reader.kinds(name)) for name in reader.names()].count(2) == 2
        counts = dict(zip(pairs, matches.match_counts_of(pairs)[:, 0].tolist(), strict=True))
    with H5Reader(tmp_path / "out" / "matches-sift.h5") as reader:
        alone = dict(zip(pairs, reader.match_counts_of(pairs)[:, 0].tolist(), strict=True))
    assert [pair for pair in pairs if counts[pair] > alone[pair]] == [weakest]
    record = run.folder.read_summary()["stages"]["escalate"]
    assert record["num_pairs"] == 1 and record["num_photos"] == 2 and record["weak"]
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.h5")}
    for stage in ("extract", "match", "verify", "escalate"):
        pipeline.run_stage(run, stage)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.h5")} == before
    repeated = run.folder.read_summary()["stages"]["escalate"]
    assert all(repeated[key] == record[key] for key in ("num_pairs", "num_photos", "weak", "num_parts"))


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A run of three photos whose pairs are all strong."""
    (tmp_path / "images").mkdir()
    for name in ("00.jpg", "01.jpg", "02.jpg"):
        shutil.copy(DEMO / name, tmp_path / "images")
    monkeypatch.setattr(escalation, "STRONG_INLIERS", 1)
    return [
        *("+dataset=folder", f"dataset.images={tmp_path / 'images'}", f"output={tmp_path / 'out'}", "pairs=exhaustive"),
        *("features=[sift,superpoint]", "matches=nearest_neighbor", "matches.escalate=true", "reconstruction=incremental"),
        *("features.sift.resize_max=320", "features.sift.max_keypoints=200", "refinement=none"),
        *("features.superpoint.resize_max=320", "features.superpoint.max_keypoints=200", "features.superpoint.enlarge_max=1"),
    ]


def test_photos_that_the_mapper_leaves_out_get_all_kinds_and_are_mapped_again(tmp_path: Path, given: list[str]) -> None:
    run = Run.create(compose_config(given))
    for name in ("extract", "pairs", "match", "verify", "escalate", "database", "reconstruct"):
        pipeline.run_stage(run, name)
    assert read_escalation(run.folder.escalation) == []  # all photos are in the model
    with run.folder.open_verification() as reader:
        most = int(reader.num_inliers_of(run.folder.read_pairs()).max())
    run = Run.create(compose_config([*given, f"reconstruction.min_num_matches={most + 1}"]))  # SIFT alone gives no model
    pipeline.run_stage(run, "reconstruct")
    chosen = read_escalation(run.folder.escalation)
    assert chosen == run.folder.read_pairs() and chosen[0].reason == "00.jpg is in no model; 01.jpg is in no model"
    stages = run.folder.read_summary()["stages"]
    assert stages["escalate"]["left_out"] == ["00.jpg", "01.jpg", "02.jpg"] and stages["escalate"]["num_pairs"] == 3
    assert stages["reconstruct"]["models"]
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.*") if path.suffix in (".h5", ".tsv", ".bin")}
    for name in ("extract", "match", "verify", "escalate", "database", "reconstruct"):
        pipeline.run_stage(run, name)
    assert {path: path.read_bytes() for path in before} == before
    assert run.folder.read_summary()["stages"]["escalate"]["left_out"] == ["00.jpg", "01.jpg", "02.jpg"]


def test_photos_of_pairs_that_contradict_the_model_get_all_kinds_and_are_mapped_again(
    monkeypatch: pytest.MonkeyPatch, given: list[str]
) -> None:
    monkeypatch.setattr(contradictions, "MIN_MATCHES", 1)
    monkeypatch.setattr(contradictions, "MIN_AGREEING", 1.1)  # every pair contradicts
    run = Run.create(compose_config(given))
    for name in ("extract", "pairs", "match", "verify", "escalate", "database", "reconstruct"):
        pipeline.run_stage(run, name)
    chosen, stages = read_escalation(run.folder.escalation), run.folder.read_summary()["stages"]
    assert chosen == run.folder.read_pairs()
    assert chosen[0].reason == "pairs of 00.jpg contradict the model; pairs of 01.jpg contradict the model"
    assert stages["escalate"]["doubtful"] == stages["reconstruct"]["doubtful"] == ["00.jpg", "01.jpg", "02.jpg"]
    assert stages["escalate"]["left_out"] == []
    with run.folder.open_features() as reader:
        assert all(len(reader.kinds(name)) == 2 for name in reader.names())
