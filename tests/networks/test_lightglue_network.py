"""LightGlue against its paper and against transformers' implementation, with random weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightglue_inputs import Points, match, random_network, random_points
from torch import Tensor

from sfm_lightglue.engine.lightglue import LightGlueEngine
from sfm_lightglue.networks.lightglue import MatchAssignment, PositionalEncoding, normalize_keypoints, rotate
from sfm_lightglue.networks.lightglue_checkpoints import convert_state_dict, load_lightglue
from sfm_lightglue.networks.lightglue_settings import LightGlueSettings

ALL_LAYERS = {"depth_confidence": -1, "width_confidence": -1}


@pytest.fixture(scope="module")
def hugging_face() -> torch.nn.Module:
    """LightGlue of transformers with the random weights of `random_network`, converted to its format by hand."""
    transformers = pytest.importorskip("transformers")
    detector = transformers.SuperPointConfig(descriptor_decoder_dim=48)
    sizes = {"descriptor_dim": 64, "num_hidden_layers": 4, "num_attention_heads": 2}
    config = transformers.LightGlueConfig(keypoint_detector_config=detector, filter_threshold=0.01, **sizes)
    network = transformers.LightGlueForKeypointMatching(config).eval()
    ours = random_network().state_dict()
    state = {key: value for key, value in network.state_dict().items() if key.startswith("keypoint_detector.")}
    state |= {"input_projection.weight": ours["input_proj.weight"], "input_projection.bias": ours["input_proj.bias"]}
    state["positional_encoder.projector.weight"] = ours["posenc.Wr.weight"]
    for i in range(4):
        for kind in ("weight", "bias"):
            block = f"transformers.{i}"
            qkv = ours[f"{block}.self_attn.Wqkv.{kind}"]
            state |= {f"transformer_layers.{i}.self_attention.{p}_proj.{kind}": qkv[k::3] for k, p in enumerate("qkv")}
            cross = ("q", "to_qk"), ("k", "to_qk"), ("v", "to_v"), ("o", "to_out")
            for theirs, name in cross:
                key = f"transformer_layers.{i}.cross_attention.{theirs}_proj.{kind}"
                state[key] = ours[f"{block}.cross_attn.{name}.{kind}"]
            state[f"transformer_layers.{i}.self_attention.o_proj.{kind}"] = ours[f"{block}.self_attn.out_proj.{kind}"]
            for part in ("self", "cross"):
                for theirs, name in (("fc1", "ffn.0"), ("layer_norm", "ffn.1"), ("fc2", "ffn.3")):
                    state[f"transformer_layers.{i}.{part}_mlp.{theirs}.{kind}"] = ours[f"{block}.{part}_attn.{name}.{kind}"]
            state[f"match_assignment_layers.{i}.final_projection.{kind}"] = ours[f"log_assignment.{i}.final_proj.{kind}"]
            state[f"match_assignment_layers.{i}.matchability.{kind}"] = ours[f"log_assignment.{i}.matchability.{kind}"]
            if i < 3:
                state[f"token_confidence.{i}.token.{kind}"] = ours[f"token_confidence.{i}.token.0.{kind}"]
    network.load_state_dict(state)
    return network


@pytest.mark.parametrize("thresholds", [ALL_LAYERS, {"depth_confidence": 0.99, "width_confidence": 0.7}], ids=["all", "adaptive"])
@torch.no_grad()
def test_random_weights_match_as_in_transformers(hugging_face: torch.nn.Module, thresholds: dict[str, float]) -> None:
    for name, value in thresholds.items():
        setattr(hugging_face, name, value)
    ours = load_lightglue(hugging_face.state_dict(), replace(random_network().settings, **thresholds))
    points0, points1 = random_points()
    result = match(ours, points0, points1)

    # transformers needs the same number of points in both images, so the smaller image is padded and masked.
    size0, size1 = len(points0.keypoints), len(points1.keypoints)
    pad = (0, 0, 0, size0 - size1)
    keypoints = torch.stack([points0.keypoints, F.pad(points1.keypoints, pad)])[None]
    descriptors = torch.stack([points0.descriptors, F.pad(points1.descriptors, pad)])[None]
    mask = torch.arange(size0) < torch.tensor([[[size0], [size1]]])
    matches, scores, prune, _, _ = hugging_face._match_image_pair(keypoints, descriptors, 300, 400, mask=mask.int())
    matches, scores, prune = (values.reshape(2, -1) for values in (matches, scores, prune))
    for i, size in enumerate((size0, size1)):
        assert torch.equal(getattr(result, f"matches{i}"), matches[i, :size].long())
        torch.testing.assert_close(getattr(result, f"scores{i}"), scores[i, :size], atol=1e-4, rtol=0)
        assert torch.equal(getattr(result, f"prune{i}"), prune[i, :size].long())
    assert (result.matches0 > -1).sum() > 20
    if thresholds != ALL_LAYERS:
        assert (result.prune0 < result.stop_layer).any()


def test_log_assignment_is_the_papers_equation() -> None:
    torch.manual_seed(0)
    head = MatchAssignment(16)
    x0, x1 = torch.randn(2, 5, 16), torch.randn(2, 7, 16)
    result = head(x0, x1).detach().double().exp().numpy()
    weights = {key: value.double().numpy() for key, value in head.state_dict().items()}
    for b in range(2):
        states = x0[b].double().numpy(), x1[b].double().numpy()
        projected = [x @ weights["final_proj.weight"].T + weights["final_proj.bias"] for x in states]
        logits = [(x @ weights["matchability.weight"].T + weights["matchability.bias"])[:, 0] for x in states]
        sigma0, sigma1 = (1 / (1 + np.exp(-z)) for z in logits)
        similarity = np.exp(projected[0] @ projected[1].T / 4)  # 4 = sqrt(16)
        softmaxes = similarity / similarity.sum(1, keepdims=True) * similarity / similarity.sum(0)
        np.testing.assert_allclose(result[b, :-1, :-1], sigma0[:, None] * sigma1 * softmaxes, rtol=1e-4)
        np.testing.assert_allclose(result[b, :-1, -1], 1 - sigma0, rtol=1e-5)
        np.testing.assert_allclose(result[b, -1, :-1], 1 - sigma1, rtol=1e-5)


def test_rotary_encoding_depends_on_relative_positions_alone() -> None:
    torch.manual_seed(0)
    encoding = PositionalEncoding(2, 8)
    query, key = torch.randn(1, 2, 6, 8), torch.randn(1, 2, 6, 8)
    positions = torch.rand(1, 6, 2)

    def similarity(shift: float) -> Tensor:
        angles = encoding(positions + shift)
        return rotate(query, angles) @ rotate(key, angles).mT

    torch.testing.assert_close(similarity(0.3), similarity(0), atol=1e-5, rtol=0)
    assert not torch.allclose(similarity(0), query @ key.mT, atol=0.1)


def test_the_longer_side_spans_minus_one_to_one() -> None:
    corners = torch.tensor([[[0.0, 0.0], [400.0, 200.0], [200.0, 100.0]]])
    expected = torch.tensor([[[-1.0, -0.5], [1.0, 0.5], [0.0, 0.0]]])
    assert torch.equal(normalize_keypoints(corners, torch.tensor([[400, 200]])), expected)


@pytest.mark.parametrize("thresholds", [ALL_LAYERS, {"depth_confidence": 0.99, "width_confidence": 0.7}], ids=["all", "adaptive"])
def test_permuting_keypoints_permutes_the_matches(thresholds: dict[str, float]) -> None:
    network = random_network(**thresholds)
    points0, points1 = random_points()
    result = match(network, points0, points1)
    order = torch.randperm(len(points0.keypoints), generator=torch.Generator().manual_seed(3))
    permuted = Points(points0.keypoints[order], points0.descriptors[order], points0.size)
    other = match(network, permuted, points1)
    assert torch.equal(other.matches0, result.matches0[order])
    torch.testing.assert_close(other.scores0, result.scores0[order], atol=1e-5, rtol=0)
    assert torch.equal(other.prune0, result.prune0[order])


@pytest.mark.parametrize("thresholds", [ALL_LAYERS, {"depth_confidence": 0.99, "width_confidence": 0.7}], ids=["all", "adaptive"])
def test_swapping_the_images_swaps_the_matches(thresholds: dict[str, float]) -> None:
    network = random_network(**thresholds)
    points0, points1 = random_points()
    result, swapped = match(network, points0, points1), match(network, points1, points0)
    assert torch.equal(swapped.matches1, result.matches0)
    assert torch.equal(swapped.matches0, result.matches1)
    assert torch.equal(swapped.prune1, result.prune0)
    torch.testing.assert_close(swapped.scores0, result.scores1, atol=1e-5, rtol=0)


def test_matches_and_scores_of_the_two_images_agree() -> None:
    result = match(random_network(), *random_points())
    matched0 = (result.matches0 > -1).nonzero()[:, 0]
    assert torch.equal(result.matches1[result.matches0[matched0]], matched0)
    assert torch.equal(result.scores1[result.matches0[matched0]], result.scores0[matched0])
    assert (result.matches1 > -1).sum() == len(matched0) > 20
    assert (result.scores0[matched0] > 0.01).all()


def test_forward_gives_the_matches_of_all_layers_without_pruning() -> None:
    network = random_network(**ALL_LAYERS)
    points0, points1 = random_points()
    size = torch.tensor([[400, 300]])
    inputs = (t[None] for t in (points0.keypoints, points1.keypoints, points0.descriptors, points1.descriptors))
    with torch.no_grad():
        output = network(*inputs, size, size)
        assignment = network.log_assignment[-1](output.descriptors0[-1], output.descriptors1[-1])[0, :-1, :-1]
    result = match(network, points0, points1)
    assert len(output.descriptors0) == len(output.descriptors1) == result.stop_layer == 4
    matched0 = (result.matches0 > -1).nonzero()[:, 0]
    assert torch.equal(assignment.argmax(dim=1)[matched0], result.matches0[matched0])
    torch.testing.assert_close(assignment.max(dim=1).values[matched0].exp(), result.scores0[matched0])


@pytest.mark.parametrize("thresholds", [ALL_LAYERS, {"depth_confidence": 0.99, "width_confidence": 0.7}], ids=["all", "adaptive"])
def test_a_projection_between_equal_sizes_is_applied_in_the_network_and_in_the_engine(thresholds: dict[str, float]) -> None:
    network = random_network(input_dim=64, project_input=True, **thresholds)
    without = random_network(input_dim=64, **thresholds)
    state = network.state_dict()
    weight, bias = state.pop("input_proj.weight"), state.pop("input_proj.bias")
    without.load_state_dict(state)
    points0, points1 = random_points(input_dim=64)
    expected = match(
        without, *(replace(points, descriptors=points.descriptors @ weight.T + bias) for points in (points0, points1))
    )
    result = match(network, points0, points1)
    engine = LightGlueEngine(network)
    (found,) = engine.match_many([(engine.prepare(*vars(points0).values()), engine.prepare(*vars(points1).values()))])
    matched0 = (expected.matches0 > -1).nonzero()[:, 0]
    assert len(matched0) > 5
    assert torch.equal(result.matches0, expected.matches0) and result.stop_layer == found.stop_layer == expected.stop_layer
    assert torch.equal(found.indices, torch.stack([matched0, expected.matches0[matched0]], dim=1))
    torch.testing.assert_close(found.scores, expected.scores0[matched0], atol=1e-4, rtol=0)


@torch.no_grad()
def test_under_autocast_positions_and_states_are_not_rounded() -> None:
    """The layers of this network add nothing, so its states are the first states."""
    network = random_network()
    for layer in network.transformers:
        for block in (layer.self_attn, layer.cross_attn):
            block.ffn[3].weight.zero_()
            block.ffn[3].bias.zero_()
    inputs, size = (
        [t[None] for points in random_points() for t in (points.keypoints, points.descriptors)],
        torch.tensor([[400, 300]]),
    )
    keypoints0, descriptors0, keypoints1, descriptors1 = inputs
    with torch.autocast("cpu", torch.bfloat16):
        output = network(keypoints0, keypoints1, descriptors0, descriptors1, size, size)
    expected, _ = network.embed(keypoints0, descriptors0, size, None)
    assert torch.equal(output.descriptors0[-1], expected)


def test_each_pair_of_a_batch_is_computed_alone() -> None:
    network = random_network()
    points0, points1 = random_points()
    sizes = torch.tensor([[400, 300], [300, 500]])
    batch = [
        torch.stack([t, t.flip(0)]) for t in (points0.keypoints, points1.keypoints, points0.descriptors, points1.descriptors)
    ]
    with torch.no_grad():
        both = network(*batch, sizes, sizes)
        second = network(*(t[1:] for t in batch), sizes[1:], sizes[1:])
    torch.testing.assert_close(both.descriptors0[-1][1:], second.descriptors0[-1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("num0", "num1"), [(0, 5), (5, 0), (0, 0)])
def test_an_image_without_keypoints_has_no_matches(num0: int, num1: int) -> None:
    points0, points1 = (Points(torch.rand(n, 2), torch.rand(n, 48), (400, 300)) for n in (num0, num1))
    result = match(random_network(), points0, points1)
    assert result.matches0.tolist() == [-1] * num0
    assert result.matches1.tolist() == [-1] * num1
    assert result.scores0.tolist() == [0] * num0
    assert result.matches0.dtype == result.matches1.dtype == torch.int64
    assert result.stop_layer == 0


def test_one_keypoint_in_each_image_can_match() -> None:
    points = Points(torch.tensor([[10.0, 20.0]]), torch.rand(1, 48), (400, 300))
    result = match(random_network(filter_threshold=0.0), points, points)
    assert result.matches0.tolist() == result.matches1.tolist() == [0]


def test_dropping_all_points_gives_no_matches() -> None:
    network = random_network(depth_confidence=1.0)  # the fraction is never above 1: the network never stops early
    with torch.no_grad():
        network.token_confidence[1].token[0].bias.fill_(100)
        network.log_assignment[1].matchability.bias.fill_(-1000)
    result = match(network, *random_points())
    assert result.stop_layer == 2
    assert (result.matches0 == -1).all() and (result.matches1 == -1).all()
    assert (result.scores0 == 0).all()
    assert (result.prune0 <= 2).all()


def test_inputs_are_not_changed() -> None:
    points0, points1 = random_points()
    copies = [t.clone() for p in (points0, points1) for t in (p.keypoints, p.descriptors)]
    match(random_network(), points0, points1)
    assert all(map(torch.equal, copies, (t for p in (points0, points1) for t in (p.keypoints, p.descriptors))))


def test_gradients_reach_all_weights_and_confidence_leaves_the_states_alone() -> None:
    network = random_network().train()
    points0, points1 = random_points(24)
    size = torch.tensor([[400, 300]])
    inputs = (t[None] for t in (points0.keypoints, points1.keypoints, points0.descriptors, points1.descriptors))
    output = network(*inputs, size, size)
    states = list(zip(output.descriptors0, output.descriptors1, strict=True))
    confidence = sum(head(x0).sum() for head, (x0, _) in zip(network.token_confidence, states, strict=False))
    touched = torch.autograd.grad(confidence, list(network.transformers.parameters()), retain_graph=True, allow_unused=True)
    assert all(gradient is None for gradient in touched)
    loss = -sum(head(*x).sum() for head, x in zip(network.log_assignment, states, strict=True)) + confidence
    loss.backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name


def test_half_precision_descriptors_are_matched_in_the_precision_of_the_weights() -> None:
    points0, points1 = random_points()
    half0, half1 = (replace(p, descriptors=p.descriptors.half()) for p in (points0, points1))
    full0, full1 = (replace(p, descriptors=p.descriptors.float()) for p in (half0, half1))
    network = random_network()
    assert torch.equal(match(network, half0, half1).scores0, match(network, full0, full1).scores0)


def test_features_of_another_kind_are_refused() -> None:
    points = Points(torch.rand(3, 2), torch.rand(3, 256), (400, 300))
    with pytest.raises(ValueError, match="descriptors have size 256, this LightGlue was trained for 48"):
        match(random_network(), points, points)
    points = Points(torch.rand(3, 2), torch.rand(3, 48), (400, 300))
    with pytest.raises(ValueError, match="needs scales and orientations"):
        match(random_network(add_scale_orientation=True), points, points)


def test_heads_that_cannot_rotate_pairs_of_channels_are_refused() -> None:
    with pytest.raises(ValueError, match="descriptor_dim=96 must be a multiple of 2 x num_heads=5"):
        LightGlueSettings(input_dim=64, descriptor_dim=96, num_heads=5)


def test_weights_loaded_twice_are_the_same_network() -> None:
    state = random_network().state_dict()
    assert all(torch.equal(value, state[key]) for key, value in convert_state_dict(state).items())
