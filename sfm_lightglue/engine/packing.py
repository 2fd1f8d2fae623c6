"""The weights of LightGlue, rearranged for inference: the same function with fewer and larger matrix products.

The new weights are computed in float64, so that their rounding is negligible beside the rounding of inference. The changes:
- Queries, keys and values of a self block come from one product. The channels of a head lie side by side, even channels before
  odd ones, so that the rotary encoding rotates two halves instead of interleaved pairs.
- Queries and keys include the scale of the attention logits.
- The first layer of the feed-forward network includes the output projection of the attention and the bias of its values. This is
  possible because everything between them is linear and the weights of an attention sum to 1.
- The two heads that read a state after each layer, confidence and matchability, are one product with two columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from sfm_lightglue.networks.lightglue import CrossBlock, LightGlue, SelfBlock


@dataclass(frozen=True)
class FeedForward:
    """Update of a state x (d) from its context c (d): weight1 gelu(norm(weight0 [x | c] + bias0)) + bias1; d2 = 2d."""

    weight0: Float[Tensor, "d2 d2"]
    bias0: Float[Tensor, " d2"]
    norm_weight: Float[Tensor, " d2"]
    norm_bias: Float[Tensor, " d2"]
    weight1: Float[Tensor, "d d2"]
    bias1: Float[Tensor, " d"]


@dataclass(frozen=True)
class PackedLayer:
    """One layer with states of d channels; d2 = 2d, d3 = 3d."""

    self_weight: Float[Tensor, "d3 d"]
    """Queries | keys | values."""
    self_bias: Float[Tensor, " d3"]
    """Zeros for the values."""
    self_update: FeedForward
    cross_weight: Float[Tensor, "d2 d"]
    """Keys, which are queries too | values."""
    cross_bias: Float[Tensor, " d2"]
    """Zeros for the values."""
    cross_update: FeedForward
    heads_weight: Float32[Tensor, "2 d"]
    """Confidence | matchability. The last layer has no confidence: zeros."""
    heads_bias: Float32[Tensor, " 2"]
    projection_weight: Float32[Tensor, "d d"]
    """Maps states to vectors; their products are the similarities."""
    projection_bias: Float32[Tensor, " d"]


def pack_layers(network: LightGlue, dtype: torch.dtype, vector_dtype: torch.dtype, device: str) -> list[PackedLayer]:
    """All layers of a network, on a device.

    Args:
        network: the weights; it stays as it is.
        dtype: element type of the matrices of self and cross blocks. Heads and projection are float32.
        vector_dtype: element type of the biases and norms of these blocks.
        device: torch's name.
    """
    settings, layers = network.settings, []
    scale = settings.descriptor_dim**-0.25  # on both vectors of a similarity: 1 / sqrt(d) together
    logit_scale = (settings.descriptor_dim // settings.num_heads) ** -0.25  # the same for each head
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
    """Weight (3d, d) and bias (3d,) of queries | keys | values, and the bias (d,) of the values, which is not in it."""
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
    """The feed-forward network, with the output projection of the attention and the bias of its values folded into it."""
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
    """Weights (2, d) and biases (2,) of confidence and matchability. After the last layer, confidence is zeros."""
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
    """The layer on the device, with contiguous tensors."""

    def move(value: Tensor | FeedForward) -> Tensor | FeedForward:
        if isinstance(value, Tensor):
            return value.to(device).contiguous()
        return FeedForward(**{key: item.to(device).contiguous() for key, item in vars(value).items()})

    return PackedLayer(**{key: move(value) for key, value in vars(packed).items()})  # type: ignore[arg-type]
