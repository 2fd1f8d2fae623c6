"""Keys that are divided among workers: each once, in parts of neighbours."""

from __future__ import annotations

import itertools

import pytest

from sfm_lightglue.execution import sharing
from sfm_lightglue.execution.sharing import Chunk, SharedKeys


def take_all(work: SharedKeys[int], *workers: str) -> list[int]:
    """The keys in the order in which workers take them in turn, one at a time."""
    taken: list[int] = []
    for worker in itertools.cycle(workers):
        chunk = work.next_chunk(worker, 1)
        if chunk is None:
            return taken
        work.finish(chunk)
        taken += chunk.keys
    raise AssertionError


def test_a_worker_takes_keys_in_their_order_and_a_second_one_takes_half() -> None:
    assert take_all(SharedKeys(range(6)), "a") == [0, 1, 2, 3, 4, 5]
    assert take_all(SharedKeys(range(8)), "a", "b") == [0, 4, 1, 5, 2, 6, 3, 7]


def test_keys_are_read_when_they_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "WINDOW", 10)
    source = iter(range(1000))
    work = SharedKeys(source)
    assert work.num_waiting == 10
    assert next(source) == 10  # nothing beyond the window was read
    assert sorted(take_all(work, "a", "b", "c")) == [key for key in range(1000) if key != 10]


def test_a_lost_chunk_comes_first_and_its_second_loss_separates_its_keys() -> None:
    work = SharedKeys(range(10), max_losses=3)
    first = work.next_chunk("a", 3)
    assert first is not None and work.lose("a", first) == []
    again = work.next_chunk("b", 1)
    assert again is first and again.keys == [0, 1, 2]
    assert work.lose("b", again) == []
    singles = [work.next_chunk("c", 5) for _ in range(3)]
    assert [(chunk.keys, chunk.losses) for chunk in singles if chunk] == [([0], 2), ([1], 2), ([2], 2)]
    assert work.num_waiting == 7 and work.num_running == 3


def test_only_the_chunk_that_was_begun_is_blamed() -> None:
    work = SharedKeys(range(10), max_losses=0)
    begun, queued = work.next_chunk("a", 2), work.next_chunk("a", 2)
    assert work.lose("a", begun) == [0, 1]
    assert work.next_chunk("b", 2) is queued


def test_a_chunk_of_two_workers_counts_once_and_is_not_lost_with_one_of_them() -> None:
    work = SharedKeys(range(2))
    chunk = work.next_chunk("a", 2)
    assert isinstance(chunk, Chunk)
    work.give_too("b", chunk)
    assert work.lose("a", chunk) == [] and work.num_waiting == 0
    assert work.finish(chunk) and not work.finish(chunk)
    assert work.num_running == 0
