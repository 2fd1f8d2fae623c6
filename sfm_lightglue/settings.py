"""The settings that a file of results was made with: what they are, their fingerprint, and how two of them differ."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from sfm_lightglue import __version__


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
