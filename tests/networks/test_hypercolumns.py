"""Hypercolumns: where they sample, and the descriptors made from them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from sfm_lightglue.networks.hypercolumns import DESCRIPTOR_SIZE, LEVELS, HypercolumnHead, hypercolumns
from sfm_lightglue.networks.superpoint import SuperPoint, load_superpoint, with_hypercolumns, with_octaves

WIDTH, HEIGHT = 256, 192
KEYPOINTS = torch.tensor([[100.25, 90.5], [63.5, 63.5], [128.0, 77.75]])


def network(seed: int = 0) -> SuperPoint:
    """A network with a head, with random weights."""
    torch.manual_seed(seed)
    return SuperPoint(hypercolumns=True).eval()


def picture(height: int = HEIGHT, width: int = WIDTH, seed: int = 0) -> torch.Tensor:
    """Smooth random grey image (1, 1, h, w)."""
    noise = torch.rand(1, 1, height // 8 + 2, width // 8 + 2, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(noise, (height, width), mode="bicubic").clamp(0, 1)


def test_samples_lie_at_the_keypoint_and_a_cell_beside_it() -> None:
    """Maps whose values are their own x and y, px of the image, give the sampled places."""
    levels = []
    for level in LEVELS:
        rows, columns = (torch.arange(side // level.cell).float() for side in (HEIGHT, WIDTH))
        places = torch.stack(torch.meshgrid(columns, rows, indexing="xy")) * level.cell + (level.cell - 1) / 2
        levels.append(F.pad(places, (0, 0, 0, 0, 0, level.channels - 2)))
    found = hypercolumns(levels, KEYPOINTS)
    assert found.shape == (3, sum(level.size for level in LEVELS))
    start = 0
    for level in LEVELS:
        samples = found[:, start : start + level.size].view(3, 9, level.channels)[..., :2]
        start += level.size
        steps = torch.tensor([[x, y] for y in (-1.0, 0.0, 1.0) for x in (-1.0, 0.0, 1.0)])
        torch.testing.assert_close(samples, KEYPOINTS[:, None] + level.cell * steps)


def test_samples_outside_a_map_are_zero() -> None:
    levels = [torch.ones(level.channels, HEIGHT // level.cell, WIDTH // level.cell) for level in LEVELS]
    corner = hypercolumns(levels, torch.tensor([[2.0, 2.0]]))[0]
    first = corner[: LEVELS[0].size].view(9, -1)
    # The keypoint lies 1/8 of a cell right of and below the middle of the first cell: so much of a sample beside it is inside.
    inside = torch.tensor([1 / 64, 1 / 8, 1 / 8, 1 / 8, 1, 1, 1 / 8, 1, 1])
    torch.testing.assert_close(first, inside[:, None].expand_as(first))


def test_descriptors_have_unit_length_and_do_not_depend_on_their_batch() -> None:
    net, grey = network(), torch.cat([picture(seed=0), picture(seed=1)])
    with torch.inference_mode():
        (both,), (alone,) = net.pyramid(grey, (0,)), net.pyramid(grey[1:], (0,))
        many = KEYPOINTS.repeat(400, 1)
        together, single = net.describe(both, 1, many), net.describe(alone, 0, many)
        few = net.describe(alone, 0, KEYPOINTS)
    assert net.descriptor_size == DESCRIPTOR_SIZE == together.shape[1] and both.descriptors is None
    torch.testing.assert_close(together.norm(dim=1), torch.ones(len(many)))
    torch.testing.assert_close(together, single, atol=1e-5, rtol=0)
    torch.testing.assert_close(few, single[:3], atol=1e-5, rtol=0)
    assert not torch.allclose(few[0], few[1], atol=1e-3)


def test_an_octave_is_described_like_the_smaller_image() -> None:
    net, grey = network(), picture()
    quarter = F.avg_pool2d(F.avg_pool2d(grey, 2), 2)
    keypoints = KEYPOINTS / 4
    with torch.inference_mode():
        _, small = net.pyramid(grey, (0, 2))
        (same,) = net.pyramid(quarter, (0,))
        torch.testing.assert_close(net.describe(small, 0, keypoints), net.describe(same, 0, keypoints), atol=1e-5, rtol=0)


def test_the_smallest_images_have_no_descriptors() -> None:
    net = network()
    for height, width in ((7, 40), (40, 7), (8, 8), (17, 9)):
        (output,) = net.pyramid(picture(height, width), (0,))
        assert net.describe(output, 0, torch.zeros(0, 2)).shape == (0, DESCRIPTOR_SIZE)


def test_saved_weights_give_the_same_network() -> None:
    net, grey = network(), picture()
    loaded = load_superpoint(net.state_dict())
    with torch.inference_mode():
        (first,), (second,) = net.pyramid(grey, (0,)), loaded.pyramid(grey, (0,))
        assert torch.equal(net.describe(first, 0, KEYPOINTS), loaded.describe(second, 0, KEYPOINTS))
    broken = {key: value for key, value in net.state_dict().items() if key != "head.layers.0.bias"}
    with pytest.raises(ValueError, match=r"head\.layers\.0\.bias"):
        load_superpoint(broken)


def test_low_precision_changes_descriptors_a_little() -> None:
    net, low, grey = network(), network(), picture()
    for each in (net, low):  # the lowered head standardises by its weights
        each.head.mean.copy_(torch.linspace(0, 0.02, len(each.head.mean)))
        each.head.scale.copy_(torch.linspace(20, 40, len(each.head.mean)))
    low.lower(torch.bfloat16)
    with torch.inference_mode():
        (exact,), (rounded,) = net.pyramid(grey, (0,)), low.pyramid(grey, (0,))
        cosine = (net.describe(exact, 0, KEYPOINTS) * low.describe(rounded, 0, KEYPOINTS)).sum(dim=1)
    assert low.head is not None and low.head.mean.dtype == torch.float32 and (cosine > 0.98).all()


def test_a_network_gets_a_head_and_keeps_its_keypoints() -> None:
    torch.manual_seed(1)
    published = SuperPoint().eval()
    changed = with_hypercolumns(published)
    grey = picture()
    with torch.inference_mode():
        assert torch.equal(published(grey).logits, changed(grey).logits)
        assert torch.equal(published.keypoint_logits(grey), published(grey).logits)
    again = with_hypercolumns(changed)
    assert changed.head is not None and again.head is not None
    assert torch.equal(changed.head.layers[0].weight, again.head.layers[0].weight)
    with pytest.raises(ValueError, match="training=superpoint_light"):
        with_octaves(changed, 3)


def test_gradients_reach_the_head_and_the_encoder() -> None:
    net = network().train()
    head: HypercolumnHead | None = net.head
    assert head is not None
    (output,) = net.pyramid(picture(), (0,))
    head(hypercolumns([level[0] for level in output.levels], KEYPOINTS))[:, 0].sum().backward()
    for parameter in (head.layers[0].weight, net.get_parameter("conv4b.weight"), net.get_parameter("conv2a.weight")):
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0
