"""Matches found block by block against the full matrix of scores."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from sfm_lightglue.engine import assignment
from sfm_lightglue.engine.assignment import Scan, assign, scan_rows
from sfm_lightglue.networks.lightglue import mutual_best


def dense(vectors0, vectors1, logits0, logits1, threshold: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Equations 7 and 8 of the paper, in float64."""
    similarity = vectors0.double() @ vectors1.double().T
    scores = similarity.log_softmax(dim=1) + similarity.log_softmax(dim=0)
    scores += F.logsigmoid(logits0.double())[:, None] + F.logsigmoid(logits1.double())
    rows, columns, values = mutual_best(scores)
    kept = values > threshold
    return torch.stack([rows, columns], dim=1)[kept], values[kept].double()


def random_input(size0: int, size1: int, scale: float = 4.0, seed: int = 0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    vectors0, vectors1 = (torch.randn(size, 32, generator=generator) * scale**0.5 for size in (size0, size1))
    shared = min(size0, size1) // 2
    vectors1[:shared] = vectors0[torch.randperm(size0, generator=generator)[:shared]] + 0.3 * vectors1[:shared]
    return vectors0, vectors1, torch.randn(size0, generator=generator) + 2, torch.randn(size1, generator=generator) + 2


@pytest.fixture(params=["torch", "kernels"])
def scan(request: pytest.FixtureRequest) -> Scan:
    return scan_rows if request.param == "torch" else request.getfixturevalue("kernels").scan_rows


@pytest.mark.parametrize("sizes", [(1, 1), (1, 300), (300, 1), (2, 3), (150, 200), (700, 600)])
@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("block", [64, 1 << 18])
def test_matches_equal_the_matches_of_the_full_matrix(
    sizes: tuple[int, int], threshold: float, block: int, scan: Scan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assignment, "BLOCK_ENTRIES", block)
    given = random_input(*sizes)
    indices, scores = assign(*given, threshold, scan)
    expected_indices, expected_scores = dense(*given, threshold)
    assert torch.equal(indices, expected_indices)
    torch.testing.assert_close(scores.double(), expected_scores, atol=2e-5, rtol=0)
    assert len(indices) or max(sizes) < 300 or min(sizes) == 1


def test_similarities_far_from_zero_do_not_overflow(scan: Scan) -> None:
    given = random_input(80, 90, scale=400.0)
    indices, scores = assign(*given, 0.1, scan)
    expected_indices, _ = dense(*given, 0.1)
    assert torch.equal(indices, expected_indices) and scores.isfinite().all() and len(indices) > 20


def test_only_one_of_duplicate_keypoints_is_matched(scan: Scan) -> None:
    vectors = torch.eye(4)[[0, 1, 2, 2]] * 8
    indices, _ = assign(vectors, torch.eye(4)[:3] * 8, torch.full((4,), 9.0), torch.full((3,), 9.0), 0.1, scan)
    assert indices.tolist() == [[0, 0], [1, 1], [2, 2]]


def test_points_without_a_partner_are_left_out(scan: Scan) -> None:
    vectors0, vectors1, logits0, logits1 = random_input(100, 100)
    indices, _ = assign(vectors0, vectors1, torch.full_like(logits0, -9), logits1, 0.1, scan)
    assert len(indices) == 0
