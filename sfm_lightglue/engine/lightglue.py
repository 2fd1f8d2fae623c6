"""LightGlue for many pairs of stored features at once: the results of `networks.lightglue.LightGlue.match`, much faster.

What depends on one image alone is computed once per image (`prepare`): input projection, rotary encoding, the self block and the
cross projections of the first layer. The keypoints of all pairs of a batch then go through the layers as one list of tokens;
attention looks at one pair at a time, and each pair stops and drops points on its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sfm_lightglue.engine.arithmetic import Arithmetic, KernelArithmetic, Tokens, TorchArithmetic
from sfm_lightglue.engine.batch import Batch, ImageState, PairMatches
from sfm_lightglue.engine.hopeless import HopelessRule
from sfm_lightglue.engine.kernels import HEAD_SIZES, Kernels
from sfm_lightglue.engine.packing import PackedLayer, pack_layers
from sfm_lightglue.networks.lightglue import LightGlue, LightGlueSettings
from sfm_lightglue.networks.precision import PRECISIONS, network_dtype


class LightGlueEngine:
    """Safe to call from several threads."""

    def __init__(
        self,
        network: LightGlue,
        precision: str = "float32",
        device: str = "cpu",
        kernels: Kernels | None = None,
        hopeless: HopelessRule | None = None,
    ) -> None:
        """`precision` is `float32`, or `low`: 16 bit matrix products, with states, softmax and scores in float32. `kernels`
        speed it up on CPUs. By the rule `hopeless`, pairs that do not overlap are ended after the first layers, without matches.

        Raises: ValueError for another precision.
        """
        if precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, found {precision!r}")
        self.settings, self.device, self.hopeless = network.settings, device, hopeless
        self.arithmetic = _arithmetic(network.settings, precision, device, kernels)
        self.layers = pack_layers(network, self.arithmetic.dtype, self.arithmetic.vector_dtype, device)
        self.network = network.float().to(device)
        self.thresholds = [network.confidence_threshold(i) for i in range(len(self.layers))]

    @torch.inference_mode()
    def prepare(
        self,
        keypoints: Tensor,
        descriptors: Tensor,
        image_size: tuple[float, float],
        scales_orientations: Tensor | None = None,
    ) -> ImageState:
        """The state of an image, from keypoints (n, 2) px, descriptors (n, c) and (width, height) px, as in `LightGlue.match`.

        Raises: ValueError where the descriptors are not those of the network.
        """
        extra = None if scales_orientations is None else scales_orientations[None]
        size = keypoints.new_tensor([image_size])
        (state,), encoding = self.network.embed(keypoints[None], descriptors[None], size, extra)
        cos_sin = torch.cat([encoding[0, 0, 0], encoding[1, 0, 0]], dim=1).to(self.arithmetic.vector_dtype)
        tokens = Tokens.of(state.clone(), cos_sin, self.arithmetic.dtype)
        dim = state.shape[1]
        projections = state.new_empty((0, 2 * dim), dtype=self.arithmetic.dtype)
        if len(state):
            self._self_block(tokens, self.layers[0], [0, len(state)])
            projections = self.arithmetic.cross_projections(tokens, self.layers[0]).clone()
        unit = None if self.hopeless is None else F.normalize(descriptors.float(), dim=1)
        return ImageState(tokens.state.clone(), projections, cos_sin, unit)

    @torch.inference_mode()
    def match_many(self, pairs: Sequence[tuple[ImageState, ImageState]]) -> list[PairMatches]:
        """Matches of each pair, the same as if it were alone (on a CPU bit for bit)."""
        batch = Batch(pairs, self.settings, self.arithmetic, self.hopeless)
        for i, layer in enumerate(self.layers):
            if not len(batch.pairs):
                break
            logits = self._layer(batch, layer, i) + layer.heads_bias
            batch.narrow(logits, i, layer, self.thresholds[i])
        return batch.results()

    def _layer(self, batch: Batch, layer: PackedLayer, i: int) -> Tensor:
        """Updates the states; logits (T, 2) of confidence and matchability, without bias."""
        tokens, arithmetic, dim = batch.tokens, self.arithmetic, self.settings.descriptor_dim
        if i == 0:
            projected = torch.cat([state.projections for state in batch.images])
        else:
            self._self_block(tokens, layer, batch.borders)
            projected = arithmetic.cross_projections(tokens, layer)
        half, (borders0, borders1) = batch.half, batch.borders_of_sides
        keys, values = projected[:, :dim], projected[:, dim:]
        arithmetic.attend(keys[:half], keys[half:], values[half:], tokens.context[:half], (borders0, borders1))
        arithmetic.attend(keys[half:], keys[:half], values[:half], tokens.context[half:], (borders1, borders0))
        logits = arithmetic.update(tokens, layer.cross_update, layer.heads_weight)
        assert logits is not None
        return logits

    def _self_block(self, tokens: Tokens, layer: PackedLayer, borders: Sequence[int]) -> None:
        query, key, value = self.arithmetic.self_projections(tokens, layer).chunk(3, dim=1)
        self.arithmetic.attend(query, key, value, tokens.context, (borders, borders))
        self.arithmetic.update(tokens, layer.self_update, None)


def _arithmetic(settings: LightGlueSettings, precision: str, device: str, kernels: Kernels | None) -> Arithmetic:
    """What computes best on the device."""
    num_heads, dtype = settings.num_heads, network_dtype(precision, device)
    if (
        kernels is None
        or torch.device(device).type != "cpu"
        or settings.descriptor_dim // num_heads not in HEAD_SIZES
        or (dtype == torch.bfloat16 and not kernels.supports_bfloat16)
    ):
        return TorchArithmetic(num_heads, dtype, device)
    return KernelArithmetic(num_heads, dtype, kernels)
