"""Small random LightGlue networks, and point sets on which they find matches, stop early and drop points."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sfm_lightglue.networks.lightglue import LightGlue, LightGlueMatches
from sfm_lightglue.networks.lightglue_settings import LightGlueSettings


@dataclass(frozen=True)
class Points:
    """Input of one image."""

    keypoints: Tensor
    descriptors: Tensor
    size: tuple[int, int]


def match(network: LightGlue, points0: Points, points1: Points) -> LightGlueMatches:
    inputs = points0.keypoints, points1.keypoints, points0.descriptors, points1.descriptors, points0.size, points1.size
    return network.match(*inputs)


def random_network(seed: int = 0, **changes: float) -> LightGlue:
    """A small network that finds matches without training. Its confidences and matchabilities lie on both sides of the limits."""
    torch.manual_seed(seed)
    small = {"descriptor_dim": 64, "num_layers": 4, "num_heads": 2, "filter_threshold": 0.01}
    network = LightGlue(LightGlueSettings(**{"input_dim": 48, **small, **changes})).eval()
    with torch.no_grad():
        for layer in network.transformers:
            for block in (layer.self_attn, layer.cross_attn):
                block.ffn[3].weight *= 0.5  # the descriptors change little
        for assignment in network.log_assignment:
            torch.nn.init.orthogonal_(assignment.final_proj.weight, gain=6)
            assignment.matchability.weight *= 6
            assignment.matchability.bias.fill_(-0.5)
        for confidence in network.token_confidence:
            confidence.token[0].weight *= 2
            confidence.token[0].bias.fill_(2.4)
    return network


def random_points(num_points: int = 120, input_dim: int = 48) -> tuple[Points, Points]:
    """Image 1 has most points of image 0, moved, reordered and with noisy descriptors, and some other points."""
    generator = torch.Generator().manual_seed(1)
    keypoints = torch.rand(num_points, 2, generator=generator) * torch.tensor([400.0, 300.0])
    descriptors = F.normalize(torch.randn(num_points, input_dim, generator=generator), dim=1)
    order = torch.randperm(num_points, generator=generator)[: 3 * num_points // 4]
    others = F.normalize(torch.randn(num_points // 8, input_dim, generator=generator), dim=1)
    noisy = F.normalize(descriptors[order] + 0.05 * torch.randn(len(order), input_dim, generator=generator), dim=1)
    moved = torch.cat([keypoints[order] * 0.9 + 10, torch.rand(len(others), 2, generator=generator) * 300])
    scale = input_dim**0.5  # elements of size 1 suit the random layers
    return Points(keypoints, descriptors * scale, (400, 300)), Points(moved, torch.cat([noisy, others]) * scale, (400, 300))
