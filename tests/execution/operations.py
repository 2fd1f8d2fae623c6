"""Prints the operations of torch that an extraction and a matching of two photos need, and their element types, as JSON.

A script of its own, because it replaces `torch.inference_mode`, in which torch does not show the steps of larger operations.

    python operations.py OVERRIDES...
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch

torch.inference_mode = torch.no_grad  # type: ignore[assignment, misc]

import numpy as np  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402

from sfm_lightglue.config import compose_config  # noqa: E402
from sfm_lightglue.engine import batch, results  # noqa: E402
from sfm_lightglue.features.extractor import extract_upright  # noqa: E402
from sfm_lightglue.products import Features, Image, Matches  # noqa: E402
from sfm_lightglue.run_context import Run  # noqa: E402


class Recorder(TorchDispatchMode):
    """Keeps the names of all operations, and the element types of what they read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.names, self.dtypes = set[str](), set[str]()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        self.names.add(function.name())
        self.dtypes |= {str(leaf.dtype) for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)}
        return result


def main() -> None:
    batch.on_gpu = results.on_gpu = lambda tensor: True  # type: ignore[assignment]
    run = Run.create(compose_config(["dataset.images=.", "output=out", "execution.device=cpu", *sys.argv[1:]]))
    extractor, matcher = run.extractor(), run.matcher()
    noise = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    photo = np.kron(noise, np.ones((8, 8, 1), np.uint8))
    photos = [Image(name, np.roll(photo, move, axis=1)) for name, move in (("a", 0), ("b", 8))]

    def compute() -> tuple[list[Features], Matches]:
        found = [extract_upright(extractor, each) for each in photos]
        return found, matcher(*found)

    compute()  # the weights are converted on the CPU
    with Recorder() as recorder:
        found, matches = compute()
    about = {"keypoints": len(found[0]), "matches": len(matches)}
    print(json.dumps({"names": sorted(recorder.names), "dtypes": sorted(recorder.dtypes), **about}))


main()
