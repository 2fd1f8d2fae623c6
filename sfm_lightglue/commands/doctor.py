"""The command `doctor`: what is installed on this machine."""

from __future__ import annotations

import json

from sfm_lightglue.commands.flags import split_flags
from sfm_lightglue.commands.table import usage


def main(arguments: list[str]) -> int:
    """Prints the report, or all facts as JSON."""
    flags, rest = split_flags(arguments, allowed=("json",))
    if rest:
        raise ValueError(f"usage: {usage('doctor')}; found {' '.join(rest)!r}")
    from sfm_lightglue.doctor import described, examine

    facts = examine()
    print(json.dumps(facts) if flags.json else described(facts))
    return 0
