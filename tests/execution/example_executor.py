"""An executor outside the package: it runs the jobs one after another, in this process. No file of the package names it."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import dataclass

from sfm_lightglue.execution.devices import default_device
from sfm_lightglue.execution.executor import ExecutionOptions, Key, Recipe, Result


@dataclass(frozen=True)
class SerialOptions(ExecutionOptions):
    backwards: bool


class Serial:
    def __init__(self, options: SerialOptions) -> None:
        self.device, self.backwards = default_device(options.device), options.backwards

    @classmethod
    def create(cls, options: SerialOptions) -> Serial:
        return cls(options)

    def __call__(self, recipe: Recipe[Key, Result], keys: Iterable[Key]) -> Generator[tuple[Key, Result | Exception], None, None]:
        with recipe(self.device) as worker:
            for key in sorted(keys, reverse=True) if self.backwards else keys:  # type: ignore[type-var]
                try:
                    yield key, worker(key)
                except Exception as error:
                    yield key, error
