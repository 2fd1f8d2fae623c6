"""Plug-ins by name: the class behind a name, and the closest right name for a mistyped one."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Mapping


def closest(name: str, choices: Iterable[str]) -> str:
    """A sentence that names the closest choice, if any comes close, and all of them."""
    listed = sorted(choices)
    close = difflib.get_close_matches(name, listed, n=1, cutoff=0.5)
    return (f"Did you mean {close[0]!r}? " if close else "") + f"There are: {', '.join(listed)}"


def load_class(name: str, table: Mapping[str, str], kind: str) -> type:
    """The class registered under `name`, or the user's own, given as `package.module:Class`.

    Raises: ValueError that names the closest choice.
    """
    target = table.get(name, name)
    module, separator, attribute = target.partition(":")
    if not separator:
        raise ValueError(f"no {kind} is named {name!r}. {closest(name, table)}; or give your own as package.module:Class")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{kind} {name!r} cannot be loaded: {error}") from error
