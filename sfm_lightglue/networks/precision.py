"""The precisions of a network: `float32`, or `low` for 16 bits, in some layers 8, if the device is faster with them.

As an option of features or matches, `auto` stands for one of them. It is resolved when the extractor or the matcher is made, so
settings, which are stored with results, have only the precision itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sfm_lightglue.registry import closest

if TYPE_CHECKING:  # functions that ask the device import torch: checks of options need none
    import torch

PRECISIONS = ("float32", "low")
AUTO = "auto"


def check_precision(precision: str, option: str, *, may_be_auto: bool = False) -> None:
    """Raises: ValueError for an unknown precision; the text names the option, such as `features.precision`."""
    choices = (AUTO, *PRECISIONS) if may_be_auto else PRECISIONS
    if precision not in choices:
        raise ValueError(f"{option}={precision!r} is not a precision. {closest(precision, choices)}")


def resolved_precision(precision: str, device: str, *, low_is_enough: bool, has_integers: bool = False) -> str:
    """One of `PRECISIONS`: for `auto`, `low` if it is exact enough for a purpose and the device is faster with it.

    `has_integers`: whether low precision means integers in some layers, with which the device is faster.
    """
    if precision != AUTO:
        return precision
    if not low_is_enough or has_integers:
        return "low" if low_is_enough else "float32"
    import torch

    if torch.device(device).type == "mps":  # not measured there
        return "float32"
    return "low" if network_dtype("low", device) != torch.float32 else "float32"


def exact_unless_chosen(precision: str) -> str:
    """The precision for a training: `auto` stands for `float32` on every device."""
    return "float32" if precision == AUTO else precision


def network_dtype(precision: str, device: str) -> torch.dtype:
    """The element type of matrix products and convolutions on a device, for one of `PRECISIONS`.

    Low precision is float16 on GPUs, because it keeps three bits more than bfloat16, and bfloat16 on CPUs, because they compute
    faster with it.
    """
    import torch

    assert precision in PRECISIONS, precision
    kind = torch.device(device).type
    if precision == "float32":
        return torch.float32
    if kind in ("cuda", "mps"):
        return torch.float16
    return torch.bfloat16 if kind == "cpu" and _has_fast_bfloat16() else torch.float32


def _has_fast_bfloat16() -> bool:
    """Whether this CPU has AVX512-BF16, and torch may use AVX512; False if torch cannot tell."""
    import torch

    may_use = torch.backends.cpu.get_cpu_capability() == "AVX512"  # not with ATEN_CPU_CAPABILITY=avx2
    return may_use and getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
