"""Progress: lines without carriage returns where stderr is no terminal, a bar in a terminal, nothing if it is hidden."""

from __future__ import annotations

import io
import logging
import re
import sys

import pytest

from sfm_lightglue.execution import progress
from sfm_lightglue.execution.progress import progress_bar


class Clock:
    """A clock that the test moves."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    moved = Clock()
    monkeypatch.setattr(progress.time, "monotonic", moved.monotonic)
    return moved


def count(clock: Clock, total: int, seconds_per_unit: float) -> None:
    with progress_bar(total, "match", "pair") as bar:
        for _ in range(total):
            clock.now += seconds_per_unit
            bar.update()


def test_a_pipe_gets_a_line_about_every_tenth(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    count(clock, 100, 1.0)
    printed = capsys.readouterr().err
    assert "\r" not in printed
    lines = printed.splitlines()
    assert [re.search(r"\((\d+) %\)", line)[1] for line in lines] == [str(share) for share in range(10, 101, 10)]  # type: ignore[index]
    assert lines[0] == "match: 10/100 pair (10 %), 1 pair/s, 1:30 left, 0:10 so far"
    assert lines[-1] == "match: 100/100 pair (100 %), 1 pair/s, in 1:40"


def test_slow_units_give_a_line_every_half_minute_and_quick_ones_one_line(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    count(clock, 1000, 10.0)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 334
    assert lines[-1] == "match: 1000/1000 pair (100 %), 0.1 pair/s, in 2:46:40"
    count(clock, 1000, 0.001)
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_lines_say_the_remark_and_allow_more_units_than_expected(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(6, "reconstruct", "img") as bar:
        bar.set_postfix_str("loss 0.1")
        bar.update(8)
    assert capsys.readouterr().err == "reconstruct: 8 img, 8e+06 img/s, in 0:00, loss 0.1\n"
    with progress_bar(0, "verify", "pair"):
        pass
    assert capsys.readouterr().err == "verify: 0/0 pair, in 0:00\n"


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress_bar(10, "extract", "img", initial=7) as bar:
        bar.update(3)
    assert "\rextract    : 100%" in terminal.getvalue()


def test_progress_can_be_hidden(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(logging.getLogger("sfm_lightglue.execution.progress"), "level", logging.WARNING)
    with progress_bar(10, "extract", "img") as bar:
        bar.update(10)
        bar.set_postfix_str("loss")
    assert capsys.readouterr().err == ""
