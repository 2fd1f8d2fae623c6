"""The crew: every key once, whoever dies, is slow or never starts. The machines are played, without a clock."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import pytest

from sfm_lightglue.execution import crew as crew_module
from sfm_lightglue.execution.crew import Crew, CrewOptions, Worked, WorkerLost
from sfm_lightglue.execution.portable import Failure


class PlayedMachines:
    """Workers that answer one ticket at each call of `wait`, in a random order that a seed decides.

    `dies` is asked before each chunk: the number of the worker and the keys decide whether the worker is lost.
    """

    def __init__(
        self, num_places: int, dies: Callable[[int, list[int]], bool] = lambda worker, keys: False, seed: int = 0
    ) -> None:
        self.num_places, self.dies, self.random = num_places, dies, random.Random(seed)
        self.numbers, self.tickets = itertools.count(), itertools.count()
        self.waiting: dict[Hashable, tuple[int, list[int] | None]] = {}
        self.dead: set[int] = set()
        self.stopped: set[int] = set()
        self.given: list[tuple[int, list[int]]] = []
        self.stuck: set[int] = set()
        """Workers that never answer."""
        self.num_silent = 0
        """Number of calls of `wait` without any answer."""

    def room(self) -> int:
        return self.num_places

    def start(self) -> tuple[int, Hashable]:
        worker, ticket = next(self.numbers), next(self.tickets)
        self.waiting[ticket] = worker, None
        return worker, ticket

    def give(self, worker: int, keys: list[int]) -> Hashable:
        ticket = next(self.tickets)
        self.waiting[ticket] = worker, keys
        self.given.append((worker, keys))
        return ticket

    def wait(self, tickets: Sequence[Hashable], seconds: float) -> Sequence[Hashable]:
        if self.num_silent:
            self.num_silent -= 1
            return []
        first: dict[int, Hashable] = {}
        for ticket in tickets:  # a worker does its chunks in order
            worker, keys = self.waiting[ticket]
            if keys is None or worker not in self.stuck:
                first.setdefault(worker, ticket)
        return [self.random.choice(sorted(first.values(), key=str))] if first else []

    def answer(self, ticket: Hashable) -> Any:
        worker, keys = self.waiting.pop(ticket)
        if keys is None:
            return f"machine {worker % 3}"
        if worker in self.dead or self.dies(worker, keys):
            self.dead.add(worker)
            raise WorkerLost("it was killed")
        return Worked([Failure(ValueError("odd")) if key == 13 else key * key for key in keys], 0.5, 100)

    def stop(self, workers: Sequence[int]) -> None:
        self.stopped |= {*workers}

    def describe(self) -> str:
        return "Each worker needs 1 CPU."


def run(machines: PlayedMachines, num_keys: int, **options: int) -> dict[int, Any]:
    found: dict[int, Any] = {}
    for key, result in Crew(machines, CrewOptions(**options)).results(range(num_keys)):
        assert key not in found, f"{key} came twice"
        found[key] = result
    return found


def squares(num_keys: int) -> dict[int, int]:
    return {key: key * key for key in range(num_keys) if key != 13}


@pytest.mark.parametrize("chunk_size", [0, 1, 7])
def test_every_key_comes_once_with_its_result_or_its_error(chunk_size: int) -> None:
    machines = PlayedMachines(4)
    found = run(machines, 100, chunk_size=chunk_size)
    assert isinstance(found.pop(13), ValueError)
    assert found == squares(100)
    assert machines.stopped == {0, 1, 2, 3}


@pytest.mark.parametrize("seed", range(10))
def test_nothing_is_lost_or_doubled_while_workers_die_at_random(seed: int) -> None:
    chance = random.Random(seed)
    machines = PlayedMachines(5, lambda worker, keys: chance.random() < 0.2, seed)
    found = run(machines, 300, chunk_size=4, max_restarts=-1, max_task_retries=50)
    del found[13]
    assert found == squares(300)
    assert len(machines.dead) > 5


def test_a_job_that_kills_its_workers_is_an_error_and_takes_no_neighbour_with_it() -> None:
    machines = PlayedMachines(3, lambda worker, keys: 42 in keys)
    found = run(machines, 100, chunk_size=10, max_task_retries=3)
    error = found.pop(42)
    assert isinstance(error, ChildProcessError)
    assert str(error) == "4 workers died at this job, the last one because it was killed"
    del found[13]
    assert found == {key: value for key, value in squares(100).items() if key != 42}
    assert len(machines.dead) == 4


def test_a_crew_that_never_finishes_anything_ends_with_an_error() -> None:
    machines = PlayedMachines(2, lambda worker, keys: True)
    with pytest.raises(ChildProcessError, match=r"all workers were lost, 6 in all.*results so far are kept"):
        run(machines, 100, max_restarts=2, max_task_retries=1000)
    assert machines.stopped == {0, 1, 2, 3, 4, 5}


def test_the_chunk_of_a_stuck_worker_is_given_to_an_idle_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew_module, "SLOW_S", -1.0)
    monkeypatch.setattr(crew_module, "SLOW_FACTOR", 0.0)
    machines = PlayedMachines(3)
    machines.stuck = {1}
    found = run(machines, 60, chunk_size=5)
    del found[13]
    assert found == squares(60)
    assert any(worker == 1 for worker, _ in machines.given)


def test_the_crew_shrinks_and_grows_with_its_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew_module, "LOOK_S", -1.0)
    machines = PlayedMachines(2)
    results = Crew(machines, CrewOptions(chunk_size=1)).results(range(200))
    for _ in range(20):
        next(results)
    machines.num_places = 6
    rest = list(results)
    assert len(rest) == 180 and machines.stopped == {*range(6)}


def test_no_more_workers_start_than_there_are_keys() -> None:
    machines = PlayedMachines(8)
    assert run(machines, 2) == {0: 0, 1: 1}
    assert len(machines.stopped) == 2
    assert run(PlayedMachines(8), 0) == {}


def test_workers_get_neighbouring_keys() -> None:
    machines = PlayedMachines(4)
    run(machines, 400, chunk_size=5)
    jumps = 0
    for number in range(4):
        keys = [key for worker, chunk in machines.given if worker == number for key in chunk]
        jumps += sum(after != before + 1 for before, after in itertools.pairwise(keys))
    assert jumps < 20  # 80 chunks: dealt one by one, each would be a jump


def test_a_closed_loop_stops_all_workers() -> None:
    machines = PlayedMachines(3)
    results = Crew(machines, CrewOptions()).results(range(100))
    next(results)
    results.close()
    assert machines.stopped == {0, 1, 2}


def test_the_state_tells_workers_rate_waiting_running_and_lost(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(crew_module, "TELL_S", -1.0)
    lost = iter([False, False, True])
    machines = PlayedMachines(3, lambda worker, keys: next(lost, False))
    machines.num_silent = 1
    with caplog.at_level("INFO", "sfm_lightglue.execution.crew"):
        run(machines, 40, chunk_size=2)
    assert "no worker is ready" in caplog.text and "Each worker needs 1 CPU." in caplog.text
    assert re.search(r"3 workers on 3 machines, .* jobs/s, \d+ jobs wait, \d+ run$", caplog.text, re.MULTILINE)
    assert re.search(r"jobs wait, \d+ run, 1 workers lost, [24] jobs given again$", caplog.text, re.MULTILINE)
