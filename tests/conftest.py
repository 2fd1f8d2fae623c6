"""For all tests: libz before pycolmap, one torch thread, and no torchvision."""

from __future__ import annotations

import sys
from typing import Any, cast

import torch

import sfm_lightglue  # noqa: F401  loads libz before any test imports pycolmap

# transformers imports torchvision where it finds one; a build that does not fit torch would break the oracle tests.
cast(dict[str, Any], sys.modules).setdefault("torchvision", None)

# Small networks on busy cores: two threads wait for each other (a LightGlue test took 26 s with two, 1 s with one).
torch.set_num_threads(1)
