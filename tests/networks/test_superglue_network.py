"""SuperGlue against its paper and against transformers' implementation, with random weights."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfm_lightglue.networks.superglue import (
    SuperGlue,
    SuperGlueMatches,
    SuperGlueSettings,
    log_optimal_transport,
    log_sinkhorn,
    normalize_keypoints,
)
from sfm_lightglue.networks.superglue_checkpoints import convert_state_dict, load_superglue

SMALL = SuperGlueSettings(48, keypoint_encoder_dims=(8, 16), num_layers=4, num_heads=4, match_threshold=0.05)
PUBLISHED = SuperGlueSettings()


@dataclass(frozen=True)
class Points:
    """Input of one image."""

    keypoints: Tensor
    descriptors: Tensor
    scores: Tensor
    size: tuple[int, int] = (400, 300)


def match(network: SuperGlue, points0: Points, points1: Points) -> SuperGlueMatches:
    names = "keypoints", "descriptors", "scores", "size"
    return network.match(*(getattr(points, name) for name in names for points in (points0, points1)))


def log_assignment(network: SuperGlue, points0: Points, points1: Points) -> Tensor:
    """(m + 1, n + 1)."""
    names = "keypoints", "descriptors", "scores"
    inputs = [getattr(points, name)[None] for name in names for points in (points0, points1)]
    return network(*inputs, torch.tensor([points0.size]), torch.tensor([points1.size]))[0].detach()


def related(num0: int, num1: int, dim: int) -> tuple[Points, Points]:
    """Image 1 has some points of image 0, moved, reordered and with noisy descriptors, and some other points."""
    generator = torch.Generator().manual_seed(num0 + 7 * num1)
    num_common = 3 * min(num0, num1) // 4
    both = []
    common = torch.rand(num_common, 2, generator=generator), torch.randn(num_common, dim, generator=generator)
    for num in (num0, num1):
        order = torch.randperm(num, generator=generator)
        others = torch.rand(num - num_common, 2, generator=generator), torch.randn(num - num_common, dim, generator=generator)
        positions, descriptors = (torch.cat(parts)[order] for parts in zip(common, others, strict=True))
        keypoints = (0.9 * positions + 0.02 * torch.rand(num, 2, generator=generator)) * torch.tensor([400.0, 300.0])
        noisy = F.normalize(descriptors + 0.1 * torch.randn(num, dim, generator=generator), dim=1)
        both.append(Points(keypoints, noisy, torch.rand(num, generator=generator)))
    return both[0], both[1]


@torch.no_grad()
def random_hugging_face(settings: SuperGlueSettings) -> nn.Module:
    """SuperGlue of transformers with random weights that find matches without training."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.SuperGlueConfig(
        keypoint_detector_config=transformers.SuperPointConfig(encoder_hidden_sizes=[4, 4, 4, 4], decoder_hidden_size=4),
        hidden_size=settings.descriptor_dim,
        keypoint_encoder_sizes=list(settings.keypoint_encoder_dims),
        gnn_layers_types=["self", "cross"] * (settings.num_layers // 2),
        num_attention_heads=settings.num_heads,
        sinkhorn_iterations=settings.sinkhorn_iterations,
        matching_threshold=settings.match_threshold,
        initializer_range=0.5 / settings.descriptor_dim**0.5,
        attn_implementation="eager",
    )
    network = transformers.SuperGlueForKeypointMatching(config).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d):  # like after training: no zeros and ones
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.2, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.bias, std=0.1)
    for layer in network.gnn.layers:
        layer.mlp[-1].weight *= 0.3  # the descriptors change little
    network.keypoint_encoder.encoder[-1].weight *= 0.3
    nn.init.orthogonal_(network.final_projection.final_proj.weight, gain=9)
    network.bin_score.fill_(2.3)
    return network


def original_from_hugging_face(state: dict[str, Tensor], settings: SuperGlueSettings) -> dict[str, Tensor]:
    """The same weights in the format of the original code."""
    dim, num_heads = settings.descriptor_dim, settings.num_heads
    # Order of Hugging Face's channels in the original: channel c = (channel of the head) * num_heads + head.
    interleaved = [(c % num_heads) * (dim // num_heads) + c // num_heads for c in range(dim)]
    original = {"bin_score": state["bin_score"]}

    def put(name: str, theirs: str, rows: list[int] | None = None, columns: list[int] | None = None) -> None:
        weight, bias = state[f"{theirs}.weight"], state[f"{theirs}.bias"]
        weight, bias = (weight, bias) if rows is None else (weight[rows], bias[rows])
        original[f"{name}.weight"] = (weight if columns is None else weight[:, columns])[:, :, None].clone()
        original[f"{name}.bias"] = bias

    def put_mlp(name: str, theirs: str, num_hidden: int) -> None:
        for i in range(num_hidden):
            put(f"{name}.{3 * i}", f"{theirs}.{i}.linear")
            for part in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
                original[f"{name}.{3 * i + 1}.{part}"] = state[f"{theirs}.{i}.batch_norm.{part}"]
        put(f"{name}.{3 * num_hidden}", f"{theirs}.{num_hidden}")

    put_mlp("kenc.encoder", "keypoint_encoder.encoder", len(settings.keypoint_encoder_dims))
    for i in range(settings.num_layers):
        ours, theirs = f"gnn.layers.{i}", f"gnn.layers.{i}.attention"
        for number, part in enumerate(("query", "key", "value")):
            put(f"{ours}.attn.proj.{number}", f"{theirs}.self.{part}", rows=interleaved)
        put(f"{ours}.attn.merge", f"{theirs}.output.dense", columns=interleaved)
        put_mlp(f"{ours}.mlp", f"gnn.layers.{i}.mlp", 1)
    put("final_proj", "final_projection.final_proj")
    return original


@pytest.fixture(scope="module")
def hugging_face() -> nn.Module:
    return random_hugging_face(SMALL)


@torch.no_grad()
def transformers_matches(network: nn.Module, points0: Points, points1: Points) -> list[tuple[Tensor, Tensor]]:
    """(matches, scores) of each image. transformers needs the same number of points in both images: padded and masked."""
    sizes = [len(points.keypoints) for points in (points0, points1)]

    def pad(values: Tensor) -> Tensor:
        return F.pad(values, (0, 0) * (values.ndim - 1) + (0, max(sizes) - len(values)))

    names = "keypoints", "descriptors", "scores"
    inputs = [torch.stack([pad(getattr(points, name)) for points in (points0, points1)])[None] for name in names]
    mask = torch.arange(max(sizes)) < torch.tensor(sizes)[None, :, None]
    width, height = points0.size
    matches, scores, *_ = network._match_image_pair(*inputs, height, width, mask=mask.int())
    return [(matches.reshape(2, -1)[i, :size].long(), scores.reshape(2, -1)[i, :size]) for i, size in enumerate(sizes)]


def assert_matches_as_in_transformers(network: SuperGlue, hugging_face: nn.Module, num0: int, num1: int) -> None:
    dtype = network.bin_score.dtype
    points0, points1 = (
        Points(points.keypoints.to(dtype), points.descriptors.to(dtype), points.scores.to(dtype))
        for points in related(num0, num1, network.settings.descriptor_dim)
    )
    hugging_face.config.sinkhorn_iterations = network.settings.sinkhorn_iterations
    for first, second, swapped in ((points0, points1, False), (points1, points0, True)):
        result = match(network, first, second)
        expected = transformers_matches(hugging_face, first, second)[0]
        assert torch.equal(result.matches0, expected[0]), swapped
        accepted = result.matches0 > -1  # transformers sets the scores of other points to 0
        torch.testing.assert_close(result.scores0 * accepted, expected[1].float(), atol=1e-4, rtol=0)
        assert accepted.sum() >= min(num0, num1) // 2


@pytest.mark.parametrize("num0, num1, iterations", [(60, 60, 5), (60, 60, 100), (100, 37, 400), (2, 50, 400), (1, 1, 100)])
def test_random_weights_match_as_in_transformers(hugging_face: nn.Module, num0: int, num1: int, iterations: int) -> None:
    # If the numbers differ, transformers also scales the padding. It has the same limit, and is 8e-4 away after 100 iterations.
    network = load_superglue(hugging_face.state_dict(), replace(SMALL, sinkhorn_iterations=iterations))
    assert_matches_as_in_transformers(network, hugging_face, num0, num1)


def test_the_published_architecture_matches_as_in_transformers() -> None:
    """In float64: after 18 layers, float32 differs by up to 0.75 of the tolerance on processors without AVX."""
    hugging_face = random_hugging_face(PUBLISHED).double()
    network = load_superglue(hugging_face.state_dict(), PUBLISHED).double()
    assert_matches_as_in_transformers(network, hugging_face, 300, 300)
    assert sum(value.numel() for value in network.parameters()) == pytest.approx(12e6, rel=0.01)  # section 4


def test_original_weights_are_the_same_network(hugging_face: nn.Module) -> None:
    state = hugging_face.state_dict()
    original = original_from_hugging_face(state, SMALL)
    expected = load_superglue(state, SMALL).state_dict()
    found = load_superglue(original, SMALL).state_dict()
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(found[key], value), key


def numpy_log_assignment(state: dict[str, Tensor], settings: SuperGlueSettings, images: tuple[Points, Points]) -> np.ndarray:
    """The log assignment (m + 1, n + 1) by the paper's equations, in float64, from weights in the original's format."""
    weights = {key: value.double().numpy() for key, value in state.items()}

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        return x @ weights[f"{name}.weight"][:, :, 0].T + weights[f"{name}.bias"]

    def mlp(name: str, x: np.ndarray, num_hidden: int) -> np.ndarray:
        for i in range(num_hidden):
            mean, variance, gain, offset = (
                weights[f"{name}.{3 * i + 1}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
            )
            x = linear(f"{name}.{3 * i}", x)
            x = np.maximum((x - mean) / np.sqrt(variance + 1e-5) * gain + offset, 0)
        return linear(f"{name}.{3 * num_hidden}", x)

    def message(name: str, x: np.ndarray, source: np.ndarray) -> np.ndarray:
        query, key, value = (linear(f"{name}.proj.{i}", s) for i, s in enumerate((x, source, source)))
        heads, result = settings.num_heads, np.empty_like(query)
        for h in range(heads):
            exponentials = np.exp(query[:, h::heads] @ key[:, h::heads].T / np.sqrt(settings.descriptor_dim / heads))
            result[:, h::heads] = exponentials / exponentials.sum(1, keepdims=True) @ value[:, h::heads]
        return linear(f"{name}.merge", result)

    states = []
    for points in images:
        size = np.array(points.size)
        positions = (points.keypoints.double().numpy() - size / 2) / (0.7 * size.max())
        inputs = np.column_stack([positions, points.scores.double().numpy()])
        states.append(points.descriptors.double().numpy() + mlp("kenc.encoder", inputs, len(settings.keypoint_encoder_dims)))
    for i in range(settings.num_layers):
        sources = states if i % 2 == 0 else states[::-1]
        messages = [message(f"gnn.layers.{i}.attn", *both) for both in zip(states, sources, strict=True)]
        states = [x + mlp(f"gnn.layers.{i}.mlp", np.hstack([x, m]), 1) for x, m in zip(states, messages, strict=True)]
    projected0, projected1 = (linear("final_proj", x) for x in states)
    scores = np.pad(projected0 @ projected1.T / np.sqrt(settings.descriptor_dim), (0, 1), constant_values=weights["bin_score"])
    return np.log(scaled_in_turn(np.exp(scores), settings.sinkhorn_iterations))


def scaled_in_turn(matrix: np.ndarray, iterations: int) -> np.ndarray:
    """The matrix (m + 1, n + 1) with rows and columns scaled in turn to sum 1, and the last row and column to n and m."""
    m, n = matrix.shape[0] - 1, matrix.shape[1] - 1
    masses0, masses1 = np.append(np.ones(m), n), np.append(np.ones(n), m)
    for _ in range(iterations):
        matrix = matrix * (masses0 / matrix.sum(1))[:, None]
        matrix = matrix * (masses1 / matrix.sum(0))
    return matrix


@pytest.mark.parametrize("num0, num1", [(40, 55), (55, 3), (1, 1)])
def test_original_weights_compute_the_papers_equations(hugging_face: nn.Module, num0: int, num1: int) -> None:
    settings = replace(SMALL, sinkhorn_iterations=7)  # before convergence
    points0, points1 = related(num0, num1, 48)
    points1 = replace(points1, size=(350, 700))
    original = original_from_hugging_face(hugging_face.state_dict(), settings)
    result = log_assignment(load_superglue(original, settings), points0, points1)
    expected = numpy_log_assignment(original, settings, (points0, points1))
    np.testing.assert_allclose(result.exp().numpy(), np.exp(expected), atol=1e-4)
    exact = replace(points0, keypoints=points0.keypoints.double()), replace(points1, keypoints=points1.keypoints.double())
    result = log_assignment(load_superglue(original, settings).double(), *exact)
    np.testing.assert_allclose(result.numpy(), expected, atol=1e-5, rtol=0)  # the float32 weights were folded in float32


# --- the matching layer ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("iterations", [1, 2, 19, 20, 21, 57])
def test_every_number_of_iterations_gives_the_plain_iterates(iterations: int) -> None:
    generator = torch.Generator().manual_seed(0)
    similarity = 3 * torch.randn(2, 30, 20, generator=generator, dtype=torch.float64)
    result = log_optimal_transport(similarity, torch.tensor(1.5, dtype=torch.float64), iterations)
    for scores, assignment in zip(similarity, result, strict=True):
        matrix = np.exp(np.pad(scores.numpy(), (0, 1), constant_values=1.5))
        np.testing.assert_allclose(assignment.exp().numpy(), scaled_in_turn(matrix, iterations), rtol=1e-9)


@pytest.mark.parametrize("spread", [1, 30, 300])
def test_scores_of_any_size_neither_overflow_nor_vanish(spread: float) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = spread * torch.randn(1, 80, 61, generator=generator)
    masses0, masses1 = torch.zeros(80), torch.zeros(61)
    masses0[-1], masses1[-1] = np.log(60), np.log(79)
    result = log_sinkhorn(scores, masses0, masses1, 100)
    in_log_space = log_sinkhorn(scores.double(), masses0.double(), masses1.double(), 100, refresh=1)
    # Rounding: each score has an error of up to 4 * spread * 6e-8, and the scalings add up these errors.
    torch.testing.assert_close(result.double().exp(), in_log_space.exp(), atol=1e-5 * max(spread, 10), rtol=1e-4)


def test_points_share_their_mass_between_partners_and_the_dustbin() -> None:
    generator = torch.Generator().manual_seed(0)
    assignment = log_optimal_transport(torch.randn(1, 9, 7, generator=generator), torch.tensor(0.5), 100)[0].exp()
    torch.testing.assert_close(assignment.sum(1), torch.tensor([1.0] * 9 + [7.0]))
    torch.testing.assert_close(assignment.sum(0), torch.tensor([1.0] * 7 + [9.0]))


def test_the_matching_layer_has_gradients() -> None:
    generator = torch.Generator().manual_seed(0)
    similarity = torch.randn(1, 4, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    bin_score = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s, b: log_optimal_transport(s, b, 23), (similarity, bin_score))


# --- the network -------------------------------------------------------------------------------------------------------------


def test_positions_are_normalized_by_the_longer_side() -> None:
    keypoints = torch.tensor([[[200.0, 150.0], [0.0, 150.0], [400.0, 300.0]]])
    expected = torch.tensor([[[0.0, 0.0], [-1 / 1.4, 0.0], [1 / 1.4, 0.75 / 1.4]]])
    torch.testing.assert_close(normalize_keypoints(keypoints, torch.tensor([[400, 300]])), expected)


def test_a_batch_gives_what_its_pairs_give(hugging_face: nn.Module) -> None:
    network = load_superglue(hugging_face.state_dict(), SMALL)
    points0, points1 = related(20, 15, 48)
    pairs = [(points0, points1), (points0, replace(points1, size=(900, 800)))]
    names = "keypoints", "descriptors", "scores"
    inputs = [torch.stack([getattr(pair[i], name) for pair in pairs]) for name in names for i in (0, 1)]
    sizes = [torch.tensor([pair[i].size for pair in pairs]) for i in (0, 1)]
    result = network(*inputs, *sizes)
    for pair, assignment in zip(pairs, result, strict=True):
        torch.testing.assert_close(assignment, log_assignment(network, *pair), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(result[0], result[1], atol=1e-2)


@pytest.mark.parametrize("num0, num1", [(0, 5), (5, 0), (0, 0)])
def test_an_image_without_keypoints_has_no_matches(hugging_face: nn.Module, num0: int, num1: int) -> None:
    empty = [Points(torch.rand(num, 2), torch.rand(num, 48), torch.rand(num)) for num in (num0, num1)]
    result = match(load_superglue(hugging_face.state_dict(), SMALL), *empty)
    assert result.matches0.tolist() == [-1] * num0 and result.matches0.dtype == torch.int64
    assert result.scores0.tolist() == [0] * num0
    assert result.num_layers == 0


def test_the_threshold_drops_matches_but_not_their_scores(hugging_face: nn.Module) -> None:
    points = related(60, 60, 48)
    results = [
        match(load_superglue(hugging_face.state_dict(), replace(SMALL, match_threshold=t)), *points) for t in (0.0, 0.5, 0.999)
    ]
    accepted = [int((result.matches0 > -1).sum()) for result in results]
    assert accepted[0] > accepted[1] > accepted[2]
    for result, threshold in zip(results, (0.0, 0.5, 0.999), strict=True):
        assert torch.equal(result.scores0, results[0].scores0)
        assert torch.equal(result.matches0 > -1, result.scores0 > threshold)


def test_features_of_another_kind_are_refused() -> None:
    points = Points(torch.rand(3, 2), torch.rand(3, 128), torch.rand(3))
    with pytest.raises(ValueError, match="descriptors have size 128, this SuperGlue was trained for 48"):
        match(SuperGlue(SMALL), points, points)


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="descriptor_dim=50 must be a multiple of num_heads=4"):
        replace(SMALL, descriptor_dim=50)
    with pytest.raises(ValueError, match="sinkhorn_iterations must be at least 1, found 0"):
        replace(SMALL, sinkhorn_iterations=0)


# --- weights that do not fit -------------------------------------------------------------------------------------------------


def test_weights_loaded_twice_are_the_same_network(hugging_face: nn.Module) -> None:
    state = load_superglue(hugging_face.state_dict(), SMALL).state_dict()
    converted = convert_state_dict(state, SMALL.num_heads)
    assert converted.keys() == state.keys()
    assert all(torch.equal(value, converted[key]) for key, value in state.items())


@pytest.mark.parametrize(
    "dropped, named",
    [
        ("gnn.layers.2.attn.proj.1.bias", r"missing: layers\.2\.qkv\.bias"),
        ("gnn.layers.1.mlp.1.running_mean", r"unexpected: layers\.1\.mlp\.0\.norm\.bias"),
        ("kenc.encoder.3.weight", r"missing: keypoint_encoder\.1\.weight"),
        ("final_proj.weight", r"missing: final_proj\.weight"),
    ],
)
def test_a_missing_key_is_named(hugging_face: nn.Module, dropped: str, named: str) -> None:
    original = original_from_hugging_face(hugging_face.state_dict(), SMALL)
    del original[dropped]
    with pytest.raises(ValueError, match=rf"do not fit SuperGlue: .*{named}"):
        load_superglue(original, SMALL)


def test_weights_of_another_size_are_refused(hugging_face: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"unexpected: layers\.3\."):
        load_superglue(hugging_face.state_dict(), replace(SMALL, num_layers=3))
