"""The cores and devices that this process may use.

torch is imported only if an answer needs it: its import takes as long as all else of a run with nothing to do.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import re
import runpy
import sys
from pathlib import Path

APPLE_GPU = "mps"
"""Torch's name of the GPU of an Apple processor."""
CUDA_DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"


def num_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def suitable_num_workers(device: str, num_processes: int = 1) -> int:
    """Number of threads in each of `num_processes` that compute on a device.

    A CPU has one thread per core. A GPU has two threads, so that one photo or pair is read while another is computed; Apple's has
    one, because torch does not promise that several threads may use it.
    """
    if device == "cpu":
        return max(1, num_cores() // num_processes)
    return 1 if device == APPLE_GPU else 2


def num_gpus() -> int:
    """Number of GPUs that torch sees."""
    if "torch" not in sys.modules and not _may_have_gpus():
        return 0
    import torch

    return torch.cuda.device_count()


@functools.cache
def _may_have_gpus() -> bool:
    """False if torch was built for CPUs alone, or for NVIDIA's GPUs and their driver is not there. It is not imported."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None or not (file := Path(spec.origin).with_name("version.py")).is_file():
        return True
    version = runpy.run_path(str(file))
    if version.get("hip") or version.get("xpu"):
        return True
    try:
        return bool(version.get("cuda")) and bool(ctypes.CDLL(CUDA_DRIVER))
    except OSError:
        return False


def default_device(device: str) -> str:
    """The device itself; for `auto` a GPU if torch sees one, else the CPU.

    Raises: ValueError if torch cannot use the device.
    """
    if device == "auto":
        return "cuda" if num_gpus() else "cpu"
    if device == "cpu":
        return device
    import torch

    if device != APPLE_GPU and device.lower().partition(":")[0] == APPLE_GPU:
        raise ValueError(
            f"execution.device={device!r}: torch's name of the GPU of an Apple processor is {APPLE_GPU}, without a number"
        )
    if device == APPLE_GPU and not torch.backends.mps.is_available():
        raise ValueError("execution.device=mps is the GPU of an Apple processor, and torch sees none: choose cpu or auto")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"execution.device={device!r} cannot be used: {str(error).splitlines()[0]}") from error
    return device


def chosen_devices(devices: str) -> list[str]:
    """Torch's names of the devices that `execution.device` chooses, at least one.

    Args:
        devices: `cpu`, `cuda`, `cuda:1` ..., `mps`; `auto`, as in `default_device`; `all` for every GPU that torch sees; or
            several devices with commas between them.

    Raises: ValueError if torch cannot use one of them.
    """
    if devices == "all":
        if not num_gpus():
            raise ValueError("execution.device=all means all GPUs, but torch sees none: choose cpu")
        return [f"cuda:{i}" for i in range(num_gpus())]
    first, *others = (device.strip() for device in devices.split(","))
    for device in others:  # only the number is checked: using the device would take memory there in this process
        if not re.fullmatch(r"cpu|cuda:\d+", device) or (device != "cpu" and int(device[5:]) >= num_gpus()):
            raise ValueError(f"execution.device={devices!r}: expected cpu or cuda:0, cuda:1 ...; torch sees {num_gpus()} GPUs")
    return [default_device(first), *others]
