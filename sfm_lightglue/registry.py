"""Plug-ins by name: loads the class of a name, and suggests the closest name for a mistyped one."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping


def closest(name: str, choices: Iterable[str]) -> str:
    """A hint for an error message: the choice that is closest to `name`, if one is similar, and the list of all choices."""
    import difflib  # slow to import, and only errors need it

    listed = sorted(choices)
    close = difflib.get_close_matches(name, listed, n=1, cutoff=0.5)
    return (f"Did you mean {close[0]!r}? " if close else "") + f"There are: {', '.join(listed)}"


def load_class(name: str, table: Mapping[str, str], kind: str) -> type:
    """The class that `name` stands for.

    Args:
        name: a key of `table`, or a class of the user as `package.module:Class`.
        table: `package.module:Class` by name.
        kind: what the class is, for error messages, such as `features`.

    Raises: ValueError if the name is unknown, with the closest name, or if the class cannot be imported.
    """
    target = table.get(name, name)
    module, separator, attribute = target.partition(":")
    if not separator:
        raise ValueError(f"{kind} {name!r} does not exist. {closest(name, table)}; or give your own as package.module:Class")
    try:
        found: type = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        places = "; put its folder into PYTHONPATH (`python -m sfm_lightglue` also looks in the current folder)"
        hint = places if isinstance(error, ModuleNotFoundError) else ""
        raise ValueError(f"{kind} {name!r} cannot be loaded: {error}{hint}") from error
    return found
