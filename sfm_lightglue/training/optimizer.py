"""Muon: an optimizer with momentum and orthogonalised updates.

Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024.

Here it trains the convolutions inside a network. Their kernels are treated as matrices (channels out, channels in * 9). torch's
own Muon (from 2.9) accepts matrices only.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

# Coefficients of a polynomial, from the source. Its iteration moves all singular values towards 1 (0.7 to 1.2 after five).
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """Nesterov momentum with orthogonalised updates. A step changes a kernel by about `lr` in every direction."""

    def __init__(self, parameters: Iterable[Tensor], lr: float, *, momentum: float, weight_decay: float) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step. `closure` is ignored."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                mean = state.setdefault("momentum", torch.zeros_like(parameter))
                mean.lerp_(parameter.grad, 1 - group["momentum"])
                update = orthogonal(parameter.grad.lerp(mean, group["momentum"]).flatten(1))
                scale = group["lr"] * max(1.0, update.shape[0] / update.shape[1]) ** 0.5
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update.view_as(parameter), alpha=-scale)


def orthogonal(matrix: Tensor) -> Tensor:
    """A matrix (m, n) with the same singular vectors as `matrix`, and singular values of about 1."""
    a, b, c = _COEFFICIENTS
    x = matrix / (matrix.norm() + 1e-7)
    if is_tall := x.shape[0] > x.shape[1]:
        x = x.T
    for _ in range(_ITERATIONS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if is_tall else x
