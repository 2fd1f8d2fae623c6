"""Calls a command with its configuration: Hydra handles overrides, sweeps (-m), --cfg and the log folder."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence

import hydra
from hydra._internal.callbacks import Callbacks
from hydra.core.utils import run_job
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig

from sfm_lightglue import config as configuration
from sfm_lightglue.commands.flags import Flags
from sfm_lightglue.config_files import CONFIG_NAME, config_dir
from sfm_lightglue.mistakes import MISTAKES, message_of
from sfm_lightglue.overrides import FLAGS_WITH_VALUE


def inside_hydra(
    command: Callable[[DictConfig], None],
    overrides: list[str],
    config_name: str | None = None,
    *,
    flags: Flags,
    composed: DictConfig | None = None,
) -> None:
    """Calls `command` with the composed configuration, once or for each job of a sweep. `flags` say what is printed.

    `composed` is the configuration of a single job with the group `hydra`, if it was composed before: that takes 0.1 s, and
    Hydra does it twice.

    Raises: ValueError that explains a mistake in the overrides; the worst error of the command.
    """
    failures: list[Exception] = []

    def task(config: DictConfig) -> None:
        try:
            with flags.applied():
                command(config)
        except Exception as error:  # Hydra would print its own message and stop; the other jobs of a sweep still run
            failures.append(error)

    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra raises instead of printing; `explained_errors` explains the mistake
    hidden = ["hydra.hydra_logging.root.level=WARNING"] if flags.quiet else []
    sys.argv = [sys.argv[0], *hidden, *flags_last(overrides)]
    if composed is not None and composed.hydra.mode in (None, RunMode.RUN):
        _run_composed(task, composed)
    else:
        configuration.register()
        folder = str(config_dir())
        with configuration.explained_errors():
            hydra.main(version_base="1.3", config_path=folder, config_name=config_name or CONFIG_NAME)(task)()
    if failures:
        worst = next((failure for failure in failures if not isinstance(failure, MISTAKES)), failures[0])
        for failure in failures:  # of a sweep
            if failure is not worst:
                print(f"error: {message_of(failure)}", file=sys.stderr)
        raise worst


def _run_composed(task: Callable[[DictConfig], None], config: DictConfig) -> None:
    """What `hydra.main` does with the configuration of a single job: it opens the log folder, and calls the task."""
    with configuration.opened_hydra() as loader:
        config.hydra.mode = RunMode.RUN
        callbacks = Callbacks(config)
        callbacks.on_run_start(config=config, config_name=CONFIG_NAME)
        context = HydraContext(config_loader=loader, callbacks=callbacks)
        done = run_job(task, config, "hydra.run.dir", None, context)
        callbacks.on_run_end(config=config, config_name=CONFIG_NAME, job_return=done)


def flags_last(arguments: Sequence[str]) -> list[str]:
    """The arguments with Hydra's flags at the end: Hydra reads no overrides after a flag."""
    overrides: list[str] = []
    flags: list[str] = []
    for i, argument in enumerate(arguments):
        is_value = i > 0 and arguments[i - 1] in FLAGS_WITH_VALUE
        (flags if is_value or argument.startswith("-") else overrides).append(argument)
    return [*overrides, *flags]


@contextlib.contextmanager
def held_messages() -> Iterator[list[logging.LogRecord]]:
    """Keeps the warnings of the package that are logged in the block, in a list. If the block raises, they are printed.

    What the compiled kernels say is kept too: a check may compile them, which takes seconds.
    """
    records: list[logging.LogRecord] = []
    logger, handler = logging.getLogger("sfm_lightglue"), logging.Handler()
    kernels = logging.getLogger("sfm_lightglue.engine.kernels")
    level, before = logger.level, kernels.level
    logger.setLevel(max(level, logging.WARNING))
    kernels.setLevel(logging.INFO)
    handler.emit = records.append  # type: ignore[method-assign, assignment]
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield records
    except BaseException:
        for record in records:
            print(record.getMessage(), file=sys.stderr)
        raise
    finally:
        logger.removeHandler(handler)
        logger.propagate = True
        logger.setLevel(level)
        kernels.setLevel(before)
