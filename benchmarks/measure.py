"""Shared code of the benchmarks: clocks, peak memory, scripts as processes, and the file of results."""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sfm_lightglue.evaluation.provenance import hardware, versions
from sfm_lightglue.evaluation.provenance import markdown_table as markdown_table

BENCHMARKS = Path(__file__).resolve().parent
LOG = BENCHMARKS / "archive" / "measurements.md"
"""Sections of all scripts but `photos_to_model.py`, whose tables are in RESULTS.md."""
SAMPLING_SECONDS = 0.02
"""Time between two samples of the memory of a process."""


def clock_of(device: str) -> Callable[[], float]:
    """The clock of a device. On a CPU it counts CPU seconds of this process. On a GPU it waits for all work of the GPU."""
    if torch.device(device).type != "cuda":
        return time.process_time

    def synchronised() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return synchronised


def cpu_seconds() -> float:
    """CPU seconds of this process and of its finished child processes."""
    return sum(os.times()[:4])


class PeakMemory:
    """Peak memory, MB, above the memory when this object was created."""

    def __init__(self, device: str) -> None:
        self.device = device if torch.device(device).type == "cuda" else None
        if self.device:
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            self.before = torch.cuda.memory_allocated(self.device) / 2**20
            return
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):  # glibc: memory left free would hide new memory
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        with contextlib.suppress(OSError):  # if not allowed, the peak counts from the start of the process
            Path("/proc/self/clear_refs").write_text("5")
        self.before = status_mb("VmRSS")

    def extra_mb(self) -> float:
        if self.device:
            return torch.cuda.max_memory_allocated(self.device) / 2**20 - self.before
        return status_mb("VmHWM") - self.before


def status_mb(key: str, process: int | str = "self") -> float:
    """VmRSS (resident memory) or VmHWM (its peak) of a process, MB. NaN if the system does not say or the process has ended."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
        return int(next(line for line in lines if line.startswith(f"{key}:")).split()[1]) / 1024
    return float("nan")


@dataclass(frozen=True)
class ProcessCost:
    """Time and memory of a process, from its start to its end."""

    seconds: float
    cpu_seconds: float
    peak_mb: float
    output: str
    """Its standard output."""


def run_process(command: Sequence[str], good: Collection[int] = (0,)) -> ProcessCost:
    """Runs a command and measures it. Memory is sampled every SAMPLING_SECONDS, so shorter peaks may be missed.

    Raises:
        RuntimeError: The process ended with a status that is not among `good`. The message has the end of its standard error.
    """
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=output, stderr=errors)
        # The peak that the system reports at the end (ru_maxrss) is at least this process's own, so memory is sampled instead.
        peaks = [status_mb("VmHWM", process.pid)]
        while not (ended := os.wait4(process.pid, os.WNOHANG))[0]:
            peaks.append(status_mb("VmHWM", process.pid))
            time.sleep(SAMPLING_SECONDS)
        seconds, (_, status, usage) = time.perf_counter() - start, ended
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        errors.seek(0)
        if process.returncode not in good:
            raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{errors.read()[-2000:]}")
        peak = float(np.nanmax(peaks)) if not np.isnan(peaks).all() else float("nan")
        return ProcessCost(seconds, usage.ru_utime + usage.ru_stime, peak, output.read())


def script(name: str, *arguments: object) -> list[str]:
    """The command that runs another file of this folder."""
    return [sys.executable, str(BENCHMARKS / name), *map(str, arguments)]


def last_json(output: str) -> Any:
    """The JSON in the last line that a script printed."""
    return json.loads(output.strip().splitlines()[-1])


def section(title: str, settings: Mapping[str, object], tables: Sequence[str], device: str = "cpu") -> str:
    """A section of the file of results: date, hardware, versions and settings, then the tables."""
    today = datetime.date.today().isoformat()
    facts = {"hardware": hardware(device), "software": versions(), **settings}
    lines = [f"- {key}: {value}" for key, value in facts.items()]
    return "\n".join([f"## {title}, {today}", "", *lines, "", "\n\n".join(tables), ""])


def append_section(path: Path, text: str) -> None:
    """Appends a section to the file of results. A new file gets a title."""
    head = "" if path.exists() else "# Results of the benchmarks\n\nWritten by the scripts beside this file; newest last.\n"
    with path.open("a", encoding="utf-8") as file:
        file.write(f"{head}\n{text}")
