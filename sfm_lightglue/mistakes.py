"""Messages: mistakes of the user, several of them as one error; names and numbers in a message; warnings given once."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence

logger = logging.getLogger(__name__)

MISTAKES = (ValueError, KeyError, OSError)
"""Errors that a user can cause. Others are faults of the package."""


def message_of(error: BaseException) -> str:
    """The text of an error; without the quotes that Python puts around a KeyError's."""
    return str(error.args[0] if isinstance(error, KeyError) and error.args else error)


def shortened(names: Sequence[str], limit: int = 3) -> str:
    """The first names with commas, and how many more there are."""
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def count_of(number: int, one: str, many: str | None = None) -> str:
    """A number with its noun: `1 photo`, `2 photos`; `many` is the plural if it is not `one` with an s."""
    return f"{number} {one if number == 1 else many or f'{one}s'}"


def shown(name: str) -> str:
    """A name for a message in quotes. Letters beyond ASCII are escapes, because forms of Unicode look the same in print."""
    return f"'{name}'" if name.isascii() and name.isprintable() else ascii(name)


@functools.cache
def warn_once(message: str) -> None:
    """Logs a warning the first time that this process gives it."""
    logger.warning("%s", message)


@functools.cache
def tell_once(message: str) -> None:
    """Logs an information the first time that this process gives it."""
    logger.info("%s", message)


def raise_together(mistakes: Sequence[Exception]) -> None:
    """Raises the only mistake as it is, or several as one ValueError with a line for each; nothing if there are none.

    A message may hold several mistakes, a line for each. Lines that begin with a blank belong to the line before.
    """
    different = {message_of(mistake): mistake for mistake in mistakes}
    lines = list(dict.fromkeys(line for message in different for line in message.splitlines()))
    count = sum(not line.startswith(" ") for line in lines)
    if len(different) == 1:
        raise next(iter(different.values()))
    if lines:
        listed = (f"  {line}" if line.startswith(" ") else f"- {line}" for line in lines)
        raise ValueError("\n".join([f"{count} mistakes, found before any work:", *listed]))
