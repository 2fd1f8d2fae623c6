"""One run: its options, its output folder, its photos, and the plug-ins that its options name. Every stage is called with it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from sfm_lightglue.checks import Inputs, find_mistakes
from sfm_lightglue.colmap import colmap_log
from sfm_lightglue.datasets import ensure_dataset, list_datasets
from sfm_lightglue.execution.devices import chosen_devices
from sfm_lightglue.execution.executor import ExecutionOptions, Executor, check_folders
from sfm_lightglue.execution.shards import DIVIDED, Shard, ShardOptions, check_merged, read_shard
from sfm_lightglue.features.extractor import Extractor
from sfm_lightglue.images import MaskFiles, checked_masks, list_images
from sfm_lightglue.matches.matcher import Matcher
from sfm_lightglue.mistakes import raise_together
from sfm_lightglue.photo_names import PhotoList, PhotoNames, read_photo_list
from sfm_lightglue.run_folder import RunFolder
from sfm_lightglue.run_options import DatasetOptions, RunOptions, about_shards, resolve, resolve_all
from sfm_lightglue.stages import find_stage, stage_names, writer_of
from sfm_lightglue.summary import recorded


@dataclass(frozen=True)
class Run:
    """The options of a run and its output folder. Nothing is loaded or written before a stage asks for it."""

    options: RunOptions
    repeats: bool = False
    """True if stages run again, for turned photos or more pairs: their times are added to those before."""
    kind: str = ""
    """The name of the kind if this is a part of a run with several kinds of features; empty for the run itself."""
    ahead: dict[str, Future[Any]] = dataclasses.field(default_factory=dict, compare=False, repr=False)
    """What a thread makes for a later stage, by name."""
    made: dict[str, Any] = dataclasses.field(default_factory=dict, compare=False, repr=False)
    """What a stage has made and later stages of this process need again, by name."""

    @classmethod
    def create(cls, config: DictConfig) -> Run:
        """The run that a composed configuration describes. Raises: ValueError as in `run_options.resolve`."""
        return cls(resolve(config))

    @classmethod
    def checked(cls, config: DictConfig, command: str = "run") -> Run:
        """The run that a composed configuration describes, if nothing is wrong with it. Raises: as `check_inputs`."""
        options, mistakes = resolve_all(config)
        run = cls(options)
        check_inputs(run, command, mistakes)
        return run

    @property
    def folder(self) -> RunFolder:
        """Everything in the output folder."""
        return RunFolder(self.options.output, self.kind)

    @property
    def kinds(self) -> list[Run]:
        """A run for each of several kinds of features, with features and matches of its own; empty if there is only one kind."""
        chosen = self.options.kinds
        return [dataclasses.replace(self, options=self.options.of_kind(kind), kind=kind.name) for kind in chosen]

    @functools.cached_property
    def images(self) -> Path:
        """Folder of the photos. Photos of a known dataset are downloaded first if they are missing or damaged.

        Raises: ValueError if no dataset was chosen.
        """
        return prepare_photos(self.options.dataset)

    def list_photos(self) -> list[str]:
        """Sorted names of the photos; only those of `dataset.list`, if it is given.

        Mask files and plots inside the photo folder are skipped. Raises: ValueError or FileNotFoundError if there are none.
        """
        return self.listed_photos().names

    def listed_photos(self) -> PhotoList:
        """The photos as `list_photos` gives them, and the names of `dataset.list` that are no photos of the folder."""
        masks = self.options.dataset.masks or None
        names = list_images(self.images, without=[self.folder.path, self.folder.plots], masks=masks)
        if self.options.dataset.list is None:
            return PhotoList(names, {})
        return read_photo_list(self.options.dataset.list, PhotoNames(names, self.images))

    def find_masks(self, names: Sequence[str]) -> MaskFiles | None:
        """The masks of the photos, checked; None without `dataset.masks`. The log says once how many there are.

        Raises: as `images.check_masks`.
        """
        if self.options.dataset.masks is None:
            return None
        found = checked_masks(self.images, names, self.options.dataset.masks)
        if not self.repeats:
            found.log()
        return found

    def photos_with_features(self) -> list[str]:
        """Sorted names of the photos that have features and are still in the photo folder."""
        with self.folder.open_features() as reader:
            return sorted({*reader.names()} & {*self.list_photos()})

    def extractor(self) -> Extractor:
        """The feature extractor on the first device, see `PluginChoice.plan`. Raises: ValueError if there are several kinds."""
        self._check_one_kind()
        extractor: Extractor = self.options.features.plan(self.device)
        return extractor

    def matcher(self) -> Matcher:
        """The matcher on the first device, see `PluginChoice.plan`.

        Raises: ValueError if it does not fit the features, or if there are several kinds.
        """
        self._check_one_kind()
        matcher: Matcher = self.options.matches.plan(self.device)
        return matcher

    def _check_one_kind(self) -> None:
        if self.options.kinds:
            names = ",".join(kind.name for kind in self.options.kinds)
            raise ValueError(f"features=[{names}] are several kinds, this command takes one of them")

    @property
    def execution(self) -> ExecutionOptions:
        """Where the work runs, and what to do with results that were made with other settings."""
        options: ExecutionOptions = self.options.execution.options
        return options

    @property
    def device(self) -> str:
        """Device of everything that runs in this process. Raises: ValueError if torch cannot use it."""
        return chosen_devices(self.execution.device)[0]

    def executor(self, device: str | None = None) -> Executor:
        """The executor that runs the jobs of a stage. `device` replaces the devices of the configuration."""
        options = self.execution if device is None else dataclasses.replace(self.execution, device=device)
        executor: Executor = dataclasses.replace(self.options.execution, options=options).create()
        return executor

    def executor_reading(self, device: str | None = None) -> Executor:
        """The executor of a stage that reads files of the output folder. Raises: ValueError if other machines do not share it."""
        executor = self.executor(device)
        check_folders(executor, [], self.folder.path)
        return executor

    def shard(self, stage: str) -> Shard | None:
        """The share of this process in a stage; None if it does the whole stage."""
        if not isinstance(self.execution, ShardOptions) or stage not in DIVIDED:
            return None
        number, count = read_shard(self.execution.shard)
        return Shard(self.folder.shards, stage, number, count, about_shards(self.options, find_stage(stage).groups))

    @contextlib.contextmanager
    def recorded(self, stage: str, *, adds: bool = False) -> Iterator[dict[str, Any]]:
        """The record of a stage for summary.json. COLMAP's own log goes to the output folder during the block.

        With `adds`, or if the stages are repeated, the times are added to those before. Shards write no summary: `merge` does.
        """
        if (shard := self.shard(stage)) is not None:
            with colmap_log(self.folder.logs), shard.recorded() as record:
                yield record
            return
        configuration = {key: value for key, value in self.options.configuration.items() if key != "dataset"}
        about = {"dataset": dataclasses.asdict(self.options.dataset), "configuration": configuration}
        with colmap_log(self.folder.logs), recorded(self.folder, stage, about, adds=adds or self.repeats) as record:
            yield record


def prepare_photos(dataset: DatasetOptions) -> Path:
    """Folder of the photos of a dataset. A known dataset is downloaded first if its files are missing or damaged.

    Raises: ValueError if no dataset was chosen.
    """
    if not dataset.images:
        raise ValueError("no photos were given: add dataset.images=DIR, or +dataset=NAME (`datasets` lists them)")
    images = Path(dataset.images)
    if any(entry.name == dataset.name and entry.folder in images.parents for entry in list_datasets()):
        ensure_dataset(str(dataset.name))
    return images


def check_inputs(run: Run, command: str = "run", mistakes: Sequence[Exception] = ()) -> None:
    """Looks for all mistakes that can be known before a command, in seconds. Nothing is written.

    Args:
        run: The options.
        command: `run`, the name of a stage, or `evaluate`.
        mistakes: Mistakes that are already known.

    Raises:
        FileNotFoundError: A stage before this one has not run yet.
        ValueError: The mistakes, a line for each. A single mistake is raised as it is.
    """
    if command in stage_names():
        stage = find_stage(command)
        check_merged(run.folder.shards, [writer_of(name) for name in stage.reads])
        stage.check_inputs(run.folder.path)
        if shard := run.shard(command):
            shard.check()
    raise_together([*mistakes, *find_mistakes(Inputs(run.options, run.list_photos), command)])
