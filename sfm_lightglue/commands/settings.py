"""The command `settings`: the options of a run, or of a preset, that differ from the defaults."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sfm_lightglue.commands.flags import split_flags
from sfm_lightglue.commands.table import usage
from sfm_lightglue.overrides import expanded, separate_paths


def main(arguments: list[str]) -> int:
    """Prints the options with their defaults. Raises: ValueError or FileNotFoundError if there is no run in the folder."""
    flags, rest = split_flags(arguments, allowed=("json",))
    paths, overrides = separate_paths(rest)
    if len(paths) + bool(overrides) != 1 or any(override.startswith("-") for override in overrides):
        raise ValueError(f"usage: {usage('settings')}")
    configuration = _of_run(Path(expanded(paths[0]))) if paths else _of_overrides(overrides)
    from sfm_lightglue.changed_options import changed_options

    changed = changed_options(configuration)
    if flags.json:
        print(json.dumps({key: {"value": value, "default": default} for key, (value, default) in changed.items()}))
    else:
        lines = [f"{key}={_text(value)}   (default {_text(default)})" for key, (value, default) in changed.items()]
        print("\n".join(lines) or "all options have their defaults")
    return 0


def _of_run(output: Path) -> Mapping[str, Any]:
    from sfm_lightglue.run_folder import RunFolder

    found: Mapping[str, Any] | None = RunFolder(output).read_summary().get("configuration") if output.is_dir() else None
    if found is None:
        raise FileNotFoundError(f"{output} has no summary.json with a configuration: expected the output folder of a run")
    return found


def _of_overrides(overrides: Sequence[str]) -> Mapping[str, Any]:
    from sfm_lightglue.config import compose_config
    from sfm_lightglue.run_options import resolve

    return resolve(compose_config(overrides)).configuration


def _text(value: object) -> str:
    """A value as YAML has it."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
