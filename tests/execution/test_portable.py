"""Plug-ins and errors that are sent to another process. The tests only pickle them."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from sfm_lightglue.execution.portable import Failure, PortablePlugin
from sfm_lightglue.matches.nearest_neighbor import NearestNeighborMatcher, NearestNeighborOptions


def sent(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


def test_a_plug_in_is_the_same_object_in_its_process_and_created_again_in_another() -> None:
    matcher = NearestNeighborMatcher(NearestNeighborOptions("nearest_neighbor", True, None, 0.5), "cpu")
    portable = PortablePlugin(matcher)
    assert portable.on("cuda:1") is matcher
    there = sent(portable).on("cuda:1")
    assert type(there) is NearestNeighborMatcher and there.options == matcher.options and there.device == "cuda:1"
    assert portable.on("cuda:1") is matcher


class WithoutOptions:
    """A plug-in without `options`, which only other processes need."""


def test_a_plug_in_that_cannot_be_created_again_says_what_to_do() -> None:
    portable = PortablePlugin(WithoutOptions())
    assert isinstance(portable.on("cpu"), WithoutOptions)
    with pytest.raises(ValueError, match=r"WithoutOptions cannot be created again .* choose execution=threads"):
        pickle.dumps(portable)


class Unpicklable(Exception):
    """Pickling keeps the arguments of `Exception`, which are too few for this constructor."""

    def __init__(self, key: int, problem: str) -> None:
        super().__init__(f"{key} {problem}")


def failure_of(error: Exception) -> Failure:
    try:
        raise error
    except Exception as raised:
        return Failure(raised)


def test_an_error_keeps_its_class_its_text_and_its_traceback() -> None:
    error = sent([failure_of(ValueError("1 is odd"))])[0].error
    assert type(error) is ValueError and str(error) == "1 is odd"
    assert "in failure_of" in error.__notes__[0]


def test_an_error_that_cannot_be_pickled_keeps_its_text() -> None:
    error = sent(failure_of(Unpicklable(3, "is odd"))).error
    assert type(error) is RuntimeError and str(error) == "Unpicklable: 3 is odd"
