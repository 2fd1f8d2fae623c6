"""The pairs that a call of the engine still works on, as one list of tokens.

The tokens of a batch are the keypoints of image 0 of each pair, then the keypoints of image 1 of each pair. A batch never changes
its pairs or tokens: `Batch.prune` gives a smaller batch. The layers update the states of the tokens in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32, Int, Int32, Int64, Shaped
from torch import Tensor

from sfm_lightglue.engine.numerics import Tokens


@dataclass(frozen=True)
class ImageState:
    """Everything about an image that does not depend on its partner; n keypoints, d channels."""

    state: Float32[Tensor, "n d"]
    """After the self block of the first layer."""
    projections: Float[Tensor, "n 2*d"]
    """For the cross block of the first layer."""
    cos_sin: Float[Tensor, "n angles"]
    """Cosines | sines of the rotary encoding, for the d / h channels of a head."""
    descriptors: Float32[Tensor, "n c"] | None = None
    """Unit length; None without early rejection."""

    def __len__(self) -> int:
        return len(self.state)

    @property
    def num_bytes(self) -> int:
        """Memory of the tensors."""
        parts = self.state, self.projections, self.cos_sin, self.descriptors
        return sum(part.nbytes for part in parts if part is not None)


@dataclass(frozen=True)
class Batch:
    """p pairs in play, with T tokens in all."""

    pairs: Int64[np.ndarray, " p"]
    """Index of each pair among the pairs given to the engine."""
    lengths: Int[np.ndarray, "2 p"]
    """Number of tokens of each image."""
    num_points: Int64[np.ndarray, " p"]
    """Number of keypoints of both images before any was dropped."""
    tokens: Tokens
    points: Int64[Tensor, " T"]
    """Number of each token's keypoint. The numbers count the keypoints of image 0 of all pairs given to the engine, then the
    keypoints of image 1 of all pairs."""

    @classmethod
    def of(
        cls,
        pairs: Int64[np.ndarray, " p"],
        images: Sequence[ImageState],
        first_points: Int64[np.ndarray, " images"],
        dtype: torch.dtype,
    ) -> Batch:
        """All keypoints of some pairs, at least one pair.

        Args:
            pairs: as in the field.
            images: image 0 of each of these pairs, then image 1 of each; every image has keypoints.
            first_points: number of the first keypoint of each image.
            dtype: element type of the matrix products.
        """
        lengths = np.array([len(image) for image in images], dtype=np.int64)
        state, cos_sin = (torch.cat([getattr(image, field) for image in images]) for field in ("state", "cos_sin"))
        points = np.concatenate([first + np.arange(length) for first, length in zip(first_points, lengths, strict=True)])
        lengths = lengths.reshape(2, -1)
        return cls(pairs, lengths, lengths.sum(axis=0), Tokens.of(state, cos_sin, dtype), send(points, state.device))

    def __len__(self) -> int:
        return len(self.pairs)

    @cached_property
    def borders(self) -> list[int]:
        """First token of each of the 2p images, and T at the end."""
        return [0, *np.cumsum(self.lengths).tolist()]

    @cached_property
    def borders_of_sides(self) -> tuple[list[int], list[int]]:
        """The same for images 0 alone and for images 1 alone; both begin at 0."""
        return [0, *np.cumsum(self.lengths[0]).tolist()], [0, *np.cumsum(self.lengths[1]).tolist()]

    @property
    def half(self) -> int:
        """Number of tokens of images 0."""
        return self.borders[len(self)]

    def count(self, flags: Bool[Tensor, "f T"]) -> Int32[np.ndarray, "f 2 p"]:
        """The number of tokens of each image that have each flag. Waits for the device once."""
        totals = F.pad(flags.cumsum(dim=1, dtype=torch.int32), (1, 0))
        at_borders = totals[:, send(np.array(self.borders), flags.device)].cpu().numpy()
        return np.diff(at_borders, axis=1).reshape(len(flags), 2, -1)

    def of_tokens(self, flags: Bool[np.ndarray, " p"]) -> Bool[Tensor, " T"]:
        """A flag of each token, from a flag of each pair."""
        return send(np.repeat(np.tile(flags, 2), self.lengths.flat), self.points.device)

    def prune(self, keep: Bool[Tensor, " T"], num_kept: Int[np.ndarray, "2 p"], goes_on: Bool[np.ndarray, " p"]) -> Batch:
        """The pairs that go on, with the tokens to keep. `num_kept` is the number of tokens to keep in each image."""
        if goes_on.all() and (num_kept == self.lengths).all():
            return self
        lengths = num_kept[:, goes_on]
        kept = _indices(keep & self.of_tokens(goes_on), int(lengths.sum()))
        tokens = Tokens.of(self.tokens.state[kept], self.tokens.cos_sin[kept], self.tokens.rows.dtype)
        return Batch(self.pairs[goes_on], lengths, self.num_points[goes_on], tokens, self.points[kept])


def on_gpu(tensor: Tensor) -> bool:
    """Whether few large steps are faster than many small ones."""
    return not tensor.is_cpu


def send(array: Shaped[np.ndarray, "*n"], device: torch.device) -> Shaped[Tensor, "*n"]:
    """The array on the device. Does not wait for the work that a GPU still has to do."""
    return torch.from_numpy(array).to(device, non_blocking=device.type == "cuda")  # Apple's GPU may read the memory too late


def _indices(flags: Bool[Tensor, " T"], count: int) -> Int64[Tensor, " {count}"]:
    """Ascending indices of the flags that are set. As their count is known, this does not wait for a GPU."""
    if on_gpu(flags):  # before torch 2.7 nonzero_static is for CPUs alone
        return (~flags).byte().argsort(stable=True)[:count]
    return torch.nonzero_static(flags, size=count)[:, 0]
