"""Which files are photos: links, thumbnails, earlier outputs, masks beside photos, videos, and names that look alike."""

from __future__ import annotations

import json
import logging
import os
import unicodedata
from pathlib import Path

import pytest

from sfm_lightglue.images import find_masks, list_images, similar_name, warn_of_spaces


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


# --- folders that hold no photos -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "folder", ["@eaDir", "#recycle", "$RECYCLE.BIN", "__MACOSX", "thumbs", "Thumbnails", ".thumbnails", "sub/@eaDir/IMG_1.JPG"]
)
def test_thumbnails_and_deleted_files_are_left_out_and_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, folder: str
) -> None:
    touch(tmp_path, "a.jpg", f"{folder}/SYNOPHOTO_THUMB_XL.jpg")
    with caplog.at_level(logging.INFO):
        assert list_images(tmp_path) == list_images(tmp_path) == ["a.jpg"]
    assert caplog.text.count("is left out") == 1


def test_hidden_folders_are_told_only_if_they_hold_pictures(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "a.jpg", ".git/objects/ab/cd", ".cache/deep/b.jpg")
    with caplog.at_level(logging.INFO):
        assert list_images(tmp_path) == ["a.jpg"]
    assert ".git" not in caplog.text and ".cache is left out: it is hidden" in caplog.text


def test_outputs_of_earlier_runs_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "a.jpg", "out/plots/matches.png", "out/reconstruction/0/points.ply", "trip/plots/b.jpg", "c/d.jpg")
    (tmp_path / "out" / "summary.json").write_text(json.dumps({"stages": {"extract": {}}}))
    (tmp_path / "trip" / "summary.json").write_text(json.dumps({"title": "not ours"}))
    (tmp_path / "c" / "summary.json").write_text("{ damaged")
    with caplog.at_level(logging.INFO):
        assert list_images(tmp_path) == ["a.jpg", "c/d.jpg", "trip/plots/b.jpg"]
    assert "out is left out: it is the output of a run" in caplog.text


@pytest.mark.parametrize("summary", ['{\n "stages": {\n  "extract": {"num_im', '{"stages": {}} x', "", None])
def test_outputs_are_left_out_also_if_their_summary_is_damaged(tmp_path: Path, summary: str | None) -> None:
    touch(tmp_path, "a.jpg", "b/c.jpg", "out/plots/matches.png", "b/database.db")  # one file may be of another program
    if summary is not None:
        (tmp_path / "out" / "summary.json").write_text(summary)
    if not summary:
        touch(tmp_path, "out/features.h5", "out/reconstruction/settings.json")
    assert list_images(tmp_path) == ["a.jpg", "b/c.jpg"]


def test_plots_of_a_run_that_wrote_into_the_photo_folder_are_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "plots/matches.png")
    assert list_images(tmp_path) == ["a.jpg", "plots/matches.png"]
    (tmp_path / "summary.json").write_text(json.dumps({"stages": {}}))
    assert list_images(tmp_path) == ["a.jpg"]


def test_undistorted_copies_of_a_dense_reconstruction_are_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "images/a.jpg", "dense/images/a.jpg", "dense/stereo/patch-match.cfg")
    assert list_images(tmp_path) == ["images/a.jpg"]


def test_a_folder_that_cannot_be_read_is_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "a.jpg", "locked/b.jpg")
    scan = os.scandir

    def refuse(path: Path) -> object:
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert list_images(tmp_path) == ["a.jpg"]
    assert "Permission denied" in caplog.text


# --- masks beside photos ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", ["masks/0000.png", "masks/0000.jpg.png", "Mask/0000_mask.png", "masks/mask.png"])
def test_masks_beside_the_photos_are_no_photos(tmp_path: Path, caplog: pytest.LogCaptureFixture, mask: str) -> None:
    touch(tmp_path, "images/0000.jpg", "images/0001.jpg", mask)
    assert list_images(tmp_path) == ["images/0000.jpg", "images/0001.jpg"]
    assert f"dataset.masks={tmp_path / Path(mask).parent}" in caplog.text


def test_the_masks_that_the_message_names_are_found(tmp_path: Path) -> None:
    touch(tmp_path, "images/cam/0000.jpg", "images/0001.jpg", "masks/cam/0000.png", "masks/0001.jpg.png")
    names = list_images(tmp_path)
    assert find_masks(tmp_path / "masks", names).files == {
        "images/0001.jpg": tmp_path / "masks/0001.jpg.png",
        "images/cam/0000.jpg": tmp_path / "masks/cam/0000.png",
    }


def test_masks_in_the_folder_of_the_photos_are_no_photos(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "a.jpg", "a.jpg.png", "b.png", "c.jpg", "c.jpg.PNG")
    names = list_images(tmp_path)
    assert names == ["a.jpg", "b.png", "c.jpg"] and f"dataset.masks={tmp_path}" in caplog.text
    found = find_masks(tmp_path, ["a.jpg", "c.jpg"])
    assert found.files == {"a.jpg": tmp_path / "a.jpg.png", "c.jpg": tmp_path / "c.jpg.PNG"}


def test_photos_in_a_folder_called_masks_are_photos_if_their_names_say_so(tmp_path: Path) -> None:
    touch(tmp_path, "venice/boats/1.jpg", "venice/masks/2.jpg", "venice/masks/3.jpg")
    assert list_images(tmp_path) == ["venice/boats/1.jpg", "venice/masks/2.jpg", "venice/masks/3.jpg"]
    assert list_images(tmp_path / "venice" / "masks") == ["2.jpg", "3.jpg"]


# --- links -----------------------------------------------------------------------------------------------------------------


def test_linked_folders_are_followed_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "photos/a.jpg", "photos/real/b.jpg", "elsewhere/c.jpg", "elsewhere/deep/d.jpg")
    for name, target in {"again": "photos/real", "link": "elsewhere", "more": "elsewhere", "part": "elsewhere/deep"}.items():
        (tmp_path / "photos" / name).symlink_to(tmp_path / target)
    assert list_images(tmp_path / "photos") == ["a.jpg", "link/c.jpg", "link/deep/d.jpg", "real/b.jpg"]
    for name in ("again", "more", "part"):
        assert f"{tmp_path / 'photos' / name} is left out" in caplog.text


def test_links_in_a_loop_are_refused_with_a_message(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "photos/a.jpg", "photos/sub/b.jpg", "elsewhere/c.jpg")
    (tmp_path / "photos" / "sub" / "up").symlink_to(tmp_path / "photos")
    (tmp_path / "photos" / "top").symlink_to(tmp_path)
    (tmp_path / "photos" / "other").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "self").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "photos" / "gone.jpg").symlink_to(tmp_path / "nothing.jpg")
    assert list_images(tmp_path / "photos") == ["a.jpg", "other/c.jpg", "sub/b.jpg"]
    assert caplog.text.count("which contains it") == 3
    assert "gone.jpg is left out: the file that it links to does not exist" in caplog.text


def test_links_to_themselves_and_to_each_other_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "a.jpg", "odd/b.jpg")
    for link, target in {"odd/loop": "loop", "odd/c.jpg": "c.jpg", "ping": "pong", "pong": "ping"}.items():
        (tmp_path / link).symlink_to(target)
    assert list_images(tmp_path) == ["a.jpg", "odd/b.jpg"]
    for link in ("odd/loop", "odd/c.jpg", "ping", "pong"):
        assert f"{tmp_path / link} is left out: it cannot be read" in caplog.text


def test_a_link_to_a_folder_that_is_left_out_is_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "photos/a.jpg", "out/plots/b.png")
    (tmp_path / "photos" / "results").symlink_to(tmp_path / "out")
    assert list_images(tmp_path / "photos", without=[tmp_path / "out"]) == ["a.jpg"]


# --- videos ----------------------------------------------------------------------------------------------------------------


def test_a_video_gets_an_answer_that_says_how_to_make_photos(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "clip.MP4", "sub/b.mov", "notes.txt")
    for path in (tmp_path, tmp_path / "clip.MP4"):
        with pytest.raises(FileNotFoundError, match=r"python -m sfm_lightglue frames .*clip\.MP4 FOLDER"):
            list_images(path)
    touch(tmp_path, "a.jpg")
    with caplog.at_level(logging.INFO):
        assert list_images(tmp_path) == ["a.jpg"]
    assert "videos" in caplog.text and "1 .mp4, 1 .mov" in caplog.text


def test_raw_files_beside_photos_are_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "a.jpg", "a.CR2", "b.dng")
    with caplog.at_level(logging.INFO):
        assert list_images(tmp_path) == list_images(tmp_path) == ["a.jpg"]
    assert [record.getMessage().count("1 .cr2, 1 .dng") for record in caplog.records] == [1]


def test_a_photo_instead_of_a_folder_and_a_folder_of_raw_files_are_told(tmp_path: Path) -> None:
    touch(tmp_path, "photos/a.jpg", "raw/a.nef", "raw/b.NEF")
    with pytest.raises(FileNotFoundError, match="is a file, not a folder of photos"):
        list_images(tmp_path / "photos" / "a.jpg")
    with pytest.raises(FileNotFoundError, match=r"contains no photos, but raw files \(2 \.nef\): convert them"):
        list_images(tmp_path / "raw")


# --- names that look alike -------------------------------------------------------------------------------------------------


NFC, NFD = (unicodedata.normalize(form, "café.jpg") for form in ("NFC", "NFD"))


@pytest.mark.parametrize("names, message", [(("A.jpg", "a.jpg"), "upper and lower case"), ((NFC, NFD), "caf\\xe9.jpg")])
def test_names_that_look_alike_are_used_both_and_told_apart(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, names: tuple[str, str], message: str
) -> None:
    touch(tmp_path, *names)
    if len(list(tmp_path.iterdir())) == 1:
        pytest.skip("the file system merges the two names")
    assert list_images(tmp_path) == sorted(names)
    assert message in caplog.text and caplog.text.count("look alike") + caplog.text.count("only in upper") == 1


def test_a_missing_name_is_explained_by_a_similar_one(tmp_path: Path) -> None:
    assert similar_name("b.jpg", ["a.jpg", "b.jpg"]) == ""
    assert "upper and lower case" in similar_name("IMG.JPG", ["a.jpg", "img.jpg"])
    assert "NFC: caf\\xe9.jpg" in similar_name(NFC, [NFD]) and "NFD: cafe\\u0301.jpg" in similar_name(NFC, [NFD])
    touch(tmp_path, "Fotos/a.jpg")
    if not (tmp_path / "fotos").exists():
        with pytest.raises(FileNotFoundError, match=r"does not exist.*Fotos differ only in upper and lower case"):
            list_images(tmp_path / "fotos")


def test_names_with_spaces_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    names = ["a.jpg", "im age 73.jpg"]
    warn_of_spaces(names)
    warn_of_spaces(names)
    warn_of_spaces(["a.jpg"])
    assert caplog.text.count("images.txt") == 1 and "im age 73.jpg" in caplog.text
