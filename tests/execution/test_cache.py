"""The bounded cache."""

from __future__ import annotations

import threading
import time

import pytest

from sfm_lightglue.execution.cache import BoundedCache


def test_a_value_is_made_once_while_there_is_room() -> None:
    made: list[str] = []
    cache = BoundedCache(lambda key: made.append(key) or key * 2, len, 100)
    assert [cache(key) for key in "abab"] == ["aa", "bb", "aa", "bb"]
    assert made == ["a", "b"]


def test_the_least_recently_used_value_is_dropped() -> None:
    made: list[str] = []
    cache = BoundedCache(lambda key: made.append(key) or key * 10, len, 25)
    for key in ("a", "b", "a", "c", "a", "b"):
        cache(key)
    assert made == ["a", "b", "c", "b"]


def test_a_value_larger_than_the_bound_is_returned_and_kept_alone() -> None:
    made: list[str] = []
    cache = BoundedCache(lambda key: made.append(key) or key, lambda value: 50, 25)
    assert [cache("a"), cache("a"), cache("b"), cache("b")] == ["a", "a", "b", "b"]
    assert made == ["a", "b"]


def test_threads_wait_for_the_one_that_makes_the_value() -> None:
    made: list[int] = []

    def make(key: int) -> int:
        time.sleep(0.05)
        made.append(key)
        return key

    cache = BoundedCache(make, lambda value: 1, 10)
    threads = [threading.Thread(target=cache, args=(7,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [7]


def test_an_error_is_raised_and_the_next_call_tries_again() -> None:
    answers = iter([OSError("disk"), "value"])

    def make(key: str) -> str:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    cache = BoundedCache(make, len, 10)
    with pytest.raises(OSError, match="disk"):
        cache("a")
    assert cache("a") == "value"
