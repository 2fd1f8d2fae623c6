"""Keypoints from heat maps: local maxima, the strongest pixels, and positions between pixels.

A heat map holds one score for each pixel. Keypoints are (x, y) px, with the centre of the top-left pixel at (0, 0).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int64, Shaped
from torch import Tensor


def non_maximum_suppression(scores: Float[Tensor, "b h w"], radius: int) -> Float[Tensor, "b h w"]:
    """The scores with all pixels set to 0 that are not the maximum of the square of `radius` px around them.

    The search runs three times, each time without the pixels near the maxima found so far. A weaker keypoint is thus not lost
    because of a neighbour that a stronger keypoint has suppressed.
    """

    def maximum_nearby(values: Tensor) -> Tensor:
        return sliding_maximum(F.pad(values, (radius,) * 4, value=-torch.inf), 2 * radius + 1)

    is_maximum = scores == maximum_nearby(scores)
    for _ in range(2):
        suppressed = maximum_nearby(is_maximum.to(scores.dtype)) > 0
        rest = scores.masked_fill(suppressed, 0)
        is_maximum = is_maximum | ((rest == maximum_nearby(rest)) & ~suppressed)
    return scores.masked_fill(~is_maximum, 0)


def sliding_maximum(values: Shaped[Tensor, "*b h w"], side: int) -> Shaped[Tensor, "*b h-{side}+1 w-{side}+1"]:
    """The maximum of each square of `side` x `side` px. On a CPU 5 times as fast as pooling."""
    for dim in (-1, -2):
        reach = 1  # each value is the maximum of this many pixels
        while reach < side:
            step = min(reach, side - reach)
            length = values.shape[dim] - step
            values = torch.maximum(values.narrow(dim, 0, length), values.narrow(dim, step, length))
            reach += step
    return values


def detect_keypoints(
    scores: Float[Tensor, "h w"], *, threshold: float, nms_radius: int, max_keypoints: int | None, border: int, subpixel: bool
) -> tuple[Float32[Tensor, "n 2"], Float[Tensor, " n"]]:
    """Keypoints and their scores from the heat map of one image, strongest first; equal scores stay in raster order.

    Args:
        scores: the heat map.
        threshold: a keypoint has a score above this.
        nms_radius: px, see `non_maximum_suppression`.
        max_keypoints: number of the strongest to keep; None keeps all.
        border: width, px, of the frame without keypoints.
        subpixel: moves each keypoint to the expected position in its 5x5 window.
    """
    if scores.numel() == 0:
        return scores.new_zeros((0, 2)).float(), scores.new_zeros(0)
    peaks = non_maximum_suppression(scores[None], nms_radius)[0]
    inside = torch.zeros_like(peaks, dtype=torch.bool)
    inside[border : max(border, scores.shape[0] - border), border : max(border, scores.shape[1] - border)] = True
    y, x = torch.nonzero((peaks > threshold) & inside, as_tuple=True)
    values = scores[y, x]
    order = torch.argsort(values, descending=True, stable=True)[:max_keypoints]
    pixels = torch.stack([x, y], dim=1)[order]
    keypoints = pixels.float()
    if subpixel:
        keypoints = keypoints + expected_offsets(windows(scores, pixels, radius=2))
    return keypoints, values[order]


def strongest_keypoints(
    strengths: Float[Tensor, "b h w"], heatmaps: Float[Tensor, "b h w"], number: int, *, border: int, subpixel: bool
) -> tuple[Float32[Tensor, "b {number} 2"], Float[Tensor, "b {number}"]]:
    """The same number of keypoints from each of many heat maps, and their strengths, strongest first. Does not wait for a GPU.

    Args:
        strengths: the keypoints are the strongest pixels of these maps.
        heatmaps: the positions between pixels come from these maps, and are differentiable in them.
        number: keypoints for each map.
        border: width, px, of the frame without keypoints.
        subpixel: as in `detect_keypoints`.
    """
    height, width = strengths.shape[1:]
    inside = strengths[:, border : height - border, border : width - border]
    found, places = inside.flatten(1).topk(number, dim=1)
    pixels = torch.stack([places % inside.shape[2], places // inside.shape[2]], dim=2) + border
    keypoints = pixels.float()
    if subpixel:
        keypoints = keypoints + expected_offsets(windows(heatmaps, pixels, radius=2))
    return keypoints, found


def windows(
    heatmaps: Float[Tensor, "*b h w"], pixels: Int64[Tensor, "*b n 2"], radius: int
) -> Float[Tensor, "*b n 2*{radius}+1 2*{radius}+1"]:
    """The squares of a heat map around pixels (x, y), with 0 outside the map."""
    padded = F.pad(heatmaps, (radius,) * 4)
    step = torch.arange(2 * radius + 1, device=heatmaps.device)
    rows, columns = pixels[..., 1, None] + step, pixels[..., 0, None] + step
    places = rows[..., :, None] * padded.shape[-1] + columns[..., None, :]
    return padded.flatten(-2).gather(-1, places.flatten(-3)).view(places.shape)


def expected_offsets(weights: Float[Tensor, "*b k k"]) -> Float32[Tensor, "*b 2"]:
    """The mean (x, y) offset from the centre of each window, px. The weights are at least 0, and not all 0 in a window."""
    radius = weights.shape[-1] // 2
    step = torch.arange(-radius, radius + 1, device=weights.device, dtype=torch.float32)
    weights = weights.float() / weights.float().sum(dim=(-2, -1), keepdim=True)
    return torch.stack([weights.sum(dim=-2) @ step, weights.sum(dim=-1) @ step], dim=-1)


def refined(
    heatmap: Float[Tensor, "h w"], pixels: Int64[Tensor, "n 2"], radius: int, temperature: float
) -> Float32[Tensor, "n 2"]:
    """Positions between pixels of the maxima of a heat map at `pixels`: the mean position in the squares of `radius` px around
    them, weighted by the softmax of the values divided by `temperature`."""
    nearby = windows(heatmap, pixels, radius)
    return pixels + expected_offsets(((nearby - nearby.amax(dim=(1, 2), keepdim=True)) / temperature).exp())


def interpolated(heatmap: Float[Tensor, "h w"], keypoints: Float[Tensor, "n 2"]) -> Float[Tensor, " n"]:
    """The values of a heat map, interpolated between pixels, at keypoints inside it."""
    last = keypoints.new_tensor(heatmap.shape[::-1]) - 1
    grid = 2 * keypoints / last - 1  # the centres of the first and the last pixel lie at -1 and 1
    return F.grid_sample(heatmap[None, None], grid[None, None], align_corners=True)[0, 0, 0]
