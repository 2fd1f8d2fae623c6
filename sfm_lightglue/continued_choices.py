"""What `auto` and null stand for where results are stored already: what these results were made with.

`precision=auto`, `guided_matching=null` and `early_rejection=auto` depend on the machine, and earlier versions knew neither
guided matching nor early acceptance, and rejected no pairs. A run that is continued on another machine, or that an earlier
version has begun, keeps the settings of its files, so that all of their results are of one kind.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
from pathlib import Path
from typing import Any, TypeVar

from sfm_lightglue.networks.precision import PRECISIONS
from sfm_lightglue.settings import ADDED, FIRST_NAMES, plugin_settings
from sfm_lightglue.storage import H5Reader

logger = logging.getLogger(__name__)

Plugin = TypeVar("Plugin")

CHOSEN = {
    "chose_precision": ("precision", PRECISIONS),
    "chose_acceptance": ("early_acceptance", (True, False)),
    "chose_guided": ("guided_matching", (True, False)),
    "chose_rejection": ("early_rejection", (True, False)),
    "chose_octave": ("first_octave", (None, -1, 0)),
}
"""Attribute of a plug-in that is true if it chose an option itself -> the option, and its possible values."""
SHARED = {"precision": "shared_precision", "guided_matching": "shared_guided_matching"}
"""Option that depends on the machine -> attribute of a plug-in, if it has it: what machines take that share the work."""


def planned(plugin: type[Any], options: Any, *arguments: Any) -> Any:
    """The plug-in of a class. Its network is built later, if the class can do that: by its method `load`, or at its first use."""
    return getattr(plugin, "planned", plugin.create)(options, *arguments)


def with_stored_choices(plugin: Plugin, path: Path | str, *, is_shared: bool = False) -> Plugin:
    """The extractor or matcher as it is, or made again with what the results in a file were made with.

    It is made again if the file differs from its settings in nothing but options that it chose itself.

    Args:
        plugin: An extractor or matcher. One that chooses an option has the attribute in `CHOSEN`, which is true.
        path: Its file of results, or of none yet.
        is_shared: Several machines write the file. Without results in it, they all take the attributes in `SHARED`, which do not
            depend on the machine.
    """
    possible = {key: values for attribute, (key, values) in CHOSEN.items() if getattr(plugin, attribute, False)}
    if not possible:
        return plugin
    made: Any = plugin
    for file in (Path(path), *sorted(Path(f"{path}.shards").glob("*.h5"))[:1]):
        stored = _settings(file)
        values = {key: stored.get("options", {}).get(FIRST_NAMES.get(key, key), ADDED.get(key)) for key in possible}
        if any(value not in possible[key] for key, value in values.items()):
            continue
        is_same = not hasattr(plugin, "given") and all(getattr(made.options, key) == values[key] for key in values)
        try:
            again = plugin if is_same else _made_again(plugin, values)
        except ValueError:  # results of other features, with a choice that these do not have
            continue
        own = json.loads(json.dumps(plugin_settings(again)))
        if {key: stored.get(key) for key in own} == own:
            return again
    shared = {key: getattr(plugin, name) for key, name in SHARED.items() if key in possible and hasattr(plugin, name)}
    return _made_again(plugin, shared) if is_shared and shared else plugin


def log_stored_choices(chosen: Any, stored: Any, path: Path | str) -> None:
    """Says that a file is continued with other settings than the ones that would be chosen for a new file.

    Args:
        chosen: The extractor or matcher with its own choices.
        stored: The one that `with_stored_choices` gave.
        path: The file of results.
    """
    if stored is chosen:
        return
    keys = [key for key, _ in CHOSEN.values() if hasattr(stored.options, key)]
    own, taken = ({key: getattr(plugin.options, key) for key in keys} for plugin in (chosen, stored))
    if changed := [key for key in keys if own[key] != taken[key]]:
        text = "%s is continued with %s, as it was made; for a new file, %s would be chosen"
        logger.info(text, path, *(_shown({key: each[key] for key in changed}) for each in (taken, own)))


def _shown(options: dict[str, Any]) -> str:
    """Options as the command line takes them."""
    words = {"True": "true", "False": "false", "None": "null"}
    return " and ".join(f"{key}={words.get(str(value), value)}" for key, value in options.items())


def _made_again(plugin: Plugin, changed: dict[str, Any]) -> Plugin:
    made: Any = plugin
    given = made.given if hasattr(made, "given") else made.options
    again: Plugin = planned(type(made), dataclasses.replace(given, **changed), made.device)
    return again


def _settings(path: Path) -> dict[str, Any]:
    """The settings in a file of results; empty if there is no such file, or no settings in it."""
    with contextlib.suppress(OSError, ValueError, KeyError), H5Reader(path) as reader:
        return reader.settings
    return {}
