"""Ranges of options, checked when the options are bound: `check_ranges(self, "geometries", max_error_px="> 0")`."""

from __future__ import annotations

import math
import operator

COMPARISONS = {
    ">": ("more than", operator.gt),
    ">=": ("at least", operator.ge),
    "<": ("less than", operator.lt),
    "<=": ("at most", operator.le),
}


def check_ranges(options: object, group: str, **ranges: str) -> None:
    """Raises: ValueError with a line for each field of the options that lies outside its range. None is accepted.

    Args:
        options: A dataclass.
        group: Where the options stand in the configuration, such as `geometries`.
        ranges: Conditions of each field, with commas between them: `"> 0"`, `">= 0, <= 1"`. NaN and infinity meet none.
    """
    wrong = []
    for name, conditions in ranges.items():
        value = getattr(options, name)
        parts = [condition.split() for condition in conditions.split(",")]
        is_met = value is None or (
            math.isfinite(value) and all(COMPARISONS[sign][1](value, float(limit)) for sign, limit in parts)
        )
        if not is_met:
            wrong.append(f"{group}.{name} must be {described(conditions)}, found {value}")
    if wrong:
        raise ValueError("\n".join(wrong))


def described(conditions: str) -> str:
    """Conditions as `check_ranges` takes them, in words: `more than 0 and at most 1`."""
    parts = [condition.split() for condition in conditions.split(",")]
    return " and ".join(f"{COMPARISONS[sign][0]} {limit}" for sign, limit in parts)
