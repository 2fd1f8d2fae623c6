"""Situations of photos: orientation, masks, formats, folders."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import PIL.EpsImagePlugin
import pytest
from known_scene import COLOR
from PIL import Image as PILImage
from situations.bench import (
    SIFT,
    SIZE,
    SUPERPOINT,
    command,
    demo_photo,
    exif,
    extract,
    keypoints,
    models,
    num_registered,
    photo_names,
    run_scene,
    save_photos,
    save_scene,
)

from sfm_lightglue import list_images, load_image

# --- orientation -----------------------------------------------------------------------------------------------------------


def _save_turned(tagged: bool) -> None:
    Path("photos").mkdir()
    for index in range(5):
        is_turned = index % 2 == 1
        photo = demo_photo(index).transpose(PILImage.Transpose.ROTATE_90) if is_turned else demo_photo(index)
        tags = {"exif": exif(6 if is_turned else 1)} if tagged else {}
        photo.save(f"photos/{index:02d}.jpg", quality=95, **tags)


def turned_with_tags() -> None:
    _save_turned(tagged=True)
    assert command("run", "+dataset=folder", "dataset.images=photos", "output=out", *SUPERPOINT).works()
    assert num_registered() == 5


def turned_without_tags() -> None:
    _save_turned(tagged=False)
    assert command("run", "+dataset=folder", "dataset.images=photos", "output=out", *SUPERPOINT).works()
    assert num_registered() == 5


def coordinates_of_a_turned_photo() -> None:
    Path("photos").mkdir()
    demo_photo(0).save("photos/upright.png")
    demo_photo(0).transpose(PILImage.Transpose.ROTATE_90).save("photos/turned.png", exif=exif(6))
    assert extract().works()
    upright = keypoints("upright.png")
    stored = np.column_stack([upright[:, 1], SIZE[0] - 1 - upright[:, 0]])  # a quarter turn to the left, pixel centres
    np.testing.assert_allclose(keypoints("turned.png"), stored, atol=1e-3)


def orientation_switched_off() -> None:
    Path("photos").mkdir()
    demo_photo(0).save("photos/upright.png")
    demo_photo(0).save("photos/tagged.png", exif=exif(6))
    assert extract("features.orientation=stored").works()
    np.testing.assert_array_equal(keypoints("tagged.png"), keypoints("upright.png"))


# --- masks -----------------------------------------------------------------------------------------------------------------


def _left_is_black(size: tuple[int, int] = SIZE) -> PILImage.Image:
    mask = PILImage.new("L", size, 255)
    mask.paste(0, (0, 0, size[0] // 2, size[1]))
    return mask


def _mask_applies(mask: str, photo: str = "00.jpg", masks: str = "masks") -> None:
    """Checks that a mask with this name leaves no keypoint in the left half of the photo."""
    save_photos(names=[photo])
    path = Path(mask)
    path.parent.mkdir(parents=True, exist_ok=True)
    _left_is_black().save(path, format="PNG")
    assert extract(f"dataset.masks={masks}").works("masks: 1 of 1 photos")
    found = keypoints(photo)
    assert len(found) > 20 and found[:, 0].min() >= SIZE[0] / 2 - 1


def mask_with_colmaps_name() -> None:
    _mask_applies("masks/00.jpg.png")


def mask_with_the_stem() -> None:
    _mask_applies("masks/00.png")


def mask_in_another_case() -> None:
    _mask_applies("masks/00.JPG.PNG")


def mask_in_another_unicode_form() -> None:
    _mask_applies(unicodedata.normalize("NFD", "masks/Müller.png"), unicodedata.normalize("NFC", "Müller.jpg"))


def one_mask_for_all() -> None:
    _mask_applies("car.png", masks="car.png")


def one_mask_per_folder() -> None:
    _mask_applies("masks/cam1/mask.png", "cam1/00.jpg")


def mask_in_the_alpha_channel() -> None:
    save_photos(names=["00.jpg"])
    Path("masks").mkdir()
    mask = PILImage.new("RGBA", SIZE, (0, 0, 0, 255))
    mask.putalpha(_left_is_black())
    mask.save("masks/00.png")
    assert extract("dataset.masks=masks").works("masks: 1 of 1 photos")
    assert len(keypoints("00.jpg")) > 20 and keypoints("00.jpg")[:, 0].min() >= SIZE[0] / 2 - 1


def transparent_parts() -> None:
    Path("photos").mkdir()
    photo = demo_photo(0).convert("RGBA")
    photo.putalpha(_left_is_black())
    photo.save("photos/00.png")
    assert extract().works()
    assert len(keypoints("00.png")) > 20 and keypoints("00.png")[:, 0].min() >= SIZE[0] / 2 - 1


def mask_in_the_other_orientation() -> None:
    Path("photos").mkdir()
    Path("masks").mkdir()
    demo_photo(0).transpose(PILImage.Transpose.ROTATE_90).save("photos/00.jpg", quality=95, exif=exif(6))
    _left_is_black().save("masks/00.png")
    assert extract("dataset.masks=masks").works("masks: 1 of 1 photos")
    assert len(keypoints("00.jpg")) > 20 and keypoints("00.jpg")[:, 1].max() <= SIZE[0] / 2 + 1


def mask_of_another_shape() -> None:
    save_photos(names=["00.jpg"])
    Path("masks").mkdir()
    _left_is_black((SIZE[0], SIZE[0])).save("masks/00.png")
    assert extract("dataset.masks=masks").refuses("masks", "00.jpg", "320")
    assert not Path("out/features.h5").exists()


def photos_without_a_mask() -> None:
    save_photos()
    Path("masks").mkdir()
    _left_is_black().save("masks/00.png")
    assert extract("dataset.masks=masks").works("masks: 1 of 3 photos")


# --- formats ---------------------------------------------------------------------------------------------------------------


def points_of_webp_photos_have_colours() -> None:
    save_scene(names=[f"{index:02d}.webp" for index in range(5)])
    assert run_scene().works()
    colours = [point.color for point in models()[0].points3D.values()]
    assert len(colours) > 50 and np.abs(np.median(colours, axis=0) - COLOR).max() <= 4


def thermal_photo() -> None:
    grey = np.asarray(demo_photo(0).convert("L"), np.float64)
    PILImage.fromarray((29000 + grey / 255 * 600).astype(np.uint16)).save("thermal.png")
    assert len(np.unique(load_image("thermal.png").pixels)) > 100


def eps_named_jpg(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []
    monkeypatch.setattr(PIL.EpsImagePlugin, "Ghostscript", lambda *_, **__: started.append("interpreter") or demo_photo(0).im)
    save_photos(names=["00.jpg"])
    head = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 320 240\n%%EndComments\n0 0 moveto\nshowpage\n%%EOF\n"
    Path("photos/holiday.jpg").write_text(head)
    assert extract().works("holiday.jpg")
    assert not started and photo_names() == ["00.jpg"]


def photo_of_200_megapixels() -> None:
    Path("photos").mkdir()
    demo_photo(0).convert("L").resize((16000, 12600), PILImage.Resampling.NEAREST).save("photos/00.jpg", quality=60)
    assert extract().works()
    found = keypoints("00.jpg")
    assert len(found) > 50 and found[:, 0].max() > 8000


# --- folders ---------------------------------------------------------------------------------------------------------------


def folders_that_hold_no_photos() -> None:
    others = ("@eaDir/00.jpg/SYNOPHOTO_THUMB_M.jpg", "#recycle/old.jpg", "masks/00.jpg.png")
    save_photos(names=["images/00.jpg", *others])
    assert list_images("photos") == ["images/00.jpg"]


def earlier_output_among_the_photos() -> None:
    save_photos(names=["00.jpg", "01.jpg"])
    assert command("extract", "+dataset=folder", "dataset.images=photos", "output=photos/first", *SIFT).works()
    demo_photo(3).save("photos/first/picture.png")
    assert extract().works()
    assert photo_names() == ["00.jpg", "01.jpg"]


def linked_folders() -> None:
    save_photos(names=["00.jpg"])
    save_photos("elsewhere", ["01.jpg"])
    Path("photos/linked").symlink_to(Path("elsewhere").resolve())
    Path("photos/loop").symlink_to(Path("photos").resolve())
    assert list_images("photos") == ["00.jpg", "linked/01.jpg"]
