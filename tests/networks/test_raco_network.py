"""The RaCo network against the published architecture, computed layer by layer from weights with the published names."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sfm_lightglue.networks import cpu
from sfm_lightglue.networks.raco import load_raco

BLOCKS = {"block1": (3, 16), "block2": (16, 32), "block3": (32, 64), "block4": (64, 128), "ranker_head.0": (3, 12)} | {
    f"ranker_head.{i}": (12, 12) for i in range(1, 9)
}
LAYERS = {"conv1": (32, 16, 1), "conv2": (32, 32, 3), "conv3": (32, 64, 3), "conv4": (32, 128, 3)} | {
    **{"score_head.0": (8, 128, 1), "score_head.2": (4, 8, 3), "score_head.4": (4, 4, 3), "score_head.6": (1, 4, 3)},
    **{"ranker_head.9": (1, 12, 5), "covariance_estimator_head.0": (64, 128, 3), "covariance_estimator_head.2": (32, 64, 3)},
    **{"covariance_estimator_head.4": (32, 32, 3), "covariance_estimator_head.6": (3, 32, 1)},
}
BIASED = "ranker_head.9", "covariance_estimator_head.6"


@pytest.fixture(autouse=True)
def one_thread():
    """One torch thread: small images are no faster with more threads, and much slower on busy cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def published_state(seed: int = 0) -> dict[str, Tensor]:
    """Random weights with the published names and shapes."""
    generator = torch.Generator().manual_seed(seed)

    def kernel(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) / (shape[1] * shape[2] * shape[3]) ** 0.5

    def values(size: int, low: float, high: float) -> Tensor:
        return torch.rand(size, generator=generator) * (high - low) + low

    state = {f"{name}.weight": kernel(after, before, side, side) for name, (after, before, side) in LAYERS.items()}
    state |= {f"{name}.bias": values(LAYERS[name][0], -0.5, 0.5) for name in BIASED}
    for name, (before, after) in BLOCKS.items():
        state |= {f"{name}.conv1.weight": kernel(after, before, 3, 3), f"{name}.conv2.weight": kernel(after, after, 3, 3)}
        for norm in (f"{name}.bn1", f"{name}.bn2"):
            state |= {f"{norm}.{key}": values(after, 0.5, 1.5) for key in ("weight", "running_var")}
            state |= {f"{norm}.{key}": values(after, -0.5, 0.5) for key in ("bias", "running_mean")}
            state[f"{norm}.num_batches_tracked"] = torch.tensor(7)
        if name != "block1":
            state |= {
                f"{name}.match_dims.weight": kernel(after, before, 1, 1),
                f"{name}.match_dims.bias": values(after, -0.5, 0.5),
            }
    return state


def block(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    """Two convolutions with batch normalisation and SELU, and a 1x1 convolution around them if the weights have one."""
    inner = x
    for i in "12":
        norm = [state[f"{name}.bn{i}.{key}"] for key in ("running_mean", "running_var", "weight", "bias")]
        inner = F.batch_norm(F.conv2d(inner, state[f"{name}.conv{i}.weight"], padding=1), *norm)
        inner = inner if i == "2" else F.selu(inner)
    if f"{name}.match_dims.weight" in state:
        inner = inner + F.conv2d(x, state[f"{name}.match_dims.weight"], state[f"{name}.match_dims.bias"])
    return F.selu(inner)


def published_maps(state: dict[str, Tensor], images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and ranks (b, h, w). All 128 channels of the joined levels are made for every pixel."""
    height, width = images.shape[2:]
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    normalised = (images - mean[:, None, None]) / deviation[:, None, None]
    across, down = -width % 32, -height % 32
    left, top = across // 2, down // 2
    padded = F.pad(normalised, (left, across - left, top, down - top), mode="replicate")
    inside = slice(top, top + height), slice(left, left + width)

    x1 = block(state, "block1", padded)
    x2 = block(state, "block2", F.avg_pool2d(x1, 2))
    x3 = block(state, "block3", F.avg_pool2d(x2, 4))
    x4 = block(state, "block4", F.avg_pool2d(x3, 4))
    levels = []
    for i, x in enumerate((x1, x2, x3, x4), 1):
        level = F.selu(F.conv2d(x, state[f"conv{i}.weight"], padding=0 if i == 1 else 1))
        levels.append(F.interpolate(level, padded.shape[2:], mode="bilinear", align_corners=True))
    logits = F.selu(F.conv2d(torch.cat(levels, dim=1), state["score_head.0.weight"]))
    for i in (2, 4):
        logits = F.selu(F.conv2d(logits, state[f"score_head.{i}.weight"], padding=1))
    logits = F.conv2d(logits, state["score_head.6.weight"], padding=1)

    ranks = padded
    for i in range(9):
        ranks = block(state, f"ranker_head.{i}", ranks)
    ranks = F.conv2d(F.pad(ranks, (2, 2, 2, 2), mode="reflect"), state["ranker_head.9.weight"], state["ranker_head.9.bias"])
    return logits[:, 0, *inside], ranks[:, 0, *inside]


def pictures(height: int, width: int, count: int = 1) -> Tensor:
    """Images (b, 3, h, w) of noise with structures of several sizes, 0..1."""
    generator = torch.Generator().manual_seed(0)
    sizes = [(height // step + 2, width // step + 2) for step in (3, 16)]
    layers = [F.interpolate(torch.rand(count, 3, *size, generator=generator), (height, width), mode="bicubic") for size in sizes]
    return sum(layers).clamp(0, 2) / 2


@pytest.mark.parametrize("size", [(64, 96), (45, 131), (100, 33)])
@torch.inference_mode()
def test_logits_and_ranks_equal_the_published_architecture(size: tuple[int, int]) -> None:
    state, images = published_state(), pictures(*size, count=2)
    logits, ranks = published_maps(state, images)
    assert logits.std() > 0.01 and ranks.std() > 0.01
    network = load_raco(state).to(memory_format=torch.channels_last)
    torch.testing.assert_close(network(images), logits, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(network.ranker_scores(images), ranks, atol=1e-3 * ranks.std().item(), rtol=1e-5)


@torch.inference_mode()
def test_bands_of_rows_equal_whole_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    network, images = load_raco(published_state()), pictures(130, 60)
    logits, ranks = network(images), network.ranker_scores(images)
    monkeypatch.setattr(cpu, "BAND_PIXELS", 64 * 16)
    torch.testing.assert_close(network(images), logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(network.ranker_scores(images), ranks, atol=1e-3 * ranks.std().item(), rtol=1e-5)


@torch.inference_mode()
def test_sixteen_bits_in_the_first_layers_change_little() -> None:
    network, lowered = load_raco(published_state()), load_raco(published_state())
    lowered.lower(torch.bfloat16)
    images = pictures(90, 120)
    exact, rounded = network(images), lowered(images)
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).abs().max() < 0.1 * (exact.max() - exact.min())
    assert torch.equal(lowered.ranker_scores(images), network.ranker_scores(images))


def test_wrong_keys_are_named() -> None:
    state = published_state()
    state["extra"] = state.pop("conv1.weight")
    with pytest.raises(ValueError, match=r"do not fit RaCo: 1 missing: conv1\.weight; 1 unexpected: extra"):
        load_raco(state)


def test_weights_without_covariances_are_enough() -> None:
    state = {key: value for key, value in published_state().items() if not key.startswith("covariance")}
    assert load_raco(state).state_dict().keys() == load_raco(published_state()).state_dict().keys()
