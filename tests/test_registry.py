"""Plug-ins by name, and the settings that identify their results."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from sfm_lightglue import __version__
from sfm_lightglue.api import create_matcher
from sfm_lightglue.features import EXTRACTORS
from sfm_lightglue.matches import MATCHERS
from sfm_lightglue.matches.nearest_neighbor import NearestNeighborMatcher
from sfm_lightglue.networks.weights import WeightsRecord
from sfm_lightglue.registry import closest, load_class
from sfm_lightglue.settings import plugin_settings


@pytest.mark.parametrize("table", [EXTRACTORS, MATCHERS])
def test_every_name_in_the_tables_stands_for_a_class_with_create(table: dict[str, str]) -> None:
    for name in table:
        assert callable(load_class(name, table, "plug-in").create)  # type: ignore[attr-defined]


def test_a_class_of_the_user_is_loaded_from_its_module() -> None:
    assert load_class("sfm_lightglue.matches.nearest_neighbor:NearestNeighborMatcher", {}, "matcher") is NearestNeighborMatcher


def test_a_mistyped_name_is_answered_with_the_closest_and_all_names() -> None:
    with pytest.raises(ValueError, match=r"extractor 'alikd' does not exist\. Did you mean 'aliked'\? There are: aliked, disk"):
        load_class("alikd", EXTRACTORS, "extractor")
    assert closest("quite different", ["aliked", "disk"]) == "There are: aliked, disk"


@pytest.mark.parametrize("name", ["no_such_module:Class", "sfm_lightglue.products:NoSuchClass"])
def test_the_error_says_why_a_class_cannot_be_loaded(name: str) -> None:
    with pytest.raises(ValueError, match=f"matcher '{name}' cannot be loaded: .*(no_such_module.*PYTHONPATH|NoSuchClass)"):
        load_class(name, MATCHERS, "matcher")


@dataclasses.dataclass(frozen=True)
class Options:
    name: str = "mine"
    weights: str = "published"
    path: str = "here"
    threshold: float = 0.5


class Plugin:
    def __init__(self, *records: WeightsRecord, **options: Any) -> None:
        self.options, self.weights = Options(**options), records


def record(sha256: str, name: str = "published") -> WeightsRecord:
    return WeightsRecord(name, f"/somewhere/{name}", sha256, "MIT", False)


def test_settings_have_the_hash_of_the_weights_and_not_their_name_or_place() -> None:
    base = plugin_settings(Plugin(record("aa")))
    assert base == plugin_settings(Plugin(record("aa", "copy"), weights="copy", path="there"))
    assert base != plugin_settings(Plugin(record("bb")))
    assert base["version"] == __version__ and base["class"].endswith(":Plugin")


def test_settings_have_every_other_option() -> None:
    assert plugin_settings(Plugin(record("aa"))) != plugin_settings(Plugin(record("aa"), threshold=0.6))


def test_settings_without_weights_have_all_options() -> None:
    assert plugin_settings(Plugin()) != plugin_settings(Plugin(path="there"))


def test_renamed_options_keep_their_first_name_so_that_files_of_results_stay_valid() -> None:
    options = create_matcher("lightglue", trained_for="superpoint-open", early_rejection=False).options  # type: ignore[attr-defined]
    stored = plugin_settings(create_matcher("lightglue", trained_for="superpoint-open", early_rejection=False))["options"]
    assert (stored["head"], stored["skip_hopeless"]) == (options.trained_for, options.early_rejection)
    assert set(stored) == {*(field.name for field in dataclasses.fields(options)), "head", "skip_hopeless"} - {
        *("trained_for", "early_rejection", "weights")
    }
