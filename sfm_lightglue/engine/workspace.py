"""Memory that a thread reuses. New large tensors cost page faults, which can double the time of a step."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence

import torch
from torch import Tensor


class Workspace(threading.local):
    """Tensors by name. Each thread has its own."""

    def __init__(self) -> None:
        self.buffers: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}

    def take(self, name: str, shape: Sequence[int], dtype: torch.dtype, device: torch.device | None = None) -> Tensor:
        """An uninitialised tensor. It is valid until this thread takes the same name again.

        Args:
            name: the use of the tensor.
            shape: of the tensor.
            dtype: element type.
            device: None is the CPU.
        """
        size, key = math.prod(shape), (name, dtype, device or torch.device("cpu"))
        buffer = self.buffers.get(key)
        if buffer is None or buffer.numel() < size:
            buffer = self.buffers[key] = torch.empty(size, dtype=dtype, device=device)
        return buffer[:size].view(*shape)
