"""The ALIKED network against kornia's network, which builds the feature map of every pixel."""

from __future__ import annotations

import kornia.feature as kornia_feature
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sfm_lightglue.networks import cpu
from sfm_lightglue.networks.aliked import ALIKED, VARIANTS, load_aliked


@pytest.fixture(autouse=True)
def one_thread():
    """One torch thread: small images are no faster with more threads, and much slower on busy cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def random_oracle(variant: str) -> kornia_feature.ALIKED:
    """kornia's network with random weights. Its offsets are large, and some point outside the image."""
    torch.manual_seed(0)
    network = kornia_feature.ALIKED(f"aliked-{variant}").eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for values in (module.weight, module.running_var):
                torch.nn.init.uniform_(values, 0.5, 1.5)
            for values in (module.bias, module.running_mean):
                torch.nn.init.uniform_(values, -0.5, 0.5)
    for name, parameter in network.named_parameters():
        if "offset_conv" in name and "bias" in name:
            torch.nn.init.uniform_(parameter, -9, 9)
    return network


def published_state(oracle: torch.nn.Module) -> dict[str, Tensor]:
    """The weights in their published form, without the constant grid of kornia's detector."""
    return {key: value for key, value in oracle.state_dict().items() if key != "dkd.hw_grid"}


def pictures(height: int, width: int, count: int = 1) -> Tensor:
    """Images (b, 3, h, w) of noise with structures of several sizes, 0..1."""
    generator = torch.Generator().manual_seed(0)
    sizes = [(height // step + 2, width // step + 2) for step in (3, 16)]
    layers = [F.interpolate(torch.rand(count, 3, *size, generator=generator), (height, width), mode="bicubic") for size in sizes]
    return sum(layers).clamp(0, 2) / 2


def points(height: int, width: int) -> Tensor:
    """Keypoints (n, 2) everywhere in the image, its corners included."""
    inside = torch.rand(300, 2, generator=torch.Generator().manual_seed(1)) * torch.tensor([width - 1, height - 1])
    corners = torch.tensor([[0, 0], [width - 1, 0], [0, height - 1], [width - 1, height - 1]])
    return torch.cat([inside, corners.float()])


def describe(oracle: kornia_feature.ALIKED, features: Tensor, keypoints: Tensor) -> Tensor:
    """kornia's descriptors of one image."""
    last = torch.tensor(features.shape[:1:-1]) - 1
    return oracle.desc_head(features, [2 * keypoints / last - 1])[0][0]


@pytest.mark.parametrize("size", [(64, 96), (45, 131), (100, 33)])
@pytest.mark.parametrize("variant", VARIANTS)
@torch.inference_mode()
def test_scores_and_descriptors_equal_kornias(variant: str, size: tuple[int, int]) -> None:
    oracle = random_oracle(variant)
    images, keypoints = pictures(*size), points(*size)
    features, scores = oracle.extract_dense_map(images)
    network = load_aliked(variant, published_state(oracle)).to(memory_format=torch.channels_last)
    output = network(images)
    assert scores.std() > 1e-3
    torch.testing.assert_close(output.scores, scores[:, 0], atol=1e-5, rtol=0)
    torch.testing.assert_close(network.describe(output, 0, keypoints), describe(oracle, features, keypoints), atol=1e-4, rtol=0)


@torch.inference_mode()
def test_batch_normalisation_is_folded_without_a_change() -> None:
    oracle = random_oracle("t16")
    unfolded = ALIKED("t16").eval()
    unfolded.load_state_dict(published_state(oracle))
    folded = load_aliked("t16", published_state(oracle))
    images = pictures(50, 70)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
    torch.testing.assert_close(folded(images).scores, unfolded(images).scores, atol=1e-5, rtol=0)


@torch.inference_mode()
def test_bands_of_rows_equal_whole_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    network = load_aliked("t16", published_state(random_oracle("t16")))
    images = pictures(130, 60)
    whole = network(images)
    monkeypatch.setattr(cpu, "BAND_PIXELS", 64 * 16)
    bands = network(images)
    torch.testing.assert_close(bands.scores, whole.scores, atol=1e-6, rtol=0)
    for level, expected in zip(bands.levels, whole.levels, strict=True):
        torch.testing.assert_close(level, expected, atol=1e-5, rtol=0)


@torch.inference_mode()
def test_each_image_of_a_batch_has_its_own_result() -> None:
    network = load_aliked("t16", published_state(random_oracle("t16")))
    images, keypoints = pictures(70, 90, 3), points(70, 90)
    together = network(images)
    for i in range(3):
        alone = network(images[i : i + 1])
        torch.testing.assert_close(together.scores[i], alone.scores[0], atol=1e-6, rtol=0)
        expected = network.describe(alone, 0, keypoints)
        torch.testing.assert_close(network.describe(together, i, keypoints), expected, atol=1e-5, rtol=0)


@torch.inference_mode()
def test_no_keypoints_have_no_descriptors() -> None:
    network = ALIKED("n16").eval()
    assert network.describe(network(pictures(32, 32)), 0, torch.zeros(0, 2)).shape == (0, 128)


@torch.inference_mode()
def test_sixteen_bits_in_the_first_layers_change_little() -> None:
    network, lowered = (load_aliked("n16", published_state(random_oracle("n16"))) for _ in range(2))
    lowered.lower(torch.bfloat16)
    images, keypoints = pictures(90, 120), points(90, 120)
    exact, rounded = network(images), lowered(images)
    assert rounded.scores.dtype == torch.float32
    assert 0 < (rounded.scores - exact.scores).abs().max() < 0.02 * exact.scores.max()
    cosines = (network.describe(exact, 0, keypoints) * lowered.describe(rounded, 0, keypoints)).sum(dim=1)
    assert cosines.median() > 0.999


def test_wrong_keys_are_named() -> None:
    state = ALIKED("n16").state_dict()
    state["extra"] = state.pop("conv1.weight")
    with pytest.raises(ValueError, match=r"do not fit ALIKED: 1 missing: conv1\.weight; 1 unexpected: extra"):
        load_aliked("n16", state)
    with pytest.raises(ValueError, match="of another shape"):
        load_aliked("t16", ALIKED("n16").state_dict())
