"""The precisions of a network: `float32`, or `low` for 16 bits if the device has instructions for them."""

from __future__ import annotations

import torch

from sfm_lightglue.registry import closest

PRECISIONS = ("float32", "low")


def check_precision(precision: str, option: str) -> None:
    """Raises: ValueError for an unknown precision; the text names the option, such as `features.precision`."""
    if precision not in PRECISIONS:
        raise ValueError(f"{option}={precision!r} is not a precision. {closest(precision, PRECISIONS)}")


def network_dtype(precision: str, device: str) -> torch.dtype:
    """The element type of matrix products and convolutions on a device.

    Low precision is float16 on GPUs, because it keeps three bits more than bfloat16, and bfloat16 on CPUs, because they compute
    faster with it.
    """
    kind = torch.device(device).type
    if precision == "float32":
        return torch.float32
    if kind == "cuda":
        return torch.float16
    return torch.bfloat16 if kind == "cpu" and _has_fast_bfloat16() else torch.float32


def _has_fast_bfloat16() -> bool:
    """Whether this CPU has AVX512-BF16; False if torch cannot tell."""
    return getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
