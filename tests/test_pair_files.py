"""Lists of pairs on disk: hloc's format, odd names and whole writes."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sfm_lightglue.pair_files import read_pairs, write_pairs, write_reasons
from sfm_lightglue.products import Pair

NAME = st.text(st.characters(blacklist_characters="\t\n\r\ufeff", codec="utf-8"), min_size=1, max_size=12).filter(str.strip)


def keys(pairs: list[Pair]) -> list[tuple[str, str]]:
    return [(pair.name0, pair.name1) for pair in pairs]


@settings(deadline=None)  # each file is synchronised to disk
@given(st.sets(st.tuples(NAME, NAME).filter(lambda names: names[0] < names[1]), max_size=6))
@example({("a b.jpg", "c.jpg"), (" leading.jpg", "trailing.jpg "), ("Fuß/über 1.jpg", "日本/写真.jpg"), ("a\u2028b", "b\x0bc")})
def test_a_list_with_any_names_survives_the_file(names: set[tuple[str, str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pairs.txt"
        write_pairs(path, [Pair(*pair) for pair in names])
        assert keys(read_pairs(path)) == sorted(names)


def test_the_file_has_the_format_of_hloc(tmp_path: Path) -> None:
    path = tmp_path / "pairs.txt"
    write_pairs(path, [Pair("db/1.jpg", "db/2.jpg", "exhaustive"), Pair("db/1.jpg", "q/3.jpg", "retrieval#1", 0.5)])
    assert path.read_bytes() == b"db/1.jpg db/2.jpg\ndb/1.jpg q/3.jpg"


def test_only_lines_whose_names_contain_white_space_have_a_tab(tmp_path: Path) -> None:
    path = tmp_path / "pairs.txt"
    write_pairs(path, [Pair("a 1.jpg", "b.jpg"), Pair("a.jpg", "b.jpg"), Pair("a.jpg", "no\u00a0break.jpg")])
    assert path.read_text("utf-8").split("\n") == ["a 1.jpg\tb.jpg", "a.jpg b.jpg", "a.jpg\tno\u00a0break.jpg"]


def test_an_empty_list_survives_the_file(tmp_path: Path) -> None:
    write_pairs(tmp_path / "pairs.txt", [])
    assert read_pairs(tmp_path / "pairs.txt") == []


def test_repeated_and_reversed_pairs_are_merged_and_selves_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "pairs.txt"
    path.write_text("b.jpg a.jpg\na.jpg b.jpg\n\nc.jpg c.jpg\na.jpg b.jpg\n")
    assert read_pairs(path) == [Pair("a.jpg", "b.jpg")]
    assert read_pairs(path)[0].reason == "list"
    assert "skipped 1 lines that pair an image with itself" in caplog.text


def test_lists_from_windows_are_read(tmp_path: Path) -> None:
    path = tmp_path / "pairs.txt"
    path.write_bytes(b"\xef\xbb\xbfa.jpg b.jpg\r\nc d.jpg\te.jpg\r\n")
    assert keys(read_pairs(path)) == [("a.jpg", "b.jpg"), ("c d.jpg", "e.jpg")]


@pytest.mark.parametrize("line", ["a.jpg", "a.jpg b.jpg 0.5", "a\tb\tc", "a.jpg\t", "a b.jpg c.jpg"])
def test_a_line_without_two_names_is_refused_with_its_number(tmp_path: Path, line: str) -> None:
    path = tmp_path / "pairs.txt"
    path.write_text(f"x.jpg y.jpg\n{line}\n")
    with pytest.raises(ValueError, match=r"pairs\.txt:2: expected two image names"):
        read_pairs(path)


def test_the_error_names_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.txt does not exist"):
        read_pairs(tmp_path / "nothing.txt")


@pytest.mark.parametrize("name", ["a\tb.jpg", "a\nb.jpg", "a\rb.jpg", " ", "\ufeffa.jpg"])
def test_a_name_that_breaks_the_format_is_refused_and_the_old_file_stays(tmp_path: Path, name: str) -> None:
    path = tmp_path / "pairs.txt"
    path.write_text("x.jpg y.jpg")
    for write in (write_pairs, write_reasons):
        with pytest.raises(ValueError, match="a list of pairs cannot hold the image name"):
            write(path, [Pair("0.jpg", "1.jpg"), Pair(name, "z.jpg")])
    assert path.read_text() == "x.jpg y.jpg"


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "pairs.txt"
    write_pairs(path, [Pair("a.jpg", "b.jpg")])

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_pairs(path, [])
    assert path.read_text() == "a.jpg b.jpg"
    assert list(tmp_path.iterdir()) == [path]


def test_a_pair_without_score_has_an_empty_cell_in_the_table_of_reasons(tmp_path: Path) -> None:
    path = tmp_path / "pairs.tsv"
    write_reasons(path, [Pair("a 1.jpg", "b.jpg", "sequential+1,loop#2", 0.25), Pair("a.jpg", "b.jpg", "list")])
    write_reasons(tmp_path / "odd.tsv", [Pair("a", "b", "two\twords\n")])
    assert (tmp_path / "odd.tsv").read_text().splitlines()[1] == "a\tb\ttwo words\t"
    lines = path.read_text().splitlines()
    assert lines == ["name0\tname1\treason\tscore", "a 1.jpg\tb.jpg\tsequential+1,loop#2\t0.25000", "a.jpg\tb.jpg\tlist\t"]
