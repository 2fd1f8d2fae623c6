"""Products and attention by integers of 16 bits against float64."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sfm_lightglue.engine.kernel_calls import SUM_OF_WEIGHTS, Kernels
from sfm_lightglue.engine.kernels import open_library


@pytest.fixture(scope="module")
def kernels(library: Path) -> Kernels:
    return Kernels(open_library(library))


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("num_rows", "width", "results"), [(1, 32, 64), (5, 256, 768), (97, 512, 64), (200, 256, 512)])
def test_a_product_loses_less_than_in_bfloat16(kernels: Kernels, num_rows: int, width: int, results: int) -> None:
    rows = normal(num_rows, width + 8)[:, :width] * torch.logspace(-3, 3, num_rows)[:, None]
    weight = normal(results, width, seed=1) * torch.logspace(-2, 2, results)[:, None]
    exact = rows.double() @ weight.double().T
    out = torch.full((num_rows, results + 16), 7.0)
    kernels.product(rows, kernels.integer_weights(weight), out[:, :results])
    assert (out[:, results:] == 7).all()
    lengths = rows.double().norm(dim=1)[:, None] * weight.double().norm(dim=1)
    error = ((out[:, :results] - exact) / lengths).abs()
    of_bfloat16 = ((rows.bfloat16().double() @ weight.bfloat16().double().T - exact) / lengths).abs()
    assert error.max() < 3e-4 and error.mean() < of_bfloat16.mean() / 4
    alone = torch.empty(1, results)
    kernels.product(rows[-1:], kernels.integer_weights(weight), alone)
    assert torch.equal(alone[0], out[-1, :results]), "a row depends on no other"


def test_no_sum_of_a_product_overflows(kernels: Kernels) -> None:
    signs = torch.where(normal(64, 512) > 0, 1.0, -1.0)
    out = torch.empty(64, 64)
    kernels.product(signs, kernels.integer_weights(signs), out)  # the largest sums: all channels of row and weight agree
    torch.testing.assert_close(out, signs @ signs.T, atol=0.5, rtol=0)
    weights = kernels.integer_weights(signs)
    assert 8191 * 512 * int(weights.packed.max()) < 2**31 and 512 * int(weights.packed.max()) > 0.98 * SUM_OF_WEIGHTS
    zeros = torch.zeros(3, 512)
    kernels.product(zeros, weights, out[:3])
    assert (out[:3] == 0).all()


@pytest.mark.parametrize("head_size", [32, 64, 96, 128])
@pytest.mark.parametrize(("n", "m"), [(1, 1), (5, 63), (7, 65), (64, 64), (13, 513), (40, 1100)])
def test_attention_by_integers(kernels: Kernels, n: int, m: int, head_size: int) -> None:
    query, key = normal(n, 2 * head_size), normal(m, 2 * head_size, seed=1, scale=3 / head_size**0.5)
    value = normal(m, 2 * head_size, seed=2) * torch.logspace(-2, 2, 2 * head_size)
    of_heads = [x.double().unflatten(1, (2, -1)).transpose(0, 1)[None] for x in (query, key, value)]
    exact = F.scaled_dot_product_attention(*of_heads, scale=1.0)[0].transpose(0, 1).flatten(1)
    out = torch.empty(n, 2 * head_size)
    kernels.attention(query, key, value, out, 2, 1.0, by_integers=True)
    assert ((out - exact).abs() / value.abs().amax(dim=0)).max() < 2e-3
    again = torch.empty(1, 2 * head_size)
    kernels.attention(query[-1:], key, value, again, 2, 1.0, by_integers=True)
    assert torch.equal(again[0], out[-1])


def test_attention_by_integers_for_logits_of_hundreds(kernels: Kernels) -> None:
    key = F.normalize(normal(600, 64), dim=1) * 540**0.5
    query, value, out = torch.cat([key, -key]), normal(600, 64, seed=2), torch.empty(1200, 64)
    kernels.attention(query, key, value, out, 1, 1.0, by_integers=True)
    exact = F.scaled_dot_product_attention(*(x.double()[None, None] for x in (query, key, value)), scale=1.0)[0, 0]
    assert (out - exact).abs().max() < 0.05 and (out - exact).abs().mean() < 2e-3
