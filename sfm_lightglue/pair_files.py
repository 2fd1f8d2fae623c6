"""Lists of pairs on disk: `pairs.txt`, which the stages read, and `pairs.tsv`, a table of reasons for people; no stage reads it.

The list has hloc's format: one line `name0 name1` for each pair, and no line end after the last one. hloc splits lines at white
space. If a name contains white space, a tab separates the two names; hloc cannot read that line.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from pathlib import Path

from sfm_lightglue.files import written_whole
from sfm_lightglue.products import Pair

logger = logging.getLogger(__name__)


def read_pairs(path: Path | str) -> list[Pair]:
    """The pairs of a list, sorted, with the reason `list`.

    Repeated and reversed pairs are merged. Blank lines are skipped. Lines that pair an image with itself are skipped with a
    warning.

    Args:
        path: Text file with a line `name0 name1` for each pair, in UTF-8. A tab between the names allows spaces in them.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: A line does not contain two names. The message gives the file and the number of the line.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"the list of pairs {path} does not exist: expected a text file of lines `name0 name1`")
    # Only \n ends a line: str.splitlines would also split at rare separators that file names may contain.
    lines = path.read_bytes().decode("utf-8-sig").split("\n")
    both = [_split(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    pairs = {Pair(*names, "list") for names in both if names[0] != names[1]}
    if num_selves := sum(name0 == name1 for name0, name1 in both):
        logger.warning("%s: skipped %d lines that pair an image with itself", path, num_selves)
    return sorted(pairs)


def write_pairs(path: Path | str, pairs: Iterable[Pair]) -> None:
    """Writes the list in the order given, whole or not at all.

    Args:
        path: The text file; an older one is replaced.
        pairs: Their reasons and scores are not written; see `write_reasons`.

    Raises:
        ValueError: A name is blank or contains a tab, a line break or a byte-order mark.
    """
    _write_text(path, "\n".join(_line(pair) for pair in pairs))


def write_reasons(path: Path | str, pairs: Iterable[Pair]) -> None:
    """Writes a table of the pairs with the columns name0, name1, reason and score, whole or not at all.

    Args:
        path: The text file; an older one is replaced. Columns are separated by tabs, and the first line is a header.
        pairs: Pairs in the order of the rows. A score of NaN gives an empty cell.

    Raises:
        ValueError: As in `write_pairs`.
    """
    rows = [("name0", "name1", "reason", "score")]
    for pair in pairs:
        _check_names(pair)
        reason = " ".join(pair.reason.split())  # a source of the user may write tabs, which would shift the columns
        rows.append((pair.name0, pair.name1, reason, "" if math.isnan(pair.score) else f"{pair.score:.5f}"))
    _write_text(path, "".join("\t".join(row) + "\n" for row in rows))


def _split(line: str, place: str) -> tuple[str, str]:
    line = line.removesuffix("\r")
    parts = line.split("\t") if "\t" in line else line.split()
    if len(parts) != 2 or not all(parts):
        hint = "" if "\t" in line else "; names with spaces need a tab between them"
        raise ValueError(f"{place}: expected two image names, found {len(parts)} in {line[:200]!r}{hint}")
    return parts[0], parts[1]


def _line(pair: Pair) -> str:
    _check_names(pair)
    has_space = any(name.split() != [name] for name in (pair.name0, pair.name1))
    return f"{pair.name0}{chr(9) if has_space else ' '}{pair.name1}"


def _check_names(pair: Pair) -> None:
    for name in (pair.name0, pair.name1):
        if not name.strip() or any(sign in name for sign in "\t\n\r\ufeff"):
            raise ValueError(f"a list of pairs cannot hold the image name {name!r}: rename it without tabs and line breaks")


def _write_text(path: Path | str, text: str) -> None:
    with written_whole(path) as temporary:
        temporary.write_bytes(text.encode("utf-8"))
