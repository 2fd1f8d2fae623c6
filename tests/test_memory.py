"""The memory of the machine, and the limit of a container."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sfm_lightglue import memory


def test_the_memory_of_a_container_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "memory.max").write_text("123456789\n")
    (tmp_path / "unlimited").write_text("max\n")
    for files, expected in [((), 2**30), ((tmp_path / "unlimited",), 2**30), ((tmp_path / "memory.max",), 123456789)]:
        monkeypatch.setattr(memory, "CGROUP_FILES", files)
        found = memory.memory_bytes.__wrapped__()
        assert found == expected if expected != 2**30 else found >= 2**28


@pytest.mark.parametrize(("size", "most"), [(40, 2), (60, 1), (500, 1)])
def test_steps_wait_until_there_is_memory_for_them_or_they_are_alone(size: int, most: int) -> None:
    budget, meeting, met = memory.MemoryBudget(100), threading.Barrier(2), []

    def step(_: int) -> None:
        with budget.reserved(size):
            met.append(budget.taken)
            try:
                meeting.wait(0.2)  # two at a time meet here
                met.append(0)
            except threading.BrokenBarrierError:
                meeting.reset()

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(step, range(2)))
    assert (0 in met) == (most == 2)
    assert max(met) <= most * size and budget.taken == 0


def test_a_step_that_fails_gives_its_memory_back() -> None:
    budget = memory.MemoryBudget(100)
    with pytest.raises(ZeroDivisionError), budget.reserved(100):
        raise ZeroDivisionError
    assert budget.taken == 0
