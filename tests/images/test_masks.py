"""Masks: which file belongs to which photo, how a mask is turned and scaled to its photo, and what is refused."""

from __future__ import annotations

import logging
import time
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage
from PIL import ImageOps

from sfm_lightglue import api
from sfm_lightglue.images import UnreadableImage, check_masks, find_masks, list_images, load_image

SIZE = 64, 48
"""(width, height) px of the photos."""


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


def masks_of(folder: Path, names: list[str]) -> dict[str, str]:
    return {name: path.relative_to(folder).as_posix() for name, path in find_masks(folder, names).files.items()}


# --- names -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mask",
    ["cam/0000.jpg.png", "cam/0000.png", "cam/0000_mask.png", "CAM/0000.JPG.PNG", "cam/0000.tif", "cam.png", "cam/mask.png"],
)
def test_each_usual_name_of_a_mask_is_found(tmp_path: Path, mask: str) -> None:
    touch(tmp_path, mask)
    assert masks_of(tmp_path, ["cam/0000.jpg"]) == {"cam/0000.jpg": mask}


@pytest.mark.parametrize("photo_form, mask_form", [("NFC", "NFD"), ("NFD", "NFC")])
def test_an_accent_may_be_written_in_either_form_of_unicode(tmp_path: Path, photo_form: str, mask_form: str) -> None:
    photo, mask = unicodedata.normalize(photo_form, "café.jpg"), unicodedata.normalize(mask_form, "café.jpg.png")
    touch(tmp_path, mask)
    assert [*find_masks(tmp_path, [photo]).files] == [photo]


def test_a_mask_for_the_photo_comes_before_one_for_its_folder_and_this_before_one_for_all(tmp_path: Path) -> None:
    touch(tmp_path, "mask.png", "cam1.png", "cam1/a.png")
    names = ["b.jpg", "cam1/a.jpg", "cam1/b.jpg", "cam1/sub/c.jpg", "cam2/a.jpg"]
    assert masks_of(tmp_path, names) == {
        "b.jpg": "mask.png",
        "cam1/a.jpg": "cam1/a.png",
        "cam1/b.jpg": "cam1.png",
        "cam1/sub/c.jpg": "cam1.png",
        "cam2/a.jpg": "mask.png",
    }


def test_a_single_file_is_the_mask_of_all_photos(tmp_path: Path) -> None:
    mask = touch(tmp_path, "hood.png") / "hood.png"
    assert find_masks(mask, ["a.jpg", "sub/b.jpg"]).files == {"a.jpg": mask, "sub/b.jpg": mask}


@pytest.mark.parametrize("masks", [("a.jpg.png", "a.png"), ("a.png", "a.tif"), ("A.png", "a.JPG.png")])
def test_two_masks_that_fit_one_photo_are_an_error_that_names_both(tmp_path: Path, masks: tuple[str, str]) -> None:
    touch(tmp_path, *masks)
    with pytest.raises(ValueError, match=r"two masks fit the photo a\.jpg") as caught:
        find_masks(tmp_path, ["a.jpg"])
    assert all(mask in str(caught.value) for mask in masks)


def test_photos_whose_names_differ_only_in_case_have_their_own_masks(tmp_path: Path) -> None:
    touch(tmp_path, "A.jpg.png", "a.jpg.png")
    if len(list(tmp_path.iterdir())) == 1:
        pytest.skip("the file system merges the two names")
    assert masks_of(tmp_path, ["A.jpg", "a.jpg"]) == {"A.jpg": "A.jpg.png", "a.jpg": "a.jpg.png"}


def test_two_photos_with_one_stem_have_their_own_masks_or_share_one(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg.png", "a.tif.png", "b.png")
    names = ["a.jpg", "a.tif", "b.jpg", "b.tif"]
    assert masks_of(tmp_path, names) == dict(zip(names, ["a.jpg.png", "a.tif.png", "b.png", "b.png"], strict=True))


def test_the_mask_of_a_photo_is_not_the_mask_of_a_folder_with_its_name(tmp_path: Path) -> None:
    touch(tmp_path, "cam.png", "mask.png")
    assert masks_of(tmp_path, ["cam.jpg", "cam/b.jpg", "mask.jpg"]) == {"cam.jpg": "cam.png", "mask.jpg": "mask.png"}


def test_photos_without_a_mask_and_masks_without_a_photo_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = find_masks(touch(tmp_path, "a.png", "old.png"), ["a.jpg", "b.jpg"])
    with caplog.at_level(logging.INFO):
        found.log()
    assert "masks: 1 of 2 photos" in caplog.text
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 2 and "b.jpg" in warnings[0] and "old.png" in warnings[1]


def test_a_folder_whose_masks_belong_to_no_photo_is_an_error_with_the_names_it_expects(tmp_path: Path) -> None:
    touch(tmp_path, "hood.png")
    with pytest.raises(ValueError, match=r"hood\.png, expected a\.jpg\.png or a\.png .*dataset\.masks=.*hood\.png"):
        check_masks(tmp_path, ["a.jpg"], tmp_path)
    with pytest.raises(ValueError, match="contains no pictures"):
        check_masks(tmp_path, ["a.jpg"], touch(tmp_path / "empty", "readme.txt"))


def test_a_thousand_photos_and_masks_are_checked_in_seconds(tmp_path: Path) -> None:
    names = [f"{number:04}.jpg" for number in range(1000)]
    PILImage.new("RGB", SIZE).save(tmp_path / names[0])
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / name).symlink_to(tmp_path / names[0])
    start = time.process_time()
    check_masks(tmp_path / "images", names, tmp_path / "masks")
    assert time.process_time() - start < 3, "0.3 s on an idle core"


# --- pixels ----------------------------------------------------------------------------------------------------------------


def quarter(size: tuple[int, int]) -> np.ndarray:
    """uint8 (h, w): white where the picture shows its upper left quarter."""
    y, x = np.mgrid[0 : size[1], 0 : size[0]]
    return ((x < size[0] // 2) & (y < size[1] // 2)).astype(np.uint8) * 255


def write_pair(folder: Path, mask: PILImage.Image, orientation: int | None = None, size: tuple[int, int] = SIZE) -> Path:
    """Writes the photo `photos/a.jpg` and its mask; the folder of masks."""
    for name in ("photos", "masks"):
        (folder / name).mkdir(exist_ok=True)
    exif = PILImage.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    PILImage.new("RGB", size, "grey").save(folder / "photos" / "a.jpg", exif=exif)
    mask.save(folder / "masks" / "a.png")
    return folder / "masks"


def loaded(folder: Path, masks: Path) -> np.ndarray:
    check_masks(folder / "photos", ["a.jpg"], masks)
    mask = load_image(folder / "photos", "a.jpg", masks=masks).mask
    assert mask is not None and mask.dtype == np.bool_
    return mask


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_a_mask_of_the_upright_picture_is_turned_to_the_stored_photo(tmp_path: Path, orientation: int) -> None:
    upright = SIZE[1], SIZE[0]
    masks = write_pair(tmp_path, PILImage.fromarray(quarter(upright)), orientation)
    # What every viewer shows: the stored picture turned by its EXIF.
    stored = PILImage.fromarray(loaded(tmp_path, masks).astype(np.uint8) * 255)
    stored.getexif()[0x0112] = orientation
    np.testing.assert_array_equal(np.asarray(ImageOps.exif_transpose(stored)), quarter(upright))


@pytest.mark.parametrize("orientation", [None, 1, 3, 6, 8])
def test_a_mask_of_the_stored_shape_is_never_turned(tmp_path: Path, orientation: int | None) -> None:
    masks = write_pair(tmp_path, PILImage.fromarray(quarter(SIZE)), orientation)
    np.testing.assert_array_equal(loaded(tmp_path, masks), quarter(SIZE) > 0)


@pytest.mark.parametrize("orientation", [None, 1, 3])
def test_a_mask_in_the_other_orientation_is_refused_if_exif_does_not_explain_it(tmp_path: Path, orientation: int | None) -> None:
    masks = write_pair(tmp_path, PILImage.fromarray(quarter((SIZE[1], SIZE[0]))), orientation)
    with pytest.raises(ValueError, match=r"a\.png .*photo a\.jpg: .*48 x 64 px, the photo has 64 x 48 px.*EXIF"):
        check_masks(tmp_path / "photos", ["a.jpg"], masks)
    with pytest.raises(UnreadableImage, match="48 x 64"):
        load_image(tmp_path / "photos", "a.jpg", masks=masks)


@pytest.mark.parametrize("size, mask_size", [((64, 48), (32, 24)), ((64, 48), (192, 144)), ((1001, 751), (250, 188))])
def test_a_mask_of_another_scale_is_resized(tmp_path: Path, size: tuple[int, int], mask_size: tuple[int, int]) -> None:
    masks = write_pair(tmp_path, PILImage.fromarray(quarter(mask_size)), size=size)
    mask = loaded(tmp_path, masks)
    assert mask.shape == size[::-1]
    assert mask.mean() == pytest.approx(0.25, abs=0.01) and mask[: size[1] // 3, : size[0] // 3].all()


@pytest.mark.parametrize("mask_size", [(64, 64), (64, 36), (60, 48), (640, 360)])
def test_a_mask_of_another_shape_is_refused(tmp_path: Path, mask_size: tuple[int, int]) -> None:
    masks = write_pair(tmp_path, PILImage.fromarray(quarter(mask_size)))
    with pytest.raises(ValueError, match=f"{mask_size[0]} x {mask_size[1]} px"):
        check_masks(tmp_path / "photos", ["a.jpg"], masks)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("colour", [0, 255])
def test_a_mask_may_be_held_in_the_alpha_channel(tmp_path: Path, mode: str, colour: int) -> None:
    channels = [PILImage.new("L", SIZE, colour)] * (3 if mode == "RGBA" else 1) + [PILImage.fromarray(quarter(SIZE))]
    masks = write_pair(tmp_path, PILImage.merge(mode, channels))
    np.testing.assert_array_equal(loaded(tmp_path, masks), quarter(SIZE) > 0)


def test_an_alpha_channel_that_is_the_same_everywhere_is_no_mask(tmp_path: Path) -> None:
    picture = PILImage.merge("LA", [PILImage.fromarray(quarter(SIZE)), PILImage.new("L", SIZE, 255)])
    np.testing.assert_array_equal(loaded(tmp_path, write_pair(tmp_path, picture)), quarter(SIZE) > 0)
    picture.save(tmp_path / "photo.png")
    assert load_image(tmp_path, "photo.png").mask is None


def test_transparent_parts_of_a_photo_are_masked_out_together_with_its_mask(tmp_path: Path) -> None:
    left = (np.arange(SIZE[0])[None].repeat(SIZE[1], 0) < 32).astype(np.uint8) * 255
    PILImage.merge("LA", [PILImage.new("L", SIZE, 9), PILImage.fromarray(left)]).save(tmp_path / "a.png")
    np.testing.assert_array_equal(load_image(tmp_path, "a.png").mask, left > 0)
    assert load_image(tmp_path, "a.png", use_alpha=False).mask is None
    PILImage.fromarray(left.T[: SIZE[1], : SIZE[0]].repeat(1, 0)).resize(SIZE).save(tmp_path / "mask.png")
    top = np.asarray(PILImage.open(tmp_path / "mask.png")) > 0
    np.testing.assert_array_equal(load_image(tmp_path, "a.png", masks=tmp_path / "mask.png").mask, (left > 0) & top)


def test_transparent_parts_of_an_opened_picture_are_masked_out(tmp_path: Path) -> None:
    picture = PILImage.merge("LA", [PILImage.new("L", SIZE, 9), PILImage.fromarray(quarter(SIZE))])
    picture.save(tmp_path / "a.png")
    for source in (picture, tmp_path / "a.png"):
        np.testing.assert_array_equal(api.load_image(source).mask, quarter(SIZE) > 0)
    assert api.load_image(picture.convert("L")).mask is None


def test_a_mask_for_all_photos_that_cannot_be_read_is_an_error_before_the_work(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        PILImage.new("RGB", SIZE).save(tmp_path / name)
    (tmp_path / "mask.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"mask\.png of 2 photos cannot be used"):
        check_masks(tmp_path, ["a.jpg", "b.jpg"], tmp_path / "mask.png")


# --- masks in the photo folder ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "cam1/"])
def test_masks_beside_their_photos_are_masks_and_no_photos(tmp_path: Path, prefix: str, caplog: pytest.LogCaptureFixture) -> None:
    files = ["0000.jpg", "0000.png", "0001.jpg", "0001_mask.png", "0002.JPG", "0002.JPG.png", "0003.jpg", "whole.png"]
    touch(tmp_path, "other/0009.jpg", *(prefix + file for file in files))
    masks = tmp_path / prefix
    with caplog.at_level(logging.INFO):
        names = list_images(tmp_path, masks=masks)
        assert list_images(tmp_path, masks=masks) == names
    photos = ["0000.jpg", "0001.jpg", "0002.JPG", "0003.jpg", "whole.png"]
    assert names == sorted(["other/0009.jpg", *(prefix + name for name in photos)])
    found = find_masks(masks, names, tmp_path)
    assert {name.removeprefix(prefix): path.name for name, path in found.files.items()} == {
        "0000.jpg": "0000.png",
        "0001.jpg": "0001_mask.png",
        "0002.JPG": "0002.JPG.png",
    }
    assert found.unused == ()
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 1 and "3 pictures are masks" in told[0] and "0000.png" in told[0]


def test_a_mask_of_all_photos_or_of_a_folder_beside_them_is_no_photo(tmp_path: Path) -> None:
    touch(tmp_path, "mask.png", "a.jpg", "cam1.png", "cam1/b.jpg")
    names = list_images(tmp_path, masks=tmp_path)
    assert names == ["a.jpg", "cam1/b.jpg"]
    found = find_masks(tmp_path, names, tmp_path).files
    assert {name: path.name for name, path in found.items()} == {"a.jpg": "mask.png", "cam1/b.jpg": "cam1.png"}


def test_a_folder_of_masks_without_photos_is_left_out_whole(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.jpg", "drawn/a.png", "drawn/b.png", "drawn/old.jpg")
    assert list_images(tmp_path, masks=tmp_path / "drawn") == ["a.jpg", "b.jpg"]
    assert list_images(tmp_path, masks=tmp_path / "drawn" / "a.png") == ["a.jpg", "b.jpg", "drawn/b.png", "drawn/old.jpg"]


@pytest.mark.parametrize(
    "code, is_square, warns", [(3, False, True), (2, False, True), (6, True, True), (6, False, False), (1, False, False)]
)
def test_a_mask_that_fits_the_stored_and_the_upright_photo_gets_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, code: int, is_square: bool, warns: bool
) -> None:
    size = (48, 48) if is_square else SIZE
    for name in ("a", "b"):
        exif = PILImage.Exif()
        exif[0x0112] = code
        PILImage.new("RGB", size).save(tmp_path / f"{name}.jpg", exif=exif)
        PILImage.new("L", size).save(tmp_path / f"{name}.jpg.png")
    for _ in range(2):  # once before the run, once in it
        check_masks(tmp_path, ["a.jpg", "b.jpg"], tmp_path)
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == warns
    assert not warns or ("2 photos" in warnings[0] and "a.jpg, b.jpg" in warnings[0] and "stored photo" in warnings[0])


def test_masks_of_photos_that_are_not_listed_are_not_unused(tmp_path: Path) -> None:
    touch(tmp_path, "photos/a.jpg", "photos/b.jpg", "masks/a.png", "masks/b.jpg.png", "masks/old.png")
    assert find_masks(tmp_path / "masks", ["a.jpg"], tmp_path / "photos").unused == ("old.png",)
