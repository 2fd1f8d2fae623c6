"""Our extractors and matchers as plug-ins of hloc, or of a small stand-in: hloc itself is on no package index."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from PIL import Image as PILImage

from sfm_lightglue.api import create_extractor, create_matcher
from sfm_lightglue.execution.devices import num_cores
from sfm_lightglue.execution.threads import torch_threads
from sfm_lightglue.integrations import hloc as ours
from sfm_lightglue.networks.weights import available_weights
from sfm_lightglue.products import Features, Image, Matches
from sfm_lightglue.storage import H5Reader

BASE_MODEL = """
from abc import ABCMeta, abstractmethod
from torch import nn


class BaseModel(nn.Module, metaclass=ABCMeta):
    default_conf = {}
    required_inputs = []

    def __init__(self, conf):
        super().__init__()
        self.conf = {**self.default_conf, **conf}
        self._init(self.conf)

    def forward(self, data):
        for key in self.required_inputs:
            assert key in data, key
        return self._forward(data)

    @abstractmethod
    def _init(self, conf): ...

    @abstractmethod
    def _forward(self, data): ...
"""


def write_package(folder: Path, name: str) -> None:
    """Writes a package with the parts of hloc that a plug-in uses."""
    for inside, text in {"": "", "utils": "", "extractors": "", "matchers": ""}.items():
        path = folder.joinpath(*name.split("."), inside)
        path.mkdir(parents=True, exist_ok=True)
        (path / "__init__.py").write_text(text)
    (folder.joinpath(*name.split(".")) / "utils" / "base_model.py").write_text(BASE_MODEL)


@pytest.fixture(params=["hloc", "imcui.hloc"])
def package(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Name of an importable stand-in for hloc, and for a fork inside another package."""
    before = set(sys.modules)
    write_package(tmp_path, request.param)
    monkeypatch.syspath_prepend(tmp_path)
    yield request.param
    for name in set(sys.modules) - before:
        if name.split(".")[0] in ("hloc", "imcui"):
            del sys.modules[name]


def dynamic_load(package: str, kind: str, name: str) -> type:
    """The one subclass of BaseModel that the module `name` defines. hloc finds a plug-in this way."""
    root = importlib.import_module(f"{package}.{kind}")
    base = importlib.import_module(f"{package}.utils.base_model").BaseModel
    module_path = f"{root.__name__}.{name}"
    module: ModuleType = __import__(module_path, fromlist=[""])
    classes = [found for _, found in inspect.getmembers(module, inspect.isclass) if found.__module__ == module_path]
    classes = [found for found in classes if issubclass(found, base)]
    assert len(classes) == 1, classes
    return classes[0]


def load(package: str, kind: str, conf: dict[str, Any]) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    """The plug-in that a configuration of hloc names, created the way hloc does it."""
    ours.register(package)
    return dynamic_load(package, kind, conf["model"]["name"])(conf["model"]).eval()


def image_tensor(pixels: np.ndarray) -> torch.Tensor:
    """The input that hloc gives to an extractor: float32 (1, c, h, w) in 0..1."""
    planes = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return torch.from_numpy(planes / 255.0).float()[None]


def matcher_input(features: tuple[Features, Features], **changes: Any) -> dict[str, torch.Tensor]:
    """The input that hloc gives to a matcher: each dataset of the feature files as float32 with a batch dimension, and an image
    with undefined content. `changes` replace datasets; None removes one."""
    data = {}
    for side, side_features in enumerate(features):
        width, height = side_features.image_size
        datasets = {
            "keypoints": side_features.keypoints,
            "descriptors": side_features.descriptors.T,
            "scores": side_features.scores,
            "image_size": np.array([width, height]),
            **changes,
        }
        data |= {f"{key}{side}": torch.tensor(value).float()[None] for key, value in datasets.items() if value is not None}
        data[f"image{side}"] = torch.empty((1, 1, height, width))
    return data


class FakeExtractor:
    """Keeps the image that it gets; returns one keypoint in each of the first rows."""

    weights = ()

    def __init__(self, num: int = 3, *, oriented: bool = False) -> None:
        self.num, self.oriented = num, oriented

    def __call__(self, image: Image) -> Features:
        self.image = image
        rows = np.arange(self.num, dtype=np.float32)
        extra = {"scales": rows + 1, "orientations": rows / 10} if self.oriented else {}
        return Features(np.stack([rows, rows + 0.5], axis=1), 1 - rows / 10, np.tile(rows[:, None], 8), image.size, **extra)


class FakeMatcher:
    """Keeps the features that it gets; matches keypoint i of image 0 to keypoint i of image 1, except for i = 0."""

    weights = ()

    def __call__(self, features0: Features, features1: Features) -> Matches:
        self.given = features0, features1
        index = np.arange(1, len(features0))
        return Matches(np.stack([index, index], axis=1).astype(np.int32), np.full(len(index), 0.5, np.float32))


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The extractor and the matcher that the plug-ins create, and the arguments with which they create them."""
    built: dict[str, Any] = {"extractor": FakeExtractor(), "matcher": FakeMatcher()}

    def create(kind: str, name: str, **options: Any) -> Any:
        built[f"{kind}_arguments"] = (name, options)
        return built[kind]

    monkeypatch.setattr(ours, "create_extractor", lambda name, **options: create("extractor", name, **options))
    monkeypatch.setattr(ours, "create_matcher", lambda name, **options: create("matcher", name, **options))
    return built


PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)


def test_hloc_finds_one_class_for_each_kind(package: str) -> None:
    ours.register(package)
    base = importlib.import_module(f"{package}.utils.base_model").BaseModel
    for kind, conf in (("extractors", ours.extractor_conf()), ("matchers", ours.matcher_conf())):
        assert issubclass(dynamic_load(package, kind, conf["model"]["name"]), base)


def test_by_default_it_is_the_open_superpoint_with_its_lightglue() -> None:
    assert ours.extractor_conf()["model"]["extractor"] == "superpoint"
    assert ours.matcher_conf()["model"]["trained_for"] == "superpoint-open"


def test_each_configuration_has_its_own_files() -> None:
    """hloc reuses an existing file whatever its options were."""
    confs = [
        *(ours.extractor_conf(), ours.extractor_conf("aliked"), ours.extractor_conf(resize_max=1024)),
        *(ours.extractor_conf(max_keypoints=512), ours.matcher_conf(), ours.matcher_conf(filter_threshold=0.3)),
    ]
    names = [conf["output"] for conf in confs]
    assert len(set(names)) == len(names) and all(re.fullmatch(r"[\w-]+", name) for name in names)
    assert names[0].startswith("feats-sfm-lightglue-superpoint-") and names[0] == ours.extractor_conf()["output"]
    assert names[4].startswith("matches-sfm-lightglue-superpoint-open-")


def test_registering_twice_changes_nothing(package: str, fakes: dict[str, Any]) -> None:
    ours.register(package)
    load(package, "matchers", ours.matcher_conf())


def test_registering_without_hloc_raises_an_error_that_names_it() -> None:
    with pytest.raises(ImportError, match="no_such_hloc"):
        ours.register("no_such_hloc")


def test_the_extractor_gets_the_pixels_unchanged_and_does_not_resize(package: str, fakes: dict[str, Any]) -> None:
    conf = ours.extractor_conf("disk", resize_max=1024, max_keypoints=7)
    assert conf["preprocessing"] == {"grayscale": False, "resize_max": 1024}
    extractor = load(package, "extractors", conf)
    assert fakes["extractor_arguments"] == ("disk", {"max_keypoints": 7, "resize_max": None})
    found = extractor({"image": image_tensor(PIXELS)})
    np.testing.assert_array_equal(fakes["extractor"].image.pixels, PIXELS)
    assert {key: tuple(value.shape) for key, value in found.items()} == {
        "keypoints": (1, 3, 2),
        "scores": (1, 3),
        "descriptors": (1, 8, 3),
    }
    assert found["keypoints"][0].tolist() == [[0, 0.5], [1, 1.5], [2, 2.5]]


def test_grey_images_are_repeated_in_three_channels(package: str, fakes: dict[str, Any]) -> None:
    load(package, "extractors", ours.extractor_conf())({"image": image_tensor(PIXELS[..., 0])})
    np.testing.assert_array_equal(fakes["extractor"].image.pixels, np.repeat(PIXELS[..., :1], 3, axis=2))


def test_scales_and_orientations_are_returned_under_hlocs_names(package: str, fakes: dict[str, Any]) -> None:
    fakes["extractor"] = FakeExtractor(oriented=True)
    found = load(package, "extractors", ours.extractor_conf("sift"))({"image": image_tensor(PIXELS)})
    assert found["scales"].tolist() == [[1, 2, 3]] and found["oris"].shape == (1, 3)


def test_an_image_without_keypoints_gives_empty_tensors(package: str, fakes: dict[str, Any]) -> None:
    fakes["extractor"] = FakeExtractor(num=0)
    found = load(package, "extractors", ours.extractor_conf())({"image": image_tensor(PIXELS)})
    assert found["keypoints"].shape == (1, 0, 2) and found["descriptors"].shape == (1, 8, 0)


def fake_features(num: int) -> Features:
    return FakeExtractor(num)(Image("image", PIXELS))


def test_the_matcher_gets_the_content_of_the_feature_files(package: str, fakes: dict[str, Any]) -> None:
    matcher = load(package, "matchers", ours.matcher_conf("disk", filter_threshold=0.2))
    assert fakes["matcher_arguments"] == ("lightglue", {"trained_for": "disk", "guided_matching": False, "filter_threshold": 0.2})
    pair = fake_features(3), fake_features(4)
    found = matcher(matcher_input(pair))
    assert found["matches0"].tolist() == [[-1, 1, 2]] and found["matches0"].dtype == torch.int64
    assert found["matching_scores0"].tolist() == [[0, 0.5, 0.5]]
    for given, expected in zip(fakes["matcher"].given, pair, strict=True):
        np.testing.assert_array_equal(given.keypoints, expected.keypoints)
        np.testing.assert_array_equal(given.descriptors, expected.descriptors)
        np.testing.assert_array_equal(given.scores, expected.scores)
        assert given.image_size == (30, 20)


def test_a_configuration_with_the_old_name_of_trained_for_is_answered_with_the_new_one(
    package: str, fakes: dict[str, Any]
) -> None:
    conf = ours.matcher_conf("superpoint-open")
    conf["model"]["head"] = "disk"
    with pytest.raises(ValueError, match="'head' of the configuration is now called 'trained_for': 'trained_for': 'disk'"):
        load(package, "matchers", conf)


@pytest.mark.parametrize("changes", [{"image_size": None}, {"scores": None}, {"scores": None, "keypoint_scores": np.ones(3)}])
def test_feature_files_of_older_versions_are_read(package: str, fakes: dict[str, Any], changes: dict[str, Any]) -> None:
    """Without image_size, without scores, or with scores under their other name."""
    load(package, "matchers", ours.matcher_conf())(matcher_input((fake_features(3), fake_features(3)), **changes))
    for given in fakes["matcher"].given:
        assert given.image_size == (30, 20)
        assert given.scores.shape == (3,) and ("scores" not in changes or (given.scores == 1).all())


def test_scales_and_orientations_reach_the_matcher(package: str, fakes: dict[str, Any]) -> None:
    changes = {"scales": np.array([1.0, 2.0, 3.0]), "oris": np.zeros(3)}
    load(package, "matchers", ours.matcher_conf("sift"))(matcher_input((fake_features(3), fake_features(3)), **changes))
    assert fakes["matcher"].given[0].scales.tolist() == [1, 2, 3]
    assert fakes["matcher"].given[1].orientations.tolist() == [0, 0, 0]


def test_missing_descriptors_are_named(package: str, fakes: dict[str, Any]) -> None:
    data = matcher_input((fake_features(3), fake_features(3)))
    del data["descriptors1"]
    with pytest.raises((ValueError, AssertionError), match="descriptors1"):
        load(package, "matchers", ours.matcher_conf())(data)


# --- the real networks ----------------------------------------------------------------------------------------------------


def has_weights() -> bool:
    return {"aliked-n16", "aliked-lightglue"} <= {entry.name for entry, path in available_weights() if path is not None}


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One thread for torch: several threads on a busy core would wait for each other longer than they compute."""
    with torch_threads(num_workers=num_cores()):
        yield


SHIFT = (24, 10)
"""(x, y) px: shift of the second photo against the first."""


def photo_pair() -> tuple[np.ndarray, np.ndarray]:
    """Two uint8 (160, 208, 3) views of one texture of random blobs."""
    rng = np.random.default_rng(0)
    layers = [PILImage.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)).resize((300, 300)) for side in (12, 30, 70)]
    texture = np.mean([np.asarray(layer, np.float32) for layer in layers], axis=0)
    texture = np.clip((texture - 128) * 2 + 128, 0, 255).astype(np.uint8)
    return texture[40:200, 40:248], texture[40 + SHIFT[1] : 200 + SHIFT[1], 40 + SHIFT[0] : 248 + SHIFT[0]]


@pytest.mark.parametrize(
    ("name", "trained_for"),
    [
        ("superpoint", "superpoint-open"),
        pytest.param("aliked", "aliked", marks=pytest.mark.skipif(not has_weights(), reason="ALIKED's weights are not here")),
    ],
)
def test_the_result_through_hlocs_files_equals_the_result_of_our_pipeline(
    name: str, trained_for: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    write_package(tmp_path, "hloc_real.hloc")
    monkeypatch.syspath_prepend(tmp_path)
    pixels = photo_pair()
    extractor = load("hloc_real.hloc", "extractors", ours.extractor_conf(name, max_keypoints=150))
    matcher = load("hloc_real.hloc", "matchers", ours.matcher_conf(trained_for))

    # as hloc does it: features go to a file under its names, and from the file to the matcher
    with h5py.File(tmp_path / "feats.h5", "w") as file:
        for photo_name, photo in zip("ab", pixels, strict=True):
            group = file.create_group(photo_name)
            for key, value in extractor({"image": image_tensor(photo)}).items():
                group.create_dataset(key, data=value[0].numpy())
            group.create_dataset("image_size", data=np.array(photo.shape[1::-1]))
    with H5Reader(tmp_path / "feats.h5") as reader:
        through_hloc = reader.features("a"), reader.features("b")
    matches0 = matcher(matcher_input(through_hloc))["matches0"][0].numpy()

    own_extractor = create_extractor(name, max_keypoints=150, resize_max=None)
    own = tuple(own_extractor(Image(name, photo)) for name, photo in zip("ab", pixels, strict=True))
    for given, expected in zip(through_hloc, own, strict=True):
        np.testing.assert_array_equal(given.keypoints, expected.keypoints)
        np.testing.assert_array_equal(given.descriptors, expected.descriptors)
    np.testing.assert_array_equal(matches0, create_matcher("lightglue", trained_for=trained_for)(*own).matches0(len(own[0])))

    matched = np.flatnonzero(matches0 > -1)
    assert len(matched) > 50
    shifts = own[0].keypoints[matched] - own[1].keypoints[matches0[matched]]
    # A pixel of the small photo is 4 px wide.
    assert (np.abs(shifts - SHIFT).max(axis=1) < 2).mean() > 0.95, "and they are the right ones"
