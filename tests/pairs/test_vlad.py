"""VLAD and its codebook, compared with the definition."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from sfm_lightglue.pairs import vlad as vlad_module
from sfm_lightglue.pairs.vlad import learn_codebook, sample_descriptors, vlad


def slow_vlad(descriptors: np.ndarray, codebook: np.ndarray) -> np.ndarray:
    """VLAD by its definition: one descriptor at a time, in float64."""
    residuals = np.zeros(codebook.shape)
    for descriptor in descriptors.astype(np.float64):
        word = int(np.argmin(((codebook - descriptor) ** 2).sum(axis=1)))
        residuals[word] += descriptor - codebook[word]
    for row in residuals:
        if np.linalg.norm(row) > 0:
            row /= np.linalg.norm(row)
    return residuals.ravel() / np.linalg.norm(residuals)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_vlad_equals_its_definition(dtype: type) -> None:
    generator = np.random.default_rng(0)
    descriptors, codebook = generator.standard_normal((200, 8)).astype(dtype), generator.standard_normal((5, 8), np.float32)
    found = vlad(descriptors, codebook)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, slow_vlad(descriptors, codebook), atol=1e-5)  # float32 sums of 40 descriptors per word


def test_vlad_does_not_depend_on_the_order_of_descriptors_or_the_size_of_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(1)
    descriptors, codebook = generator.standard_normal((100, 8), np.float32), generator.standard_normal((5, 8), np.float32)
    whole = vlad(descriptors, codebook)
    monkeypatch.setattr(vlad_module, "BLOCK", 7)
    np.testing.assert_allclose(vlad(descriptors[::-1], codebook), whole, atol=1e-5)


def test_an_image_without_features_has_a_zero_descriptor() -> None:
    assert not vlad(np.zeros((0, 8), np.float32), np.ones((5, 8), np.float32)).any()


def test_descriptors_that_equal_their_word_give_no_nan() -> None:
    codebook = np.eye(4, dtype=np.float32)
    assert not vlad(codebook, codebook).any()


def test_the_codebook_finds_the_centres_of_separate_clusters() -> None:
    generator = np.random.default_rng(2)
    centres = 10 * np.eye(4, 6, dtype=np.float32)
    samples = np.concatenate([centre + 0.01 * generator.standard_normal((50, 6), np.float32) for centre in centres])
    starts = (learn_codebook(samples, 4, seed=seed) for seed in range(20))
    errors = [np.abs(np.sort(codebook, axis=0) - np.sort(centres, axis=0)).max() for codebook in starts]
    assert min(errors) < 0.01  # k-means may end in a local minimum; one of twenty starts has a sample in each cluster


def test_every_iteration_of_k_means_lowers_the_error() -> None:
    samples = np.random.default_rng(3).standard_normal((500, 4)).astype(np.float32)
    codebooks = [learn_codebook(samples, 8, num_iterations=number, seed=0) for number in range(8)]
    errors = [((samples[:, None] - codebook) ** 2).sum(axis=2).min(axis=1).mean() for codebook in codebooks]
    assert all(after <= before + 1e-6 for before, after in pairwise(errors))
    assert errors[-1] < 0.9 * errors[0]


def test_the_same_seed_gives_the_same_codebook() -> None:
    samples = np.random.default_rng(4).standard_normal((300, 4)).astype(np.float32)
    np.testing.assert_array_equal(learn_codebook(samples, 8, seed=5), learn_codebook(samples.copy(), 8, seed=5))


def test_fewer_samples_than_words_give_fewer_words() -> None:
    samples = np.eye(3, dtype=np.float32)
    np.testing.assert_array_equal(learn_codebook(samples, 64), samples)


def test_a_codebook_cannot_be_learnt_from_no_samples() -> None:
    with pytest.raises(ValueError, match="64 words cannot be learnt from 0"):
        learn_codebook(np.zeros((0, 8), np.float32), 64)


def test_large_collections_are_sampled_from_few_images() -> None:
    read = []

    def load(name: str) -> np.ndarray:
        read.append(name)
        return np.full((500, 4), float(name[:5]), np.float16)

    names = [f"{i:05d}.jpg" for i in range(10_000)]
    samples = sample_descriptors(names, load, 6400, seed=0)
    assert samples.shape == (6400, 4) and samples.dtype == np.float32
    assert len(read) == len(set(read)) == 100
    np.testing.assert_array_equal(samples, sample_descriptors(names[::-1], load, 6400, seed=0))
    assert not np.array_equal(samples, sample_descriptors(names, load, 6400, seed=1))


def test_small_collections_are_sampled_from_all_images_and_empty_ones_skipped() -> None:
    descriptors = {"a.jpg": np.ones((30, 4)), "b.jpg": np.zeros((0, 4)), "c.jpg": np.full((2000, 4), 2.0)}
    samples = sample_descriptors(descriptors, descriptors.__getitem__, 900, seed=0)
    assert sorted(samples[:, 0]) == [1.0] * 30 + [2.0] * 300


def test_images_without_any_features_give_no_samples() -> None:
    assert len(sample_descriptors(["a.jpg"], lambda _: np.zeros((0, 128), np.float32), 100, seed=0)) == 0
    assert len(sample_descriptors([], lambda _: np.zeros((0, 128), np.float32), 100, seed=0)) == 0
