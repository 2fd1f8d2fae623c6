"""`summary.json`: what every stage of a run did, how long it took, and with what."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import platform
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sfm_lightglue import __version__

STAGES = ("extract", "pairs", "match", "verify", "database", "reconstruct", "plots")
"""In the order in which they are listed."""


@contextlib.contextmanager
def recorded(path: Path, stage: str, about: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Time and memory of a stage, with what the block puts into the record, go to the file `path` when the block ends.

    `about` is what to say of the whole run, such as its configuration. Records of other stages are kept.
    """
    _reset_peak_memory()
    start, cpu = time.perf_counter(), time.process_time()
    record: dict[str, Any] = {}
    yield record
    record = {
        "seconds": round(time.perf_counter() - start, 3),
        "cpu_seconds": round(time.process_time() - cpu, 3),
        "peak_memory_mb": _peak_memory_mb(),
        **record,
    }
    stages = {**(json.loads(path.read_text(encoding="utf-8"))["stages"] if path.exists() else {}), stage: record}
    ordered = {name: stages[name] for name in STAGES if name in stages}
    write_json(path, {"stages": ordered, **about, "versions": _versions()})


def describe(summary: dict[str, Any]) -> str:
    """A few lines for the terminal: what was reconstructed and where the time went."""
    stages = summary["stages"]
    result = stages["reconstruct"]
    lines = []
    for model in result["models"]:
        mark = " (largest)" if model["folder"] == result["largest"] and len(result["models"]) > 1 else ""
        lines.append(
            f"reconstruction/{model['folder']}{mark}: {model['num_images']} of {result['num_images']} images, "
            f"{model['num_points']} points, track length {model['mean_track_length']:.2f}, "
            f"reprojection error {model['mean_reprojection_error_px']:.2f} px"
        )
    if not lines:
        lines.append("nothing could be reconstructed")
    if result["unregistered"]:
        lines.append(f"not registered: {_shortened(result['unregistered'])}")
    if stages["extract"]["skipped"]:
        lines.append(f"skipped photos: {_shortened(list(stages['extract']['skipped']))} (reasons in summary.json)")
    lines.append("time: " + ", ".join(f"{name} {stage['seconds']:.1f} s" for name, stage in stages.items()))
    licences = {weights["licence"] for stage in stages.values() for weights in stage.get("weights", [])}
    lines.append(f"licences of the weights: {', '.join(sorted(licences)) or 'none used'}")
    return "\n".join(lines)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """The file appears whole or not at all."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False), encoding="utf-8")
    temporary.replace(path)


def _versions() -> dict[str, str]:
    packages = ("torch", "pycolmap", "kornia", "h5py", "numpy", "hydra-core")
    return {"sfm_lightglue": __version__, "python": platform.python_version()} | {
        package: importlib.metadata.version(package) for package in packages
    }


def _reset_peak_memory() -> None:
    """Linux: the process's peak starts anew, so that each stage shows its own."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_memory_mb() -> int | None:
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return round(int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024)
    return None


def _shortened(names: list[str], limit: int = 5) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
