"""The mapper `clusters`: maps overlapping clusters of photos side by side. `joining` makes one model of theirs afterwards.

Finished clusters are kept in the folder `reconstruction.clusters` until the whole reconstruction is written, so that a killed
run continues there. They count for one database and one set of options. Each cluster is mapped by COLMAP's incremental mapper
with one thread, so that its model is the same in every run, whatever the executor and the number of processes.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import pycolmap

from sfm_lightglue.colmap import colmap_log
from sfm_lightglue.execution.executor import Executor, checked_results
from sfm_lightglue.execution.progress import progress_bar
from sfm_lightglue.execution.threads import ThreadExecutor
from sfm_lightglue.files import foreign_file, read_own_json, write_json
from sfm_lightglue.model_files import read_model
from sfm_lightglue.reconstruction.fallbacks import map_with_fallbacks, try_other_ways
from sfm_lightglue.reconstruction.mappers import ReconstructionOptions, incremental_options, map_quietly, on_ctrl_c, run_mapper
from sfm_lightglue.reconstruction.models import model_folders
from sfm_lightglue.reconstruction.part_of_database import write_part

logger = logging.getLogger(__name__)

STATE = "settings.json"
BEGINNINGS = ('{"clusters":',)
"""The first key in `settings.json`."""

NO_LOG = 3
"""COLMAP's level of fatal errors."""
MAX_ATTEMPTS, SECONDS_BETWEEN_ATTEMPTS = 12, 0.1
"""How often a database that other processes are opening is tried, and the wait after the first failure; later ones are longer."""

Job: TypeAlias = tuple[int, tuple[str, ...]]
"""The number of a cluster and the names of its photos."""


@dataclass(frozen=True)
class ClustersFolder:
    """The folder at `path` of the clusters that are finished. It need not exist."""

    path: Path

    def check(self) -> None:
        """Raises: ValueError if no run has written the folder, see `files.foreign_file`."""
        if not os.path.lexists(self.path):
            return
        if not self.path.is_dir() or (any(self.path.iterdir()) and not (self.path / STATE).exists()):
            raise foreign_file(self.path)
        if (self.path / STATE).exists():
            read_own_json(self.path / STATE, BEGINNINGS)

    def open(self, settings: Mapping[str, Any]) -> None:
        """Keeps what is there if it was made with these settings, and starts anew otherwise. Raises: ValueError as in `check`."""
        self.check()
        state = self.path / STATE
        if not state.exists() or read_own_json(state, BEGINNINGS) != settings:
            self.remove()
            self.path.mkdir(parents=True)
            write_json(state, settings)
        for unfinished in self.path.glob("*.tmp"):
            shutil.rmtree(unfinished)

    def models(self, number: int) -> list[Path] | None:
        """Folders of the models of a cluster; None if it is not finished, or damaged."""
        folder = self.path / str(number)
        if not folder.is_dir():
            return None
        try:
            for model in model_folders(folder):
                read_model(model)
        except ValueError as problem:
            logger.warning("%s: the cluster is mapped again", problem)
            shutil.rmtree(folder)
            return None
        return model_folders(folder)

    def remove(self) -> None:
        """Deletes the folder."""
        if self.path.is_dir():
            shutil.rmtree(self.path)


def find_clusters(database: Path, options: ReconstructionOptions) -> list[tuple[str, ...]]:
    """Names of the photos of each cluster, sorted. Pairs with fewer inliers than `min_num_matches` do not count."""
    with pycolmap.Database.open(database) as rows:
        names = {image.image_id: image.name for image in rows.read_all_images()}
        order = {name: number for number, name in enumerate(sorted(names.values()))}
        weights = {}
        for pair, inliers in zip(*rows.read_two_view_geometry_num_inliers(), strict=True):
            if inliers >= max(1, options.min_num_matches):
                first, second = sorted(order[names[image]] for image in pycolmap.pair_id_to_image_pair(pair))
                weights[first, second] = int(inliers)
    from sfm_lightglue.reconstruction.clustering import (
        cluster_photos,  # networkx takes 0.1 s to import; this mapper alone needs it
    )

    clusters = cluster_photos(weights, options.max_cluster_size, options.cluster_overlap)
    by_number = sorted(names.values())
    return [tuple(by_number[number] for number in cluster) for cluster in clusters]


def map_clusters(
    database: Path,
    output: Path,
    options: ReconstructionOptions,
    folder: ClustersFolder,
    settings: Mapping[str, Any],
    executor: Executor | None,
) -> tuple[list[str], bool]:
    """Writes the models of all clusters to `output/0` ... `output/n`, after Ctrl-C those of the finished clusters.

    A cluster without good models is mapped in other ways, see `fallbacks`. Returns a sentence about each that this helped, in
    this run, and whether Ctrl-C was pressed.

    Args:
        database: COLMAP database. All workers of the executor must see it, and the folder.
        output: Folder of the models.
        options: Options of the mapper.
        folder: Where finished clusters are kept.
        settings: What the clusters depend on.
        executor: Where the clusters are mapped; None takes the threads of this process.

    Raises: RuntimeError if a cluster could not be mapped; the others are kept.
    """
    clusters = find_clusters(database, options)
    if len(clusters) <= 1:
        logger.info("the photos with verified pairs make one cluster of at most %d", options.max_cluster_size)
        run = functools.partial(run_mapper, known_poses={})
        return map_with_fallbacks(database, output, replace(options, name="incremental"), run)
    folder.open({"clusters": [list(names) for names in clusters], **settings})
    finished = {number: folder.models(number) for number in range(len(clusters))}
    jobs: list[Job] = [(number, names) for number, names in enumerate(clusters) if finished[number] is None]
    logger.info("%s", _describe(clusters, len(clusters) - len(jobs)))
    notes, interrupted = _map_all(jobs, database, folder.path, options, executor or ThreadExecutor()) if jobs else ([], False)
    _copy_models(folder, len(clusters), output)
    return notes, interrupted


def _describe(clusters: Sequence[Sequence[str]], num_finished: int) -> str:
    num_images = len({name for names in clusters for name in names})
    sizes = sorted(map(len, clusters))
    text = f"{num_images} photos are mapped in {len(clusters)} clusters of {sizes[0]} to {sizes[-1]}; "
    text += f"{sum(sizes) - num_images} photos are in a second cluster"
    return text + (f"; {num_finished} clusters are finished" if num_finished else "")


def _map_all(
    jobs: list[Job], database: Path, folder: Path, options: ReconstructionOptions, executor: Executor
) -> tuple[list[str], bool]:
    """Maps each cluster; returns as `map_clusters`. Raises: RuntimeError as there."""
    paths = database.absolute(), folder.absolute()  # a worker may have another current folder
    recipe = functools.partial(_open_mapper, *paths, replace(options, num_threads=1), os.getpid())
    errors, helped = dict[int, Exception](), dict[int, list[str]]()
    largest_first = sorted(jobs, key=lambda job: (-len(job[1]), job[0]))
    try:
        with on_ctrl_c(_cancel_all), progress_bar(sum(len(names) for _, names in jobs), "reconstruct clusters", "img") as bar:
            for (number, names), result in checked_results(executor, recipe, largest_first):
                bar.update(len(names))
                if isinstance(result, Exception):
                    errors[number] = result
                else:
                    helped[number] = result
    except KeyboardInterrupt:
        logger.warning("interrupted: finished clusters are kept")
        return [], True
    if errors:
        number = min(errors)
        raise RuntimeError(
            f"{len(errors)} of {len(jobs)} clusters could not be mapped, first {number}: {errors[number]}. The others are kept"
        ) from errors[number]
    return [f"cluster {number}: {note}" for number in sorted(helped) for note in helped[number]], False


@contextlib.contextmanager
def _open_mapper(
    database: Path, folder: Path, options: ReconstructionOptions, parent: int, device: str
) -> Iterator[Callable[[Job], list[str]]]:
    """A recipe of executors: gives the function that maps a cluster and returns what helped, see `fallbacks`.

    `parent` is the id of the process that joins the models. In other processes COLMAP logs nothing: a cluster without a first
    pair is no error, because its photos are tried again when models are continued.
    """

    def map_cluster(job: Job) -> list[str]:
        number, names = job
        partial = folder / f"{number}.{os.getpid()}.tmp"
        if partial.exists():  # of a lost worker that had the same process id
            shutil.rmtree(partial)
        partial.mkdir()
        colmap = incremental_options(options, len(names))
        colmap.image_names = list(names)
        with _running() as token:
            _map_when_free(database, partial, colmap, token)
            notes = [] if token.is_cancelled else _try_other_ways(database, names, partial, options, token)
            if token.is_cancelled:
                raise InterruptedError(f"cluster {number} was interrupted")
        if (folder / str(number)).exists():  # a worker that was taken for lost has finished it
            shutil.rmtree(partial)
        else:
            partial.rename(folder / str(number))
        return notes

    with colmap_log(None):
        if os.getpid() != parent:
            pycolmap.logging.minloglevel = NO_LOG
        yield map_cluster


def _try_other_ways(
    database: Path, names: Sequence[str], folder: Path, options: ReconstructionOptions, token: pycolmap.CancellationToken
) -> list[str]:
    """Maps a cluster in other ways if its models in the folder are not good, see `fallbacks`; returns what helped."""
    run = functools.partial(_map_part, token=token)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        part = write_part(database, names, Path(temporary) / "database.db")
        notes, _ = try_other_ways(part, folder, replace(options, name="incremental"), run)
    return notes


def _map_part(
    database: Path, output: Path, options: ReconstructionOptions, *, any_start: bool, token: pycolmap.CancellationToken
) -> bool:
    return map_quietly(database, output, options, token, any_start=any_start)


def _map_when_free(
    database: Path, folder: Path, options: pycolmap.IncrementalPipelineOptions, token: pycolmap.CancellationToken
) -> Any:
    """COLMAP's incremental mapping. A database that another mapper is opening cannot be opened: it is tried again for seconds."""
    for attempt in range(MAX_ATTEMPTS):
        try:
            return pycolmap.incremental_mapping(database, folder, folder, options, cancellation_token=token)
        except RuntimeError as error:
            if "database factory" not in str(error) or attempt == MAX_ATTEMPTS - 1:
                raise
            time.sleep(SECONDS_BETWEEN_ATTEMPTS * (1 + attempt))
    raise AssertionError("unreachable")


_tokens, _lock = list[pycolmap.CancellationToken](), threading.Lock()
"""Of the clusters that this process is mapping now."""


@contextlib.contextmanager
def _running() -> Iterator[pycolmap.CancellationToken]:
    token = pycolmap.CancellationToken()
    with _lock:
        _tokens.append(token)
    try:
        yield token
    finally:
        with _lock:
            _tokens.remove(token)


def _cancel_all(*_: Any) -> None:
    """Ends the clusters that this process is mapping. Raises: KeyboardInterrupt, which ends the processes of an executor."""
    for token in list(_tokens):
        token.cancel()
    raise KeyboardInterrupt


def _copy_models(folder: ClustersFolder, num_clusters: int, output: Path) -> None:
    """Copies the models of all finished clusters to `output/0` ... `output/n`."""
    models = [model for number in range(num_clusters) for model in folder.models(number) or ()]
    for number, model in enumerate(models):
        shutil.copytree(model, output / str(number))
