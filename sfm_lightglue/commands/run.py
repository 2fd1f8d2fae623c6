"""The command `run`, each stage alone, and `evaluate`."""

from __future__ import annotations

import functools
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sfm_lightglue.commands.flags import Flags, split_flags
from sfm_lightglue.commands.report import open_page
from sfm_lightglue.commands.starting import load_torch_ahead, loading
from sfm_lightglue.files import result_exists
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
    flags_of_hydra = [override for override in overrides if override.startswith("-")]
    is_checked = all(flag in SWEEP_FLAGS for flag in flags_of_hydra)
    with loading():
        from sfm_lightglue.commands.jobs import held_messages, inside_hydra
        from sfm_lightglue.config import compose_config, compose_jobs, without_hydra

        if not flags_of_hydra and runs_network(command, overrides):
            load_torch_ahead()
        with held_messages() as held:
            composed = None if flags_of_hydra else compose_config(overrides, with_hydra=True)
            jobs = compose_jobs(overrides) if composed is None and is_checked else []
            checked = _check(command, jobs if composed is None else [without_hydra(composed)])
    task = functools.partial(_run_configured, command, flags, checked, held)
    inside_hydra(task, overrides, flags=flags, composed=composed)
    return 0


def runs_network(command: str, overrides: Sequence[str]) -> bool:
    """Whether a network will run, as far as the command line tells: the output folder has no results of its stage."""
    written = {"run": "features.h5", "extract": "features.h5", "match": "matches.h5"}.get(command)
    outputs = [override.partition("=")[2].strip("'\"") for override in overrides if override.startswith("output=")]
    return written is not None and bool(outputs) and not result_exists(Path(outputs[-1]) / written)


def _check(command: str, configs: Sequence[DictConfig]) -> list[Run]:
    """The runs of the jobs, after all checks: Hydra has not made the output folder yet.

    Raises: ValueError or FileNotFoundError with all mistakes.
    """
    from sfm_lightglue.run_context import Run

    mistakes, runs = list[Exception](), list[Run]()
    for config in configs:
        try:
            runs.append(Run.checked(config, command))
        except MISTAKES as error:
            mistakes.append(error)
    raise_together(mistakes)
    return runs


def _run_configured(
    command: str, flags: Flags, checked: Sequence[Run], held: list[logging.LogRecord], config: DictConfig
) -> None:
    """Does the work of a job. `checked` are the runs of all jobs, and empty if they were not checked."""
    from sfm_lightglue import pipeline
    from sfm_lightglue.config import separate_sweep_outputs
    from sfm_lightglue.run_context import Run

    while held:  # now the log file of the run is open
        record = held.pop(0)
        logging.getLogger(record.name).handle(record)
    config = separate_sweep_outputs(config, sys.argv)
    run = checked[0] if len(checked) == 1 else Run.create(config) if checked else Run.checked(config, command)
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
    plugins = [part.options.matches.plugin for part in run.kinds or [run]]
    is_lightglue = any(plugin.__module__ == "sfm_lightglue.matches.lightglue" for plugin in plugins)
    seconds = run.folder.read_summary()["stages"].get("match", {}).get("seconds", 0.0)
    if not is_lightglue or seconds < KERNELS_S or run.device != "cpu":
        return
    from sfm_lightglue.engine.kernels import would_help

    if would_help():
        logger.info(
            "LightGlue took %.0f s. On this CPU, compiled kernels make it up to twice as fast: the command `kernels` compiles "
            "them, once (it needs a C++ compiler: g++ 10 or clang++ 9, or later)",
            seconds,
        )
