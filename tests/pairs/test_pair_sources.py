"""The pair sources of the package, asked through the stage, and the options of their YAML files."""

from __future__ import annotations

import dataclasses
import functools
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pycolmap
import pytest
from PIL import Image

from sfm_lightglue.config import KEYS_OF_PAIRS, bind_pairs, compose_config, options_class, without_keys
from sfm_lightglue.pairs import PAIR_SOURCES
from sfm_lightglue.pairs.collection import Collection
from sfm_lightglue.pairs.exhaustive import ExhaustiveOptions, exhaustive_pairs
from sfm_lightglue.pairs.listed import ListOptions
from sfm_lightglue.pairs.pairing import create_source
from sfm_lightglue.pairs.retrieval import RetrievalOptions
from sfm_lightglue.pairs.sequential import SequentialOptions, sequential_pairs
from sfm_lightglue.pairs.stage import select_pairs
from sfm_lightglue.products import Pair
from sfm_lightglue.registry import load_class

ROOT = Path(__file__).resolve().parents[2]
PHOTOS = ROOT.parent / "shared" / "data"

VLAD: dict[str, Any] = {
    **{"codebook": "own", "num_words": 16, "dimensions": 256, "max_samples": 5000, "seed": 0},
    "global_descriptors": None,
}
RETRIEVAL = RetrievalOptions(name="retrieval", num_neighbours=4, min_score=None, **VLAD)
SEQUENTIAL = SequentialOptions(
    name="sequential",
    order="name",
    overlap=2,
    quadratic_overlap=False,
    across_folders="auto",
    loop_closure=True,
    loop_every=4,
    loop_neighbours=1,
    loop_min_distance=8,
    min_score=None,
    **VLAD,
)


def select(options: object, names: Iterable[str], load_descriptors: Callable[[str], np.ndarray]) -> list[Pair]:
    """The pairs that the source with these options finds."""
    return select_pairs(create_source(options), Collection(names, load_descriptors=load_descriptors))


def refuse_to_load(name: str) -> np.ndarray:
    raise AssertionError(f"the descriptors of {name} were read")


def places(place_of: dict[str, int]) -> Callable[[str], np.ndarray]:
    """Loads descriptors. An image sees 200 of the 300 points of its place, with noise, and 50 points that no other image sees."""
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


def test_retrieval_finds_the_images_of_the_same_place_in_any_input_order() -> None:
    place_of = {f"{i % 6}/{i:02d}.jpg": i % 6 for i in range(30)}
    pairs = select(RETRIEVAL, place_of, places(place_of))
    expected = [pair for pair in exhaustive_pairs(place_of) if place_of[pair.name0] == place_of[pair.name1]]
    assert pairs == expected
    shuffled = random.Random(0).sample(list(place_of), 30)
    assert rows(select(RETRIEVAL, shuffled, places(place_of))) == rows(pairs)


def test_retrieval_goes_on_if_images_have_no_features(caplog: pytest.LogCaptureFixture) -> None:
    place_of = {"a.jpg": 0, "b.jpg": 0, "blank.jpg": 1, "c.jpg": 0}
    load = places(place_of)
    pairs = select(RETRIEVAL, place_of, lambda name: load(name)[:0] if name == "blank.jpg" else load(name))
    assert pairs == exhaustive_pairs(["a.jpg", "b.jpg", "c.jpg"])
    assert select(RETRIEVAL, place_of, lambda name: load(name)[:0]) == []
    assert "none of 4 images has local features" in caplog.text
    assert select(RETRIEVAL, [], refuse_to_load) == []


def test_global_descriptors_of_a_file_replace_the_codebook(tmp_path: Path) -> None:
    stored = {"a.jpg": [1.0, 0], "b.jpg": [0, 1.0], "c.jpg": [0.9, 0.1], "d.jpg": [0.1, 0.9]}
    with h5py.File(tmp_path / "netvlad.h5", "w") as file:
        for name, descriptor in stored.items():
            file[f"{name}/global_descriptor"] = np.array(descriptor, np.float32)
    options = dataclasses.replace(RETRIEVAL, num_neighbours=1, global_descriptors=str(tmp_path / "netvlad.h5"))
    assert select(options, stored, refuse_to_load) == [Pair("a.jpg", "c.jpg"), Pair("b.jpg", "d.jpg")]
    with pytest.raises(KeyError, match=r"no global_descriptor of 1 images, the first is 'e\.jpg'"):
        select(options, [*stored, "e.jpg"], refuse_to_load)


def test_a_sequence_that_returns_to_its_start_is_closed() -> None:
    place_of = {f"{i:02d}.jpg": i % 16 // 2 for i in range(32)}  # the same path twice, two images at each place
    pairs = select(SEQUENTIAL, place_of, places(place_of))
    planned = sequential_pairs(place_of, 2, False)
    loops = [pair for pair in pairs if pair.reason.startswith("loop#")]
    assert sorted([*planned, *loops]) == pairs
    assert {name for pair in loops for name in (pair.name0, pair.name1)} >= {f"{i:02d}.jpg" for i in range(0, 32, 4)}
    for pair in loops:
        assert place_of[pair.name0] == place_of[pair.name1]
        assert int(pair.name1[:2]) - int(pair.name0[:2]) >= 8


def test_loops_between_folders_are_closed() -> None:
    place_of = {f"{folder}/{i:02d}.jpg": i // 2 for folder in ("day", "night") for i in range(8)}
    pairs = select(SEQUENTIAL, place_of, places(place_of))
    loops = [pair for pair in pairs if "loop" in pair.reason]
    assert loops and all(pair.name0.startswith("day/") and pair.name1.startswith("night/") for pair in loops)
    assert all(place_of[pair.name0] == place_of[pair.name1] for pair in loops)


def test_the_other_camera_of_a_rig_is_no_loop() -> None:
    """Both cameras see places 0 ... 9 and come back to them. Photos of one time would be the most similar ones."""
    place_of = {f"{camera}/{i:02d}.jpg": i % 10 for camera in ("left", "right") for i in range(20)}
    options = dataclasses.replace(SEQUENTIAL, across_folders="true", loop_neighbours=1)
    pairs = select(options, place_of, places(place_of))
    loops = [pair for pair in pairs if pair.reason.startswith("loop")]
    assert loops and all(abs(int(pair.name0[-6:-4]) - int(pair.name1[-6:-4])) == 10 for pair in loops)
    assert sum(pair.reason == "rig" for pair in pairs) == 20


def test_across_folders_is_auto_true_or_false() -> None:
    assert dataclasses.replace(SEQUENTIAL, across_folders=True).across_folders == "true"  # YAML reads true as a truth value
    with pytest.raises(ValueError, match="across_folders is often, expected auto, true or false"):
        dataclasses.replace(SEQUENTIAL, across_folders="often")
    names = ["left/1.png", "left/2.png", "right/1.png", "right/2.png"]
    options = dataclasses.replace(SEQUENTIAL, across_folders="false", loop_closure=False)
    assert [pair.reason for pair in select(options, names, places(dict.fromkeys(names, 0)))] == ["sequential+1"] * 2


def test_sources_that_need_only_names_read_no_features(tmp_path: Path) -> None:
    names = ["c.jpg", "b.jpg", "a.jpg"]
    (tmp_path / "pairs.txt").write_text("c.jpg a.jpg\na.jpg unknown.jpg")
    sequential = dataclasses.replace(SEQUENTIAL, overlap=1, loop_closure=False)
    listed = ListOptions("list", str(tmp_path / "pairs.txt"), skip_unknown=True)
    for options, expected in (
        (ExhaustiveOptions("exhaustive"), exhaustive_pairs(names)),
        (sequential, [Pair("a.jpg", "b.jpg"), Pair("b.jpg", "c.jpg")]),
        (listed, [Pair("a.jpg", "c.jpg")]),
    ):
        assert select(options, names, refuse_to_load) == expected


def test_an_interval_of_zero_images_between_loop_closures_is_refused() -> None:
    with pytest.raises(ValueError, match=r"pairs\.loop_every must be at least 1, found 0"):
        dataclasses.replace(SEQUENTIAL, loop_every=0)


def test_the_stage_sorts_the_pairs_of_a_source_and_merges_repeated_ones() -> None:
    def source(collection: Collection) -> list[Pair]:
        return [Pair("c", "b", "near#1"), Pair("b", "a", "near#2"), Pair("b", "c", "near#3", 0.5)]

    found = select_pairs(source, Collection("abc"))  # type: ignore[arg-type]  # a function has no create
    assert [(pair.name0, pair.name1, pair.reason) for pair in found] == [("a", "b", "near#2"), ("b", "c", "near#1,near#3")]
    with pytest.raises(ValueError, match=r"function pairs 'c', which is not among the 2 images"):
        select_pairs(source, Collection("ab"))  # type: ignore[arg-type]


@pytest.mark.parametrize("container", [list, tuple, iter])
def test_a_source_may_give_its_pairs_in_any_iterable(container: Callable[[list[Pair]], Any]) -> None:
    pairs = [Pair("a", "b"), Pair("b", "c")]

    assert select_pairs(lambda collection: container(pairs), Collection("abc")) == pairs  # type: ignore[arg-type]


@pytest.mark.parametrize("junk", [None, 3, [("a", "b")], ["ab"]])
def test_a_source_that_gives_anything_but_pairs_is_refused(junk: Any) -> None:
    with pytest.raises(ValueError, match=r"function gave .*, expected a list of Pair"):
        select_pairs(lambda collection: junk, Collection("abc"))  # type: ignore[arg-type]


def test_every_yaml_file_has_exactly_the_options_of_its_class() -> None:
    files = {path.stem: path for path in (ROOT / "configs" / "pairs").glob("*.yaml")}
    assert set(files) == set(PAIR_SOURCES)
    for name in set(files) - {"union"}:  # its keys are the sources that the user lists
        values, options = (
            without_keys(compose_config([f"pairs={name}"]).pairs, KEYS_OF_PAIRS),
            options_class(load_class(name, PAIR_SOURCES, "pairs")),
        )
        assert values.name == name
        assert {field.name for field in dataclasses.fields(options)} == set(values)
        if name in ("list", "covisibility"):
            values.path = "pairs.txt"
        assert isinstance(bind_pairs(values), options)


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
    pairs = select(dataclasses.replace(RETRIEVAL, num_neighbours=3, num_words=32, dimensions=512), place_of, load)
    same_place = [place_of[pair.name0] == place_of[pair.name1] for pair in pairs]
    assert len(pairs) >= 24 * 3 / 2
    assert np.mean(same_place) > 0.8  # random pairs: 0.22
