"""The SuperPoint network against its implementation in transformers, with shared random weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sfm_lightglue.networks import cpu
from sfm_lightglue.networks.heatmaps import detect_keypoints, expected_offsets, non_maximum_suppression, sliding_maximum, windows
from sfm_lightglue.networks.superpoint import (
    SuperPoint,
    convert_state_dict,
    fold_batch_norm,
    load_superpoint,
    octave_to_image,
    sample_descriptors,
    unfold_batch_norm,
    with_octaves,
)

transformers = pytest.importorskip("transformers")
hugging_face = pytest.importorskip("transformers.models.superpoint.modeling_superpoint")

ALL = {"threshold": 0.0, "nms_radius": 4, "max_keypoints": None, "border": 4, "subpixel": False}


@pytest.fixture(scope="module")
def oracle() -> torch.nn.Module:
    """SuperPoint of transformers with random weights that are large enough for clear peaks in the heat map."""
    torch.manual_seed(0)
    config = transformers.SuperPointConfig(keypoint_threshold=0.02, max_keypoints=-1, nms_radius=4, border_removal_distance=4)
    network = transformers.SuperPointForKeypointDetection(config).eval()
    for name, parameter in network.named_parameters():
        if name.endswith("weight"):
            torch.nn.init.kaiming_normal_(parameter, nonlinearity="relu")
    return network


def picture(height: int, width: int, seed: int = 0) -> Tensor:
    """An image (1, 1, h, w) of noise with structures of several sizes, 0..1."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [(height // step + 2, width // step + 2) for step in (4, 16)]
    layers = [F.interpolate(torch.rand(1, 1, *size, generator=generator), (height, width), mode="bicubic") for size in sizes]
    return sum(layers).clamp(0, 2) / 2


def inside(keypoints: Tensor, size: tuple[int, int], border: int = 4) -> Tensor:
    """Flags (n,) of keypoints away from the right and lower border, which transformers 5.23 misses (it multiplies px by 8)."""
    height, width = (side // 8 * 8 for side in size)
    return (keypoints[:, 0] < width - border) & (keypoints[:, 1] < height - border)


@pytest.mark.parametrize("size", [(160, 240), (163, 247)])
@torch.inference_mode()
def test_keypoints_scores_and_descriptors_equal_those_of_transformers(oracle: torch.nn.Module, size: tuple[int, int]) -> None:
    grey = picture(*size)
    # The public forward of transformers divides keypoints by the image size. This is the step before.
    encoded = oracle.encoder(grey, return_dict=True).last_hidden_state
    keypoints_hf, scores_hf = oracle.keypoint_decoder(encoded)
    keep = inside(keypoints_hf, size)
    keypoints_hf, scores_hf = keypoints_hf[keep], scores_hf[keep]
    descriptors_hf = oracle.descriptor_decoder(encoded, keypoints_hf)

    output = load_superpoint(oracle.state_dict())(grey)
    options = {**ALL, "threshold": 0.02}
    keypoints, scores = detect_keypoints(output.scores[0], **options)
    descriptors = sample_descriptors(keypoints[None], output.descriptors)[0]

    index_hf = {tuple(point): i for i, point in enumerate(keypoints_hf.tolist())}
    pairs = [(i, index_hf[tuple(point)]) for i, point in enumerate(keypoints.tolist()) if tuple(point) in index_hf]
    assert len(keypoints_hf) > 200
    assert len(keypoints) == len(keypoints_hf)
    assert len(pairs) >= 0.999 * len(keypoints)
    ours, theirs = torch.tensor(pairs).T
    torch.testing.assert_close(scores[ours], scores_hf[theirs], atol=1e-4, rtol=0)
    torch.testing.assert_close(descriptors[ours], descriptors_hf[theirs], atol=1e-4, rtol=0)


@torch.inference_mode()
def test_public_output_of_transformers_gives_the_same_keypoints(oracle: torch.nn.Module) -> None:
    grey = picture(120, 160)
    found = (oracle(grey.expand(-1, 3, -1, -1)).keypoints[0] * torch.tensor([160, 120])).round()
    keypoints, _ = detect_keypoints(load_superpoint(oracle.state_dict())(grey).scores[0], **{**ALL, "threshold": 0.02})
    theirs = {tuple(point) for point in found[inside(found, (120, 160))].int().tolist()}
    assert theirs == {tuple(point) for point in keypoints.int().tolist()}


def test_both_published_key_formats_load(oracle: torch.nn.Module) -> None:
    network = load_superpoint(oracle.state_dict())
    names = [f"conv{i}{j}" for i in "1234" for j in "ab"] + ["convPa", "convPb", "convDa", "convDb"]
    assert set(network.state_dict()) == {f"{name}.{part}" for name in names for part in ("weight", "bias")}
    again = load_superpoint(network.state_dict())
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in network.state_dict().items())


def test_wrong_keys_and_shapes_are_named() -> None:
    state = SuperPoint().state_dict()
    state["convPb.weight"] = torch.zeros(64, 256, 1, 1)
    state["extra"] = state.pop("conv1a.bias")
    with pytest.raises(ValueError, match=r"missing: conv1a\.bias; .*unexpected: extra; .*convPb\.weight \(64, 256, 1, 1\)"):
        load_superpoint(state)


def test_original_keys_pass_through_unchanged() -> None:
    state = SuperPoint().state_dict()
    assert list(convert_state_dict(state)) == list(state)


def test_folded_batch_norm_gives_the_same_maps() -> None:
    torch.manual_seed(0)
    network = SuperPoint(batch_norm=True)
    for name, parameter in network.named_parameters():
        if name.startswith("bn"):
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    with torch.no_grad():
        for seed in range(3):  # changes the running statistics
            network.train()(picture(64, 64, seed))
        network.eval()
        grey = picture(48, 72, 9)
        expected, folded = network(grey), fold_batch_norm(network)(grey)
    assert not fold_batch_norm(network).batch_norm
    for name in ("scores", "descriptors", "logits"):
        torch.testing.assert_close(getattr(folded, name), getattr(expected, name), atol=1e-4, rtol=1e-4)


def test_a_network_without_batch_norm_cannot_be_folded() -> None:
    with pytest.raises(ValueError, match="no batch normalisation"):
        fold_batch_norm(SuperPoint())


def test_batch_norm_is_put_back_without_changing_the_maps() -> None:
    torch.manual_seed(0)
    network, grey = SuperPoint().eval(), torch.cat([picture(256, 320, seed) for seed in range(3)])
    expected, unfolded = network(grey), unfold_batch_norm(network, grey)
    with torch.no_grad():
        for each in (unfolded.train()(grey), unfolded.eval()(grey), fold_batch_norm(unfolded)(grey)):
            for name in ("scores", "descriptors", "logits"):
                torch.testing.assert_close(getattr(each, name), getattr(expected, name), atol=1e-4, rtol=1e-3)
    norm = unfolded.get_submodule("bn3a")
    assert norm.weight.requires_grad and norm.running_var.min() > 0 and norm.running_mean.any()


# --- octaves ---------------------------------------------------------------------------------------------------------------


def with_random_maps(octaves: int) -> SuperPoint:
    torch.manual_seed(0)
    network = SuperPoint(octaves=octaves).eval()
    for linear in network.octaves:
        torch.nn.init.orthogonal_(linear.weight)
    return network


@pytest.mark.parametrize("size", [(96, 128), (101, 83), (17, 200)])
@torch.inference_mode()
def test_a_descriptor_is_the_sum_of_the_descriptors_of_both_image_sizes(size: tuple[int, int]) -> None:
    network, grey = with_random_maps(2), picture(*size)
    plain = with_octaves(network, 1)
    half = F.avg_pool2d(
        F.pad(grey, (0, size[1] % 2, 0, size[0] % 2), mode="replicate"), 2
    )  # an odd last pixel is averaged with itself
    half = F.pad(half, (0, -half.shape[3] % 8, 0, -half.shape[2] % 8), mode="replicate")
    found, first, second = network(grey).descriptors, plain(grey).descriptors, plain(half).descriptors
    rows, columns = found.shape[2:]
    y, x = torch.meshgrid(torch.arange(rows) * 8 + 3.5, torch.arange(columns) * 8 + 3.5, indexing="ij")  # px, centres of cells
    centres = torch.stack([x, y], dim=-1).view(-1, 2)
    cells = (((centres + 0.5) / 2 - 0.5) - 3.5) / 8  # cells of the half image; the outermost reach to its edge
    cells = cells.clamp(min=0).minimum(torch.tensor([second.shape[3] - 1.0, second.shape[2] - 1.0]))
    low = cells.floor().long()
    high, share = (low + 1).minimum(torch.tensor([second.shape[3] - 1, second.shape[2] - 1])), cells - low
    corners = [
        (x_share * y_share) * second[0][:, y, x]
        for x, x_share in ((low[:, 0], 1 - share[:, 0]), (high[:, 0], share[:, 0]))
        for y, y_share in ((low[:, 1], 1 - share[:, 1]), (high[:, 1], share[:, 1]))
    ]
    first_map, second_map = (linear.weight[:, :, 0, 0] for linear in network.octaves)
    expected = F.normalize(first_map @ first[0].flatten(1) + second_map @ sum(corners), dim=0)
    torch.testing.assert_close(found[0].flatten(1), expected, atol=1e-5, rtol=0)


@torch.inference_mode()
def test_octaves_leave_keypoints_alone_and_see_further() -> None:
    network, grey = with_random_maps(3), picture(400, 400)
    changed = grey.clone()
    changed[:, :, :, 280:] = 0.5
    for octaves, reach in ((1, 42), (2, 84), (3, 168)):  # px: half the side of the square that a descriptor depends on
        some = with_octaves(network, octaves)
        assert torch.equal(some(grey).logits, network(grey).logits)
        moved = (some(grey).descriptors - some(changed).descriptors).abs().amax(dim=(0, 1, 2)) > 1e-7  # by column
        first = 8 * int(moved.nonzero()[0]) + 3.5
        # A cell of the last octave is 8 * 2**(octaves - 1) px wide. Cells near its edge depend on it in part.
        assert reach - 8 < 280 - first < reach + 8 * 2**octaves


@pytest.mark.parametrize("octaves", [1, 3])
@torch.inference_mode()
def test_the_pyramid_is_the_network_on_smaller_images(octaves: int) -> None:
    network, grey = with_random_maps(octaves), picture(96, 160)
    first, third = network.pyramid(grey, (0, 2))
    for output, size in ((first, 1), (third, 4)):
        alone = network(F.avg_pool2d(grey, size))
        for name in ("scores", "descriptors", "logits"):
            torch.testing.assert_close(getattr(output, name), getattr(alone, name), atol=1e-6, rtol=0)
    assert third.scores.shape == (1, 24, 40)


@torch.inference_mode()
def test_scores_of_smaller_images_end_at_their_odd_sizes() -> None:
    grey = picture(101, 83)
    first, second, third = with_random_maps(2).pyramid(grey, (0, 1, 2))
    assert [tuple(each.scores.shape[1:]) for each in (first, second, third)] == [(96, 80), (51, 42), (26, 21)]
    assert [tuple(each.descriptors.shape[2:]) for each in (first, second, third)] == [(12, 10), (7, 6), (4, 3)]
    half = F.avg_pool2d(F.pad(grey, (0, 1, 0, 1), mode="replicate"), 2)
    half = F.pad(half, (0, 6, 0, 5), mode="replicate")
    torch.testing.assert_close(with_octaves(with_random_maps(2), 1)(half).scores[:, :51, :42], second.scores, atol=1e-6, rtol=0)


def test_a_pixel_of_a_smaller_image_lies_in_the_middle_of_its_source_pixels() -> None:
    pixels = torch.tensor([[0.0, 0.0], [3.0, 5.0]])
    assert octave_to_image(pixels, 0) is pixels
    ramp = torch.arange(16.0).expand(1, 1, 8, 16)  # its value is x
    for octave in (1, 2):
        ramp = F.avg_pool2d(ramp, 2)
        assert octave_to_image(pixels, octave)[1, 0] == ramp[0, 0, 0, 3]


@torch.inference_mode()
def test_octaves_are_loaded_added_and_taken_away() -> None:
    network, grey = with_random_maps(3), picture(64, 96)
    again = load_superpoint(network.state_dict())
    assert len(again.octaves) == 3 and not again.training
    assert torch.equal(again(grey).descriptors, network(grey).descriptors)
    assert torch.equal(with_octaves(network, 3)(grey).descriptors, network(grey).descriptors)
    plain = with_octaves(network, 1)
    assert plain.state_dict().keys() == SuperPoint().state_dict().keys()
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in plain.state_dict().items())
    mean = with_octaves(plain, 2)
    assert all(torch.equal(linear.weight[:, :, 0, 0], torch.eye(256)) for linear in mean.octaves)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_gradients_reach_every_parameter(batch_norm: bool) -> None:
    torch.manual_seed(0)
    network = SuperPoint(batch_norm=batch_norm)
    output = network(torch.cat([picture(32, 40), picture(32, 40, 1)]))
    keypoints = torch.tensor([[[5.0, 6.0], [20.5, 11.0]]] * 2)
    target = torch.randint(0, 65, (2, 4, 5))
    loss = F.cross_entropy(output.logits, target) + sample_descriptors(keypoints, output.descriptors)[..., :9].square().sum()
    loss.backward()
    without = [name for name, value in network.named_parameters() if value.grad is None or not value.grad.any()]
    # Batch normalisation removes the bias of the convolution before it, up to rounding.
    assert [name for name in without if not (batch_norm and name.endswith("bias"))] == []


def test_the_scores_of_a_cell_are_at_its_pixels() -> None:
    network = SuperPoint().eval()
    with torch.inference_mode():
        output = network(picture(24, 32))
    cell = output.logits.softmax(1)[0, :64, 2, 1].reshape(8, 8)
    torch.testing.assert_close(output.scores[0, 16:24, 8:16], cell)


@pytest.mark.parametrize("octaves", [1, 3])
@pytest.mark.parametrize("size", [(1, 1), (7, 5), (7, 100), (8, 8), (9, 17)])
@torch.inference_mode()
def test_tiny_images_have_no_keypoints(size: tuple[int, int], octaves: int) -> None:
    output = SuperPoint(octaves=octaves).eval()(picture(*size))
    assert output.descriptors.shape[1:] == (256, size[0] // 8, size[1] // 8)
    assert output.scores.shape[1:] == (size[0] // 8 * 8, size[1] // 8 * 8)
    assert output.logits.shape[1:] == (65, size[0] // 8, size[1] // 8)
    keypoints, scores = detect_keypoints(output.scores[0], **{**ALL, "subpixel": True})
    assert keypoints.shape == (0, 2) and scores.shape == (0,)


@torch.inference_mode()
def test_tiny_images_have_as_many_maps_as_asked_for() -> None:
    network = SuperPoint(octaves=2).eval()
    assert [tuple(each.scores.shape) for each in network.pyramid(picture(7, 9), (0, 2))] == [(1, 0, 8)] * 2
    assert [tuple(each.scores.shape) for each in network.pyramid(picture(17, 9), (0, 2))] == [(1, 16, 8), (1, 5, 3)]


@torch.inference_mode()
def test_a_black_image_has_no_keypoints_if_its_cells_are_empty() -> None:
    network = SuperPoint().eval()
    network.convPb.bias[-1] = 20.0  # as after training: no keypoint in a cell without structure
    keypoints, _ = detect_keypoints(network(torch.zeros(1, 1, 64, 96)).scores[0], **{**ALL, "threshold": 0.0005})
    assert len(keypoints) == 0


@pytest.mark.parametrize("octaves", [1, 2])
@pytest.mark.parametrize("size", [(130, 70), (101, 83)])
@torch.inference_mode()
def test_bands_of_rows_equal_whole_maps(monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], octaves: int) -> None:
    torch.manual_seed(0)
    network = SuperPoint(octaves=octaves).eval()
    whole = network(picture(*size))
    monkeypatch.setattr(cpu, "BAND_PIXELS", 16 * size[1])
    bands = network(picture(*size))
    for name in ("scores", "descriptors", "logits"):
        torch.testing.assert_close(getattr(bands, name), getattr(whole, name), atol=1e-5, rtol=0)


@torch.no_grad()
def test_batch_normalisation_in_training_sees_whole_images(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = SuperPoint(batch_norm=True).train()
    whole = network(picture(64, 48)).logits
    monkeypatch.setattr(cpu, "BAND_PIXELS", 16 * 48)
    torch.testing.assert_close(network(picture(64, 48)).logits, whole)


@torch.inference_mode()
def test_sixteen_bits_change_little(oracle: torch.nn.Module) -> None:
    exact, lowered = (load_superpoint(oracle.state_dict()) for _ in range(2))
    lowered.lower(torch.bfloat16)
    expected, found = exact(picture(120, 160)), lowered(picture(120, 160))
    assert found.scores.dtype == found.descriptors.dtype == torch.float32
    assert (found.descriptors * expected.descriptors).sum(dim=1).min() > 0.999
    assert 0 < (found.scores - expected.scores).abs().max() < 0.1


@pytest.mark.parametrize("side", [1, 2, 5, 9])
def test_the_sliding_maximum_equals_max_pooling(side: int) -> None:
    values = torch.randn(2, 20, 31, generator=torch.Generator().manual_seed(0))
    assert torch.equal(sliding_maximum(values, side), F.max_pool2d(values, side, stride=1))


@pytest.mark.parametrize("radius", [0, 1, 4])
def test_non_maximum_suppression_equals_transformers_also_for_ties(radius: int) -> None:
    scores = torch.rand(2, 40, 50, generator=torch.Generator().manual_seed(0)).mul(20).round() / 20
    assert torch.equal(non_maximum_suppression(scores, radius), hugging_face.simple_nms(scores, radius))


def test_keypoints_are_sorted_and_ties_stay_in_raster_order() -> None:
    scores = torch.zeros(40, 60)
    for x, y, score in ((30, 30, 0.5), (10, 10, 0.5), (40, 10, 0.5), (20, 20, 0.9), (2, 20, 1.0), (50, 37, 1.0)):
        scores[y, x] = score
    keypoints, values = detect_keypoints(scores, **ALL)
    assert keypoints.tolist() == [[20, 20], [10, 10], [40, 10], [30, 30]]  # two other peaks are in the border
    torch.testing.assert_close(values, torch.tensor([0.9, 0.5, 0.5, 0.5]))
    keypoints, _ = detect_keypoints(scores, **{**ALL, "max_keypoints": 2})
    assert keypoints.tolist() == [[20, 20], [10, 10]]


def ramp(cells: tuple[int, int]) -> Tensor:
    """Dense descriptors (1, 3, hc, wc): x and y of the centre of each cell, px of the image, and 1.

    Interpolated, and divided by the third number, they give the position of the sample, whatever their length.
    """
    y, x = torch.meshgrid(*(8.0 * torch.arange(count) + 3.5 for count in cells), indexing="ij")
    return torch.stack([x, y, torch.ones(cells)])[None]


@pytest.mark.parametrize("centred", [True, False])
def test_descriptors_are_taken_at_the_keypoints(centred: bool) -> None:
    height, width = 72, 96
    corners = torch.tensor([[3.5, 3.5], [width - 4.5, 3.5], [3.5, height - 4.5], [width - 4.5, height - 4.5]])
    keypoints = torch.cat([corners, 3.5 + torch.rand(200, 2, generator=torch.Generator().manual_seed(0)) * (corners[3] - 3.5)])
    sampled = sample_descriptors(keypoints[None], ramp((height // 8, width // 8)), centred=centred)[0]
    assert sampled.shape == (204, 3)
    torch.testing.assert_close(sampled.norm(dim=1), torch.ones(204))
    found = sampled[:, :2] / sampled[:, 2:]
    if centred:
        torch.testing.assert_close(found, keypoints, atol=2e-3, rtol=0)
    else:  # the published grid: the centre of the last cell lies at the last pixel
        last = torch.tensor([width, height]) - 1.0
        torch.testing.assert_close(found, 3.5 + (keypoints - 3.5) * (last - 7) / (last - 3.5), atol=2e-3, rtol=0)
        assert (keypoints - found).max() == pytest.approx(3.5 * (width - 8) / (width - 4.5), abs=0.01)


def test_beyond_the_centres_of_the_outer_cells_the_descriptor_is_constant() -> None:
    keypoints = torch.tensor([[0.0, 0.0], [95.0, 71.0], [95.0, 30.0], [40.0, 71.0]])
    sampled = sample_descriptors(keypoints[None], ramp((9, 12)), centred=True)[0]
    expected = torch.tensor([[3.5, 3.5], [91.5, 67.5], [91.5, 30.0], [40.0, 67.5]])
    torch.testing.assert_close(sampled[:, :2] / sampled[:, 2:], expected, atol=2e-3, rtol=0)


def test_sub_pixel_refinement_finds_the_centre_of_a_blob() -> None:
    centres = np.array([[20.3, 15.8], [50.0, 20.4], [33.75, 40.25]])
    y, x = np.mgrid[:60, :70]
    heatmap = sum(np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / 2 / 0.8**2) for cx, cy in centres)
    keypoints, _ = detect_keypoints(torch.tensor(heatmap).float(), **{**ALL, "threshold": 0.5, "subpixel": True})
    found = keypoints.numpy()[np.argsort(keypoints[:, 0])]
    # 0.06 px: the 5x5 window is centred on a pixel and cuts one flank of the blob
    np.testing.assert_allclose(found, centres[np.argsort(centres[:, 0])], atol=0.06)


def test_windows_at_the_edge_hold_zeros_outside() -> None:
    heatmap = torch.arange(1.0, 13.0).reshape(3, 4)
    window = windows(heatmap, torch.tensor([[0, 2], [1, 1]]), radius=1)
    assert window[0].tolist() == [[0, 5, 6], [0, 9, 10], [0, 0, 0]]
    assert window[1].tolist() == [[1, 2, 3], [5, 6, 7], [9, 10, 11]]


def test_expected_offsets_are_weighted_means() -> None:
    weights = torch.zeros(1, 3, 3)
    weights[0, 1, 2], weights[0, 2, 1] = 3.0, 1.0
    torch.testing.assert_close(expected_offsets(weights), torch.tensor([[0.75, 0.25]]))


def test_the_first_cell_is_centred_at_three_and_a_half_pixels() -> None:
    dense = F.normalize(torch.randn(1, 256, 5, 6, generator=torch.Generator().manual_seed(0)), dim=1)
    sampled = sample_descriptors(torch.tensor([[[3.5, 3.5], [47.0, 39.0]]]), dense)
    torch.testing.assert_close(sampled[0], torch.stack([dense[0, :, 0, 0], dense[0, :, -1, -1]]))


def test_weights_that_are_not_finite_are_refused_by_name() -> None:
    state = SuperPoint().state_dict()
    state["conv3a.weight"][0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"do not fit SuperPoint: 1 with NaN or infinity: conv3a\.weight"):
        load_superpoint(state)
