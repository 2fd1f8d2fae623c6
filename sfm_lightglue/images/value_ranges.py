"""From pictures with more than 8 bits, or of float values, to 8 bits.

Most pictures use the range of their bits: a value of 12 bits is shown as value / 4095. A thermal picture has values such as
29000..29600 of 65535, which would be three grey levels. It is stretched to the range of the values in use.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

Range: TypeAlias = tuple[float, float]
"""Values that become black and white."""
MIN_GREY_LEVELS = 32
"""Pictures that would use fewer grey levels are stretched."""
PERCENTILES = 0.5, 99.5
"""Percentiles of a picture that its range holds. Dead pixels lie outside."""


@dataclass(frozen=True)
class UsedValues:
    """The values of a picture, or of several."""

    low: float
    """0.5 % percentile. Zeros do not count: they mean no data in many files."""
    high: float
    """99.5 % percentile."""
    top: float
    """Largest value."""
    is_float: bool
    """Whether the values are floats, which may have the range 0..1."""

    @classmethod
    def of(cls, values: np.ndarray) -> UsedValues:
        """The values in use in one picture (h, w). All are 0 if it has only zeros."""
        finite = values[np.isfinite(values) & (values != 0)]
        some = finite[:: 1 + finite.size // 1_000_000]  # sorting 20 million values would take 2 s
        low, high = np.percentile(some, PERCENTILES) if finite.size else (0, 0)
        return cls(float(low), float(high), float(finite.max(initial=0)), values.dtype.kind == "f")

    @staticmethod
    def joined(parts: Iterable[UsedValues]) -> UsedValues:
        """The values in use in several pictures together, in any order."""
        low, high, top, is_float = zip(*((part.low, part.high, part.top, part.is_float) for part in parts), strict=True)
        return UsedValues(min(low), max(high), max(top), any(is_float))

    @property
    def stretch(self) -> Range | None:
        """The range to stretch to, rounded outwards to steps of 1/16 to 1/8 of its width. None for the range of the bits."""
        width = self.high - self.low
        is_narrow = width * 255 < MIN_GREY_LEVELS * full_scale(self.top, self.is_float)
        if width <= 0 or not (is_narrow or self.low < 0):
            return None
        step = 2.0 ** (math.floor(math.log2(width)) - 3)
        return math.floor(self.low / step) * step, math.ceil(self.high / step) * step


def full_scale(top: float, is_float: bool) -> float:
    """The largest value that the bits in use can have, if `top` is the largest value of a picture."""
    if is_float and top < 2:  # values in 0..1, which resampling may exceed a little
        return 1.0
    return next((2.0**bits - 1 for bits in (8, 10, 12, 14, 16) if top < 2**bits), top)


def to_eight_bits(values: np.ndarray, stretch: Range | None) -> np.ndarray:
    """uint8 (h, w): values (h, w) stretched to a range, or scaled by the range of their bits if it is None."""
    is_float = values.dtype.kind == "f"
    values = np.nan_to_num(values.astype(np.float64), posinf=0, neginf=0)
    low, high = stretch or (0.0, full_scale(float(values.max(initial=0)), is_float))
    return np.clip((values - low) * (255 / (high - low)), 0, 255).round().astype(np.uint8)
