"""The command `weights`: a list of all weights, and their download."""

from __future__ import annotations

from sfm_lightglue.commands.table import usage
from sfm_lightglue.networks import weights


def main(arguments: list[str]) -> int:
    """Prints the list, or fetches weights and prints their paths."""
    if arguments[:1] == ["fetch"] and len(arguments) > 1:
        for name in arguments[1:]:
            print(f"{name}: {weights.find_weights(name)}")
        return 0
    if arguments not in ([], ["list"]):
        raise ValueError(f"usage: {usage('weights')}; found {' '.join(arguments)!r}")
    for entry, path in weights.available_weights():
        size = f"{entry.size / 1e6:.1f} MB" if entry.size else "?"
        note = " (research only)" if entry.research_only else ""
        print(f"{entry.name:22} {size:>8}  {entry.licence}{note}\n{'':32}for {entry.for_}; {path or 'not here'}")
    return 0
