"""Text files that people bring: pairs, poses, positions, intrinsics, homographies and lists of photos.

Editors and spreadsheets write them in several encodings, with several line ends and separators. All readers use these functions,
so that each file is understood in the same way.
"""

from __future__ import annotations

import codecs
import re
from pathlib import Path

BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark is the beginning of this one
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
"""First bytes of a file and the encoding that they announce. PowerShell's `>` and Windows' editors write UTF-16."""

SEPARATOR = r"\s*[,;]\s*|\s+"
"""Pattern of what stands between two columns, if no column contains blanks."""

EVEN_QUOTES_FOLLOW = r"""(?=(?:[^"]*"[^"]*")*[^"]*$)"""
"""Pattern of a place outside of quotes, in a line with an even number of them."""


def read_text(path: Path | str, kind: str) -> str:
    """The text of a file in UTF-8, or in UTF-16 or UTF-32 with a byte-order mark, without this mark.

    Args:
        path: The file.
        kind: What the file is, for the messages: `list of pairs`, `pose file`.

    Raises:
        FileNotFoundError: There is no file; the message says so if the path is a folder.
        ValueError: The file is not text, or is in another encoding. The message gives the line.
    """
    path = Path(path)
    if path.is_dir():
        raise FileNotFoundError(f"the {kind} {path} is a folder: expected a text file")
    if not path.is_file():
        raise FileNotFoundError(f"the {kind} {path} does not exist")
    content = path.read_bytes()
    mark, encoding = next((entry for entry in BYTE_ORDER_MARKS if content.startswith(entry[0])), (b"", "utf-8"))
    content = content[len(mark) :]
    if not mark and b"\0" in content:
        raise ValueError(f"the {kind} {path} is not a text file, or is UTF-16 without a byte-order mark: save it as UTF-8")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        number = content[: error.start].count(b"\n") + 1
        raise ValueError(
            f"{path}:{number}: the {kind} is not {encoding.upper()} ({error.reason}): save it in an editor as UTF-8"
        ) from error


def numbered_lines(text: str) -> list[tuple[int, str]]:
    """Number, from 1, and content of each line that is not blank.

    Lines end with LF, CR LF or CR. str.splitlines would also split at rare separators that file names may contain.
    """
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return [(number, line) for number, line in enumerate(lines, 1) if line.strip()]


def content_lines(path: Path | str, kind: str) -> list[tuple[int, str]]:
    """Number, from 1, and content of each line of a file that is neither blank nor a comment. A comment starts with #.

    Raises: FileNotFoundError and ValueError as in `read_text`.
    """
    return [(number, line) for number, line in numbered_lines(read_text(path, kind)) if not line.lstrip().startswith("#")]


def split_columns(line: str) -> list[str]:
    """The columns of a line, without blanks around them and without quotes.

    Tabs separate them if there are any; else semicolons, else commas, else blanks. A separator inside `"..."` does not count.

    Example:
        >>> split_columns('"my photo.jpg", 48.85, 2.29')
        ['my photo.jpg', '48.85', '2.29']
    """
    is_quoted = '"' in line and line.count('"') % 2 == 0
    outside = re.sub('"[^"]*"', "", line) if is_quoted else line
    separator = next((sign for sign in "\t;," if sign in outside), r"\s+")
    columns = re.split(separator + (EVEN_QUOTES_FOLLOW if is_quoted else ""), line.strip())
    columns = [column.strip() for column in columns]
    return [column[1:-1].strip() if re.fullmatch('"[^"]*"', column) else column for column in columns] if line.strip() else []


def split_name_and_values(line: str, num_values: int) -> tuple[str, list[str]]:
    """The name at the beginning of a line, which may contain blanks, and the `num_values` columns at its end.

    Blanks, tabs, commas and semicolons separate the columns. Quotes around the name are removed. There are fewer values if the
    line is too short.
    """
    line = line.strip().rstrip(",;")
    separators = list(re.finditer(SEPARATOR, line))[-num_values:]
    if not separators:
        return line.strip('"'), []
    return line[: separators[0].start()].strip('"'), re.split(SEPARATOR, line[separators[0].end() :])
