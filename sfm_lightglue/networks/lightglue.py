"""LightGlue: local feature matching at light speed (Lindenberger et al., arXiv:2306.13643).

Owns the network, in one definition for training (`LightGlue.forward`) and inference (`LightGlue.match`). Modules bear the names
of the published weights, so a state_dict saved here loads in the original code as well; `lightglue_checkpoints` loads weights.
Shapes: b pairs, m keypoints in image 0, n in image 1, d = descriptor_dim, h heads of size d / h.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class LightGlueSettings:
    """Size of the network, and the three thresholds of inference with their published defaults."""

    input_dim: int
    """Size of the descriptors given."""
    descriptor_dim: int = 256
    num_layers: int = 9
    num_heads: int = 4
    add_scale_orientation: bool = False
    """Positions hold the scale and orientation of each keypoint as well (SIFT-like detectors)."""
    project_input: bool = False
    """A linear layer makes the first states from the descriptors also where they are of the same size (the original code has
    none there)."""
    depth_confidence: float = 0.95
    """Stop after the layer at which more than this share of the points of both images is confident; -1 = always all layers."""
    width_confidence: float = 0.99
    """Drop confident points (all, where depth_confidence is -1) with a matchability of at most 1 - this; -1 = keep all."""
    filter_threshold: float = 0.1
    """A match has a score above this."""

    def __post_init__(self) -> None:
        if self.descriptor_dim % (2 * self.num_heads):
            raise ValueError(
                f"descriptor_dim={self.descriptor_dim} must be a multiple of 2 x num_heads={self.num_heads}: "
                "each head rotates pairs of channels"
            )


HEADS: dict[str, LightGlueSettings] = {
    "superpoint": LightGlueSettings(input_dim=256),
    # Ours, with thresholds of its own (docs/superpoint.md).
    "superpoint-open": LightGlueSettings(input_dim=256, project_input=True, depth_confidence=0.99, filter_threshold=0.15),
    "aliked": LightGlueSettings(input_dim=128),
    "disk": LightGlueSettings(input_dim=128),
    "sift": LightGlueSettings(input_dim=128, add_scale_orientation=True),
    "doghardnet": LightGlueSettings(input_dim=128, add_scale_orientation=True),
    # LighterGlue is published for use with its full depth; points are then dropped by matchability alone.
    "xfeat": LightGlueSettings(64, descriptor_dim=96, num_layers=6, num_heads=1, depth_confidence=-1, width_confidence=0.95),
}
"""Published architectures by kind of feature."""


@dataclass(frozen=True)
class LightGlueOutput:
    """Descriptors after each layer, for training.

    What the losses need comes from the heads of a layer i: `network.log_assignment[i](descriptors0[i], descriptors1[i])` is the
    log assignment (b, m + 1, n + 1), `network.token_confidence[i](descriptors0[i])` the confidences (b, m).
    """

    descriptors0: tuple[Tensor, ...]
    """One (b, m, d) for each layer."""
    descriptors1: tuple[Tensor, ...]


@dataclass(frozen=True)
class LightGlueMatches:
    """Matches of one pair."""

    matches0: Tensor
    """int64 (m,): index into keypoints1, -1 for none."""
    matches1: Tensor
    scores0: Tensor
    """(m,): score of the mutually best partner, also where it stays below the filter threshold; 0 without one."""
    scores1: Tensor
    stop_layer: int
    """Number of layers that ran; 0 where an image has no keypoints."""
    prune0: Tensor
    """int64 (m,): 1 + number of times the point survived pruning, which is the layer (from 1) at which it was dropped or the
    network stopped; num_layers for all points where pruning is off."""
    prune1: Tensor


def normalize_keypoints(keypoints: Tensor, size: Tensor) -> Tensor:
    """(b, n, 2) positions in -1..1 along the longer side, from (x, y) px (b, n, 2) and (width, height) px (b, 2).

    The published weights were trained with exactly this, on keypoints with the centre of the top-left pixel at (0, 0): position
    (0, 0) then lies half a pixel beside the image centre, which must not be corrected.
    """
    size = size.to(keypoints)
    return (keypoints - size[:, None] / 2) / (size.amax(dim=1)[:, None, None] / 2)


class PositionalEncoding(nn.Module):
    """Rotary encoding, its angles a learned linear function of the position (section 3.1, eq. 4)."""

    def __init__(self, position_dim: int, head_dim: int) -> None:
        super().__init__()
        self.Wr = nn.Linear(position_dim, head_dim // 2, bias=False)
        nn.init.normal_(self.Wr.weight)

    def forward(self, positions: Tensor) -> Tensor:
        """Cosines and sines (2, b, 1, n, head_dim / 2) of positions (b, n, position_dim)."""
        angles = self.Wr(positions)
        return torch.stack([angles.cos(), angles.sin()]).unsqueeze(2)


def rotate(x: Tensor, encoding: Tensor) -> Tensor:
    """(b, h, n, head_dim): each pair of neighbouring channels turned by its angle: R(p) x (eq. 4)."""
    cos, sin = encoding.to(x.dtype)  # b 1 n head_dim/2, each
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2)


def feed_forward(dim: int) -> nn.Sequential:
    """The MLP that turns a state and the message to it into an update of the state (eq. 1)."""
    return nn.Sequential(nn.Linear(2 * dim, 2 * dim), nn.LayerNorm(2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))


class SelfBlock(nn.Module):
    """Points attend to all points of their image, by content and relative position (section 3.1, eq. 3)."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.Wqkv = nn.Linear(dim, 3 * dim)  # output channel (head, channel of the head, one of q k v)
        self.out_proj = nn.Linear(dim, dim)
        self.ffn = feed_forward(dim)

    def forward(self, x: Tensor, encoding: Tensor) -> Tensor:
        """Updated states (b, n, d)."""
        query, key, value = self.Wqkv(x).unflatten(-1, (self.num_heads, -1, 3)).permute(4, 0, 2, 1, 3)  # b h n head_dim
        query, key = rotate(query, encoding), rotate(key, encoding)
        context = F.scaled_dot_product_attention(query, key, value.contiguous())  # the fast kernels want channels together
        message = self.out_proj(context.transpose(1, 2).flatten(-2))
        return x + self.ffn(torch.cat([x, message], dim=-1))


class CrossBlock(nn.Module):
    """Points attend to all points of the other image, by content; one projection is query and key (eq. 5)."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.to_qk = nn.Linear(dim, dim)
        self.to_v = nn.Linear(dim, dim)
        self.to_out = nn.Linear(dim, dim)
        self.ffn = feed_forward(dim)

    def forward(self, x0: Tensor, x1: Tensor) -> tuple[Tensor, Tensor]:
        """Updated states (b, m, d) and (b, n, d)."""
        key0, key1 = self._heads(self.to_qk(x0)), self._heads(self.to_qk(x1))
        value0, value1 = self._heads(self.to_v(x0)), self._heads(self.to_v(x1))
        return self._update(x0, key0, key1, value1), self._update(x1, key1, key0, value0)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # b h n head_dim

    def _update(self, x: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        # The similarity is computed for each direction anew: faster than to store an h m n matrix for both.
        context = F.scaled_dot_product_attention(query, key, value)
        message = self.to_out(context.transpose(1, 2).flatten(-2))
        return x + self.ffn(torch.cat([x, message], dim=-1))


class Layer(nn.Module):
    """One self block, shared by the two images, and one cross block."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.self_attn = SelfBlock(dim, num_heads)
        self.cross_attn = CrossBlock(dim, num_heads)

    def forward(self, x0: Tensor, x1: Tensor, encoding0: Tensor, encoding1: Tensor) -> tuple[Tensor, Tensor]:
        return self.cross_attn(self.self_attn(x0, encoding0), self.self_attn(x1, encoding1))


class MatchAssignment(nn.Module):
    """Soft partial assignment from similarities and matchabilities (section 3.2, eq. 6 to 8)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.matchability = nn.Linear(dim, 1)
        self.final_proj = nn.Linear(dim, dim)

    def forward(self, x0: Tensor, x1: Tensor) -> Tensor:
        """Log assignment (b, m + 1, n + 1); the last row and column hold the log probability of having no match."""
        scores = F.pad(self.log_scores(x0, x1), (0, 1, 0, 1))
        scores[:, :-1, -1:] = F.logsigmoid(-self.matchability(x0))
        scores[:, -1:, :-1] = F.logsigmoid(-self.matchability(x1)).mT
        return scores

    def log_scores(self, x0: Tensor, x1: Tensor) -> Tensor:
        """Log assignment (b, m, n) of the pairs of points: double softmax times both matchabilities."""
        scale = x0.shape[-1] ** -0.25
        similarity = (self.final_proj(x0) * scale) @ (self.final_proj(x1) * scale).mT  # b m n
        scores = F.log_softmax(similarity, dim=2) + F.log_softmax(similarity, dim=1)
        scores += F.logsigmoid(self.matchability(x0))  # in place: at 4096 keypoints each further copy is 64 MB
        scores += F.logsigmoid(self.matchability(x1)).mT
        return scores

    def matchability_of(self, x: Tensor) -> Tensor:
        """Probability (b, n) that a point has a match."""
        return self.matchability(x).squeeze(-1).sigmoid()


class TokenConfidence(nn.Module):
    """How sure the network is that the prediction for a point will not change in later layers (section 3.3, eq. 9)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.token = nn.Sequential(nn.Linear(dim, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Confidences (b, n) in 0..1."""
        return self.logits(x).sigmoid()

    def logits(self, x: Tensor) -> Tensor:
        """(b, n) before the sigmoid. No gradient goes on to the states: confidence must not change the matching."""
        return self.token(x.detach()).squeeze(-1)


class LightGlue(nn.Module):
    """The network of section 3. Computes in the precision of its weights."""

    def __init__(self, settings: LightGlueSettings) -> None:
        super().__init__()
        self.settings = settings
        dim, num_layers = settings.descriptor_dim, settings.num_layers
        position_dim = 4 if settings.add_scale_orientation else 2
        project = settings.project_input or settings.input_dim != dim
        self.input_proj = nn.Linear(settings.input_dim, dim) if project else nn.Identity()
        self.posenc = PositionalEncoding(position_dim, dim // settings.num_heads)
        self.transformers = nn.ModuleList(Layer(dim, settings.num_heads) for _ in range(num_layers))
        self.log_assignment = nn.ModuleList(MatchAssignment(dim) for _ in range(num_layers))
        self.token_confidence = nn.ModuleList(TokenConfidence(dim) for _ in range(num_layers - 1))  # the last has to stop

    def forward(
        self,
        keypoints0: Tensor,
        keypoints1: Tensor,
        descriptors0: Tensor,
        descriptors1: Tensor,
        size0: Tensor,
        size1: Tensor,
        scales_orientations0: Tensor | None = None,
        scales_orientations1: Tensor | None = None,
    ) -> LightGlueOutput:
        """All layers on all points.

        Keypoints (b, m, 2), (b, n, 2) are (x, y) px with the centre of the top-left pixel at (0, 0); descriptors (b, m,
        input_dim), (b, n, input_dim); sizes (b, 2), (width, height) px; scales px and orientations rad (b, m, 2), (b, n, 2) for
        a network that wants them, in the unit its weights were trained with.
        """
        with torch.autocast(keypoints0.device.type, enabled=False):  # positions of 8 bits would be no use, nor states
            x0, encoding0 = self.embed(keypoints0, descriptors0, size0, scales_orientations0)
            x1, encoding1 = self.embed(keypoints1, descriptors1, size1, scales_orientations1)
        states = []
        for layer in self.transformers:
            x0, x1 = layer(x0, x1, encoding0, encoding1)
            states.append((x0, x1))
        return LightGlueOutput(tuple(x0 for x0, _ in states), tuple(x1 for _, x1 in states))

    @torch.no_grad()
    def match(
        self,
        keypoints0: Tensor,
        keypoints1: Tensor,
        descriptors0: Tensor,
        descriptors1: Tensor,
        size0: tuple[float, float],
        size1: tuple[float, float],
        scales_orientations0: Tensor | None = None,
        scales_orientations1: Tensor | None = None,
    ) -> LightGlueMatches:
        """Matches of one pair, with adaptive depth and width (section 3.3).

        As `forward` without the dimension b; sizes are (width, height) px. As in the original code on a CPU, points are
        dropped whatever their number, so that results do not depend on the device.
        """
        points0 = self._points(keypoints0, descriptors0, size0, scales_orientations0)
        points1 = self._points(keypoints1, descriptors1, size1, scales_orientations1)
        num_points = len(keypoints0) + len(keypoints1)
        stop_layer = 0
        for i, layer in enumerate(self.transformers):
            if not (len(points0.indices) and len(points1.indices)):
                break  # no keypoints, or all were dropped
            x0, x1 = layer(points0.x, points1.x, points0.encoding, points1.encoding)
            points0, points1, stop_layer = replace(points0, x=x0), replace(points1, x=x1), i + 1
            if stop_layer == self.settings.num_layers:
                break
            confidence0, confidence1 = self._confidence(points0, i), self._confidence(points1, i)
            if self._is_done(confidence0, confidence1, i, num_points):
                break
            points0, points1 = self._prune(points0, confidence0, i), self._prune(points1, confidence1, i)
        return self._assign(points0, points1, stop_layer)

    def confidence_threshold(self, i: int) -> float:
        """From which confidence on a point counts as confident after layer i (from 0); it decays towards later layers."""
        return 0.8 + 0.1 * math.exp(-4 * i / self.settings.num_layers)

    def embed(self, keypoints: Tensor, descriptors: Tensor, size: Tensor, extra: Tensor | None) -> tuple[Tensor, Tensor]:
        """Initial states (b, n, d) and the encoding of the positions."""
        settings, dtype = self.settings, self.posenc.Wr.weight.dtype
        if descriptors.shape[-1] != settings.input_dim:
            raise ValueError(
                f"descriptors have size {descriptors.shape[-1]}, this LightGlue was trained for {settings.input_dim}: "
                "give the network of these features"
            )
        if (extra is not None) != settings.add_scale_orientation:
            wants = "needs" if settings.add_scale_orientation else "takes no"
            raise ValueError(f"this LightGlue {wants} scales and orientations of keypoints: give the network of these features")
        positions = normalize_keypoints(keypoints, size)
        if extra is not None:
            positions = torch.cat([positions, extra.to(positions)], dim=-1)
        return self.input_proj(descriptors.to(dtype)), self.posenc(positions.to(dtype))

    def _points(self, keypoints: Tensor, descriptors: Tensor, size: tuple[float, float], extra: Tensor | None) -> _Points:
        size_tensor = keypoints.new_tensor([size])
        x, encoding = self.embed(keypoints[None], descriptors[None], size_tensor, None if extra is None else extra[None])
        indices = torch.arange(len(keypoints), device=keypoints.device)
        survived = torch.full_like(indices, 1 if self.settings.width_confidence > 0 else self.settings.num_layers)
        return _Points(x, encoding, indices, survived)

    def _confidence(self, points: _Points, i: int) -> Tensor | None:
        """(n,) after layer i; None without adaptive depth."""
        return self.token_confidence[i](points.x)[0] if self.settings.depth_confidence > 0 else None

    def _is_done(self, confidence0: Tensor | None, confidence1: Tensor | None, i: int, num_points: int) -> bool:
        """Whether enough of all `num_points` points of the pair are confident (eq. 10); those dropped before count as such."""
        if confidence0 is None or confidence1 is None:
            return False
        unconfident = (torch.cat([confidence0, confidence1]) < self.confidence_threshold(i)).sum()
        return bool(1 - unconfident / num_points > self.settings.depth_confidence)

    def _prune(self, points: _Points, confidence: Tensor | None, i: int) -> _Points:
        """Without the points that are confident to have no match."""
        if self.settings.width_confidence <= 0:
            return points
        matchability = self.log_assignment[i].matchability_of(points.x)[0]  # type: ignore[operator]
        keep = matchability > 1 - self.settings.width_confidence
        if confidence is not None:
            keep |= confidence <= self.confidence_threshold(i)
        kept = keep.nonzero()[:, 0]
        indices = points.indices[kept]
        survived = points.survived.index_add(0, indices, torch.ones_like(indices))
        return _Points(points.x[:, kept], points.encoding[..., kept, :], indices, survived)

    def _assign(self, points0: _Points, points1: _Points, stop_layer: int) -> LightGlueMatches:
        """The matches among the points that are left, under the indices of all points."""
        size0, size1 = points0.survived.shape, points1.survived.shape
        matches0, matches1 = points0.survived.new_full(size0, -1), points1.survived.new_full(size1, -1)
        scores0, scores1 = (points0.x.new_zeros(size, dtype=torch.float32) for size in (size0, size1))
        if len(points0.indices) and len(points1.indices):
            log_scores = self.log_assignment[stop_layer - 1].log_scores(points0.x, points1.x)[0]  # type: ignore[operator]
            best0, best1, scores = mutual_best(log_scores)
            indices0, indices1 = points0.indices[best0], points1.indices[best1]
            scores0[indices0] = scores1[indices1] = scores
            accepted = scores > self.settings.filter_threshold
            matches0[indices0[accepted]] = indices1[accepted]
            matches1[indices1[accepted]] = indices0[accepted]
        return LightGlueMatches(matches0, matches1, scores0, scores1, stop_layer, points0.survived, points1.survived)


@dataclass(frozen=True)
class _Points:
    """The points of one image that are still in play, k of n."""

    x: Tensor
    """(1, k, d), states."""
    encoding: Tensor
    """(2, 1, 1, k, head_dim / 2)."""
    indices: Tensor
    """int64 (k,), into all points of the image."""
    survived: Tensor
    """int64 (n,), see `LightGlueMatches.prune0`."""


def mutual_best(log_scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, columns and scores float32 of the entries of (m, n), m and n > 0, that are largest in both row and column."""
    best1, best0 = log_scores.max(dim=1), log_scores.max(dim=0).indices
    rows = torch.arange(len(log_scores), device=log_scores.device)
    rows = rows[best0[best1.indices] == rows]
    return rows, best1.indices[rows], best1.values[rows].float().exp()
