"""The photos that networks are trained on: grey, of one size, decoded once."""

from __future__ import annotations

import functools
import json
import logging
import os
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
from sfm_lightglue.images import UnreadableImage, load_image, resize_longest, to_grey
from sfm_lightglue.settings import fingerprint

logger = logging.getLogger(__name__)

Job = TypeVar("Job")


def prepare_photos(images: Path, names: Sequence[str], folder: Path, size: int, processes: int) -> dict[str, Path]:
    """The files with the photos that can be read, their longest side at most `size` px; those in `folder` are not made again."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / f"{fingerprint([size, name, sha256_once(images / name)])[:24]}.npy" for name in names}
    missing = [name for name in names if not paths[name].is_file()]
    in_processes(partial(_prepare_one, images, size), [(name, paths[name]) for name in missing], "photos", processes)
    return {name: path for name, path in paths.items() if path.is_file()}


def read_photo(path: Path) -> np.ndarray:
    """uint8 (h, w)."""
    return np.load(path, allow_pickle=False)


def stack_photos(photos: Sequence[np.ndarray], side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """uint8 (n, 1, side, side), each photo in the upper left corner, and their (width, height), int64 (n, 2)."""
    stacked = np.zeros((len(photos), 1, side, side), np.uint8)
    for place, photo in zip(stacked[:, 0], photos, strict=True):
        place[: photo.shape[0], : photo.shape[1]] = photo
    return torch.from_numpy(stacked), torch.tensor([photo.shape[::-1] for photo in photos])


def write_index(path: Path, files: Sequence[Sequence[Path]]) -> Path:
    """Writes which files belong to each photo. Processes that make batches are given its path: to send them the list itself would
    take as long as they need to start, one after the other."""
    path.write_text(json.dumps([[str(file.absolute()) for file in row] for row in files]))
    return path


def read_index(path: Path) -> list[list[Path]]:
    return [[Path(file) for file in row] for row in json.loads(path.read_text())]


def row_of(num_rows: int, place: int, seed: int) -> int:
    """The row of the index at this place of an endless sequence: all come once in each epoch, in a new random order."""
    epoch, position = divmod(place, num_rows)
    return int(_order(num_rows, seed, epoch)[position])


@functools.lru_cache(maxsize=2)
def _order(number: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, 1, epoch]).permutation(number)


def in_processes(function: Callable[[Job], str | None], jobs: Sequence[Job], name: str, processes: int) -> None:
    """Does the jobs, one thread each; what the function returns, if anything, is logged as a warning."""
    processes = min(processes, len(jobs))
    if processes <= 1:
        _finish(map(function, jobs), len(jobs), name)
        return
    with ProcessPoolExecutor(processes, get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        _finish(pool.map(function, jobs, chunksize=4), len(jobs), name)


def _prepare_one(images: Path, size: int, job: tuple[str, Path]) -> str | None:
    """Writes one photo; returns why there is none, if so."""
    name, path = job
    try:
        pixels = resize_longest(load_image(images, name).pixels, size)
    except UnreadableImage as error:
        return f"{name} is left out: {error}"
    part = path.with_name(f"{path.stem}.{os.getpid()}.part.npy")  # processes of a run that was killed may be at work still
    np.save(part, np.rint(to_grey(pixels) * 255).astype(np.uint8))
    part.replace(path)
    return None


def _finish(results: Iterable[str | None], total: int, name: str) -> None:
    if total == 0:
        return
    with progress_bar(total, name, "photo") as bar:
        for reason in results:
            bar.update()
            if reason:
                logger.warning(reason)
