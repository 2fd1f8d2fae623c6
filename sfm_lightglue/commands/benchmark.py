"""The command `benchmark`: configurations x sets of pairs with ground truth."""

from __future__ import annotations

from pathlib import Path

from sfm_lightglue.commands.table import usage
from sfm_lightglue.overrides import expanded, separate_paths


def main(arguments: list[str]) -> int:
    """Measures all configurations on all sets, and prints and writes the tables."""
    paths, others = separate_paths(arguments)
    if len(paths) != 2 or any(argument.startswith("-") for argument in others):
        raise ValueError(f"usage: {usage('benchmark')}")
    from sfm_lightglue import benchmark

    options = benchmark.parse(Path(expanded(paths[0])), Path(expanded(paths[1])), others)
    print(benchmark.benchmark(options))
    return 0
