"""The command `train`: weights from a folder of photos."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from sfm_lightglue.commands.flags import split_flags
from sfm_lightglue.mistakes import MISTAKES, raise_together
from sfm_lightglue.overrides import SWEEP_FLAGS, check_flags, hydra_overrides

if TYPE_CHECKING:
    from omegaconf import DictConfig


def main(arguments: list[str]) -> int:
    """Trains weights and prints their file. Raises: ValueError for a mistake in the options."""
    flags, arguments = split_flags(arguments, allowed=("quiet", "verbose"))
    check_flags(arguments)
    given = dict(override.lstrip("+").split("=", 1) for override in arguments if "=" in override)
    if given.get("data.images") in (None, "", "null") and "--cfg" not in arguments:  # before Hydra makes a folder for the run
        raise ValueError("no training photos were given: add data.images=DIR, any folder of photos")
    overrides = hydra_overrides(arguments)
    from sfm_lightglue.commands.jobs import inside_hydra

    if all(override in SWEEP_FLAGS or not override.startswith("-") for override in overrides):
        _check(overrides)
    inside_hydra(_train, overrides, "train", flags=flags)
    return 0


def _check(overrides: list[str]) -> None:
    """Checks the options before Hydra makes the output folder. Raises: ValueError or FileNotFoundError with all mistakes."""
    from sfm_lightglue.config import compose_jobs
    from sfm_lightglue.train import check_training

    mistakes: list[Exception] = []
    for config in compose_jobs(overrides, "train"):
        try:
            check_training(config)
        except MISTAKES as error:
            mistakes.append(error)
    raise_together(mistakes)


def _train(config: DictConfig) -> None:
    from sfm_lightglue.config import separate_sweep_outputs
    from sfm_lightglue.train import train_from

    print(train_from(separate_sweep_outputs(config, sys.argv)))
