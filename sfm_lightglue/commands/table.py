"""All commands, as data: name, arguments, one line of help, and a function, which is imported when the command is used.

Importing this module loads nothing heavy.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass

from sfm_lightglue.stages import STAGES

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

    @property
    def takes_configuration(self) -> bool:
        """Whether it takes the configuration of a run. These commands share a function, which gets the name first."""
        return self.function == RUN

    def load(self) -> Callable[[list[str]], int]:
        """The function of the command."""
        module, _, name = self.function.partition(":")
        function: Callable[..., int] = getattr(importlib.import_module(module), name)
        return functools.partial(function, self.name) if self.takes_configuration else function


RUN_ARGUMENTS = "PHOTOS OUT [GROUP=CHOICE ...] [GROUP.KEY=VALUE ...]"

COMMANDS = (
    Command("run", RUN_ARGUMENTS, "all stages below, in this order", RUN),
    *(Command(stage.name, RUN_ARGUMENTS, stage.about, RUN) for stage in STAGES),
    Command("evaluate", RUN_ARGUMENTS, "reconstruction against ground truth -> evaluation.json", RUN),
    Command(
        "report", "OUT [--open]", "output folder of a run -> report.html, which says why", "sfm_lightglue.commands.report:main"
    ),
    Command(
        "view",
        "OUT [port=NUMBER]",
        "output folder of a run: all points and cameras in a live viewer",
        "sfm_lightglue.commands.view:main",
    ),
    Command(
        "train",
        "[training=CHOICE] data.images=DIR [key=value ...]",
        "photos -> weights of a network",
        "sfm_lightglue.commands.train:main",
    ),
    Command(
        "match-pair",
        "IMAGE0 IMAGE1 [--json] [output=DIR] [features=... matches=... key=value ...]",
        "two photos: keypoints, matches and scores, and a picture",
        "sfm_lightglue.commands.match_pair:main",
    ),
    Command(
        "export",
        "FORMAT OUT DIR [key=value ...], or export list",
        "finished run -> files for splatting, nerfstudio, ...",
        "sfm_lightglue.commands.export:main",
    ),
    Command(
        "benchmark",
        "DATA OUT [sets=NAME,...] [estimator=colmap|poselib|opencv] [max_error_px=1,2] [resize=...] [features=... key=value ...]",
        "configurations x sets with ground truth -> benchmark.md and .csv",
        "sfm_lightglue.commands.benchmark:main",
    ),
    Command(
        "frames",
        "VIDEO FOLDER [every=SECONDS]",
        "video -> photos, the sharpest of each half second",
        "sfm_lightglue.commands.frames:main",
    ),
    Command(
        "weights",
        "[list] or weights fetch NAME",
        "all weights, their licences and where they are",
        "sfm_lightglue.commands.weights:main",
    ),
    Command(
        "datasets",
        "[list] or datasets fetch NAME",
        "all datasets, their licences and sizes",
        "sfm_lightglue.commands.datasets:main",
    ),
    Command(
        "kernels",
        "without arguments (CXX names the compiler)",
        "compile optional kernels that make LightGlue faster on CPUs with AVX512",
        "sfm_lightglue.commands.kernels:main",
    ),
    Command(
        "doctor", "without arguments", "versions, devices and weights found on this machine", "sfm_lightglue.commands.doctor:main"
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
