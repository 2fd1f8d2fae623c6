from __future__ import annotations

import dataclasses
import functools
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pycolmap
import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from PIL import Image

from sfm_lightglue.pairs.exhaustive import exhaustive_pairs
from sfm_lightglue.pairs.planner import (
    PAIRINGS,
    ExhaustiveOptions,
    ListOptions,
    RetrievalOptions,
    SequentialOptions,
    select_pairs,
    union_pairs,
)
from sfm_lightglue.pairs.sequential import sequential_pairs
from sfm_lightglue.products import Pair

ROOT = Path(__file__).resolve().parents[2]
PHOTOS = ROOT.parent / "shared" / "data"

RETRIEVAL = RetrievalOptions(
    "retrieval", num_neighbours=4, num_words=16, max_samples=5000, seed=0, min_score=None, global_descriptors=None
)
SEQUENTIAL = SequentialOptions(
    "sequential",
    overlap=2,
    quadratic_overlap=False,
    loop_closure=True,
    loop_every=4,
    loop_neighbours=1,
    loop_min_distance=8,
    num_words=16,
    max_samples=5000,
    seed=0,
    min_score=None,
    global_descriptors=None,
)


def refuse_to_load(name: str) -> np.ndarray:
    raise AssertionError(f"the descriptors of {name} were read")


def places(place_of: dict[str, int]) -> Callable[[str], np.ndarray]:
    """Loader of descriptors: images of one place see 200 of its 300 points, with noise, and 50 that nobody else sees."""
    generators = {place: np.random.default_rng(place) for place in set(place_of.values())}
    points = {place: generator.standard_normal((300, 32)) for place, generator in generators.items()}

    def load(name: str) -> np.ndarray:
        generator = np.random.default_rng(list(name.encode()))
        seen = points[place_of[name]][generator.choice(300, 200, replace=False)]
        both = np.concatenate([seen + 0.1 * generator.standard_normal(seen.shape), generator.standard_normal((50, 32))])
        return (both / np.linalg.norm(both, axis=1, keepdims=True)).astype(np.float32)

    return load


def rows(pairs: list[Pair]) -> list[tuple[str, str, str, float]]:
    return [(pair.name0, pair.name1, pair.reason, pair.score) for pair in pairs]


def test_retrieval_finds_the_images_of_the_same_place_whatever_the_input_order() -> None:
    place_of = {f"{i % 6}/{i:02d}.jpg": i % 6 for i in range(30)}
    pairs = select_pairs(RETRIEVAL, place_of, load_descriptors=places(place_of))
    expected = [pair for pair in exhaustive_pairs(place_of) if place_of[pair.name0] == place_of[pair.name1]]
    assert pairs == expected
    shuffled = random.Random(0).sample(list(place_of), 30)
    assert rows(select_pairs(RETRIEVAL, shuffled, load_descriptors=places(place_of))) == rows(pairs)


def test_retrieval_goes_on_where_images_have_no_features(caplog: pytest.LogCaptureFixture) -> None:
    place_of = {"a.jpg": 0, "b.jpg": 0, "blank.jpg": 1, "c.jpg": 0}
    load = places(place_of)
    pairs = select_pairs(RETRIEVAL, place_of, load_descriptors=lambda name: load(name)[:0] if name == "blank.jpg" else load(name))
    assert pairs == exhaustive_pairs(["a.jpg", "b.jpg", "c.jpg"])
    assert select_pairs(RETRIEVAL, place_of, load_descriptors=lambda name: load(name)[:0]) == []
    assert "none of 4 images has local features" in caplog.text
    assert select_pairs(RETRIEVAL, [], load_descriptors=refuse_to_load) == []


def test_global_descriptors_of_a_file_take_the_place_of_the_codebook() -> None:
    stored = {"a.jpg": [1.0, 0], "b.jpg": [0, 1.0], "c.jpg": [0.9, 0.1], "d.jpg": [0.1, 0.9]}
    options = dataclasses.replace(RETRIEVAL, num_neighbours=1, global_descriptors="netvlad.h5")

    def load_global(path: str, names: list[str]) -> np.ndarray:
        assert path == "netvlad.h5"
        return np.array([stored[name] for name in names], np.float32)

    pairs = select_pairs(options, stored, load_descriptors=refuse_to_load, load_global_descriptors=load_global)
    assert pairs == [Pair("a.jpg", "c.jpg"), Pair("b.jpg", "d.jpg")]
    with pytest.raises(ValueError, match=r"netvlad\.h5 cannot be read here"):
        select_pairs(options, stored, load_descriptors=refuse_to_load)


def test_a_sequence_that_returns_to_its_start_is_closed() -> None:
    place_of = {f"{i:02d}.jpg": i % 16 // 2 for i in range(32)}  # the same way twice, two images at each place
    pairs = select_pairs(SEQUENTIAL, place_of, load_descriptors=places(place_of))
    planned = sequential_pairs(place_of, 2, False)
    loops = [pair for pair in pairs if pair.reason.startswith("loop#")]
    assert sorted([*planned, *loops]) == pairs
    assert {name for pair in loops for name in (pair.name0, pair.name1)} >= {f"{i:02d}.jpg" for i in range(0, 32, 4)}
    for pair in loops:
        assert place_of[pair.name0] == place_of[pair.name1]
        assert int(pair.name1[:2]) - int(pair.name0[:2]) >= 8


def test_loops_are_closed_between_folders_too() -> None:
    place_of = {f"{folder}/{i:02d}.jpg": i // 2 for folder in ("day", "night") for i in range(8)}
    pairs = select_pairs(SEQUENTIAL, place_of, load_descriptors=places(place_of))
    loops = [pair for pair in pairs if "loop" in pair.reason]
    assert loops and all(pair.name0.startswith("day/") and pair.name1.startswith("night/") for pair in loops)
    assert all(place_of[pair.name0] == place_of[pair.name1] for pair in loops)


def test_no_features_are_read_where_names_are_enough(tmp_path: Path) -> None:
    names = ["a.jpg", "b.jpg", "c.jpg"]
    (tmp_path / "pairs.txt").write_text("c.jpg a.jpg\na.jpg unknown.jpg")
    sequential = dataclasses.replace(SEQUENTIAL, overlap=1, loop_closure=False)
    listed = ListOptions("list", str(tmp_path / "pairs.txt"), skip_unknown=True)
    for options, expected in (
        (ExhaustiveOptions("exhaustive"), exhaustive_pairs(names)),
        (sequential, [Pair("a.jpg", "b.jpg"), Pair("b.jpg", "c.jpg")]),
        (listed, [Pair("a.jpg", "c.jpg")]),
    ):
        assert select_pairs(options, reversed(names), load_descriptors=refuse_to_load) == expected


def test_options_of_another_kind_are_refused() -> None:
    with pytest.raises(ValueError, match=r"dict are not the options of a pairing.*retrieval"):
        select_pairs({}, ["a.jpg"], load_descriptors=refuse_to_load)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="loop_every is 0"):
        dataclasses.replace(SEQUENTIAL, loop_every=0)


def test_a_union_keeps_each_pair_once_with_all_reasons_and_the_highest_score() -> None:
    first = [Pair("b", "c", "sequential+1"), Pair("a", "b", "sequential+1")]
    second = [Pair("a", "b", "loop#2", 0.5), Pair("a", "c", "loop#1", 0.25)]
    third = [Pair("a", "b", "sequential+1,list", 0.75)]
    assert rows(union_pairs([first, second, third]))[:2] == [
        ("a", "b", "sequential+1,loop#2,list", 0.75),
        ("a", "c", "loop#1", 0.25),
    ]
    (last,) = union_pairs([first])[1:]
    assert (last.name0, last.reason) == ("b", "sequential+1") and np.isnan(last.score)


PAIRS = st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("efgh")).map(lambda names: Pair(*names, reason="list")))


@given(st.lists(PAIRS, max_size=4))
def test_a_union_is_the_union_of_sets_and_does_not_change_when_repeated(lists: list[list[Pair]]) -> None:
    union = union_pairs(lists)
    assert union == sorted(set().union(*lists))
    assert [pair.reason for pair in union_pairs([union, union])] == [pair.reason for pair in union]


def test_every_yaml_file_has_exactly_the_options_of_its_class() -> None:
    files = {path.stem: path for path in (ROOT / "configs" / "pairs").glob("*.yaml")}
    assert set(files) == set(PAIRINGS)
    for name, path in files.items():
        values = OmegaConf.load(path)
        assert values.name == name
        assert [field.name for field in dataclasses.fields(PAIRINGS[name])] == list(values)
        if name == "list":
            values.path = "pairs.txt"
        assert isinstance(OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(PAIRINGS[name]), values)), PAIRINGS[name])


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="needs the folder of photos")
def test_retrieval_finds_the_place_of_real_photos() -> None:
    place_of = {
        path.relative_to(PHOTOS).as_posix(): folder
        for folder in ("fountain_p11", "herzjesu_p8", "lund_door12", "drone_brighton18")
        for path in sorted((PHOTOS / folder / "images").glob("*.[jJ]*"))[:6]
    }
    sift = pycolmap.FeatureExtractor.create(pycolmap.FeatureExtractionOptions(use_gpu=False), pycolmap.Device.cpu)

    @functools.cache
    def load(name: str) -> np.ndarray:
        with Image.open(PHOTOS / name) as photo:
            grey = photo.convert("L")
            grey.thumbnail((320, 320))
        _, descriptors = sift.extract(pycolmap.Bitmap.from_array(np.asarray(grey)))
        return descriptors.data.astype(np.float32)

    assert load(next(iter(place_of))).shape[1] == 128
    pairs = select_pairs(dataclasses.replace(RETRIEVAL, num_neighbours=3, num_words=64), place_of, load_descriptors=load)
    same_place = [place_of[pair.name0] == place_of[pair.name1] for pair in pairs]
    assert len(pairs) >= 24 * 3 / 2
    assert np.mean(same_place) > 0.8  # by chance 0.22
