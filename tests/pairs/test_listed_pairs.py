"""Pairs that the user lists in a text file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image as PILImage

from sfm_lightglue.pairs.collection import Collection
from sfm_lightglue.pairs.listed import ListOptions, listed_pairs
from sfm_lightglue.pairs.pairing import check_source, create_source
from sfm_lightglue.pairs.retrieval import RetrievalOptions
from sfm_lightglue.pairs.union import UnionOptions
from sfm_lightglue.products import Pair


def keys(pairs: list[Pair]) -> list[tuple[str, str]]:
    return [(pair.name0, pair.name1) for pair in pairs]


def test_unknown_images_are_refused_together_with_the_closest_known_ones(tmp_path: Path) -> None:
    path = tmp_path / "pairs.txt"
    path.write_text("db/0001.jpg db/0002.jpg\ndb/0002.jpg 0003.jpeg")
    with pytest.raises(ValueError, match=r"2 images that are not in the collection.*'0003.jpeg'.*'db/0002.jpg'.*'db/0002.png'"):
        listed_pairs(path, ["db/0001.jpg", "db/0002.png"])


def test_pairs_of_unknown_images_are_skipped_on_request(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "pairs.txt"
    path.write_text("a.jpg b.jpg\nb.jpg c.jpg")
    assert keys(listed_pairs(path, ["b.jpg", "a.jpg"], skip_unknown=True)) == [("a.jpg", "b.jpg")]
    assert "skipped 1 of 2 pairs" in caplog.text


def test_a_listed_photo_without_features_is_skipped_and_a_name_without_a_file_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cut.jpg").write_bytes(b"")
    path = tmp_path / "pairs.txt"
    path.write_text("./a.jpg,b.jpg\na.jpg,./cut.jpg\n")
    assert keys(listed_pairs(path, ["a.jpg", "b.jpg"], images=tmp_path / "photos")) == [("a.jpg", "b.jpg")]
    assert "skipped 1 of 2 pairs with images outside the collection or without features, for example './cut.jpg'" in caplog.text
    path.write_text("a.jpg,b.jpg\na.jpg,./none.jpg\n")
    with pytest.raises(ValueError, match=r"names 1 images that are not in the collection of 2: line 2: './none.jpg'"):
        listed_pairs(path, ["a.jpg", "b.jpg"], images=tmp_path / "photos")


def test_mistakes_of_sources_are_found_before_there_are_features(tmp_path: Path) -> None:
    (tmp_path / "cut.jpg").write_bytes(b"")
    for name in ("a.jpg", "b.jpg"):
        PILImage.new("RGB", (32, 32)).save(tmp_path / name)
    with h5py.File(tmp_path / "global.h5", "w") as file:
        file["a.jpg/global_descriptor"] = np.ones(4, np.float32)
    (tmp_path / "pairs.txt").write_text("a.jpg c.jpg")
    collection = Collection(["a.jpg", "b.jpg", "cut.jpg"], images=tmp_path)
    listed = ListOptions("list", str(tmp_path / "pairs.txt"), False)
    words = {
        **{"codebook": "own", "num_words": 8, "dimensions": 64, "max_samples": 100, "seed": 0, "min_score": None},
        "global_descriptors": str(tmp_path / "global.h5"),
    }
    retrieval = RetrievalOptions(name="retrieval", num_neighbours=2, **words)
    with pytest.raises(ValueError, match=r"line 1: 'c.jpg'"):
        check_source(create_source(UnionOptions("union", {"list": listed})), collection)
    with pytest.raises(ValueError, match=r"no global_descriptor of 1 of 3 photos, the first is 'b.jpg'"):
        check_source(create_source(UnionOptions("union", {"retrieval": retrieval})), collection)
    with pytest.raises(FileNotFoundError, match=r"nothing\.h5"):
        check_source(create_source(replace(retrieval, global_descriptors=str(tmp_path / "nothing.h5"))), collection)
    with pytest.raises(FileNotFoundError, match=r"words\.safetensors does not exist"):
        check_source(create_source(replace(retrieval, global_descriptors=None, codebook="words.safetensors")), collection)
    check_source(create_source(replace(retrieval, global_descriptors=None)), collection)
