"""The compiled kernels against float64 torch on the same inputs."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sfm_lightglue.engine.kernel_calls import Kernels
from sfm_lightglue.engine.kernels import open_library

# Half a unit in the last place: bfloat16 has 8 bits (the result is rounded, and each attention weight), float32 has 24 bits (its
# results have some more roundings).
HALF_UNIT = {torch.bfloat16: 2.0**-8, torch.float32: 2.0**-24}
# Relative errors of exponentials and error functions: by design for bfloat16, a few roundings for float32.
FUNCTION_ERROR = {torch.bfloat16: 2e-4, torch.float32: 8 * 2.0**-24}
GUARD = 7.0


@pytest.fixture(scope="module")
def kernels(library: Path) -> Kernels:
    return Kernels(open_library(library))


@pytest.fixture(scope="module")
def kernels_without_tiles(library: Path) -> Kernels:
    """The kernels as on a CPU without AMX."""
    opened = open_library(library)
    level = min(opened.supported(), 2)
    opened.supported = lambda: level  # type: ignore[assignment, misc]
    return Kernels(opened)


@pytest.fixture(params=["float32", "bfloat16", "bfloat16 by tiles"])
def dtype(
    request: pytest.FixtureRequest, kernels: Kernels, kernels_without_tiles: Kernels, monkeypatch: pytest.MonkeyPatch
) -> torch.dtype:
    """The dtype of the elements. `kernels` then have the tiles of AMX or not."""
    if "tiles" in request.param:
        if not kernels.supports_tiles:
            pytest.skip("this CPU has no AMX")
        return torch.bfloat16
    monkeypatch.setattr(kernels, "_functions", kernels_without_tiles._functions)
    if request.param == "bfloat16" and not kernels.supports_bfloat16:
        pytest.skip("this CPU has no AVX512-BF16")
    return getattr(torch, request.param)


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0, scale: float = 1.0) -> Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


def strided(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """A copy with gaps between its rows and an unaligned address, and the whole tensor that it is a part of."""
    rows, width = tensor.shape
    whole = torch.full((rows + 2, width + 37), GUARD, dtype=tensor.dtype)
    view = whole[1 : rows + 1, 3 : width + 3]
    view.copy_(tensor)
    return view, whole


def is_guarded(view: Tensor, whole: Tensor) -> bool:
    """True if only the view was written."""
    view.fill_(GUARD)
    return bool((whole == GUARD).all())


def heads_first(x: Tensor, num_heads: int) -> Tensor:
    return x.double().unflatten(1, (num_heads, -1)).transpose(0, 1)


def attention_of(kernels: Kernels, query: Tensor, key: Tensor, value: Tensor, num_heads: int = 4) -> Tensor:
    out = torch.empty_like(query)
    kernels.attention(query, key, value, out, num_heads, (query.shape[1] // num_heads) ** -0.5)
    return out


def check_attention(out: Tensor, query: Tensor, key: Tensor, value: Tensor, num_heads: int) -> None:
    dtype = out.dtype
    query, key, value = (heads_first(x, num_heads) for x in (query, key, value))
    scale = query.shape[-1] ** -0.5
    weights = torch.softmax(query @ key.mT * scale, dim=-1)
    # Each logit is a float32 sum. Its roundings make a random walk, and are relative to the sum of absolute products.
    logit_error = 2.0**-24 * 4 * (query.abs() @ key.abs().mT * scale).amax(-1, keepdim=True)
    allowed = (2 * HALF_UNIT[dtype] + FUNCTION_ERROR[dtype] + 2 * logit_error) * (weights @ value.abs()) + 1e-30
    assert ((heads_first(out, num_heads) - weights @ value).abs() <= allowed).all()


@pytest.mark.parametrize("head_size", [32, 64, 96, 128])
@pytest.mark.parametrize(
    ("n", "m"),
    [(1, 1), (1, 2), (2, 1), (5, 63), (63, 5), (64, 64), (65, 63), (6, 513), (500, 65), (7, 1100), (33, 256), (40, 289)],
)
def test_attention_equals_float64(kernels: Kernels, dtype: torch.dtype, n: int, m: int, head_size: int) -> None:
    width = 2 * head_size
    query, key, value = (
        normal(n, width, dtype=dtype),
        normal(m, width, dtype=dtype, seed=1, scale=3),
        normal(m, width, dtype=dtype),
    )
    check_attention(attention_of(kernels, query, key, value, 2), query, key, value, 2)


def test_attention_equals_float64_on_2048_keypoints(kernels: Kernels, dtype: torch.dtype) -> None:
    query, key, value = (normal(2048, 256, dtype=dtype, seed=i, scale=scale) for i, scale in enumerate((3, 1, 1)))
    check_attention(attention_of(kernels, query, key, value), query, key, value, 4)


@pytest.mark.parametrize("n", [437, 2048])
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_attention_in_float32_is_no_less_exact_than_torch(kernels: Kernels, n: int, scale: float) -> None:
    query, key, value = (normal(n, 256, seed=i, scale=scale if i == 0 else 1.0) for i in range(3))
    of_heads = [heads_first(x, 4) for x in (query, key, value)]
    expected = F.scaled_dot_product_attention(*of_heads)
    by_torch = F.scaled_dot_product_attention(*(x.float()[None] for x in of_heads))[0]
    by_kernels = heads_first(attention_of(kernels, query, key, value), 4)
    assert (by_kernels - expected).abs().mean() <= (by_torch - expected).abs().mean()


@pytest.mark.parametrize("m", [5, 600])
def test_attention_works_for_logits_of_hundreds(kernels: Kernels, dtype: torch.dtype, m: int) -> None:
    directions = F.normalize(normal(m, 64), dim=1)
    key = (directions * 540**0.5 * 64**0.25).to(dtype)
    query = torch.cat([key, -key])  # each query has a logit of 540 or of -540
    logits = heads_first(query, 1)[0] @ heads_first(key, 1)[0].T / 8
    assert logits.max() > 500 and logits.min() < -500
    value = normal(m, 64, dtype=dtype, seed=2)
    check_attention(attention_of(kernels, query, key, value, 1), query, key, value, 1)


def test_attention_follows_a_maximum_that_rises_from_block_to_block(kernels: Kernels, dtype: torch.dtype) -> None:
    key = torch.linspace(-30, 30, 2000)[:, None].expand(-1, 64).to(dtype).contiguous()
    value = normal(2000, 64, dtype=dtype)
    query = torch.stack([torch.ones(64), -torch.ones(64), torch.zeros(64)]).to(dtype)
    check_attention(attention_of(kernels, query, key, value, 1), query, key, value, 1)


def test_weights_in_float32_are_exact_to_the_last_bits_until_they_underflow(kernels: Kernels) -> None:
    exponents = torch.linspace(-86, 0, 200)
    query, value = torch.zeros(1, 32), torch.tensor([[0.0], [1.0]]).expand(-1, 32).contiguous()
    query[0, 0] = 1
    for exponent in exponents:
        key, out = torch.zeros(2, 32), torch.empty(1, 32)
        key[1, 0] = exponent
        kernels.attention(query, key, value, out, 1, 1.0)  # softmax of 0 and the exponent
        assert out[0, 0].item() == pytest.approx(torch.sigmoid(exponent.double()).item(), rel=2e-7)


def test_equal_logits_far_below_zero_give_the_mean(kernels: Kernels, dtype: torch.dtype) -> None:
    key, value = torch.full((37, 64), -16.0, dtype=dtype), torch.ones(37, 64, dtype=dtype)  # zeros as padding keys would win
    assert attention_of(kernels, torch.full_like(key, 8.0), key, value, 1).double().sub(1).abs().max() <= 2.0**-8


@pytest.mark.parametrize("m", [64, 700])
def test_a_row_has_the_same_bits_alone_and_anywhere(kernels: Kernels, dtype: torch.dtype, m: int) -> None:
    query, key, value = (normal(rows, 256, dtype=dtype, seed=i) for i, rows in enumerate((100, m, m)))
    out = attention_of(kernels, query, key, value)
    order = torch.randperm(100, generator=torch.Generator().manual_seed(3))
    assert torch.equal(attention_of(kernels, query[order], key, value), out[order])
    for i in (0, 1, 5, 6, 57, 99):
        assert torch.equal(attention_of(kernels, query[i : i + 1], key, value), out[i : i + 1])


def test_attention_reads_and_writes_rows_with_gaps(kernels: Kernels, dtype: torch.dtype) -> None:
    query, key, value = (normal(rows, 256, dtype=dtype, seed=i) for i, rows in enumerate((77, 130, 130)))
    expected = attention_of(kernels, query, key, value)
    out, whole = strided(torch.zeros_like(query))
    kernels.attention(strided(query)[0], strided(key)[0], strided(value)[0], out, 4, 0.125)
    assert torch.equal(out, expected)
    assert is_guarded(out, whole)


def test_products_of_torch_are_right_between_calls(kernels: Kernels, dtype: torch.dtype) -> None:
    """oneDNN uses the same tiles with other shapes."""
    products = [(normal(n, k, dtype=dtype, seed=n), normal(k, 64, dtype=dtype)) for n, k in ((128, 256), (37, 40), (5, 300))]
    expected = [left @ right for left, right in products]
    rows = normal(50, 256, dtype=dtype)
    context = attention_of(kernels, rows, rows, rows)
    for _ in range(3):
        for (left, right), alone in zip(products, expected, strict=True):
            for _ in range(2):
                assert torch.equal(left @ right, alone)
                assert torch.equal(attention_of(kernels, rows, rows, rows), context)


def test_denormal_numbers_are_zero_only_during_a_call(kernels: Kernels, dtype: torch.dtype) -> None:
    rows = normal(50, 256, dtype=dtype, scale=30)  # logits in the thousands: weights underflow
    attention_of(kernels, rows, rows, rows)
    assert (torch.full((64,), 2.0**-120) * 2.0**-20 == 2.0**-140).all()


def test_no_queries_give_no_rows(kernels: Kernels) -> None:
    assert attention_of(kernels, normal(0, 256), normal(5, 256), normal(5, 256)).shape == (0, 256)


def test_threads_do_not_disturb_each_other(kernels: Kernels, dtype: torch.dtype) -> None:
    inputs = [tuple(normal(size, 256, dtype=dtype, seed=3 * size + i) for i in range(3)) for size in range(100, 900, 50)]
    alone = [attention_of(kernels, *each) for each in inputs]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda each: attention_of(kernels, *each), inputs))
    assert all(map(torch.equal, together, alone))


def rotated(rows: Tensor, cos_sin: Tensor, bias: Tensor | float) -> Tensor:
    even, odd = (rows.double() + bias).unflatten(1, (-1, 2, cos_sin.shape[1] // 2)).unbind(2)
    cos, sin = cos_sin.double()[:, None].chunk(2, dim=-1)
    return torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=2).flatten(1)


@pytest.mark.parametrize(("num_heads", "head_size"), [(4, 64), (1, 96), (3, 32), (2, 128)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_rotate_turns_pairs_of_channels(
    kernels: Kernels, dtype: torch.dtype, num_heads: int, head_size: int, with_bias: bool
) -> None:
    width = 2 * num_heads * head_size
    angles = normal(65, head_size // 2, scale=3)
    cos_sin = strided(torch.cat([angles.cos(), angles.sin()], dim=1))[0]
    bias = normal(width, seed=1) if with_bias else None
    rows, whole = strided(normal(65, width, dtype=dtype, seed=2))
    expected = rotated(rows, cos_sin, 0.0 if bias is None else bias.double())
    kernels.rotate(rows, cos_sin, num_heads, bias)
    torch.testing.assert_close(rows.double(), expected, rtol=HALF_UNIT[dtype], atol=1e-6)
    assert is_guarded(rows, whole)


@pytest.mark.parametrize("width", [96, 256])
def test_add_bias_adds_it_to_all_rows(kernels: Kernels, dtype: torch.dtype, width: int) -> None:
    rows, whole = strided(normal(9, width, dtype=dtype))
    bias = normal(width, seed=1)
    expected = (rows.float() + bias).to(dtype)  # one rounding: equal bit for bit
    kernels.add_bias(rows, bias)
    assert torch.equal(rows, expected)
    assert is_guarded(rows, whole)


@pytest.mark.parametrize("width", [192, 256, 384, 512])
@pytest.mark.parametrize("offset", [0.0, 200.0])  # a variance from the mean of squares would lose all digits beside a mean of 200
def test_bias_norm_gelu_equals_float64(kernels: Kernels, dtype: torch.dtype, width: int, offset: float) -> None:
    hidden, whole = strided(normal(63, width, dtype=dtype, scale=2))
    bias, weight, norm_bias = (normal(width, seed=i) for i in (1, 2, 3))
    bias += offset
    normalized = F.layer_norm(hidden.double() + bias.double(), (width,), weight.double(), norm_bias.double(), 1e-5)
    kernels.bias_norm_gelu(hidden, bias, weight, norm_bias)
    # float32 keeps 1e-5 beside an offset of 200, and 1e-6 beside values of 10.
    rtol = HALF_UNIT[dtype] + FUNCTION_ERROR[dtype]
    torch.testing.assert_close(hidden.double(), F.gelu(normalized), rtol=rtol, atol=2e-6 + 4e-7 * offset)
    assert is_guarded(hidden, whole)


def test_bias_norm_gelu_in_float32_is_no_less_exact_than_torch(kernels: Kernels) -> None:
    hidden, bias, weight, norm_bias = normal(500, 512, scale=2), *(normal(512, seed=i) for i in (1, 2, 3))
    expected, by_torch = (
        F.gelu(F.layer_norm((hidden.to(t) + bias.to(t)), (512,), weight.to(t), norm_bias.to(t), 1e-5)).double()
        for t in (torch.float64, torch.float32)
    )
    kernels.bias_norm_gelu(hidden, bias, weight, norm_bias)
    errors, errors_of_torch = (hidden - expected).abs(), (by_torch - expected).abs()
    # The mean is 0.68 of torch's on every processor. The largest of 256 000 errors is 0.97 of torch's with AVX2, 1.06 without.
    assert errors.mean() <= errors_of_torch.mean() and errors.max() <= 1.5 * errors_of_torch.max()


def test_gelu_is_exact_from_the_far_left_to_the_far_right(kernels: Kernels, dtype: torch.dtype) -> None:
    x = torch.linspace(-12, 12, 512)
    hidden = torch.zeros(1, 512, dtype=dtype)
    kernels.bias_norm_gelu(hidden, torch.zeros(512), torch.zeros(512), x)  # only the norm's bias reaches the GELU
    expected = x.double() * torch.special.erfc(-x.double() / 2**0.5) / 2
    rtol = HALF_UNIT[dtype] + FUNCTION_ERROR[dtype]
    # The exponent -x^2 / 2 has one more rounding, and the result has its relative error. The error for bfloat16 is absolute.
    allowed = (rtol + x.double() ** 2 * 2.0**-25) * expected.abs() + (1e-6 if dtype == torch.bfloat16 else 0.0)
    assert ((hidden[0].double() - expected).abs() <= allowed).all()


@pytest.mark.parametrize("dim", [96, 128, 192, 256])
@pytest.mark.parametrize("with_heads", [False, True])
def test_add_update_adds_rounds_and_reads_the_heads(kernels: Kernels, dtype: torch.dtype, dim: int, with_heads: bool) -> None:
    x, whole_x = strided(normal(65, dim, scale=4))
    update, bias, heads = normal(65, dim, dtype=dtype, seed=1), normal(dim, seed=2), normal(2, dim, seed=3)
    tokens, whole_tokens = strided(torch.zeros(65, dim, dtype=dtype))
    expected = x + (update.float() + bias)
    logits = kernels.add_update(x, strided(update)[0], bias, tokens, heads if with_heads else None)
    assert torch.equal(x, expected)
    assert torch.equal(tokens, expected.to(dtype))
    if with_heads:
        torch.testing.assert_close(logits, (expected.double() @ heads.double().T).float(), rtol=1e-5, atol=1e-4)
    else:
        assert logits is None
    assert is_guarded(x, whole_x) and is_guarded(tokens, whole_tokens)


def test_add_update_takes_tokens_in_the_memory_of_x(kernels: Kernels) -> None:
    rows, update, bias, heads = normal(65, 512), normal(65, 256, seed=1), normal(256, seed=2), normal(2, 256, seed=3)
    apart, context = rows[:, :256].clone(), rows[:, 256:].clone()
    expected = kernels.add_update(apart, update, bias, torch.empty_like(apart), heads)
    logits = kernels.add_update(rows[:, :256], update, bias, rows[:, :256], heads)
    assert logits is not None and expected is not None and torch.equal(logits, expected)
    assert torch.equal(rows, torch.cat([apart, context], dim=1))


def test_element_wise_rows_have_the_same_bits_alone(kernels: Kernels, dtype: torch.dtype) -> None:
    hidden, vector, heads = normal(40, 512, dtype=dtype), normal(512, seed=1), normal(2, 512, seed=2)
    alone, x = hidden[17:18].clone(), normal(40, 512, seed=3)
    x_alone, tokens = x[17:18].clone(), torch.empty_like(hidden)
    for rows in (hidden, alone):
        kernels.bias_norm_gelu(rows, vector, vector, vector)
    logits = kernels.add_update(x, hidden, vector, tokens, heads)
    logits_alone = kernels.add_update(x_alone, alone, vector, tokens[:1].clone(), heads)
    assert torch.equal(alone, hidden[17:18]) and torch.equal(x_alone, x[17:18])
    assert logits is not None and logits_alone is not None and torch.equal(logits_alone, logits[17:18])


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 13), (36, 130)])
def test_first_layer_is_a_convolution(kernels: Kernels, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    grey, weight, bias = torch.rand(size[0], size[1] + 5)[:, : size[1]], 300 * torch.randn(64, 1, 3, 3), 50 * torch.randn(64)
    exact = F.conv2d(grey[None, None].double(), weight.double(), bias.double(), padding=1)
    rows = torch.cat([weight.flatten(1).T, bias[None]])
    found = kernels.first_layer(grey, rows, torch.uint8)
    assert found.dtype == torch.uint8 and found.is_contiguous(memory_format=torch.channels_last)
    assert found.shape == exact.shape and (found - exact.clamp(0, 255)).abs().max() <= 0.5 + 1e-3
    torch.testing.assert_close(kernels.first_layer(grey, rows, torch.float32).double(), exact.relu(), atol=1e-3, rtol=0)


def test_other_tensors_are_refused(kernels: Kernels) -> None:
    rows, bias = normal(8, 256), torch.zeros(256)
    cases = [
        (kernels.attention, (rows.half(), rows, rows, rows, 4, 1.0), "found elements of torch.float16"),
        (kernels.attention, (rows, rows.bfloat16(), rows, rows, 4, 1.0), "found torch.bfloat16"),
        (kernels.attention, (rows, rows, rows[:5], rows, 4, 1.0), r"\(5, 256\)"),
        (kernels.attention, (rows, rows, rows, rows, 16, 1.0), "expected heads of 32"),
        (kernels.attention, (rows, rows[:0], rows[:0], rows, 4, 1.0), "0 keys"),
        (kernels.attention, (rows, rows, rows, normal(256, 8).T, 4, 1.0), "last dimension contiguous"),
        (kernels.rotate, (rows, torch.zeros(8, 48), 4), "multiple of 32"),
        (kernels.rotate, (rows, torch.zeros(7, 64), 4), r"\(7, 64\)"),
        (kernels.add_bias, (normal(8, 250), bias), "multiple of 16"),
        (kernels.bias_norm_gelu, (rows, bias, bias, bias[::2]), r"\(128,\)"),
        (kernels.bias_norm_gelu, (normal(1, 8192), bias, bias, bias), "at most 4096"),
        (kernels.add_update, (rows.double(), rows, bias, rows), "expected torch.float32"),
        (kernels.winograd, (torch.zeros(8, 8, 48), bias, None, torch.zeros(64), torch.float32, 1), "channels a multiple of 32"),
        (kernels.winograd, (torch.zeros(8, 32, 8).mT, bias, None, torch.zeros(64), torch.float32, 1), "contiguous pixels"),
        (kernels.winograd, (torch.zeros(8, 8, 32), bias, None, torch.zeros(64), torch.float32, 1), r"\(73728,\)"),
        (kernels.winograd, (torch.zeros(8, 8, 32).bfloat16(), bias, None, bias, torch.float32, 1), "elements of torch.bfloat16"),
    ]
    for method, arguments, message in cases:
        with pytest.raises(ValueError, match=message):
            method(*arguments)


@pytest.mark.parametrize(("r", "n"), [(1, 1), (3, 15), (2, 16), (7, 17), (70, 333), (130, 2048)])
def test_scanned_rows_equal_float64(kernels: Kernels, r: int, n: int) -> None:
    rows, whole = strided(normal(r, n, scale=8))
    before = normal(5, n, seed=1, scale=8).double()
    maximum, total = before.amax(dim=0).float(), (before - before.amax(dim=0)).exp().sum(dim=0).float()
    given = rows.double()

    lse, row, column, value = kernels.scan_rows(rows, math.log(0.05), maximum, total)

    torch.testing.assert_close(lse.double(), given.logsumexp(dim=1), atol=4e-6, rtol=0)
    entries = (given > given.logsumexp(dim=1, keepdim=True) + math.log(0.05)).nonzero()
    assert torch.equal(torch.stack([row, column], dim=1), entries) and torch.equal(value.double(), given[row, column])
    everything = torch.cat([before, given])
    assert torch.equal(maximum.double(), everything.amax(dim=0))
    torch.testing.assert_close(maximum.double() + total.double().log(), everything.logsumexp(dim=0), atol=4e-6, rtol=0)
    assert is_guarded(rows, whole)


def test_scanned_rows_may_all_be_equal_and_their_columns_new(kernels: Kernels) -> None:
    maximum, total = torch.full((20,), -math.inf), torch.zeros(20)
    lse, row, _, value = kernels.scan_rows(torch.full((3, 20), -700.0), math.log(0.04), maximum, total)
    assert lse.tolist() == pytest.approx([math.log(20) - 700] * 3) and len(row) == 60 and (value == -700).all()
    assert maximum.tolist() == [-700.0] * 20 and total.tolist() == pytest.approx([3.0] * 20)
    with pytest.raises(ValueError, match="at most 0"):
        kernels.scan_rows(torch.zeros(3, 20), 0.5, maximum, total)


@pytest.mark.parametrize(("m", "n", "d"), [(1, 1, 32), (1, 70, 64), (70, 1, 32), (7, 64, 128), (13, 65, 96), (50, 1100, 128)])
def test_two_nearest_equal_float64(kernels: Kernels, dtype: torch.dtype, m: int, n: int, d: int) -> None:
    (rows, whole), (columns, _) = strided(normal(m, d, dtype=dtype)), strided(normal(n, d, dtype=dtype, seed=1))
    factors, column_factors = (1 / each.float().norm(dim=1) for each in (rows, columns))
    entries = (rows.double() @ columns.double().T) * factors[:, None].double() * column_factors.double()
    beside = torch.full((m, 1), -math.inf).double()
    expected, index = torch.cat([entries, beside], dim=1).topk(2, dim=1)
    of_columns = torch.cat([entries, beside.new_full((1, n), -math.inf)]).topk(2, dim=0).values

    best, found, second, column_best, column_second = kernels.two_nearest(rows, factors, columns, column_factors)

    assert torch.equal(found, index[:, 0])
    for values, exact in zip((best, second, column_best, column_second), (*expected.T, *of_columns), strict=True):
        torch.testing.assert_close(values.double(), exact, atol=1e-6, rtol=0)
    assert is_guarded(rows, whole)


def test_of_equal_columns_the_first_is_the_nearest_and_another_the_second(kernels: Kernels, dtype: torch.dtype) -> None:
    column = torch.ones(1, 32, dtype=dtype)
    columns = torch.cat([-column.repeat(3, 1), column.repeat(600, 1)])  # in other lanes and blocks
    ones = torch.ones(len(columns)) / 32
    best, index, second, column_best, _ = kernels.two_nearest(column.repeat(9, 1), torch.ones(9), columns, ones)
    assert (index == 3).all() and (best == 1).all() and (second == 1).all()
    assert column_best.tolist() == [-1.0] * 3 + [1.0] * 600


def test_whole_numbers_of_eight_bits_give_the_same_bits_in_bfloat16(kernels: Kernels) -> None:
    if not kernels.supports_bfloat16:
        pytest.skip("this CPU has no AVX512-BF16")
    both = [torch.randint(0, 256, (size, 128), generator=torch.Generator().manual_seed(size)) / 512 for size in (90, 700)]
    factors = [1 / each.norm(dim=1) for each in both]
    exact, halved = (
        kernels.two_nearest(both[0].to(dtype), factors[0], both[1].to(dtype), factors[1])
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert all(map(torch.equal, exact, halved))


def test_nearest_of_no_columns_or_of_odd_vectors_are_refused(kernels: Kernels) -> None:
    rows, factors = normal(3, 64), torch.ones(3)
    with pytest.raises(ValueError, match="0 columns: expected 1"):
        kernels.two_nearest(rows, factors, rows[:0], factors[:0])
    with pytest.raises(ValueError, match="multiple of 32"):
        kernels.two_nearest(rows[:, :40], factors, rows[:, :40], factors)
    with pytest.raises(ValueError, match=r"\(2,\)"):
        kernels.two_nearest(rows, factors, rows, factors[:2])
