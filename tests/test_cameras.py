"""Cameras: which photos share one, and their intrinsics."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import pycolmap
import pytest
from PIL import ExifTags
from PIL import Image as PILImage
from spheres import write_panorama

from sfm_lightglue.cameras import MODELS, Camera, CameraAssignment, check_intrinsics, choose_cameras
from sfm_lightglue.intrinsics import read_intrinsics

SIZE = (64, 48)


def write_photo(
    folder: Path, name: str, size: tuple[int, int] = SIZE, *, model: str | None = None, focal_35mm: int | None = None
) -> None:
    """Writes a grey photo, with the camera model and the 35 mm equivalent focal length in EXIF if given."""
    exif = PILImage.Exif()
    if model is not None:
        exif[ExifTags.Base.Make], exif[ExifTags.Base.Model] = "Maker", model
    if focal_35mm is not None:
        exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.FocalLengthIn35mmFilm] = focal_35mm
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    PILImage.new("RGB", size, "grey").save(folder / name, exif=exif)


def choose(
    folder: Path,
    intrinsics: str,
    sizes: Mapping[str, tuple[int, int]] | None = None,
    *,
    camera_model: str = "SIMPLE_RADIAL",
    known: Mapping[str, Camera] | None = None,
) -> tuple[dict[str, Camera], dict[str, int]]:
    """Camera and camera id of each photo. By default `sizes` are the sizes of the files in `folder`."""
    if sizes is None:
        paths = sorted(path for path in folder.rglob("*.jpg"))
        sizes = {path.relative_to(folder).as_posix(): PILImage.open(path).size for path in paths}
    assignment = choose_cameras(folder, sizes, intrinsics, camera_model, known or {})
    return dict(assignment.cameras), assignment.camera_ids(sorted(sizes))


# --- estimated intrinsics -------------------------------------------------------------------------------------------------


def test_photos_of_one_exif_camera_share_it(tmp_path: Path) -> None:
    write_photo(tmp_path, "a.jpg", model="X", focal_35mm=30)
    write_photo(tmp_path, "b.jpg", model="X", focal_35mm=30)
    write_photo(tmp_path, "c.jpg", model="Y", focal_35mm=30)
    _, numbers = choose(tmp_path, "exif")
    assert numbers == {"a.jpg": 1, "b.jpg": 1, "c.jpg": 2}


def test_a_zoomed_photo_has_a_camera_of_its_own(tmp_path: Path) -> None:
    write_photo(tmp_path, "a.jpg", model="X", focal_35mm=30)
    write_photo(tmp_path, "b.jpg", model="X", focal_35mm=60)
    _, numbers = choose(tmp_path, "exif")
    assert numbers["a.jpg"] != numbers["b.jpg"]


def test_photos_without_a_focal_length_have_a_camera_each(tmp_path: Path) -> None:
    for name in ("scan 1.jpg", "scan 2.jpg"):
        write_photo(tmp_path, name, model="Scanner")
    for name in ("unknown lens 1.jpg", "unknown lens 2.jpg"):
        write_photo(tmp_path, name, model="X", focal_35mm=0)
    _, numbers = choose(tmp_path, "exif")
    assert sorted(numbers.values()) == [1, 2, 3, 4]


def test_photos_of_different_sizes_have_different_cameras_in_every_mode(tmp_path: Path) -> None:
    write_photo(tmp_path, "a.jpg", model="X", focal_35mm=30)
    write_photo(tmp_path, "b.jpg", (48, 64), model="X", focal_35mm=30)
    for sharing in ("auto", "exif", "single", "per_folder", "per_image"):
        cameras, numbers = choose(tmp_path, sharing)
        assert numbers == {"a.jpg": 1, "b.jpg": 2}
        assert cameras["b.jpg"].size == (48, 64)


def test_photos_without_exif_have_a_camera_each(tmp_path: Path) -> None:
    write_photo(tmp_path, "a.jpg")
    write_photo(tmp_path, "b.jpg")
    _, numbers = choose(tmp_path, "exif")
    assert numbers == {"a.jpg": 1, "b.jpg": 2}


def groups(folder: Path) -> list[set[str]]:
    """Names of the photos of each camera for `auto`."""
    _, numbers = choose(folder, "auto")
    return [{name for name in numbers if numbers[name] == number} for number in sorted({*numbers.values()})]


def test_auto_shares_a_camera_without_make_and_model_by_the_focal_length(tmp_path: Path) -> None:
    write_photo(tmp_path, "a.jpg", focal_35mm=30)
    write_photo(tmp_path, "b.jpg", focal_35mm=30)
    write_photo(tmp_path, "c.jpg", focal_35mm=60)
    write_photo(tmp_path, "d.jpg", (96, 72), focal_35mm=30)
    assert groups(tmp_path) == [{"a.jpg", "b.jpg"}, {"c.jpg"}, {"d.jpg"}]
    cameras, _ = choose(tmp_path, "auto")
    assert cameras["d.jpg"].params[0] == pytest.approx(1.5 * cameras["a.jpg"].params[0]), "a resized photo"


def test_auto_shares_a_camera_without_exif_if_sizes_are_equal(tmp_path: Path) -> None:
    write_photo(tmp_path, "known.jpg", model="X", focal_35mm=30)
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        write_photo(tmp_path, name)
    write_photo(tmp_path, "turned.jpg", SIZE[::-1])
    assert groups(tmp_path) == [{"a.jpg", "b.jpg", "c.jpg"}, {"known.jpg"}, {"turned.jpg"}]


def test_auto_shares_no_camera_among_photos_of_many_sizes(tmp_path: Path) -> None:
    """Photos of many people: two of seven have the same size by chance."""
    for index, width in enumerate((60, 61, 62, 63, 64, 65, 65)):
        write_photo(tmp_path, f"{index}.jpg", (width, 48))
    assert len(groups(tmp_path)) == 7


def test_auto_has_a_camera_for_each_folder_if_folders_are_large(tmp_path: Path) -> None:
    for index in range(10):
        write_photo(tmp_path, f"left/{index}.jpg")
        write_photo(tmp_path, f"right/{index}.jpg")
    assert [len(group) for group in groups(tmp_path)] == [10, 10]
    (tmp_path / "left" / "0.jpg").unlink()
    assert [len(group) for group in groups(tmp_path)] == [19]


def test_single_is_one_camera_for_all(tmp_path: Path) -> None:
    write_photo(tmp_path, "a.jpg", model="X", focal_35mm=30)
    write_photo(tmp_path, "folder/b.jpg", model="Y", focal_35mm=60)
    _, numbers = choose(tmp_path, "single")
    assert numbers == {"a.jpg": 1, "folder/b.jpg": 1}


def test_per_folder_is_one_camera_for_each_folder(tmp_path: Path) -> None:
    for name in ("a.jpg", "left/a.jpg", "left/b.jpg", "left/deep/a.jpg", "right/a.jpg"):
        write_photo(tmp_path, name)
    _, numbers = choose(tmp_path, "per_folder")
    assert numbers == {"a.jpg": 1, "left/a.jpg": 2, "left/b.jpg": 2, "left/deep/a.jpg": 3, "right/a.jpg": 4}


def test_per_image_never_shares(tmp_path: Path) -> None:
    write_photo(tmp_path, "a.jpg", model="X", focal_35mm=30)
    write_photo(tmp_path, "b.jpg", model="X", focal_35mm=30)
    _, numbers = choose(tmp_path, "per_image")
    assert numbers == {"a.jpg": 1, "b.jpg": 2}


def test_a_guessed_focal_length_is_1_2_times_the_longest_side_and_no_prior(tmp_path: Path) -> None:
    write_photo(tmp_path, "a.jpg", (48, 64))
    cameras, _ = choose(tmp_path, "exif")
    assert cameras["a.jpg"] == Camera("SIMPLE_RADIAL", (48, 64), (1.2 * 64, 24.0, 32.0, 0.0), False)


def test_the_focal_length_of_exif_is_a_prior(tmp_path: Path) -> None:
    write_photo(tmp_path, "a.jpg", model="X", focal_35mm=30)
    cameras, _ = choose(tmp_path, "exif", camera_model="PINHOLE")
    focal = 30 * math.hypot(*SIZE) / math.hypot(36, 24)  # a frame of 35 mm film has 36 x 24 mm
    assert cameras["a.jpg"].params == pytest.approx((focal, focal, 32, 24), rel=1e-4)
    assert cameras["a.jpg"].has_prior_focal_length


def test_a_group_gets_the_focal_length_of_its_first_photo_that_has_one(tmp_path: Path) -> None:
    write_photo(tmp_path, "a.jpg")
    write_photo(tmp_path, "b.jpg", focal_35mm=30)
    cameras, _ = choose(tmp_path, "single")
    assert cameras["a.jpg"] == cameras["b.jpg"]
    assert cameras["a.jpg"].has_prior_focal_length


@pytest.mark.parametrize("model", MODELS)
def test_every_camera_model_can_be_estimated(tmp_path: Path, model: str) -> None:
    write_photo(tmp_path, "a.jpg", (64, 32), focal_35mm=30)
    cameras, _ = choose(tmp_path, "exif", camera_model=model)
    assert cameras["a.jpg"].model == model and cameras["a.jpg"].to_colmap().verify_params()


def test_a_fisheye_lens_without_focal_length_starts_with_180_degrees(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_photo(tmp_path, "a.jpg")
    write_photo(tmp_path, "b.jpg", focal_35mm=30)
    cameras, _ = choose(tmp_path, "exif", camera_model="OPENCV_FISHEYE")
    assert cameras["a.jpg"].params[:4] == pytest.approx((80 / math.pi, 80 / math.pi, 32, 24))  # the diagonal is 80 px
    assert cameras["a.jpg"].has_prior_focal_length, "COLMAP verifies no pair without it"
    assert cameras["b.jpg"].params[0] == pytest.approx(30 / math.hypot(36, 24) * 80)
    assert "1 of 2 photos, such as 'a.jpg'" in caplog.text and "OPENCV_FISHEYE:fx:fy:cx:cy:k1:k2:k3:k4" in caplog.text


def test_panoramas_get_the_camera_model_of_the_whole_sphere(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    for name in ("a.jpg", "b.jpg"):
        write_panorama(tmp_path / name, 256)
    write_photo(tmp_path, "c.jpg")
    cameras, numbers = choose(tmp_path, "auto", camera_model="auto")
    assert cameras["a.jpg"] == Camera("EQUIRECTANGULAR", (256, 128), (256, 128), True)
    assert cameras["c.jpg"].model == "SIMPLE_RADIAL"
    assert numbers == {"a.jpg": 1, "b.jpg": 1, "c.jpg": 2}
    assert "2 of 3 photos, such as 'a.jpg', are panoramas of the whole sphere" in caplog.text
    cameras, _ = choose(tmp_path, "auto", camera_model="RADIAL")
    assert cameras["a.jpg"].model == "RADIAL", "the user decides"
    assert "but get the camera model RADIAL" in caplog.text


def test_the_model_of_panoramas_is_refused_for_other_photos_before_the_long_work(tmp_path: Path) -> None:
    write_photo(tmp_path, "a.jpg")
    with pytest.raises(ValueError, match=r"1 of 1 photos have another shape, such as 'a.jpg' \(64 x 48 px\)"):
        check_intrinsics(tmp_path, ["a.jpg"], "auto", "EQUIRECTANGULAR", {})


def test_an_unknown_camera_model_is_refused_with_the_closest(tmp_path: Path) -> None:
    write_photo(tmp_path, "a.jpg")
    with pytest.raises(ValueError, match=r"camera_model='SIMPLE_RADAL'.*Did you mean 'SIMPLE_RADIAL'\?"):
        choose(tmp_path, "exif", camera_model="SIMPLE_RADAL")


# --- given intrinsics -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        *(
            "PINHOLE:50:51:32:24",
            "PINHOLE,50,51,32,24",
            "PINHOLE 50 51 32 24",
            " PINHOLE: 50, 51, 32, 24 ",
            "PINHOLE:5e1,51.0,32,24",
        ),
        *("pinhole,50,51,32,24", "Pinhole 50 51 32 24", "50,51,32,24", "50 51 32 24", "5e1:51:32.0:24"),
    ],
)
def test_a_camera_can_be_given_with_colons_commas_or_blanks(tmp_path: Path, text: str) -> None:
    cameras, numbers = choose(tmp_path, text, {"a.jpg": SIZE, "b.jpg": SIZE})
    assert cameras["a.jpg"] == cameras["b.jpg"] == Camera("PINHOLE", SIZE, (50.0, 51.0, 32.0, 24.0), True)
    assert numbers == {"a.jpg": 1, "b.jpg": 1}


def test_a_camera_longer_than_a_file_name_is_read_as_a_camera(tmp_path: Path) -> None:
    params = [f"{0.1 + index:.28f}" for index in range(12)]  # longer than the longest file name
    cameras, _ = choose(tmp_path, f"FULL_OPENCV:{':'.join(params)}", {"a.jpg": SIZE})
    assert len(cameras["a.jpg"].params) == 12


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("PINHOLE,1,2,3", r"PINHOLE takes the parameters fx, fy, cx, cy, but 3 were given"),
        ("PINHOLE,1,2,3,4,5", r"but 5 were given"),
        ("PINHOLE", r"PINHOLE takes the parameters fx, fy, cx, cy, but 0 were given"),
        ("PINHOL,1,2,3,4", r"there is no camera model 'PINHOL'. Did you mean 'PINHOLE'\?"),
        ("PINHOLE,1,2,x,4", r"must be numbers"),
        ("PINHOLE,,2,3,4", r"must be numbers"),
        ("PINHOLE,0,2,3,4", r"focal length"),
        ("PINHOLE,nan,2,3,4", r"finite"),
        ("500", r"has 1 numbers: expected fx,fy,cx,cy or f,cx,cy"),
        ("1,2", r"has 2 numbers: expected"),
        ("1,2,3,4,5", r"has 5 numbers: expected .*SIMPLE_RADIAL,f,cx,cy,k"),
        ("pinhol,1,2,3,4", r"Did you mean 'PINHOLE'\?"),
        ("exiff", r"'exiff' is not known. Did you mean 'exif'\?"),
        ("no such file.txt", r"=no such file.txt does not exist"),
        ("no/such/intrinsics", r"=no/such/intrinsics does not exist"),
        ("", r"is not known"),
    ],
)
def test_a_wrong_camera_is_refused_with_the_reason(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=expected):
        choose(tmp_path, text, {"a.jpg": SIZE})


def test_intrinsics_of_other_photos_are_told(tmp_path: Path) -> None:
    (tmp_path / "cameras.csv").write_text("old/1.jpg PINHOLE 64 48 50 50 32 24\n")
    with pytest.raises(ValueError, match=r"names other photos, such as old/1\.jpg, and none of the 1 photos, such as a\.jpg"):
        choose(tmp_path, str(tmp_path / "cameras.csv"), {"a.jpg": SIZE})


def test_one_camera_for_photos_of_two_sizes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one camera is given for all photos, but they have 2 sizes"):
        choose(tmp_path, "PINHOLE,50,51,32,24", {"a.jpg": SIZE, "b.jpg": (48, 64)})


def test_equal_cameras_of_the_poses_are_shared(tmp_path: Path) -> None:
    wide, long = (Camera("PINHOLE", SIZE, (focal, focal, 32.0, 24.0), True) for focal in (50.0, 90.0))
    known = {"a.jpg": wide, "b.jpg": long, "c.jpg": wide, "not used.jpg": long}
    cameras, numbers = choose(tmp_path, "poses", dict.fromkeys(("a.jpg", "b.jpg", "c.jpg"), SIZE), known=known)
    assert cameras == {"a.jpg": wide, "b.jpg": long, "c.jpg": wide}
    assert numbers == {"a.jpg": 1, "b.jpg": 2, "c.jpg": 1}


def test_intrinsics_from_poses_need_a_pose_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"dataset\.poses=FILE"):
        choose(tmp_path, "poses", {"a.jpg": SIZE})


def test_a_photo_without_intrinsics_is_named(tmp_path: Path) -> None:
    known = {"a.jpg": Camera("PINHOLE", SIZE, (50.0, 50.0, 32.0, 24.0), True)}
    with pytest.raises(ValueError, match=r"2 of 3 images have no intrinsics, the first is 'b.jpg'"):
        choose(tmp_path, "poses", dict.fromkeys(("a.jpg", "b.jpg", "c.jpg"), SIZE), known=known)


def test_intrinsics_for_another_image_size_are_refused(tmp_path: Path) -> None:
    known = {"a.jpg": Camera("PINHOLE", (48, 64), (50.0, 50.0, 32.0, 24.0), True)}
    with pytest.raises(ValueError, match=r"intrinsics of 'a.jpg' are for 48 x 64 px, but the photo has 64 x 48 px"):
        choose(tmp_path, "poses", {"a.jpg": SIZE}, known=known)


def test_a_file_gives_each_photo_its_intrinsics_by_name(tmp_path: Path) -> None:
    path = tmp_path / "intrinsics.txt"
    path.write_text(
        "# name MODEL width height params\n\n"
        "a.jpg PINHOLE 64 48 50 51 32 24\n"
        "folder/with spaces/ü 1.jpg SIMPLE_RADIAL 64 48 6e1 32 24 -0.01\n"
        "c.jpg  PINHOLE\t64 48 50.0 51 32 24 \n",
        encoding="utf-8",
    )
    names = ("a.jpg", "c.jpg", "folder/with spaces/ü 1.jpg")
    cameras, numbers = choose(tmp_path, str(path), dict.fromkeys(names, SIZE))
    assert cameras["a.jpg"] == Camera("PINHOLE", SIZE, (50.0, 51.0, 32.0, 24.0), True)
    assert cameras[names[2]] == Camera("SIMPLE_RADIAL", SIZE, (60.0, 32.0, 24.0, -0.01), True)
    assert [numbers[name] for name in names] == [1, 1, 2]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("a.jpg 50 51 32 24", r"intrinsics.txt:2: expected `name MODEL width height param"),
        ("a.jpg PINHOLE 64 48 50 51 32 x", r"intrinsics.txt:2: expected"),
        ("a.jpg PINHOLE 64 48", r"intrinsics.txt:2: expected"),
        ("a.jpg PINHOL 64 48 50 51 32 24", r"no camera model 'PINHOL'. Did you mean 'PINHOLE'\?"),
        ("a.jpg PINHOLE 64 48 50 51 32", r"takes the parameters fx, fy, cx, cy, but 3 were given"),
    ],
)
def test_a_wrong_line_of_intrinsics_is_refused(tmp_path: Path, line: str, expected: str) -> None:
    path = tmp_path / "intrinsics.txt"
    path.write_text(f"# a comment\n{line}\n")
    with pytest.raises(ValueError, match=expected):
        choose(tmp_path, str(path), {"a.jpg": SIZE})


def test_a_byte_order_mark_is_not_part_of_the_first_name(tmp_path: Path) -> None:
    (tmp_path / "cameras.txt").write_text("a.jpg PINHOLE 64 48 50 50 32 24\n", encoding="utf-8-sig")
    assert list(read_intrinsics(tmp_path / "cameras.txt")) == ["a.jpg"]


def test_a_second_camera_of_a_photo_must_equal_the_first(tmp_path: Path) -> None:
    path, line = tmp_path / "cameras.txt", "a.jpg PINHOLE 64 48 50 50 32 24\n"
    path.write_text(2 * line)
    assert list(read_intrinsics(path)) == ["a.jpg"]
    path.write_text(line + line.replace("50 50", "60 60"))
    with pytest.raises(ValueError, match=r"cameras\.txt:2: 'a\.jpg' has another camera"):
        read_intrinsics(path)


def test_an_empty_file_of_intrinsics_is_allowed(tmp_path: Path) -> None:
    path = tmp_path / "intrinsics.txt"
    path.write_text("")
    assert read_intrinsics(path) == {}


def write_intrinsics(folder: Path, *lines: str, name: str = "intrinsics.txt", encoding: str = "utf-8") -> str:
    (folder / name).write_bytes("\r\n".join(lines).encode(encoding))
    return str(folder / name)


def test_lines_for_folders_and_patterns_give_cameras_the_most_exact_first(tmp_path: Path) -> None:
    path = write_intrinsics(
        tmp_path,
        "* simple-pinhole 64 48 10 32 24",
        "cam1/* OPENCV 64 48 20 20 32 24 0 0 0 0",
        "cam1/left*.jpg, PINHOLE, 64, 48, 30, 30, 32, 24",
        "cam2/;PINHOLE;64;48;40;40;32;24",
        "cam 3 PINHOLE 64 48 50 50 32 24",
        '"cam2/my b.jpg" PINHOLE 64 48 60 60 32 24',
        encoding="utf-16",
    )
    names = ["a.jpg", "cam1/b.jpg", "cam1/left 1.jpg", "cam1/deep/b.jpg", "cam2/b.jpg", "cam2/my b.jpg", "cam 3/c.jpg"]
    cameras, numbers = choose(tmp_path, path, dict.fromkeys(names, SIZE))
    assert [cameras[name].params[0] for name in names] == [10, 20, 30, 20, 40, 60, 50]
    assert numbers["cam1/b.jpg"] == numbers["cam1/deep/b.jpg"]


def test_a_pattern_that_fits_nothing_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_intrinsics(tmp_path, "*.jpg PINHOLE 64 48 50 50 32 24", "cma1/* PINHOLE 64 48 60 60 32 24")
    choose(tmp_path, path, {"cam1/a.jpg": SIZE})
    assert "the intrinsics for 'cma1/*' are not used" in caplog.text


def test_photos_without_a_line_are_refused_with_the_way_out(tmp_path: Path) -> None:
    path = write_intrinsics(tmp_path, "./a.jpg PINHOLE 64 48 50 50 32 24")
    with pytest.raises(ValueError, match=r"1 of 2 images have no intrinsics, the first is 'b.jpg'; a line `\* MODEL width"):
        choose(tmp_path, path, {"a.jpg": SIZE, "b.jpg": SIZE})


def test_a_line_for_another_resolution_gives_the_scaled_numbers(tmp_path: Path) -> None:
    path = write_intrinsics(tmp_path, "* OPENCV 128 96 100 100 64 48 0.1 0 0 0")
    with pytest.raises(ValueError, match=r"resized by 0\.5, give OPENCV 64 48 50 50 32 24 0\.1 0 0 0"):
        choose(tmp_path, path, {"a.jpg": SIZE})
    with pytest.raises(ValueError, match=r"turned by 90 degrees"):
        choose(tmp_path, path, {"a.jpg": (96, 128)})
    with pytest.raises(ValueError, match=r"another shape"):
        choose(tmp_path, path, {"a.jpg": (64, 64)})


IMAGES_TXT = """# Image list with two lines of data per image:
1 1 0 0 0 1 2 3 2 cam1/my b.jpg
5.5 6.5 -1 7 8 2
2 0.5 0.5 0.5 0.5 1 2 3e-1 1 a.jpg

"""


def test_cameras_txt_of_colmap_with_images_txt(tmp_path: Path) -> None:
    lines = ["# Camera list with one line of data per camera:", "1 PINHOLE 64 48 50 50 32 24", "2 SIMPLE_RADIAL 64 48 60 32 24 0"]
    path = write_intrinsics(tmp_path, *lines, name="cameras.txt")
    sizes = {"a.jpg": SIZE, "cam1/my b.jpg": SIZE}
    with pytest.raises(ValueError, match=r"2 cameras of COLMAP.*put COLMAP's images\.txt beside it"):
        choose(tmp_path, path, sizes)
    (tmp_path / "images.txt").write_text(IMAGES_TXT)
    cameras, _ = choose(tmp_path, path, sizes)
    assert [cameras[name].model for name in sizes] == ["PINHOLE", "SIMPLE_RADIAL"]
    write_intrinsics(tmp_path, *lines[:2], name="cameras.txt")
    with pytest.raises(ValueError, match=r"images\.txt:2: camera 2 is not in"):
        choose(tmp_path, path, sizes)
    (tmp_path / "images.txt").unlink()
    cameras, numbers = choose(tmp_path, path, sizes)
    assert set(numbers.values()) == {1} and cameras["a.jpg"].params == (50, 50, 32, 24)


def test_a_model_of_colmap_gives_its_cameras(tmp_path: Path) -> None:
    model = pycolmap.Reconstruction()
    for number, focal in ((1, 50.0), (2, 60.0)):
        camera = pycolmap.Camera(camera_id=number, model="PINHOLE", width=64, height=48, params=[focal, focal, 32, 24])
        model.add_camera_with_trivial_rig(camera)
        image = pycolmap.Image(image_id=number, name=f"{number}.jpg", camera_id=number)
        model.add_image_with_trivial_frame(image, pycolmap.Rigid3d())
    (tmp_path / "model").mkdir()
    model.write_binary(tmp_path / "model")
    for given in (tmp_path / "model", tmp_path / "model" / "cameras.bin"):
        cameras, _ = choose(tmp_path, str(given), {"1.jpg": SIZE, "2.jpg": SIZE})
        assert [camera.params[0] for camera in cameras.values()] == [50, 60]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"is a folder, but not a COLMAP model"):
        choose(tmp_path, str(tmp_path / "empty"), {"1.jpg": SIZE})
    images = tmp_path / "model" / "images.bin"
    images.write_bytes(images.read_bytes()[:-3])
    with pytest.raises(ValueError, match=r"images\.bin is cut"):
        choose(tmp_path, str(tmp_path / "model"), {"1.jpg": SIZE, "2.jpg": SIZE})


def test_intrinsics_are_checked_from_the_headers_of_the_readable_photos(tmp_path: Path) -> None:
    write_photo(tmp_path, "a.jpg")
    write_photo(tmp_path, "b.jpg", (96, 64))
    (tmp_path / "cut.jpg").write_bytes(b"no photo")
    names, path = ["a.jpg", "b.jpg", "cut.jpg"], write_intrinsics(tmp_path, "a.jpg PINHOLE 64 48 50 50 32 24")
    with pytest.raises(ValueError, match=r"1 of 2 images have no intrinsics, the first is 'b.jpg'"):
        check_intrinsics(tmp_path, names, path, "SIMPLE_RADIAL", {})
    with pytest.raises(ValueError, match=r"they have 2 sizes: 64 x 48 px \(1\), 96 x 64 px \(1\)"):
        check_intrinsics(tmp_path, names, "50,50,32,24", "SIMPLE_RADIAL", {})
    path = write_intrinsics(tmp_path, "a.jpg PINHOLE 64 48 50 50 32 24", "b.jpg PINHOLE 96 64 50 50 48 32")
    check_intrinsics(tmp_path, names, path, "SIMPLE_RADIAL", {})


# --- numbers --------------------------------------------------------------------------------------------------------------


def test_cameras_are_numbered_in_the_order_of_the_names() -> None:
    groups = {"b": "x", "a": "y", "c": "x"}
    assert CameraAssignment({}, groups).camera_ids(["a", "b", "c"]) == {"a": 1, "b": 2, "c": 2}
