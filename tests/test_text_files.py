"""Text files of people: encodings, line ends, comments and columns."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfm_lightglue.text_files import content_lines, numbered_lines, read_text, split_columns, split_name_and_values

TEXT = "ü.jpg b.jpg\n写真.jpg\t\U0001f600.jpg\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_file_is_read_in_every_encoding_that_has_a_mark(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(TEXT.encode(encoding))
    assert read_text(path, "list") == TEXT


def test_big_endian_utf16_is_read(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(b"\xfe\xff" + TEXT.encode("utf-16-be"))
    assert read_text(tmp_path / "list.txt", "list") == TEXT


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("a.jpg\nMüller.jpg\n".encode("cp1252"), r"list\.txt:2: the pose file is not UTF-8 .*save it in an editor as UTF-8"),
        (b"\x89HDF\r\n\x1a\n\0\0\0", r"list\.txt is not a text file"),
        (b"\xff\xfea", r"is not UTF-16-LE"),
    ],
)
def test_a_file_that_is_not_text_is_refused(tmp_path: Path, content: bytes, expected: str) -> None:
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(ValueError, match=expected):
        read_text(tmp_path / "list.txt", "pose file")


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"the pose file .*nothing\.txt does not exist"):
        read_text(tmp_path / "nothing.txt", "pose file")
    with pytest.raises(FileNotFoundError, match=r"is a folder: expected a text file"):
        read_text(tmp_path, "pose file")


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_keep_their_numbers_with_every_line_end(end: str) -> None:
    assert numbered_lines(end.join(["a", "", "  ", "b\u2028c\x0b", ""])) == [(1, "a"), (4, "b\u2028c\x0b")]


def test_comments_and_blank_lines_have_no_content(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("# comment\n\n  # another\na # not a comment\n")
    assert content_lines(tmp_path / "list.txt", "list") == [(4, "a # not a comment")]


@pytest.mark.parametrize(
    ("line", "columns"),
    [
        ("a.jpg b.jpg", ["a.jpg", "b.jpg"]),
        ("  a.jpg   b.jpg\r", ["a.jpg", "b.jpg"]),
        ("a b.jpg\tc.jpg", ["a b.jpg", "c.jpg"]),
        ("a b.jpg, c.jpg ,0.5", ["a b.jpg", "c.jpg", "0.5"]),
        ("a b.jpg;c,d.jpg", ["a b.jpg", "c,d.jpg"]),
        ('"a,b.jpg" "c d.jpg"', ["a,b.jpg", "c d.jpg"]),
        ('"a,b.jpg", 1', ["a,b.jpg", "1"]),
        ("it's.jpg 1", ["it's.jpg", "1"]),
        ("a,,1", ["a", "", "1"]),
        ("", []),
    ],
)
def test_a_line_is_split_at_the_separator_that_it_uses(line: str, columns: list[str]) -> None:
    assert split_columns(line) == columns


@pytest.mark.parametrize("line", ["my a,b.jpg 1 2e1 -3", "my a,b.jpg,1,2e1 ,-3", "my a,b.jpg;1;2e1;-3", '"my a,b.jpg" 1\t2e1 -3'])
def test_values_are_counted_from_the_end_of_the_line(line: str) -> None:
    assert split_name_and_values(line, 3) == ("my a,b.jpg", ["1", "2e1", "-3"])


@given(st.text(min_size=1, max_size=8), st.integers(1, 4))
def test_no_line_breaks_the_readers(line: str, num_values: int) -> None:
    assert all(column == column.strip() for column in split_columns(line))
    assert len(split_name_and_values(line, num_values)[1]) <= num_values
