"""Flags of the command line that Hydra does not see: how much is printed, and in which form."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

QUIET, VERBOSE, JSON, OPEN = ("-q", "--quiet"), ("-v", "--verbose"), ("--json",), ("--open",)
NAMES = {"quiet": QUIET, "verbose": VERBOSE, "json": JSON, "open": OPEN}
ABOUT = {
    QUIET: "print warnings and errors only, and the table of evaluate",
    VERBOSE: "more messages, with their time and module, and the traceback of an error",
    JSON: "print the result as one JSON object on stdout, and everything else on stderr",
    OPEN: "open the report in a browser at the end",
    ("--cfg", "job"): "print the configuration and stop",
    ("-m",): "one run for each choice: features=disk,aliked",
}
"""Flags -> their meaning, for the help. Hydra reads the last two."""
VERBOSE_FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s"


@dataclass(frozen=True)
class Flags:
    """What the user asked for."""

    quiet: bool = False
    verbose: bool = False
    json: bool = False
    open: bool = False

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Messages and progress as the flags say, inside the block. The logging must be configured before."""
        progress = logging.getLogger("sfm_lightglue.execution.progress")
        streams = [handler for handler in logging.getLogger().handlers if not isinstance(handler, logging.FileHandler)]
        before = progress.level, [(handler, handler.level, handler.formatter) for handler in streams]
        if self.quiet:
            progress.setLevel(logging.WARNING)
        for handler in streams:
            if self.quiet:
                handler.setLevel(logging.WARNING)
            if self.verbose:
                handler.setLevel(logging.DEBUG)
                handler.setFormatter(logging.Formatter(VERBOSE_FORMAT))
        try:
            yield
        finally:
            progress.setLevel(before[0])
            for handler, level, formatter in before[1]:
                handler.setLevel(level)
                handler.setFormatter(formatter)


def split_flags(arguments: Sequence[str], *, allowed: Collection[str] = ("quiet", "verbose", "json")) -> tuple[Flags, list[str]]:
    """The flags among the arguments, and the other arguments. Flags that are not allowed stay among the others.

    Raises: ValueError if the flags contradict each other.
    """
    spellings = {spelling: name for name in NAMES if name in allowed for spelling in NAMES[name]}
    given = {spellings[argument] for argument in arguments if argument in spellings}
    if {"quiet", "verbose"} <= given:
        raise ValueError("-q and -v contradict each other: give one of them")
    return Flags(**dict.fromkeys(given, True)), [argument for argument in arguments if argument not in spellings]
