"""For tests that run the command line inside this process."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator

import pytest


@pytest.fixture
def command_line(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Restores what Hydra changes: the arguments of the process, its environment and the log handlers."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    monkeypatch.setattr(sys, "argv", ["sfm-lightglue"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    yield
    for handler in set(root.handlers) - set(handlers):
        handler.close()
    root.handlers[:], root.level = handlers, level
