"""Lists of pairs on disk: hloc's format, odd names and whole writes."""

from __future__ import annotations

import tempfile
import unicodedata
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sfm_lightglue.pair_files import PairList, read_pair_list, read_pairs, write_pairs, write_reasons
from sfm_lightglue.photo_names import PhotoNames
from sfm_lightglue.products import Pair

NAME = st.text(st.characters(blacklist_characters="\0\t\n\r\ufeff", codec="utf-8"), min_size=1, max_size=12).filter(str.strip)


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
        if names:
            listed = read_pair_list(path, PhotoNames(name for pair in names for name in pair))
            assert keys(listed.pairs) == sorted(names) and not listed.unknown


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


@pytest.mark.parametrize("name", ["a\tb.jpg", "a\nb.jpg", "a\rb.jpg", " ", "\ufeffa.jpg", "a\0b.jpg"])
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
    assert lines == ["photo0\tphoto1\tsource\tscore", "a 1.jpg\tb.jpg\tsequential+1,loop#2\t0.25000", "a.jpg\tb.jpg\tlist\t"]


# --- lists of the user ----------------------------------------------------------------------------------------------------

PHOTOS = ("a.jpg", "cam0/b.jpg", "cam0/my c.jpg", "cam1/d, e.jpg", "#f.jpg")


def read_list(folder: Path, text: str, names: Iterable[str] = PHOTOS, encoding: str = "utf-8") -> PairList:
    path = folder / "list.txt"
    path.write_bytes(text.encode(encoding))
    return read_pair_list(path, PhotoNames(names, folder / "photos"))


@pytest.mark.parametrize(
    "line",
    [
        "a.jpg cam0/b.jpg",
        "  a.jpg   cam0/b.jpg  ",
        "a.jpg\tcam0/b.jpg",
        "a.jpg \t cam0/b.jpg\t0.5",
        "a.jpg,cam0/b.jpg",
        "a.jpg, cam0/b.jpg, 0.93, 17",
        "a.jpg;cam0/b.jpg",
        "a.jpg cam0/b.jpg 0.5",
        "a.jpg cam0/b.jpg 1e-3 -2 nan",
        "a.jpg cam0/b.jpg\t0.5",
        "a.jpg\tcam0/b.jpg\tsequential+1,loop#2\t0.25000",
        "a.jpg cam0/b.jpg # a good pair",
        "./a.jpg ./cam0/b.jpg",
        "a.jpg .\\cam0\\b.jpg",
        "a.jpg cam0//b.jpg",
        '"a.jpg" "cam0/b.jpg"',
        '"a.jpg","cam0/b.jpg",3',
        "photos/a.jpg photos/cam0/b.jpg",
        "cam0/b.jpg a.jpg",
        "A.JPG cam0/B.jpg",
    ],
)
def test_a_list_of_people_is_understood(tmp_path: Path, line: str) -> None:
    for end in ("\n", "\r\n"):
        found = read_list(tmp_path, f"# name0 name1 score{end}{end}{line}{end}")
        assert (keys(found.pairs), found.unknown) == ([("a.jpg", "cam0/b.jpg")], {})
        assert found.pairs[0].reason == "list"


@pytest.mark.parametrize(
    "line",
    [
        "cam0/my c.jpg cam1/d, e.jpg",
        "cam1/d, e.jpg cam0/my c.jpg 0.75",
        "cam0/my c.jpg\tcam1/d, e.jpg\t0.75",
        '"cam0/my c.jpg", "cam1/d, e.jpg"',
        "cam0/my c.jpg;cam1/d, e.jpg",
        "cam0\\my c.jpg cam1\\d, e.jpg",
    ],
)
def test_the_photos_decide_where_a_name_with_separators_ends(tmp_path: Path, line: str) -> None:
    found = read_list(tmp_path, line)
    assert (keys(found.pairs), found.unknown) == ([("cam0/my c.jpg", "cam1/d, e.jpg")], {})


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_list_of_powershell_is_read(tmp_path: Path, encoding: str) -> None:
    assert keys(read_list(tmp_path, "a.jpg ü.jpg\r\n", ["a.jpg", "ü.jpg"], encoding).pairs) == [("a.jpg", "ü.jpg")]


def test_absolute_paths_below_the_photo_folder_are_names(tmp_path: Path) -> None:
    found = read_list(tmp_path, f"{tmp_path}/photos/a.jpg,{tmp_path}/photos/cam0/my c.jpg\n{tmp_path}/elsewhere/a.jpg,a.jpg")
    assert keys(found.pairs) == [("a.jpg", "cam0/my c.jpg")]
    assert found.unknown == {f"{tmp_path}/elsewhere/a.jpg": 2}


def test_titles_in_the_first_line_are_skipped(tmp_path: Path) -> None:
    assert read_list(tmp_path, "image1,image2,score\na.jpg,cam0/b.jpg,0.5").unknown == {}
    assert read_list(tmp_path, "a.jpg,cam0/b.jpg,0.5\nimage1,image2,score").unknown == {"image1": 2, "image2": 2}


def test_a_table_of_reasons_is_a_list_too(tmp_path: Path) -> None:
    pairs = [Pair("a.jpg", "cam0/my c.jpg", "exhaustive"), Pair("cam0/b.jpg", "cam1/d, e.jpg", "loop#1", 0.5)]
    write_reasons(tmp_path / "pairs.tsv", pairs)
    assert read_pair_list(tmp_path / "pairs.tsv", PhotoNames(PHOTOS)).pairs == pairs


def test_a_photo_whose_name_begins_with_a_hash_is_no_comment(tmp_path: Path) -> None:
    assert keys(read_list(tmp_path, "#f.jpg a.jpg\n#a.jpg f.jpg\n").pairs) == [("#f.jpg", "a.jpg")]


def test_both_directions_are_one_pair_and_selves_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = read_list(tmp_path, "a.jpg cam0/b.jpg\ncam0/b.jpg a.jpg\na.jpg,./a.jpg\n")
    assert keys(found.pairs) == [("a.jpg", "cam0/b.jpg")]
    assert "skipped 1 lines that pair an image with itself" in caplog.text


def test_other_letters_are_accepted_with_a_warning_if_only_one_photo_fits(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = ["a.jpg", unicodedata.normalize("NFC", "Müller.jpg"), "twin.jpg", "TWIN.jpg"]
    found = read_list(tmp_path, f"A.jpg\t{unicodedata.normalize('NFD', 'Müller.jpg')}\na.jpg\tTwin.jpg", names)
    assert keys(found.pairs) == [(names[1], "a.jpg")] or keys(found.pairs) == [("a.jpg", names[1])]
    assert "2 names have other letter case or another Unicode form" in caplog.text
    assert found.unknown == {"Twin.jpg": 2}
    assert "could be any of 'TWIN.jpg', 'twin.jpg'" in PhotoNames(names).describe("Twin.jpg")


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("a.jpg x.jpg", ["x.jpg"]),
        ("x.jpg y.jpg 0.5", ["x.jpg", "y.jpg"]),
        ("cam0/my c.jpg cam0/my x.jpg", ["cam0/my x.jpg"]),
        ("cam0/my x.jpg cam0/my c.jpg 3", ["cam0/my x.jpg"]),
        ("my x.jpg my y.jpg", ["my x.jpg", "my y.jpg"]),
        ("my x.jpg,my y.jpg", ["my x.jpg", "my y.jpg"]),
    ],
)
def test_unknown_names_are_told_with_their_line(tmp_path: Path, line: str, names: list[str]) -> None:
    found = read_list(tmp_path, f"a.jpg cam0/b.jpg\n{line}")
    assert found.unknown == dict.fromkeys(names, 2)
    assert (found.num_unknown_pairs, len(found.pairs)) == (1, 1)


@pytest.mark.parametrize("line", ["a.jpg", "a.jpg,", ",a.jpg", '"a.jpg cam0/b.jpg"', "a.jpg\t"])
def test_a_line_with_one_name_is_refused_with_its_number(tmp_path: Path, line: str) -> None:
    with pytest.raises(ValueError, match=r"list\.txt:3: expected two image names, found 1"):
        read_list(tmp_path, f"# list\na.jpg cam0/b.jpg\n{line}\n")


def test_a_line_with_two_meanings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"list\.txt:1: the names may be \('a', 'b c'\) or \('a b', 'c'\): put a tab"):
        read_list(tmp_path, "a b c", ["a", "b c", "a b", "c"])


@pytest.mark.parametrize("text", ["", "# nothing\n\n", "a.jpg a.jpg\n"])
def test_a_list_without_pairs_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match=r"list\.txt holds no pair"):
        read_list(tmp_path, text)


SAFE = st.text("ab ,;.#'", min_size=1, max_size=5).map(lambda text: f"d/{text}.jpg")


@given(st.lists(SAFE, min_size=2, max_size=5, unique=True), st.sampled_from(["\t", '"']), st.booleans())
def test_any_list_with_tabs_or_quotes_gives_its_pairs(names: list[str], style: str, has_score: bool) -> None:
    pairs = [*pairwise(names)]
    row = "{}\t{}" if style == "\t" else '"{}","{}"'
    score = ("\t" if style == "\t" else ",") + "0.5"
    with tempfile.TemporaryDirectory() as folder:
        text = "\r\n".join(row.format(*pair) + (score if has_score else "") for pair in pairs)
        found = read_list(Path(folder), text, names)
    assert found.pairs == sorted({Pair(*pair) for pair in pairs}) and not found.unknown


def test_all_lines_with_mistakes_are_told_up_to_ten(tmp_path: Path) -> None:
    path = tmp_path / "pairs.txt"
    path.write_text("a.jpg b.jpg\na.jpg\nb.jpg a.jpg\nb.jpg\n")
    with pytest.raises(ValueError) as caught:
        read_pair_list(path, PhotoNames(["a.jpg", "b.jpg"]))
    assert [line.split(": ")[0] for line in str(caught.value).splitlines()] == [f"{path}:2", f"{path}:4"]
    path.write_text("a.jpg\n" * 13)
    with pytest.raises(ValueError, match="and 3 more lines") as caught:
        read_pair_list(path, PhotoNames(["a.jpg", "b.jpg"]))
    assert len(str(caught.value).splitlines()) == 11
