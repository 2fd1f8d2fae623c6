"""Pairs from and to text files, in hloc's format: a line `name0 name1` for each pair, no line end after the last.

hloc's reader splits lines at white space. Where a name holds white space the line is separated by a tab instead, which hloc
cannot read. The reasons of the pairs stand in a table beside the list, `pairs.tsv`, which nothing but people reads.
"""

from __future__ import annotations

import difflib
import logging
import math
import os
from collections.abc import Iterable
from pathlib import Path

from sfm_lightglue.products import Pair

logger = logging.getLogger(__name__)


def read_pairs(path: Path | str) -> list[Pair]:
    """Sorted pairs of the file, reason `list`. Repeated and reversed pairs are merged, blank lines skipped.

    Raises: FileNotFoundError, ValueError with file and line where a line does not hold two names.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"the list of pairs {path} does not exist: expected a text file with a line `name0 name1` a pair")
    # Only \n ends a line: str.splitlines would also split at the odd separators that file names may hold.
    lines = path.read_bytes().decode("utf-8-sig").split("\n")
    both = [_split(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    pairs = {Pair(*names, "list") for names in both if names[0] != names[1]}
    if num_selves := sum(name0 == name1 for name0, name1 in both):
        logger.warning("%s: %d lines pair an image with itself and are left out", path, num_selves)
    return sorted(pairs)


def listed_pairs(path: Path | str, names: Iterable[str], *, skip_unknown: bool = False) -> list[Pair]:
    """The pairs of the file, whose images must be among `names`; pairs of others are left out where `skip_unknown`.

    Raises: ValueError that lists the first unknown names and the closest known ones; and as `read_pairs`.
    """
    pairs, known = read_pairs(path), set(names)
    unknown = sorted({name for pair in pairs for name in (pair.name0, pair.name1)} - known)
    if unknown and not skip_unknown:
        shown = "; ".join(_with_closest(name, sorted(known)) for name in unknown[:5])
        raise ValueError(
            f"{path} names {len(unknown)} images that are not in the collection of {len(known)}: {shown}"
            f"{' ...' if len(unknown) > 5 else ''}. Names are paths below the image folder; skip_unknown leaves such pairs out"
        )
    kept = [pair for pair in pairs if pair.name0 in known and pair.name1 in known]
    if len(kept) < len(pairs):
        logger.warning("%s: %d of %d pairs have images that are not in the collection", path, len(pairs) - len(kept), len(pairs))
    return kept


def write_pairs(path: Path | str, pairs: Iterable[Pair]) -> None:
    """Writes the list, in the order given, at once or not at all.

    Raises: ValueError where a name holds a tab, a line break or a byte-order mark.
    """
    _write_at_once(path, "\n".join(_line(pair) for pair in pairs))


def write_reasons(path: Path | str, pairs: Iterable[Pair]) -> None:
    """Writes a table of tab-separated columns name0, name1, reason, score (empty where there is none), with a header."""
    rows = [("name0", "name1", "reason", "score")]
    for pair in pairs:
        _check(pair)
        rows.append((pair.name0, pair.name1, pair.reason, "" if math.isnan(pair.score) else f"{pair.score:.5f}"))
    _write_at_once(path, "".join("\t".join(row) + "\n" for row in rows))


def _split(line: str, place: str) -> tuple[str, str]:
    line = line.removesuffix("\r")
    parts = line.split("\t") if "\t" in line else line.split()
    if len(parts) != 2 or not all(parts):
        hint = "" if "\t" in line else "; names with spaces need a tab between them"
        raise ValueError(f"{place}: expected two image names, found {len(parts)} in {line[:200]!r}{hint}")
    return parts[0], parts[1]


def _line(pair: Pair) -> str:
    _check(pair)
    has_space = any(name.split() != [name] for name in (pair.name0, pair.name1))
    return f"{pair.name0}{chr(9) if has_space else ' '}{pair.name1}"


def _check(pair: Pair) -> None:
    for name in (pair.name0, pair.name1):
        if not name.strip() or any(sign in name for sign in "\t\n\r\ufeff"):
            raise ValueError(f"an image named {name!r} cannot stand in a list of pairs: rename it without tabs and control signs")


def _with_closest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"{name!r}" + (f" (closest: {close[0]!r})" if close else "")


def _write_at_once(path: Path | str, text: str) -> None:
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(text.encode("utf-8"))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
