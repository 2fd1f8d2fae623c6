"""The executor `threads`: every key once, bounded memory, and a clean end."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import wait

import pytest
import torch

from sfm_lightglue.execution import threads
from sfm_lightglue.execution.devices import num_cores
from sfm_lightglue.execution.progress import progress_bar
from sfm_lightglue.execution.threads import run_jobs, torch_threads


@pytest.mark.parametrize("num_workers", [1, 2, 7])
@pytest.mark.parametrize("num_keys", [0, 1, 50])
def test_every_key_comes_back_once_with_its_result(num_workers: int, num_keys: int) -> None:
    results = list(run_jobs(lambda key: key * key, range(num_keys), num_workers))
    assert sorted(results) == [(key, key * key) for key in range(num_keys)]


def test_an_error_is_the_result_of_its_key_and_the_other_jobs_go_on() -> None:
    def invert(key: int) -> float:
        return 1 / key

    results = dict(run_jobs(invert, [0, 1, 2], 2))
    assert isinstance(results[0], ZeroDivisionError)
    assert (results[1], results[2]) == (1, 0.5)


@pytest.mark.parametrize("num_workers", [1, 3])
def test_keys_are_taken_only_as_workers_need_them(num_workers: int) -> None:
    taken, given = 0, 0

    def keys() -> Iterator[int]:
        nonlocal taken
        for key in range(100):
            taken += 1
            yield key

    for _ in run_jobs(lambda key: key, keys(), num_workers):
        given += 1
        assert taken <= given + 2 * num_workers
    assert given == 100


def test_a_loop_that_ends_early_waits_for_running_jobs_and_drops_the_others() -> None:
    begun, ended = [], []

    def work(key: int) -> int:
        begun.append(key)
        time.sleep(0.02)
        ended.append(key)
        return key

    with pytest.raises(KeyboardInterrupt):
        for _ in run_jobs(work, range(100), 2):
            raise KeyboardInterrupt
    assert begun and sorted(begun) == sorted(ended), "no job runs on"
    assert len(begun) <= 6
    assert not [thread for thread in threading.enumerate() if "ThreadPoolExecutor" in thread.name]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_inside_a_job_ends_the_loop(error: type[BaseException]) -> None:
    def work(key: int) -> int:
        raise error

    with pytest.raises(error):
        list(run_jobs(work, range(10), 2))


@pytest.mark.parametrize("num_workers", [1, 2, 1000])
def test_the_cores_are_shared_among_the_workers_and_given_back(num_workers: int) -> None:
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError), torch_threads(num_workers):
        assert torch.get_num_threads() == max(1, num_cores() // num_workers)
        inside = dict(run_jobs(lambda _: torch.get_num_threads(), range(4), 2))
        assert set(inside.values()) == {torch.get_num_threads()}, "in the workers' threads too"
        raise RuntimeError
    assert torch.get_num_threads() == before


def test_a_bar_begins_at_the_number_of_finished_jobs(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(10, "extract", "img", initial=7) as bar:
        bar.update(3)
    assert "10/10" in capsys.readouterr().err


def test_jobs_that_finish_together_come_in_the_order_of_their_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a job after a failed one could be stored before the error is seen."""
    monkeypatch.setattr(threads, "wait", lambda running, return_when: wait(running))  # all jobs in flight finish
    assert [key for key, _ in run_jobs(lambda key: key, range(60), 1)] == list(range(60))
