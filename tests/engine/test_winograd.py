"""Winograd convolutions by the kernels against convolutions in float64, and SuperPoint made of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfm_lightglue.engine.kernel_calls import Kernels
from sfm_lightglue.engine.kernels import open_library
from sfm_lightglue.networks import int8, superpoint, winograd
from sfm_lightglue.networks.superpoint import INT8_LAYERS, SuperPoint
from sfm_lightglue.networks.winograd import FirstConvolution, WinogradConvolution


@pytest.fixture(scope="module")
def kernels(library: Path) -> Kernels:
    return Kernels(open_library(library))


def convolution(channels: int, results: int, scale: float = 1.0) -> nn.Conv2d:
    torch.manual_seed(channels + results)
    layer = nn.Conv2d(channels, results, 3, padding=1).requires_grad_(False)
    layer.weight.mul_(scale)
    return layer


def expected(layer: nn.Conv2d, x: Tensor, pool: int) -> Tensor:
    assert layer.bias is not None
    exact = F.relu(F.conv2d(x.double(), layer.weight.double(), layer.bias.double(), padding=1))
    return F.max_pool2d(exact, pool) if pool > 1 else exact


def drawn(*shape: int, integers: bool = False) -> Tensor:
    values = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    values = (255 * values).round().to(torch.uint8) if integers else values
    return values.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("pool", [1, 2])
@pytest.mark.parametrize(
    "shape", [(1, 32, 64, 2, 2), (2, 64, 64, 4, 4), (1, 64, 128, 5, 9), (1, 128, 64, 23, 101), (1, 64, 64, 96, 3)]
)
def test_a_convolution_in_float32(kernels: Kernels, shape: tuple[int, ...], pool: int) -> None:
    batch, channels, results, height, width = shape
    layer, x = convolution(channels, results), drawn(batch, channels, height, width)
    exact = expected(layer, x, pool)
    found = WinogradConvolution(layer, kernels, pool=pool)(x)
    assert found.dtype == torch.float32 and found.shape == exact.shape and found.is_contiguous(memory_format=torch.channels_last)
    assert (found - exact).abs().max() < 2e-5 * exact.max()
    by_rows = WinogradConvolution(layer, kernels, pool=pool)(x.contiguous())  # channels first
    assert torch.equal(by_rows, found)


@pytest.mark.parametrize("pool", [1, 2])
@pytest.mark.parametrize("shape", [(1, 32, 64, 2, 2), (2, 64, 64, 7, 30), (1, 128, 128, 21, 50)])
def test_a_convolution_of_integers(kernels: Kernels, shape: tuple[int, ...], pool: int) -> None:
    batch, channels, results, height, width = shape
    layer, x = convolution(channels, results), drawn(batch, channels, height, width, integers=True)
    exact = expected(layer, x.double() * 3 / 255, pool)
    values = WinogradConvolution(layer, kernels, pool=pool, limit=3.0)(x)
    assert values.dtype == torch.float32 and (values - exact).abs().max() < 2e-3 * exact.max()
    limit = 0.8 * exact.max().item()
    found = WinogradConvolution(layer, kernels, pool=pool, limit=3.0, result=limit)(x)
    assert found.dtype == torch.uint8 and found.max() == 255, "larger values are cut"
    assert (found.double() - (exact / limit * 255).clamp(max=255)).abs().max() < 1.0
    assert (found.double() - (values.double() / limit * 255).clamp(max=255)).abs().max() < 0.501


def test_integers_are_summed_exactly(kernels: Kernels) -> None:
    """Hence a result does not depend on the instructions of a CPU."""
    layer, x = convolution(64, 64), drawn(1, 64, 4, 12, integers=True)
    assert layer.bias is not None
    transformed = winograd.transformed_weights(layer.weight)
    scales = winograd.integer_scales(transformed)
    weights = (transformed / scales[:, None]).round()  # 36 c d
    window = torch.tensor(winograd._WINDOW, dtype=torch.float64)
    windows = F.pad(x[0].double(), (1, 1, 1, 1)).unfold(2, 6, 4)  # c 6 tiles 6
    pixels = torch.einsum("ia,catb,jb->ijct", window, windows, window).flatten(0, 1)
    assert pixels.abs().max() < 2**15
    sums = torch.einsum("pct,pcd->ptd", pixels, weights) * (scales * 3 / 255)[:, None]
    back = torch.tensor([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]], dtype=torch.float64)
    exact = torch.einsum("ai,bj,ijtd->datb", back, back, sums.view(6, 6, 3, 64)).flatten(2) + layer.bias[:, None, None]
    found = WinogradConvolution(layer, kernels, limit=3.0)(x)[0]
    torch.testing.assert_close(found.double(), exact.relu(), atol=5e-6, rtol=0)


def test_sums_of_integers_never_overflow(kernels: Kernels) -> None:
    """Weights and pixels whose sum at one place is the largest that a layer can have."""
    layer = convolution(128, 64)
    layer.weight.copy_(layer.weight.abs() * 1e3)
    assert layer.bias is not None
    layer.bias.zero_()
    pattern = torch.tensor(winograd._WINDOW, dtype=torch.float64)[1]  # pixels 255 where the window matrix is negative
    row = torch.where(pattern < 0, 1.0, 0.0)
    tile = 255 * torch.maximum(row[:, None] * row, (1 - row)[:, None] * (1 - row))
    x = tile.to(torch.uint8).expand(1, 128, 6, 6).contiguous(memory_format=torch.channels_last)
    padded = F.pad(x, (3, 4, 3, 4)).contiguous(memory_format=torch.channels_last)  # the window of the second tile of each side
    exact = expected(layer, padded.double() / 255, 1)
    found = WinogradConvolution(layer, kernels, limit=1.0)(padded)
    assert (found - exact).abs().max() < 2e-3 * exact.max()
    transformed = winograd.transformed_weights(layer.weight)
    integers = (transformed / winograd.integer_scales(transformed)[:, None]).round()
    sums = integers.abs().sum(dim=1) * winograd.largest_windows()[:, None]
    assert 0.98 * 2**31 < sums.max() < 2**31 and integers.abs().max() < 2**15


def test_pixels_do_not_depend_on_threads_and_rows_far_away(kernels: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = convolution(64, 64), drawn(1, 64, 50, 33)
    whole = WinogradConvolution(layer, kernels)(x)
    part = WinogradConvolution(layer, kernels)(x[:, :, 8:44])  # a view: rows of tiles stay in step
    assert torch.equal(whole[:, :, 12:40], part[:, :, 4:32])
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert torch.equal(WinogradConvolution(layer, kernels)(x), whole)


def test_the_first_convolution_has_a_scale_of_its_result(kernels: Kernels) -> None:
    layer, x = convolution(1, 64), torch.rand(2, 1, 12, 10, generator=torch.Generator().manual_seed(1))
    exact = F.relu(layer(x))
    torch.testing.assert_close(FirstConvolution(layer, kernels)(x), exact, atol=1e-6, rtol=1e-6)
    found = FirstConvolution(layer, kernels, 0.7)(x)
    assert found.dtype == torch.uint8 and found.max() == 255
    assert (found - (exact / 0.7 * 255).clamp(max=255)).abs().max() <= 0.5 + 1e-3


@pytest.mark.parametrize("precision", ["float32", "8 bits"])
@torch.inference_mode()
def test_superpoint_by_kernels(kernels: Kernels, precision: str) -> None:
    torch.manual_seed(0)
    exact, changed = SuperPoint(hypercolumns=True).eval(), SuperPoint(hypercolumns=True).eval()
    changed.load_state_dict(exact.state_dict())
    inputs: dict[str, float] = {}
    for name in INT8_LAYERS:
        exact.get_submodule(f"conv{name}").register_forward_pre_hook(
            lambda _module, args, name=name: inputs.__setitem__(name, max(inputs.get(name, 0.0), float(args[0].max())))
        )
    grey = F.interpolate(torch.rand(1, 1, 12, 15, generator=torch.Generator().manual_seed(2)), (301, 283), mode="bicubic")
    grey = grey.clamp(0, 1)  # more than one band
    wanted = exact.pyramid(grey, (0, 2))
    changed.lower(torch.float32, inputs if precision == "8 bits" else None, kernels)
    by_tiles = precision == "8 bits" and kernels.supports_tiles and int8.is_fast()
    assert isinstance(changed.conv4b, WinogradConvolution) is not by_tiles
    tolerance = 0.05 if precision == "8 bits" else 1e-4
    for found, reference in zip(changed.pyramid(grey, (0, 2)), wanted, strict=True):
        for level, exact_level in zip(found.levels, reference.levels, strict=True):
            assert level.dtype == torch.float32 and (level - exact_level).abs().max() < tolerance * exact_level.max()
        torch.testing.assert_close(found.scores, reference.scores, atol=2e-3 if precision == "8 bits" else 1e-5, rtol=0)


def test_tiles_leave_convolutions_in_8_bits_to_onednn(kernels: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    if not int8.is_fast():
        pytest.skip("this CPU has no VNNI")
    limits = dict.fromkeys(INT8_LAYERS, 5.0)
    monkeypatch.setattr(kernels, "supports_tiles", True)
    network = SuperPoint(hypercolumns=True).eval()
    network.lower(torch.float32, limits, kernels)
    assert isinstance(network.conv1a, FirstConvolution) and isinstance(network.conv2a, int8.Int8Convolution)
    assert isinstance(network.conv4a, nn.Conv2d)
    monkeypatch.setattr(superpoint, "is_fast", lambda: False)  # as with ONEDNN_MAX_CPU_ISA=AVX2
    network = SuperPoint(hypercolumns=True).eval()
    network.lower(torch.float32, limits, kernels)
    assert isinstance(network.conv2a, WinogradConvolution)
