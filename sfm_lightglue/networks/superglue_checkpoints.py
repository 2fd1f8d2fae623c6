"""Loading of SuperGlue weights in every published format.

The formats are the original checkpoints, Hugging Face's SuperGlueForKeypointMatching, and a state_dict of our `SuperGlue`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import fuse_linear_bn_weights

from sfm_lightglue.networks.checkpoints import KeyPatterns, load_strictly, rename_key
from sfm_lightglue.networks.superglue import SuperGlue, SuperGlueSettings

# Keys that are ignored: counters of training steps, and the SuperPoint that Hugging Face stores with the matcher.
_UNUSED = re.compile(r".+\.num_batches_tracked|keypoint_detector\..+")
_BATCH_NORM_EPSILON = 1e-5  # in both formats


def _linear_or_norm(found: re.Match[str]) -> str:
    """The original numbers linear map, batch normalisation and ReLU of an MLP one by one; we number its linear maps."""
    number, part = divmod(int(found[2]), 3)
    return f"{found[1]}.{number}.{'norm.' if part else ''}"


_ORIGINAL: KeyPatterns = {
    r"^kenc\.encoder\.": "keypoint_encoder.",
    r"^gnn\.layers\.": "layers.",
    r"\.attn\.proj\.0\.": ".query.",
    r"\.attn\.proj\.1\.": ".key.",
    r"\.attn\.proj\.2\.": ".value.",
    r"\.attn\.merge\.": ".merge.",
    r"^(keypoint_encoder|layers\.\d+\.mlp)\.(\d+)\.": _linear_or_norm,
}
_HUGGING_FACE: KeyPatterns = {
    r"^keypoint_encoder\.encoder\.": "keypoint_encoder.",
    r"^gnn\.layers\.": "layers.",
    r"\.attention\.self\.": ".",
    r"\.attention\.output\.dense\.": ".merge.",
    r"^final_projection\.": "",
    r"\.linear\.": ".",
    r"\.batch_norm\.": ".norm.",
}


def load_superglue(state: Mapping[str, Any], settings: SuperGlueSettings) -> SuperGlue:
    """The network in evaluation mode, with weights in any known format.

    Raises: ValueError if keys are missing, unexpected or of another shape; the text names them.
    """
    network = SuperGlue(settings)
    load_strictly(network, convert_state_dict(state, settings.num_heads))
    return network.eval()


def convert_state_dict(state: Mapping[str, Any], num_heads: int) -> dict[str, Any]:
    """The weights under the names of `SuperGlue`, with batch normalisation folded into the linear maps before it.

    Unknown keys stay as they are: strict loading then names them.
    """
    is_original = any(key.startswith("kenc.") for key in state)
    converted = {}
    for key, value in state.items():
        if _UNUSED.fullmatch(key):
            continue
        key = rename_key(key, _ORIGINAL if is_original else _HUGGING_FACE)
        converted[key] = _from_convolution(key, value, num_heads) if is_original else value
    return _join_projections(_fold_batch_norm(converted))


def _from_convolution(key: str, value: Any, num_heads: int) -> Any:
    """A weight of the original: convolutions of size 1 become matrices, and interleaved heads are put one after the other.

    The channels between projections and merge are ordered (channel of the head, head) in the original, and (head, channel of the
    head) here.
    """
    if not isinstance(value, Tensor):
        return value
    if value.ndim == 3:
        value = value.squeeze(2)
    if re.search(r"\.(query|key|value)\.(weight|bias)$", key):
        return value.unflatten(0, (-1, num_heads)).transpose(0, 1).flatten(0, 1)
    if key.endswith(".merge.weight"):
        return value.unflatten(1, (-1, num_heads)).transpose(1, 2).flatten(1, 2)
    return value


def _fold_batch_norm(state: dict[str, Any]) -> dict[str, Any]:
    """The weights without the entries `<linear map>.norm.*`. Their effect in evaluation mode is folded into the linear map."""
    folded = dict(state)
    for key in state:
        if not key.endswith(".norm.running_var"):
            continue
        linear = key.removesuffix(".norm.running_var")
        names = [f"{linear}.{part}" for part in ("weight", "bias")]
        norms = [f"{linear}.norm.{part}" for part in ("running_mean", "running_var", "weight", "bias")]
        if any(name not in state for name in names + norms):
            continue  # strict loading then names them
        weight, bias = (folded.pop(name) for name in names)
        mean, variance, gain, offset = (folded.pop(name) for name in norms)
        fused = fuse_linear_bn_weights(weight, bias, mean, variance, _BATCH_NORM_EPSILON, gain, offset)
        folded.update(zip(names, fused, strict=True))
    return folded


def _join_projections(state: dict[str, Any]) -> dict[str, Any]:
    """The weights with query, key and value projections joined into one."""
    joined = dict(state)
    for key in state:
        if found := re.fullmatch(r"(layers\.\d+\.)query(\.(?:weight|bias))", key):
            names = [f"{found[1]}{part}{found[2]}" for part in ("query", "key", "value")]
            if all(name in state for name in names):  # else strict loading names them
                joined[f"{found[1]}qkv{found[2]}"] = torch.cat([joined.pop(name) for name in names])
    return joined
