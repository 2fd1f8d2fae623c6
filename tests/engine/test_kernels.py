"""The compiled kernels against float64 torch on the same bfloat16 inputs."""

from __future__ import annotations

import hashlib
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sfm_lightglue.engine import kernels as kernels_module
from sfm_lightglue.engine.kernels import Kernels, compile_kernels, load_kernels

# Half a unit in the last of bfloat16's 8 bits, for the result and for each attention weight; the rest is 1e-4 at most.
HALF_UNIT = 2.0**-8
GUARD = 7.0


def normal(*shape: int, seed: int = 0, scale: float = 1.0, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


def strided(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """A copy with gaps between its rows, at an address that is a multiple of nothing but the size of an element; its whole."""
    rows, width = tensor.shape
    whole = torch.full((rows + 2, width + 37), GUARD, dtype=tensor.dtype)
    view = whole[1 : rows + 1, 3 : width + 3]
    view.copy_(tensor)
    return view, whole


def is_guarded(view: Tensor, whole: Tensor) -> bool:
    """True if nothing but the view was written."""
    view.fill_(GUARD)
    return bool((whole == GUARD).all())


def heads_first(x: Tensor, num_heads: int) -> Tensor:
    return x.double().unflatten(1, (num_heads, -1)).transpose(0, 1)


def attention_of(kernels: Kernels, query: Tensor, key: Tensor, value: Tensor, num_heads: int = 4) -> Tensor:
    out = torch.empty_like(query)
    kernels.attention(query, key, value, out, num_heads, (query.shape[1] // num_heads) ** -0.5)
    return out


def check_attention(out: Tensor, query: Tensor, key: Tensor, value: Tensor, num_heads: int, logit_error: float = 0.0) -> None:
    query, key, value = (heads_first(x, num_heads) for x in (query, key, value))
    weights = torch.softmax(query @ key.mT * query.shape[-1] ** -0.5, dim=-1)
    allowed = (2 * HALF_UNIT + 2e-4 + 2 * logit_error) * (weights @ value.abs()) + 1e-30
    assert ((heads_first(out, num_heads) - weights @ value).abs() <= allowed).all()


@pytest.mark.parametrize("head_size", [32, 64, 96, 128])
@pytest.mark.parametrize(
    ("n", "m"), [(1, 1), (1, 2), (2, 1), (5, 63), (63, 5), (64, 64), (65, 63), (6, 513), (500, 65), (7, 1100)]
)
def test_attention_is_that_of_float64(kernels: Kernels, n: int, m: int, head_size: int) -> None:
    query, key, value = normal(n, 2 * head_size), normal(m, 2 * head_size, seed=1, scale=3), normal(m, 2 * head_size, seed=2)
    check_attention(attention_of(kernels, query, key, value, 2), query, key, value, 2)


def test_attention_is_that_of_float64_on_2048_keypoints(kernels: Kernels) -> None:
    query, key, value = normal(2048, 256, scale=3), normal(2048, 256, seed=1), normal(2048, 256, seed=2)
    check_attention(attention_of(kernels, query, key, value), query, key, value, 4)


@pytest.mark.parametrize("m", [5, 600])
def test_attention_holds_logits_of_hundreds(kernels: Kernels, m: int) -> None:
    directions = F.normalize(normal(m, 64, dtype=torch.float32), dim=1)
    key = (directions * 540**0.5 * 64**0.25).bfloat16()
    query = torch.cat([key, -key])  # each query has a logit of 540 or of -540
    logits = heads_first(query, 1)[0] @ heads_first(key, 1)[0].T / 8
    assert logits.max() > 500 and logits.min() < -500
    value = normal(m, 64, seed=2)
    # float32 sums of 64 products: at most 32 roundings to 2^-24 of 540
    check_attention(attention_of(kernels, query, key, value, 1), query, key, value, 1, logit_error=32 * 540 * 2.0**-24)


def test_attention_follows_a_maximum_that_rises_from_block_to_block(kernels: Kernels) -> None:
    key = torch.linspace(-30, 30, 2000)[:, None].expand(-1, 64).bfloat16().contiguous()
    value = normal(2000, 64)
    query = torch.stack([torch.ones(64), -torch.ones(64), torch.zeros(64)]).bfloat16()
    check_attention(attention_of(kernels, query, key, value, 1), query, key, value, 1)


@pytest.mark.parametrize("m", [64, 700])
def test_a_row_has_the_same_bits_alone_and_anywhere(kernels: Kernels, m: int) -> None:
    query, key, value = normal(100, 256), normal(m, 256, seed=1), normal(m, 256, seed=2)
    out = attention_of(kernels, query, key, value)
    order = torch.randperm(100, generator=torch.Generator().manual_seed(3))
    assert torch.equal(attention_of(kernels, query[order], key, value), out[order])
    for i in (0, 1, 5, 6, 57, 99):
        assert torch.equal(attention_of(kernels, query[i : i + 1], key, value), out[i : i + 1])


def test_attention_reads_and_writes_rows_with_gaps(kernels: Kernels) -> None:
    query, key, value = normal(77, 256), normal(130, 256, seed=1), normal(130, 256, seed=2)
    expected = attention_of(kernels, query, key, value)
    out, whole = strided(torch.zeros_like(query))
    kernels.attention(strided(query)[0], strided(key)[0], strided(value)[0], out, 4, 0.125)
    assert torch.equal(out, expected)
    assert is_guarded(out, whole)


def test_no_queries_give_no_rows(kernels: Kernels) -> None:
    assert attention_of(kernels, normal(0, 256), normal(5, 256), normal(5, 256)).shape == (0, 256)


def test_threads_do_not_disturb_each_other(kernels: Kernels) -> None:
    inputs = [tuple(normal(size, 256, seed=3 * size + i) for i in range(3)) for size in range(100, 900, 50)]
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
def test_rotate_turns_pairs_of_channels(kernels: Kernels, num_heads: int, head_size: int, with_bias: bool) -> None:
    width = 2 * num_heads * head_size
    angles = normal(65, head_size // 2, scale=3, dtype=torch.float32)
    cos_sin = strided(torch.cat([angles.cos(), angles.sin()], dim=1))[0]
    bias = normal(width, seed=1, dtype=torch.float32) if with_bias else None
    rows, whole = strided(normal(65, width, seed=2))
    expected = rotated(rows, cos_sin, 0.0 if bias is None else bias.double())
    kernels.rotate(rows, cos_sin, num_heads, bias)
    torch.testing.assert_close(rows.double(), expected, rtol=HALF_UNIT, atol=1e-5)
    assert is_guarded(rows, whole)


@pytest.mark.parametrize("width", [96, 256])
def test_add_bias_adds_it_to_all_rows(kernels: Kernels, width: int) -> None:
    rows, whole = strided(normal(9, width))
    bias = normal(width, seed=1, dtype=torch.float32)
    expected = (rows.float() + bias).bfloat16()  # one rounding: equal bit for bit
    kernels.add_bias(rows, bias)
    assert torch.equal(rows, expected)
    assert is_guarded(rows, whole)


@pytest.mark.parametrize("width", [192, 256, 384, 512])
@pytest.mark.parametrize("offset", [0.0, 200.0])  # a variance by mean of squares would lose it beside such a mean
def test_bias_norm_gelu_is_that_of_float64(kernels: Kernels, width: int, offset: float) -> None:
    hidden, whole = strided(normal(63, width, scale=2))
    bias, weight, norm_bias = (normal(width, seed=i, dtype=torch.float32) for i in (1, 2, 3))
    bias += offset
    normalized = F.layer_norm(hidden.double() + bias.double(), (width,), weight.double(), norm_bias.double(), 1e-5)
    kernels.bias_norm_gelu(hidden, bias, weight, norm_bias)
    # 1.5e-7 |x| is the error of the formula for the error function; float32 at an offset of 200 keeps 1e-5.
    torch.testing.assert_close(hidden.double(), F.gelu(normalized), rtol=HALF_UNIT + 2e-4, atol=2e-6 + 2e-7 * offset)
    assert is_guarded(hidden, whole)


def test_gelu_is_exact_from_the_far_left_to_the_far_right(kernels: Kernels) -> None:
    x = torch.linspace(-12, 12, 512)
    hidden = torch.zeros(1, 512, dtype=torch.bfloat16)
    kernels.bias_norm_gelu(hidden, torch.zeros(512), torch.zeros(512), x)  # the norm's bias alone comes to the GELU
    torch.testing.assert_close(hidden[0].double(), F.gelu(x.double()), rtol=HALF_UNIT + 2e-4, atol=1e-6)


@pytest.mark.parametrize("dim", [96, 128, 192, 256])
@pytest.mark.parametrize("with_heads", [False, True])
def test_add_update_adds_rounds_and_reads_the_heads(kernels: Kernels, dim: int, with_heads: bool) -> None:
    x, whole_x = strided(normal(65, dim, scale=4, dtype=torch.float32))
    update, bias, heads = normal(65, dim, seed=1), normal(dim, seed=2, dtype=torch.float32), normal(2, dim, seed=3).float()
    tokens, whole_tokens = strided(torch.zeros(65, dim, dtype=torch.bfloat16))
    expected = x + (update.float() + bias)
    logits = kernels.add_update(x, strided(update)[0], bias, tokens, heads if with_heads else None)
    assert torch.equal(x, expected)
    assert torch.equal(tokens, expected.bfloat16())
    if with_heads:
        torch.testing.assert_close(logits, (expected.double() @ heads.double().T).float(), rtol=1e-5, atol=1e-4)
    else:
        assert logits is None
    assert is_guarded(x, whole_x) and is_guarded(tokens, whole_tokens)


def test_element_wise_rows_have_the_same_bits_alone(kernels: Kernels) -> None:
    hidden, vector, heads = normal(40, 512), normal(512, seed=1, dtype=torch.float32), normal(2, 512, seed=2).float()
    alone, x = hidden[17:18].clone(), normal(40, 512, seed=3, dtype=torch.float32)
    x_alone, tokens = x[17:18].clone(), torch.empty_like(hidden)
    for rows in (hidden, alone):
        kernels.bias_norm_gelu(rows, vector, vector, vector)
    logits = kernels.add_update(x, hidden, vector, tokens, heads)
    logits_alone = kernels.add_update(x_alone, alone, vector, tokens[:1].clone(), heads)
    assert torch.equal(alone, hidden[17:18]) and torch.equal(x_alone, x[17:18])
    assert logits is not None and logits_alone is not None and torch.equal(logits_alone, logits[17:18])


def test_other_tensors_are_refused(kernels: Kernels) -> None:
    rows, bias = normal(8, 256), torch.zeros(256)
    cases = [
        (kernels.attention, (rows.float(), rows, rows, rows, 4, 1.0), "found torch.float32"),
        (kernels.attention, (rows, rows, rows[:5], rows, 4, 1.0), r"\(5, 256\)"),
        (kernels.attention, (rows, rows, rows, rows, 16, 1.0), "expected heads of 32"),
        (kernels.attention, (rows, rows[:0], rows[:0], rows, 4, 1.0), "0 keys"),
        (kernels.attention, (rows, rows, rows, normal(256, 8).T, 4, 1.0), "last dimension contiguous"),
        (kernels.rotate, (rows, torch.zeros(8, 48), 4), "multiple of 32"),
        (kernels.rotate, (rows, torch.zeros(7, 64), 4), r"\(7, 64\)"),
        (kernels.add_bias, (normal(8, 250), bias), "multiple of 16"),
        (kernels.bias_norm_gelu, (rows, bias, bias, bias[::2]), r"\(128,\)"),
        (kernels.bias_norm_gelu, (normal(1, 8192), bias, bias, bias), "at most 4096"),
        (kernels.add_update, (rows, rows, bias, rows), "expected torch.float32"),
    ]
    for method, arguments, message in cases:
        with pytest.raises(ValueError, match=message):
            method(*arguments)


def test_without_a_compiled_library_there_are_no_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFM_LIGHTGLUE_CACHE", str(tmp_path))
    assert load_kernels() is None


def test_the_environment_turns_kernels_off(kernels_cache: Path, kernels: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFM_LIGHTGLUE_CACHE", str(kernels_cache))
    monkeypatch.delenv("SFM_LIGHTGLUE_KERNELS", raising=False)
    assert load_kernels() is not None
    monkeypatch.setenv("SFM_LIGHTGLUE_KERNELS", "0")
    assert load_kernels() is None


def test_a_cpu_without_the_instructions_gets_no_kernels(kernels_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFM_LIGHTGLUE_CACHE", str(kernels_cache))
    monkeypatch.setattr(kernels_module, "_open", lambda path: SimpleNamespace(is_supported=lambda: 0))
    assert load_kernels() is None


@pytest.mark.parametrize("part", [0.0, 0.3, 0.9])
def test_a_damaged_library_is_reported_and_not_used(
    kernels_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, part: float
) -> None:
    (compiled,) = (kernels_cache / "kernels").iterdir()
    content = compiled.read_bytes()
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / compiled.name).write_bytes(content[: int(part * len(content))])
    monkeypatch.setenv("SFM_LIGHTGLUE_CACHE", str(tmp_path))
    with caplog.at_level(logging.WARNING):
        assert load_kernels() is None
    assert "its content has changed" in caplog.text


def test_a_library_of_something_else_is_reported_and_not_used(
    kernels_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (compiled,) = (kernels_cache / "kernels").iterdir()
    content = b"not a library"
    name = compiled.name.replace(compiled.stem[-16:], hashlib.sha256(content).hexdigest()[:16])
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / name).write_bytes(content)
    monkeypatch.setenv("SFM_LIGHTGLUE_CACHE", str(tmp_path))
    with caplog.at_level(logging.WARNING):
        assert load_kernels() is None
    assert "compile them again" in caplog.text


def test_a_library_of_another_source_is_not_loaded(kernels_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "kernels.cpp"
    other.write_text(kernels_module.SOURCE.read_text("utf-8") + "// changed\n", "utf-8")
    monkeypatch.setattr(kernels_module, "SOURCE", other)
    monkeypatch.setenv("SFM_LIGHTGLUE_CACHE", str(kernels_cache))
    assert load_kernels() is None


def broken_compiler(folder: Path) -> str:
    """A compiler that knows its version and compiles nothing."""
    path = folder / "broken c++"
    path.write_text('#!/bin/sh\n[ "$1" = --version ] && exit 0\necho "error: no header immintrin.h" >&2\nexit 3\n')
    path.chmod(0o755)
    return f"'{path}'"


def test_a_compiler_that_fails_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFM_LIGHTGLUE_CACHE", str(tmp_path))
    monkeypatch.setenv("CXX", broken_compiler(tmp_path))
    with pytest.raises(RuntimeError, match=r"(?s)failed with 3:\nerror: no header immintrin\.h.*Install g\+\+"):
        compile_kernels()
    assert not list((tmp_path / "kernels").iterdir())


def test_a_machine_without_compiler_is_told_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(RuntimeError, match=r"(?s)c\+\+: not found.*clang\+\+: not found.*Install g\+\+"):
        compile_kernels()


def test_other_processors_are_refused_before_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    with pytest.raises(RuntimeError, match="for x86-64 CPUs, this one is arm64"):
        compile_kernels()
