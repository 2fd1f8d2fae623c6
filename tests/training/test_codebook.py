"""Training of a codebook from files of features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sfm_lightglue.pairs.codebooks import read_codebook
from sfm_lightglue.products import Features
from sfm_lightglue.storage import ShardStore, features_to_group
from sfm_lightglue.training.codebook import train_codebook


def write_features(path: Path, centre: float) -> Path:
    """Features of two photos, whose descriptors lie around `centre`."""
    with ShardStore(path, {"weights": [f"hash of {centre}"]}) as store:
        for name in ("a.jpg", "b.jpg"):
            descriptors = centre + np.random.default_rng(ord(name[0])).standard_normal((80, 6)) / 10
            points = np.zeros((80, 2), np.float32)
            features = Features(points, points[:, 0], descriptors.astype(np.float32), image_size=(9, 9))
            store.add(name, features_to_group(features), "")
        store.merge()
    return path


def test_a_codebook_is_trained_on_all_files_and_equal_files_give_equal_bytes(tmp_path: Path) -> None:
    files = [write_features(tmp_path / f"{centre}.h5", centre) for centre in (0.0, 5.0)]
    codebook = train_codebook(files, tmp_path / "first.safetensors", num_words=2, dimensions=6, max_samples=100)
    np.testing.assert_allclose(np.sort(codebook.words.mean(axis=1)), [0, 5], atol=0.05)
    assert codebook.axes.shape == (2, 6, 3)
    assert read_codebook(tmp_path / "first.safetensors").sha256 == codebook.sha256
    train_codebook(files, tmp_path / "again.safetensors", num_words=2, dimensions=6, max_samples=100)
    assert (tmp_path / "first.safetensors").read_bytes() == (tmp_path / "again.safetensors").read_bytes()
    with pytest.raises(ValueError, match="cannot be learnt from 0"):
        train_codebook(files, tmp_path / "none.safetensors", num_words=2, dimensions=6, max_samples=1)
