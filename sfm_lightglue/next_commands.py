"""The commands of `execution=shards` that are missing or that come next, for messages."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from sfm_lightglue.changed_options import changed_options
from sfm_lightglue.execution.shards import DIVIDED
from sfm_lightglue.pairs.second_round import round_of
from sfm_lightglue.run_folder import RunFolder

FOLLOWING = {"extract": "pairs", "pairs": "match", "match": "verify", "expand": "match"}
"""Stage -> the stage that comes next."""
ONCE = ("execution", "execution.shard")
"""Options that a command without shards does not get."""


def command_of(folder: RunFolder, stage: str, configuration: Mapping[str, Any], shard: str = "") -> str:
    """The command that does a stage of a run, or one shard of it.

    Args:
        folder: Output folder of the run.
        stage: `run`, or the name of a stage.
        configuration: The options of another command of the run, see `RunOptions.configuration`.
        shard: `i/n`. If it is empty, the whole stage is done; `expand` keeps `execution=shards`, because stages in shards follow.
    """
    dropped = ("execution.shard",) if shard or stage == "expand" else ONCE
    changed = {key: value for key, (value, _) in changed_options(configuration).items() if key not in dropped}
    dataset = configuration["dataset"]
    options = [f"dataset.{key}={dataset[key]}" for key in ("name", "images") if dataset[key]] + [f"output={folder.path}"]
    options += [f"{key}={_text(value)}" for key, value in changed.items() if value is not None]
    options += [f"execution.shard={shard}"] if shard else []
    return " ".join(["python -m sfm_lightglue", *map(shlex.quote, [stage, *options])])


def next_command(folder: RunFolder, stage: str, configuration: Mapping[str, Any], rounds: int, count: int | None) -> str:
    """What comes after a stage of a run in shards, for a message: a command, and how often it must be started.

    Args:
        folder: Output folder of the run.
        stage: The stage that is complete.
        configuration: As for `command_of`.
        rounds: The option `pairs.rounds`.
        count: Number of shards; None if it is not known.
    """
    following = FOLLOWING.get(stage) or ("run" if next_round(folder, rounds) is None else "expand")
    if following not in DIVIDED or following == "pairs":  # few collections are so large that it is worth it
        return f"{command_of(folder, following, configuration)} (once)"
    n = "n" if count is None else str(count)
    return f"{command_of(folder, following, configuration, f'i/{n}')} for each i from 1 to {n}, then merge"


def next_round(folder: RunFolder, rounds: int) -> int | None:
    """The round of pairs that `expand` adds next if there are `rounds`; None if all are there.

    Pairs of the last round that were not verified yet are selected once more: the pairs before them have not changed.

    Raises: ValueError if pairs of an earlier round were not verified.
    """
    if rounds < 2:
        return None
    pairs = folder.read_reasons()
    with folder.open_verification() as reader:
        is_verified = reader.geometry_numbers(pairs).found.tolist()
    last = max(map(round_of, pairs), default=1)
    missing = [pair for pair, found in zip(pairs, is_verified, strict=True) if not found]
    if not missing:
        return last + 1 if last < rounds else None
    if min(map(round_of, missing)) < max(2, last):
        raise ValueError(
            f"{len(missing)} of {len(pairs)} pairs were not verified, such as {missing[0].name0!r} and {missing[0].name1!r}: run "
            "the stages match and verify first"
        )
    return last


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
