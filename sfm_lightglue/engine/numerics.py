"""The steps of a LightGlue layer on concatenated tokens, in one precision and on one device.

The result for a token (in attention: for a segment) does not depend on the other tokens of the batch. On a CPU this holds bit for
bit. The matrix products of MKL and oneDNN have this property from `MIN_ROWS` rows on: measured for 1 to 6000 rows, AMD Zen 4 from
4, Intel Xeon with AMX from 16. Products with fewer rows run other code, so they are padded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32
from torch import Tensor

from sfm_lightglue.engine.assignment import Scan, scan_rows
from sfm_lightglue.engine.attention import Borders, attend, attend_in_chunks, attend_on_gpu, has_tiles, segments
from sfm_lightglue.engine.kernel_calls import IntegerWeights, Kernels
from sfm_lightglue.engine.packing import FeedForward, PackedLayer
from sfm_lightglue.engine.workspace import Workspace

MIN_ROWS = 16
"""Fewest rows of a matrix product. `Numerics` pads its products to a multiple of this."""
BFLOAT16_ROWS = 64
"""The same for bfloat16. oneDNN compiles code for each new number of rows, which takes 0.7 ms and 0.6 MB, and nearly every layer
of every pair has another number."""
BFLOAT16_ROWS_BY_TILES = 512
"""Fewest rows of a bfloat16 product on CPUs with AMX. With 512 x 512 weights and at most 448 rows, oneDNN adds up in another
order (measured for 64 to 131072 rows and eight shapes of weights, Intel Xeon with AMX)."""


@dataclass(frozen=True)
class Tokens:
    """The states of T keypoints, from one image or from many pairs one after the other."""

    state: Float32[Tensor, "T d"]
    """A view of `rows` if these are float32 too."""
    rows: Float[Tensor, "T 2*d"]
    """The state | the context that attention gathered, in the precision of the matrix products. Zeros follow the last row, up to
    the number of rows that products need."""
    cos_sin: Float[Tensor, "T c"]
    """Cosines | sines of the rotary encoding; c = d / h channels of a head."""

    @classmethod
    def of(cls, state: Float32[Tensor, "T d"], cos_sin: Float[Tensor, "T c"], dtype: torch.dtype) -> Tokens:
        """Tokens with these states.

        Args:
            state: the layers may overwrite it, so nothing else may use it.
            cos_sin: as in the field.
            dtype: element type of the matrix products.
        """
        count, dim = state.shape
        rows = state.new_empty((_whole_steps(count, dtype), 2 * dim), dtype=dtype)
        rows[count:] = 0
        rows = rows[:count]
        rows[:, :dim] = state
        return cls(rows[:, :dim] if dtype == torch.float32 else state, rows, cos_sin)

    @property
    def inputs(self) -> Float[Tensor, "T d"]:
        """The states in the precision of the matrix products."""
        return self.rows[:, : self.state.shape[1]]

    @property
    def context(self) -> Float[Tensor, "T d"]:
        """Attention writes its result here."""
        return self.rows[:, self.state.shape[1] :]


@runtime_checkable  # tests check arguments against annotations
class Numerics(Protocol):
    """The computations of a layer."""

    dtype: torch.dtype
    """Element type of the matrix products."""
    vector_dtype: torch.dtype
    """Element type of biases, norms and the rotary encoding."""
    num_heads: int
    scan_rows: Scan
    """See `assignment`."""

    def self_projections(self, tokens: Tokens, layer: PackedLayer) -> Tensor:
        """Rotated queries | rotated keys | values (T, 3d). Valid until the next step."""
        ...

    def cross_projections(self, tokens: Tokens, layer: PackedLayer) -> Tensor:
        """Keys, which are queries too | values (T, 2d). Valid until the next step."""
        ...

    def attend(self, query: Tensor, key: Tensor, value: Tensor, out: Tensor, borders: tuple[Borders, Borders]) -> None:
        """Softmax attention; the arguments are explained in the module `attention`."""
        ...

    def update(self, tokens: Tokens, block: FeedForward, heads: Tensor | None) -> Tensor | None:
        """Adds the update by the feed-forward network to the states. Returns logits (T, 2) of the new states if heads (2, d) are
        given."""
        ...


class TorchNumerics:
    """The computations by torch alone, on any device."""

    def __init__(self, num_heads: int, dtype: torch.dtype, device: str) -> None:
        self.num_heads, self.dtype, self.vector_dtype = num_heads, dtype, dtype
        self.scan_rows: Scan = scan_rows
        self.device = torch.device(device)
        self.space = Workspace()

    def self_projections(self, tokens: Tokens, layer: PackedLayer) -> Tensor:
        dim = tokens.state.shape[1]
        projected = self._product("projections", tokens.inputs, layer.self_weight, layer.self_bias)
        first, second = projected[:, : 2 * dim].unflatten(1, (2 * self.num_heads, 2, -1)).unbind(2)  # T 2h hd/2
        cos, sin = tokens.cos_sin[:, None].chunk(2, dim=-1)
        turned = torch.mul(first, cos, out=self._take("turned", first.shape)).addcmul_(second, sin, value=-1)
        second.mul_(cos).addcmul_(first, sin)
        first.copy_(turned)
        return projected

    def cross_projections(self, tokens: Tokens, layer: PackedLayer) -> Tensor:
        return self._product("projections", tokens.inputs, layer.cross_weight, layer.cross_bias)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, out: Tensor, borders: tuple[Borders, Borders]) -> None:
        if self.device.type == "cuda":
            attend_on_gpu(query, key, value, out, borders, self.num_heads)
        elif self.device.type != "cpu" or self.dtype == torch.float32 or has_tiles():
            attend(query, key, value, out, borders, self.num_heads)
        else:
            attend_in_chunks(query, key, value, out, borders, self.num_heads, self.space)

    def update(self, tokens: Tokens, block: FeedForward, heads: Tensor | None) -> Tensor | None:
        hidden = self._product("hidden", tokens.rows, block.weight0, block.bias0)
        hidden = F.layer_norm(_in_steps(hidden), hidden.shape[1:], block.norm_weight, block.norm_bias)
        torch.ops.aten.gelu_(hidden)
        change = self._product("change", hidden, block.weight1, block.bias1)
        tokens.state.add_(change[: len(tokens.state)])
        if tokens.state.dtype != tokens.rows.dtype:
            tokens.inputs.copy_(tokens.state)
        return None if heads is None else linear(tokens.state, heads)

    def _product(self, name: str, rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        inputs = _in_steps(rows)
        return torch.addmm(bias, inputs, weight.T, out=self._take(name, (len(inputs), len(weight))))[: len(rows)]

    def _take(self, name: str, shape: torch.Size | tuple[int, ...]) -> Tensor:
        return self.space.take(name, shape, self.dtype, self.device)


class KernelNumerics:
    """The computations on a CPU: matrix products by torch, everything between them by compiled kernels."""

    def __init__(self, num_heads: int, dtype: torch.dtype, kernels: Kernels) -> None:
        self.num_heads, self.dtype, self.vector_dtype = num_heads, dtype, torch.float32
        self.scan_rows: Scan = kernels.scan_rows
        self.kernels, self.space = kernels, Workspace()

    def self_projections(self, tokens: Tokens, layer: PackedLayer) -> Tensor:
        projected = self._product("projections", tokens.inputs, layer.self_weight)
        dim = tokens.state.shape[1]  # values have no bias
        self.kernels.rotate(projected[:, : 2 * dim], tokens.cos_sin, self.num_heads, layer.self_bias[: 2 * dim])
        return projected

    def cross_projections(self, tokens: Tokens, layer: PackedLayer) -> Tensor:
        projected = self._product("projections", tokens.inputs, layer.cross_weight)
        dim = tokens.state.shape[1]
        self.kernels.add_bias(projected[:, :dim], layer.cross_bias[:dim])
        return projected

    def attend(self, query: Tensor, key: Tensor, value: Tensor, out: Tensor, borders: tuple[Borders, Borders]) -> None:
        for rows, columns in segments(*borders):
            self.kernels.attention(query[rows], key[columns], value[columns], out[rows], self.num_heads, 1.0)

    def update(self, tokens: Tokens, block: FeedForward, heads: Tensor | None) -> Tensor | None:
        hidden = self._product("hidden", tokens.rows, block.weight0)
        self.kernels.bias_norm_gelu(hidden, block.bias0, block.norm_weight, block.norm_bias)
        change = self._product("change", hidden, block.weight1)
        return self.kernels.add_update(tokens.state, change, block.bias1, tokens.inputs, heads)

    def _product(self, name: str, rows: Tensor, weight: Tensor) -> Tensor:
        inputs = _in_steps(rows)
        return torch.mm(inputs, weight.T, out=self.space.take(name, (len(inputs), len(weight)), self.dtype))[: len(rows)]


class IntegerNumerics(KernelNumerics):
    """The computations on a CPU whose instructions multiply 16-bit integers, but not bfloat16: states and everything between the
    products are float32."""

    def __init__(self, num_heads: int, kernels: Kernels) -> None:
        super().__init__(num_heads, torch.float32, kernels)
        self._weights: dict[int, tuple[Tensor, IntegerWeights]] = {}  # by the address of the tensor, which is kept

    def attend(self, query: Tensor, key: Tensor, value: Tensor, out: Tensor, borders: tuple[Borders, Borders]) -> None:
        for rows, columns in segments(*borders):
            self.kernels.attention(query[rows], key[columns], value[columns], out[rows], self.num_heads, 1.0, by_integers=True)

    def _product(self, name: str, rows: Tensor, weight: Tensor) -> Tensor:
        found = self._weights.get(id(weight))
        if found is None:
            found = self._weights[id(weight)] = weight, self.kernels.integer_weights(weight)
        out = self.space.take(name, (len(rows), len(weight)), torch.float32)
        self.kernels.product(rows, found[1], out)
        return out


def _whole_steps(count: int, dtype: torch.dtype) -> int:
    step = BFLOAT16_ROWS if dtype == torch.bfloat16 else MIN_ROWS
    least = BFLOAT16_ROWS_BY_TILES if dtype == torch.bfloat16 and has_tiles() else 0
    return max(least, -(-count // step) * step)


def _in_steps(rows: Tensor) -> Tensor:
    """Rows of `Tokens` or of an earlier product, together with the padding behind them, up to a whole number of steps."""
    return rows.as_strided((_whole_steps(len(rows), rows.dtype), rows.shape[1]), rows.stride())


def linear(
    rows: Float[Tensor, "T i"], weight: Float[Tensor, "o i"], bias: Float[Tensor, " o"] | None = None
) -> Float[Tensor, "T o"]:
    """A linear map of the rows. Fewer than `MIN_ROWS` rows are padded for the product."""
    if len(rows) < MIN_ROWS:
        return F.linear(F.pad(rows, (0, 0, 0, MIN_ROWS - len(rows))), weight, bias)[: len(rows)]
    return F.linear(rows, weight, bias)
