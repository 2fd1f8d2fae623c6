"""The weights of a LightGlue rewritten for inference: the same function with fewer and larger matrix products.

Rewritten in float64, so that the rounding of the rewriting itself is nothing beside that of the inference. The changes:
- queries, keys and values of a self block come from one product, each head's channels together, its even channels before its odd
  ones, so that the rotary encoding turns two halves instead of interleaved pairs;
- the scale of attention's logits is folded into queries and keys;
- an attention's output projection and the bias of its values are folded into the first layer of the feed-forward network: between
  them there is nothing that is not linear, and the weights of an attention sum to 1;
- the two heads that read a state after each layer, confidence and matchability, are one product with two columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sfm_lightglue.networks.lightglue import CrossBlock, LightGlue, SelfBlock


@dataclass(frozen=True)
class FeedForward:
    """Update of a state x (d) from its context c (d): weight1 gelu(norm(weight0 [x | c] + bias0)) + bias1."""

    weight0: Tensor
    """(2d, 2d), of [x | c]."""
    bias0: Tensor
    """(2d,)."""
    norm_weight: Tensor
    norm_bias: Tensor
    weight1: Tensor
    """(d, 2d)."""
    bias1: Tensor


@dataclass(frozen=True)
class PackedLayer:
    """One layer; d channels of a state."""

    self_weight: Tensor
    """(3d, d): queries | keys | values."""
    self_bias: Tensor
    """(3d,), zeros for the values."""
    self_update: FeedForward
    cross_weight: Tensor
    """(2d, d): what serves as query and key | values."""
    cross_bias: Tensor
    """(2d,), zeros for the values."""
    cross_update: FeedForward
    heads_weight: Tensor
    """float32 (2, d): confidence (zeros in the last layer, which has none) | matchability."""
    heads_bias: Tensor
    """float32 (2,)."""
    projection_weight: Tensor
    """float32 (d, d): states to the vectors whose products are the similarities."""
    projection_bias: Tensor


def pack_layers(network: LightGlue, dtype: torch.dtype, vector_dtype: torch.dtype, device: str) -> list[PackedLayer]:
    """All layers, matrices of the blocks in `dtype`, their vectors in `vector_dtype`, heads and projection in float32."""
    settings, layers = network.settings, []
    scale = settings.descriptor_dim**-0.25  # both vectors of a similarity carry it: 1 / sqrt(d) in all
    logit_scale = (settings.descriptor_dim // settings.num_heads) ** -0.25  # the same, for each head
    for i, layer in enumerate(network.transformers):
        self_weight, self_bias, value_bias = _pack_self(layer.self_attn)  # type: ignore[arg-type]
        cross: CrossBlock = layer.cross_attn  # type: ignore[assignment]
        assignment = network.log_assignment[i]
        heads_weight, heads_bias = _pack_heads(network, i)
        packed = PackedLayer(
            self_weight=self_weight.to(dtype),
            self_bias=self_bias.to(vector_dtype),
            self_update=_pack_update(layer.self_attn.ffn, layer.self_attn.out_proj, value_bias, dtype, vector_dtype),  # type: ignore
            cross_weight=torch.cat([_weight(cross.to_qk) * logit_scale, _weight(cross.to_v)]).to(dtype),
            cross_bias=torch.cat([_bias(cross.to_qk) * logit_scale, torch.zeros_like(_bias(cross.to_v))]).to(vector_dtype),
            cross_update=_pack_update(cross.ffn, cross.to_out, _bias(cross.to_v), dtype, vector_dtype),
            heads_weight=heads_weight.float(),
            heads_bias=heads_bias.float(),
            projection_weight=(_weight(assignment.final_proj) * scale).float(),  # type: ignore[arg-type]
            projection_bias=(_bias(assignment.final_proj) * scale).float(),  # type: ignore[arg-type]
        )
        layers.append(_on(packed, device))
    return layers


def _pack_self(block: SelfBlock) -> tuple[Tensor, Tensor, Tensor]:
    """Weight (3d, d) and bias (3d,) of queries | keys | values, and the bias (d,) that the values have lost."""
    head_dim = block.out_proj.in_features // block.num_heads
    halves = torch.cat([torch.arange(0, head_dim, 2), torch.arange(1, head_dim, 2)])  # even channels, odd channels
    weight = _weight(block.Wqkv).unflatten(0, (block.num_heads, head_dim, 3))  # h hd 3 d
    bias = _bias(block.Wqkv).unflatten(0, (block.num_heads, head_dim, 3))
    scale, value_bias = head_dim**-0.5, bias[:, :, 2].flatten()
    query, key, value = weight[:, halves, 0].flatten(0, 1), weight[:, halves, 1].flatten(0, 1), weight[:, :, 2].flatten(0, 1)
    query_bias, key_bias = bias[:, halves, 0].flatten(), bias[:, halves, 1].flatten()
    return (
        torch.cat([query * scale, key, value]),
        torch.cat([query_bias * scale, key_bias, torch.zeros_like(value_bias)]),
        value_bias,
    )


def _pack_update(
    network: nn.Sequential, projection: nn.Linear, value_bias: Tensor, dtype: torch.dtype, vector_dtype: torch.dtype
) -> FeedForward:
    """With the output projection of the attention, and the bias of its values, inside."""
    first, norm, _, second = network
    of_state, of_message = _weight(first).chunk(2, dim=1)  # type: ignore[arg-type]
    message_bias = _weight(projection) @ value_bias + _bias(projection)
    return FeedForward(
        weight0=torch.cat([of_state, of_message @ _weight(projection)], dim=1).to(dtype),
        bias0=(_bias(first) + of_message @ message_bias).to(vector_dtype),  # type: ignore[arg-type]
        norm_weight=norm.weight.detach().to(vector_dtype),  # type: ignore[operator]
        norm_bias=norm.bias.detach().to(vector_dtype),  # type: ignore[operator]
        weight1=_weight(second).to(dtype),  # type: ignore[arg-type]
        bias1=_bias(second).to(vector_dtype),  # type: ignore[arg-type]
    )


def _pack_heads(network: LightGlue, i: int) -> tuple[Tensor, Tensor]:
    """Weights (2, d) and biases (2,) of confidence, zeros after the last layer, and matchability."""
    matchability: nn.Linear = network.log_assignment[i].matchability  # type: ignore[assignment]
    weight, bias = _weight(matchability), _bias(matchability)
    if i == len(network.token_confidence):
        return torch.cat([torch.zeros_like(weight), weight]), torch.cat([torch.zeros_like(bias), bias])
    confidence: nn.Linear = network.token_confidence[i].token[0]  # type: ignore[assignment, index]
    return torch.cat([_weight(confidence), weight]), torch.cat([_bias(confidence), bias])


def _weight(linear: nn.Linear) -> Tensor:
    return linear.weight.detach().cpu().double()


def _bias(linear: nn.Linear) -> Tensor:
    return linear.bias.detach().cpu().double()


def _on(packed: PackedLayer, device: str) -> PackedLayer:
    """On the device, each tensor contiguous."""

    def move(value: Tensor | FeedForward) -> Tensor | FeedForward:
        if isinstance(value, Tensor):
            return value.to(device).contiguous()
        return FeedForward(**{key: item.to(device).contiguous() for key, item in vars(value).items()})

    return PackedLayer(**{key: move(value) for key, value in vars(packed).items()})  # type: ignore[arg-type]
