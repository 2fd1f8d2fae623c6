"""Sets where COLMAP writes its log. By default it logs to the terminal and to hidden files in the temporary folder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pycolmap


@contextlib.contextmanager
def colmap_log(folder: Path | None) -> Iterator[None]:
    """Inside the block COLMAP logs to `folder/colmap_*`.

    Without a folder only its errors are logged, to the terminal. If an outer block has set a folder, that folder stays.
    """
    log = pycolmap.logging
    if folder is None and not (log.logtostderr or log.alsologtostderr):
        yield
        return
    if folder is None:
        log.logtostderr, log.minloglevel = True, 2
    else:
        folder.mkdir(parents=True, exist_ok=True)
        log.logtostderr, log.alsologtostderr, log.stderrthreshold, log.minloglevel = False, False, 3, 0
        for level in (log.WARNING, log.ERROR, log.FATAL):
            log.set_log_destination(level, "")
        log.set_log_destination(log.INFO, str(folder / "colmap_"))
    try:
        yield
    finally:
        log.logtostderr, log.minloglevel = True, 2
