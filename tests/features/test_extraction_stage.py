"""The stage images -> features with a tiny extractor: what the stage computes, skips, keeps and refuses."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import cast

import h5py
import numpy as np
import pytest
from PIL import Image as PILImage

from sfm_lightglue.features.imported import ImportedExtractor, ImportedOptions
from sfm_lightglue.features.stage import ExtractionReport, extract_features
from sfm_lightglue.networks.weights import WeightsRecord
from sfm_lightglue.products import Features, Image
from sfm_lightglue.storage import H5Reader, SettingsChanged


@dataclasses.dataclass(frozen=True)
class BrightestOptions:
    max_keypoints: int = 5


class BrightestPixels:
    """Finds the brightest pixels and describes each by the row of pixels through it; remembers its calls."""

    weights: tuple[WeightsRecord, ...] = ()

    def __init__(self, options: BrightestOptions | None = None) -> None:
        self.options = options or BrightestOptions()
        self.seen: list[str] = []

    def __call__(self, image: Image) -> Features:
        self.seen.append(image.name)
        grey = image.pixels.sum(axis=2).astype(np.float32)
        if image.mask is not None:
            grey = grey * image.mask
        order = np.argsort(-grey.ravel(), kind="stable")[: self.options.max_keypoints]
        order = order[grey.ravel()[order] > 0]
        y, x = np.unravel_index(order, grey.shape)
        return Features(
            np.stack([x, y], 1).astype(np.float32), grey[y, x] / 765, grey[y][:, :8] / 765, image.size, name=image.name
        )


def write_photo(folder: Path, name: str, seed: int | None = None, size: tuple[int, int] = (32, 24)) -> None:
    """A photo of noise, or a black photo if no seed is given."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0], 3)
    pixels = np.zeros(shape, np.uint8) if seed is None else np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    PILImage.fromarray(pixels).save(path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for seed, name in enumerate(["a.png", "b.png", "sub/c.png", "sub/d e.png"]):
        write_photo(tmp_path / "photos", name, seed)
    return tmp_path / "photos"


NAMES = ["a.png", "b.png", "sub/c.png", "sub/d e.png"]


def stored_names(path: Path) -> list[str]:
    with H5Reader(path) as reader:
        return reader.names()


def run(photos: Path, extractor: BrightestPixels | None = None, **options: object) -> tuple[ExtractionReport, list[str]]:
    """The report and the photos that were given to the extractor."""
    extractor = extractor or BrightestPixels()
    report = extract_features(photos, photos.parent / "features.h5", extractor, **options)
    return report, sorted(extractor.seen)


def test_every_photo_has_its_features(photos: Path) -> None:
    report, _ = run(photos)
    assert report == ExtractionReport(4, 5.0, [], {}, num_computed=4)
    with H5Reader(photos.parent / "features.h5") as reader:
        assert reader.names() == NAMES
        for name in NAMES:
            pixels = np.asarray(PILImage.open(photos / name)).sum(axis=2)
            loaded = reader.features(name)
            assert loaded.image_size == (32, 24)
            x, y = loaded.keypoints[0].astype(int)
            assert pixels[y, x] == pixels.max()


def test_a_second_run_computes_nothing(photos: Path) -> None:
    run(photos)
    before = (photos.parent / "features.h5").read_bytes()
    report, seen = run(photos)
    assert report == ExtractionReport(4, 5.0, [], {}) and seen == []
    assert (photos.parent / "features.h5").read_bytes() == before


def test_only_new_photos_are_processed(photos: Path) -> None:
    run(photos)
    write_photo(photos, "aa.png", 9)
    report, seen = run(photos)
    assert seen == ["aa.png"] and (report.num_images, report.num_computed) == (5, 1)


def test_only_a_photo_with_other_content_is_processed_again(photos: Path) -> None:
    run(photos)
    write_photo(photos, "b.png", 9)
    (photos / "a.png").touch()
    report, seen = run(photos)
    assert seen == ["b.png"] and (report.num_images, report.num_computed) == (4, 1)


def test_the_file_is_the_same_in_one_run_and_in_several(photos: Path) -> None:
    for names in (["sub/c.png"], ["a.png", "sub/c.png"], None):
        run(photos, names=names)
    extract_features(photos, photos.parent / "reference.h5", BrightestPixels())
    assert (photos.parent / "features.h5").read_bytes() == (photos.parent / "reference.h5").read_bytes()


def test_one_and_several_workers_write_the_same_bytes(photos: Path) -> None:
    for seed in range(20):
        write_photo(photos, f"more/{seed}.png", seed)
    contents = set()
    for num_workers in (1, 2, 5):
        extract_features(photos, photos.parent / f"{num_workers}.h5", BrightestPixels(), num_workers=num_workers)
        contents.add((photos.parent / f"{num_workers}.h5").read_bytes())
    assert len(contents) == 1


# --- masks ---------------------------------------------------------------------------------------------------------------


def write_mask(photos: Path, name: str, keep: np.ndarray) -> Path:
    path = photos.parent / "masks" / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    PILImage.fromarray(keep.astype(np.uint8) * 255).save(path)
    return photos.parent / "masks"


def test_features_that_are_computed_again_are_told(photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    masks = write_mask(photos, "sub/c.png", np.arange(24)[:, None].repeat(32, 1) < 12)
    with caplog.at_level(logging.INFO):
        run(photos, masks=masks)
        run(photos, masks=masks)
        assert "computed again" not in caplog.text
        run(photos)
        assert caplog.text.count("computed again") == 1
        assert "1 photo changed, or their masks or turns: their features are computed again: sub/c.png" in caplog.text


def test_masks_reach_the_extractor_and_only_photos_with_another_mask_are_processed_again(photos: Path) -> None:
    keep = np.zeros((24, 32), bool)
    keep[10:14, 10:14] = True
    masks = write_mask(photos, "sub/c.png", keep)
    _, seen = run(photos, masks=masks)
    assert seen == NAMES
    with H5Reader(photos.parent / "features.h5") as reader:
        x, y = reader.features("sub/c.png").keypoints.astype(int).T
    assert keep[y, x].all()

    write_mask(photos, "sub/c.png", np.roll(keep, 3, axis=1))
    assert run(photos, masks=masks)[1] == ["sub/c.png"]
    write_mask(photos, "a.png", keep)
    assert run(photos, masks=masks)[1] == ["a.png"]
    (masks / "a.png.png").unlink()
    assert run(photos, masks=masks)[1] == ["a.png"]
    assert run(photos)[1] == ["sub/c.png"], "without masks"


def test_a_missing_folder_of_masks_is_an_error(photos: Path) -> None:
    """Otherwise a mistyped path would silently give features without masks."""
    with pytest.raises(FileNotFoundError, match=r"folder of masks .*mask5 does not exist"):
        run(photos, masks=photos.parent / "mask5")


def test_a_photo_whose_mask_drops_all_keypoints_is_reported(photos: Path) -> None:
    masks = write_mask(photos, "a.png", np.zeros((24, 32), bool))
    report, _ = run(photos, masks=masks)
    assert report.without_keypoints == ["a.png"] and report.mean_keypoints == 15 / 4


def test_masks_with_other_names_than_colmaps_are_used_and_counted(photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    keep = np.zeros((24, 32), bool)
    keep[10:14, 10:14] = True
    for name in ("a.png", "b.png", "sub.png"):
        (photos.parent / "masks").mkdir(exist_ok=True)
        PILImage.fromarray(keep.astype(np.uint8) * 255).save(photos.parent / "masks" / name)
    with caplog.at_level(logging.INFO):
        report, _ = run(photos, masks=photos.parent / "masks")
    assert report.num_masks == 4 and "masks: 4 of 4 photos" in caplog.text
    with H5Reader(photos.parent / "features.h5") as reader:
        for name in NAMES:
            x, y = reader.features(name).keypoints.astype(int).T
            assert keep[y, x].all()
    assert run(photos, masks=photos.parent / "masks" / "sub.png")[1] == [], "the same content under another name"


def test_masks_of_another_shape_are_refused_before_any_photo_is_processed(photos: Path) -> None:
    masks = write_mask(photos, "a.png", np.ones((24, 24), bool))
    extractor = BrightestPixels()
    with pytest.raises(ValueError, match=r"a\.png\.png does not fit the photo a\.png: .*24 x 24 px, the photo has 32 x 24 px"):
        run(photos, extractor, masks=masks)
    assert extractor.seen == []


def test_transparent_parts_get_no_keypoints_and_are_told(photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    picture = PILImage.open(photos / "a.png").convert("RGBA")
    picture.putalpha(PILImage.fromarray((np.arange(32)[None].repeat(24, 0) < 16).astype(np.uint8) * 255))
    picture.save(photos / "a.png")
    with caplog.at_level(logging.INFO):
        report, _ = run(photos)
    assert report.transparent == ["a.png"] and "transparent parts of 1 photo " in caplog.text
    with H5Reader(photos.parent / "features.h5") as reader:
        keypoints = reader.features("a.png").keypoints
    assert len(keypoints) == 5 and (keypoints[:, 0] < 16).all()


# --- pictures of more than 8 bits ------------------------------------------------------------------------------------------


def test_thermal_photos_are_stretched_alike_and_processed_again_if_their_range_changes(photos: Path) -> None:
    def write(name: str, low: int, high: int) -> None:
        values = np.random.default_rng(0).integers(low, high, (24, 32)).astype(np.uint16)
        PILImage.fromarray(values).save(photos / name)

    class Recorder(BrightestPixels):
        def __init__(self) -> None:
            super().__init__()
            self.levels: dict[str, int] = {}

        def __call__(self, image: Image) -> Features:
            self.levels[image.name] = len(np.unique(image.pixels))
            return super().__call__(image)

    write("t0.tif", 29000, 29600)
    write("t1.tif", 29100, 29500)
    extractor = Recorder()
    _, seen = run(photos, extractor)
    assert seen == sorted([*NAMES, "t0.tif", "t1.tif"])
    assert extractor.levels["t0.tif"] > 150 and extractor.levels["t1.tif"] > 100, "three grey levels by the range of 16 bits"
    write("t2.tif", 29050, 29550)
    assert run(photos, Recorder())[1] == ["t2.tif"], "the range of the camera holds the new photo"
    write("t3.tif", 27000, 29000)
    assert run(photos, Recorder())[1] == ["t0.tif", "t1.tif", "t2.tif", "t3.tif"], "the photos of the camera, and no other ones"


# --- very large photos -----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class ResizingOptions:
    max_keypoints: int = 6
    resize_max: int = 40


@pytest.mark.parametrize("size", [(1008, 704), (1001, 701)])
def test_keypoints_of_a_photo_that_was_decoded_at_a_reduced_size_are_exact(photos: Path, size: tuple[int, int]) -> None:
    """Also at the right and lower edges, if the size is no multiple of the factor."""
    corners = np.array([(100, 60), (900, 60), (100, 600), (900, 600), (992, 696), (500, 300)])
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    for number, (x, y) in enumerate(corners):
        pixels[y - y % 8 : y - y % 8 + 8, x - x % 8 : x - x % 8 + 8] = 250 - 20 * number
    PILImage.fromarray(pixels).save(photos / "large.jpg", quality=95, subsampling=0)
    extractor = BrightestPixels(ResizingOptions())  # type: ignore[arg-type]
    run(photos, extractor, names=["large.jpg"])
    with H5Reader(photos.parent / "features.h5") as reader:
        features = reader.features("large.jpg")
    expected = np.minimum(corners // 8 * 8 + 3.5, np.array(size) - 1)  # 1/8: one pixel for each block
    np.testing.assert_allclose(features.keypoints, expected, atol=1e-4)
    assert features.image_size == size and features.pixel_scale == 8


# --- photos that fail ------------------------------------------------------------------------------------------------------


def test_a_broken_photo_is_reported_and_the_others_are_done(photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    (photos / "b.png").write_bytes((photos / "b.png").read_bytes()[:200])
    (photos / "c.jpg").write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        report, seen = run(photos)
    assert list(report.skipped) == ["b.png", "c.jpg"]
    assert "unreadable image" in report.skipped["b.png"] and report.skipped["c.jpg"] == "the file is empty"
    assert "b.png is skipped" in caplog.text
    assert (report.num_images, report.num_computed) == (3, 3)
    assert seen == stored_names(photos.parent / "features.h5") == ["a.png", "sub/c.png", "sub/d e.png"]


def test_a_skipped_photo_is_tried_again_in_the_next_run(photos: Path) -> None:
    content = (photos / "b.png").read_bytes()
    (photos / "b.png").write_bytes(content[:200])
    run(photos)
    assert list(run(photos)[0].skipped) == ["b.png"]
    (photos / "b.png").write_bytes(content)
    report, seen = run(photos)
    assert seen == ["b.png"] and report.num_images == 4 and report.skipped == {}


def test_a_photo_that_broke_loses_the_features_of_its_former_content(photos: Path) -> None:
    run(photos)
    (photos / "b.png").write_bytes(b"no longer a photo")
    report, _ = run(photos)
    assert list(report.skipped) == ["b.png"] and report.num_images == 3
    assert stored_names(photos.parent / "features.h5") == ["a.png", "sub/c.png", "sub/d e.png"]


def test_a_photo_that_cannot_be_opened_for_now_keeps_its_features(photos: Path) -> None:
    run(photos)
    (photos / "b.png").rename(photos / "b.away")
    report, _ = run(photos, names=NAMES)
    assert "No such file" in report.skipped["b.png"] and report.num_images == 3
    assert stored_names(photos.parent / "features.h5") == NAMES


def test_a_black_photo_is_reported_to_have_no_keypoints(photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_photo(photos, "black.png")
    with caplog.at_level(logging.WARNING):
        report, _ = run(photos)
    assert report.without_keypoints == ["black.png"] and "black.png: no keypoints" in caplog.text
    with H5Reader(photos.parent / "features.h5") as reader:
        assert reader.features("black.png").keypoints.shape == (0, 2)


def test_if_no_photo_can_be_used_the_first_reason_is_raised(photos: Path) -> None:
    for name in NAMES:
        (photos / name).write_bytes(b"")
    with pytest.raises(ValueError, match="the file is empty"):
        run(photos)


def test_a_missing_photo_is_explained_by_a_similar_name(photos: Path) -> None:
    report, _ = run(photos, names=["a.png", "B.PNG"])
    if "B.PNG" not in report.skipped:
        pytest.skip("the file system merges the two names")
    assert "b.png differ only in upper and lower case" in report.skipped["B.PNG"]


def test_names_that_do_not_exist_are_an_error_if_no_other_photo_is_left(photos: Path) -> None:
    with pytest.raises(OSError, match=r"typo\.png"):
        run(photos, names=["typo.png"])
    assert list(run(photos, names=["a.png", "typo.png"])[0].skipped) == ["typo.png"]


def broken_extractor(change: Callable[[Features], Features]) -> type[BrightestPixels]:
    """An extractor that breaks its contract on b.png."""

    class Broken(BrightestPixels):
        def __call__(self, image: Image) -> Features:
            features = super().__call__(image)
            return change(features) if image.name == "b.png" else features

    return Broken


@pytest.mark.parametrize(
    "field, value",
    [
        ("keypoints", np.zeros((5, 3), np.float32)),
        ("keypoints", np.zeros((4, 2), np.float32)),
        ("keypoints", np.full((5, 2), np.nan, np.float32)),
        ("keypoints", np.full((5, 2), 32, np.float32)),
        ("keypoints", np.full((5, 2), -1, np.float32)),
        ("scores", np.zeros((5, 1), np.float32)),
        ("scores", np.full(5, np.inf, np.float32)),
        ("descriptors", np.zeros((8, 5), np.float32)),
        ("descriptors", np.zeros(5, np.float32)),
        ("descriptors", np.full((5, 8), np.nan, np.float32)),
        ("image_size", (64, 48)),
    ],
)
def test_a_result_that_breaks_the_contract_is_refused_for_its_photo(photos: Path, field: str, value: object) -> None:
    extractor = broken_extractor(lambda features: dataclasses.replace(features, **{field: value}))
    report, _ = run(photos, extractor())
    assert list(report.skipped) == ["b.png"] and "the extractor's result" in report.skipped["b.png"]
    assert stored_names(photos.parent / "features.h5") == ["a.png", "sub/c.png", "sub/d e.png"]


# --- interruptions and settings ----------------------------------------------------------------------------------------------


class Interrupted(BrightestPixels):
    """Ctrl-C at the third photo."""

    interrupts = True

    def __call__(self, image: Image) -> Features:
        if self.interrupts and len(self.seen) == 2:
            raise KeyboardInterrupt
        return super().__call__(image)


def test_ctrl_c_keeps_what_was_done(photos: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(photos, Interrupted(), num_workers=1)
    # the class is part of the settings, so the same class completes the run
    extractor = Interrupted()
    extractor.interrupts = False
    report = extract_features(photos, photos.parent / "features.h5", extractor, num_workers=1)
    assert report.num_images == 4
    assert {"sub/c.png", "sub/d e.png"} <= set(extractor.seen) != set(NAMES), "at most one photo was finished and not yet stored"


def test_changed_settings_are_refused_with_the_value_that_differs(photos: Path) -> None:
    run(photos)
    with pytest.raises(SettingsChanged, match=r"options\.max_keypoints: 5 -> 3"):
        run(photos, BrightestPixels(BrightestOptions(max_keypoints=3)))
    assert run(photos)[1] == []


def test_changed_settings_are_recomputed_on_request_and_never_mixed(photos: Path) -> None:
    run(photos)
    changed = BrightestPixels(BrightestOptions(max_keypoints=3))
    report, seen = run(photos, changed, names=["a.png"], if_settings_changed="recompute")
    assert seen == ["a.png"] and report.mean_keypoints == 3
    assert stored_names(photos.parent / "features.h5") == ["a.png"]


def test_the_features_of_another_folder_are_not_replaced(photos: Path) -> None:
    """Cameras number their photos, so photos of different scenes have the same names."""
    run(photos)
    before = (photos.parent / "features.h5").read_bytes()
    other = photos.parent / "other"
    for seed, name in enumerate(NAMES[:2]):
        (other / name).parent.mkdir(parents=True, exist_ok=True)
        PILImage.fromarray(np.random.default_rng(90 + seed).integers(0, 256, (24, 32, 3), np.uint8)).save(other / name)
    extractor = BrightestPixels(BrightestOptions(max_keypoints=5))
    with pytest.raises(
        SettingsChanged, match=rf"was made from other photos, for example '{NAMES[0]}': .*other contains none of them"
    ):
        extract_features(other, photos.parent / "features.h5", extractor)
    assert (photos.parent / "features.h5").read_bytes() == before
    (other / NAMES[1]).write_bytes((photos / NAMES[1]).read_bytes())  # all photos but one changed
    assert extract_features(other, photos.parent / "features.h5", extractor).num_computed == 1


# --- features of another program ---------------------------------------------------------------------------------------------


def write_hloc_features(photos: Path, names: list[str], *, size_from: tuple[int, int] = (32, 24)) -> Path:
    """A file in hloc's style: keypoints in half precision, keypoint_scores, no uncertainty."""
    path = photos.parent / "feats-hloc.h5"
    with h5py.File(path, "w", libver="latest") as file:
        for seed, name in enumerate(names):
            rng = np.random.default_rng(seed)
            group = file.create_group(name)
            group.create_dataset("keypoints", data=(rng.random((7, 2)) * (31, 23)).astype(np.float16))
            group.create_dataset("keypoint_scores", data=rng.random(7).astype(np.float16))
            group.create_dataset("descriptors", data=rng.random((128, 7)).astype(np.float16))
            group.create_dataset("image_size", data=np.array(size_from))
    return path


def imported(path: Path) -> ImportedExtractor:
    return ImportedExtractor.create(ImportedOptions("imported", str(path)), "cpu")


def test_features_of_hloc_go_through_the_stage(photos: Path) -> None:
    path = write_hloc_features(photos, NAMES)
    extractor = imported(path)
    assert extractor.weights[0].sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    report = extract_features(photos, photos.parent / "features.h5", extractor)
    assert report == ExtractionReport(4, 7.0, [], {}, num_computed=4)
    with H5Reader(photos.parent / "features.h5") as reader, h5py.File(path) as original:
        for name in NAMES:
            loaded = reader.features(name)
            np.testing.assert_array_equal(loaded.keypoints, original[name]["keypoints"][()].astype(np.float32))
            np.testing.assert_array_equal(loaded.descriptors, original[name]["descriptors"][()].T.astype(np.float32))
            np.testing.assert_array_equal(loaded.scores, original[name]["keypoint_scores"][()].astype(np.float32))


def test_masks_drop_imported_keypoints(photos: Path) -> None:
    path, masks = write_hloc_features(photos, NAMES), photos.parent / "masks"
    masks.mkdir()
    left = np.zeros((24, 32), np.uint8)
    left[:, :16] = 255
    PILImage.fromarray(left).save(masks / f"{NAMES[0]}.png")
    extract_features(photos, photos.parent / "features.h5", imported(path), masks=masks)
    with H5Reader(photos.parent / "features.h5") as reader, H5Reader(path) as original:
        found, all_of_them = reader.features(NAMES[0]), original.features(NAMES[0])
        kept = np.rint(all_of_them.keypoints[:, 0]) < 16
        assert 0 < kept.sum() < 7
        for name in ("keypoints", "scores", "descriptors"):
            np.testing.assert_array_equal(getattr(found, name), getattr(all_of_them, name)[kept])
        assert len(reader.features(NAMES[1])) == 7


def test_transparent_parts_drop_no_imported_keypoints(photos: Path) -> None:
    """Matches that were imported with them refer to all keypoints."""
    picture = PILImage.open(photos / NAMES[0]).convert("RGBA")
    picture.putalpha(PILImage.fromarray((np.arange(32)[None].repeat(24, 0) < 16).astype(np.uint8) * 255))
    picture.save(photos / NAMES[0])
    path = write_hloc_features(photos, NAMES)
    assert extract_features(photos, photos.parent / "features.h5", imported(path)).mean_keypoints == 7


def test_keypoints_that_rounding_moved_over_the_edge_are_put_back(tmp_path: Path) -> None:
    """Half precision has a spacing of 4 px at 4608 px."""
    with h5py.File(tmp_path / "feats.h5", "w") as file:
        group = file.create_group("a.png")
        group["keypoints"] = np.array([[4606.06, 10.0], [100.0, 39.7]], np.float16)
        group["keypoint_scores"], group["descriptors"] = np.ones(2, np.float16), np.ones((128, 2), np.float16)
        group["image_size"] = [4608, 40]
    assert file_keypoints(tmp_path / "feats.h5") == [[4608, 10], [100, 39.6875]]
    found = imported(tmp_path / "feats.h5")(Image("a.png", np.zeros((40, 4608, 3), np.uint8)))
    assert found.keypoints.tolist() == [[4607.5, 10], [100, 39.6875]]


def file_keypoints(path: Path) -> list[list[float]]:
    with H5Reader(path) as reader:
        return cast(list[list[float]], reader.features("a.png").keypoints.tolist())


def test_photos_that_are_missing_from_the_file_are_skipped(photos: Path) -> None:
    report = extract_features(photos, photos.parent / "features.h5", imported(write_hloc_features(photos, NAMES[:3])))
    assert list(report.skipped) == ["sub/d e.png"] and report.num_images == 3


def test_features_with_another_image_size_are_refused(photos: Path) -> None:
    """An example is (height, width), which other programs store under the same name."""
    with pytest.raises(ValueError, match=r"image_size \(24, 32\), the photo has \(32, 24\)"):
        extract_features(photos, photos.parent / "features.h5", imported(write_hloc_features(photos, NAMES, size_from=(24, 32))))


def test_the_imported_file_may_move_but_not_change(photos: Path) -> None:
    path = write_hloc_features(photos, NAMES)
    extract_features(photos, photos.parent / "features.h5", imported(path))
    moved = path.rename(photos.parent / "moved.h5")
    assert extract_features(photos, photos.parent / "features.h5", imported(moved)).num_computed == 0
    with pytest.raises(SettingsChanged, match="weights"):
        extract_features(photos, photos.parent / "features.h5", imported(write_hloc_features(photos, NAMES[::-1])))


def test_a_missing_file_to_import_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"features\.path=.*nothing\.h5 does not exist"):
        imported(tmp_path / "nothing.h5")


def test_a_full_disk_ends_the_run_and_skips_no_photo(photos: Path) -> None:
    class Full(BrightestPixels):
        def __call__(self, image: Image) -> Features:
            if image.name == "b.png":
                raise OSError(errno.ENOSPC, "the disk for temporary files is full")
            return super().__call__(image)

    with pytest.raises(OSError, match="temporary files is full"):
        extract_features(photos, photos.parent / "features.h5", Full(), num_workers=1)
