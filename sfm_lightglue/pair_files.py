"""Lists of pairs on disk: `pairs.txt`, which the stages read, `pairs.tsv`, a table of reasons for people, and lists of the user.

`pairs.txt` has hloc's format: a line `name0 name1` for each pair, and no line end after the last one. hloc splits lines at white
space. If a name contains white space, a tab separates the two names; hloc cannot read that line. Lists of the user may have other
separators, comments and more columns, see `read_pair_list`.
"""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sfm_lightglue.files import foreign_file, written_whole
from sfm_lightglue.photo_names import MAX_GAPS, PhotoNames
from sfm_lightglue.products import Pair, sorted_pairs
from sfm_lightglue.text_files import SEPARATOR, numbered_lines, read_text, split_columns

logger = logging.getLogger(__name__)

COLUMNS = ("photo0", "photo1", "source", "score")
"""The first line of the table of reasons begins with these. A run adds further columns, see `tables.py`."""
FORMER_COLUMNS = ("name0", "name1", "reason", "score")
"""Titles of the same columns in version 0.10."""

MAX_PROBLEMS = 10
"""Lines of a list that an error names."""


def read_pairs(path: Path | str) -> list[Pair]:
    """The pairs of a list, sorted, with the reason `list`.

    Repeated and reversed pairs are merged. Blank lines are skipped. Lines that pair an image with itself are skipped with a
    warning.

    Args:
        path: Text file with a line `name0 name1` for each pair. A tab between the names allows spaces in them.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: A line does not contain two names, or the file is not text. The message gives the file and the line.
    """
    names: dict[str, str] = {}  # each name once in the memory
    pairs: list[Pair] = []
    num_selves = 0
    for number, line in numbered_lines(read_text(path, "list of pairs")):
        parts = line.split("\t") if "\t" in line else line.split()
        if len(parts) != 2 or not all(parts):
            hint = "" if "\t" in line else "; names with spaces need a tab between them"
            raise ValueError(f"{path}:{number}: expected two image names, found {len(parts)} in {line[:200]!r}{hint}")
        name0, name1 = parts
        if name0 == name1:
            num_selves += 1
        else:
            pairs.append(Pair(names.setdefault(name0, name0), names.setdefault(name1, name1), "list"))
    if num_selves:
        logger.warning("%s: skipped %d lines that pair an image with itself", path, num_selves)
    return sorted_pairs(pairs)


@dataclass(frozen=True)
class PairList:
    """The pairs of a list of the user."""

    pairs: list[Pair]
    """Pairs of known photos, sorted, each once, with the reason `list`."""
    unknown: dict[str, int]
    """Name that is no known photo -> number of the first line that has it."""
    num_unknown_pairs: int
    """Lines with such a name."""


def read_pair_list(path: Path | str, photos: PhotoNames) -> PairList:
    """The pairs of a list that people or other programs wrote.

    Two names begin a line; further columns, such as a score, are ignored. Tabs, commas, semicolons or blanks separate the
    columns. Names may be quoted, and are found as in `PhotoNames.find`. If names contain blanks or commas, the known photos
    decide where they end. Comments (#), blank lines and a first line of column titles are skipped. Lines that pair a photo with
    itself are skipped with a warning.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: A line has one name only or can be read in several ways, the file is not text, or holds no pair. The message
            gives the file and the line.
    """
    lines = numbered_lines(read_text(path, "list of pairs"))
    pairs: set[Pair] = set()
    photo_of: dict[str, str] = {}
    unknown: dict[str, int] = {}
    num_selves = num_unknown_pairs = 0
    problems: list[str] = []
    for number, line in lines:
        try:
            names = _read_names(line, photos, f"{path}:{number}")
        except ValueError as error:
            problems.append(str(error))
            continue
        found = {name: photos.find(name) for name in names}
        photo_of |= {name: photo for name, photo in found.items() if photo is not None}
        ends = [photo for name in names if (photo := found[name]) is not None]
        if len(ends) < 2:
            if not _is_comment(line) and not (number == lines[0][0] and len(lines) > 1 and _are_titles(names)):
                num_unknown_pairs += 1
                for name in names:
                    if found[name] is None:
                        unknown.setdefault(name, number)
        elif ends[0] == ends[1]:
            num_selves += 1
        else:
            pairs.add(Pair(ends[0], ends[1], "list"))
    if problems:
        more = [f"{path}: and {len(problems) - MAX_PROBLEMS} more lines"] if len(problems) > MAX_PROBLEMS else []
        raise ValueError("\n".join(problems[:MAX_PROBLEMS] + more))
    if num_selves:
        logger.warning("%s: skipped %d lines that pair an image with itself", path, num_selves)
    photos.warn_of_other_letters(path, photo_of)
    if not pairs and not unknown:
        raise ValueError(f"the list of pairs {path} holds no pair: expected lines `name0 name1`")
    return PairList(sorted_pairs(pairs), unknown, num_unknown_pairs)


def write_pairs(path: Path | str, pairs: Iterable[Pair]) -> None:
    """Writes the list in the order given, whole or not at all.

    Args:
        path: The text file; an older one is replaced.
        pairs: Their reasons and scores are not written; see `write_reasons`.

    Raises:
        ValueError: A name is blank or contains a tab, a line break or a byte-order mark.
    """
    _write_text(path, "\n".join(_line(pair) for pair in pairs))


def replace_pairs(path: Path | str, reasons: Path | str, pairs: Iterable[Pair]) -> None:
    """Writes a list and its table of reasons. If the process is killed in between, there is no list that the table denies."""
    pairs = list(pairs)
    Path(path).unlink(missing_ok=True)
    write_reasons(reasons, pairs)
    write_pairs(path, pairs)


def check_output(pairs: Path | str, reasons: Path | str) -> None:
    """Raises: ValueError if a list or its table of reasons exists, but not as `write_pairs` and `write_reasons` left them."""
    pairs, reasons = Path(pairs), Path(reasons)
    rows: list[list[str]] = []
    if os.path.lexists(reasons):
        text = reasons.read_bytes().decode("utf-8", "replace") if reasons.is_file() else ""
        header, *lines = text.split("\n")
        if not _is_header(header):
            raise foreign_file(reasons)
        rows = [line.split("\t") for line in lines if line]
    if not os.path.lexists(pairs):
        return
    if not pairs.is_file() or not reasons.is_file():
        raise foreign_file(pairs)
    if pairs.read_bytes() != "\n".join(_joined(*row[:2]) for row in rows).encode():
        raise ValueError(
            f"{pairs} was changed since a run wrote it, and the stage pairs would replace it. To use your pairs, move the file "
            "to another folder and give pairs=list pairs.path=FILE, or run the stages after it alone (match, verify, ...). To "
            f"select pairs anew, delete {pairs.name}"
        )


def write_reasons(path: Path | str, pairs: Iterable[Pair]) -> None:
    """Writes a table of the pairs with the columns photo0, photo1, source and score, whole or not at all.

    Args:
        path: The text file; an older one is replaced. Columns are separated by tabs, and the first line is a header.
        pairs: Pairs in the order of the rows. A score of NaN gives an empty cell.

    Raises:
        ValueError: As in `write_pairs`.
    """
    rows = [COLUMNS]
    for pair in pairs:
        _check_names(pair)
        reason = " ".join(pair.reason.split())  # a source of the user may write tabs, which would shift the columns
        rows.append((pair.name0, pair.name1, reason, "" if math.isnan(pair.score) else f"{pair.score:.5f}"))
    _write_text(path, "".join("\t".join(row) + "\n" for row in rows))


def read_reasons(path: Path | str) -> list[Pair]:
    """The pairs of a table of reasons with their reasons and scores, in its order. Further columns are ignored.

    Raises: FileNotFoundError if there is no table, ValueError if a run has not written it.
    """
    header, *lines = read_text(path, "table of pairs").split("\n")
    if not _is_header(header):
        raise foreign_file(path)
    rows = [line.split("\t") for line in lines if line]
    return [Pair(name0, name1, reason, float(score) if score else math.nan) for name0, name1, reason, score, *_ in rows]


def _is_header(line: str) -> bool:
    return tuple(line.split("\t")[: len(COLUMNS)]) in (COLUMNS, FORMER_COLUMNS)


def _read_names(line: str, photos: PhotoNames, place: str) -> tuple[str, ...]:
    """The two names of a line of the user, known or not; none for a comment. Raises: ValueError."""
    for literal in (line.split("\t"), line.split()):  # what `write_pairs` writes
        if len(literal) == 2 and literal[0] in photos and literal[1] in photos:
            return literal[0], literal[1]
    if _is_comment(line):
        return ()
    columns = split_columns(line)
    is_clear = columns[:3] != line.split()[:3]  # tabs, commas or quotes show where the names end
    is_known = len(columns) > 1 and None not in (photos.find(columns[0]), photos.find(columns[1]))
    if not is_known or not (is_clear or len(columns) == 2 or not photos.has_separators):
        readings = _readings(line.strip(), photos)
        if len(readings) > 1:
            shown = " or ".join(map(repr, readings[:2]))
            raise ValueError(f"{place}: the names may be {shown}: put a tab between the names")
        columns = [*readings[0]] if readings else columns if is_known or is_clear else _dotted(columns)
    if len(columns) < 2 or not all(columns[:2]):
        raise ValueError(f"{place}: expected two image names, found {len([*filter(None, columns)])} in {line[:200]!r}")
    return columns[0], columns[1]


def _readings(line: str, photos: PhotoNames) -> list[tuple[str, str]]:
    """The ways to read a line as two known photos and numbers; if there is none, as two known photos and any other columns."""
    gaps = [(gap.start(), gap.end()) for gap in re.finditer(SEPARATOR, line)][:MAX_GAPS]
    with_numbers: dict[tuple[str, str], None] = {}
    with_text: dict[tuple[str, str], None] = {}
    for i, (end0, start1) in enumerate(gaps):
        if photos.find(line[:end0]) is None:
            continue
        for end1, start2 in [*gaps[i + 1 :], (len(line), len(line))]:
            if photos.find(line[start1:end1]) is not None:
                rest = filter(None, re.split(SEPARATOR, line[start2:]))
                (with_numbers if all(map(_is_number, rest)) else with_text)[line[:end0], line[start1:end1]] = None
    return [*with_numbers] or [*with_text]


def _dotted(words: list[str]) -> list[str]:
    """The words between blanks joined to two unknown names, if there are more than two: a name ends at the word with a dot."""
    ends = [i for i, word in enumerate(words, 1) if "." in word[1:]]
    if len(ends) < 2 or all(map(_is_number, words[2:])):
        return words
    return [" ".join(words[: ends[0]]), " ".join(words[ends[0] : ends[1]])]


def _is_comment(line: str) -> bool:
    return line.lstrip().startswith("#")


def _are_titles(names: tuple[str, ...]) -> bool:
    """Whether the columns of a first line are titles such as `name0,name1`. Names of photos have a dot."""
    return not any("." in name for name in names)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _line(pair: Pair) -> str:
    _check_names(pair)
    return _joined(pair.name0, pair.name1)


def _joined(name0: str, name1: str = "") -> str:
    has_space = any(name.split() != [name] for name in (name0, name1))
    return f"{name0}{chr(9) if has_space else ' '}{name1}"


def _check_names(pair: Pair) -> None:
    for name in (pair.name0, pair.name1):
        if not name.strip() or any(sign in name for sign in "\0\t\n\r\ufeff"):
            raise ValueError(f"a list of pairs cannot hold the image name {name!r}: rename it without tabs and line breaks")


def _write_text(path: Path | str, text: str) -> None:
    with written_whole(path) as temporary:
        temporary.write_bytes(text.encode("utf-8"))
