"""The command `match-pair`: two photos."""

from __future__ import annotations

from sfm_lightglue.commands.table import usage
from sfm_lightglue.overrides import expanded, separate_paths


def main(arguments: list[str]) -> int:
    """Matches two photos, prints a table or JSON, and draws the matches coloured by score."""
    as_json = "--json" in arguments
    paths, overrides = separate_paths([argument for argument in arguments if argument != "--json"])
    if len(paths) != 2 or any(override.startswith("-") for override in overrides):
        raise ValueError(f"usage: {usage('match-pair')}")
    from sfm_lightglue import match_pair

    print(match_pair.match_pair(expanded(paths[0]), expanded(paths[1]), overrides, as_json=as_json))
    return 0
