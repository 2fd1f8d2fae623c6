"""The command `weights`: a list of all weights, and their download."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from sfm_lightglue.commands.table import usage
from sfm_lightglue.networks import weights


def main(arguments: list[str]) -> int:
    """Prints the list, or fetches weights and prints their paths."""
    if arguments[:1] == ["fetch"] and len(arguments) > 1:
        for name in arguments[1:]:
            print(f"{name}: {weights.find_weights(name)}")
        return 0
    as_json = arguments[-1:] == ["--json"]
    arguments = arguments[: len(arguments) - as_json]
    if arguments not in ([], ["list"]):
        raise ValueError(f"usage: {usage('weights')}; found {' '.join(arguments)!r}")
    if as_json:
        print(json.dumps({"weights": [_facts(entry, path) for entry, path in weights.available_weights()]}))
        return 0
    for entry, path in weights.available_weights():
        size = f"{entry.size / 1e6:.1f} MB" if entry.size else "?"
        note = " (research only)" if entry.research_only else ""
        print(f"{entry.name:22} {size:>8}  {entry.licence}{note}\n{'':32}for {entry.for_}; {path or 'not here'}")
    return 0


def _facts(entry: weights.WeightsEntry, path: Path | None) -> dict[str, object]:
    keys = ("name", "licence", "research_only", "size", "sha256")
    return {key: dataclasses.asdict(entry)[key] for key in keys} | {
        "for": entry.for_,
        "path": None if path is None else str(path),
    }
