"""LightGlue for many pairs of stored features: the results of `networks.lightglue.LightGlue.match`, much faster.

`prepare` computes once per image everything that does not depend on the partner: the input projection, the rotary encoding, and
the self block and cross projections of the first layer. `match_many` then sends the keypoints of all pairs of a batch through the
layers as one list of tokens. Attention sees one pair at a time, and each pair stops and drops points on its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor

from sfm_lightglue.engine.batch import Batch, ImageState
from sfm_lightglue.engine.decisions import decide
from sfm_lightglue.engine.early_acceptance import EarlyAcceptance
from sfm_lightglue.engine.early_rejection import EarlyRejection, judge_descriptors, judge_matchability
from sfm_lightglue.engine.kernel_calls import HEAD_SIZES, Kernels
from sfm_lightglue.engine.numerics import IntegerNumerics, KernelNumerics, Numerics, Tokens, TorchNumerics
from sfm_lightglue.engine.packing import PackedLayer, pack_layers
from sfm_lightglue.engine.results import PairMatches, Results, find_matches
from sfm_lightglue.networks.lightglue import LightGlue
from sfm_lightglue.networks.lightglue_settings import LightGlueSettings
from sfm_lightglue.networks.precision import PRECISIONS, network_dtype


class LightGlueEngine:
    """Matches pairs of images. Several threads may call it at the same time."""

    def __init__(
        self,
        network: LightGlue,
        precision: str = "float32",
        device: str = "cpu",
        kernels: Kernels | None = None,
        early_rejection: EarlyRejection | None = None,
        early_acceptance: EarlyAcceptance | None = None,
    ) -> None:
        """Packs the weights for the device.

        Args:
            network: the weights. The engine takes it over: it moves the network to the device, in float32.
            precision: `float32`, or `low` for 16-bit matrix products. States, softmax and scores are float32 in both.
            device: torch's name, such as `cpu` or `cuda:0`.
            kernels: compiled kernels, which make the engine faster on CPUs.
            early_rejection: when to end pairs that do not overlap, without matches. None: never.
            early_acceptance: when to end pairs with many matches. None: by the network's `depth_confidence` alone.

        Raises: ValueError for an unknown precision.
        """
        if precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, found {precision!r}")
        self.settings, self.device = network.settings, device
        self.early_rejection, self.early_acceptance = early_rejection, early_acceptance
        self.numerics = _numerics(network.settings, precision, device, kernels)
        self.layers = pack_layers(network, self.numerics.dtype, self.numerics.vector_dtype, device)
        self.network = network.float().to(device)
        self.thresholds = [network.confidence_threshold(i) for i in range(len(self.layers))]

    @torch.inference_mode()
    def prepare(
        self,
        keypoints: Float[Tensor, "n 2"],
        descriptors: Float[Tensor, "n c"],
        image_size: tuple[float, float],
        scales_orientations: Float[Tensor, "n 2"] | None = None,
    ) -> ImageState:
        """The state of an image. It can be used in any number of pairs.

        Args:
            keypoints: (x, y) px, with the centre of the top-left pixel at (0, 0).
            descriptors: c is the input_dim of the network.
            image_size: (width, height) px.
            scales_orientations: scales px and orientations rad, only for networks that need them.

        Raises: ValueError if the features do not fit the network.
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
    def match_many(self, pairs: Sequence[tuple[ImageState, ImageState]], max_layers: int | None = None) -> list[PairMatches]:
        """The matches of each pair, in the order of the pairs. A pair gets the same result alone (on a CPU bit for bit).

        Args:
            pairs: the images of each pair.
            max_layers: all pairs end after this layer at the latest, from 1. None: after the last layer.
        """
        if not pairs:
            return []
        lengths = np.array([[len(pair[side]) for pair in pairs] for side in (0, 1)], dtype=np.int64)
        results = self._no_results(lengths, pairs[0][0].state.device)
        is_rejected, is_doubtful = judge_descriptors(pairs, self.early_rejection)
        in_play = np.flatnonzero(lengths.all(axis=0) & ~is_rejected)
        if not len(in_play):
            return results.collect()
        images = [pairs[int(j)][side] for side in (0, 1) for j in in_play]
        batch = Batch.of(in_play, images, results.first_points[:, in_play].flatten(), self.numerics.dtype)
        layers = self.layers[:max_layers]
        for i, layer in enumerate(layers):
            logits = self._cross_block(batch, layer, self._projections(batch, images, i)) + layer.heads_bias
            results.stop_layers[batch.pairs] = i + 1
            if i + 1 == len(layers):
                self._stop(results, batch, np.ones(len(batch), dtype=bool), logits, i)
                break
            batch = self._end_layer(results, batch, is_doubtful[batch.pairs], logits, i)
            if not len(batch):
                break
        return results.collect()

    def _no_results(self, lengths: Int64[np.ndarray, "2 n"], device: torch.device) -> Results:
        prune = 1 if self.settings.width_confidence > 0 else self.settings.num_layers
        return Results(lengths, prune, device)

    def _projections(self, batch: Batch, images: Sequence[ImageState], i: int) -> Float[Tensor, "T d2"]:
        """Keys, which are queries too | values, after the self block of layer i. Valid until the next step.

        `prepare` has computed them for the first layer.
        """
        if i == 0:
            return torch.cat([image.projections for image in images])
        self._self_block(batch.tokens, self.layers[i], batch.borders)
        return self.numerics.cross_projections(batch.tokens, self.layers[i])

    def _cross_block(self, batch: Batch, layer: PackedLayer, projections: Float[Tensor, "T d2"]) -> Float32[Tensor, "T 2"]:
        """Updates the states. Returns the logits of confidence and matchability, without bias."""
        numerics, context, dim = self.numerics, batch.tokens.context, self.settings.descriptor_dim
        half, (borders0, borders1) = batch.half, batch.borders_of_sides
        keys, values = projections[:, :dim], projections[:, dim:]
        numerics.attend(keys[:half], keys[half:], values[half:], context[:half], (borders0, borders1))
        numerics.attend(keys[half:], keys[:half], values[:half], context[half:], (borders1, borders0))
        logits = numerics.update(batch.tokens, layer.cross_update, layer.heads_weight)
        assert logits is not None
        return logits

    def _end_layer(
        self, results: Results, batch: Batch, is_doubtful: Bool[np.ndarray, " p"], logits: Float32[Tensor, "T 2"], i: int
    ) -> Batch:
        """The pairs and points that go on after layer i, which is not the last. Adds the other pairs to the results."""
        probabilities = logits.sigmoid()
        decision = decide(batch, probabilities, self.settings, self.thresholds[i], self.early_acceptance)
        is_rejected = judge_matchability(batch, probabilities[:, 1], is_doubtful, self.early_rejection, i)
        self._stop(results, batch, decision.is_done & ~is_rejected, logits, i)
        has_ended = decision.is_done | is_rejected
        if self.settings.width_confidence > 0:
            survives = decision.keep & batch.of_tokens(~has_ended) if has_ended.any() else decision.keep
            results.count_survivors(batch.points, survives)
        return batch.prune(decision.keep, decision.num_kept, ~has_ended & (decision.num_kept > 0).all(axis=0))

    def _stop(
        self, results: Results, batch: Batch, stops: Bool[np.ndarray, " p"], logits: Float32[Tensor, "T 2"], i: int
    ) -> None:
        """Adds the matches after layer i, of the pairs with the flag `stops`, to the results."""
        threshold, scan = self.settings.filter_threshold, self.numerics.scan_rows
        results.add(find_matches(batch, stops, logits, self.layers[i], threshold=threshold, scan=scan))

    def _self_block(self, tokens: Tokens, layer: PackedLayer, borders: Sequence[int]) -> None:
        """Updates the states of all images between the borders."""
        query, key, value = self.numerics.self_projections(tokens, layer).chunk(3, dim=1)
        self.numerics.attend(query, key, value, tokens.context, (borders, borders))
        self.numerics.update(tokens, layer.self_update, None)


def _numerics(settings: LightGlueSettings, precision: str, device: str, kernels: Kernels | None) -> Numerics:
    """The fastest computations on the device."""
    num_heads, dtype = settings.num_heads, network_dtype(precision, device)
    if (
        kernels is None
        or torch.device(device).type != "cpu"
        or settings.descriptor_dim // num_heads not in HEAD_SIZES
        or (dtype == torch.bfloat16 and not kernels.supports_bfloat16)
    ):
        return TorchNumerics(num_heads, dtype, device)
    if precision == "low" and dtype == torch.float32 and settings.descriptor_dim % 64 == 0:
        return IntegerNumerics(num_heads, kernels)
    return KernelNumerics(num_heads, dtype, kernels)
