"""The benchmark of features compares what it says."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Imports a script of the folder as a module. The scripts import each other by name."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


def test_equal_enlargement_is_a_row_beside_the_default(benchmark: Callable[[str], ModuleType]) -> None:
    features = benchmark("features")

    def rows(*enlarge: str) -> list[tuple[str, str]]:
        options = features._parse(["data", "out", "--features", "superpoint", "aliked", *enlarge])
        return [(row.kind, row.enlargement) for row in features.rows_of(options)]

    assert rows() == [("superpoint", "2 (default)"), ("aliked", "1 (default)")]
    assert rows("--enlarge", "default", "2") == [*rows(), ("aliked", "2")]  # superpoint's row would be the same
    assert rows("--enlarge", "1.5") == [("superpoint", "1.5"), ("aliked", "1.5")]
    assert rows("--overrides", "features.enlarge_max=3") == [("superpoint", "3"), ("aliked", "3")]


def test_each_enlargement_keeps_its_own_features(benchmark: Callable[[str], ModuleType]) -> None:
    features = benchmark("features")
    options = features._parse(["data", "out", "--enlarge", "default", "2"])
    assert features.output_of("aliked", Path("data/set"), options) == Path("out/aliked_nearest_neighbor/set")
    assert features.output_of("aliked", Path("data/set"), options, "2") == Path("out/aliked_nearest_neighbor_enlarge2/set")
    assert "features.enlarge_max=2" in features.overrides("aliked", options, "2")
    assert not any("enlarge_max" in override for override in features.overrides("aliked", options))


@pytest.mark.parametrize("text", ["0.5", "twice", "nan", "inf"])
def test_impossible_enlargements_are_refused(benchmark: Callable[[str], ModuleType], text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=f"found '{text}'"):
        benchmark("features")._enlargement(text)
