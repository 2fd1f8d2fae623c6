"""Codebooks: shipped ones, files, and a collection's own; and the global descriptors that a run keeps."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

from sfm_lightglue import pipeline
from sfm_lightglue.config import compose_config
from sfm_lightglue.networks.weights import WEIGHTS
from sfm_lightglue.outputs import check_outputs
from sfm_lightglue.pairs import global_descriptors as describing
from sfm_lightglue.pairs.codebooks import SHIPPED, choose_codebook, read_codebook
from sfm_lightglue.pairs.collection import Collection
from sfm_lightglue.pairs.global_descriptors import global_descriptors
from sfm_lightglue.pairs.pairing import create_source
from sfm_lightglue.pairs.retrieval import RetrievalOptions
from sfm_lightglue.pairs.stage import select_pairs
from sfm_lightglue.pairs.vlad import vlad
from sfm_lightglue.products import Features
from sfm_lightglue.run_context import Run
from sfm_lightglue.run_folder import RunFolder
from sfm_lightglue.storage import ShardStore, features_to_group
from sfm_lightglue.summary import Summary

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = RetrievalOptions(
    name="retrieval",
    num_neighbours=2,
    codebook="auto",
    num_words=4,
    dimensions=16,
    max_samples=500,
    seed=0,
    min_score=None,
    global_descriptors=None,
)
NAMES = [f"{i}.jpg" for i in range(8)]


def write_features(
    folder: RunFolder, names: Iterable[str], size: int = 8, weights: str = "", changed: Iterable[str] = ()
) -> RunFolder:
    """Writes features of photos; `changed` ones have others than before. Photos i and i + 1 for even i look alike."""
    with ShardStore(folder.features, {"weights": [weights] if weights else []}) as store:
        for name in names:
            generator = np.random.default_rng(int(name[0]) // 2)
            descriptors = generator.standard_normal((50, size)) + 0.1 * np.random.default_rng(int(name[0])).random((50, size))
            stamp = "new" if name in changed else "old"
            descriptors = descriptors[::-1][:20] if name in changed else descriptors
            points = np.zeros((len(descriptors), 2), np.float32)
            features = Features(points, points[:, 0], descriptors.astype(np.float32), image_size=(9, 9))
            store.add(name, features_to_group(features), stamp)
        store.merge()
    return folder


def describe(folder: RunFolder, names: Iterable[str], **changes: Any) -> np.ndarray:
    with Collection(names, features=folder.features, run=folder) as collection:
        return global_descriptors(dataclasses.replace(OPTIONS, **changes), collection)


@pytest.fixture
def described(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows by an entry for each image that is described."""
    calls: list[int] = []

    def recording(descriptors: np.ndarray, codebook: Any) -> np.ndarray:
        calls.append(len(descriptors))
        return vlad(descriptors, codebook)

    monkeypatch.setattr(describing, "vlad", recording)
    return calls


def test_photos_that_are_added_change_no_descriptor_and_only_they_are_described(tmp_path: Path, described: list[int]) -> None:
    folder = write_features(RunFolder(tmp_path), NAMES[:5])
    before = describe(folder, NAMES[:5])
    assert len(described) == 5 and before.shape == (5, 16)
    write_features(folder, NAMES)
    after = describe(folder, NAMES)
    assert len(described) == 8
    np.testing.assert_array_equal(after[:5], before)
    np.testing.assert_array_equal(describe(folder, NAMES), after)
    assert len(described) == 8


def test_photos_that_changed_are_described_again(tmp_path: Path, described: list[int]) -> None:
    before = describe(write_features(RunFolder(tmp_path), NAMES), NAMES)
    after = describe(write_features(RunFolder(tmp_path), NAMES[3:4], changed=NAMES), NAMES)
    assert described == [50] * 8 + [20]
    assert (after != before).any(axis=1).nonzero()[0].tolist() == [3]


def test_other_settings_replace_the_codebook_and_all_descriptors(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_features(RunFolder(tmp_path), NAMES)
    describe(folder, NAMES)
    assert describe(folder, NAMES, num_words=2).shape == (8, 16)
    assert "codebook.safetensors is learnt again: num_words: 4 -> 2" in caplog.text
    assert read_codebook(folder.codebook).axes.shape == (2, 8, 8)


def test_a_killed_run_goes_on_and_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = write_features(RunFolder(tmp_path / "whole"), NAMES)
    describe(whole, NAMES)
    killed = write_features(RunFolder(tmp_path / "killed"), NAMES)
    with monkeypatch.context() as context:
        remaining = iter([vlad] * 3)
        context.setattr(describing, "vlad", lambda *arguments: next(remaining)(*arguments))
        with pytest.raises(StopIteration):
            describe(killed, NAMES)
    killed.global_descriptors.with_name("global_descriptors.h5.1.tmp").write_bytes(b"half a file")
    describe(killed, NAMES)
    assert whole.global_descriptors.read_bytes() == killed.global_descriptors.read_bytes()
    assert whole.codebook.read_bytes() == killed.codebook.read_bytes()


def test_the_file_has_the_layout_of_hloc_and_gives_the_same_pairs(tmp_path: Path) -> None:
    folder = write_features(RunFolder(tmp_path), NAMES)
    with Collection(NAMES, features=folder.features, run=folder) as collection:
        pairs = select_pairs(create_source(OPTIONS), collection)
    assert {("0.jpg", "1.jpg"), ("6.jpg", "7.jpg")} <= {(pair.name0, pair.name1) for pair in pairs}
    with h5py.File(folder.global_descriptors) as file:
        assert file["3.jpg/global_descriptor"].shape == (16,)
    given = dataclasses.replace(OPTIONS, global_descriptors=str(folder.global_descriptors))
    again = select_pairs(create_source(given), Collection(NAMES))
    assert again == pairs and [pair.score for pair in again] == [pair.score for pair in pairs]


def test_without_an_output_folder_nothing_is_kept(tmp_path: Path) -> None:
    folder = write_features(RunFolder(tmp_path), NAMES)
    with Collection(NAMES, features=folder.features) as collection:
        found = global_descriptors(OPTIONS, collection)
    np.testing.assert_array_equal(found, describe(folder, NAMES))
    assert not {"codebook.safetensors", "global_descriptors.h5"} - {path.name for path in tmp_path.iterdir()}


def test_files_that_no_run_has_written_are_not_replaced(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    save_file({"words": np.zeros((2, 2))}, folder.codebook)
    with pytest.raises(ValueError, match=r"codebook\.safetensors was not written by sfm_lightglue"):
        check_outputs(folder, ["pairs"])
    folder.codebook.unlink()
    folder.global_descriptors.write_text("mine")
    with pytest.raises(ValueError, match=r"global_descriptors\.h5 was not written by sfm_lightglue"):
        check_outputs(folder, ["pairs"])


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_codebooks_have_the_default_size_and_are_chosen_by_the_weights_of_the_features(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    defaults = yaml.safe_load((ROOT / "configs" / "pairs" / "retrieval.yaml").read_text(encoding="utf-8"))
    size = {key: defaults[key] for key in ("num_words", "dimensions")}
    codebook = read_codebook(name)
    assert (len(codebook.words), codebook.size) == (*size.values(),)
    products = np.einsum("kdr,kds->krs", codebook.axes, codebook.axes)
    np.testing.assert_allclose(products, [np.eye(codebook.axes.shape[2])] * len(products), atol=2e-3)  # float16
    weights = WEIGHTS[SHIPPED[name][0]].sha256
    assert weights is not None
    folder = write_features(RunFolder(tmp_path), NAMES, size=codebook.words.shape[1], weights=weights)
    with Collection(NAMES, features=folder.features, run=folder) as collection:
        chosen = choose_codebook(dataclasses.replace(OPTIONS, **size), collection)
        assert chosen is not None and chosen.sha256 == codebook.sha256
        assert f"the codebook {name} of this package" in caplog.text and not folder.codebook.exists()
        assert [(used.name, used.licence) for used in collection.weights.values()] == [(name, WEIGHTS[name].licence)]
        for changes in ({"codebook": "own"}, {"num_words": size["num_words"] // 2}):
            other = choose_codebook(dataclasses.replace(OPTIONS, **{**size, **changes}), collection)
            assert other is not None and other.sha256 != codebook.sha256
    assert folder.codebook.exists()


def test_a_run_records_the_licence_of_the_codebook(tmp_path: Path) -> None:
    weights = WEIGHTS[SHIPPED["vlad-aliked"][0]].sha256
    assert weights is not None
    folder = write_features(RunFolder(tmp_path / "out"), NAMES, size=128, weights=weights)
    (tmp_path / "photos").mkdir()
    for name in NAMES:
        (tmp_path / "photos" / name).touch()
    given = ["dataset=folder", f"dataset.images={tmp_path / 'photos'}", f"output={folder.path}", "pairs=retrieval"]
    pipeline.pairs(Run.create(compose_config(given)))
    assert Summary.read(folder).licences == (WEIGHTS["vlad-aliked"].licence,)


def test_a_codebook_of_another_collection_can_be_given(tmp_path: Path) -> None:
    first = write_features(RunFolder(tmp_path / "first"), NAMES[:4])
    expected = describe(first, NAMES[:4])
    second = write_features(RunFolder(tmp_path / "second"), NAMES)
    np.testing.assert_array_equal(describe(second, NAMES, codebook=str(first.codebook))[:4], expected)
    assert not second.codebook.exists()
    other = write_features(RunFolder(tmp_path / "other"), NAMES, size=6)
    with pytest.raises(ValueError, match=r"is for local descriptors of 8 values, 0\.jpg has 6"):
        describe(other, NAMES, codebook=str(first.codebook))


def test_a_file_that_is_no_codebook_is_refused(tmp_path: Path) -> None:
    save_file({"words": np.zeros((2, 3)), "axes": np.zeros((2, 4, 1))}, tmp_path / "wrong.safetensors")
    with pytest.raises(ValueError, match=r"wrong\.safetensors is no codebook: expected tensors `words`"):
        read_codebook(tmp_path / "wrong.safetensors")


def test_descriptors_that_cannot_be_shared_by_the_words_are_refused() -> None:
    with pytest.raises(ValueError, match=r"pairs\.dimensions=10 must be a multiple of pairs\.num_words=4"):
        dataclasses.replace(OPTIONS, dimensions=10)
