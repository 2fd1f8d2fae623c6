"""Many jobs in processes: every key once, clean ends whoever dies. Jobs are functions here, so that they can be pickled."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from sfm_lightglue.execution.processes import run_jobs_in_processes

Job = Callable[[int], object]


@contextlib.contextmanager
def opened(function: Job) -> Iterator[Job]:
    yield function


def recipes(function: Job, count: int) -> list[Callable[[], contextlib.AbstractContextManager[Job]]]:
    return [functools.partial(opened, function)] * count


def square(key: int) -> tuple[int, int, int]:
    """The result, and who computed it."""
    time.sleep(0.01)
    return key * key, os.getpid(), torch.get_num_threads()


def misbehave(key: int) -> int:
    """Even keys are fine, odd ones raise."""
    if key % 2:
        raise Unpicklable(key, "is odd") if key > 2 else ValueError(f"{key} is odd")
    return key


class Unpicklable(Exception):
    """Pickling keeps the arguments of `Exception`, which are too few for this constructor."""

    def __init__(self, key: int, problem: str) -> None:
        super().__init__(f"{key} {problem}")


def die(key: int) -> int:
    if key == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return key


def sleep_long(key: int) -> int:
    if key > 0:
        time.sleep(60)
    return os.getpid()


def rest(key: int) -> int:
    time.sleep(0.2)
    return os.getpid()


@contextlib.contextmanager
def broken() -> Iterator[Job]:
    raise FileNotFoundError("no weights")
    yield square


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_every_key_comes_back_once_from_one_of_the_processes() -> None:
    found = dict(run_jobs_in_processes(recipes(square, 2), range(60), num_workers=2))
    assert {key: result[0] for key, result in found.items()} == {key: key * key for key in range(60)}
    pids = {result[1] for result in found.values()}
    assert len(pids) == 2 and os.getpid() not in pids
    assert not multiprocessing.active_children()


def test_without_keys_no_process_is_started_and_one_key_needs_one() -> None:
    assert list(run_jobs_in_processes([broken], [], 1)) == []
    ((key, (result, _, _)),) = run_jobs_in_processes([functools.partial(opened, square), broken], [7], 1)
    assert (key, result) == (7, 49)


def test_an_error_is_the_result_of_its_key_with_its_traceback_and_the_others_go_on() -> None:
    results = dict(run_jobs_in_processes(recipes(misbehave, 1), range(5), 1))
    assert [results[key] for key in (0, 2, 4)] == [0, 2, 4]
    assert isinstance(results[1], ValueError) and str(results[1]) == "1 is odd"
    assert "in misbehave" in results[1].__notes__[0]
    assert isinstance(results[3], RuntimeError) and str(results[3]) == "Unpicklable: 3 is odd"


def test_an_error_of_a_recipe_ends_the_run() -> None:
    with pytest.raises(FileNotFoundError, match="no weights"):
        list(run_jobs_in_processes([broken], [1], 1))
    assert not multiprocessing.active_children()


def test_a_killed_process_ends_the_run_with_an_error_that_names_the_signal() -> None:
    found = []
    with pytest.raises(ChildProcessError, match=r"killed by SIGKILL \(has the machine run out of memory\?\)"):
        found.extend(key for key, _ in run_jobs_in_processes(recipes(die, 1), range(20), 1))
    assert set(found) <= set(range(5)) and not multiprocessing.active_children()


def test_a_loop_that_ends_early_ends_the_processes_in_the_midst_of_their_jobs() -> None:
    begin = time.monotonic()
    jobs = run_jobs_in_processes(recipes(sleep_long, 1), range(10), 1)
    _, pid = next(jobs)
    jobs.close()
    assert time.monotonic() - begin < 50 and not is_alive(pid)


@pytest.mark.parametrize("sent, to_all", [(signal.SIGKILL, False), (signal.SIGINT, True)])
def test_processes_end_with_their_parent(sent: signal.Signals, to_all: bool, tmp_path: Path) -> None:
    """Killed, it cannot end them; Ctrl-C reaches all of them at once, and only the parent may answer it."""
    script = tmp_path / "parent.py"
    script.write_text(
        "import functools, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # tests in the background of a shell begin without it
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_processes import opened, rest, run_jobs_in_processes\n"
        "if __name__ == '__main__':\n"
        "    for _, pid in run_jobs_in_processes([functools.partial(opened, rest)], range(1000), 1):\n"
        "        print(pid, flush=True)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, script],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert parent.stdout is not None and parent.stderr is not None
    pid = int(parent.stdout.readline())
    (os.killpg if to_all else os.kill)(parent.pid, sent)
    parent.wait(90)  # a second where nothing else runs
    deadline = time.monotonic() + 90
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(pid)
    assert parent.stderr.read().count("Traceback") == to_all
