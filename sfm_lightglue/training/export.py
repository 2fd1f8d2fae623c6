"""Shared parts of all trainings: the choice of photos, the record of a training, and the file of weights."""

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

from sfm_lightglue import __version__
from sfm_lightglue.download import sha256_once
from sfm_lightglue.files import written_whole
from sfm_lightglue.networks.weights import WeightsRecord
from sfm_lightglue.training.curves import History


@dataclasses.dataclass(frozen=True)
class PhotoSplit:
    """Which photos are trained on and which are held out."""

    training: Sequence[str]
    held_out: Sequence[str]
    sha256: str
    """Hash of the names and contents of the training photos."""


def split_photos(images: Path, names: Sequence[str], num_held_out: int, seed: int) -> PhotoSplit:
    """Training photos and held-out photos, with a hash of the training photos.

    Args:
        images: Folder of the photos.
        names: Names of the readable photos, relative to the folder.
        num_held_out: Number of photos for the validation.
        seed: Seed of the random choice.

    Raises: ValueError if no photo would be left to train on.
    """
    held_out, training = split(names, num_held_out, seed)
    return PhotoSplit(training, held_out, hash_of_photos(images, training))


def split(names: Sequence[str], num_held_out: int, seed: int) -> tuple[list[str], list[str]]:
    """`num_held_out` of the `names`, chosen at random by the `seed` and sorted, and the remaining names in their order.

    Raises: ValueError if no photo would be left to train on.
    """
    if len(names) <= num_held_out:
        raise ValueError(
            f"found {len(names)} readable photos, but training.validation.photos={num_held_out} are held out: give more photos"
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
    """Refuses to export weights under `licence` if they are trained from weights that are for research only.

    Raises: ValueError if one of the `weights` is for research only and has another licence.
    """
    for record in weights:
        if record.research_only and licence != record.licence:
            raise ValueError(
                f"training.licence={licence}, but {record.name} is for research only, and so is everything trained from it: "
                f"start from other weights, or give 'training.licence=\"{record.licence}\"'"
            )


def blend(state: Mapping[str, Tensor], start: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """share * start + (1 - share) * state, for each weight. `start` is on the CPU, and so is the result."""
    return {key: value.cpu().lerp(start[key], share) for key, value in state.items()}


def recipe(options: Any) -> dict[str, Any]:
    """The training options that decide the weights.

    It does not include the number of steps, the intervals of saving and validation, and options that only go to the metadata.
    """
    values = dataclasses.asdict(options)
    for key in ("steps", "cooldown", "log_every", "save_every", "validate_every", "data_workers"):
        del values["loop"][key]
    for key in ("commit", "licence"):
        del values[key]
    return values


def training_settings(options: Any, photos: PhotoSplit, origins: Sequence[WeightsRecord]) -> dict[str, Any]:
    """Everything that decides the result of a training: recipe, photos and the hashes of the weights that it starts from."""
    return {**recipe(options), "data": photos.sha256, "weights": [weights.sha256 for weights in origins]}


def common_metadata(options: Any, photos: PhotoSplit, steps: int, history: History) -> dict[str, str]:
    """The metadata that all exported files have, whatever the network is."""
    return {
        "licence": options.licence,
        "recipe": json.dumps(recipe(options), sort_keys=True),
        "training_photos": f"{len(photos.training)}, sha256 {photos.sha256}",
        "steps": str(steps),
        "version": __version__,
        "commit": options.commit or "unknown",
        "validation": json.dumps(history.last("validation"), sort_keys=True),
    }


def save_weights(module: nn.Module, path: Path, metadata: dict[str, str]) -> None:
    """Writes the module's state in float16 as safetensors. The same state and metadata give the same bytes."""
    stored = save({key: value.detach().cpu().half().contiguous() for key, value in module.state_dict().items()}, metadata)
    # The file starts with the length of a JSON header, then the header. safetensors (0.8) writes the metadata in an order that
    # changes from run to run, so the header is sorted here.
    end = 8 + int.from_bytes(stored[:8], "little")
    header = json.dumps(json.loads(stored[8:end]), sort_keys=True).encode()
    header += b" " * (-len(header) % 8)
    with written_whole(path) as temporary:
        temporary.write_bytes(len(header).to_bytes(8, "little") + header + stored[end:])
