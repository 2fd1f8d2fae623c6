"""The options of a run that differ from the defaults, as the command line names them."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from typing import Any

from sfm_lightglue.config import compose_config
from sfm_lightglue.config_files import GROUPS, USER_CONFIGS, choices
from sfm_lightglue.run_options import PLUGIN_GROUPS, SEVERAL, resolve_all


def changed_options(configuration: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The options of a run that differ from the defaults: `features.max_keypoints` -> (value, default), sorted by group.

    Options of a chosen plug-in are compared with its own file. If the choice itself is not the default, the group alone names
    it. A plug-in of the user without a file has defaults of None.

    Args:
        configuration: `RunOptions.configuration`, or the same from summary.json.
    """
    usual = _plain_configuration()
    chosen = {group: _choice(configuration[group]) for group in PLUGIN_GROUPS if isinstance(configuration.get(group), Mapping)}
    known = {group: choice for group, choice in chosen.items() if {*choice.strip("[]").split(",")} <= {*choices(group)}}
    if not {"features", "matches"} <= known.keys() and "[" in chosen.get("matches", ""):
        known.pop("matches", None)  # a list of matchers alone says nothing
    others = [f"{group}={choice}" for group, choice in known.items() if choice != _choice(usual[group])]
    default = dict(_plain_configuration(*others))
    changed: dict[str, tuple[Any, Any]] = {}
    for group, choice in chosen.items():
        if choice != (before := _choice(usual[group])):
            changed[group] = choice, before
        if group not in known:
            default[group] = {"name": choice}
    before_all = _flat(default)
    for key, value in _flat(configuration).items():
        if not key.endswith(".name") and key not in ("output", "dataset.images") and value != before_all.get(key):
            changed[key] = value, before_all.get(key)
    order = [*GROUPS, "strict"]
    return dict(
        sorted(changed.items(), key=lambda item: order.index(group) if (group := item[0].partition(".")[0]) in order else -1)
    )


def _plain_configuration(*overrides: str) -> Mapping[str, Any]:
    """All options for these overrides as plain values, as a run without mistakes records them.

    They are kept, because composing takes 0.2 s; not if the user has YAML files, which may change.
    """
    compose = _compose_plain.__wrapped__ if os.environ.get(USER_CONFIGS) else _compose_plain
    return compose(overrides)


@functools.cache
def _compose_plain(overrides: tuple[str, ...]) -> Mapping[str, Any]:
    return resolve_all(compose_config(overrides))[0].configuration


def _choice(node: Mapping[str, Any]) -> str:
    """The choice of a group as on the command line: its name, or `[a,b]` for several pair sources, kinds or matchers."""
    inner = {key: value for key, value in node.items() if isinstance(value, Mapping)}
    if node.get("name") not in ("union", SEVERAL):
        return str(node.get("name"))
    return f"[{','.join(inner if node['name'] == 'union' else (str(value.get('name')) for value in inner.values()))}]"


def _flat(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of nested groups by `group.key`."""
    flat: dict[str, Any] = {}
    for key, value in node.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
