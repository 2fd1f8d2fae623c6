"""Convolutions in 8 bits against the same arithmetic in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfm_lightglue.networks import int8
from sfm_lightglue.networks.int8 import Int8Convolution, Int8Output, max_pool
from sfm_lightglue.networks.superpoint import INT8_LAYERS, SuperPoint

needs_int8 = pytest.mark.skipif(not int8.is_fast(), reason="this CPU has no VNNI")


def convolution(channels_in: int, channels_out: int) -> nn.Conv2d:
    torch.manual_seed(channels_in)
    return nn.Conv2d(channels_in, channels_out, 3, padding=1).requires_grad_(False)


def integers(*shape: int) -> Tensor:
    drawn = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return drawn.contiguous(memory_format=torch.channels_last)


def rounded_convolution(exact: nn.Conv2d, x: Tensor, limit: float) -> Tensor:
    """What 8 bits compute, in float64."""
    weight = exact.weight.double()
    scales = weight.abs().amax((1, 2, 3), keepdim=True) / 127
    weight = torch.round(weight / scales) * scales
    return F.relu(F.conv2d(x.double() * limit / 255, weight, exact.bias.double(), padding=1))


@needs_int8
@pytest.mark.parametrize("size", [(1, 1), (5, 9), (16, 40)])
@torch.inference_mode()
def test_a_convolution_is_that_of_the_rounded_weights(size: tuple[int, int]) -> None:
    exact, x = convolution(64, 32), integers(2, 64, *size)
    expected = rounded_convolution(exact, x, limit=3.0)
    torch.testing.assert_close(Int8Convolution(exact, 3.0, torch.float32)(x).double(), expected, atol=1e-5, rtol=1e-5)
    limit = 0.8 * expected.max().item()
    found = Int8Convolution(exact, 3.0, limit)(x)
    assert found.dtype == torch.uint8 and found.max() == 255, "larger values are cut"
    assert (found.double() - (expected / limit * 255).clamp(max=255)).abs().max() <= 0.5 + 1e-3
    following = Int8Convolution(convolution(32, 8), limit, torch.float32)
    torch.testing.assert_close(following.values(found, torch.float32), found.float() * limit / 255)


@needs_int8
@torch.inference_mode()
def test_rows_do_not_depend_on_the_rows_far_away() -> None:
    layer, x = Int8Convolution(convolution(64, 64), 3.0, torch.bfloat16), integers(1, 64, 40, 33)
    assert torch.equal(layer(x)[:, :, 10:20], layer(x[:, :, 9:21])[:, :, 1:11])


@torch.inference_mode()
def test_the_first_convolution_rounds_its_result_to_the_nearest_of_256_values() -> None:
    exact = convolution(1, 64)
    x = torch.rand(1, 1, 12, 10, generator=torch.Generator().manual_seed(1))
    expected = F.relu(exact(x)) / 0.7 * 255
    found = Int8Output(exact, 0.7)(x)
    assert found.dtype == torch.uint8 and found.min() == 0 and found.max() == 255
    assert (found - expected.clamp(max=255)).abs().max() <= 0.5 + 1e-3


@pytest.mark.parametrize("size", [(2, 2), (7, 10), (8, 5), (1, 4)])
def test_pooling_in_8_bits_is_max_pooling(size: tuple[int, int]) -> None:
    x = integers(2, 16, *size)
    if min(size) > 1:
        assert torch.equal(max_pool(x).float(), F.max_pool2d(x.float(), 2))
    else:
        assert max_pool(x).shape == (2, 16, 0, 2)


@needs_int8
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_superpoint_in_8_bits_changes_little(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    exact, low = SuperPoint(hypercolumns=True).eval(), SuperPoint(hypercolumns=True).eval()
    low.load_state_dict(exact.state_dict())
    inputs: dict[str, float] = {}
    for name in INT8_LAYERS:
        exact.get_submodule(f"conv{name}").register_forward_pre_hook(
            lambda _module, args, name=name: inputs.__setitem__(name, max(inputs.get(name, 0.0), float(args[0].max())))
        )
    grey = F.interpolate(torch.rand(1, 1, 12, 15, generator=torch.Generator().manual_seed(2)), (101, 83), mode="bicubic").clamp(
        0, 1
    )
    expected = exact.pyramid(grey, (0, 2))
    low.lower(dtype, inputs)
    for found, wanted in zip(low.pyramid(grey, (0, 2)), expected, strict=True):
        assert [level.dtype for level in found.levels] == [dtype] * 4
        for level, reference in zip(found.levels, wanted.levels, strict=True):
            assert 0 < (level.float() - reference).abs().max() < 0.05 * reference.max()
        torch.testing.assert_close(found.scores, wanted.scores, atol=2e-3, rtol=0)
    keypoints = torch.tensor([[40.0, 50.0], [10.2, 70.7]])
    similarity = low.describe(low.pyramid(grey, (0,))[0], 0, keypoints) * exact.describe(expected[0], 0, keypoints)
    assert similarity.sum(dim=1).min() > 0.999


def test_without_the_instructions_nothing_is_in_8_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_vnni": False, "avx_vnni": False})
    assert not int8.is_fast.__wrapped__()
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_vnni": True})
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert not int8.is_fast.__wrapped__(), "torch was told not to use AVX512"
    monkeypatch.setattr(int8, "_is_exact", lambda: False)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    assert not int8.is_fast.__wrapped__()
