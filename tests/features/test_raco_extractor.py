"""The RaCo extractor with random weights: detection as published, ranking, descriptors, and its options."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import Tensor

from sfm_lightglue.features.raco import RacoExtractor, RacoOptions, detect
from sfm_lightglue.matches.lightglue import PUBLISHED_WEIGHTS
from sfm_lightglue.networks.aliked import ALIKED, load_aliked
from sfm_lightglue.networks.lightglue_settings import PUBLISHED_SETTINGS
from sfm_lightglue.networks.raco import RaCo, load_raco
from sfm_lightglue.networks.weights import WEIGHTS
from sfm_lightglue.products import Image

CONFIG = Path(__file__).resolve().parents[2] / "configs/features/raco.yaml"


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """One torch thread: small images are no faster with more threads, and much slower on busy cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def options(**changes: object) -> RacoOptions:
    return RacoOptions(**{**OmegaConf.to_container(OmegaConf.load(CONFIG)), **changes})


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Files of random weights for both networks."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    for name, network in (("raco", RaCo()), ("aliked", ALIKED("n16"))):
        torch.save(network.state_dict(), folder / f"{name}.pth")
    return {"weights": str(folder / "raco.pth"), "descriptor_weights": str(folder / "aliked.pth")}


def picture(height: int = 90, width: int = 120, seed: int = 0) -> Image:
    return Image("a", np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def published_keypoints(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Keypoints (n, 2) and probabilities of all 3x3 maxima that do not touch the edge of the image, most probable first."""
    height, width = logits.shape
    probabilities = logits.flatten().softmax(dim=0).reshape(logits.shape)
    highest = F.max_pool2d(probabilities[None], 3, stride=1, padding=1)[0]
    found = []
    for y in range(1, height - 1):
        for x in range(1, width - 1):
            if probabilities[y, x] == highest[y, x]:
                weights = (logits[y - 1 : y + 2, x - 1 : x + 2] / 0.5).flatten().softmax(dim=0).reshape(3, 3)
                offset = (weights[:, 2] - weights[:, 0]).sum(), (weights[2] - weights[0]).sum()
                found.append((-probabilities[y, x].item(), x + offset[0].item(), y + offset[1].item()))
    table = torch.tensor(sorted(found))
    return table[:, 1:], -table[:, 0]


def test_keypoints_and_their_order_are_the_published_ones() -> None:
    logits = 3 * torch.randn(24, 31, generator=torch.Generator().manual_seed(0))
    expected, probabilities = published_keypoints(logits)
    keypoints, scores = detect(logits, 1)
    order = scores.argsort(descending=True)
    torch.testing.assert_close(keypoints[order], expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(scores[order] - logits.flatten().logsumexp(0), probabilities.log(), atol=1e-3, rtol=0)


def test_areas_of_one_value_have_no_keypoints() -> None:
    logits = torch.zeros(20, 20)
    logits[9, 12] = 1
    assert len(detect(logits, 1)[0]) == 1


@torch.inference_mode()
def test_the_best_detections_are_described_by_aliked(weights: dict[str, str]) -> None:
    image = picture()
    features = RacoExtractor.create(options(**weights, max_keypoints=50), "cpu")(image)
    pixels = torch.tensor(image.pixels).permute(2, 0, 1)[None] / 255
    logits = load_raco(torch.load(weights["weights"]))(pixels)[0]
    expected = published_keypoints(logits)[0][:50]
    np.testing.assert_allclose(features.keypoints, expected, atol=1e-3)
    assert (np.diff(features.scores) <= 0).all() and abs(features.scores[0] - logits.max()) < 1e-4
    descriptor = load_aliked("n16", torch.load(weights["descriptor_weights"]))
    np.testing.assert_allclose(features.descriptors, descriptor.describe(descriptor(pixels), 0, expected), atol=1e-4)


@torch.inference_mode()
def test_the_ranker_chooses_among_the_candidates(weights: dict[str, str]) -> None:
    image = picture()
    candidates = RacoExtractor.create(options(**weights, max_keypoints=200), "cpu")(image)
    ranked = RacoExtractor.create(options(**weights, max_keypoints=40, num_candidates=200), "cpu")(image)
    ranks = load_raco(torch.load(weights["weights"])).ranker_scores(torch.tensor(image.pixels).permute(2, 0, 1)[None] / 255)
    grid = 2 * torch.from_numpy(candidates.keypoints) / torch.tensor([119, 89]) - 1
    expected = F.grid_sample(ranks[None], grid[None, None], align_corners=True)[0, 0, 0].numpy()
    best = np.argsort(-expected, kind="stable")[:40]
    np.testing.assert_array_equal(ranked.keypoints, candidates.keypoints[best])
    np.testing.assert_array_equal(ranked.descriptors, candidates.descriptors[best])
    np.testing.assert_allclose(ranked.scores, expected[best], atol=1e-5)
    assert set(best) != set(range(40)), "the detection scores would choose others"


def test_both_files_of_weights_are_recorded(weights: dict[str, str]) -> None:
    extractor = RacoExtractor.create(options(**weights), "cpu")
    assert [record.name for record in extractor.weights] == list(weights.values())


def test_missing_weights_are_named(weights: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SFM_LIGHTGLUE_OFFLINE", "1")
    monkeypatch.setenv("SFM_LIGHTGLUE_CACHE", str(tmp_path))
    monkeypatch.delenv("SFM_LIGHTGLUE_WEIGHTS", raising=False)
    message = r"(?s)weights raco \(raco\.pth; features=raco\) are not on this machine.*weights fetch raco"
    with pytest.raises(FileNotFoundError, match=message):
        RacoExtractor.create(options(**{**weights, "weights": "raco"}), "cpu")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_candidates": 100}, "features.num_candidates=100 is less than features.max_keypoints=2048"),
        ({"num_candidates": -7}, r"features\.num_candidates must be at least 1, found -7"),
        ({"max_keypoints": 0}, r"features\.max_keypoints must be at least 1, found 0"),
        ({"nms_radius": 0}, r"features\.nms_radius must be at least 1, found 0"),
        ({"precision": "lo"}, "Did you mean 'low'"),
    ],
)
def test_options_out_of_range_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        options(**changes)


def test_the_published_lightglue_for_raco_is_known() -> None:
    entry = WEIGHTS[PUBLISHED_WEIGHTS["raco"]]
    assert entry.for_ == "matches=lightglue trained_for=raco" and entry.file == "raco_aliked_lightglue.pth"
    assert PUBLISHED_SETTINGS["raco"] == PUBLISHED_SETTINGS["aliked"]
