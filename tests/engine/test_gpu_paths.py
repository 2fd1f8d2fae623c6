"""The engine's code for GPUs, run on CPU tensors, with a stand-in for torch's flash attention."""

from __future__ import annotations

import inspect
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightglue_inputs import Points, random_network, random_points
from torch import Tensor

from sfm_lightglue.engine import attention, batch, results
from sfm_lightglue.engine.assignment import assign, assign_many
from sfm_lightglue.engine.attention import attend, attend_on_gpu, attend_padded, flash_attention
from sfm_lightglue.engine.early_rejection import EarlyRejection
from sfm_lightglue.engine.lightglue import LightGlueEngine
from sfm_lightglue.engine.numerics import TorchNumerics
from sfm_lightglue.engine.results import PairMatches
from sfm_lightglue.networks.lightglue import LightGlue

ADAPTIVE = {"depth_confidence": 0.9, "width_confidence": 0.7}


def varlen_attn(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    num_splits: int | None = None,
) -> Tensor:
    """Torch's function as documented, with the checks that its CUDA code makes on the input."""
    assert num_splits == 1 and scale == 1.0
    for part, borders, longest in ((query, cu_seq_q, max_q), (key, cu_seq_k, max_k), (value, cu_seq_k, max_k)):
        assert part.ndim == 3 and part.stride(-1) == 1 and part.dtype in (torch.float16, torch.bfloat16)
        assert borders.dtype == torch.int32 and borders.is_contiguous() and borders.device == part.device
        assert borders[0] == 0 and borders[-1] == len(part) and borders.diff().max() == longest and borders.diff().min() > 0
    assert len(cu_seq_q) == len(cu_seq_k)
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    for i in range(len(cu_seq_q) - 1):
        rows, columns = slice(cu_seq_q[i], cu_seq_q[i + 1]), slice(cu_seq_k[i], cu_seq_k[i + 1])
        parts = (part.transpose(0, 1)[None] for part in (query[rows], key[columns], value[columns]))
        out[rows] = F.scaled_dot_product_attention(*parts, scale=scale)[0].transpose(0, 1)
    return out


@pytest.fixture
def with_flash_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "flash_attention", lambda *_: varlen_attn)


def parts_of_projections(size0: int, size1: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Query, key, value and target, as columns of wider tensors like in the engine."""
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(size0, 128, generator=generator).to(dtype)[:, :64]
    key, value = torch.randn(size1, 128, generator=generator).to(dtype).chunk(2, dim=1)
    return query, key, value, torch.full((size0, 128), 7.0, dtype=dtype)


@pytest.mark.parametrize("num_heads", [1, 2])
@pytest.mark.parametrize("borders", [([0, 40, 41, 90], [0, 1, 60, 70]), ([0, 90], [0, 70])])
def test_flash_attention_gets_its_segments_in_the_right_form(
    borders: tuple[list[int], list[int]], num_heads: int, with_flash_attention: None
) -> None:
    query, key, value, wide = parts_of_projections(90, 70, torch.bfloat16)
    attend_on_gpu(query, key, value, wide[:, 64:], borders, num_heads)
    expected = torch.zeros(90, 64)
    attend(query.float(), key.float(), value.float(), expected, borders, num_heads)
    torch.testing.assert_close(wide[:, 64:].float(), expected, atol=0.03, rtol=0)
    assert (wide[:, :64] == 7).all()


@pytest.mark.parametrize("num_heads", [1, 2])
@pytest.mark.parametrize("borders", [([0, 40, 41, 90], [0, 1, 60, 70]), ([0, 90], [0, 70])])
def test_padded_attention_is_attention(borders: tuple[list[int], list[int]], num_heads: int) -> None:
    query, key, value, wide = parts_of_projections(90, 70, torch.float32)
    attend_padded(query, key, value, wide[:, 64:], borders, num_heads)
    expected = torch.zeros(90, 64)
    attend(query, key, value, expected, borders, num_heads)
    torch.testing.assert_close(wide[:, 64:], expected, atol=1e-5, rtol=0)
    assert (wide[:, :64] == 7).all()


def test_the_stand_in_has_the_parameters_of_the_original() -> None:
    original = pytest.importorskip("torch.nn.attention.varlen").varlen_attn
    parameters = inspect.signature(original).parameters
    if "num_splits" not in parameters:
        pytest.skip("an older torch")
    ours = inspect.signature(varlen_attn).parameters
    assert list(parameters)[:7] == list(ours)[:7] and set(ours) <= set(parameters)


@pytest.mark.parametrize(
    "capability, dtype, head_dim, is_offered",
    [
        ((8, 0), torch.float16, 64, True),
        ((12, 0), torch.bfloat16, 96, True),
        ((7, 5), torch.float16, 64, False),
        ((9, 0), torch.float32, 64, False),
        ((9, 0), torch.float16, 20, False),
        ((9, 0), torch.float16, 264, False),
    ],
)
def test_flash_attention_is_used_where_it_runs(
    capability: tuple[int, int], dtype: torch.dtype, head_dim: int, is_offered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = pytest.importorskip("torch.nn.attention.varlen").varlen_attn
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    is_offered &= "num_splits" in inspect.signature(original).parameters
    flash_attention.cache_clear()
    assert flash_attention(torch.device("cuda:0"), dtype, head_dim) is (original if is_offered else None)
    flash_attention.cache_clear()


def test_flash_attention_is_not_for_cpus() -> None:
    assert flash_attention(torch.device("cpu"), torch.bfloat16, 64) is None


# --- matches of many pairs at once -----------------------------------------------------------------------------------------


def random_input(size0: int, size1: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    vectors0, vectors1 = (torch.randn(size, 32, generator=generator) * 2 for size in (size0, size1))
    shared = min(size0, size1) // 2
    vectors1[:shared] = vectors0[torch.randperm(size0, generator=generator)[:shared]] + 0.3 * vectors1[:shared]
    return vectors0, vectors1, torch.randn(size0, generator=generator) + 2, torch.randn(size1, generator=generator) + 2


@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.5])
def test_matches_of_many_pairs_at_once_equal_the_matches_of_each_pair(threshold: float) -> None:
    sizes = [(1, 1), (1, 90), (120, 1), (2, 3), (120, 90), (70, 80)]
    pairs = [random_input(*size, seed) for seed, size in enumerate(sizes)]

    def padded(k: int) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence([pair[k] for pair in pairs], batch_first=True, padding_value=3.0)

    is_point = [torch.arange(longest) < torch.tensor([size[k] for size in sizes])[:, None] for k, longest in ((0, 120), (1, 90))]
    partners, scores = assign_many(*(padded(k) for k in range(4)), *is_point, threshold)
    for i, pair in enumerate(pairs):
        indices, expected = assign(*pair, threshold)
        matched = (scores[i] >= 0).nonzero()[:, 0]
        assert torch.equal(torch.stack([matched, partners[i, matched]], dim=1), indices)
        torch.testing.assert_close(scores[i, matched], expected, atol=2e-5, rtol=0)


def test_the_first_of_duplicate_keypoints_is_matched() -> None:
    vectors0, vectors1 = torch.eye(4)[[0, 1, 2, 2]] * 8, torch.eye(4)[:3] * 8
    logits, flags = (torch.full((1, 4), 9.0), torch.full((1, 3), 9.0)), (torch.full((1, 4), True), torch.full((1, 3), True))
    partners, scores = assign_many(vectors0[None], vectors1[None], *logits, *flags, 0.1)
    assert (scores[0] > 0).tolist() == [True, True, True, False] and partners[0, :3].tolist() == [0, 1, 2]


# --- the whole engine ------------------------------------------------------------------------------------------------------


def random_pairs(count: int) -> list[tuple[Points, Points]]:
    """Pairs of very different sizes. Some images have 0 or 1 keypoints."""
    generator = np.random.default_rng(3)
    points0, points1 = random_points(160)

    def some_of(points: Points) -> Points:
        chosen = generator.permutation(len(points.keypoints))[: generator.choice([0, 1, 2, 30, 100, 160])]
        return Points(points.keypoints[chosen], points.descriptors[chosen], points.size)

    return [(points0, points1), *((some_of(points0), some_of(points1)) for _ in range(count))]


def match_all(network: LightGlue, precision: str, early_rejection: EarlyRejection | None = None) -> list[PairMatches]:
    engine = LightGlueEngine(network, precision, early_rejection=early_rejection)
    images = [engine.prepare(p.keypoints, p.descriptors, p.size) for p in itertools.chain(*random_pairs(20))]
    return engine.match_many(list(zip(images[::2], images[1::2], strict=True)))


def act_as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the engine take its steps for GPUs, on CPU tensors."""
    for module in (batch, results):
        monkeypatch.setattr(module, "on_gpu", lambda tensor: True)
    monkeypatch.setattr(TorchNumerics, "attend", lambda self, *given: attend_on_gpu(*given, self.num_heads))


@pytest.mark.parametrize(
    "settings, stops",
    [
        (ADAPTIVE, {0, 1, 3, 4}),
        ({**ADAPTIVE, "filter_threshold": 0.0}, {0, 1, 3, 4}),
        ({"depth_confidence": -1, "width_confidence": 0.7}, {0, 2, 4}),
    ],
)
@pytest.mark.parametrize("at_once", [1, 30_000, 1 << 26])
def test_the_engine_finds_on_a_gpu_what_it_finds_on_a_cpu(
    settings: dict[str, float], stops: set[int], at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32, with padded attention; some pairs are rejected after layer 2."""
    network, rule = random_network(**settings), EarlyRejection(0, 10**6, (0.0, 0.7))
    expected = match_all(network, "float32", rule)
    act_as_on_a_gpu(monkeypatch)
    monkeypatch.setattr(results, "SCORES_AT_ONCE", at_once)
    found = match_all(network, "float32", rule)
    assert sum(len(pair.indices) > 3 for pair in expected) > 3 and stops <= {pair.stop_layer for pair in expected}
    for pair, right in zip(found, expected, strict=True):
        assert torch.equal(pair.indices, right.indices) and pair.stop_layer == right.stop_layer
        assert torch.equal(pair.prune0, right.prune0) and torch.equal(pair.prune1, right.prune1)
        torch.testing.assert_close(pair.scores, right.scores, atol=1e-4, rtol=0)


def test_the_engine_with_flash_attention_finds_nearly_the_matches_of_the_cpu(
    with_flash_attention: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A CPU without the instructions is only slower.
    monkeypatch.setattr("sfm_lightglue.networks.precision._has_fast_bfloat16", lambda: True)
    network = random_network(depth_confidence=-1, width_confidence=-1)
    on_cpu = match_all(network, "low")
    act_as_on_a_gpu(monkeypatch)
    matches = [
        {(i, *row) for i, pair in enumerate(found) for row in pair.indices.tolist()}
        for found in (on_cpu, match_all(network, "low"))
    ]
    assert len(matches[0] & matches[1]) >= 0.95 * len(matches[0] | matches[1]) > 100
