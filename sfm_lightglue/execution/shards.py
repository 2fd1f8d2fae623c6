"""The executor `shards`: one of several processes, on machines that share nothing but the output folder.

Each process computes its share of a stage in the same way as `local`, and writes files of its own. The first one that starts
writes a plan, which all follow: how many they are, with which options, and which results were there before. The command `merge`
unites what they wrote (`sfm_lightglue/merge.py`).

`OUT/shards/` holds, until `merge` has done its work, `STAGE.json`, the plan of a stage; `STAGE.NAME.json`, what a shard has done,
written when it is complete; and `NAME.lock`, held while a shard works.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import logging
import os
import re
import socket
import time
import zlib
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sfm_lightglue.execution.executor import ExecutionOptions, Executor
from sfm_lightglue.execution.local import LocalExecutor
from sfm_lightglue.files import locked, read_own_json, write_json
from sfm_lightglue.settings import describe_changes

logger = logging.getLogger(__name__)

DIVIDED = ("extract", "pairs", "match", "verify")
"""The stages that can be divided."""
PLAN, DONE = ('{"count":',), ('{"seconds":',)
"""The beginnings of our files."""


@dataclass(frozen=True)
class ShardOptions(ExecutionOptions):
    """Options; configs/execution/shards.yaml holds the values."""

    shard: str | None
    """`i/n`: the process number i of n, counted from 1; it must be given, see `read_shard`."""


def read_shard(text: str | None) -> tuple[int, int]:
    """Number of a shard, counted from 1, and how many there are. Raises: ValueError for another text than `i/n`."""
    if text is None:
        raise ValueError("execution=shards needs execution.shard=i/n, such as 3/16 for the third of 16 processes")
    found = re.fullmatch(r"\s*(\d{1,6})\s*/\s*(\d{1,6})\s*", str(text))
    if found is None:
        raise ValueError(f"execution.shard={text} is no shard: expected i/n, such as 3/16 for the third of 16 processes")
    number, count = int(found[1]), int(found[2])
    if not 1 <= number <= count:
        raise ValueError(
            f"execution.shard={text} does not exist: shards are counted from 1"
            + (f", expected 1/{count} to {count}/{count}" if count else ", and there is at least one")
        )
    return number, count


class ShardExecutor:
    """Creates the executor of one shard, which is the local one. The stage takes only the keys of its `Shard`."""

    @classmethod
    def create(cls, options: ShardOptions) -> Executor:
        """As `LocalExecutor`. Raises: ValueError if the shard does not exist."""
        read_shard(options.shard)
        return LocalExecutor.create(options)


class ShardMismatch(ValueError):
    """A shard was started in another way than the first one."""


@dataclass(frozen=True)
class Shard:
    """The share of one process in one stage."""

    folder: Path
    """The folder `shards` in the output folder."""
    stage: str
    number: int
    """Counted from 1."""
    count: int
    """Number of shards."""
    about: Mapping[str, Any]
    """The options that all shards must have in common, and `run`: everything that `merge` needs to know. Values for JSON."""

    @property
    def writer(self) -> str:
        """The name of its files."""
        return shard_name(self.number, self.count)

    def check(self) -> None:
        """Raises: ShardMismatch if the first shard was started with other options, see `share`."""
        if plan_path(self.folder, self.stage).is_file():
            own = {"count": self.count, "options": self.about["options"], "keys": None}
            plan = read_plan(self.folder, self.stage)
            self._compare(own, {**plan, "keys": None})

    def share(self, keys: Sequence[str], is_stored: Sequence[bool] | np.ndarray) -> list[int]:
        """Positions of the keys of this shard, ascending: neighbours, as many as in the other shards.

        What was stored when the first shard started and what was not are divided separately, so that new photos of a large
        collection are divided among all shards.

        Args:
            keys: All keys of the stage, in an order in which neighbours have images in common.
            is_stored: bool (n,), whether each key has results now. Only the first shard uses it.

        Raises: ShardMismatch if the first shard was started with other options, or for other photos or pairs.
        """
        was_stored = self._agree(keys, np.asarray(is_stored, bool))
        return sorted([*self._part(np.flatnonzero(was_stored)), *self._part(np.flatnonzero(~was_stored))])

    def _part(self, indices: np.ndarray) -> list[int]:
        first, last = (len(indices) * end // self.count for end in (self.number - 1, self.number))
        found: list[int] = indices[first:last].tolist()
        return found

    @contextlib.contextmanager
    def recorded(self) -> Iterator[dict[str, Any]]:
        """Writes what the shard has done when the block ends, which means that it is complete. Nothing if the block raises."""
        path, begin = done_path(self.folder, self.stage, self.number, self.count), time.perf_counter()
        path.unlink(missing_ok=True)
        record: dict[str, Any] = {}
        yield record
        seconds, num_computed = round(time.perf_counter() - begin, 3), int(record.get("num_computed", 0))
        self.folder.mkdir(exist_ok=True)
        write_json(path, {"seconds": seconds, "num_computed": num_computed, "machine": socket.gethostname()})
        logger.info("%s: shard %d/%d is complete, %d new (%.1f s)", self.stage, self.number, self.count, num_computed, seconds)

    @contextlib.contextmanager
    def alone(self, task: str) -> Iterator[None]:
        """Keeps the other shards from a task during the block: they wait."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder / f"{self.stage}-{task}.lock"):
            yield

    # --- the plan --------------------------------------------------------------------------------------------------------

    def _agree(self, keys: Sequence[str], was_stored: np.ndarray) -> np.ndarray:
        """Follows the plan of the first shard, or writes it. Returns which keys were stored at that time."""
        self.folder.mkdir(parents=True, exist_ok=True)
        own = {
            "count": self.count,
            "num_keys": len(keys),
            "keys": hashlib.sha256("\n".join(keys).encode("utf-8", "surrogateescape")).hexdigest(),
            "options": self.about["options"],
            "run": self.about["run"],
            "stored": base64.b64encode(zlib.compress(np.packbits(was_stored).tobytes())).decode(),
        }
        path = plan_path(self.folder, self.stage)
        _write_first(path, json.loads(json.dumps(own)))
        plan = read_plan(self.folder, self.stage)
        self._compare(own, plan)
        bits = np.frombuffer(zlib.decompress(base64.b64decode(plan["stored"])), np.uint8)
        return np.unpackbits(bits, count=len(keys)).astype(bool)

    def _compare(self, own: Mapping[str, Any], plan: Mapping[str, Any]) -> None:
        """Raises: ShardMismatch if this shard differs from the plan."""
        if problem := self._difference(own, plan):
            raise ShardMismatch(
                f"shard {self.number}/{self.count} of {self.stage} does not fit those that have begun in {self.folder.parent}: "
                f"{problem}. Start all shards alike; to begin anew, end them and delete {self.folder}, which holds no results"
            )

    def _difference(self, own: Mapping[str, Any], plan: Mapping[str, Any]) -> str:
        """How this shard differs from the plan; empty if it does not."""
        if own["count"] != plan["count"]:
            return f"they are {plan['count']} shards"
        if changes := describe_changes(plan["options"], json.loads(json.dumps(own["options"]))):
            return f"they have other options ({changes})"
        if own["keys"] != plan["keys"]:
            what = "photos" if self.stage in ("extract", "pairs") else "pairs"
            return f"they are for other {what} ({plan['num_keys']}, now {own['num_keys']})"
        return ""


def _write_first(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a file unless it exists. Of several processes, one succeeds, on network drives too."""
    if path.exists():
        return
    temporary = path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    try:
        write_json(temporary, content)
        try:
            os.link(temporary, path)
        except FileExistsError:
            pass
        except OSError:  # a file system without hard links
            with contextlib.suppress(FileExistsError), path.open("xb") as file:
                file.write(temporary.read_bytes())
    finally:
        temporary.unlink(missing_ok=True)


# --- the files of all shards ---------------------------------------------------------------------------------------------


def shard_name(number: int, count: int) -> str:
    """The name of a shard in names of files, such as `03-of-16`: names sort as numbers do."""
    return f"{number:0{len(str(count))}d}-of-{count}"


def shard_suffix(text: object) -> str:
    """`_shard-03-of-16` for the option `execution.shard=3/16`, for names of folders; empty without a shard."""
    try:
        return f"_shard-{shard_name(*read_shard(None if text is None else str(text)))}"
    except ValueError:
        return ""


def plan_path(folder: Path, stage: str) -> Path:
    """The plan of a stage."""
    return folder / f"{stage}.json"


def done_path(folder: Path, stage: str, number: int, count: int) -> Path:
    """What a shard writes when it is complete."""
    return folder / f"{stage}.{shard_name(number, count)}.json"


def planned_stages(folder: Path) -> list[str]:
    """Stages that shards have begun and that are not merged yet, in order."""
    return [stage for stage in DIVIDED if plan_path(folder, stage).is_file()]


def read_plan(folder: Path, stage: str) -> dict[str, Any]:
    """The plan of a stage. Raises: ValueError if it is damaged, or if no shard has written it."""
    path = plan_path(folder, stage)
    plan = read_own_json(path, PLAN)
    if plan is None or {"options", "run", "keys", "num_keys", "stored"} - plan.keys():
        raise ValueError(f"{path} is damaged: delete {folder}, which holds no results, and start the shards again")
    return plan


def incomplete_shards(folder: Path, stage: str, count: int) -> list[int]:
    """Numbers of the shards that have not ended."""
    numbers = range(1, count + 1)
    return [number for number in numbers if not done_path(folder, stage, number, count).is_file()]


def done_shards(folder: Path, stage: str, count: int) -> list[dict[str, Any]]:
    """What the complete shards have written."""
    paths = [done_path(folder, stage, number, count) for number in range(1, count + 1)]
    return [record for path in paths if path.is_file() and (record := read_own_json(path, DONE)) is not None]


def forget(folder: Path, stage: str) -> None:
    """Deletes the plan of a stage and what its shards have written about themselves. Their results stay.

    The plan goes last: without it, nothing says that the stage must be merged.
    """
    if not folder.is_dir():
        return
    for path in sorted(folder.glob(f"{stage}.*-of-*.json")):
        path.unlink(missing_ok=True)
    plan_path(folder, stage).unlink(missing_ok=True)
    if not planned_stages(folder):
        for lock in folder.glob("*.lock"):
            lock.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # files of others
            folder.rmdir()


def check_merged(folder: Path, stages: Container[str]) -> None:
    """Raises: ValueError if one of the stages was begun by shards and is not merged. `folder` is the folder `shards`."""
    for stage in planned_stages(folder):
        if stage in stages:
            raise ValueError(f"the results of the shards of {stage} are not united yet: merge output={folder.parent}")
