"""In which precision a network computes: `float32`, or `low`, 16 bit where the device has instructions for it."""

from __future__ import annotations

import torch

from sfm_lightglue.registry import closest

PRECISIONS = ("float32", "low")


def check_precision(precision: str, option: str) -> None:
    """Raises: ValueError for one that does not exist, under the name of the option that asked for it."""
    if precision not in PRECISIONS:
        raise ValueError(f"{option}={precision!r} is none. {closest(precision, PRECISIONS)}")


def network_dtype(precision: str, device: str) -> torch.dtype:
    """Of matrix products and convolutions. float16 has three bits more than bfloat16, which CPUs compute faster with."""
    kind = torch.device(device).type
    if precision == "float32":
        return torch.float32
    if kind == "cuda":
        return torch.float16
    return torch.bfloat16 if kind == "cpu" and _has_fast_bfloat16() else torch.float32


def _has_fast_bfloat16() -> bool:
    """Whether this CPU has AVX512-BF16; False where torch cannot tell."""
    return getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
