"""Which precision `auto` stands for where results are stored already: theirs.

`precision=auto` depends on the machine. A run that is continued on another one, or that an earlier version has begun, keeps the
precision of its files, so that all of their results are of one kind.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
from pathlib import Path
from typing import Any, TypeVar

from sfm_lightglue.networks.precision import PRECISIONS
from sfm_lightglue.settings import plugin_settings
from sfm_lightglue.storage import H5Reader

logger = logging.getLogger(__name__)

Plugin = TypeVar("Plugin")


def with_stored_precision(plugin: Plugin, path: Path | str, *, is_shared: bool = False, log: bool = True) -> Plugin:
    """The extractor or matcher as it is, or made again in the precision of the results in a file.

    It is made again if its `precision` was chosen by `auto`, and the file differs from its settings in nothing else.

    Args:
        plugin: An extractor or matcher. One that chose its precision has the attribute `chose_precision`, which is true.
        path: Its file of results, or of none yet.
        is_shared: Several machines write the file. Without results in it, they all take `shared_precision`, an attribute of the
            plug-in that does not depend on the machine.
        log: Says that another precision than this machine's is used.
    """
    if not getattr(plugin, "chose_precision", False):
        return plugin
    made: Any = plugin
    own = json.loads(json.dumps(plugin_settings(plugin)))
    for file in (Path(path), *sorted(Path(f"{path}.shards").glob("*.h5"))[:1]):
        stored = _settings(file)
        precision = stored.get("options", {}).get("precision")
        if precision not in PRECISIONS:
            continue
        if {key: stored.get(key) for key in own} != {**own, "options": {**own["options"], "precision": precision}}:
            continue
        if precision == made.options.precision:
            return plugin
        if log:
            logger.info(
                "%s is continued with precision=%s, in which it was made; precision=auto would choose %s on this machine",
                path,
                precision,
                made.options.precision,
            )
        return _made_again(plugin, precision)
    shared = getattr(made, "shared_precision", made.options.precision)
    return _made_again(plugin, shared) if is_shared and shared != made.options.precision else plugin


def _made_again(plugin: Plugin, precision: str) -> Plugin:
    made: Any = plugin
    again: Plugin = type(made).create(dataclasses.replace(made.options, precision=precision), made.device)
    return again


def _settings(path: Path) -> dict[str, Any]:
    """The settings in a file of results; empty if there is no such file, or no settings in it."""
    with contextlib.suppress(OSError, ValueError, KeyError), H5Reader(path) as reader:
        return reader.settings
    return {}
