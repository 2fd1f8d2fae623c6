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

from sfm_lightglue.engine.batch import Batch, ImageState, PairMatches
from sfm_lightglue.engine.early_rejection import EarlyRejection
from sfm_lightglue.engine.kernels import HEAD_SIZES, Kernels
from sfm_lightglue.engine.numerics import KernelNumerics, Numerics, Tokens, TorchNumerics
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
        early_rejection: EarlyRejection | None = None,
    ) -> None:
        """Packs the weights for the device.

        Args:
            network: the weights. The engine takes it over: it moves the network to the device, in float32.
            precision: `float32`, or `low` for 16-bit matrix products. States, softmax and scores are float32 in both.
            device: torch's name, such as `cpu` or `cuda:0`.
            kernels: compiled kernels, which make the engine faster on CPUs.
            early_rejection: when to end pairs that do not overlap, without matches. None: never.

        Raises: ValueError for an unknown precision.
        """
        if precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, found {precision!r}")
        self.settings, self.device, self.early_rejection = network.settings, device, early_rejection
        self.numerics = _numerics(network.settings, precision, device, kernels)
        self.layers = pack_layers(network, self.numerics.dtype, self.numerics.vector_dtype, device)
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
        cos_sin = torch.cat([encoding[0, 0, 0], encoding[1, 0, 0]], dim=1).to(self.numerics.vector_dtype)
        tokens = Tokens.of(state.clone(), cos_sin, self.numerics.dtype)
        dim = state.shape[1]
        projections = state.new_empty((0, 2 * dim), dtype=self.numerics.dtype)
        if len(state):
            self._self_block(tokens, self.layers[0], [0, len(state)])
            projections = self.numerics.cross_projections(tokens, self.layers[0]).clone()
        unit = None if self.early_rejection is None else F.normalize(descriptors.float(), dim=1)
        return ImageState(tokens.state.clone(), projections, cos_sin, unit)

    @torch.inference_mode()
    def match_many(self, pairs: Sequence[tuple[ImageState, ImageState]]) -> list[PairMatches]:
        """Matches of each pair, the same as if it were alone (on a CPU bit for bit)."""
        batch = Batch(pairs, self.settings, self.numerics, self.early_rejection)
        for i, layer in enumerate(self.layers):
            if not len(batch.pairs):
                break
            logits = self._layer(batch, layer, i) + layer.heads_bias
            batch.prune(logits, i, layer, self.thresholds[i])
        return batch.results()

    def _layer(self, batch: Batch, layer: PackedLayer, i: int) -> Tensor:
        """Updates the states; logits (T, 2) of confidence and matchability, without bias."""
        tokens, numerics, dim = batch.tokens, self.numerics, self.settings.descriptor_dim
        if i == 0:
            projected = torch.cat([state.projections for state in batch.images])
        else:
            self._self_block(tokens, layer, batch.borders)
            projected = numerics.cross_projections(tokens, layer)
        half, (borders0, borders1) = batch.half, batch.borders_of_sides
        keys, values = projected[:, :dim], projected[:, dim:]
        numerics.attend(keys[:half], keys[half:], values[half:], tokens.context[:half], (borders0, borders1))
        numerics.attend(keys[half:], keys[:half], values[:half], tokens.context[half:], (borders1, borders0))
        logits = numerics.update(tokens, layer.cross_update, layer.heads_weight)
        assert logits is not None
        return logits

    def _self_block(self, tokens: Tokens, layer: PackedLayer, borders: Sequence[int]) -> None:
        query, key, value = self.numerics.self_projections(tokens, layer).chunk(3, dim=1)
        self.numerics.attend(query, key, value, tokens.context, (borders, borders))
        self.numerics.update(tokens, layer.self_update, None)


def _numerics(settings: LightGlueSettings, precision: str, device: str, kernels: Kernels | None) -> Numerics:
    """What computes best on the device."""
    num_heads, dtype = settings.num_heads, network_dtype(precision, device)
    if (
        kernels is None
        or torch.device(device).type != "cpu"
        or settings.descriptor_dim // num_heads not in HEAD_SIZES
        or (dtype == torch.bfloat16 and not kernels.supports_bfloat16)
    ):
        return TorchNumerics(num_heads, dtype, device)
    return KernelNumerics(num_heads, dtype, kernels)
