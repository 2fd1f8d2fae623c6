"""The cores and devices that this process may use."""

from __future__ import annotations

import os
import re

import torch


def num_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def suitable_num_workers(device: str, num_processes: int = 1) -> int:
    """Number of threads in each of `num_processes` that compute on a device.

    A CPU has one thread per core. A GPU has two threads, so that one photo or pair is read while another is computed.
    """
    return max(1, num_cores() // num_processes) if device == "cpu" else 2


def default_device(device: str) -> str:
    """The device itself; for `auto` a GPU if torch sees one, else the CPU.

    Raises: ValueError if torch cannot use the device.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"execution.device={device!r} cannot be used: {str(error).splitlines()[0]}") from error
    return device


def chosen_devices(devices: str) -> list[str]:
    """Torch's names of the devices that `execution.device` chooses, at least one.

    Args:
        devices: `cpu`, `cuda`, `cuda:1` ...; `auto`, as in `default_device`; `all` for every GPU that torch sees; or several
            devices with commas between them.

    Raises: ValueError if torch cannot use one of them.
    """
    num_gpus = torch.cuda.device_count()
    if devices == "all":
        if not num_gpus:
            raise ValueError("execution.device=all means all GPUs, but torch sees none: choose cpu")
        return [f"cuda:{i}" for i in range(num_gpus)]
    first, *others = (device.strip() for device in devices.split(","))
    for device in others:  # only the number is checked: using the device would take memory there in this process
        if not re.fullmatch(r"cpu|cuda:\d+", device) or (device != "cpu" and int(device[5:]) >= num_gpus):
            raise ValueError(f"execution.device={devices!r}: expected cpu or cuda:0, cuda:1 ...; torch sees {num_gpus} GPUs")
    return [default_device(first), *others]
