"""The contract of an executor: a plug-in that decides where the jobs of a stage run.

A stage describes its work as a recipe and a list of keys; it does not know which executor runs them. To add an executor:

1. Write a class with a classmethod `create(options)` and a `__call__(recipe, keys)`, as `Executor` describes. The annotation of
   `options` names the dataclass of its options: `ExecutionOptions`, or a subclass with options of its own.
2. Write configs/execution/NAME.yaml: `defaults: [local]` inherits the common options; `name: NAME` and the new options follow.
3. List the class in `EXECUTORS` (`sfm_lightglue/execution/__init__.py`).

An executor outside this package needs no step 3: its YAML file, in the folder that SFM_LIGHTGLUE_CONFIGS names, says
`name: package.module:Class`. tests/execution/example_executor.py is a complete example.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Hashable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias, TypeVar

from sfm_lightglue.ranges import check_ranges
from sfm_lightglue.registry import closest

Key = TypeVar("Key", bound=Hashable)
Result = TypeVar("Result")

Recipe: TypeAlias = Callable[[str], AbstractContextManager[Callable[[Key], Result]]]
"""Called with torch's name of a device. Its context yields the worker, a function from key to result, and closes files."""

WHEN_SETTINGS_CHANGED = ("refuse", "recompute")


@dataclass(frozen=True)
class ExecutionOptions:
    """The options that every executor has; configs/execution/local.yaml holds the values."""

    name: str
    device: str
    """One device, several with commas between them, `auto` or `all`: see `chosen_devices`."""
    num_workers: int
    """Number of jobs that one process does at a time; 0 = as many as suit the device."""
    cache_mb: float
    """Memory of each process for images that are kept for their next pair, MB."""
    if_settings_changed: str
    """What to do with results that were made with other settings: `refuse` or `recompute`."""

    def __post_init__(self) -> None:
        if self.if_settings_changed not in WHEN_SETTINGS_CHANGED:
            raise ValueError(
                f"execution.if_settings_changed={self.if_settings_changed!r} does not exist. "
                f"{closest(self.if_settings_changed, WHEN_SETTINGS_CHANGED)}"
            )
        check_ranges(self, "execution", cache_mb=">= 0")
        if self.num_workers < 0:
            raise ValueError(f"execution.num_workers must be 0 (one per core) or more, found {self.num_workers}")


class Executor(Protocol):
    """Runs the jobs of a stage. It may be called several times, one call after the other."""

    @classmethod
    def create(cls, options: Any) -> Executor:
        """The executor for these options. Raises: ValueError for options that it cannot meet, for example an absent device."""
        ...

    def __call__(self, recipe: Recipe[Key, Result], keys: Iterable[Key]) -> Generator[tuple[Key, Result | Exception], None, None]:
        """Each key once, with its result, in any order.

        - The recipe is called once in each process that takes part, with the device of that process. The worker that it opens
          must be safe to call from several threads; an executor may call it from one.
        - Recipe, keys and results can be pickled. Keys are never None.
        - Keys are taken as workers need them, so that memory does not grow with their number.
        - The result of a job that raises an `Exception` is this exception. Other jobs go on.
        - Closing the generator (the loop over it ended early: Ctrl-C, an error) stops the work: when `close` returns, no job
          runs any more and no process is left behind.

        Args:
            recipe: Opens the worker on a device.
            keys: One key for each job. If there are none, no worker needs to be opened.

        Yields: (key, result or exception).

        Raises: What the recipe raises; ChildProcessError if a process dies.
        """
        ...


def check_folders(executor: Executor, folders: Sequence[Path], output: Path | None = None) -> None:
    """Checks that all processes of an executor see some folders, and share the folder `output`.

    An executor that uses other machines has a method `check_folders(folders, output)` for it; others need none.

    Raises: ValueError that names machines and folders.
    """
    if (check := getattr(executor, "check_folders", None)) is not None:
        check(folders, output)


def checked_results(
    executor: Executor, recipe: Recipe[Key, Result], keys: Iterable[Key]
) -> Generator[tuple[Key, Result | Exception], None, None]:
    """The results of an executor. Closing the generator closes the one of the executor.

    Raises: ValueError if a key is missing, comes twice, or was not asked for; what the executor raises.
    """
    keys = list(keys)
    waiting, name = set(keys), type(executor).__name__
    results = executor(recipe, keys)
    if not isinstance(results, Generator):
        raise ValueError(f"{name} gave {type(results).__name__}, expected a generator of (key, result)")
    with contextlib.closing(results):
        for key, result in results:
            if key not in waiting:
                raise ValueError(f"{name} gave a result for {key!r}, which was done already or not asked for")
            waiting.remove(key)
            yield key, result
    if waiting:
        raise ValueError(f"{name} gave no result for {len(waiting)} of {len(keys)} jobs: what was computed is kept")
