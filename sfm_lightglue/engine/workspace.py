"""Memory that one thread uses again and again: fresh large tensors cost page faults, which can double a step's time."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence

import torch
from torch import Tensor


class Workspace(threading.local):
    """Tensors by name; each thread has its own."""

    def __init__(self) -> None:
        self.buffers: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}

    def take(self, name: str, shape: Sequence[int], dtype: torch.dtype, device: torch.device | None = None) -> Tensor:
        """Uninitialised tensor, valid until this thread takes the same name again."""
        size, key = math.prod(shape), (name, dtype, device or torch.device("cpu"))
        buffer = self.buffers.get(key)
        if buffer is None or buffer.numel() < size:
            buffer = self.buffers[key] = torch.empty(size, dtype=dtype, device=device)
        return buffer[:size].view(*shape)
