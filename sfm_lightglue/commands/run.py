"""The command `run`, each stage alone, and `evaluate`."""

from __future__ import annotations

import functools
import logging
import sys
from typing import TYPE_CHECKING

from sfm_lightglue.commands.report import open_page
from sfm_lightglue.mistakes import MISTAKES, raise_together
from sfm_lightglue.overrides import SWEEP_FLAGS, check_flags, hydra_overrides, with_photos_and_output

if TYPE_CHECKING:
    from omegaconf import DictConfig


def main(command: str, arguments: list[str]) -> int:
    """`run`, a stage alone, or `evaluate`. Raises: ValueError or FileNotFoundError with all mistakes, before any work."""
    opens = command == "run" and "--open" in arguments
    arguments = [argument for argument in arguments if not (opens and argument == "--open")]
    check_flags(arguments)
    overrides = with_photos_and_output(arguments)
    chosen = [override for override in overrides if override.lstrip("+").startswith(("dataset=", "dataset.images="))]
    if command != "evaluate" and not chosen and "--cfg" not in overrides:  # before Hydra makes a folder for the run
        raise ValueError(f"no photos were given: {command} PHOTOS OUT, or add +dataset=NAME (`datasets` lists them)")
    overrides = hydra_overrides(overrides)
    is_checked = all(override in SWEEP_FLAGS or not override.startswith("-") for override in overrides)
    from sfm_lightglue.commands.jobs import held_messages, inside_hydra

    with held_messages() as held:
        if is_checked:
            _check(command, overrides)
    inside_hydra(functools.partial(_run_configured, command, is_checked, held, opens), overrides)
    return 0


def _check(command: str, overrides: list[str]) -> None:
    """Checks everything before Hydra makes the output folder. Raises: ValueError or FileNotFoundError with all mistakes."""
    from sfm_lightglue import pipeline
    from sfm_lightglue.config import compose_jobs

    mistakes: list[Exception] = []
    for config in compose_jobs(overrides):
        try:
            pipeline.Run.checked(config, command)
        except MISTAKES as error:
            mistakes.append(error)
    raise_together(mistakes)


def _run_configured(command: str, is_checked: bool, held: list[logging.LogRecord], opens: bool, config: DictConfig) -> None:
    from sfm_lightglue import pipeline
    from sfm_lightglue.config import separate_sweep_outputs

    while held:  # now the log file of the run is open
        record = held.pop(0)
        logging.getLogger(record.name).handle(record)
    config = separate_sweep_outputs(config, sys.argv)
    run = pipeline.Run.create(config) if is_checked else pipeline.Run.checked(config, command)
    if command == "run":
        try:
            print(pipeline.run_all(run))
        finally:
            if opens and run.folder.report.is_file():
                open_page(run.folder.report)
        pipeline.raise_failure(run)
    elif command == "evaluate":
        print(pipeline.evaluate(run))
    else:
        pipeline.run_stage(run, command)
        if command == "reconstruct":
            pipeline.raise_failure(run)
