"""Unites what the processes of `execution=shards` have computed: the files are then those of a run in one process."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sfm_lightglue.config import compose_config
from sfm_lightglue.execution.shards import done_shards, incomplete_shards, planned_stages, read_plan
from sfm_lightglue.mistakes import MISTAKES, count_of
from sfm_lightglue.next_commands import command_of, next_command
from sfm_lightglue.pipeline import run_stage
from sfm_lightglue.run_context import Run, check_inputs
from sfm_lightglue.run_folder import RunFolder
from sfm_lightglue.run_options import resolve_recorded

logger = logging.getLogger(__name__)

MAX_COMMANDS = 8
"""Number of commands that a message lists."""


def merge_shards(output: Path | str) -> list[str]:
    """Merges the results of all shards in an output folder, and writes the summary and the tables. The log says what comes next.

    Photos that no shard could use are tried once more, so that the summary has the reason. Everything else is stored already.

    Returns: The stages that were merged.

    Raises:
        FileNotFoundError: There is no such folder, or no shard has worked in it.
        ValueError: Some shards are not complete; the message has the commands that complete them. Nothing was changed then.
    """
    folder = RunFolder(Path(output).absolute())
    plans = {stage: read_plan(folder.shards, stage) for stage in planned_stages(folder.shards)} if folder.path.is_dir() else {}
    if not plans:
        raise FileNotFoundError(
            f"{output} has nothing to merge: extract, pairs, match or verify with execution=shards execution.shard=i/n come first"
        )
    with folder.locked():
        for stage, plan in plans.items():
            _check_complete(folder, stage, plan)
    for stage, plan in plans.items():
        rounds = _merge(folder, stage, plan)
    with contextlib.suppress(*MISTAKES):  # then the next command explains them
        logger.info("next: %s", next_command(folder, stage, plan["run"]["configuration"], rounds, plan["count"]))
    return [*plans]


def _check_complete(folder: RunFolder, stage: str, plan: Mapping[str, Any]) -> None:
    """Raises: ValueError with the commands of the shards that are missing."""
    missing = incomplete_shards(folder.shards, stage, plan["count"])
    if not missing:
        return
    shards = [f"{number}/{plan['count']}" for number in missing[:MAX_COMMANDS]]
    commands = [f"  {command_of(folder, stage, plan['run']['configuration'], shard)}" for shard in shards]
    if len(missing) > MAX_COMMANDS:
        commands.append(f"  ... and shards {', '.join(map(str, missing[MAX_COMMANDS:]))}")
    count = count_of(plan["count"], "shard")
    raise ValueError("\n".join([f"{len(missing)} of {count} of {stage} are not complete. Run them, then merge:", *commands]))


def _merge(folder: RunFolder, stage: str, plan: Mapping[str, Any]) -> int:
    """Does the stage again, in this process: everything is stored, and its end merges the files. Returns `pairs.rounds`."""
    configuration = {**plan["run"]["configuration"], "output": str(folder.path)}
    configuration["execution"] = compose_config(["execution=local"]).execution
    seconds = [record["seconds"] for record in done_shards(folder.shards, stage, plan["count"])]
    logger.info("%s: %s took %.1f to %.1f s", stage, count_of(plan["count"], "shard"), min(seconds), max(seconds))
    with _inside(Path(plan["run"]["folder"])):
        run = Run(resolve_recorded(configuration))
        check_inputs(run, stage)
        run_stage(run, stage)  # forgets the plan
    return run.options.selection.rounds


@contextlib.contextmanager
def _inside(folder: Path) -> Any:
    """Works in the folder in which the shards were started, because paths in their options may be relative."""
    with contextlib.chdir(folder) if folder.is_dir() else contextlib.nullcontext():
        yield
