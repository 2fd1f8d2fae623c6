"""The pair source `auto`: all pairs of small collections, and what the folder suggests for large ones."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags
from PIL import Image as PILImage

from sfm_lightglue.config import bind_pairs, compose_config
from sfm_lightglue.pairs.auto import AutoOptions, AutoPairs
from sfm_lightglue.pairs.collection import Collection
from sfm_lightglue.pairs.exhaustive import exhaustive_pairs
from sfm_lightglue.pairs.pairing import check_source, create_source
from sfm_lightglue.pairs.sequential import sequential_pairs
from sfm_lightglue.pairs.stage import select_pairs
from sfm_lightglue.run_options import resolve


def options(*overrides: str) -> AutoOptions:
    bound = bind_pairs(compose_config([*overrides]).pairs)
    assert isinstance(bound, AutoOptions)
    return bound


def random_descriptors(name: str) -> np.ndarray:
    return np.random.default_rng(list(name.encode())).standard_normal((40, 8)).astype(np.float32)


def choose(names: list[str], limit: int, **known: Any) -> tuple[str, ...]:
    source = AutoPairs.create(options(f"pairs.max_exhaustive={limit}"))
    return source.choose(Collection(names, load_descriptors=random_descriptors, **known)).sources


def write_photos(folder: Path, names: list[str], times: list[str]) -> None:
    for name, time in zip(names, times, strict=True):
        exif = PILImage.Exif()
        exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = time
        PILImage.new("RGB", (16, 16)).save(folder / name, exif=exif)


def test_auto_is_the_default_and_pairs_a_small_collection_exhaustively(caplog: pytest.LogCaptureFixture) -> None:
    names = [f"{i:03d}.jpg" for i in range(200)]
    source = create_source(resolve(compose_config()).pairs.options)
    assert isinstance(source, AutoPairs)
    with caplog.at_level(logging.INFO):
        pairs = select_pairs(source, Collection(names))
    assert pairs == exhaustive_pairs(names)
    assert {pair.reason for pair in pairs} == {"exhaustive"}
    assert "pairs=auto: exhaustive, because 200 photos are not more than pairs.max_exhaustive=200" in caplog.text
    assert source.choose(Collection([*names, "x.jpg"])).sources == ("retrieval", "sequential")


def test_unrelated_names_are_paired_by_retrieval_alone() -> None:
    generator = np.random.default_rng(0)
    names = [f"{number}_{number % 7:x}.jpg" for number in generator.integers(10**6, 10**9, 40)]
    assert choose(names, 10) == ("retrieval",)


@pytest.mark.parametrize("form", ["frame{0:04d}.png", "{0}.jpg", "DJI_{0:04d}.JPG", "{1:.6f}.png", "a/{0:02d}_left.jpg"])
def test_numbered_names_are_a_sequence(form: str) -> None:
    waits = np.random.default_rng(1).uniform(0.9, 1.2, 40)
    names = [form.format(i, 1311868164 + time) for i, time in enumerate(np.cumsum(waits))]
    assert choose(names, 10) == ("retrieval", "sequential")


def test_photos_that_follow_each_other_by_exif_are_paired_in_the_order_of_time(tmp_path: Path) -> None:
    names = [f"{name}.jpg" for name in "qwertzuiop"]
    write_photos(tmp_path, names, [f"2024:05:01 10:00:{5 * i:02d}" for i in range(10)])
    bound = options("pairs.max_exhaustive=5", "pairs.retrieval.num_neighbours=1", "pairs.sequential.overlap=1")
    source = AutoPairs(bound)
    collection = Collection(names, images=tmp_path, load_descriptors=random_descriptors)
    choice = source.choose(collection)
    assert choice.sources == ("retrieval", "sequential")
    assert choice.because.endswith("EXIF says that a photo follows the one before after 5 s")
    found = {(pair.name0, pair.name1) for pair in select_pairs(source, collection) if "sequential+1" in pair.reason}
    assert found == {(min(pair), max(pair)) for pair in itertools.pairwise(names)}


def test_photos_of_different_days_are_no_sequence(tmp_path: Path) -> None:
    names = [f"{name}.jpg" for name in "qwertzuiop"]
    write_photos(tmp_path, names, [f"2024:05:{i + 1:02d} 10:00:00" for i in range(10)])
    assert choose(names, 5, images=tmp_path) == ("retrieval",)


def test_photos_with_gps_are_also_paired_by_their_positions(tmp_path: Path) -> None:
    names = ["ab.jpg", "cd.jpg", "ef.jpg", "gh.jpg"]
    (tmp_path / "gps.txt").write_text("".join(f"{name} 46.8 {i / 1e4 - 92}\n" for i, name in enumerate(names)))
    assert choose(names, 3, positions=tmp_path / "gps.txt") == ("retrieval", "spatial")
    (tmp_path / "few.txt").write_text("ab.jpg 46.8 -92.0\n")
    assert choose(names, 3, positions=tmp_path / "few.txt") == ("retrieval",)


def test_features_without_descriptors_are_not_asked_for_similar_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Collection, "has_descriptors", False)
    numbered, others = [f"{i}.jpg" for i in range(9)], [f"{letter}.jpg" for letter in "abcdefghi"]
    source = AutoPairs(options("pairs.max_exhaustive=5"))
    assert source.choose(Collection(numbered)).sources == ("sequential",)
    assert select_pairs(source, Collection(numbered)) == sequential_pairs(numbered, 5, True)
    assert select_pairs(source, Collection(others)) == exhaustive_pairs(others)


def test_auto_checks_the_sources_that_it_will_ask(tmp_path: Path) -> None:
    bound = options("pairs.max_exhaustive=2")
    bound = dataclasses.replace(bound, retrieval=dataclasses.replace(bound.retrieval, global_descriptors=str(tmp_path / "no.h5")))
    check_source(AutoPairs(bound), Collection(["a.jpg", "b.jpg"]))
    with pytest.raises(FileNotFoundError, match=r"no\.h5"):
        check_source(AutoPairs(bound), Collection(["a.jpg", "b.jpg", "c.jpg"]))


def test_options_of_the_sources_are_set_by_their_names() -> None:
    bound = options("pairs.retrieval.num_neighbours=7", "pairs.sequential.loop_closure=true")
    assert (bound.retrieval.num_neighbours, bound.sequential.loop_closure, bound.spatial.without_position) == (7, True, "skip")
    assert resolve(compose_config(["pairs=[auto,retrieval]", "pairs.auto.max_exhaustive=9"])).pairs.problem == ""
