"""What `auto` and null stand for where results are stored already: what these results were made with.

`precision=auto` and `guided_matching=null` depend on the machine, and earlier versions knew neither guided matching nor early
acceptance. A run that is continued on another machine, or that an earlier version has begun, keeps the settings of its files, so
that all of their results are of one kind.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
from pathlib import Path
from typing import Any, TypeVar

from sfm_lightglue.networks.precision import PRECISIONS
from sfm_lightglue.settings import ADDED, plugin_settings
from sfm_lightglue.storage import H5Reader

logger = logging.getLogger(__name__)

Plugin = TypeVar("Plugin")

CHOSEN = {
    "chose_precision": ("precision", PRECISIONS),
    "chose_acceptance": ("early_acceptance", (True, False)),
    "chose_guided": ("guided_matching", (True, False)),
}
"""Attribute of a plug-in that is true if it chose an option itself -> the option, and its possible values."""
SHARED = {"precision": "shared_precision", "guided_matching": "shared_guided_matching"}
"""Option that depends on the machine -> attribute of a plug-in, if it has it: what machines take that share the work."""


def with_stored_choices(plugin: Plugin, path: Path | str, *, is_shared: bool = False, log: bool = True) -> Plugin:
    """The extractor or matcher as it is, or made again with what the results in a file were made with.

    It is made again if the file differs from its settings in nothing but options that it chose itself.

    Args:
        plugin: An extractor or matcher. One that chose an option has the attribute in `CHOSEN`, which is true.
        path: Its file of results, or of none yet.
        is_shared: Several machines write the file. Without results in it, they all take the attributes in `SHARED`, which do not
            depend on the machine.
        log: Says that other settings are used than would be chosen for new results.
    """
    possible = {key: values for attribute, (key, values) in CHOSEN.items() if getattr(plugin, attribute, False)}
    if not possible:
        return plugin
    made: Any = plugin
    own = json.loads(json.dumps(plugin_settings(plugin)))
    for file in (Path(path), *sorted(Path(f"{path}.shards").glob("*.h5"))[:1]):
        stored = _settings(file)
        options = stored.get("options", {})
        values = {key: options.get(key, ADDED.get(key)) for key in possible}
        if any(value not in possible[key] for key, value in values.items()):
            continue
        if {key: stored.get(key) for key in own} | {"options": _without(options, possible)} != {
            **own,
            "options": _without(own["options"], possible),
        }:
            continue
        changed = {key: value for key, value in values.items() if value != getattr(made.options, key)}
        if log and changed:
            text = "%s is continued with %s, as it was made; for a new file, %s would be chosen"
            logger.info(text, path, _shown(changed), _shown({key: getattr(made.options, key) for key in changed}))
        return _made_again(plugin, changed) if changed else plugin
    shared = {key: getattr(made, name) for key, name in SHARED.items() if is_shared and key in possible and hasattr(made, name)}
    changed = {key: value for key, value in shared.items() if value != getattr(made.options, key)}
    return _made_again(plugin, changed) if changed else plugin


def _without(options: dict[str, Any], keys: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key not in keys}


def _shown(options: dict[str, Any]) -> str:
    """Options as the command line takes them."""
    return " and ".join(f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in options.items())


def _made_again(plugin: Plugin, changed: dict[str, Any]) -> Plugin:
    made: Any = plugin
    again: Plugin = type(made).create(dataclasses.replace(made.options, **changed), made.device)
    return again


def _settings(path: Path) -> dict[str, Any]:
    """The settings in a file of results; empty if there is no such file, or no settings in it."""
    with contextlib.suppress(OSError, ValueError, KeyError), H5Reader(path) as reader:
        return reader.settings
    return {}
