"""Settings that are stored with results: what they contain, their fingerprint, and the difference between two of them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from sfm_lightglue import __version__

FIRST_NAMES = {"trained_for": "head", "early_rejection": "skip_hopeless"}
"""Renamed options keep their first name in stored settings, so that files of results stay valid."""

ADDED = {"early_acceptance": False, "guided_matching": False}
"""Options that earlier versions did not have -> what these versions did. With this value they are left out of stored settings."""

FOUND = {"lenses": "other lenses, or none, are found", "overlays": "other overlays, or none, are found"}
"""Stored settings that a stage finds in its input, at the top level -> what is said instead of their values if they differ."""


def plugin_settings(plugin: Any) -> dict[str, Any]:
    """Everything that decides the results of an extractor or matcher: class, options, hashes of its weights, package version.

    The options `weights`, `descriptor_weights` and `path` are left out if the plug-in has weights: their hash identifies them.
    """
    options = dataclasses.asdict(plugin.options) if hasattr(plugin, "options") else {}
    hashes = [record.sha256 for record in getattr(plugin, "weights", ())]
    named = ("weights", "descriptor_weights", "path") if hashes else ()
    return {
        "class": f"{type(plugin).__module__}:{type(plugin).__qualname__}",
        "options": {
            FIRST_NAMES.get(key, key): value
            for key, value in options.items()
            if key not in named and not (key in ADDED and value is ADDED[key])
        },
        "weights": hashes,
        "version": __version__,
    }


def fingerprint(settings: Mapping[str, Any] | Sequence[Any]) -> str:
    """SHA-256 of the settings as JSON with sorted keys, in hexadecimal."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def describe_changes(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> str:
    """The values that differ, as `key: old -> new`, separated by commas; empty if none differs.

    Keys of nested settings are joined by dots, after `prefix`. A missing value is shown as None, or as `ADDED` says. If the
    classes differ, their options do too, and are left out. What was found, and not chosen, is described as `FOUND` says.
    """
    if not prefix and old.get("class") and new.get("class") and old["class"] != new["class"]:
        old, new = ({key: each[key] for key in ("class", "kinds") if key in each} for each in (old, new))
    changes = []
    for key in sorted({*old, *new}):
        before, after = (each.get(key, ADDED.get(key)) for each in (old, new))
        if not prefix and key in FOUND:
            changes += [FOUND[key]] if before != after else []
        elif isinstance(before, Mapping) and isinstance(after, Mapping):
            changes.append(describe_changes(before, after, f"{prefix}{key}."))
        elif before != after:
            changes.append(f"{prefix}{key}: {before} -> {after}")
    return ", ".join(change for change in changes if change)
