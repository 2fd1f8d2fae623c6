"""Photos that are stored turned: extractors and matchers see them upright, files hold coordinates of the stored photo."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image as PILImage

from sfm_lightglue import create_extractor, create_matcher, load_image, match_images
from sfm_lightglue.features.imported import ImportedExtractor, ImportedOptions
from sfm_lightglue.features.stage import extract_features
from sfm_lightglue.images import read_header, read_orientation
from sfm_lightglue.matches.nearest_neighbor import NearestNeighborMatcher, NearestNeighborOptions
from sfm_lightglue.matches.stage import match_pairs
from sfm_lightglue.orientation import to_stored, turn_pixels, turn_pixels_back, upright_features
from sfm_lightglue.products import Features, Image, Matches, Pair
from sfm_lightglue.storage import H5Reader

CODES = range(1, 9)
WIDTH, HEIGHT = 96, 72


def scene(seed: int = 0) -> np.ndarray:
    """Smooth blobs, uint8 (h, w, 3): SIFT finds them in every orientation."""
    rng, (y, x) = np.random.default_rng(seed), np.mgrid[:HEIGHT, :WIDTH]
    grey = np.full((HEIGHT, WIDTH), 128.0)
    for _ in range(25):
        (cx, cy), size = rng.uniform((8, 8), (WIDTH - 8, HEIGHT - 8)), rng.uniform(2, 5)
        grey += rng.choice((-80, 80)) * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * size**2))
    return np.repeat(grey.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)


def write_turned(folder: Path, name: str, upright: np.ndarray, code: int) -> Path:
    """The photo stored as its EXIF orientation says, without loss."""
    folder.mkdir(exist_ok=True)
    exif = PILImage.Exif()
    exif[0x0112] = code
    PILImage.fromarray(turn_pixels_back(upright, code)).save(folder / name, exif=exif)
    return folder / name


class MarkedPixels:
    """Finds the pixels that are exactly white; remembers the sizes of the photos it saw."""

    weights = ()

    def __init__(self) -> None:
        self.sizes: dict[str, tuple[int, int]] = {}

    def __call__(self, image: Image) -> Features:
        self.sizes[image.name] = image.size
        found = (image.pixels == 255).all(axis=2) & (True if image.mask is None else image.mask)
        y, x = np.nonzero(found)
        keypoints = np.stack([x, y], axis=1).astype(np.float32)
        return Features(keypoints, np.ones(len(x), np.float32), np.ones((len(x), 4), np.float32), image.size, name=image.name)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One scene with three white pixels, stored in all eight orientations."""
    upright = scene() // 2
    upright[5, 9] = upright[40, 3] = upright[70, 94] = 255
    for code in CODES:
        write_turned(tmp_path / "photos", f"{code}.png", upright, code)
    return tmp_path / "photos"


def test_the_extractor_sees_upright_photos_and_the_file_holds_stored_pixels(folder: Path) -> None:
    extractor, output = MarkedPixels(), folder.parent / "features.h5"
    extract_features(folder, output, extractor)
    assert set(extractor.sizes.values()) == {(WIDTH, HEIGHT)}
    with H5Reader(output) as reader:
        for code in CODES:
            features = reader.features(f"{code}.png")
            stored = np.asarray(PILImage.open(folder / f"{code}.png"))
            assert features.image_size == (stored.shape[1], stored.shape[0])
            assert reader.orientation(f"{code}.png") == features.orientation == code
            x, y = features.keypoints.astype(int).T
            assert len(x) == 3 and (stored[y, x] == 255).all()


def test_a_mask_keeps_the_same_pixels_of_the_stored_photo(folder: Path) -> None:
    masks = folder.parent / "masks"
    masks.mkdir()
    for code in CODES:
        upright = np.full((HEIGHT, WIDTH), 255, np.uint8)
        upright[30:50] = 0  # covers one of the three pixels
        PILImage.fromarray(turn_pixels_back(upright, code)).save(masks / f"{code}.png.png")
    extract_features(folder, folder.parent / "features.h5", MarkedPixels(), masks=masks)
    with H5Reader(folder.parent / "features.h5") as reader:
        for code in CODES:
            features = reader.features(f"{code}.png")
            upright = upright_features(features).keypoints
            assert sorted(map(tuple, upright.tolist())) == [(9, 5), (94, 70)]


def test_stored_takes_photos_as_they_are(folder: Path) -> None:
    extractor, output = MarkedPixels(), folder.parent / "features.h5"
    extract_features(folder, output, extractor, orientation="stored")
    assert extractor.sizes["6.png"] == (HEIGHT, WIDTH)
    with h5py.File(output) as file:
        assert all("orientation" not in file[f"{code}.png"].attrs for code in CODES)
        assert all("@" not in file[f"{code}.png"].attrs["stamp"] for code in CODES)


def test_another_choice_computes_only_the_turned_photos_again(folder: Path) -> None:
    output = folder.parent / "features.h5"
    assert extract_features(folder, output, MarkedPixels(), orientation="stored").num_computed == 8
    stored = output.read_bytes()
    assert extract_features(folder, output, MarkedPixels()).num_computed == 7, "code 1 is the same either way"
    assert extract_features(folder, output, MarkedPixels(), orientation={"1.png": 3}).num_computed == 1
    assert extract_features(folder, output, MarkedPixels(), orientation="stored").num_computed == 8
    assert output.read_bytes() == stored


def test_an_unknown_choice_or_code_is_refused(folder: Path) -> None:
    for orientation in ("auto", {"1.png": 9}):
        with pytest.raises(ValueError, match="does not exist: expected"):
            extract_features(folder, folder.parent / "features.h5", MarkedPixels(), orientation=orientation)


@pytest.mark.parametrize("code", CODES)
def test_sift_finds_the_features_of_the_upright_photo(tmp_path: Path, code: int) -> None:
    """Keypoints, sizes and angles of a turned photo are exactly those of the upright one, in the stored frame."""
    write_turned(tmp_path / "photos", "upright.png", scene(), 1)
    write_turned(tmp_path / "photos", "turned.png", scene(), code)
    extract_features(tmp_path / "photos", tmp_path / "features.h5", create_extractor("sift", max_keypoints=50))
    with H5Reader(tmp_path / "features.h5") as reader:
        upright, turned = reader.features("upright.png"), reader.features("turned.png")
    assert len(upright) > 10 and upright.orientations is not None
    np.testing.assert_array_equal(turned.keypoints, to_stored(upright.keypoints, turned.image_size, code))
    np.testing.assert_array_equal(turned.descriptors, upright.descriptors)
    np.testing.assert_array_equal(turned.scales, upright.scales)
    back = upright_features(turned)
    np.testing.assert_allclose(np.exp(1j * back.orientations), np.exp(1j * upright.orientations), atol=1e-6)


class Spy(NearestNeighborMatcher):
    """Remembers the features that it was given."""

    def __init__(self) -> None:
        super().__init__(NearestNeighborOptions("nearest_neighbor", True, None, None))
        self.seen: list[Features] = []

    def __call__(self, features0: Features, features1: Features) -> Matches:
        self.seen += [features0, features1]
        return super().__call__(features0, features1)


def test_matchers_see_upright_features(folder: Path) -> None:
    features, matcher = folder.parent / "features.h5", Spy()
    extract_features(folder, features, MarkedPixels())
    match_pairs(features, [Pair("1.png", f"{code}.png") for code in range(2, 9)], folder.parent / "matches.h5", matcher)
    assert len(matcher.seen) == 14
    for seen in matcher.seen:
        assert seen.image_size == (WIDTH, HEIGHT) and seen.orientation == 1
        assert sorted(map(tuple, seen.keypoints.tolist())) == [(3, 40), (9, 5), (94, 70)]


def test_photos_are_matched_again_after_they_were_turned(folder: Path) -> None:
    features, matches = folder.parent / "features.h5", folder.parent / "matches.h5"
    pairs = [Pair("1.png", "6.png"), Pair("1.png", "8.png")]
    for orientation, expected in (("stored", 2), ({"8.png": 1}, 1), ("exif", 1), ("exif", 0)):
        extract_features(folder, features, MarkedPixels(), orientation=orientation)
        assert match_pairs(features, pairs, matches, Spy()).num_computed == expected


def test_lightglue_gets_upright_coordinates_from_stored_features(tmp_path: Path) -> None:
    """A user may give features of turned photos to the matcher directly: same matches as for upright photos."""
    extractor, matcher = create_extractor("superpoint", max_keypoints=128, resize_max=96), create_matcher()
    upright = Image("0", scene()), Image("1", scene())
    turned = Image("1", turn_pixels_back(scene(), 6), orientation=6)
    expected = match_images(upright[0].pixels, upright[1].pixels, extractor=extractor, matcher=matcher)
    path = write_turned(tmp_path, "turned.png", scene(), 6)
    assert load_image(path).orientation == 6
    for photo in (path, PILImage.open(path)):
        found = match_images(upright[0].pixels, photo, extractor=extractor, matcher=matcher)
        np.testing.assert_array_equal(found.matches0, expected.matches0)
        np.testing.assert_array_equal(found.keypoints1, to_stored(expected.keypoints1, turned.size, 6))
    features = [extractor(image) for image in upright]
    in_stored = dataclasses.replace(
        features[1],
        keypoints=to_stored(features[1].keypoints, turned.size, 6),
        image_size=turned.size,
        orientation=6,
    )
    np.testing.assert_array_equal(matcher(features[0], in_stored).indices, matcher(*features).indices)
    assert len(expected.scores) > 20
    as_stored = match_images(upright[0].pixels, path, extractor=extractor, matcher=matcher, orientation="stored")
    assert len(as_stored.scores) < len(expected.scores) / 2
    with pytest.raises(ValueError, match="expected exif or stored"):
        match_images(upright[0].pixels, path, orientation="auto")


def test_imported_features_stay_in_the_frame_of_their_file(folder: Path) -> None:
    first, second = folder.parent / "features.h5", folder.parent / "imported.h5"
    extract_features(folder, first, MarkedPixels(), orientation={"3.png": 1})
    extract_features(folder, second, ImportedExtractor.create(ImportedOptions("imported", str(first)), "cpu"))
    with H5Reader(first) as original, H5Reader(second) as copy:
        for code in CODES:
            before, after = original.features(f"{code}.png"), copy.features(f"{code}.png")
            np.testing.assert_array_equal(after.keypoints, before.keypoints)
            assert after.orientation == before.orientation == (1 if code == 3 else code)


def test_a_damaged_orientation_in_a_file_is_named(folder: Path) -> None:
    extract_features(folder, folder.parent / "features.h5", MarkedPixels())
    with h5py.File(folder.parent / "features.h5", "r+") as file:
        file["6.png"].attrs["orientation"] = 12
    with (
        H5Reader(folder.parent / "features.h5") as reader,
        pytest.raises(ValueError, match=r"features\.h5: 6\.png: orientation 12"),
    ):
        reader.features("6.png")


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("ending", ["jpg", "tif", "webp", "png"])
def test_every_format_is_decoded_as_stored_and_turned_once(tmp_path: Path, ending: str, code: int) -> None:
    """Pillow turns TIFF files by itself when it loads them, and no others."""
    upright = scene()
    upright[:20, :30] = (200, 30, 30)
    path = write_turned(tmp_path, f"a.{ending}", upright, code)
    header, image = read_header(path), load_image(path)
    assert header.orientation == read_orientation(path) == image.orientation == code
    stored = turn_pixels_back(upright, code)
    assert header.size == image.size == (stored.shape[1], stored.shape[0])
    error = np.abs(turn_pixels(image.pixels, image.orientation).astype(int) - upright).mean()
    assert error < 6, "JPEG and WebP lose a little"


def test_photos_without_a_valid_tag_count_as_upright(tmp_path: Path) -> None:
    PILImage.fromarray(scene()).save(tmp_path / "none.png")
    assert read_orientation(tmp_path / "none.png") == 1
    for code in (0, 9):
        exif = PILImage.Exif()
        exif[0x0112] = code
        PILImage.fromarray(scene()).save(tmp_path / "odd.jpg", exif=exif)
        assert read_orientation(tmp_path / "odd.jpg") == 1
