"""Several pair sources at once: the union of their pairs, and the list `pairs=[a,b]` in the configuration."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfm_lightglue import api, cli
from sfm_lightglue.config import bind_pairs, compose_config
from sfm_lightglue.overrides import hydra_overrides
from sfm_lightglue.pairs.exhaustive import ExhaustiveOptions
from sfm_lightglue.pairs.sequential import SequentialOptions, sequential_pairs
from sfm_lightglue.pairs.union import UnionOptions, union_pairs
from sfm_lightglue.products import Pair


def rows(pairs: list[Pair]) -> list[tuple[str, str, str, float]]:
    return [(pair.name0, pair.name1, pair.reason, pair.score) for pair in pairs]


def test_a_union_keeps_each_pair_once_with_all_reasons_and_the_highest_score() -> None:
    first = [Pair("b", "c", "sequential+1"), Pair("a", "b", "sequential+1")]
    second = [Pair("a", "b", "loop#2", 0.5), Pair("a", "c", "loop#1", 0.25)]
    third = [Pair("a", "b", "sequential+1,list", 0.75)]
    assert rows(union_pairs([first, second, third]))[:2] == [
        ("a", "b", "sequential+1,loop#2,list", 0.75),
        ("a", "c", "loop#1", 0.25),
    ]
    (last,) = union_pairs([first])[1:]
    assert (last.name0, last.reason) == ("b", "sequential+1") and np.isnan(last.score)


PAIRS = st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("efgh")).map(lambda names: Pair(*names, reason="list")))


@given(st.lists(PAIRS, max_size=4))
def test_a_union_is_the_union_of_sets_and_does_not_change_if_repeated(lists: list[list[Pair]]) -> None:
    union = union_pairs(lists)
    assert union == sorted(set().union(*lists))
    assert [pair.reason for pair in union_pairs([union, union])] == [pair.reason for pair in union]


def test_listed_sources_have_their_own_options() -> None:
    options = bind_pairs(compose_config(["pairs=[sequential, exhaustive]", "pairs.sequential.overlap=5"]).pairs)
    assert isinstance(options, UnionOptions)
    assert list(options.sources) == ["sequential", "exhaustive"]
    assert isinstance(options.sources["sequential"], SequentialOptions) and options.sources["sequential"].overlap == 5
    assert options.sources["exhaustive"] == ExhaustiveOptions("exhaustive")


def test_listed_sources_give_the_pairs_of_all_with_joined_reasons(tmp_path: Path) -> None:
    names = [f"{i}.jpg" for i in range(5)]
    (tmp_path / "pairs.txt").write_text("0.jpg 1.jpg\n0.jpg 4.jpg")
    sequential = {"overlap": 1, "quadratic_overlap": False}
    found = api.select_pairs(names, ["sequential", "list"], sequential=sequential, list={"path": tmp_path / "pairs.txt"})
    assert found == sorted([*sequential_pairs(names, 1, False), Pair("0.jpg", "4.jpg")])
    reasons = {(pair.name0, pair.name1): pair.reason for pair in found}
    assert reasons["0.jpg", "1.jpg"] == "sequential+1,list"
    assert reasons["1.jpg", "2.jpg"] == "sequential+1"
    assert reasons["0.jpg", "4.jpg"] == "list"


def test_a_file_of_the_user_may_join_sources_and_use_one_of_them_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pairs").mkdir()
    sources = "defaults: [union, sequential@near, sequential@far, _self_]"
    (tmp_path / "pairs" / "video.yaml").write_text(f"{sources}\nnear: {{overlap: 3}}\nfar: {{overlap: 30}}\n")
    monkeypatch.setenv("SFM_LIGHTGLUE_CONFIGS", str(tmp_path))
    options = bind_pairs(compose_config(["pairs=video", "pairs.far.quadratic_overlap=false"]).pairs)
    assert {key: (source.overlap, source.quadratic_overlap) for key, source in options.sources.items()} == {
        "near": (3, True),
        "far": (30, False),
    }


@pytest.mark.usefixtures("command_line")
def test_the_printed_configuration_shows_every_listed_source(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["pairs", "+dataset=demo", f"output={tmp_path}", "pairs=[exhaustive,retrieval]", "--cfg", "job"]) == 0
    printed = capsys.readouterr().out
    assert "  name: union\n  exhaustive:\n    name: exhaustive\n  retrieval:\n    name: retrieval\n" in printed


def test_one_source_without_brackets_is_no_list() -> None:
    assert hydra_overrides(["pairs=sequential", "pairs.overlap=5"]) == ["pairs=sequential", "pairs.overlap=5"]
    assert hydra_overrides(["+pairs=[sequential]"]) == ["pairs=union", "+pairs@pairs.sequential=sequential"]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["pairs=[sequental,retrieval]"], r"pairs=sequental does not exist\. Did you mean 'sequential'\?"),
        (["pairs=[sequential]", "pairs.sequental.overlap=1"], r"unknown option 'pairs\.sequental'\. Did you mean 'sequential'\?"),
        (
            ["pairs=[sequential]", "pairs.sequential.overlp=1"],
            r"unknown option 'pairs\.sequential\.overlp'\. Did you mean 'overlap'",
        ),
        (
            ["pairs=[sequential]", "+pairs.sequential.overlp=1"],
            r"unknown option 'pairs\.sequential\.overlp'\. Did you mean 'overlap'",
        ),
        (["pairs=[sequential]", "pairs.sequential.overlap=many"], r"option 'pairs\.sequential\.overlap': Value 'many'"),
        (["pairs=[sequential]", "+pairs.overlap=1"], r"unknown option 'pairs\.overlap': expected a pair source with a name"),
        (["pairs=[list]"], r"the option 'pairs\.list\.path' must be given"),
        (["pairs=[list,list]"], r"cannot read 'pairs=\[list,list\]': expected a list of different pair sources"),
        (["pairs=exhaustive,[sequential,retrieval]"], "a sweep over several lists needs a YAML file for each"),
        (["pairs=[sequential],[retrieval]"], "a sweep over several lists needs a YAML file for each"),
        (["pairs=[[list]]"], "cannot read .* expected a list of different pair sources"),
        (["pairs=[]"], r"cannot read 'pairs=\[\]': expected a list of different pair sources"),
        (["pairs=union"], r"pairs=union joins the sources of a list: give one, such as pairs=\[sequential,retrieval\]"),
        (["pairs.name=retreival"], r"pairs 'retreival' does not exist\. Did you mean 'retrieval'\?"),
    ],
)
def test_a_mistake_in_a_list_of_sources_is_explained(overrides: list[str], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        bind_pairs(compose_config(overrides).pairs)
