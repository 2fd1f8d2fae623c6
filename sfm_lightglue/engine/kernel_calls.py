"""The compiled kernels on torch tensors, called by ctypes. `kernels.py` finds the library.

A call runs in the thread of its caller, without Python's lock, and keeps nothing. Several threads may call at the same time.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from jaxtyping import Float32, Int16, Int64, Shaped
from torch import Tensor

HEAD_SIZES = (32, 64, 96, 128)
"""Channels of a head for which `attention` has code."""
MAX_WIDTH = 4096
"""Most channels of a row in `bias_norm_gelu`; MAX_WIDTH in the source."""
MAX_COLUMNS = 1 << 24
"""Number of columns that `two_nearest` cannot count any more; MAX_COLUMNS in the source."""
FIRST_CHANNELS = 64
"""Channels of the result of `first_layer`; CHANNELS in the source."""
SUM_OF_WEIGHTS = 2**31 / 8192 - 2048
"""Largest sum of the integer weights of a result, less what rounding may add: with inputs up to 8191 no sum overflows."""

_POINTER, _LONG, _FLOAT = ctypes.c_void_p, ctypes.c_long, ctypes.c_float
_ROWS = (_POINTER, _LONG, _LONG, _LONG)  # address, stride, rows, width
_ARGUMENTS = {
    "attention": (_POINTER, _LONG, _LONG, *(_POINTER, _LONG) * 2, _LONG, _POINTER, _LONG, _LONG, _LONG, _FLOAT),
    "add_bias": (*_ROWS, _POINTER),
    "rotate": (*_ROWS, _POINTER, _LONG, _LONG, _POINTER),
    "bias_norm_gelu": (*_ROWS, _POINTER, _POINTER, _POINTER),
    "add_update": (*(_POINTER, _LONG) * 3, _LONG, _LONG, _POINTER, _POINTER, _POINTER),
    "scan_rows": (*_ROWS, _FLOAT, *(_POINTER,) * 6, _LONG),
    "two_nearest": (*(_POINTER, _LONG, _LONG, _POINTER) * 2, _LONG, *(_POINTER,) * 5),
    "first_layer": (*_ROWS, _POINTER, _POINTER),
    "winograd": (_POINTER, *(_LONG,) * 5, *(_POINTER,) * 3, *(_LONG,) * 3, _POINTER),
}
_ARGUMENTS["winograd_values"] = _ARGUMENTS["winograd"]
_ARGUMENTS["attention_by_integers"] = _ARGUMENTS["attention"]
_ARGUMENTS["product"] = (*_ROWS, _POINTER, _POINTER, _LONG, _POINTER, _LONG)
_RESULTS: dict[str, type[ctypes.c_int] | type[ctypes.c_long]] = {
    "scan_rows": _LONG,
    **dict.fromkeys(
        ("attention", "attention_by_integers", "product", "two_nearest", "winograd", "winograd_values"), ctypes.c_int
    ),
}
_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.uint8: "uint8"}
_ELEMENTS = torch.float32, torch.bfloat16
_VARIANTS: dict[str, tuple[torch.dtype, ...]] = {
    **dict.fromkeys(_ARGUMENTS, _ELEMENTS),
    **dict.fromkeys(("scan_rows", "attention_by_integers", "product"), (torch.float32,)),
    "first_layer": (torch.float32, torch.uint8),  # of the result
    "winograd": (torch.float32, torch.uint8),  # of the map and the result
    "winograd_values": (torch.uint8,),  # of the map; the result is float32
}


@dataclass(frozen=True)
class IntegerWeights:
    """Weights (d, c) for `Kernels.product`."""

    packed: Int16[Tensor, " _"]
    """Strip of results, channels in twos, result."""
    scales: Float32[Tensor, " d"]


class Kernels:
    """The kernels on torch tensors in CPU memory.

    "Elements" are float32, or bfloat16 if `supports_bfloat16`; all elements of a call have one dtype. Sums and functions are
    computed in float32. Results are exact to the last bits for float32 elements, and to more bits than bfloat16 keeps for
    bfloat16 elements. Tensors have two dimensions (biases and weights one). The last dimension is contiguous, the first may have
    any stride. n, m and T may be any number, and n and T may be 0. The bits of a row do not depend on the other rows.

    Raises (all methods): ValueError for other tensors.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        """Raises: ValueError if the library lacks a function."""
        self.supports_bfloat16: bool = library.supported() > 1
        self.supports_tiles: bool = library.supported() > 2
        """Whether this CPU has the tiles of AMX."""
        self.strip: int = _LONG.in_dll(library, "strip").value
        """Results of `winograd` whose weights are packed together."""
        keys = [(name, dtype) for name, dtypes in _VARIANTS.items() for dtype in dtypes]
        if not self.supports_bfloat16:  # the library for AVX2 has none
            keys = [(name, dtype) for name, dtype in keys if dtype != torch.bfloat16]
        self._functions = {key: _function(library, *key) for key in keys}
        if self.supports_tiles:
            self._functions["attention", torch.bfloat16] = _function(library, "attention", torch.bfloat16, "attention_by_tiles")

    def attention(
        self, query: Tensor, key: Tensor, value: Tensor, out: Tensor, num_heads: int, scale: float, *, by_integers: bool = False
    ) -> None:
        """out = softmax(scale query key^T) value for each head. The weights are rounded to elements before the last product.

        Args:
            query, out: elements (n, d).
            key, value: elements (m, d), m > 0.
            num_heads: d / num_heads is 32, 64, 96 or 128; the channels of a head lie side by side.
            scale: above 0.
            by_integers: float32 elements are multiplied as integers of 12 to 15 bits.
        """
        function = self._of("attention_by_integers" if by_integers else "attention", query.dtype)
        (num_queries, dim), num_keys = query.shape, len(key)
        for tensor, rows in ((query, num_queries), (key, num_keys), (value, num_keys), (out, num_queries)):
            _check(tensor, (rows, dim), query.dtype)
        head_size = dim // num_heads
        if head_size not in HEAD_SIZES or head_size * num_heads != dim:
            raise ValueError(f"{dim} channels in {num_heads} heads: expected heads of 32, 64, 96 or 128 channels")
        if num_keys == 0 or scale <= 0:
            raise ValueError(f"{num_keys} keys and scale {scale}: expected both above 0")
        if not function(
            query.data_ptr(), query.stride(0), num_queries,
            key.data_ptr(), key.stride(0), value.data_ptr(), value.stride(0), num_keys,
            out.data_ptr(), out.stride(0), num_heads, head_size, scale,
        ):  # fmt: skip
            raise MemoryError(f"no memory for {num_keys} packed keys and values")

    def product(self, rows: Float32[Tensor, "T c"], weights: IntegerWeights, out: Float32[Tensor, "T d"]) -> None:
        """out = rows weight^T, multiplied as integers of 16 bits. Rows are rounded to 14 bits, with a scale for each row."""
        function = self._of("product", rows.dtype)
        _check_width(rows, 32)
        results = len(weights.scales)
        if results % 64:
            raise ValueError(f"{results} results: expected a multiple of 64")
        _check(weights.packed, (rows.shape[1] * results,), torch.int16)
        _check_vectors(results, weights.scales)
        _check(out, (len(rows), results), torch.float32)
        if not function(
            *_rows(rows), weights.packed.data_ptr(), weights.scales.data_ptr(), results, out.data_ptr(), out.stride(0)
        ):
            raise MemoryError(f"no memory for the integers of {len(rows)} rows")

    def integer_weights(self, weight: Float32[Tensor, "d c"]) -> IntegerWeights:
        """The weights of `product`. d is a multiple of 64, c of 32."""
        weight = weight.double()
        least = torch.finfo(torch.float32).tiny
        scales = torch.maximum(weight.abs().sum(dim=1) / SUM_OF_WEIGHTS, weight.abs().amax(dim=1) / (2**15 - 1)).clamp(min=least)
        integers = torch.round(weight / scales[:, None]).to(torch.int16)
        packed = integers.view(len(weight) // self.strip, self.strip, -1, 2).transpose(1, 2).flatten()
        return IntegerWeights(packed, scales.float())

    def add_bias(self, rows: Tensor, bias: Tensor) -> None:
        """rows += bias, in place: rows are elements (T, w), bias float32 (w,), w a multiple of 16."""
        function = self._of("add_bias", rows.dtype)
        _check_width(rows, 16)
        _check_vectors(rows.shape[1], bias)
        function(*_rows(rows), bias.data_ptr())

    def rotate(self, rows: Tensor, cos_sin: Tensor, num_heads: int, bias: Tensor | None = None) -> None:
        """Rotates all heads of rows + bias by the angles of each row, in place.

        A head has its D / 2 even channels before its odd channels: (even, odd) becomes (even cos - odd sin, odd cos + even sin).

        Args:
            rows: elements (T, w), one or more vectors of d = D num_heads channels, such as queries | keys.
            cos_sin: float32 (T, D), cosines | sines; D is a multiple of 32.
            num_heads: heads of a vector.
            bias: float32 (w,).
        """
        function = self._of("rotate", rows.dtype)
        head_size = cos_sin.shape[-1]
        if head_size % 32 or head_size == 0:
            raise ValueError(f"cosines | sines {tuple(cos_sin.shape)}: expected the last to be a multiple of 32")
        _check_width(rows, head_size * num_heads)
        _check(cos_sin, (len(rows), head_size), torch.float32)
        if bias is not None:
            _check_vectors(rows.shape[1], bias)
        pointer = None if bias is None else bias.data_ptr()
        function(*_rows(rows), cos_sin.data_ptr(), cos_sin.stride(0), head_size, pointer)

    def bias_norm_gelu(self, hidden: Tensor, bias: Tensor, weight: Tensor, norm_bias: Tensor) -> None:
        """hidden = gelu(layer_norm(hidden + bias) weight + norm_bias), in place, with eps 1e-5.

        hidden are elements (T, w), the others float32 (w,); w is a multiple of 16, at most 4096. GELU uses the error function,
        not its approximation by tanh.
        """
        function = self._of("bias_norm_gelu", hidden.dtype)
        _check_width(hidden, 16)
        if hidden.shape[1] > MAX_WIDTH:
            raise ValueError(f"rows of {hidden.shape[1]} channels: expected at most {MAX_WIDTH}")
        _check_vectors(hidden.shape[1], bias, weight, norm_bias)
        function(*_rows(hidden), bias.data_ptr(), weight.data_ptr(), norm_bias.data_ptr())

    def add_update(self, x: Tensor, update: Tensor, bias: Tensor, tokens: Tensor, heads: Tensor | None = None) -> Tensor | None:
        """x += update + bias and tokens = x, in place. Returns the logits float32 (T, 2) = x heads^T if heads are given.

        Args:
            x: float32 (T, d), d a multiple of 16.
            update: elements (T, d).
            bias: float32 (d,).
            tokens: elements (T, d); float32 tokens may be x itself.
            heads: float32 (2, d).
        """
        function = self._of("add_update", update.dtype)
        _check_width(update, 16)
        num_rows, dim = shape = update.shape
        _check(x, shape, torch.float32)
        _check(tokens, shape, update.dtype)
        _check_vectors(dim, bias)
        logits = None
        if heads is not None:
            _check(heads, (2, dim), torch.float32)
            heads, logits = heads.contiguous(), x.new_empty((num_rows, 2))
        function(
            x.data_ptr(), x.stride(0), update.data_ptr(), update.stride(0), tokens.data_ptr(), tokens.stride(0), num_rows, dim,
            bias.data_ptr(), None if heads is None else heads.data_ptr(), None if logits is None else logits.data_ptr(),
        )  # fmt: skip
        return logits

    def scan_rows(
        self, rows: Tensor, log_threshold: float, maximum: Tensor, total: Tensor
    ) -> tuple[Float32[Tensor, " r"], Int64[Tensor, " k"], Int64[Tensor, " k"], Float32[Tensor, " k"]]:
        """The same as `assignment.scan_rows`. log_threshold is at most 0."""
        function = self._of("scan_rows", rows.dtype)
        count, width = rows.shape
        _check(rows, (count, width), torch.float32)
        _check_vectors(width, maximum, total)
        if log_threshold > 0:
            raise ValueError(f"log_threshold {log_threshold}: expected at most 0")
        # A softmax has fewer than 1 / t weights above t. Rounding may add one that equals t.
        capacity = count * int(min(width, math.exp(-log_threshold) + 1))
        lse, places, values = rows.new_empty(count), rows.new_empty((2, capacity), dtype=torch.int64), rows.new_empty(capacity)
        found = function(
            *_rows(rows), log_threshold, lse.data_ptr(), maximum.data_ptr(), total.data_ptr(),
            places.data_ptr(), places[1:].data_ptr(), values.data_ptr(), capacity,
        )  # fmt: skip
        if found is None or found < 0:
            raise MemoryError(f"no memory for the entries of {count} x {width} above e^{log_threshold}")
        return lse, places[0, :found], places[1, :found], values[:found]

    def two_nearest(
        self, rows: Tensor, factors: Tensor, columns: Tensor, column_factors: Tensor
    ) -> tuple[Float32[Tensor, " m"], Int64[Tensor, " m"], Float32[Tensor, " m"], Float32[Tensor, " n"], Float32[Tensor, " n"]]:
        """The largest entries of the matrix of all (row . column) factor column_factor.

        Args:
            rows: elements (m, d), d a multiple of 32.
            factors: float32 (m,).
            columns: elements (n, d), n > 0.
            column_factors: float32 (n,).

        Returns: The largest entry of each row, its column (of equal ones the first), and the second largest; the largest and the
            second largest of each column. -inf if there is no second.
        """
        function = self._of("two_nearest", rows.dtype)
        (num_rows, dim), num_columns = rows.shape, len(columns)
        _check_width(rows, 32)
        _check(columns, (num_columns, dim), rows.dtype)
        _check_vectors(num_rows, factors)
        _check_vectors(num_columns, column_factors)
        if not 0 < num_columns < MAX_COLUMNS:
            raise ValueError(f"{num_columns} columns: expected 1 to {MAX_COLUMNS - 1}")
        best, second = factors.new_empty(2, num_rows)
        column_best, column_second = factors.new_empty(2, num_columns)
        index = rows.new_empty(num_rows, dtype=torch.int64)
        if not function(
            rows.data_ptr(), rows.stride(0), num_rows, factors.data_ptr(),
            columns.data_ptr(), columns.stride(0), num_columns, column_factors.data_ptr(), dim,
            best.data_ptr(), index.data_ptr(), second.data_ptr(), column_best.data_ptr(), column_second.data_ptr(),
        ):  # fmt: skip
            raise MemoryError(f"no memory for {num_columns} packed columns")
        return best, index, second, column_best, column_second

    def first_layer(
        self, grey: Float32[Tensor, "h w"], weights: Float32[Tensor, "10 64"], dtype: torch.dtype
    ) -> Shaped[Tensor, "1 64 h w"]:
        """relu(convolution(grey)) for a 3x3 convolution of one channel with padding 1, channels last.

        Args:
            grey: any rows with contiguous pixels.
            weights: nine rows for the pixels of a window, row by row, and the biases.
            dtype: of the result: float32, or uint8, to which it is rounded and cut.
        """
        function = self._of("first_layer", dtype)
        _check(weights, (10, FIRST_CHANNELS), torch.float32)
        height, width = grey.shape
        padded = torch.nn.functional.pad(grey, (1, 1, 1, 1))
        _check(padded, (height + 2, width + 2), torch.float32)
        out = torch.empty((1, height, width, FIRST_CHANNELS), dtype=dtype)
        function(padded.data_ptr(), padded.stride(0), height, width, weights.data_ptr(), out.data_ptr())
        return out.permute(0, 3, 1, 2)

    def winograd(
        self,
        x: Shaped[Tensor, "h w c"],
        weights: Shaped[Tensor, " _"],
        scales: Float32[Tensor, "36 d"] | None,
        biases: Float32[Tensor, " d"],
        dtype: torch.dtype,
        pool: int,
    ) -> Shaped[Tensor, "hp wp d"]:
        """max_pool(relu(convolution(x))) for a 3x3 convolution with padding 1, by Winograd's F(4x4, 3x3). In torch's threads.

        Args:
            x: float32 or uint8; pixels and channels are contiguous, rows have any stride. c is a multiple of 32.
            weights: transformed and packed by `networks.winograd`, float32, or int16 for x in uint8.
            scales: of the integers, for x in uint8.
            biases: d is a multiple of 64.
            dtype: of the result: float32, or uint8 if x is uint8.
            pool: 1 or 2: side of the squares of which the result is the maximum.
        """
        (height, width, channels), results = x.shape, len(biases)
        is_exact = x.dtype == torch.float32
        function = self._of("winograd" if dtype == x.dtype else "winograd_values", x.dtype)
        if channels % 32 or results % 64 or pool not in (1, 2) or (width > 1 and x.stride(1) != channels):
            raise ValueError(
                f"found a map {tuple(x.shape)} with strides {x.stride()}, {results} results and pool {pool}: expected contiguous "
                "pixels, channels a multiple of 32, results of 64, and pool 1 or 2"
            )
        _check(x, x.shape, x.dtype)
        _check(weights, (36 * channels * results,), torch.float32 if is_exact else torch.int16)
        _check_vectors(results, biases)
        if not is_exact:
            assert scales is not None
            _check(scales, (36, results), torch.float32)
        out = x.new_empty((height // pool, width // pool, results), dtype=dtype)
        num_rows = math.ceil(height / 4) if width else 0
        num_threads = max(1, min(torch.get_num_threads(), num_rows))
        ends = [num_rows * i // num_threads for i in range(num_threads + 1)]

        def compute(first: int, last: int) -> int | None:
            return function(
                x.data_ptr(), x.stride(0), height, width, channels, results, weights.data_ptr(),
                None if scales is None else scales.data_ptr(), biases.data_ptr(), pool, first, last, out.data_ptr(),
            )  # fmt: skip

        if num_threads == 1:
            found = [compute(0, num_rows)]
        else:
            with ThreadPoolExecutor(num_threads) as threads:
                found = list(threads.map(compute, ends[:-1], ends[1:]))
        if not all(found):
            raise MemoryError(f"no memory for the windows of a convolution with {channels} channels")
        return out

    def _of(self, name: str, dtype: torch.dtype) -> Callable[..., int | None]:
        if (name, dtype) not in self._functions:
            needs = " (bfloat16 needs a CPU with AVX512-BF16)" if not self.supports_bfloat16 else ""
            raise ValueError(
                f"found elements of {dtype}, expected one of {[str(t) for n, t in self._functions if n == name]}{needs}"
            )
        return self._functions[name, dtype]


def _check(tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Raises: ValueError if the kernels cannot read the tensor by its address and first stride."""
    if tensor.shape != shape or tensor.dtype != dtype or not tensor.is_cpu or (tensor.stride(-1) != 1 and tensor.numel()):
        raise ValueError(
            f"found {tensor.dtype} {tuple(tensor.shape)} on {tensor.device} with strides {tensor.stride()}: "
            f"expected {dtype} {tuple(shape)} on cpu with the last dimension contiguous"
        )


def _check_width(rows: Tensor, step: int) -> None:
    if rows.dim() != 2 or rows.shape[1] % step or rows.shape[1] == 0:
        raise ValueError(f"found rows {tuple(rows.shape)}, expected two dimensions and a width that is a multiple of {step}")
    _check(rows, rows.shape, rows.dtype)


def _check_vectors(width: int, *vectors: Tensor) -> None:
    for vector in vectors:
        _check(vector, (width,), torch.float32)


def _rows(rows: Tensor) -> tuple[int, int, int, int]:
    return rows.data_ptr(), rows.stride(0), rows.shape[0], rows.shape[1]


def _function(library: ctypes.CDLL, name: str, dtype: torch.dtype, variant: str | None = None) -> Callable[..., int | None]:
    """The function, or a variant of it with another name. Raises: ValueError if the library lacks this function."""
    address = _POINTER.in_dll(library, f"{variant or name}_{_DTYPES[dtype]}").value
    return ctypes.CFUNCTYPE(_RESULTS.get(name), *_ARGUMENTS[name])(address or 0)
