"""Progress: a bar in a terminal, lines in a file or a pipe, and a log handler that does not break the bar."""

from __future__ import annotations

import logging
import sys
import time
from types import TracebackType
from typing import Protocol, Self

from tqdm import tqdm

logger = logging.getLogger(__name__)

LINE_SHARE, LINE_S, SHORTEST_S = 0.1, 30.0, 5.0
"""A line is printed after this share of the units or this time, s; but not sooner than `SHORTEST_S` after the last one."""


class Progress(Protocol):
    """What counts the units of a stage. It is a context manager."""

    def update(self, n: int = 1, /) -> None:
        """Counts `n` more units."""

    def set_postfix_str(self, s: str = "", /) -> None:
        """A remark, which is shown with the next units."""

    def __enter__(self) -> Self:
        """Itself."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /) -> object:
        """Prints the last state."""


def progress_bar(total: int, description: str, unit: str, initial: int = 0) -> Progress:
    """A bar with rate and remaining time on stderr, or lines of text if stderr is no terminal.

    Nothing is shown if the level of the logger `sfm_lightglue.execution.progress` is above INFO.

    Args:
        total: Number of units at the end.
        description: Text before the bar.
        unit: What is counted, such as `pair`.
        initial: Number of units that are already done.
    """
    is_hidden = logger.level > logging.INFO
    if is_hidden or sys.stderr.isatty():
        bar: Progress = tqdm(
            total=total, desc=f"{description:<11}", unit=unit, initial=initial, mininterval=0.2, smoothing=0.1, disable=is_hidden
        )
        return bar
    return ProgressLines(total, description, unit, initial)


class ProgressLines:
    """Prints a line about every tenth of the units or every 30 s, and one at the end: `match: 40/120 pair (33 %), ...`."""

    def __init__(self, total: int, description: str, unit: str, initial: int = 0) -> None:
        self.total, self.description, self.unit = total, description, unit
        self.initial = self.count = self.shown = initial
        self.remark = ""
        self.start = self.last = time.monotonic()

    def update(self, n: int = 1, /) -> None:
        """Counts `n` more units, and prints a line if it is time for one."""
        self.count += n
        waited_s = time.monotonic() - self.last
        is_due = self.count - self.shown >= LINE_SHARE * self.total and waited_s >= SHORTEST_S
        if self.count < self.total and (is_due or waited_s >= LINE_S):
            self._print()

    def set_postfix_str(self, s: str = "", /) -> None:
        """A remark for the next line."""
        self.remark = s

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /) -> None:
        self._print()

    def _print(self) -> None:
        now = time.monotonic()
        done, seconds = self.count - self.initial, max(now - self.start, 1e-6)
        share = f" ({100 * self.count // self.total} %)" if self.count else ""
        counted = f"{self.count} {self.unit}"  # a mapper that starts several models counts a photo in each of them
        if self.count <= self.total:
            counted = f"{self.count}/{self.total} {self.unit}{share}"
        parts = [f"{self.description}: {counted}"]
        if done:
            parts.append(f"{done / seconds:.3g} {self.unit}/s")
        if done and self.count < self.total:
            parts.append(f"{_clock(seconds / done * (self.total - self.count))} left")
        parts += [f"{_clock(seconds)} so far" if self.count < self.total else f"in {_clock(seconds)}", self.remark]
        print(", ".join(filter(None, parts)), file=sys.stderr, flush=True)
        self.last, self.shown = now, self.count


def _clock(seconds: float) -> str:
    """`0:07`, `1:02:03`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"


class BarFriendlyHandler(logging.StreamHandler):
    """Logs to stderr without breaking a progress bar there."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            tqdm.write(self.format(record), file=sys.stderr)
        except Exception:  # like logging's own handlers: a broken log line must not end the run
            self.handleError(record)
