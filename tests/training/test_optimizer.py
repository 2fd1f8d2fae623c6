"""Muon: orthogonal updates, and training that continues exactly from a saved state."""

from __future__ import annotations

import pytest
import torch

from sfm_lightglue.training.optimizer import Muon, orthogonal


@pytest.mark.parametrize("shape", [(16, 40), (40, 16), (24, 24), (1, 9)])
def test_orthogonal_keeps_the_singular_vectors_and_makes_the_singular_values_about_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    found = left.T @ orthogonal(matrix) @ right.T  # diagonal in the singular vectors of the matrix
    values = found.diagonal()
    assert values.min() > 0.6 and values.max() < 1.3  # 0.7 to 1.2 according to the source
    torch.testing.assert_close(found, torch.diag(values), atol=1e-4, rtol=0)


def test_the_size_of_the_gradient_does_not_matter() -> None:
    matrix = torch.randn(8, 20, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(orthogonal(1e-3 * matrix), orthogonal(matrix), atol=1e-3, rtol=0)
    assert not orthogonal(torch.zeros(3, 4)).any()


def test_a_step_moves_a_kernel_against_its_gradient_by_the_learning_rate() -> None:
    torch.manual_seed(0)
    kernel = torch.nn.Parameter(torch.randn(8, 4, 3, 3))
    before = kernel.detach().clone()
    kernel.grad = torch.randn(8, 4, 3, 3)
    Muon([kernel], 0.1, momentum=0.95, weight_decay=0.0).step()
    moved = (kernel.detach() - before).flatten(1)
    torch.testing.assert_close(moved, -0.1 * orthogonal(kernel.grad.flatten(1)), atol=1e-5, rtol=0)


def test_weights_decay_by_the_learning_rate() -> None:
    kernel = torch.nn.Parameter(torch.ones(2, 1, 3, 3))
    kernel.grad = torch.zeros_like(kernel)
    Muon([kernel], 0.1, momentum=0.9, weight_decay=0.5).step()
    torch.testing.assert_close(kernel.detach(), torch.full_like(kernel, 0.95))


def test_momentum_remembers_earlier_gradients() -> None:
    kernel = torch.nn.Parameter(torch.zeros(2, 1, 1, 2))
    optimizer = Muon([kernel], 1.0, momentum=0.9, weight_decay=0.0)
    kernel.grad = torch.tensor([[1.0, 0.0], [0.0, 0.0]]).view_as(kernel)
    optimizer.step()
    before = kernel.detach().clone()
    kernel.grad = torch.zeros_like(kernel)
    optimizer.step()
    assert (kernel.detach() - before).view(2, 2)[0, 0] < -0.5


def test_training_from_a_stored_state_continues_bit_for_bit() -> None:
    def run(steps: range, kernel: torch.nn.Parameter, optimizer: Muon) -> None:
        for step in steps:
            kernel.grad = torch.randn(kernel.shape, generator=torch.Generator().manual_seed(step))
            optimizer.step()

    def make() -> tuple[torch.nn.Parameter, Muon]:
        kernel = torch.nn.Parameter(torch.ones(6, 2, 3, 3))
        return kernel, Muon([kernel], 0.1, momentum=0.95, weight_decay=0.01)

    whole, whole_optimizer = make()
    run(range(6), whole, whole_optimizer)
    first, first_optimizer = make()
    run(range(3), first, first_optimizer)
    second, second_optimizer = make()
    second.data.copy_(first.data)
    second_optimizer.load_state_dict(first_optimizer.state_dict())
    run(range(3, 6), second, second_optimizer)
    assert torch.equal(second, whole)


def test_a_parameter_without_gradient_does_not_change() -> None:
    kernel = torch.nn.Parameter(torch.ones(2, 1, 3, 3))
    Muon([kernel], 0.1, momentum=0.95, weight_decay=0.1).step()
    assert torch.equal(kernel, torch.ones_like(kernel))
