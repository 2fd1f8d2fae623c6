"""The command `run`, each stage alone, and `evaluate`."""

from __future__ import annotations

import functools
import json
import logging
import sys
from typing import TYPE_CHECKING

from sfm_lightglue.commands.flags import Flags, split_flags
from sfm_lightglue.commands.report import open_page
from sfm_lightglue.mistakes import MISTAKES, raise_together
from sfm_lightglue.overrides import SWEEP_FLAGS, check_flags, hydra_overrides, with_photos_and_output

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from sfm_lightglue.run_context import Run

logger = logging.getLogger(__name__)

KERNELS_S = 20.0
"""Shorter times of LightGlue, s, need no compiled kernels."""


def main(command: str, arguments: list[str]) -> int:
    """`run`, a stage alone, or `evaluate`. Raises: ValueError or FileNotFoundError with all mistakes, before any work."""
    allowed = ("quiet", "verbose", "json", "open") if command == "run" else ("quiet", "verbose", "json")
    flags, arguments = split_flags(arguments, allowed=allowed)
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
    inside_hydra(functools.partial(_run_configured, command, flags, is_checked, held), overrides, flags=flags)
    return 0


def _check(command: str, overrides: list[str]) -> None:
    """Checks everything before Hydra makes the output folder. Raises: ValueError or FileNotFoundError with all mistakes."""
    from sfm_lightglue.config import compose_jobs
    from sfm_lightglue.run_context import Run

    mistakes: list[Exception] = []
    for config in compose_jobs(overrides):
        try:
            Run.checked(config, command)
        except MISTAKES as error:
            mistakes.append(error)
    raise_together(mistakes)


def _run_configured(command: str, flags: Flags, is_checked: bool, held: list[logging.LogRecord], config: DictConfig) -> None:
    from sfm_lightglue import pipeline
    from sfm_lightglue.config import separate_sweep_outputs
    from sfm_lightglue.run_context import Run

    while held:  # now the log file of the run is open
        record = held.pop(0)
        logging.getLogger(record.name).handle(record)
    config = separate_sweep_outputs(config, sys.argv)
    run = Run.create(config) if is_checked else Run.checked(config, command)
    if command == "run":
        try:
            result = str(pipeline.run_all(run))
        finally:
            if flags.open and run.folder.report.is_file():
                open_page(run.folder.report)
    elif command == "evaluate":
        result = pipeline.evaluate(run)
        logger.debug("%s", result)  # for the log file
    else:
        pipeline.run_stage(run, command)
        result = ""
    if flags.json:
        content = (
            json.loads(run.folder.evaluation.read_text(encoding="utf-8")) if command == "evaluate" else run.folder.read_summary()
        )
        print(json.dumps({"output": str(run.folder.path.resolve()), **content}))
    elif result and (command == "evaluate" or not flags.quiet):
        print(result)
    if command in ("run", "match"):
        _tell_of_kernels(run)
    if command in ("run", "reconstruct"):
        pipeline.raise_failure(run)


def _tell_of_kernels(run: Run) -> None:
    """Says that compiled kernels would have saved time, if LightGlue ran for long on a CPU that can use them."""
    from sfm_lightglue.engine.kernels import would_help

    plugins = [part.options.matches.plugin for part in run.kinds or [run]]
    is_lightglue = any(plugin.__module__ == "sfm_lightglue.matches.lightglue" for plugin in plugins)
    seconds = run.folder.read_summary()["stages"].get("match", {}).get("seconds", 0.0)
    if is_lightglue and seconds >= KERNELS_S and run.device == "cpu" and would_help():
        logger.info(
            "LightGlue took %.0f s. On this CPU, compiled kernels make it up to twice as fast: the command `kernels` compiles "
            "them, once (it needs a C++ compiler: g++ 10 or clang++ 9, or later)",
            seconds,
        )
