"""Global descriptors: one vector for each image, computed with VLAD or read from a file. Similar images have similar vectors."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np

from sfm_lightglue.execution.progress import progress_bar
from sfm_lightglue.pairs.collection import Collection
from sfm_lightglue.pairs.vlad import learn_codebook, sample_descriptors, vlad
from sfm_lightglue.ranges import check_ranges

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class GlobalDescriptorOptions:
    """Options of sources that compare whole images."""

    num_words: int
    """Size of the codebook. The descriptor of an image has num_words x d values for local descriptors of d values."""
    max_samples: int
    """Number of local descriptors from which the codebook is learnt."""
    seed: int
    """Seed of the random choice of these local descriptors."""
    global_descriptors: str | None
    """HDF5 file with hloc's `global_descriptor` of each image, which replaces VLAD. None computes VLAD."""

    def __post_init__(self) -> None:
        check_ranges(self, "pairs", num_words=">= 1", max_samples=">= 1", seed=">= 0")


def check_global_descriptors(options: GlobalDescriptorOptions, collection: Collection) -> None:
    """Checks that the file `options.global_descriptors`, if there is one, covers all photos that can be read.

    Raises: FileNotFoundError if the file does not exist; ValueError if it is no HDF5 file or lacks photos.
    """
    path = options.global_descriptors
    if path is None:
        return
    missing = collection.without_global_descriptor(path)
    if missing:
        raise ValueError(
            f"pairs.global_descriptors={path} has no global_descriptor of {len(missing)} of {len(collection.names)} photos, the "
            f"first is {missing[0]!r}: names are paths below the photo folder"
        )


def global_descriptors(options: GlobalDescriptorOptions, collection: Collection) -> np.ndarray:
    """(n, d): the global descriptor of each of `collection.names`.

    It comes from the file `options.global_descriptors` as float32, or from VLAD as float16. VLAD gives a unit-length vector, and
    zeros for an image without local features.
    """
    if options.global_descriptors is not None:
        return collection.global_descriptors(options.global_descriptors)
    names = collection.names
    samples = sample_descriptors(names, collection.descriptors, options.max_samples, options.seed)
    if not len(samples):
        logger.warning("none of %d images has local features, so no similar images can be found", len(names))
        return np.zeros((len(names), 1), np.float16)
    codebook = learn_codebook(samples, options.num_words, seed=options.seed)
    descriptors = np.empty((len(names), codebook.size), np.float16)  # half the memory; similarities change by 2e-5
    with progress_bar(len(names), "describe", "image") as bar:
        for i, name in enumerate(names):
            descriptors[i] = vlad(collection.descriptors(name), codebook)
            bar.update()
    return descriptors
