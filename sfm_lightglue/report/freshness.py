"""Whether the pictures and the page of a run still show what is in its folder: if so, a repeated run does not draw them again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from sfm_lightglue import __version__
from sfm_lightglue.files import FOLDER_MARK
from sfm_lightglue.run_folder import RunFolder

DRAWN = "plots"
"""The stage that draws. Its own record is no part of what it draws."""
TIMES = ("seconds", "cpu_seconds", "peak_memory_mb")
"""Parts of each record that differ between calls that change nothing."""


def state_of(run: RunFolder) -> str:
    """A hash of what pictures and page show: the files (large ones by size and time), and the summary without times.

    Photos are not read: if one has changed, its features have.
    """
    content = run.read_summary()
    stages = {
        name: {key: value for key, value in record.items() if key not in TIMES}
        for name, record in content["stages"].items()
        if name != DRAWN
    }
    parts = [__version__, json.dumps({**content, "stages": stages}, sort_keys=True)]
    for path in (run.pairs, run.orientations):  # each run writes them again
        parts.append(hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "")
    for path in _files(run):
        about = path.stat()
        parts.append(f"{path.relative_to(run.path).as_posix()} {about.st_size} {about.st_mtime_ns}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _files(run: RunFolder) -> Iterator[Path]:
    """The large files, the models, and the pictures beside the page, sorted within each folder."""
    for path in (run.features, run.matches, run.verification):
        yield from (each for each in (path, Path(f"{path}.shards") / FOLDER_MARK) if each.is_file())
    for folder in (run.reconstruction, run.report_pictures):
        yield from sorted(path for path in folder.rglob("*") if path.is_file())
