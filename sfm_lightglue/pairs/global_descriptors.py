"""Global descriptors: one vector for each image, computed with VLAD or read from a file. Similar images have similar vectors."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sfm_lightglue.execution.executor import checked_results
from sfm_lightglue.execution.progress import progress_bar
from sfm_lightglue.execution.shards import Shard
from sfm_lightglue.pairs.codebooks import choose_codebook, read_codebook
from sfm_lightglue.pairs.collection import Collection
from sfm_lightglue.pairs.vlad import Codebook, vlad
from sfm_lightglue.ranges import check_ranges
from sfm_lightglue.storage import GroupData, ShardStore

logger = logging.getLogger(__name__)

BATCH = 32
"""Images that a worker describes together. An image takes some milliseconds, most of them to read its features."""


@dataclass(frozen=True, kw_only=True)
class GlobalDescriptorOptions:
    """Options of sources that compare whole images."""

    codebook: str
    """`auto`: the codebook of this package for the features, or else the collection's own. `own`: always its own. Or a file."""
    num_words: int
    """Number of words of an own codebook."""
    dimensions: int
    """Number of values of an image's descriptor with an own codebook."""
    max_samples: int
    """Number of local descriptors from which an own codebook is learnt."""
    seed: int
    """Seed of the random choice of these local descriptors."""
    global_descriptors: str | None
    """HDF5 file with hloc's `global_descriptor` of each image, which replaces VLAD. None computes VLAD."""

    def __post_init__(self) -> None:
        check_ranges(self, "pairs", num_words=">= 1", dimensions=">= 1", max_samples=">= 1", seed=">= 0")
        if self.dimensions % self.num_words:
            raise ValueError(
                f"pairs.dimensions={self.dimensions} must be a multiple of pairs.num_words={self.num_words}: each word has the "
                "same share of the descriptor"
            )


def check_global_descriptors(options: GlobalDescriptorOptions, collection: Collection) -> None:
    """Checks that the files of the options, if they are given, can be used: global descriptors of all photos, a codebook.

    Raises: FileNotFoundError if a file does not exist; ValueError if it is of another kind or lacks photos.
    """
    path = options.global_descriptors
    if path is None:
        if options.codebook not in ("auto", "own"):
            read_codebook(options.codebook)
        return
    missing = collection.without_global_descriptor(path)
    if missing:
        raise ValueError(
            f"pairs.global_descriptors={path} has no global_descriptor of {len(missing)} of {len(collection.names)} photos, the "
            f"first is {missing[0]!r}: names are paths below the photo folder"
        )


def global_descriptors(options: GlobalDescriptorOptions, collection: Collection) -> np.ndarray:
    """(n, d), float32 or float16: the global descriptor of each of `collection.names`.

    It comes from the file `options.global_descriptors`, or from VLAD. VLAD gives a unit-length vector, and zeros for an image
    without local features. In a run, the vectors are kept in `global_descriptors.h5`: only those of new or changed photos are
    computed.
    """
    if options.global_descriptors is not None:
        return collection.global_descriptors(options.global_descriptors)
    names = collection.names
    codebook = choose_codebook(options, collection)
    if codebook is None:
        logger.warning("none of %d images has local features, so no similar images can be found", len(names))
        return np.zeros((len(names), 1), np.float16)
    if collection.run is not None:
        _describe(collection, codebook, collection.run.global_descriptors)
        return collection.global_descriptors(collection.run.global_descriptors)
    descriptors = np.empty((len(names), codebook.size), np.float16)  # half the memory; similarities change by 2e-5
    with progress_bar(len(names), "describe", "image") as bar:
        for row, name in zip(descriptors, names, strict=True):
            row[:] = vlad(collection.descriptors(name), codebook)
            bar.update()
    return descriptors


def describe_share(options: GlobalDescriptorOptions, collection: Collection, shard: Shard) -> int:
    """Stores the vectors of this shard's images for `global_descriptors`, which `merge` then finds. Returns how many are new.

    Raises: ShardMismatch as `Shard.share`.
    """
    assert collection.run is not None, "shards work in an output folder"
    with shard.alone("codebook"):  # the first shard learns it, the others read it
        codebook = choose_codebook(options, collection)
    if codebook is None:
        shard.share(collection.names, [False] * len(collection.names))
        return 0
    return _describe(collection, codebook, collection.run.global_descriptors, shard)


def _describe(collection: Collection, codebook: Codebook, path: Path, shard: Shard | None = None) -> int:
    """Stores the vectors of all images, or of a shard's, in hloc's layout. Those that are stored already are kept.

    Returns: How many are new.
    """
    settings = {"class": "sfm_lightglue.pairs.vlad:vlad", "codebook": codebook.sha256, "features": collection.feature_fingerprint}
    names, writer = collection.names, "" if shard is None else shard.writer
    with ShardStore(path, settings, if_settings_changed="recompute", shard_items=4096, writer=writer) as store:
        if shard is not None:
            names = tuple(names[place] for place in shard.share(names, [name in store.stamps for name in names]))
        stamps = {name: collection.feature_stamp(name) for name in names}
        todo = store.missing(stamps)
        batches = [tuple(todo[start : start + BATCH]) for start in range(0, len(todo), BATCH)]
        recipe = functools.partial(_open_describer, collection.features, codebook)
        jobs = checked_results(collection.make_executor(), recipe, batches) if batches else iter(())
        with progress_bar(len(stamps), "describe", "image", len(stamps) - len(todo)) as bar:
            for batch, vectors in jobs:
                if isinstance(vectors, Exception):
                    raise vectors
                for name, vector in zip(batch, vectors, strict=True):
                    store.add(name, GroupData({"global_descriptor": vector}, {}), stamps[name])
                bar.update(len(batch))
        store.merge()
    return len(todo)


@contextlib.contextmanager
def _open_describer(
    features: Path | str | None, codebook: Codebook, device: str
) -> Iterator[Callable[[tuple[str, ...]], list[np.ndarray]]]:
    """The recipe of this work: a function from names of images to their vectors, float16. The device is not used."""
    with Collection((), features=features) as collection:
        _ = collection.feature_fingerprint  # opens the file before several threads ask for it
        yield lambda names: [vlad(collection.descriptors(name), codebook).astype(np.float16) for name in names]
