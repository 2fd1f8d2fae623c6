"""Which codebook describes the images of a collection: one of this package, one that a user gives, or one of its own.

A codebook is a safetensors file with the tensors `words` and `axes`. Its metadata say what it was learnt from.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from safetensors.numpy import save_file

from sfm_lightglue.files import foreign_file, written_whole
from sfm_lightglue.networks.weights import WEIGHTS, WeightsRecord, load_weights, read_metadata
from sfm_lightglue.pairs.collection import Collection
from sfm_lightglue.pairs.vlad import Codebook, learn_codebook, sample_descriptors
from sfm_lightglue.settings import describe_changes

logger = logging.getLogger(__name__)

SHIPPED = {"vlad-aliked": ("superpoint-open", "aliked-n16")}
"""Codebooks in `networks/weights.py` -> weights of the features that they describe: SuperPoint's descriptors imitate ALIKED's."""
TENSORS = ("words", "axes")
MARK = "vlad_settings"
"""Key in the metadata of a codebook that a run has written. Its value says what it was learnt from, as JSON."""


class CodebookOptions(Protocol):
    """Options of a codebook, see `global_descriptors.GlobalDescriptorOptions`."""

    @property
    def codebook(self) -> str: ...
    @property
    def num_words(self) -> int: ...
    @property
    def dimensions(self) -> int: ...
    @property
    def max_samples(self) -> int: ...
    @property
    def seed(self) -> int: ...


def choose_codebook(options: CodebookOptions, collection: Collection) -> Codebook | None:
    """The codebook for the features of a collection; None if no image has any local descriptor.

    `options.codebook` says which: `auto` takes the one of this package, if it has one of this size for these features, else the
    collection's own; `own` always takes its own; else it is a file. The own one is learnt once and kept in the output folder of
    the run, so that photos that are added later change nothing for the others. Another one is noted in `collection.weights`.

    Raises: FileNotFoundError or ValueError if the file cannot be read; ValueError if a codebook does not fit the features.
    """
    if options.codebook not in ("auto", "own"):
        codebook, record = _load(options.codebook)
        collection.weights[record.name] = record
        return _checked(codebook, options.codebook, collection)
    shipped = _shipped(collection.feature_weights) if options.codebook == "auto" else None
    if shipped is not None:
        codebook, record = _load(shipped)
        if (len(codebook.words), codebook.size) == (options.num_words, options.dimensions):
            logger.info("similar images are found with the codebook %s of this package", shipped)
            collection.weights[record.name] = record
            return codebook
    return _own(options, collection)


def read_codebook(name_or_path: Path | str) -> Codebook:
    """The codebook in a file, or the one of this package with this name.

    Raises: FileNotFoundError if it does not exist, ValueError if it holds anything else.
    """
    return _load(name_or_path)[0]


def _load(name_or_path: Path | str) -> tuple[Codebook, WeightsRecord]:
    """As `read_codebook`, and the record of the file: its hash and licence."""
    tensors, record = load_weights(str(name_or_path))
    words, axes = (np.asarray(tensors.get(key, np.zeros(0)), np.float32) for key in TENSORS)
    fits = words.ndim == 2 and axes.ndim == 3 and axes.shape[:2] == words.shape and axes.size
    if not fits or not all(np.isfinite(array).all() for array in (words, axes)):
        raise ValueError(
            f"{record.path} is no codebook: expected tensors `words` (k, d) and `axes` (k, d, r) of finite numbers, as in the "
            "codebook.safetensors of a run"
        )
    return Codebook(words, axes), record


def write_codebook(path: Path, codebook: Codebook, settings: Mapping[str, Any]) -> None:
    """Writes a codebook, whole or not at all. `settings` say what it was learnt from. Equal content gives equal bytes."""
    half = {key: getattr(codebook, key).astype(np.float16) for key in TENSORS}
    with written_whole(path) as temporary:
        # One key: safetensors (0.8) writes several in an order that changes from run to run.
        save_file(half, temporary, {MARK: json.dumps(settings, sort_keys=True)})


def check_output(path: Path) -> None:
    """Raises: ValueError if there is a file that no run has written."""
    if path.exists() and MARK not in read_metadata(path):
        raise foreign_file(path)


def _shipped(feature_weights: tuple[str, ...]) -> str | None:
    """Name of the codebook for features that were made with weights of these hashes."""
    for name, described in SHIPPED.items():
        if any(WEIGHTS[weights].sha256 in feature_weights for weights in described):
            return name
    return None


def _checked(codebook: Codebook, source: str, collection: Collection) -> Codebook:
    """The codebook. Raises: ValueError if its words have another length than the local descriptors."""
    for name in collection.names:
        descriptors = collection.descriptors(name)
        if len(descriptors):
            if descriptors.shape[1] != codebook.words.shape[1]:
                raise ValueError(
                    f"pairs.codebook={source} is for local descriptors of {codebook.words.shape[1]} values, {name} has "
                    f"{descriptors.shape[1]}: give a codebook that was learnt from the same features, or pairs.codebook=auto"
                )
            break
    return codebook


def _own(options: CodebookOptions, collection: Collection) -> Codebook | None:
    """The collection's own codebook: the stored one if there is one with these settings, else a new one, which is stored."""
    path = None if collection.run is None else collection.run.codebook
    settings = {
        "features": collection.feature_fingerprint,
        "weights": list(collection.feature_weights),
        **{key: getattr(options, key) for key in ("num_words", "dimensions", "max_samples", "seed")},
    }
    if path is not None and path.exists():
        stored = json.loads(read_metadata(path).get(MARK, "{}"))
        if stored == settings:
            return read_codebook(path)
        logger.warning("%s is learnt again: %s", path, describe_changes(stored, settings))
    samples = sample_descriptors(collection.names, collection.descriptors, options.max_samples, options.seed)
    if not len(samples):
        return None
    codebook = learn_codebook(samples, options.num_words, options.dimensions // options.num_words, seed=options.seed)
    if path is not None:
        write_codebook(path, codebook, settings)
        logger.info("a codebook was learnt from %d local descriptors: %s", len(samples), path)
    return codebook
