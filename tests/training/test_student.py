"""The losses of the student, compared with plain loops over cells and points."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from sfm_lightglue.features.superpoint import SuperPointOptions
from sfm_lightglue.networks.heatmaps import detect_keypoints
from sfm_lightglue.networks.superpoint import SuperPoint, sample_descriptors
from sfm_lightglue.training.student import (
    LossOptions,
    Student,
    _near,
    contrastive_loss,
    find_keypoints,
    fit_linear_map,
    keypoint_loss,
    location_loss,
    reprojection_loss,
    similarities,
    taught_loss,
)

OPTIONS = LossOptions(
    keypoints=1.0,
    location=2.0,
    reprojection=4.0,
    contrast=1.0,
    taught_contrast=0.5,
    teacher_temperature=0.1,
    distillation=2.0,
    same_point=3.0,
    temperature=0.05,
)
DETECTION = SuperPointOptions(
    name="superpoint",
    weights="",
    resize_max=None,
    enlarge_max=1.0,
    max_keypoints=100,
    small_share=0.0,
    detection_threshold=0.005,
    nms_radius=2,
    border=2,
    subpixel=True,
    precision="float32",
)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def unit(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(*shape, generator=generator), dim=-1)


def make_batch(generator: torch.Generator, *, num_points: tuple[int, int] = (5, 3), side: int = 32) -> dict[str, Tensor]:
    """Two pairs of views that show noise."""
    cells = side // 8
    return {
        "views": torch.rand(4, 1, side, side, generator=generator),
        "targets": torch.rand(4, 65, cells, cells, generator=generator).softmax(dim=1),
        "cell_weights": torch.ones(4, cells, cells),
        "points": torch.rand(4, 6, 2, generator=generator) * (side - 1),
        "is_point": torch.stack([torch.arange(6) < count for count in num_points]),
        "teacher": unit(generator, 4, 6, 8),
        "between": torch.eye(3).expand(2, 3, 3),
        "is_natural": torch.tensor([True, False]),
    }


# --- keypoints -------------------------------------------------------------------------------------------------------------


def test_the_keypoint_loss_is_the_mean_cross_entropy_of_the_cells_that_count(generator: torch.Generator) -> None:
    logits = torch.randn(2, 65, 3, 4, generator=generator) * 3
    targets = torch.rand(2, 65, 3, 4, generator=generator).softmax(dim=1)
    weights = (torch.rand(2, 3, 4, generator=generator) > 0.4).float()
    total, count = 0.0, 0
    for view, row, column in np.argwhere(weights.numpy()):
        probabilities = np.exp(logits[view, :, row, column].double().numpy())
        probabilities /= probabilities.sum()
        total -= float((targets[view, :, row, column].double().numpy() * np.log(probabilities)).sum())
        count += 1
    assert 5 < count < 20
    assert keypoint_loss(logits, targets, weights).item() == pytest.approx(total / count, rel=1e-5)


def test_the_keypoint_loss_is_smallest_if_the_probabilities_equal_the_targets(generator: torch.Generator) -> None:
    targets = torch.rand(1, 65, 2, 2, generator=generator).softmax(dim=1)
    logits = targets.log().requires_grad_()
    loss = keypoint_loss(logits, targets, torch.ones(1, 2, 2))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient.abs().max() < 1e-6
    entropy = -(targets * targets.log()).sum() / 4
    assert loss.item() == pytest.approx(entropy.item(), rel=1e-5)


def test_without_cells_that_count_there_is_no_keypoint_loss() -> None:
    assert keypoint_loss(torch.randn(1, 65, 2, 2), torch.full((1, 65, 2, 2), 1 / 65), torch.zeros(1, 2, 2)) == 0


def test_the_location_loss_is_the_mean_over_keypoints_of_the_cross_entropy_of_their_pixels(generator: torch.Generator) -> None:
    logits = torch.randn(2, 65, 3, 4, generator=generator) * 3
    targets = torch.rand(2, 65, 3, 4, generator=generator).softmax(dim=1)
    targets[0, :64, 0] = 0  # cells without a keypoint
    weights = (torch.rand(2, 3, 4, generator=generator) > 0.4).float()
    total, mass = 0.0, 0.0
    for view, row, column in np.argwhere(weights.numpy()):
        probabilities = np.exp(logits[view, :64, row, column].double().numpy())
        probabilities /= probabilities.sum()
        target = targets[view, :64, row, column].double().numpy()
        total -= float((target * np.log(probabilities)).sum())
        mass += float(target.sum())
    assert location_loss(logits, targets, weights).item() == pytest.approx(total / mass, rel=1e-5)
    certain = logits.clone()
    certain[:, 64] += 100  # the probability of a keypoint does not matter
    torch.testing.assert_close(location_loss(certain, targets, weights), location_loss(logits, targets, weights))


def test_without_keypoints_there_is_no_location_loss() -> None:
    targets = torch.zeros(1, 65, 2, 2)
    targets[:, 64] = 1
    assert location_loss(torch.randn(1, 65, 2, 2), targets, torch.ones(1, 2, 2)) == 0


# --- positions -------------------------------------------------------------------------------------------------------------


def heatmaps(generator: torch.Generator, number: int) -> Tensor:
    return torch.rand(number, 32, 40, generator=generator) ** 8


def test_keypoints_of_a_batch_of_heatmaps_equal_those_of_each_heatmap(generator: torch.Generator) -> None:
    maps, everywhere = heatmaps(generator, 3), torch.ones(3, 4, 5)
    keypoints, found = find_keypoints(maps, everywhere, 12, DETECTION)
    assert keypoints.shape == (3, 12, 2) and found.all()
    for row, heatmap in zip(keypoints, maps, strict=True):
        options = {"threshold": 0.005, "nms_radius": 2, "max_keypoints": 12, "border": 2, "subpixel": True}
        torch.testing.assert_close(row, detect_keypoints(heatmap, **options)[0])


def test_keypoints_lie_in_cells_that_count_and_are_above_the_threshold(generator: torch.Generator) -> None:
    maps, cells = heatmaps(generator, 1), torch.zeros(1, 4, 5)
    cells[0, 1, 2] = 1
    maps[0, 8:16, 16:24] = 0.001
    maps[0, 10, 20] = maps[0, 13, 19] = 0.5
    keypoints, found = find_keypoints(maps, cells, 12, DETECTION)
    assert found.sum() == 2 and keypoints.isfinite().all()
    assert sorted(keypoints[0, :2].round().tolist()) == [[19, 13], [20, 10]]


def test_the_reprojection_loss_is_the_mean_distance_of_mutual_nearest_keypoints_in_both_views(generator: torch.Generator) -> None:
    first = torch.rand(2, 9, 2, generator=generator) * 40
    between = torch.eye(3).repeat(2, 1, 1)
    between[:, :2, :2] = 2 * between[:, :2, :2]  # the second view is magnified twice
    second = (2 * first + torch.randn(2, 9, 2, generator=generator) * 2)[:, torch.randperm(9, generator=generator)]
    found = torch.rand(4, 9, generator=generator) > 0.2
    total, count = 0.0, 0
    for pair in range(2):
        distances = torch.cdist(2 * first[pair], second[pair])
        distances[~found[pair]], distances[:, ~found[2 + pair]] = torch.inf, torch.inf
        for i, j in np.ndindex(9, 9):
            distance = distances[i, j]
            if distance < 3 and distance == distances[i].min() and distance == distances[:, j].min():
                total, count = total + float(distance) * (1 + 0.5) / 2, count + 1
    assert 4 < count < 12
    loss, repeated = reprojection_loss(torch.cat([first, second]), found, between, 3.0)
    assert loss.item() == pytest.approx(total / count, rel=1e-4)
    assert repeated.item() == pytest.approx(count / int(found[:2].sum()))


def test_the_gradient_of_the_reprojection_loss_moves_keypoints_onto_each_other(generator: torch.Generator) -> None:
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(40.0), indexing="ij")
    centres = torch.tensor([[[12.3, 10.2], [30.0, 21.4]], [[12.9, 9.6], [29.2, 21.0]]])  # for one pair of views
    blobs = torch.exp(-((x - centres[..., :1, None]) ** 2 + (y - centres[..., 1:, None]) ** 2) / 2).sum(dim=1)
    logits = (blobs * 5 - 6).requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.05)
    distances = []
    for _ in range(60):
        keypoints, found = find_keypoints(logits.sigmoid(), torch.ones(2, 4, 5), 2, DETECTION)
        loss, repeated = reprojection_loss(keypoints, found, torch.eye(3)[None], 3.0)
        assert repeated == 1
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        distances.append(loss.item())
    assert 0.4 < distances[0] < 1 and distances[-1] < 0.1 * distances[0]


def test_without_keypoints_there_is_no_reprojection_loss_and_no_gradient(generator: torch.Generator) -> None:
    maps = torch.full((2, 32, 40), 1e-9, requires_grad=True)
    keypoints, found = find_keypoints(maps, torch.zeros(2, 4, 5), 12, DETECTION)
    loss, repeated = reprojection_loss(keypoints, found, torch.eye(3)[None], 3.0)
    assert loss == 0 and repeated == 0 and not found.any()
    loss.backward()
    assert maps.grad is not None and not maps.grad.any()


# --- descriptors -----------------------------------------------------------------------------------------------------------


def test_the_contrastive_loss_is_a_classification_in_both_directions_without_left_out_points(generator: torch.Generator) -> None:
    first, second, scale = unit(generator, 2, 4, 16), unit(generator, 2, 4, 16), 12.0
    is_point = torch.tensor([[True, True, False, True], [True, False, True, True]])
    left_out = torch.zeros(2, 4, 4, dtype=torch.bool)
    left_out[0, 0, 3] = left_out[0, 3, 0] = left_out[1, 2, 3] = True
    points = [(pair, i) for pair in range(2) for i in range(4) if is_point[pair, i]]
    total, right = 0.0, 0

    def counts(one: tuple[int, int], other: tuple[int, int]) -> bool:
        return one[0] != other[0] or not left_out[one[0], one[1], other[1]]

    for own in points:
        row = {other: scale * float(first[own] @ second[other]) for other in points if counts(own, other)}
        column = {other: scale * float(first[other] @ second[own]) for other in points if counts(other, own)}
        for side in (row, column):
            total += math.log(sum(math.exp(value) for value in side.values())) - side[own]
        right += max(row, key=lambda other: row[other]) == own
    loss, accuracy = contrast(first, second, scale, is_point, left_out)
    assert loss.item() == pytest.approx(total / 12, rel=1e-5)
    assert accuracy.item() == pytest.approx(right / 6)


def contrast(first: Tensor, second: Tensor, scale: float, is_point: Tensor, left_out: Tensor) -> tuple[Tensor, Tensor]:
    return contrastive_loss(similarities(torch.cat([first, second]) * scale**0.5, is_point, left_out), is_point)


def test_the_taught_loss_is_the_divergence_from_the_teachers_answer_in_both_directions(generator: torch.Generator) -> None:
    mine, theirs = unit(generator, 4, 4, 16) * 3, unit(generator, 4, 4, 8) * 2
    is_point = torch.tensor([[True, True, False, True], [True, False, True, True]])
    left_out = torch.zeros(2, 4, 4, dtype=torch.bool)
    left_out[0, 0, 3] = left_out[0, 3, 0] = left_out[1, 2, 3] = True
    points = [(pair, i) for pair in range(2) for i in range(4) if is_point[pair, i]]
    total = 0.0
    for own in points:
        for flip in (False, True):
            probabilities = []
            for descriptors in (mine, theirs):
                first, second = descriptors.chunk(2)[::-1] if flip else descriptors.chunk(2)
                row = []
                for other in points:
                    i, j = (other[1], own[1]) if flip else (own[1], other[1])
                    if own[0] != other[0] or not left_out[own[0], i, j]:
                        row.append(math.exp(float(first[own] @ second[other])))
                probabilities.append([value / sum(row) for value in row])
            total += sum(q * math.log(q / p) for p, q in zip(*probabilities, strict=True))
    sides = (similarities(descriptors, is_point, left_out) for descriptors in (mine, theirs))
    assert taught_loss(*sides, is_point).item() == pytest.approx(total / 12, rel=1e-4)


def test_the_taught_loss_is_zero_if_student_and_teacher_agree(generator: torch.Generator) -> None:
    descriptors, every = unit(generator, 4, 5, 16), torch.ones(2, 5, dtype=torch.bool)
    similarity = similarities(descriptors.requires_grad_(), every, ~every[:, None].expand(2, 5, 5))
    loss = taught_loss(similarity, similarity.detach(), every)
    loss.backward()
    assert loss.abs() < 1e-6 and descriptors.grad is not None and descriptors.grad.abs().max() < 1e-6
    right = torch.eye(10) * 100  # for a teacher that is certain and right, the loss is InfoNCE
    assert taught_loss(similarity, right, every).item() == pytest.approx(contrastive_loss(similarity, every)[0].item(), rel=1e-5)


def test_equal_descriptors_are_told_apart(generator: torch.Generator) -> None:
    descriptors = unit(generator, 3, 5, 64)
    every, nothing = torch.ones(3, 5, dtype=torch.bool), torch.zeros(3, 5, 5, dtype=torch.bool)
    loss, accuracy = contrast(descriptors, descriptors, 50.0, every, nothing)
    assert loss < 1e-3 and accuracy == 1


def test_rows_that_are_not_points_do_not_count_in_the_contrastive_loss(generator: torch.Generator) -> None:
    first, second, scale = unit(generator, 2, 6, 16), unit(generator, 2, 6, 16), 12.0
    is_point = torch.rand(2, 6, generator=generator) > 0.4
    left_out = torch.rand(2, 6, 6, generator=generator) > 0.7
    left_out &= ~torch.eye(6, dtype=torch.bool)
    found = contrast(first, second, scale, is_point, left_out)
    others = (torch.where(is_point[..., None], each, unit(generator, 2, 6, 16)).requires_grad_() for each in (first, second))
    first, second = others
    again = contrast(first, second, scale, is_point, left_out)
    torch.testing.assert_close(found, again)
    again[0].backward()
    for each in (first, second):
        assert each.grad is not None and not each.grad[~is_point].any() and each.grad[is_point].any(dim=1).all()


@pytest.mark.parametrize("num_points", [0, 1])
def test_without_another_point_there_is_no_contrastive_loss(generator: torch.Generator, num_points: int) -> None:
    first, second = (unit(generator, 1, 4, 16).requires_grad_() for _ in range(2))
    is_point, near = torch.arange(4)[None] < num_points, ~torch.eye(4, dtype=torch.bool)[None]
    loss, accuracy = contrast(first, second, 12.0, is_point, near)
    assert loss == 0 and accuracy == 1
    loss.backward()
    for each in (first, second):  # zero up to rounding, and not nan
        torch.testing.assert_close(each.grad, torch.zeros_like(each), atol=1e-6, rtol=0)


def test_points_are_near_if_they_are_in_the_same_photo_and_near_in_either_view() -> None:
    points = torch.zeros(4, 3, 2)
    points[0] = torch.tensor([[10.0, 10], [12, 10], [30, 30]])  # first view of photo 0: 0 and 1 are near
    points[2] = torch.tensor([[10.0, 10], [20, 10], [20, 12]])  # its second view: 1 and 2 are near
    points[1] = torch.tensor([[10.0, 10], [50, 50], [0, 0]])
    points[3] = torch.tensor([[10.0, 10], [50, 50], [0, 0]])
    expected = torch.zeros(2, 3, 3, dtype=torch.bool)
    expected[0, 0, 1] = expected[0, 1, 0] = expected[0, 1, 2] = expected[0, 2, 1] = True
    assert torch.equal(_near({"points": points}, 3.0), expected)
    assert not _near({"points": points}, 1.9).any()


# --- together --------------------------------------------------------------------------------------------------------------


def test_the_loss_is_the_weighted_sum_of_its_parts(generator: torch.Generator) -> None:
    torch.manual_seed(0)
    student, batch = Student(8, OPTIONS.temperature), make_batch(generator)
    options = replace(OPTIONS, keypoints=0.5, location=1.5, reprojection=2.5, contrast=3.0, taught_contrast=6.0, distillation=7.0)
    loss, metrics = student.eval().losses(batch, options, DETECTION, torch.float32)
    keypoints = 0.5 * metrics["keypoint_loss"] + 1.5 * metrics["location_loss"] + 2.5 * metrics["reprojection_px"]
    descriptors = 3 * metrics["contrast_loss"] + 6 * metrics["taught_contrast_loss"] + 7 * (1 - metrics["teacher_cosine"])
    torch.testing.assert_close(loss, keypoints + descriptors)
    assert list(metrics)[:4] == ["loss", "keypoint_loss", "location_loss", "reprojection_px"]
    assert list(metrics)[4:] == ["repeated", "contrast_loss", "taught_contrast_loss", "top1", "teacher_cosine", "scale"]
    assert metrics["scale"].item() == pytest.approx(20)
    assert all(value.shape == () for value in metrics.values())


def test_descriptors_are_taken_at_the_points_of_both_views(generator: torch.Generator) -> None:
    """Both views and their points are equal, so each descriptor is nearest to itself."""
    torch.manual_seed(0)
    student, batch = Student(8, OPTIONS.temperature), make_batch(generator)
    for key in ("views", "points"):
        batch[key] = batch[key][:2].repeat(2, *[1] * (batch[key].ndim - 1))
    _, metrics = student.eval().losses(batch, OPTIONS, DETECTION, torch.float32)
    assert metrics["top1"] == 1
    batch["points"][2:] = batch["points"][2:].flip(1)
    _, metrics = student.losses(batch, OPTIONS, DETECTION, torch.float32)
    assert metrics["top1"] < 1


def test_the_gradient_reaches_every_parameter(generator: torch.Generator) -> None:
    torch.manual_seed(0)
    student = Student(8, OPTIONS.temperature)
    loss, _ = student.losses(make_batch(generator), OPTIONS, DETECTION, torch.float32)
    loss.backward()
    without = [name for name, value in student.named_parameters() if value.grad is None or not value.grad.any()]
    # Batch normalisation cancels the bias of the convolution before it, up to rounding.
    assert [name for name in without if not name.endswith("bias")] == []
    assert all(value.grad is None or value.grad.isfinite().all() for value in student.parameters())


def test_a_student_that_starts_from_a_network_equals_it_and_predicts_the_teachers_descriptors(generator: torch.Generator) -> None:
    torch.manual_seed(0)
    network, student = SuperPoint().eval(), Student(8, OPTIONS.temperature)
    batch = make_batch(generator, side=128)
    batch["points"], batch["is_point"] = torch.rand(4, 500, 2, generator=generator) * 127, torch.ones(2, 500, dtype=torch.bool)
    batch["is_point"][0, 400:] = False
    with torch.no_grad():
        descriptors = sample_descriptors(batch["points"], network(batch["views"]).descriptors, centred=True)
        batch["teacher"] = descriptors[..., :8] * 3 + 0.2  # a linear map
        batch["teacher"][[0, 2], 400:] = 7.0
        student.start_from(network, batch)
        _, metrics = student.losses(batch, OPTIONS, DETECTION, torch.float32)
        torch.testing.assert_close(
            student.eval().network(batch["views"]).logits, network(batch["views"]).logits, atol=1e-3, rtol=1e-3
        )
    assert metrics["teacher_cosine"] > 0.99


def test_a_linear_map_is_found_even_if_a_direction_hardly_varies(generator: torch.Generator) -> None:
    known = torch.nn.functional.normalize(torch.randn(2000, 16, generator=generator), dim=1)
    known[:, 3] = 0.2 + 1e-7 * known[:, 3]
    weight, bias = torch.randn(5, 16, generator=generator), torch.randn(5, generator=generator)
    wanted = known @ weight.T + bias
    found = fit_linear_map(known, wanted)
    assert found[0].shape == (5, 16) and found[0].abs().max() < 2 * weight.abs().max()
    torch.testing.assert_close(known @ found[0].T + found[1], wanted, atol=1e-2, rtol=0)


def test_only_the_descriptors_of_a_student_with_octaves_learn(generator: torch.Generator) -> None:
    torch.manual_seed(0)
    network, student, batch = SuperPoint(octaves=2).eval(), Student(8, OPTIONS.temperature), make_batch(generator)
    student.start_from(network, batch)
    loss, _ = student.train().losses(batch, OPTIONS, DETECTION, torch.float32)
    loss.backward()
    learning = {name for name, value in student.named_parameters() if value.grad is not None and value.grad.any()}
    parts = [f"network.conv{name}.{part}" for name in ("Da", "Db") for part in ("weight", "bias")]
    assert learning == {*parts, "network.octaves.0.weight", "network.octaves.1.weight"} | {
        "to_teacher.weight",
        "to_teacher.bias",
        "log_scale",
    }
    with torch.no_grad():
        found, expected = student.network(batch["views"]), network(batch["views"])
    torch.testing.assert_close(found.descriptors, expected.descriptors)
    torch.testing.assert_close(found.logits, expected.logits)


def test_rows_that_only_fill_the_array_do_not_count(generator: torch.Generator) -> None:
    torch.manual_seed(0)
    student, batch = Student(8, OPTIONS.temperature).eval(), make_batch(generator)
    loss, _ = student.losses(batch, OPTIONS, DETECTION, torch.float32)
    changed = {key: value.clone() for key, value in batch.items()}
    for value in (1.0, -1e6):  # a point of one view may be far outside the other view
        for key in ("points", "teacher"):
            changed[key][~batch["is_point"].repeat(2, 1)] = value
        torch.testing.assert_close(student.losses(changed, OPTIONS, DETECTION, torch.float32)[0], loss)


def test_a_batch_without_a_common_point_trains_only_keypoints(generator: torch.Generator) -> None:
    torch.manual_seed(0)
    student = Student(8, OPTIONS.temperature)
    loss, metrics = student.losses(make_batch(generator, num_points=(0, 0)), OPTIONS, DETECTION, torch.float32)
    loss.backward()
    keypoints = metrics["keypoint_loss"] + 2 * metrics["location_loss"] + 4 * metrics["reprojection_px"]
    torch.testing.assert_close(loss, keypoints)
    assert (metrics["contrast_loss"], metrics["taught_contrast_loss"], metrics["top1"], metrics["teacher_cosine"]) == (0, 0, 1, 1)
    assert all(value.grad is None or value.grad.isfinite().all() for value in student.parameters())
    assert student.network.convPb.weight.grad.any()
    assert student.network.convDb.weight.grad is None or not student.network.convDb.weight.grad.any()


def test_a_batch_with_a_single_common_point_works(generator: torch.Generator) -> None:
    torch.manual_seed(0)
    loss, metrics = Student(8, OPTIONS.temperature).losses(
        make_batch(generator, num_points=(1, 0)), OPTIONS, DETECTION, torch.float32
    )
    assert loss.isfinite() and metrics["contrast_loss"] == metrics["taught_contrast_loss"] == 0
