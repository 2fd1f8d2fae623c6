"""Names of photos as people write them, and lists of photos."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as PILImage

from sfm_lightglue import pipeline
from sfm_lightglue.config import compose_config
from sfm_lightglue.photo_names import PhotoNames, read_photo_list
from sfm_lightglue.run_context import Run, check_inputs

NAMES = ("a.jpg", "cam0/my b.jpg", "cam0/c.jpg", "#d.jpg", "Twin.jpg", "twin.jpg")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("cam0/c.jpg", "cam0/c.jpg"),
        ("./cam0//c.jpg", "cam0/c.jpg"),
        ("cam0\\my b.jpg", "cam0/my b.jpg"),
        (" a.jpg ", "a.jpg"),
        ("x/../a.jpg", "a.jpg"),
        ("photos/a.jpg", "a.jpg"),
        ("data/photos/cam0/c.jpg", "cam0/c.jpg"),
        ("/data/photos/cam0/c.jpg", "cam0/c.jpg"),
        ("/data/photos/CAM0/C.JPG", "cam0/c.jpg"),
        ("twin.jpg", "twin.jpg"),
        ("TWIN.jpg", None),
        ("/data/a.jpg", None),
        ("c.jpg", None),
        ("../a.jpg", None),
        ("", None),
    ],
)
def test_a_name_is_found_however_it_is_written(text: str, name: str | None) -> None:
    assert PhotoNames(NAMES, "/data/photos").find(text) == name


def test_unicode_forms_are_one_name_unless_both_exist() -> None:
    composed, decomposed = (unicodedata.normalize(form, "ü.jpg") for form in ("NFC", "NFD"))
    assert PhotoNames([composed]).find(decomposed) == composed
    assert PhotoNames([composed, decomposed]).find(decomposed) == decomposed
    assert PhotoNames([composed, decomposed]).find(decomposed.upper()) is None


def test_entries_of_a_file_are_matched_to_photos_the_exact_names_first() -> None:
    photos = PhotoNames(NAMES, "/data/photos")
    assert photos.match("poses.txt", {"./cam0/c.jpg": 1, "other.jpg": 2, "a.jpg": 3, "photos/a.jpg": 4}) == {
        "a.jpg": 3,
        "cam0/c.jpg": 1,
    }
    assert photos.match("poses.txt", {}) == {}
    with pytest.raises(ValueError, match=r"poses\.txt has 1 names, but none is a photo of the 6: 'aa.jpg' \(closest: 'a.jpg'\)"):
        photos.match("poses.txt", {"aa.jpg": 1})


@given(st.lists(st.text(min_size=1, max_size=6), max_size=5), st.text(max_size=8))
def test_every_photo_is_found_by_its_own_name(names: list[str], other: str) -> None:
    photos = PhotoNames(names, "/data")
    assert [photos.find(name) for name in names] == names
    assert photos.find(other) in (None, *names)


def write_list(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    (folder / "list.txt").write_bytes(text.encode(encoding))
    return folder / "list.txt"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_list_of_photos_may_have_comments_columns_and_any_order(tmp_path: Path, encoding: str) -> None:
    lines = [
        "# queries",
        "",
        "cam0/my b.jpg PINHOLE 64 48 9 9 32 24",
        "/data/photos/a.jpg",
        "#d.jpg",
        r".\cam0\c.jpg,0.5",
        "a.jpg",
    ]
    listed = read_photo_list(write_list(tmp_path, "\r\n".join(lines), encoding), PhotoNames(NAMES, "/data/photos"))
    assert (listed.names, listed.missing) == (["#d.jpg", "a.jpg", "cam0/c.jpg", "cam0/my b.jpg"], {})


def test_listed_names_that_do_not_exist_are_told_with_their_line(tmp_path: Path) -> None:
    listed = read_photo_list(write_list(tmp_path, "file\na.jpg\n\ngone.jpg 1\n"), PhotoNames(NAMES))
    assert (listed.names, listed.missing) == (["a.jpg"], {"gone.jpg": 4})


@pytest.mark.parametrize(("text", "reason"), [("", "it is empty"), ("x\n\naa.jpg\n", r"line 3 is 'aa.jpg' \(closest: 'a.jpg'\)")])
def test_a_list_without_any_photo_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=rf"list\.txt names none of the 6 photos: {reason}"):
        read_photo_list(write_list(tmp_path, text), PhotoNames(NAMES))


def test_a_run_uses_the_listed_photos_and_skips_what_it_cannot_read(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        PILImage.effect_noise((96, 96), 80).convert("RGB").save(photos / name)
    (photos / "cut.jpg").write_bytes((photos / "a.jpg").read_bytes()[:500])
    path = write_list(tmp_path, "# mine\ncut.jpg\ngone.jpg\n./b.jpg\na.jpg\n", "utf-16")
    options = [
        "+dataset=folder",
        f"dataset.images={photos}",
        f"dataset.list={path}",
        f"output={tmp_path / 'out'}",
        "features=sift",
    ]
    run = Run.create(compose_config([*options, "features=sift"]))
    pipeline.extract(run)
    pipeline.pairs(run)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))
    assert sorted(summary["stages"]["extract"]["skipped"]) == ["cut.jpg", "gone.jpg"]
    assert summary["stages"]["extract"]["num_images"] == 2
    assert (tmp_path / "out" / "pairs.txt").read_text() == "a.jpg b.jpg"


@pytest.mark.parametrize(
    ("option", "text", "expected"),
    [
        ("dataset.list", "c.jpg\nd.jpg", r"list\.txt names none of the 2 photos: line 1 is 'c.jpg'"),
        ("pairs.path", "a.jpg b.jpg\na.jpg,c.jpg,1", r"line 2: 'c.jpg'"),
        ("pairs.path", "a.jpg b.jpg\na.jpg", r"list\.txt:2: expected two image names, found 1"),
        ("database.intrinsics", "a.jpg PINHOLE 96 96 90 90 48 48", r"1 of 2 images have no intrinsics, the first is 'b.jpg'"),
        (
            "database.intrinsics",
            "* PINHOLE 48 48 90 90 24 24",
            r"photo was resized by 2, give PINHOLE 96 96 180 180 48 48",
        ),
        ("dataset.poses", "c.jpg 1 0 0 0 1 2 3 90 90 48 48 96 96", r"has 1 names, but none is a photo of the 2: 'c.jpg'"),
        ("dataset.poses", "a.jpg 1 0 0 0 1 2 3 90 90 48 48", r"list\.txt:1: found 11 values after the name"),
    ],
)
def test_mistakes_in_files_are_told_before_features_are_extracted(tmp_path: Path, option: str, text: str, expected: str) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("a.jpg", "b.jpg"):
        PILImage.new("RGB", (96, 96)).save(photos / name)
    options = [
        "+dataset=folder",
        f"dataset.images={photos}",
        f"output={tmp_path / 'out'}",
        f"{option}={write_list(tmp_path, text)}",
    ]
    run = Run.create(compose_config([*options, *(["pairs=list"] if option == "pairs.path" else [])]))
    with pytest.raises(ValueError, match=expected):
        check_inputs(run)
    assert not (tmp_path / "out").exists()


def test_warnings_about_letter_case_are_given_once_and_as_people_write(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        assert PhotoNames(["sub/0002.jpg"]).match("once.csv", {"sub\\0002.JPG": 1}) == {"sub/0002.jpg": 1}
    assert [record.getMessage() for record in caplog.records] == [
        "once.csv: 1 name has other letter case or another Unicode form than the photos, for example 'sub\\0002.JPG' for "
        "'sub/0002.jpg'"
    ]
