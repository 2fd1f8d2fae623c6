"""The command `help`: an overview, or help about a topic."""

from __future__ import annotations

import sys

from sfm_lightglue import __version__
from sfm_lightglue.commands.table import COMMANDS
from sfm_lightglue.config_files import GROUPS, choices
from sfm_lightglue.stages import stage_names

OVERVIEW = """\
sfm_lightglue {version}: photos in, a verified COLMAP reconstruction out

python -m sfm_lightglue COMMAND [PHOTOS OUT] [key=value ...]      (or sfm-lightglue COMMAND ...)

{commands}

  run PHOTOS OUT                             your folder of photos, and a folder for all results
  run PHOTOS OUT experiment=fast             a preset: fast or quality
  run PHOTOS OUT features=disk,aliked -m     one run for each choice
  run PHOTOS OUT --cfg job                   print the configuration
  run +dataset=demo                          an embedded scene

  COMMAND --help                             what a command does, and its options
  help features=aliked                       a choice and its options; also `help features`, `help aliked`
  help features.max_keypoints                one option; also `help max_keypoints`, or any word: `help gps`

PHOTOS OUT is short for +dataset=folder dataset.images=PHOTOS output=OUT.

groups of choices (GROUP=CHOICE), options are GROUP.KEY=VALUE:
{groups}
"""


def main(arguments: list[str]) -> int:
    """Prints help about each argument; without arguments, the overview. Returns 2 if there is no such thing."""
    if not arguments:
        print(overview())
        return 0
    from sfm_lightglue.commands.topics import of_topics

    try:
        print(of_topics(arguments))
    except KeyError as error:
        print(f"error: {error.args[0]}", file=sys.stderr)
        return 2
    return 0


def overview() -> str:
    """All commands and groups."""
    stages = stage_names()
    heads = [f"{'    ' if entry.name in stages else '  '}{entry.name:{13 if entry.name in stages else 15}}" for entry in COMMANDS]
    commands = "\n".join(f"{head}{entry.about}" for head, entry in zip(heads, COMMANDS, strict=True))
    groups = "\n".join(f"  {group:15}{', '.join(choices(group))}" for group in GROUPS)
    return OVERVIEW.format(version=__version__, commands=commands, groups=groups)
