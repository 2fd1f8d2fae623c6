"""The command `train`: weights from a folder of photos."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from sfm_lightglue.overrides import hydra_overrides

if TYPE_CHECKING:
    from omegaconf import DictConfig


def main(arguments: list[str]) -> int:
    """Trains weights and prints their file. Raises: ValueError for a mistake in the options."""
    given = dict(override.lstrip("+").split("=", 1) for override in arguments if "=" in override)
    if given.get("data.images") in (None, "", "null") and "--cfg" not in arguments:  # before Hydra makes a folder for the run
        raise ValueError("no training photos were given: add data.images=DIR, any folder of photos")
    from sfm_lightglue.commands.jobs import inside_hydra

    inside_hydra(_train, hydra_overrides(arguments), "train")
    return 0


def _train(config: DictConfig) -> None:
    from sfm_lightglue.config import separate_sweep_outputs
    from sfm_lightglue.train import train_from

    print(train_from(separate_sweep_outputs(config, sys.argv)))
