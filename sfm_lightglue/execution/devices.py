"""What this process may compute on: cores and devices."""

from __future__ import annotations

import os
import re

import torch


def num_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_device(device: str) -> str:
    """`auto` is a GPU where torch sees one, else the CPU. Raises: ValueError where torch cannot use the device."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"execution.device={device!r} cannot be used: {str(error).splitlines()[0]}") from error
    return device


def chosen_devices(devices: str) -> list[str]:
    """`all` is every GPU that torch sees; several have commas between them. Raises: ValueError where torch cannot use one."""
    num_gpus = torch.cuda.device_count()
    if devices == "all":
        if not num_gpus:
            raise ValueError("execution.device=all means all GPUs, and torch sees none: choose cpu")
        return [f"cuda:{i}" for i in range(num_gpus)]
    first, *others = (device.strip() for device in devices.split(","))
    for device in others:  # told without using them, which would take memory there in this process
        if not re.fullmatch(r"cpu|cuda:\d+", device) or (device != "cpu" and int(device[5:]) >= num_gpus):
            raise ValueError(f"execution.device={devices!r}: expected cpu or cuda:0, cuda:1 ...; torch sees {num_gpus} GPUs")
    return [default_device(first), *others]
