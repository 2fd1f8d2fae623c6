"""Docstrings of this package are plain text with `code`; Sphinx expects reStructuredText."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

HEADING = re.compile(r"^(Raises|Returns|Yields|Source|Note|Example): (?=\S)")
"""A section on one line; sections with indented items are napoleon's."""
ITEM = re.compile(r"^\s*(?:[-*]|\d+\.) ")


def to_restructured_text(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Rewrites the lines of one docstring in place; Sphinx calls it for every docstring."""
    converted: list[str] = []
    for line in _with_returns_as_field(lines):
        if line.lstrip().startswith((">>>", "...")):
            converted.append(line)
            continue
        starts_item = bool(ITEM.match(line))
        previous = converted[-1] if converted else ""
        inside_item = bool(converted) and any(ITEM.match(earlier) for earlier in _paragraph(converted))
        if starts_item and previous.strip() and not inside_item:
            converted.append("")
        marker = ITEM.match(line)[0] if starts_item else ""  # type: ignore[index]
        converted.append(marker + _inline(line[len(marker) :]))
    lines[:] = converted


def _with_returns_as_field(lines: list[str]) -> list[str]:
    """The section `Returns:` as a field: napoleon would take the words before a colon for a type."""
    changed: list[str] = []
    is_first = False
    for line in lines:
        if line.strip() in ("Returns:", "Yields:"):
            is_first = True
        elif is_first:
            indent = len(line) - len(line.lstrip())
            changed.append(f"{line[: max(0, indent - 4)]}:returns: {line.lstrip()}")
            is_first = False
        else:
            changed.append(line)
    return changed


def _paragraph(lines: list[str]) -> list[str]:
    """The lines after the last empty one."""
    start = next((i + 1 for i in range(len(lines) - 1, -1, -1) if not lines[i].strip()), 0)
    return lines[start:]


def _inline(text: str) -> str:
    """One line with literal code, and the signs escaped that reStructuredText would read as markup."""
    text = HEADING.sub(r"**\1:** ", text)
    bold = re.match(r"\*\*\w+:\*\* ", text)
    start = bold[0] if bold else ""
    parts = re.split(r"(`[^`]+`)", text[len(start) :])
    plain = [re.sub(r"([*|\\])|(?<=\w)(_)(?=\W|$)", r"\\\g<0>", part) for part in parts[::2]]
    code = [f"`{part}`" for part in parts[1::2]]
    return start + "".join(a + b for a, b in zip(plain, [*code, ""], strict=True))
