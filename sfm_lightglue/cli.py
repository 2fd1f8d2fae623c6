"""The command line: `python -m sfm_lightglue COMMAND [overrides]`, also installed as `sfm-lightglue`.

`commands/table.py` lists the commands. Help, lists and errors in the command line do not import torch.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from sfm_lightglue import __version__
from sfm_lightglue.commands.table import COMMANDS, command_names, find_command, usage
from sfm_lightglue.mistakes import MISTAKES, message_of
from sfm_lightglue.registry import closest
from sfm_lightglue.stages import stage_names

HELP = """\
sfm_lightglue {version}: photos in, a verified COLMAP reconstruction out

python -m sfm_lightglue COMMAND [PHOTOS OUT] [key=value ...]

{commands}

  run PHOTOS OUT                             your folder of photos, and a folder for all results
  run PHOTOS OUT experiment=fast             a preset: fast or quality
  run PHOTOS OUT features=disk,aliked -m     one run for each choice
  run PHOTOS OUT --cfg job                   print the configuration
  run +dataset=demo                          an embedded scene

PHOTOS OUT is short for +dataset=folder dataset.images=PHOTOS output=OUT.

groups of choices (GROUP=CHOICE), options are GROUP.KEY=VALUE:
{groups}
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status. A mistake of the user prints one line on stderr instead of a traceback."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("help", "--help", "-h"):
        print(_help())
        return 0
    if arguments[0] in ("--version", "version"):
        print(__version__)
        return 0
    name, *rest = arguments
    if name not in command_names():
        print(f"error: there is no command {name!r}. {closest(name, command_names())}", file=sys.stderr)
        return 2
    command = find_command(name)
    if {"--help", "-h"} & {*rest}:
        print(_help() if command.takes_configuration or name == "train" else f"usage: {usage(name)}")
        return 0
    try:
        return command.load()(rest)
    except KeyboardInterrupt:
        print("interrupted: all results so far are kept, and the same command continues from there", file=sys.stderr)
        return 130
    except (*MISTAKES, MemoryError) as error:
        if os.environ.get("SFM_LIGHTGLUE_TRACEBACK"):
            raise
        print(f"error: {message_of(error) or 'out of memory'}", file=sys.stderr)
        return 1


def _help() -> str:
    from sfm_lightglue.config_files import GROUPS, choices

    groups = "\n".join(f"  {group:15}{', '.join(choices(group))}" for group in GROUPS)
    stages = stage_names()
    lines = [f"{'    ' if entry.name in stages else '  '}{entry.name:{13 if entry.name in stages else 15}}" for entry in COMMANDS]
    commands = "\n".join(f"{line}{entry.about}" for line, entry in zip(lines, COMMANDS, strict=True))
    return HELP.format(version=__version__, commands=commands, groups=groups)
