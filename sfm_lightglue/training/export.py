"""What is the same for all trained networks: which photos are trained on, what is recorded of them, and the file of weights."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save
from torch import Tensor, nn

from sfm_lightglue.download import sha256_once
from sfm_lightglue.networks.weights import WeightsRecord


def save_weights(module: nn.Module, path: Path, metadata: dict[str, str]) -> None:
    """A safetensors file of the module's state in float16: the same bytes for the same state and metadata."""
    stored = save({key: value.detach().cpu().half().contiguous() for key, value in module.state_dict().items()}, metadata)
    # A header of JSON, after its length. safetensors (0.8) puts the metadata there in an order that changes from run to run.
    end = 8 + int.from_bytes(stored[:8], "little")
    header = json.dumps(json.loads(stored[8:end]), sort_keys=True).encode()
    header += b" " * (-len(header) % 8)
    part = path.with_suffix(".part")
    part.write_bytes(len(header).to_bytes(8, "little") + header + stored[end:])
    part.replace(path)


def split(names: Sequence[str], num_held_out: int, seed: int) -> tuple[list[str], list[str]]:
    """The photos for validation, chosen at random, and the others.

    Raises: ValueError where none would be left to train on.
    """
    if len(names) <= num_held_out:
        raise ValueError(
            f"{len(names)} readable photos, of which training.validation.photos={num_held_out} are held out: give more photos"
        )
    order = np.random.default_rng([seed, 3]).permutation(len(names))
    chosen = {names[i] for i in order[:num_held_out]}
    return sorted(chosen), [name for name in names if name not in chosen]


def hash_of_photos(images: Path, names: Sequence[str]) -> str:
    """SHA-256 over the names and contents of the photos."""
    digest = hashlib.sha256()
    for name in sorted(names):
        digest.update(f"{name} {sha256_once(images / name)}\n".encode())
    return digest.hexdigest()


def check_licence(licence: str, weights: Sequence[WeightsRecord]) -> None:
    """Raises: ValueError where what is trained from `weights` for research only would be exported under another licence."""
    for record in weights:
        if record.research_only and licence != record.licence:
            raise ValueError(
                f"training.licence={licence}, but {record.name} is for research only, and so is what is trained from it: "
                f"start from other weights, or give 'training.licence=\"{record.licence}\"'"
            )


def blend(state: Mapping[str, Tensor], start: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """`share` of the weights at the start, which are on the CPU, and the rest of those that were learnt."""
    return {key: value.cpu().lerp(start[key], share) for key, value in state.items()}


def recipe(options: Any) -> dict[str, Any]:
    """The options that decide the weights; the run may be made longer, and look at itself more or less often."""
    values = dataclasses.asdict(options)
    for key in ("steps", "cooldown", "log_every", "save_every", "validate_every", "data_workers"):
        del values["loop"][key]
    for key in ("commit", "licence"):
        del values[key]
    return values
