"""Labels and losses of LightGlue's training, compared with loops over keypoints, and their effect on a small network."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sfm_lightglue.networks.lightglue import LightGlue, LightGlueOutput
from sfm_lightglue.networks.lightglue_checkpoints import settings_from_state_dict
from sfm_lightglue.networks.lightglue_settings import PUBLISHED_SETTINGS, LightGlueSettings
from sfm_lightglue.training.matching import (
    IGNORED,
    UNMATCHABLE,
    MatchingLossOptions,
    TruePositions,
    behind_map,
    label_keypoints,
    matching_losses,
    negative_log_likelihood,
    predict,
    prediction_scale,
    warm_start,
)

OPTIONS = MatchingLossOptions(match_px=3.0, no_match_px=5.0, confidence=0.5)


def truth(keypoints: Tensor, positions: Tensor, visible: Tensor | None = None, known: Tensor | None = None) -> TruePositions:
    """True positions from arrays (b, m, 2), or (m, 2) for one pair. All keypoints have the same scale."""
    if keypoints.ndim == 2:
        keypoints, positions = keypoints[None], positions[None]
    all_of_them = torch.ones(keypoints.shape[:2], dtype=torch.bool)
    given = (all_of_them if flags is None else flags.reshape(all_of_them.shape) for flags in (visible, known))
    return TruePositions(keypoints, positions, *given, torch.ones(keypoints.shape[:2]), torch.ones(keypoints.shape[:2]))


def labels_of(truth0: TruePositions, truth1: TruePositions) -> tuple[list, list]:
    labels0, labels1 = label_keypoints(truth0, truth1, OPTIONS.match_px, OPTIONS.no_match_px)
    assert labels0.dtype == labels1.dtype == torch.int64
    return labels0.tolist(), labels1.tolist()


def labels_by_loops(truth0: TruePositions, truth1: TruePositions, pair: int) -> tuple[list[int], list[int]]:
    """The definition of the labels, keypoint by keypoint."""
    (keypoints0, positions0, visible0, known0), (keypoints1, positions1, visible1, known1) = (
        [getattr(side, key)[pair].numpy() for key in ("keypoints", "positions", "visible", "known")] for side in (truth0, truth1)
    )
    size0, size1 = len(keypoints0), len(keypoints1)

    def error0(i: int, j: int) -> float:
        return float(np.linalg.norm(positions0[i] - keypoints1[j])) if visible0[i] and known0[i] else math.inf

    def error1(i: int, j: int) -> float:
        return float(np.linalg.norm(positions1[j] - keypoints0[i])) if visible1[j] and known1[j] else math.inf

    def error(i: int, j: int) -> float:
        return max(error0(i, j), error1(i, j))

    labels0, labels1 = [IGNORED] * size0, [IGNORED] * size1
    for i in range(size0):
        if known0[i] and min(error0(i, j) for j in range(size1)) > 5:
            labels0[i] = UNMATCHABLE
    for j in range(size1):
        if known1[j] and min(error1(i, j) for i in range(size0)) > 5:
            labels1[j] = UNMATCHABLE
    for i in range(size0):
        j = min(range(size1), key=lambda j: error(i, j))
        if error(i, j) < 3 and i == min(range(size0), key=lambda i: error(i, j)):
            labels0[i], labels1[j] = j, i
    return labels0, labels1


def test_labels_equal_those_of_loops_over_keypoints() -> None:
    generator = torch.Generator().manual_seed(0)
    b, m, n = 6, 40, 31
    keypoints0 = 60 * torch.rand(b, m, 2, generator=generator)
    positions0 = 1.3 * keypoints0 + 5
    keypoints1 = positions0[:, :n].flip(1) + 2 * torch.randn(b, n, 2, generator=generator)
    flags = [torch.rand(b, size, generator=generator) < share for size in (m, n) for share in (0.8, 0.85)]
    sides = truth(keypoints0, positions0, *flags[:2]), truth(keypoints1, (keypoints1 - 5) / 1.3, *flags[2:])
    labels0, labels1 = labels_of(*sides)
    for pair in range(b):
        assert (labels0[pair], labels1[pair]) == labels_by_loops(*sides, pair)
        for i, j in enumerate(labels0[pair]):
            assert j < 0 or labels1[pair][j] == i
        assert sum(j >= 0 for j in labels0[pair]) == sum(i >= 0 for i in labels1[pair])
    for labels in (labels0, labels1):
        assert min(sum(label == kind for each in labels for label in each) for kind in (UNMATCHABLE, IGNORED)) > 10
        assert sum(label >= 0 for each in labels for label in each) > 20


def test_only_one_of_several_keypoints_at_one_place_matches_and_the_others_are_ignored() -> None:
    twice = torch.tensor([[10.0, 10.0], [10.0, 10.0]])
    once = twice[:1]
    assert labels_of(truth(twice, twice), truth(once, once)) == ([[0, IGNORED]], [[0]])
    assert labels_of(truth(once, once), truth(twice, twice)) == ([[0]], [[0, IGNORED]])
    assert labels_of(truth(twice, twice), truth(twice, twice)) == ([[0, IGNORED]], [[0, IGNORED]])


def test_a_hidden_point_is_unmatchable_even_if_a_keypoint_is_at_its_position() -> None:
    points = torch.tensor([[10.0, 10.0], [50.0, 20.0]])
    hidden = torch.tensor([False, True])
    assert labels_of(truth(points, points, visible=hidden), truth(points, points, visible=hidden)) == (
        [[UNMATCHABLE, 1]],
        [[UNMATCHABLE, 1]],
    )
    one_sided = labels_of(truth(points, points, visible=hidden), truth(points, points))
    assert one_sided == ([[UNMATCHABLE, 1]], [[IGNORED, 1]])  # the visible one has a keypoint at its true position


def test_an_unknown_keypoint_is_ignored_and_nothing_matches_it() -> None:
    points = torch.tensor([[10.0, 10.0], [50.0, 20.0]])
    unknown = torch.tensor([False, True])
    nowhere = points.masked_fill(~unknown[:, None], math.nan)
    assert labels_of(truth(points, nowhere, known=unknown), truth(points, points)) == ([[IGNORED, 1]], [[IGNORED, 1]])
    assert labels_of(truth(points, points), truth(points, nowhere, known=unknown)) == ([[IGNORED, 1]], [[IGNORED, 1]])


def test_without_overlap_all_keypoints_are_unmatchable() -> None:
    points, outside = 100 * torch.rand(1, 7, 2), torch.full((1, 7, 2), math.inf)
    none = torch.zeros(7, dtype=torch.bool)
    labels = labels_of(truth(points, outside, visible=none), truth(points, outside, visible=none))
    assert labels == ([[UNMATCHABLE] * 7], [[UNMATCHABLE] * 7])


@pytest.mark.parametrize(("shift", "label"), [(2.9, 0), (3.1, IGNORED), (4.9, IGNORED), (5.1, UNMATCHABLE)])
def test_between_the_two_limits_a_keypoint_is_ignored(shift: float, label: int) -> None:
    points = torch.tensor([[400.0, 300.0]])
    moved = points + torch.tensor([shift, 0.0])
    assert labels_of(truth(points, points), truth(moved, moved)) == ([[label]], [[label]])


def test_the_larger_of_the_two_errors_decides() -> None:
    """Image 1 is magnified twice: an error of 2 px in image 0 is 4 px there."""
    points0, points1 = torch.tensor([[10.0, 10.0]]), torch.tensor([[24.0, 20.0]])
    assert labels_of(truth(points0, 2 * points0), truth(points1, points1 / 2)) == ([[IGNORED]], [[IGNORED]])


def test_keypoints_at_one_place_match_by_scale() -> None:
    """Image 0 has keypoints of scales 1 and 2 at one place. The partner shows it twice as large, with scales 1, 2 and 4."""
    points0 = torch.tensor([[[10.0, 10.0], [10.0, 10.0]]])
    points1 = torch.tensor([[[20.0, 20.0], [20.5, 20.0], [21.0, 20.0]]])
    sides = truth(points0, 2 * points0), truth(points1, points1 / 2)
    scales0, scales1 = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 2.0, 4.0]])
    truth0 = replace(sides[0], scales=scales0, mapped_scales=2 * scales0)
    truth1 = replace(sides[1], scales=scales1, mapped_scales=scales1 / 2)
    assert labels_of(truth0, truth1) == ([[1, 2]], [[IGNORED, 0, 1]])
    first = TruePositions(*(getattr(truth1, field.name)[:, :1] for field in fields(truth1)))
    assert labels_of(truth0, first) == ([[0, IGNORED]], [[0]])  # a match of another scale is better than none
    far = replace(truth0, keypoints=points0 + 4, positions=2 * (points0 + 4))
    assert labels_of(far, truth1) == (
        [[UNMATCHABLE] * 2],
        [[UNMATCHABLE] * 3],
    )  # the scale does not replace nearness


def test_near_points_are_distinguished_far_from_the_origin() -> None:
    """Distances from a matrix product would be wrong by more than these differences."""
    keypoints = torch.stack([torch.linspace(1500, 1510, 101), torch.full((101,), 1500.0)], dim=1)
    labels0, _ = labels_of(truth(keypoints, keypoints), truth(keypoints, keypoints))
    assert labels0 == [list(range(101))]


def test_thresholds_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(ValueError, match=r"match_px=6\.0, no_match_px=5\.0"):
        MatchingLossOptions(match_px=6.0, no_match_px=5.0, confidence=1.0)


def test_the_loss_of_an_assignment_written_by_hand() -> None:
    probability = torch.tensor(
        [
            [[0.5, 0.1, 0.2], [0.1, 0.3, 0.6], [0.2, 0.1, 0.7], [0.25, 0.4, 1.0]],
            [[0.9, 0.9, 0.8], [0.9, 0.9, 0.4], [0.9, 0.9, 0.9], [0.9, 0.3, 1.0]],
        ]
    )
    labels0 = torch.tensor([[0, UNMATCHABLE, UNMATCHABLE], [UNMATCHABLE, UNMATCHABLE, IGNORED]])
    labels1 = torch.tensor([[0, IGNORED], [IGNORED, UNMATCHABLE]])
    first = -math.log(0.5) - (math.log(0.6) + math.log(0.7)) / 2 / 2  # image 1 has no unmatchable keypoints
    second = -((math.log(0.8) + math.log(0.4)) / 2 + math.log(0.3)) / 2  # no matches
    found = negative_log_likelihood(probability.log(), labels0, labels1)
    assert found.item() == pytest.approx((first + second) / 2, rel=1e-6)


def small_network(num_layers: int = 2, seed: int = 0) -> LightGlue:
    torch.manual_seed(seed)
    settings = LightGlueSettings(64, descriptor_dim=64, num_layers=num_layers, num_heads=2, project_input=True)
    return LightGlue(settings)


def example(generator: torch.Generator, b: int = 8, n: int = 48) -> tuple[tuple[Tensor, ...], tuple[Tensor, Tensor]]:
    """Inputs of the network, and labels. Two thirds of the random points are seen again through a homography."""
    size = torch.tensor([[320.0, 240.0]]).repeat(b, 1)
    homography = torch.eye(3) + torch.randn(b, 3, 3, generator=generator) * torch.tensor(
        [[0.1, 0.1, 10], [0.1, 0.1, 10], [2e-4, 2e-4, 0]]
    )
    keypoints0 = torch.rand(b, n, 2, generator=generator) * size[:, None]
    positions0, back = mapped(homography, keypoints0), torch.linalg.inv(homography)
    kept = 2 * n // 3
    others = torch.rand(b, n - kept, 2, generator=generator) * size[:, None]
    keypoints1 = torch.cat([positions0[:, :kept], others], dim=1)
    descriptors0, descriptors1 = (F.normalize(torch.randn(b, n, 64, generator=generator), dim=2) for _ in range(2))
    noisy = descriptors0[:, :kept] + 0.08 * torch.randn(b, kept, 64, generator=generator)
    descriptors1[:, :kept] = F.normalize(noisy, dim=2)
    order = torch.randperm(n, generator=generator)
    keypoints1, descriptors1 = keypoints1[:, order], descriptors1[:, order]
    sides = truth(keypoints0, positions0), truth(keypoints1, mapped(back, keypoints1))
    labels = label_keypoints(*sides, OPTIONS.match_px, OPTIONS.no_match_px)
    return (keypoints0, keypoints1, descriptors0, descriptors1, size, size), labels


def mapped(homography: Tensor, points: Tensor) -> Tensor:
    result = torch.cat([points, torch.ones_like(points[..., :1])], dim=2) @ homography.mT
    return result[..., :2] / result[..., 2:]


def predictions_by_loops(log_assignment: np.ndarray) -> tuple[list[int], list[int]]:
    scores = np.exp(log_assignment[:-1, :-1])
    found0, found1 = [-1] * scores.shape[0], [-1] * scores.shape[1]
    for i in range(scores.shape[0]):
        for j in range(scores.shape[1]):
            if scores[i, j] > 0.1 and scores[i, j] == scores[i].max() == scores[:, j].max():
                found0[i], found1[j] = j, i
    return found0, found1


def sharpen(network: LightGlue) -> LightGlue:
    """Sets random weights that find some of the matches, and different ones in each layer."""
    with torch.no_grad():
        for assignment in network.log_assignment:
            torch.nn.init.orthogonal_(assignment.final_proj.weight, gain=2)
            torch.nn.init.normal_(assignment.matchability.weight, std=0.5)
            assignment.matchability.bias.fill_(1)
        network.input_proj.weight.copy_(8 * torch.eye(64))
    return network


def log_assignments(network: LightGlue, output: LightGlueOutput) -> list[np.ndarray]:
    states = zip(network.log_assignment, output.descriptors0, output.descriptors1, strict=True)
    return [head(x0, x1).detach().numpy() for head, x0, x1 in states]


def test_predictions_are_mutually_best_above_the_threshold() -> None:
    network, (inputs, _) = sharpen(small_network()), example(torch.Generator().manual_seed(1), b=3, n=20)
    log_assignment = network.log_assignment[1](*(states[1] for states in vars(network(*inputs)).values()))
    found = predict(log_assignment, 0.1)
    expected = [predictions_by_loops(of_pair) for of_pair in log_assignment.detach().numpy()]
    for side in range(2):
        assert found[side].tolist() == [each[side] for each in expected]
    assert 5 < (found[0] >= 0).sum() == (found[1] >= 0).sum() < 60


def test_losses_and_metrics_equal_those_of_loops_over_layers_pairs_and_keypoints() -> None:
    network = sharpen(small_network(num_layers=3))
    inputs, (labels0, labels1) = example(torch.Generator().manual_seed(2), b=3, n=20)
    labels0[:, ::4] = IGNORED
    output = network(*inputs)
    loss, metrics = matching_losses(network, output, labels0, labels1, OPTIONS)

    losses, predictions = [], []
    for log_assignment in log_assignments(network, output):
        of_pairs = []
        for of_pair, own0, own1 in zip(log_assignment, labels0.tolist(), labels1.tolist(), strict=True):
            matched = [of_pair[i, j] for i, j in enumerate(own0) if j >= 0]
            without0 = [of_pair[i, -1] for i, j in enumerate(own0) if j == UNMATCHABLE]
            without1 = [of_pair[-1, j] for j, i in enumerate(own1) if i == UNMATCHABLE]
            of_pairs.append(-np.mean(matched) - np.mean(without0) / 2 - np.mean(without1) / 2)
        losses.append(np.mean(of_pairs))
        predictions.append([predictions_by_loops(of_pair) for of_pair in log_assignment])
    entropies, changed = [], 0
    for i in range(2):
        for side, states in enumerate((output.descriptors0, output.descriptors1)):
            confidence = network.token_confidence[i](states[i]).detach().numpy()
            for pair in range(3):
                for k in range(20):
                    same = predictions[i][pair][side][k] == predictions[-1][pair][side][k]
                    entropies.append(-math.log(confidence[pair, k] if same else 1 - confidence[pair, k]))
                    changed += not same
    assert changed > 20

    labelled = [(own, found) for k in range(3) for own, found in zip(labels0[k].tolist(), predictions[-1][k][0], strict=True)]
    correct = sum(own == found for own, found in labelled if own >= 0)
    expected = {
        "loss": np.mean(losses),
        "last_layer_loss": losses[-1],
        "first_layer_loss": losses[0],
        "confidence_loss": np.mean(entropies),
        "recall": correct / sum(own >= 0 for own, _ in labelled),
        "precision": correct / sum(found >= 0 for own, found in labelled if own != IGNORED),
        "matchable": sum(own >= 0 for own, _ in labelled) / 60,
    }
    assert metrics.keys() == expected.keys()
    for key, value in expected.items():
        assert metrics[key].item() == pytest.approx(value, rel=1e-4), key
    assert loss.item() == pytest.approx(np.mean(losses) + 0.5 * np.mean(entropies), rel=1e-4)
    assert correct > 0


def test_all_weights_learn_from_the_loss() -> None:
    network, (inputs, labels) = small_network(), example(torch.Generator().manual_seed(0))
    loss, _ = matching_losses(network, network(*inputs), *labels, OPTIONS)
    loss.backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name


def test_the_confidence_loss_changes_only_the_confidence_heads() -> None:
    network, (inputs, labels) = small_network(), example(torch.Generator().manual_seed(0))
    _, metrics = matching_losses(network, network(*inputs), *labels, OPTIONS)
    metrics["confidence_loss"].backward()
    learning = {name for name, parameter in network.named_parameters() if parameter.grad is not None}
    assert learning == {"token_confidence.0.token.0.weight", "token_confidence.0.token.0.bias"}


def test_a_pair_without_matches_has_a_finite_gradient() -> None:
    network, (inputs, (labels0, labels1)) = small_network(), example(torch.Generator().manual_seed(0), b=2)
    nothing = torch.full_like(labels0, UNMATCHABLE), torch.full_like(labels1, IGNORED)
    loss, metrics = matching_losses(network, network(*inputs), *nothing, OPTIONS)
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())
    assert metrics["recall"] == metrics["precision"] == metrics["matchable"] == 0


def test_a_network_of_one_layer_has_no_confidence_loss() -> None:
    network, (inputs, labels) = small_network(num_layers=1), example(torch.Generator().manual_seed(0))
    loss, metrics = matching_losses(network, network(*inputs), *labels, OPTIONS)
    assert metrics["confidence_loss"] == 0 and loss == metrics["loss"]


def test_under_autocast_states_and_losses_stay_in_float32() -> None:
    network, (inputs, labels) = sharpen(small_network()), example(torch.Generator().manual_seed(0))
    exact, _ = matching_losses(network, network(*inputs), *labels, OPTIONS)
    with torch.autocast("cpu", torch.bfloat16):
        output = network(*inputs)
        inside, _ = matching_losses(network, output, *labels, OPTIONS)
    outside, _ = matching_losses(network, output, *labels, OPTIONS)
    assert {states.dtype for states in (*output.descriptors0, *output.descriptors1)} == {torch.float32}
    assert inside.dtype == torch.float32 and torch.equal(inside, outside)
    assert outside.item() == pytest.approx(exact.item(), rel=0.01)  # the layers compute with 8 bits


def test_a_small_network_learns_to_match() -> None:
    network, generator = small_network(), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3)
    recalls, losses = [], []
    for _ in range(40):
        inputs, labels = example(generator, b=4, n=32)
        loss, metrics = matching_losses(network, network(*inputs), *labels, OPTIONS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        recalls.append(metrics["recall"].item())
        losses.append(metrics["last_layer_loss"].item())
    assert np.mean(recalls[:5]) < 0.1 and np.mean(recalls[-5:]) > 0.6
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) / 2


@pytest.fixture(scope="module")
def aliked_network() -> LightGlue:
    """ALIKED's LightGlue with random weights."""
    torch.manual_seed(0)
    return LightGlue(PUBLISHED_SETTINGS["aliked"]).eval()


@torch.no_grad()
def test_a_warm_start_equals_the_teachers_network_after_the_map_to_its_descriptors(aliked_network: LightGlue) -> None:
    torch.manual_seed(1)
    weight, bias, scale = torch.randn(128, 256), torch.randn(128), 1.7
    network = warm_start(aliked_network.state_dict(), weight, bias, scale)
    assert network.settings == replace(PUBLISHED_SETTINGS["aliked"], input_dim=256, project_input=True)
    assert settings_from_state_dict(network.state_dict()) == network.settings
    keypoints, size = 300 * torch.rand(2, 1, 15, 2), torch.tensor([[320, 240]])
    descriptors = F.normalize(torch.randn(2, 1, 15, 256), dim=3)
    predicted = scale * (descriptors @ weight.T + bias)
    found = network(*keypoints, *descriptors, size, size)
    expected = aliked_network(*keypoints, *predicted, size, size)
    for i in range(9):
        torch.testing.assert_close(found.descriptors0[i], expected.descriptors0[i], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found.descriptors1[i], expected.descriptors1[i], rtol=1e-4, atol=1e-4)
    for name, value in aliked_network.state_dict().items():
        assert name.startswith("input_proj.") or torch.equal(network.state_dict()[name], value), name


@pytest.mark.parametrize("project_input", [False, True])
@torch.no_grad()
def test_a_network_behind_a_map_gives_the_results_of_the_network_on_mapped_descriptors(project_input: bool) -> None:
    torch.manual_seed(1)
    network = LightGlue(LightGlueSettings(32, descriptor_dim=32, num_layers=2, num_heads=1, project_input=project_input)).eval()
    weight, bias = torch.randn(32, 24), torch.randn(32)
    moved = behind_map(network, weight, bias)
    keypoints, size = 300 * torch.rand(2, 1, 15, 2), torch.tensor([[320, 240]])
    descriptors = torch.randn(2, 1, 15, 24)
    found = moved(*keypoints, *descriptors, size, size)
    expected = network(*keypoints, *(descriptors @ weight.T + bias), size, size)
    for i in range(2):
        torch.testing.assert_close(found.descriptors0[i], expected.descriptors0[i], rtol=1e-4, atol=1e-4)


def test_a_map_of_the_wrong_shape_is_refused(aliked_network: LightGlue) -> None:
    with pytest.raises(ValueError, match=r"weight \(64, 256\) and a bias \(64,\), expected \(128, 256\) and \(128,\)"):
        warm_start(aliked_network.state_dict(), torch.zeros(64, 256), torch.zeros(64), 1.0)


def test_predictions_have_unit_length_on_average() -> None:
    torch.manual_seed(0)
    weight, bias, descriptors = torch.randn(128, 256), torch.randn(128), torch.randn(50, 256)
    scale = prediction_scale(descriptors, weight, bias)
    lengths = [float(np.linalg.norm(scale * (weight.numpy() @ d + bias.numpy()))) for d in descriptors.numpy()]
    assert np.mean(lengths) == pytest.approx(1, rel=1e-5)
