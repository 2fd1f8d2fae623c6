"""Training of the codebook in this package, which finds similar photos, from local features of photos of many places."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from sfm_lightglue.pairs.codebooks import write_codebook
from sfm_lightglue.pairs.vlad import Codebook, learn_codebook, sample_descriptors
from sfm_lightglue.storage import H5Reader


def train_codebook(
    features: Sequence[Path | str],
    output: Path | str,
    *,
    num_words: int = 32,
    dimensions: int = 512,
    max_samples: int = 100_000,
    seed: int = 0,
) -> Codebook:
    """Writes a codebook for `pairs.codebook` and returns it.

    Args:
        features: Files of local features whose descriptors have the same meaning. Each gives the same share of the samples.
        output: The safetensors file. The same features and arguments give the same bytes.
        num_words: Number of words.
        dimensions: Number of values of a photo's vector, a multiple of `num_words`.
        max_samples: Number of local descriptors from which words and axes are learnt.
        seed: Seed of the random choice of these local descriptors, and of the first words.

    Raises: ValueError if the photos have no local descriptors; FileNotFoundError if a file does not exist.
    """
    samples: list[np.ndarray] = []
    about: dict[str, list[str]] = {"features": [], "weights": []}
    for path in features:
        with H5Reader(path) as reader:
            share = max_samples // len(features)
            samples.append(sample_descriptors(reader.names(), partial(_descriptors, reader), share, seed))
            about["features"].append(reader.fingerprint)
            about["weights"] += reader.settings.get("weights", [])
    codebook = learn_codebook(np.concatenate(samples), num_words, dimensions // num_words, seed=seed)
    numbers = {"num_words": num_words, "dimensions": dimensions, "max_samples": max_samples, "seed": seed}
    write_codebook(Path(output), codebook, {**about, **numbers})
    return codebook


def _descriptors(reader: H5Reader, name: str) -> np.ndarray:
    return reader.features(name).descriptors
