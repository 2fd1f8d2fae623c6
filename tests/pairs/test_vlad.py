"""VLAD and its codebook, compared with the definition."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from sfm_lightglue.pairs import vlad as vlad_module
from sfm_lightglue.pairs.vlad import Codebook, learn_codebook, learn_words, sample_descriptors, vlad


def random_codebook(num_words: int, size: int, num_axes: int, seed: int = 0) -> Codebook:
    """Random words, and random orthonormal axes of each."""
    generator = np.random.default_rng(seed)
    axes = np.linalg.qr(generator.standard_normal((num_words, size, size)))[0][:, :, :num_axes]
    return Codebook(generator.standard_normal((num_words, size), np.float32), axes.astype(np.float32))


def slow_vlad(descriptors: np.ndarray, codebook: Codebook) -> np.ndarray:
    """VLAD by its definition: one descriptor at a time, in float64."""
    residuals = np.zeros((len(codebook.words), codebook.axes.shape[2]))
    for descriptor in descriptors.astype(np.float64):
        word = int(np.argmin(((codebook.words - descriptor) ** 2).sum(axis=1)))
        residuals[word] += (descriptor - codebook.words[word]) @ codebook.axes[word]
    for row in residuals:
        if np.linalg.norm(row) > 0:
            row /= np.sqrt(np.linalg.norm(row))
    return residuals.ravel() / np.linalg.norm(residuals)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_vlad_equals_its_definition(dtype: type) -> None:
    descriptors, codebook = np.random.default_rng(0).standard_normal((200, 8)).astype(dtype), random_codebook(5, 8, 3)
    found = vlad(descriptors, codebook)
    assert found.dtype == np.float32 and found.shape == (codebook.size,) == (15,)
    np.testing.assert_allclose(found, slow_vlad(descriptors, codebook), atol=1e-5)  # float32 sums of 40 descriptors per word


def test_vlad_does_not_depend_on_the_order_of_descriptors_or_the_size_of_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    descriptors, codebook = np.random.default_rng(1).standard_normal((100, 8), np.float32), random_codebook(5, 8, 4)
    whole = vlad(descriptors, codebook)
    monkeypatch.setattr(vlad_module, "BLOCK", 7)
    np.testing.assert_allclose(vlad(descriptors[::-1], codebook), whole, atol=1e-5)


def test_an_image_without_features_has_a_zero_descriptor() -> None:
    assert not vlad(np.zeros((0, 8), np.float32), random_codebook(5, 8, 4)).any()


def test_descriptors_that_equal_their_word_give_no_nan() -> None:
    codebook = random_codebook(4, 6, 2)
    assert not vlad(codebook.words, codebook).any()


def test_the_axes_of_a_word_are_orthonormal_and_those_along_which_its_descriptors_differ_most() -> None:
    generator = np.random.default_rng(6)
    centres = np.array([[10.0] + 7 * [0], [0, 10.0] + 6 * [0]])
    spread = np.array([[1, 1, 9, 8, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 8, 9]]) / 10  # axes 2 and 3, axes 7 and 6
    samples = np.concatenate([c + s * generator.standard_normal((2000, 8)) for c, s in zip(centres, spread, strict=True)])
    codebook = learn_codebook(samples.astype(np.float32), 2, 2)
    np.testing.assert_allclose(np.einsum("kdr,kds->krs", codebook.axes, codebook.axes), [np.eye(2)] * 2, atol=2e-3)  # float16
    for word, axes in zip(codebook.words, codebook.axes, strict=True):
        used = {2, 3} if word[0] > 5 else {6, 7}
        energy = (axes**2).sum(axis=1)
        assert set(np.argsort(energy)[-2:]) == used and energy[[*used]].sum() > 1.95


def test_a_word_with_few_descriptors_gets_the_axes_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = np.random.default_rng(7).standard_normal((300, 6)) * [5, 1, 1, 1, 1, 1]
    lonely = 100 * np.eye(6)[5:]
    monkeypatch.setattr(vlad_module, "learn_words", lambda *arguments, **keywords: np.concatenate([np.zeros((1, 6)), lonely]))
    codebook = learn_codebook(np.concatenate([samples, lonely]).astype(np.float32), 2, 1)
    assert (abs(codebook.axes[:, 0, 0]) > 0.99).all()


def test_all_axes_keep_the_similarities_of_the_differences_themselves() -> None:
    generator = np.random.default_rng(8)
    first, second = generator.standard_normal((2, 100, 8)).astype(np.float32)
    learnt = learn_codebook(np.concatenate([first, second]), 4, 100)
    plain = Codebook(learnt.words, np.stack([np.eye(8, dtype=np.float32)] * 4))
    assert learnt.axes.shape == (4, 8, 8)
    assert vlad(first, learnt) @ vlad(second, learnt) == pytest.approx(vlad(first, plain) @ vlad(second, plain), abs=2e-3)


def test_the_codebook_finds_the_centres_of_separate_clusters() -> None:
    generator = np.random.default_rng(2)
    centres = 10 * np.eye(4, 6, dtype=np.float32)
    samples = np.concatenate([centre + 0.01 * generator.standard_normal((50, 6), np.float32) for centre in centres])
    starts = (learn_words(samples, 4, seed=seed) for seed in range(20))
    errors = [np.abs(np.sort(codebook, axis=0) - np.sort(centres, axis=0)).max() for codebook in starts]
    assert min(errors) < 0.01  # k-means may end in a local minimum; one of twenty starts has a sample in each cluster


def test_every_iteration_of_k_means_lowers_the_error() -> None:
    samples = np.random.default_rng(3).standard_normal((500, 4)).astype(np.float32)
    codebooks = [learn_words(samples, 8, num_iterations=number, seed=0) for number in range(8)]
    errors = [((samples[:, None] - codebook) ** 2).sum(axis=2).min(axis=1).mean() for codebook in codebooks]
    assert all(after <= before + 1e-6 for before, after in pairwise(errors))
    assert errors[-1] < 0.9 * errors[0]


def test_the_same_seed_gives_the_same_codebook() -> None:
    samples = np.random.default_rng(4).standard_normal((300, 4)).astype(np.float32)
    first, again = learn_codebook(samples, 8, 2, seed=5), learn_codebook(samples.copy(), 8, 2, seed=5)
    assert first.sha256 == again.sha256 != learn_codebook(samples, 8, 2, seed=6).sha256


def test_fewer_samples_than_words_give_fewer_words() -> None:
    samples = np.eye(3, dtype=np.float32)
    np.testing.assert_array_equal(learn_words(samples, 64), samples)


def test_a_codebook_cannot_be_learnt_from_no_samples() -> None:
    with pytest.raises(ValueError, match="64 words cannot be learnt from 0"):
        learn_codebook(np.zeros((0, 8), np.float32), 64, 8)


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
