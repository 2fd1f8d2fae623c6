"""Training photos: decoded once, converted to grey and resized to one size."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from sfm_lightglue.download import sha256_once
from sfm_lightglue.execution.progress import progress_bar
from sfm_lightglue.files import written_whole
from sfm_lightglue.images import UnreadableImage, load_image, resize_longest, to_grey
from sfm_lightglue.settings import fingerprint

logger = logging.getLogger(__name__)

Job = TypeVar("Job")


def prepare_photos(images: Path, names: Sequence[str], folder: Path, size: int, processes: int) -> dict[str, Path]:
    """The file of each readable photo by name: the photo resized so that its longest side is at most `size` px.

    Files that are already in `folder` are not made again.

    Args:
        images: Folder of the photos.
        names: Names of the photos, relative to that folder.
        folder: Folder of the files.
        size: Longest side, px.
        processes: Number of processes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / f"{fingerprint([size, name, sha256_once(images / name)])[:24]}.npy" for name in names}
    missing = [name for name in names if not paths[name].is_file()]
    in_processes(partial(_prepare_one, images, size), [(name, paths[name]) for name in missing], "photos", processes)
    return {name: path for name, path in paths.items() if path.is_file()}


def read_photo(path: Path) -> np.ndarray:
    """The grey photo in a file of `prepare_photos`, uint8 (h, w)."""
    return np.load(path, allow_pickle=False)


def stack_photos(photos: Sequence[np.ndarray], side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The photos uint8 (n, 1, side, side), each in the upper left corner, and their (width, height), int64 (n, 2)."""
    stacked = np.zeros((len(photos), 1, side, side), np.uint8)
    for place, photo in zip(stacked[:, 0], photos, strict=True):
        place[: photo.shape[0], : photo.shape[1]] = photo
    return torch.from_numpy(stacked), torch.tensor([photo.shape[::-1] for photo in photos])


def write_index(path: Path, files: Sequence[Sequence[Path]]) -> Path:
    """Writes the list of files of each photo to `path` and returns the path.

    The processes that make batches get this path. Sending them the list itself, one after the other, takes as long as starting
    them.
    """
    path.write_text(json.dumps([[str(file.absolute()) for file in row] for row in files]))
    return path


def read_index(path: Path) -> list[list[Path]]:
    """The files of each photo, as `write_index` wrote them."""
    return [[Path(file) for file in row] for row in json.loads(path.read_text())]


def row_of(num_rows: int, place: int, seed: int) -> int:
    """Row at position `place` of an endless sequence. Each epoch has all `num_rows` rows once, in a new order drawn by `seed`."""
    epoch, position = divmod(place, num_rows)
    return int(_order(num_rows, seed, epoch)[position])


@functools.lru_cache(maxsize=2)
def _order(number: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, 1, epoch]).permutation(number)


def in_processes(function: Callable[[Job], str | None], jobs: Sequence[Job], name: str, processes: int) -> None:
    """Calls the function for each job, in processes with one thread each. A text that it returns is logged as a warning.

    With 1 process or 1 job the calls run in this process. `name` is the label of the progress bar.
    """
    processes = min(processes, len(jobs))
    if processes <= 1:
        _finish(map(function, jobs), len(jobs), name)
        return
    with ProcessPoolExecutor(processes, get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        _finish(pool.map(function, jobs, chunksize=4), len(jobs), name)


def _prepare_one(images: Path, size: int, job: tuple[str, Path]) -> str | None:
    """Writes one photo. Returns a message if it cannot be read."""
    name, path = job
    try:
        pixels = resize_longest(load_image(images, name).pixels, size)
    except UnreadableImage as error:
        return f"{name} is left out: {error}"
    with written_whole(path) as temporary, temporary.open("wb") as stream:
        np.save(stream, np.rint(to_grey(pixels) * 255).astype(np.uint8))
    return None


def _finish(results: Iterable[str | None], total: int, name: str) -> None:
    if total == 0:
        return
    with progress_bar(total, name, "photo") as bar:
        for reason in results:
            bar.update()
            if reason:
                logger.warning(reason)
