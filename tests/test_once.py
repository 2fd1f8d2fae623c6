"""Values that are made at their first use."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from sfm_lightglue.once import Once


def test_several_threads_make_a_value_once() -> None:
    calls, begun = list[int](), threading.Event()

    def make() -> list[int]:
        calls.append(1)
        begun.wait(0.05)  # the others ask meanwhile
        return [7]

    once = Once(make)
    with ThreadPoolExecutor(4) as pool:
        values = list(pool.map(lambda _: once(), range(8)))
    assert calls == [1] and all(value is values[0] for value in values)


def test_a_failed_attempt_is_repeated() -> None:
    answers = iter([ValueError("not yet"), 3])

    def make() -> int:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    once = Once(make)
    with pytest.raises(ValueError, match="not yet"):
        once()
    assert once() == 3 == once()
