"""The executor `processes`: every key once, and a clean end whichever process dies. Its jobs are functions of this module."""

from __future__ import annotations

import atexit
import contextlib
import functools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sfm_lightglue.execution.processes import ProcessExecutor

Job = Callable[[int], Any]


@contextlib.contextmanager
def opened(function: Job, device: str) -> Iterator[Job]:
    yield function


def run_in_processes(
    function: Job, keys: range, num_processes: int = 1, num_workers: int = 1
) -> Generator[tuple[int, Any], None, None]:
    executor = ProcessExecutor(["cpu"] * num_processes, num_workers)
    yield from executor(functools.partial(opened, function), keys)


def square(key: int) -> tuple[int, int, int]:
    """The square, the process that computed it, and its number of torch threads."""
    time.sleep(0.01)
    return key * key, os.getpid(), torch.get_num_threads()


def misbehave(key: int) -> int:
    """Even keys are fine, odd keys raise an error."""
    if key % 2:
        raise ValueError(f"{key} is odd")
    return key


def die(key: int) -> int:
    if key == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return key


def import_pycolmap(key: int) -> int:
    import pycolmap  # noqa: F401

    atexit.register(time.sleep, 5)  # the parent does not wait for that
    return key


def sleep_long(key: int) -> int:
    if key > 0:
        time.sleep(60)
    return os.getpid()


def rest(key: int) -> int:
    time.sleep(0.2)
    return os.getpid()


@contextlib.contextmanager
def without_weights(device: str) -> Iterator[Job]:
    raise FileNotFoundError(f"no weights for {device}")
    yield square


@contextlib.contextmanager
def telling_device(device: str) -> Iterator[Job]:
    yield lambda key: (time.sleep(0.01), device)[1]


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_every_key_comes_back_once_from_one_of_the_processes() -> None:
    found = dict(run_in_processes(square, range(60), num_processes=2, num_workers=2))
    assert {key: result[0] for key, result in found.items()} == {key: key * key for key in range(60)}
    pids = {result[1] for result in found.values()}
    assert len(pids) == 2 and os.getpid() not in pids
    assert not multiprocessing.active_children()


def test_each_process_works_on_its_device() -> None:
    assert {device for _, device in ProcessExecutor(["cpu", "cuda:7"], 1)(telling_device, range(60))} == {"cpu", "cuda:7"}


def test_no_more_processes_are_started_than_there_are_keys() -> None:
    assert list(ProcessExecutor(["cpu"])(without_weights, [])) == []
    assert list(ProcessExecutor(["cpu", "cuda:7"])(telling_device, [7])) == [(7, "cpu")]


def test_an_error_is_the_result_of_its_key_with_its_traceback_and_the_other_jobs_go_on() -> None:
    results = dict(run_in_processes(misbehave, range(5)))
    assert [results[key] for key in (0, 2, 4)] == [0, 2, 4]
    assert isinstance(results[1], ValueError) and str(results[1]) == "1 is odd"
    assert "in misbehave" in results[1].__notes__[0]


def test_an_error_of_a_recipe_ends_the_run() -> None:
    with pytest.raises(FileNotFoundError, match="no weights for cpu"):
        list(ProcessExecutor(["cpu"])(without_weights, [1]))
    assert not multiprocessing.active_children()


def test_a_killed_process_ends_the_run_with_an_error_that_names_the_signal() -> None:
    found = []
    with pytest.raises(ChildProcessError, match=r"killed by SIGKILL \(has the machine run out of memory\?\)"):
        found.extend(key for key, _ in run_in_processes(die, range(20)))
    assert set(found) <= set(range(5)) and not multiprocessing.active_children()


def test_a_process_whose_job_imported_pycolmap_ends_without_a_message(capfd: pytest.CaptureFixture[str]) -> None:
    assert list(run_in_processes(import_pycolmap, range(1))) == [(0, 0)]
    assert capfd.readouterr().err == ""


def test_a_loop_that_ends_early_ends_the_processes_in_the_middle_of_their_jobs() -> None:
    begin = time.monotonic()
    jobs = run_in_processes(sleep_long, range(10))
    _, pid = next(jobs)
    jobs.close()
    assert time.monotonic() - begin < 50 and not is_alive(pid)


@pytest.mark.parametrize("sent, to_all", [(signal.SIGKILL, False), (signal.SIGINT, True)])
def test_processes_end_with_their_parent(sent: signal.Signals, to_all: bool, tmp_path: Path) -> None:
    """A killed parent cannot end them. Ctrl-C reaches all processes at once, and only the parent may answer it."""
    script = tmp_path / "parent.py"
    script.write_text(
        "import signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell starts background jobs without it
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_processes import rest, run_in_processes\n"
        "if __name__ == '__main__':\n"
        "    for _, pid in run_in_processes(rest, range(1000)):\n"
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
    parent.wait(90)  # takes a second on an idle machine
    deadline = time.monotonic() + 90
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(pid)
    assert parent.stderr.read().count("Traceback") == to_all
