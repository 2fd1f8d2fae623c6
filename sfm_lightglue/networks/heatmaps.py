"""Keypoints from heat maps: local maxima, the strongest pixels, and positions between pixels.

A heat map holds one score for each pixel. Keypoints are (x, y) px, with the centre of the top-left pixel at (0, 0).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def non_maximum_suppression(scores: Tensor, radius: int) -> Tensor:
    """(b, h, w): the scores where they are the maximum of their square of `radius` px, else 0.

    Pixels in the square of a maximum are set aside and the search is repeated twice, so a weaker keypoint is not lost because
    of a neighbour that a stronger one has suppressed.
    """

    def maximum_nearby(values: Tensor) -> Tensor:
        return sliding_maximum(F.pad(values, (radius,) * 4, value=-torch.inf), 2 * radius + 1)

    is_maximum = scores == maximum_nearby(scores)
    for _ in range(2):
        suppressed = maximum_nearby(is_maximum.to(scores.dtype)) > 0
        rest = scores.masked_fill(suppressed, 0)
        is_maximum = is_maximum | ((rest == maximum_nearby(rest)) & ~suppressed)
    return scores.masked_fill(~is_maximum, 0)


def sliding_maximum(values: Tensor, side: int) -> Tensor:
    """(..., h - side + 1, w - side + 1): the maxima of all squares in values (..., h, w). On a CPU 5 times as fast as pooling."""
    for dim in (-1, -2):
        reach = 1  # each value is the maximum of so many
        while reach < side:
            step = min(reach, side - reach)
            length = values.shape[dim] - step
            values = torch.maximum(values.narrow(dim, 0, length), values.narrow(dim, step, length))
            reach += step
    return values


def detect_keypoints(
    scores: Tensor, *, threshold: float, nms_radius: int, max_keypoints: int | None, border: int, subpixel: bool
) -> tuple[Tensor, Tensor]:
    """Keypoints float32 (n, 2) and their scores (n,) from the heatmap (h, w) of one image, strongest first.

    Kept are the `max_keypoints` strongest (None: all) above `threshold` that are at least `border` px inside the heatmap; equal
    scores stay in raster order. `subpixel` moves each to the expected position in its 5x5 window.
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
    strengths: Tensor, heatmaps: Tensor, number: int, *, border: int, subpixel: bool
) -> tuple[Tensor, Tensor]:
    """Keypoints float32 (b, number, 2) of many heatmaps (b, h, w) at once, and their strengths (b, number), strongest first.

    They are the strongest pixels of `strengths` (b, h, w) at least `border` px inside; `subpixel` as in `detect_keypoints`, and
    differentiable in the heatmaps. Nothing here waits for a GPU.
    """
    height, width = strengths.shape[1:]
    inside = strengths[:, border : height - border, border : width - border]
    found, places = inside.flatten(1).topk(number, dim=1)
    pixels = torch.stack([places % inside.shape[2], places // inside.shape[2]], dim=2) + border
    keypoints = pixels.float()
    if subpixel:
        keypoints = keypoints + expected_offsets(windows(heatmaps, pixels, radius=2))
    return keypoints, found


def windows(heatmaps: Tensor, pixels: Tensor, radius: int) -> Tensor:
    """(..., n, k, k), k = 2 radius + 1: values of heatmaps (..., h, w) around int64 (x, y) `pixels` (..., n, 2), 0 outside."""
    padded = F.pad(heatmaps, (radius,) * 4)
    step = torch.arange(2 * radius + 1, device=heatmaps.device)
    rows, columns = pixels[..., 1, None] + step, pixels[..., 0, None] + step
    places = rows[..., :, None] * padded.shape[-1] + columns[..., None, :]
    return padded.flatten(-2).gather(-1, places.flatten(-3)).view(places.shape)


def expected_offsets(weights: Tensor) -> Tensor:
    """float32 (..., 2): mean (x, y) offset from the centre of windows (..., k, k) of weights >= 0, not all 0."""
    radius = weights.shape[-1] // 2
    step = torch.arange(-radius, radius + 1, device=weights.device, dtype=torch.float32)
    weights = weights.float() / weights.float().sum(dim=(-2, -1), keepdim=True)
    return torch.stack([weights.sum(dim=-2) @ step, weights.sum(dim=-1) @ step], dim=-1)
