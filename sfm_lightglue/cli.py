"""The command line: `python -m sfm_lightglue COMMAND [overrides]`, also installed as `sfm-lightglue`.

`commands/table.py` lists the commands. Help, lists and errors in the command line do not import torch.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence

from sfm_lightglue import __version__
from sfm_lightglue.commands.flags import QUIET, VERBOSE
from sfm_lightglue.commands.table import command_names, find_command
from sfm_lightglue.mistakes import MISTAKES, message_of
from sfm_lightglue.registry import closest

HELP_FLAGS = ("--help", "-h")


PIPE_CLOSED = 141
"""Exit status of programs that SIGPIPE ends."""


def main_of_process() -> int:
    """`main` for a process that ends after it."""
    status = main()
    gc.freeze()  # Python would look for garbage among all objects once more, which takes 0.3 s if torch is there
    return status


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status. A mistake of the user prints one line on stderr instead of a traceback."""
    try:
        status = _main(list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()
    except BrokenPipeError:  # `--help | head`: Python must not write again when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    return status


def _main(arguments: list[str]) -> int:
    if arguments in (["--version"], ["version"]):
        print(__version__)
        return 0
    name, *rest = arguments or ["help"]
    if name in HELP_FLAGS:
        return help_of(rest)
    if name not in command_names():
        if {*HELP_FLAGS} & {*rest}:  # features=aliked --help
            return help_of(arguments)
        print(f"error: {_no_command(name, rest)}", file=sys.stderr)
        return 2
    command = find_command(name)
    if {*HELP_FLAGS} & {*rest}:
        return help_of([name, *rest])
    try:
        return command.load()(rest)
    except KeyboardInterrupt:
        print("interrupted: all results so far are kept, and the same command continues from there", file=sys.stderr)
        return 130
    except BrokenPipeError:
        raise
    except (*MISTAKES, MemoryError) as error:
        if os.environ.get("SFM_LIGHTGLUE_TRACEBACK") or ({*VERBOSE} & {*rest} and not {*QUIET} & {*rest}):
            raise
        print(f"error: {message_of(error) or 'out of memory'}", file=sys.stderr)
        return 1


def help_of(words: list[str]) -> int:
    """Prints help about the words, and returns the exit status."""
    from sfm_lightglue.commands import help

    return help.main([word for word in words if not word.startswith("-")])


def _no_command(name: str, rest: Sequence[str]) -> str:
    """The message for a first word that is no command."""
    if os.path.isdir(name):  # noqa: PTH112  this one never raises
        return f"{name!r} is a folder and no command. To reconstruct it: run {name} {rest[0] if rest else 'OUT'}"
    if "=" in name or name.startswith("-"):
        return f"the command comes first: run PHOTOS OUT {name}. Commands are: {', '.join(command_names())}"
    return f"there is no command {name!r}. {closest(name, command_names())}"
