"""All commands, as data: name, arguments, one line of help, and a function, which is imported when the command is used.

Importing this module loads nothing heavy.
"""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sfm_lightglue.commands import flags
from sfm_lightglue.config_files import GROUPS
from sfm_lightglue.stages import STAGES, Stage

RUN = "sfm_lightglue.commands.run:main"


@dataclass(frozen=True)
class Command:
    """One command of the command line."""

    name: str
    arguments: str
    """What follows the name, for the help."""
    about: str
    """One line for the help."""
    function: str
    """`package.module:function`, called with the list of arguments. It returns the exit status."""
    groups: tuple[str, ...] = ()
    """Config groups whose options it reads; its help shows them."""
    flags: tuple[tuple[str, ...], ...] = ()
    """Flags that it takes, spellings of `flags.ABOUT`."""
    more: str = ""
    """Further lines of its own help, or `package.module:function` that returns them."""

    @property
    def takes_configuration(self) -> bool:
        """Whether it takes the configuration of a run. These commands share a function, which gets the name first."""
        return self.function == RUN

    def load(self) -> Callable[[list[str]], int]:
        """The function of the command."""
        function: Callable[..., int] = _load(self.function)
        return functools.partial(function, self.name) if self.takes_configuration else function

    def read_more(self) -> str:
        """The further lines of its help."""
        return str(_load(self.more)()) if re.fullmatch(r"[\w.]+:\w+", self.more) else self.more


def _load(function: str) -> Callable[..., Any]:
    module, _, name = function.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return found


RUN_ARGUMENTS = "PHOTOS OUT [GROUP=CHOICE ...] [GROUP.KEY=VALUE ...] [flags]"
RUN_FLAGS = (flags.QUIET, flags.VERBOSE, flags.JSON, ("--cfg", "job"), ("-m",))
RUN_MORE = "The same command continues an interrupted run. dataset=NAME takes the place of PHOTOS, output=OUT that of OUT."


def _stage(stage: Stage) -> Command:
    return Command(stage.name, RUN_ARGUMENTS, stage.about, RUN, stage.groups, RUN_FLAGS)


COMMANDS = (
    Command("run", RUN_ARGUMENTS, "all stages below, in this order", RUN, GROUPS, (flags.OPEN, *RUN_FLAGS), RUN_MORE),
    *map(_stage, STAGES),
    Command(
        "evaluate",
        RUN_ARGUMENTS,
        "reconstruction against ground truth -> evaluation.json",
        RUN,
        ("dataset",),
        RUN_FLAGS,
    ),
    Command(
        "merge",
        "output=OUT [-q]",
        "results of the shards of extract, pairs, match or verify -> one file",
        "sfm_lightglue.commands.merge:main",
        flags=(flags.QUIET,),
        more="It names the shards that are missing, and how to run them. Then OUT is as after a run without execution=shards.",
    ),
    Command(
        "report",
        "OUT [--open]",
        "output folder of a run -> report.html, which says why",
        "sfm_lightglue.commands.report:main",
        flags=(flags.OPEN,),
    ),
    Command(
        "view",
        "OUT [port=NUMBER]",
        "output folder of a run: all points and cameras in a live viewer",
        "sfm_lightglue.commands.view:main",
    ),
    Command(
        "settings",
        "OUT [--json] or settings GROUP=CHOICE ...",
        "options of a run, or of a preset, that differ from the defaults",
        "sfm_lightglue.commands.settings:main",
        flags=(flags.JSON,),
    ),
    Command(
        "train",
        "data.images=DIR [training=CHOICE] [KEY=VALUE ...] [flags]",
        "photos -> weights of a network",
        "sfm_lightglue.commands.train:main",
        ("training", "features", "matches", "execution"),
        (flags.QUIET, flags.VERBOSE, ("--cfg", "job"), ("-m",)),
    ),
    Command(
        "match-pair",
        "IMAGE0 IMAGE1 [--json] [output=DIR] [GROUP=CHOICE ...] [GROUP.KEY=VALUE ...]",
        "two photos: keypoints, matches and scores, and a picture",
        "sfm_lightglue.commands.match_pair:main",
        ("features", "matches", "geometries", "execution"),
        (flags.JSON,),
    ),
    Command(
        "export",
        "FORMAT OUT DIR [key=value ...], or export list",
        "finished run -> files for splatting, nerfstudio, ...",
        "sfm_lightglue.commands.export:main",
        more="sfm_lightglue.commands.export:help_text",
    ),
    Command(
        "benchmark",
        "DATA OUT [sets=NAME,...] [estimator=NAME] [max_error_px=1,2] [resize=SIZE] [GROUP=CHOICE,...] [GROUP.KEY=VALUE,...]",
        "configurations x sets with ground truth -> benchmark.md and .csv",
        "sfm_lightglue.commands.benchmark:main",
        ("features", "matches", "execution"),
        more="estimator is colmap, poselib, opencv, dlt or weighted_dlt; resize is protocol, none, or a side and px: short:480.",
    ),
    Command(
        "frames",
        "VIDEO FOLDER [every=SECONDS]",
        "video -> photos, the sharpest of each half second",
        "sfm_lightglue.commands.frames:main",
        more="Of each SECONDS (0.5) of the video the sharpest frame becomes a photo. It needs the extra `video` of the package.",
    ),
    Command(
        "weights",
        "[list] [--json] or weights fetch NAME",
        "all weights, their licences and where they are",
        "sfm_lightglue.commands.weights:main",
        flags=(flags.JSON,),
    ),
    Command(
        "datasets",
        "[list] [--json] or datasets fetch NAME [FOLDER]",
        "all datasets, their licences and sizes",
        "sfm_lightglue.commands.datasets:main",
        flags=(flags.JSON,),
    ),
    Command(
        "kernels",
        "without arguments (CXX names the compiler)",
        "compile the kernels that make SuperPoint and LightGlue faster on CPUs with AVX512 or AVX2",
        "sfm_lightglue.commands.kernels:main",
    ),
    Command(
        "doctor",
        "[--json]",
        "versions, devices and weights found on this machine",
        "sfm_lightglue.commands.doctor:main",
        flags=(flags.JSON,),
    ),
    Command(
        "completion",
        "bash | zsh | fish",
        "a script for the shell that completes commands, choices and options with Tab",
        "sfm_lightglue.commands.completion:main",
        more="The first line of the script says where to put it. It completes the program sfm-lightglue.",
    ),
    Command(
        "help",
        "[COMMAND] or help GROUP, GROUP=CHOICE, GROUP.KEY or any word of an option",
        "this page, or about a command, group, choice or option",
        "sfm_lightglue.commands.help:main",
    ),
)
"""In the order of the help. A new command is an entry here."""


def command_names() -> list[str]:
    """Names of all commands, in the order of the help."""
    return [command.name for command in COMMANDS]


def find_command(name: str) -> Command:
    """The command called `name`. Raises: KeyError if there is none."""
    for command in COMMANDS:
        if command.name == name:
            return command
    raise KeyError(f"there is no command {name!r}")


def usage(name: str) -> str:
    """The command with its arguments, for messages."""
    command = find_command(name)
    return f"{name}{',' if command.arguments.startswith('without') else ''} {command.arguments}"
