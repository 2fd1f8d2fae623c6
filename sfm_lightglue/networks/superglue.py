"""SuperGlue: learning feature matching with graph neural networks (Sarlin et al., arXiv:1911.11763).

Owns the network, in one definition for training (`SuperGlue.forward`) and inference (`SuperGlue.match`). It has no batch
normalisation: `superglue_checkpoints` folds the batch normalisation of the published weights into the linear maps.
Shapes: b pairs, m keypoints in image 0, n in image 1, d = descriptor_dim, h heads of size d / h.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Num
from torch import Tensor, nn

from sfm_lightglue.networks.lightglue import mutual_best


@dataclass(frozen=True)
class SuperGlueSettings:
    """The size of the network, and the two settings of its matching layer, with the published values (section 4)."""

    descriptor_dim: int = 256
    """Size of the input descriptors (SuperPoint's) and of all states."""
    keypoint_encoder_dims: tuple[int, ...] = (32, 64, 128, 256)
    """Hidden sizes of the MLP that encodes keypoints."""
    num_layers: int = 18
    """Layers of self and cross attention, in alternation. The paper counts nine pairs of layers."""
    num_heads: int = 4
    sinkhorn_iterations: int = 100
    match_threshold: float = 0.2
    """A match has a score above this. The value is the default of the authors' code; the paper has none."""

    def __post_init__(self) -> None:
        if self.descriptor_dim % self.num_heads:
            raise ValueError(f"descriptor_dim={self.descriptor_dim} must be a multiple of num_heads={self.num_heads}")
        if self.sinkhorn_iterations < 1:
            raise ValueError(f"sinkhorn_iterations must be at least 1, found {self.sinkhorn_iterations}")


@dataclass(frozen=True)
class SuperGlueMatches:
    """Matches of one pair."""

    matches0: Int64[Tensor, " m"]
    """Index into keypoints1, -1 for no match."""
    scores0: Float[Tensor, " m"]
    """Score of the mutually best partner, even if it is below the threshold; 0 without a partner."""
    num_layers: int
    """Number of layers that ran; 0 if an image has no keypoints."""


def normalize_keypoints(keypoints: Float[Tensor, "b n 2"], size: Num[Tensor, "b 2"]) -> Float[Tensor, "b n 2"]:
    """Positions that are 0 at the image centre and +-1 / 1.4 at the ends of the longer side.

    Keypoints are (x, y) px, sizes (width, height) px. The published weights were trained with exactly this formula, on keypoints
    with the centre of the top-left pixel at (0, 0).
    """
    size = size.to(keypoints)
    return (keypoints - size[:, None] / 2) / (0.7 * size.amax(dim=1)[:, None, None])


class MLP(nn.ModuleList):
    """Linear maps with ReLU between them."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(nn.Linear(size_in, size_out) for size_in, size_out in pairwise(sizes))
        nn.init.zeros_(self[-1].bias)  # type: ignore[arg-type]

    def forward(self, x: Float[Tensor, "*b size_in"]) -> Float[Tensor, "*b size_out"]:
        """The outputs of the last linear map."""
        *hidden, last = self
        for linear in hidden:
            x = F.relu(linear(x), inplace=True)
        return last(x)


class AttentionalLayer(nn.Module):
    """One layer of the graph neural network: each point receives a message from the points of one image (eq. 3 to 5)."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)  # output channel (one of q k v, head, channel of the head)
        self.merge = nn.Linear(dim, dim)
        self.mlp = MLP(2 * dim, 2 * dim, dim)

    def forward(
        self, x0: Float[Tensor, "b m d"], x1: Float[Tensor, "b n d"], *, cross: bool
    ) -> tuple[Float[Tensor, "b m d"], Float[Tensor, "b n d"]]:
        """The updated states. Messages come from the other image if `cross`, else from the same image."""
        query0, *source0 = self._project(x0)
        query1, *source1 = self._project(x1)
        if cross:
            source0, source1 = source1, source0
        return self._update(x0, query0, *source0), self._update(x1, query1, *source1)

    def _project(self, x: Tensor) -> Tensor:
        return self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # 3 b h n d/h

    def _update(self, x: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        context = F.scaled_dot_product_attention(query, key, value)
        message = self.merge(context.transpose(1, 2).flatten(-2))
        return x + self.mlp(torch.cat([x, message], dim=-1))


class SuperGlue(nn.Module):
    """The network of section 3. It computes in the precision of its weights."""

    def __init__(self, settings: SuperGlueSettings) -> None:
        super().__init__()
        self.settings = settings
        dim = settings.descriptor_dim
        self.keypoint_encoder = MLP(3, *settings.keypoint_encoder_dims, dim)
        self.layers = nn.ModuleList(AttentionalLayer(dim, settings.num_heads) for _ in range(settings.num_layers))
        self.final_proj = nn.Linear(dim, dim)
        self.bin_score = nn.Parameter(torch.ones(()))

    def forward(
        self,
        keypoints0: Float[Tensor, "b m 2"],
        keypoints1: Float[Tensor, "b n 2"],
        descriptors0: Float[Tensor, "b m d"],
        descriptors1: Float[Tensor, "b n d"],
        scores0: Float[Tensor, "b m"],
        scores1: Float[Tensor, "b n"],
        size0: Num[Tensor, "b 2"],
        size1: Num[Tensor, "b 2"],
    ) -> Float[Tensor, "b m+1 n+1"]:
        """Log assignment. The last row and column are the dustbins.

        Args:
            keypoints0, keypoints1: (x, y) px, with the centre of the top-left pixel at (0, 0); m and n must not be 0.
            descriptors0, descriptors1: d is the descriptor_dim of the settings.
            scores0, scores1: detection scores in 0..1.
            size0, size1: (width, height) px.

        Raises: ValueError for descriptors of another size.
        """
        x0 = self._embed(keypoints0, descriptors0, scores0, size0)
        x1 = self._embed(keypoints1, descriptors1, scores1, size1)
        for i, layer in enumerate(self.layers):
            x0, x1 = layer(x0, x1, cross=i % 2 == 1)
        similarity = self.final_proj(x0) @ self.final_proj(x1).mT / self.settings.descriptor_dim**0.5  # eq. 6 and 7
        return log_optimal_transport(similarity, self.bin_score, self.settings.sinkhorn_iterations)

    @torch.no_grad()
    def match(
        self,
        keypoints0: Float[Tensor, "m 2"],
        keypoints1: Float[Tensor, "n 2"],
        descriptors0: Float[Tensor, "m d"],
        descriptors1: Float[Tensor, "n d"],
        scores0: Float[Tensor, " m"],
        scores1: Float[Tensor, " n"],
        size0: tuple[float, float],
        size1: tuple[float, float],
    ) -> SuperGlueMatches:
        """The matches of one pair: mutually best partners with a score above the threshold.

        The arguments are those of `forward`, for one pair. An image may have no keypoints.

        Raises: ValueError for descriptors of another size.
        """
        num0, num1 = len(keypoints0), len(keypoints1)
        matches = torch.full((num0,), -1, device=keypoints0.device)
        scores = torch.zeros(num0, device=keypoints0.device)
        if num0 == 0 or num1 == 0:
            return SuperGlueMatches(matches, scores, 0)
        points = keypoints0, keypoints1, descriptors0, descriptors1, scores0, scores1
        sizes = (keypoints0.new_tensor([size]) for size in (size0, size1))
        log_assignment = self(*(values[None] for values in points), *sizes)[0]
        best0, best1, best_scores = mutual_best(log_assignment[:-1, :-1])
        scores[best0] = best_scores
        accepted = best_scores > self.settings.match_threshold
        matches[best0[accepted]] = best1[accepted]
        return SuperGlueMatches(matches, scores, self.settings.num_layers)

    def _embed(self, keypoints: Tensor, descriptors: Tensor, scores: Tensor, size: Tensor) -> Tensor:
        """The first states (b, n, d): descriptors plus an encoding of position and detection score (eq. 2)."""
        if descriptors.shape[-1] != self.settings.descriptor_dim:
            raise ValueError(
                f"descriptors have size {descriptors.shape[-1]}, this SuperGlue was trained for "
                f"{self.settings.descriptor_dim}: give the features it was trained with"
            )
        dtype = self.bin_score.dtype
        positions = torch.cat([normalize_keypoints(keypoints, size).to(dtype), scores[..., None].to(dtype)], dim=-1)
        return descriptors.to(dtype) + self.keypoint_encoder(positions)


def log_optimal_transport(
    similarity: Float[Tensor, "b m n"], bin_score: Float[Tensor, ""], iterations: int
) -> Float[Tensor, "b m+1 n+1"]:
    """Log assignment from the similarities of points and the score of the dustbins (section 3.2).

    Each point has mass 1. A dustbin has room for all points of the other image (eq. 8 and 9).
    """
    batch, m, n = similarity.shape
    right = bin_score.expand(batch, m, 1)
    scores = torch.cat([torch.cat([similarity, right], dim=2), bin_score.expand(batch, 1, n + 1)], dim=1)
    log_masses0, log_masses1 = similarity.new_zeros(m + 1), similarity.new_zeros(n + 1)
    log_masses0[-1], log_masses1[-1] = math.log(n), math.log(m)
    return log_sinkhorn(scores, log_masses0, log_masses1, iterations)


def log_sinkhorn(
    scores: Float[Tensor, "b p q"],
    log_masses0: Float[Tensor, " p"],
    log_masses1: Float[Tensor, " q"],
    iterations: int,
    refresh: int = 20,
) -> Float[Tensor, "b p q"]:
    """Log of the matrix exp(scores) after Sinkhorn's algorithm scaled its rows and columns in turn.

    In log space nothing over- or underflows, but each iteration costs two exponentials of each entry. So only one iteration in
    `refresh` runs in log space. The others scale the matrix that it left, by products with vectors. An iteration changes a
    scaling by a factor of p + q at most, and in practice by less and less, so 20 iterations stay within the range of float32.
    The iterates are the same (Schmitzer, arXiv:1610.06519, section 3.1). 100 iterations at 2048 x 2048 take 0.2 s on one core
    instead of 1.6 s.

    Args:
        scores: the logarithms of the matrix.
        log_masses0: the rows have the sums exp(log_masses0).
        log_masses1: the columns have the sums exp(log_masses1).
        iterations: number of scalings of all rows and then of all columns.
        refresh: iterations for each one in log space.
    """
    masses0, masses1 = log_masses0.exp(), log_masses1.exp()
    v = torch.zeros_like(scores[:, 0])  # b q
    for done in range(0, iterations, refresh):
        u = log_masses0 - (scores + v[:, None]).logsumexp(dim=2)  # b p
        v = log_masses1 - (scores + u[..., None]).logsumexp(dim=1)
        kernel = (scores + u[..., None] + v[:, None]).exp()
        scale0, scale1 = torch.ones_like(u), torch.ones_like(v)
        for _ in range(min(refresh, iterations - done) - 1):
            scale0 = masses0 / (kernel @ scale1[..., None])[..., 0]
            scale1 = masses1 / (kernel.mT @ scale0[..., None])[..., 0]
        u, v = u + scale0.log(), v + scale1.log()
    return scores + u[..., None] + v[:, None]
