"""Helpers to load weights, shared by all networks: keys under new names, and strict loading."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

KeyPatterns = Mapping[str, str | Callable[[re.Match[str]], str]]
"""Regular expressions, each with its replacement as `re.sub` takes it."""


def rename_key(key: str, patterns: KeyPatterns) -> str:
    """The key after all replacements, in the order of the patterns."""
    for pattern, replacement in patterns.items():
        key = re.sub(pattern, replacement, key)
    return key


def load_strictly(network: nn.Module, state: Mapping[str, Any]) -> None:
    """Copies the weights into the network.

    Raises: ValueError if weights are missing, unexpected, of another shape, or have NaN or infinity; the text names some of them.
    """
    expected = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    found = {key: tuple(getattr(value, "shape", ("not a tensor",))) for key, value in state.items()}
    shared = expected.keys() & found.keys()
    problems = {
        "missing": sorted(expected.keys() - shared),
        "unexpected": sorted(found.keys() - shared),
        "of another shape": [f"{k} {found[k]} instead of {expected[k]}" for k in sorted(shared) if found[k] != expected[k]],
        "with NaN or infinity": [k for k in sorted(shared) if found[k] == expected[k] and not state[k].isfinite().all()],
    }
    if any(problems.values()):
        listed = "; ".join(f"{len(keys)} {what}: {', '.join(keys[:4])}" for what, keys in problems.items() if keys)
        raise ValueError(f"these weights do not fit {type(network).__name__}: {listed}. Give weights of this network")
    network.load_state_dict(dict(state))
