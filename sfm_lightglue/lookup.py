"""Plug-ins by name: the class behind a name, the closest right name for a mistyped one, the settings that identify them."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import importlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sfm_lightglue import __version__


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


def plugin_settings(plugin: Any) -> dict[str, Any]:
    """All that decides what an extractor or matcher computes: class, options, hashes of its weights, package version.

    The name or path under which weights or a file were asked for is left out: their hash says what they are.
    """
    options = dataclasses.asdict(plugin.options) if hasattr(plugin, "options") else {}
    hashes = [record.sha256 for record in getattr(plugin, "weights", ())]
    named = ("weights", "path") if hashes else ()
    return {
        "class": f"{type(plugin).__module__}:{type(plugin).__qualname__}",
        "options": {key: value for key, value in options.items() if key not in named},
        "weights": hashes,
        "version": __version__,
    }


def fingerprint(settings: Mapping[str, Any] | Sequence[Any]) -> str:
    """SHA-256 of the settings' canonical JSON."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def describe_changes(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> str:
    """The values that differ, `key: old -> new`, separated by commas."""
    changes = []
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            changes.append(describe_changes(before, after, f"{prefix}{key}."))
        elif before != after:
            changes.append(f"{prefix}{key}: {before} -> {after}")
    return ", ".join(change for change in changes if change)
