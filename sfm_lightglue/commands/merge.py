"""The command `merge`: unites the results of the processes of `execution=shards`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from sfm_lightglue.commands.flags import split_flags
from sfm_lightglue.commands.table import usage
from sfm_lightglue.overrides import output_folder


def main(arguments: Sequence[str]) -> int:
    """Merges what the shards have written into an output folder. Raises: ValueError or FileNotFoundError, as `merge_shards`."""
    flags, folders = split_flags(arguments, allowed=("quiet", "verbose"))
    if len(folders) != 1 or folders[0] == "output=" or folders[0].startswith("-"):
        raise ValueError(f"usage: {usage('merge')}")
    from sfm_lightglue.execution.progress import BarFriendlyHandler
    from sfm_lightglue.merge import merge_shards

    handler = BarFriendlyHandler()
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.INFO, handlers=[handler])
    with flags.applied():
        merge_shards(Path(output_folder(folders[0])))
    return 0
