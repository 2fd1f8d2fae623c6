"""A progress bar, and a log handler that does not break it."""

from __future__ import annotations

import logging
import sys

from tqdm import tqdm


def progress_bar(total: int, description: str, unit: str, initial: int = 0) -> tqdm:
    """A tqdm bar with rate and remaining time. If stderr is not a terminal, it prints at most one line in 10 s.

    Args:
        total: Number of units at the end.
        description: Text before the bar.
        unit: What is counted, such as `pair`.
        initial: Number of units that are already done.
    """
    interval = 0.2 if sys.stderr.isatty() else 10.0
    return tqdm(total=total, desc=f"{description:<11}", unit=unit, initial=initial, mininterval=interval, smoothing=0.1)


class BarFriendlyHandler(logging.StreamHandler):
    """Logs to stderr without breaking a progress bar there."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            tqdm.write(self.format(record), file=sys.stderr)
        except Exception:  # like logging's own handlers: a broken log line must not end the run
            self.handleError(record)
