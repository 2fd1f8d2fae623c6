"""The stage pairs -> matches over a small scene with known matches."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import os
import threading
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from sfm_lightglue.execution.executor import Executor
from sfm_lightglue.execution.processes import ProcessExecutor
from sfm_lightglue.execution.threads import ThreadExecutor
from sfm_lightglue.matches import stage
from sfm_lightglue.matches.nearest_neighbor import NearestNeighborMatcher, NearestNeighborOptions
from sfm_lightglue.matches.stage import MatchingReport, match_pairs
from sfm_lightglue.networks.weights import WeightsRecord
from sfm_lightglue.products import Features, Matches, Pair
from sfm_lightglue.storage import H5Reader, SettingsChanged, ShardStore, features_to_group, match_key

NAMES = ["a.jpg", "b.jpg", "sub/c d.jpg", "sub/e.jpg"]
PAIRS = [Pair(*names) for names in itertools.combinations(NAMES, 2)]
NUM_POINTS, DIMENSIONS = 60, 32


def visible_points(name: str, seed: int = 0) -> np.ndarray:
    """int (n,): the scene points that an image sees, in the order of its keypoints."""
    rng = np.random.default_rng([seed, NAMES.index(name)])
    return rng.permutation(NUM_POINTS)[: 30 + 5 * NAMES.index(name)]


def make_features(name: str, seed: int = 0) -> Features:
    """Features of an image. A point has nearly the same descriptor in all images: noise is far below the distance of points."""
    points = visible_points(name, seed)
    descriptors = np.random.default_rng(1).normal(size=(NUM_POINTS, DIMENSIONS))[points]
    descriptors += np.random.default_rng([2, seed, NAMES.index(name)]).normal(scale=0.05, size=descriptors.shape)
    descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)
    keypoints = np.random.default_rng([3, seed]).uniform(0, 100, (len(points), 2)).astype(np.float32)
    return Features(keypoints, np.ones(len(points), np.float32), descriptors.astype(np.float32), (100, 100), name=name)


def right_matches(name0: str, name1: str) -> list[list[int]]:
    """Rows of keypoint indices (of image 0, of image 1) that show the same point."""
    points0, points1 = visible_points(name0).tolist(), visible_points(name1).tolist()
    return [[row, points1.index(point)] for row, point in enumerate(points0) if point in points1]


def write_features(path: Path, seeds: dict[str, int] | None = None, settings: str = "first") -> Path:
    """A file of features; an image with a seed other than 0 has other content."""
    with ShardStore(path, {"settings": settings}, if_settings_changed="recompute") as store:
        for name in NAMES:
            seed = (seeds or {}).get(name, 0)
            store.add(name, features_to_group(make_features(name, seed)), f"content {seed}")
        store.merge()
    return path


@pytest.fixture
def features(tmp_path: Path) -> Path:
    return write_features(tmp_path / "features.h5")


class Counting(NearestNeighborMatcher):
    """Matches nearest neighbours and remembers the pairs it was given."""

    def __init__(self, max_distance: float = 0.5) -> None:
        super().__init__(NearestNeighborOptions("nearest_neighbor", True, None, max_distance))
        self.seen: list[tuple[str, str]] = []

    @classmethod
    def create(cls, options: NearestNeighborOptions, device: str) -> Counting:
        assert options.max_distance is not None
        return cls(options.max_distance)

    def __call__(self, features0: Features, features1: Features) -> Matches:
        self.seen.append((features0.name, features1.name))
        return super().__call__(features0, features1)


def run(
    features: Path, pairs: list[Pair], matcher: Counting | None = None, **options: object
) -> tuple[MatchingReport, list[tuple[str, str]]]:
    """The report, and the pairs that were given to the matcher."""
    matcher = matcher or Counting()
    report = match_pairs(features, pairs, features.parent / "matches.h5", matcher, **options)
    return report, sorted(matcher.seen)


def names_of(pairs: list[Pair]) -> list[tuple[str, str]]:
    return [(pair.name0, pair.name1) for pair in pairs]


def stored_indices(path: Path, name0: str, name1: str) -> list[list[int]]:
    with H5Reader(path) as reader:
        found = reader.find_matches(name0, name1)
    assert found is not None
    return found.indices.tolist()


def test_every_pair_has_the_right_matches(features: Path) -> None:
    report, _ = run(features, PAIRS)
    expected = {pair: right_matches(pair.name0, pair.name1) for pair in PAIRS}
    mean = sum(map(len, expected.values())) / len(PAIRS)
    assert mean > 10
    assert (report.num_pairs, report.num_computed, report.mean_matches) == (6, 6, mean)
    for pair, indices in expected.items():
        assert stored_indices(features.parent / "matches.h5", pair.name0, pair.name1) == indices
        assert stored_indices(features.parent / "matches.h5", pair.name1, pair.name0) == sorted([b, a] for a, b in indices)


def test_a_second_run_computes_nothing(features: Path) -> None:
    first, _ = run(features, PAIRS)
    before = (features.parent / "matches.h5").read_bytes()
    report, seen = run(features, PAIRS)
    assert first.mean_matches > 0 and report == dataclasses.replace(first, num_computed=0) and seen == []
    assert (features.parent / "matches.h5").read_bytes() == before


def test_only_new_pairs_are_matched_and_the_file_ends_the_same(features: Path) -> None:
    assert run(features, PAIRS[2:4])[1] == names_of(PAIRS[2:4])
    assert run(features, PAIRS)[1] == names_of([*PAIRS[:2], *PAIRS[4:]])
    match_pairs(features, PAIRS, features.parent / "reference.h5", Counting())
    assert (features.parent / "matches.h5").read_bytes() == (features.parent / "reference.h5").read_bytes()


def test_the_order_of_pairs_and_of_the_two_images_does_not_matter(features: Path) -> None:
    """A pair that is given in both orders, or twice for different reasons, is matched once."""
    turned = [Pair(pair.name1, pair.name0, "list") for pair in reversed(PAIRS)]
    report, seen = run(features, [*turned, *PAIRS, PAIRS[0]])
    assert report.num_pairs == 6 and seen == names_of(PAIRS)
    match_pairs(features, PAIRS, features.parent / "reference.h5", Counting())
    assert (features.parent / "matches.h5").read_bytes() == (features.parent / "reference.h5").read_bytes()


def test_one_and_several_workers_write_the_same_bytes(features: Path) -> None:
    contents = set()
    for num_workers in (1, 2, 5):
        match_pairs(features, PAIRS, features.parent / f"{num_workers}.h5", Counting(), num_workers=num_workers)
        contents.add((features.parent / f"{num_workers}.h5").read_bytes())
    assert len(contents) == 1


def test_pairs_of_an_image_with_new_features_are_matched_again(features: Path) -> None:
    run(features, PAIRS)
    write_features(features, {"b.jpg": 1})
    assert run(features, PAIRS)[1] == [pair for pair in names_of(PAIRS) if "b.jpg" in pair]
    assert run(features, PAIRS)[1] == []


def test_after_a_change_of_the_features_settings_the_run_is_refused_or_matches_all_pairs_again(features: Path) -> None:
    run(features, PAIRS)
    write_features(features, settings="second")
    with pytest.raises(SettingsChanged, match=r"matches\.h5 was made with other settings \(features: "):
        run(features, PAIRS)
    report, seen = run(features, PAIRS[:1], if_settings_changed="recompute")
    assert seen == names_of(PAIRS[:1]) and report.num_pairs == 1
    with H5Reader(features.parent / "matches.h5") as reader:
        assert reader.names() == [match_key(*seen[0])], "no old matches are left"


def test_a_matcher_with_other_options_is_refused_with_the_value_that_differs(features: Path) -> None:
    run(features, PAIRS)
    with pytest.raises(SettingsChanged, match=r"options\.max_distance: 0\.5 -> 0\.7"):
        run(features, PAIRS, Counting(max_distance=0.7))


def test_an_image_without_features_is_named_with_the_closest_image(features: Path) -> None:
    with pytest.raises(KeyError, match=r"no features of image 'sub/e\.jpeg', did you mean 'sub/e\.jpg'"):
        run(features, [*PAIRS, Pair("a.jpg", "sub/e.jpeg")])


def test_images_that_share_a_key_are_refused_before_anything_is_matched(features: Path) -> None:
    with pytest.raises(ValueError, match="same key"):
        run(features, [Pair("a.jpg", "sub/e.jpg"), Pair("a.jpg", "sub-e.jpg")])
    assert not (features.parent / "matches.h5").exists()


def test_no_pairs_give_an_empty_file(features: Path) -> None:
    assert run(features, [])[0] == MatchingReport(0, 0.0, 0.0)
    with H5Reader(features.parent / "matches.h5") as reader:
        assert reader.names() == []


def test_missing_features_say_which_stage_to_run(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"features\.h5 does not exist: run the stage"):
        run(tmp_path / "features.h5", PAIRS)


def test_features_with_numbers_that_are_not_finite_are_refused_with_the_name_of_the_photo(tmp_path: Path) -> None:
    features = write_features(tmp_path / "features.h5")
    with h5py.File(features, "r+") as file:
        file[f"{NAMES[1]}/descriptors"][0, 0] = np.nan
    with pytest.raises(ValueError, match=r"cannot be matched: NaN or infinity in its descriptors"):
        run(features, [Pair(NAMES[0], NAMES[1])])


def test_images_without_keypoints_have_no_matches(tmp_path: Path) -> None:
    none = Features(np.zeros((0, 2), np.float32), np.zeros(0, np.float32), np.zeros((0, DIMENSIONS), np.float32), (9, 9))
    with ShardStore(tmp_path / "features.h5", {}) as store:
        for name, content in {"a.jpg": make_features("a.jpg"), "none.jpg": none, "void.jpg": none}.items():
            store.add(name, features_to_group(content), "")
        store.merge()
    pairs = [Pair("a.jpg", "none.jpg"), Pair("a.jpg", "void.jpg"), Pair("none.jpg", "void.jpg")]
    assert run(tmp_path / "features.h5", pairs)[0] == MatchingReport(3, 0.0, 0.0, num_computed=3, num_unmatched=3)
    for pair in pairs:
        assert stored_indices(tmp_path / "matches.h5", pair.name0, pair.name1) == []


def fails_at(call: int, error: BaseException) -> Counting:
    """A matcher that raises an error at the call of this number, counted from 0."""

    class Failing(Counting):
        def __call__(self, features0: Features, features1: Features) -> Matches:
            if len(self.seen) == call:
                raise error
            return super().__call__(features0, features1)

    # the class is part of the settings, and the matcher that completes the run is a Counting
    Failing.__module__, Failing.__qualname__ = Counting.__module__, Counting.__qualname__
    return Failing()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("out of memory")])
def test_an_interrupted_run_goes_on_where_it_stopped(features: Path, error: BaseException) -> None:
    with pytest.raises(type(error)):
        run(features, PAIRS, fails_at(3, error), num_workers=1)
    _, seen = run(features, PAIRS)
    assert set(names_of(PAIRS[3:])) <= set(seen) and len(seen) <= 4, "at most one pair was finished and not yet stored"
    match_pairs(features, PAIRS, features.parent / "reference.h5", Counting())
    assert (features.parent / "matches.h5").read_bytes() == (features.parent / "reference.h5").read_bytes()


@dataclasses.dataclass
class Fixed:
    """A matcher that always gives the same matches."""

    answer: Matches
    weights: tuple[WeightsRecord, ...] = ()

    def __call__(self, features0: Features, features1: Features) -> Matches:
        return self.answer


@pytest.mark.parametrize(
    "indices, num_scores, problem",
    [
        ([[30, 0]], 1, r"largest indices \[30, 0\], but the images have \(30, 35\) keypoints"),
        ([[0, 35]], 1, "largest indices"),
        ([[-1, 0]], 1, "largest indices"),
        ([[0, 0]], 2, "shapes"),
        ([0, 0], 2, "shapes"),
    ],
)
def test_matches_that_do_not_fit_the_features_are_refused(features: Path, indices: list, num_scores: int, problem: str) -> None:
    answer = Matches(np.array(indices, np.int32), np.ones(num_scores, np.float32))
    with pytest.raises(ValueError, match=rf"a\.jpg and b\.jpg are not valid: .*{problem}"):
        match_pairs(features, PAIRS[:1], features.parent / "matches.h5", Fixed(answer))


def test_the_number_of_layers_is_reported_and_stored(features: Path) -> None:
    answer = Matches(np.zeros((1, 2), np.int32), np.ones(1, np.float32), stop_layer=5)
    report = match_pairs(features, PAIRS[:2], features.parent / "matches.h5", Fixed(answer))
    assert report == MatchingReport(2, 1.0, 5.0, num_computed=2)
    with H5Reader(features.parent / "matches.h5") as reader:
        found = reader.find_matches("a.jpg", "b.jpg")
        assert found is not None and found.stop_layer == 5


def test_several_pairs_are_matched_at_a_time(features: Path) -> None:
    """Two workers wait for each other, so a single worker would time out."""
    meeting = threading.Barrier(2, timeout=10)

    class Meeting(Counting):
        def __call__(self, features0: Features, features1: Features) -> Matches:
            meeting.wait()
            return super().__call__(features0, features1)

    assert run(features, PAIRS, Meeting(), num_workers=2)[0].num_computed == 6


def write_hloc_features(path: Path, seeds: dict[str, int]) -> Path:
    with h5py.File(path, "w") as file:
        for name in NAMES:
            features = make_features(name, seeds.get(name, 0))
            group = file.create_group(name)
            group.create_dataset("keypoints", data=features.keypoints.astype(np.float16))
            group.create_dataset("keypoint_scores", data=features.scores.astype(np.float16))
            group.create_dataset("descriptors", data=features.descriptors.T.astype(np.float16))
            group.create_dataset("image_size", data=np.array(features.image_size))
    return path


def test_features_of_hloc_are_matched_and_only_changed_ones_are_matched_again(tmp_path: Path) -> None:
    path = write_hloc_features(tmp_path / "feats.h5", {})
    run(path, PAIRS)
    assert stored_indices(tmp_path / "matches.h5", "a.jpg", "b.jpg") == right_matches("a.jpg", "b.jpg")
    assert run(path, PAIRS)[1] == []
    write_hloc_features(path, {"b.jpg": 1})
    assert run(path, PAIRS)[1] == [pair for pair in names_of(PAIRS) if "b.jpg" in pair]


# --- batches ---------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Prepared:
    features: Features
    num_bytes: int = 1000


class InBatches:
    """Gives the matches of `Counting`, for batches of up to four pairs; counts prepared images and sizes of batches."""

    batch_size = 4

    def __init__(self) -> None:
        self.matcher = Counting()
        self.options, self.weights = self.matcher.options, self.matcher.weights
        self.prepared: collections.Counter[str] = collections.Counter()
        self.batch_sizes: list[int] = []

    def prepare(self, features: Features) -> Prepared:
        self.prepared[features.name] += 1
        return Prepared(features)

    def match_many(self, pairs: Sequence[tuple[Prepared, Prepared]]) -> list[Matches]:
        self.batch_sizes.append(len(pairs))
        return [self.matcher(image0.features, image1.features) for image0, image1 in pairs]


InBatches.__module__, InBatches.__qualname__ = (
    Counting.__module__,
    Counting.__qualname__,
)  # the file has the same settings


@pytest.mark.parametrize("num_workers", [1, 3])
def test_a_batched_matcher_prepares_each_image_once_and_gives_the_bytes_of_single_pairs(features: Path, num_workers: int) -> None:
    matcher = InBatches()
    report = match_pairs(features, PAIRS, features.parent / "matches.h5", matcher, num_workers=num_workers)
    assert matcher.prepared == dict.fromkeys(NAMES, 1)
    assert sorted(matcher.batch_sizes) == [2, 4]
    assert report == match_pairs(features, PAIRS, features.parent / "reference.h5", Counting())
    assert (features.parent / "matches.h5").read_bytes() == (features.parent / "reference.h5").read_bytes()


class OnASmallGpu(InBatches):
    """Has memory for `room` pairs at a time."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def match_many(self, pairs: Sequence[tuple[Prepared, Prepared]]) -> list[Matches]:
        if len(pairs) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore")
        return super().match_many(pairs)


OnASmallGpu.__module__, OnASmallGpu.__qualname__ = Counting.__module__, Counting.__qualname__


def test_a_batch_that_does_not_fit_a_gpu_is_matched_in_parts(features: Path) -> None:
    matcher = OnASmallGpu(1)
    report = match_pairs(features, PAIRS, features.parent / "matches.h5", matcher, num_workers=1)
    assert matcher.batch_sizes == [1] * 6
    assert report == match_pairs(features, PAIRS, features.parent / "reference.h5", Counting())
    assert (features.parent / "matches.h5").read_bytes() == (features.parent / "reference.h5").read_bytes()


def test_an_error_says_what_to_do_if_a_gpu_is_too_small_for_one_pair(features: Path) -> None:
    message = r"too little memory for a pair \(CUDA out of memory\. Tried to allocate 2 GiB\.\): choose execution\.num_workers=1"
    with pytest.raises(MemoryError, match=message):
        match_pairs(features, PAIRS, features.parent / "matches.h5", OnASmallGpu(0), num_workers=1)


def test_images_that_do_not_fit_into_the_cache_are_prepared_again(features: Path) -> None:
    matcher = InBatches()
    match_pairs(features, PAIRS, features.parent / "matches.h5", matcher, num_workers=1, cache_mb=0.002)
    assert matcher.prepared.total() > len(NAMES) and set(matcher.prepared) == set(NAMES)
    assert stored_indices(features.parent / "matches.h5", *NAMES[2:]) == right_matches(*NAMES[2:])


def test_batches_hold_each_pair_once_in_an_order_that_rarely_reads_an_image_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the cache holds two groups, an image is read at most once for each group that it meets."""
    monkeypatch.setattr(stage, "GROUP", 5)
    pairs = [Pair(*names) for names in itertools.combinations([f"{i:02d}" for i in range(40)], 2)]
    batches = stage._batches(pairs, InBatches())
    assert [len(batch) for batch in batches] == [4] * (len(pairs) // 4)
    in_order = list(itertools.chain(*batches))
    assert sorted(in_order) == pairs
    kept: list[str] = []  # the most recently used last
    num_reads = 0
    for name in itertools.chain(*names_of(in_order)):
        num_reads += name not in kept
        kept = [*(other for other in kept if other != name), name][-10:]
    assert num_reads <= 40 * 8


# --- executors -------------------------------------------------------------------------------------------------------------


class Careless(Counting):
    """Fails at the pairs of the last image while the environment says so."""

    def __call__(self, features0: Features, features1: Features) -> Matches:
        if "CARELESS" in os.environ and features1.name == NAMES[3]:
            raise RuntimeError(f"no memory for {features0.name}")
        return super().__call__(features0, features1)


def test_two_processes_write_the_bytes_of_threads(features: Path) -> None:
    matcher = Counting()
    executor = ProcessExecutor(["cpu", "cpu"], 1)
    report = match_pairs(features, PAIRS, features.parent / "matches.h5", matcher, executor=executor)
    assert matcher.seen == [], "this process matched nothing"
    assert report == match_pairs(features, PAIRS, features.parent / "reference.h5", matcher)
    assert (features.parent / "matches.h5").read_bytes() == (features.parent / "reference.h5").read_bytes()
    again = match_pairs(features, PAIRS, features.parent / "matches.h5", matcher, executor=executor)
    assert again == dataclasses.replace(report, num_computed=0)


@pytest.mark.parametrize("executor", [ThreadExecutor(1), ProcessExecutor(["cpu"], 1)], ids=["threads", "processes"])
def test_an_error_ends_the_run_and_keeps_the_stored_pairs(
    features: Path, executor: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CARELESS", "1")
    with pytest.raises(RuntimeError, match=r"no memory for a\.jpg"):
        match_pairs(features, PAIRS, features.parent / "matches.h5", Careless(), executor=executor)
    monkeypatch.delenv("CARELESS")
    _, seen = run(features, PAIRS, Careless())
    assert set(names_of(PAIRS[2:])) <= set(seen) and len(seen) <= 5, "at most one pair was finished and not yet stored"
