"""LightGlue: local feature matching at light speed (Lindenberger et al., arXiv:2306.13643).

Owns the network, in one definition for training (`LightGlue.forward`) and inference (`LightGlue.match`). Modules have the names
of the published weights, so a state_dict saved here also loads in the original code. `lightglue_checkpoints` loads weights.
Shapes: b pairs, m keypoints in image 0, n in image 1, d = descriptor_dim, h heads of size d / h.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int64, Num
from torch import Tensor, nn

from sfm_lightglue.networks.lightglue_settings import LightGlueSettings


@dataclass(frozen=True)
class LightGlueOutput:
    """Descriptors after each layer, for training.

    The losses apply the heads of a layer i to them: `network.log_assignment[i](descriptors0[i], descriptors1[i])` is the log
    assignment (b, m + 1, n + 1), and `network.token_confidence[i](descriptors0[i])` are the confidences (b, m).
    """

    descriptors0: tuple[Tensor, ...]
    """One tensor (b, m, d) for each layer."""
    descriptors1: tuple[Tensor, ...]


@dataclass(frozen=True)
class LightGlueMatches:
    """Matches of one pair."""

    matches0: Int64[Tensor, " m"]
    """Index into keypoints1, -1 for no match."""
    matches1: Int64[Tensor, " n"]
    scores0: Float32[Tensor, " m"]
    """Score of the mutually best partner, even if it is below the filter threshold; 0 without a partner."""
    scores1: Float32[Tensor, " n"]
    stop_layer: int
    """Number of layers that ran; 0 if an image has no keypoints."""
    prune0: Int64[Tensor, " m"]
    """The layer (from 1) after which the point was dropped, or at which the network stopped: 1 + the number of times the point
    survived pruning. Without pruning it is num_layers for all points."""
    prune1: Int64[Tensor, " n"]


def normalize_keypoints(keypoints: Float[Tensor, "b n 2"], size: Num[Tensor, "b 2"]) -> Float[Tensor, "b n 2"]:
    """Positions in -1..1 along the longer side, from keypoints (x, y) px and sizes (width, height) px.

    The published weights were trained with exactly this formula, on keypoints with the centre of the top-left pixel at (0, 0).
    Position (0, 0) is thus half a pixel away from the image centre. This must not be corrected.
    """
    size = size.to(keypoints)
    return (keypoints - size[:, None] / 2) / (size.amax(dim=1)[:, None, None] / 2)


class PositionalEncoding(nn.Module):
    """Rotary encoding. Its angles are a learned linear function of the position (section 3.1, eq. 4)."""

    def __init__(self, position_dim: int, head_dim: int) -> None:
        super().__init__()
        self.Wr = nn.Linear(position_dim, head_dim // 2, bias=False)
        nn.init.normal_(self.Wr.weight)

    def forward(self, positions: Float[Tensor, "b n p"]) -> Float[Tensor, "2 b 1 n angles"]:
        """Cosines and sines of the head_dim / 2 angles of each position."""
        angles = self.Wr(positions)
        return torch.stack([angles.cos(), angles.sin()]).unsqueeze(2)


def rotate(x: Float[Tensor, "b h n c"], encoding: Float[Tensor, "2 b 1 n c//2"]) -> Float[Tensor, "b h n c"]:
    """R(p) x (eq. 4): each pair of neighbouring channels is rotated by its angle."""
    cos, sin = encoding.to(x.dtype)  # b 1 n head_dim/2, each
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2)


def feed_forward(dim: int) -> nn.Sequential:
    """The MLP that computes the update of a state from the state and its message (eq. 1)."""
    return nn.Sequential(nn.Linear(2 * dim, 2 * dim), nn.LayerNorm(2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))


class SelfBlock(nn.Module):
    """Points attend to all points of their image, by content and relative position (section 3.1, eq. 3)."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.Wqkv = nn.Linear(dim, 3 * dim)  # output channel (head, channel of the head, one of q k v)
        self.out_proj = nn.Linear(dim, dim)
        self.ffn = feed_forward(dim)

    def forward(self, x: Float[Tensor, "b n d"], encoding: Float[Tensor, "2 b 1 n angles"]) -> Float[Tensor, "b n d"]:
        """The updated states."""
        query, key, value = self.Wqkv(x).unflatten(-1, (self.num_heads, -1, 3)).permute(4, 0, 2, 1, 3)  # b h n head_dim
        query, key = rotate(query, encoding), rotate(key, encoding)
        context = F.scaled_dot_product_attention(query, key, value.contiguous())  # fast kernels need the channels side by side
        message = self.out_proj(context.transpose(1, 2).flatten(-2))
        return x + self.ffn(torch.cat([x, message], dim=-1))


class CrossBlock(nn.Module):
    """Points attend to all points of the other image, by content. One projection serves as query and as key (eq. 5)."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.to_qk = nn.Linear(dim, dim)
        self.to_v = nn.Linear(dim, dim)
        self.to_out = nn.Linear(dim, dim)
        self.ffn = feed_forward(dim)

    def forward(
        self, x0: Float[Tensor, "b m d"], x1: Float[Tensor, "b n d"]
    ) -> tuple[Float[Tensor, "b m d"], Float[Tensor, "b n d"]]:
        """The updated states."""
        key0, key1 = self._heads(self.to_qk(x0)), self._heads(self.to_qk(x1))
        value0, value1 = self._heads(self.to_v(x0)), self._heads(self.to_v(x1))
        return self._update(x0, key0, key1, value1), self._update(x1, key1, key0, value0)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # b h n head_dim

    def _update(self, x: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        # Each direction computes the similarities anew: faster than storing an h m n matrix for both.
        context = F.scaled_dot_product_attention(query, key, value)
        message = self.to_out(context.transpose(1, 2).flatten(-2))
        return x + self.ffn(torch.cat([x, message], dim=-1))


class Layer(nn.Module):
    """One self block, which both images share, and one cross block."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.self_attn = SelfBlock(dim, num_heads)
        self.cross_attn = CrossBlock(dim, num_heads)

    def forward(
        self,
        x0: Float[Tensor, "b m d"],
        x1: Float[Tensor, "b n d"],
        encoding0: Float[Tensor, "2 b 1 m angles"],
        encoding1: Float[Tensor, "2 b 1 n angles"],
    ) -> tuple[Float[Tensor, "b m d"], Float[Tensor, "b n d"]]:
        """The updated states."""
        return self.cross_attn(self.self_attn(x0, encoding0), self.self_attn(x1, encoding1))


class MatchAssignment(nn.Module):
    """Soft partial assignment from similarities and matchabilities (section 3.2, eq. 6 to 8)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.matchability = nn.Linear(dim, 1)
        self.final_proj = nn.Linear(dim, dim)

    def forward(self, x0: Float[Tensor, "b m d"], x1: Float[Tensor, "b n d"]) -> Float[Tensor, "b m+1 n+1"]:
        """Log assignment. The last row and column are the log probabilities of having no match."""
        scores = F.pad(self.log_scores(x0, x1), (0, 1, 0, 1))
        scores[:, :-1, -1:] = F.logsigmoid(-self.matchability(x0))
        scores[:, -1:, :-1] = F.logsigmoid(-self.matchability(x1)).mT
        return scores

    def log_scores(self, x0: Float[Tensor, "b m d"], x1: Float[Tensor, "b n d"]) -> Float[Tensor, "b m n"]:
        """Log assignment of the pairs of points: double softmax times both matchabilities."""
        scale = x0.shape[-1] ** -0.25
        similarity = (self.final_proj(x0) * scale) @ (self.final_proj(x1) * scale).mT  # b m n
        scores = F.log_softmax(similarity, dim=2) + F.log_softmax(similarity, dim=1)
        scores += F.logsigmoid(self.matchability(x0))  # in place: with 4096 keypoints each copy takes 64 MB
        scores += F.logsigmoid(self.matchability(x1)).mT
        return scores

    def matchability_of(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n"]:
        """Probability that a point has a match."""
        return self.matchability(x).squeeze(-1).sigmoid()


class TokenConfidence(nn.Module):
    """Confidence that the prediction for a point will not change in later layers (section 3.3, eq. 9)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.token = nn.Sequential(nn.Linear(dim, 1))

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n"]:
        """Confidences in 0..1."""
        return self.logits(x).sigmoid()

    def logits(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n"]:
        """Confidences before the sigmoid. They pass no gradient to the states: their loss must not change the matching."""
        return self.token(x.detach()).squeeze(-1)


class LightGlue(nn.Module):
    """The network of section 3. It computes in the precision of its weights."""

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
        self.token_confidence = nn.ModuleList(TokenConfidence(dim) for _ in range(num_layers - 1))  # the last layer always stops

    def forward(
        self,
        keypoints0: Float[Tensor, "b m 2"],
        keypoints1: Float[Tensor, "b n 2"],
        descriptors0: Float[Tensor, "b m c"],
        descriptors1: Float[Tensor, "b n c"],
        size0: Num[Tensor, "b 2"],
        size1: Num[Tensor, "b 2"],
        scales_orientations0: Float[Tensor, "b m 2"] | None = None,
        scales_orientations1: Float[Tensor, "b n 2"] | None = None,
    ) -> LightGlueOutput:
        """The descriptors after each layer: all layers run on all points.

        Args:
            keypoints0, keypoints1: (x, y) px, with the centre of the top-left pixel at (0, 0).
            descriptors0, descriptors1: c is the input_dim of the settings.
            size0, size1: (width, height) px.
            scales_orientations0, scales_orientations1: scales px and orientations rad, in the unit of the training. Only for
                networks with add_scale_orientation.

        Raises: ValueError if the features do not fit the settings.
        """
        with torch.autocast(keypoints0.device.type, enabled=False):  # the 8 bits of bfloat16 are too few for positions and states
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
        keypoints0: Float[Tensor, "m 2"],
        keypoints1: Float[Tensor, "n 2"],
        descriptors0: Float[Tensor, "m c"],
        descriptors1: Float[Tensor, "n c"],
        size0: tuple[float, float],
        size1: tuple[float, float],
        scales_orientations0: Float[Tensor, "m 2"] | None = None,
        scales_orientations1: Float[Tensor, "n 2"] | None = None,
    ) -> LightGlueMatches:
        """The matches of one pair, with adaptive depth and width (section 3.3).

        The arguments are those of `forward`, for one pair. Points are dropped however few there are, as in the original code on
        a CPU, so that results do not depend on the device.

        Raises: ValueError if the features do not fit the settings.
        """
        points0 = self._points(keypoints0, descriptors0, size0, scales_orientations0)
        points1 = self._points(keypoints1, descriptors1, size1, scales_orientations1)
        num_points = len(keypoints0) + len(keypoints1)
        stop_layer = 0
        for i, layer in enumerate(self.transformers):
            if not (len(points0.indices) and len(points1.indices)):
                break  # an image has no keypoints, or all were dropped
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
        """The confidence from which on a point counts as confident after layer i (from 0). It decays towards later layers."""
        return 0.8 + 0.1 * math.exp(-4 * i / self.settings.num_layers)

    def embed(
        self,
        keypoints: Float[Tensor, "b n 2"],
        descriptors: Float[Tensor, "b n c"],
        size: Num[Tensor, "b 2"],
        extra: Float[Tensor, "b n 2"] | None,
    ) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "2 b 1 n angles"]]:
        """The first states, and the encoding of the positions.

        Args:
            keypoints, descriptors, size: as in `forward`.
            extra: scales and orientations.

        Raises: ValueError if the features do not fit the settings.
        """
        settings, dtype = self.settings, self.posenc.Wr.weight.dtype
        if descriptors.shape[-1] != settings.input_dim:
            raise ValueError(
                f"descriptors have size {descriptors.shape[-1]}, this LightGlue was trained for {settings.input_dim}: "
                "choose the network for these features"
            )
        if (extra is not None) != settings.add_scale_orientation:
            wants = "needs" if settings.add_scale_orientation else "takes no"
            raise ValueError(f"this LightGlue {wants} scales and orientations: choose the network for these features")
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
        """Whether enough of all `num_points` points of the pair are confident (eq. 10). Dropped points count as confident."""
        if confidence0 is None or confidence1 is None:
            return False
        unconfident = (torch.cat([confidence0, confidence1]) < self.confidence_threshold(i)).sum()
        return bool(1 - unconfident / num_points > self.settings.depth_confidence)

    def _prune(self, points: _Points, confidence: Tensor | None, i: int) -> _Points:
        """The points without those that are confidently unmatchable."""
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
        """The matches among the points in play, with indices into all points."""
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
    """The k points of one image that are still in play, out of n."""

    x: Float[Tensor, "1 k d"]
    """States."""
    encoding: Float[Tensor, "2 1 1 k angles"]
    indices: Int64[Tensor, " k"]
    """Into all points of the image."""
    survived: Int64[Tensor, " n"]
    """See `LightGlueMatches.prune0`."""


def mutual_best(
    log_scores: Float[Tensor, "m n"],
) -> tuple[Int64[Tensor, " k"], Int64[Tensor, " k"], Float32[Tensor, " k"]]:
    """Rows, columns and scores of the entries that are the largest of their row and of their column; m and n > 0."""
    best1, best0 = log_scores.max(dim=1), log_scores.max(dim=0).indices
    rows = torch.arange(len(log_scores), device=log_scores.device)
    rows = rows[best0[best1.indices] == rows]
    return rows, best1.indices[rows], best1.values[rows].float().exp()
