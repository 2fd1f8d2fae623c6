"""For all tests: libz before pycolmap, one torch thread, no torchvision, and array shapes checked against their annotations."""

from __future__ import annotations

import sys
from typing import Any, cast

import torch
from jaxtyping import install_import_hook

import sfm_lightglue  # noqa: F401  loads libz before any test imports pycolmap

# Functions and dataclasses of these modules raise if an array has another shape or dtype than its annotation says.
install_import_hook(["sfm_lightglue.networks", "sfm_lightglue.engine", "sfm_lightglue.geometry"], "shape_checks.check")

# transformers imports torchvision if it finds one; a build that does not fit torch would break the oracle tests.
cast(dict[str, Any], sys.modules).setdefault("torchvision", None)

# Small networks on busy cores: two threads wait for each other (a LightGlue test took 26 s with two, 1 s with one).
torch.set_num_threads(1)
