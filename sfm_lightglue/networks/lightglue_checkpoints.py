"""Loading of LightGlue weights in every published format.

The formats are the original checkpoints with new and with old key names, files that hold more than the matcher (training
checkpoints, LighterGlue's file with its extractor), kornia's checkpoints, and Hugging Face's LightGlueForKeypointMatching.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from sfm_lightglue.networks.checkpoints import load_strictly, rename_key
from sfm_lightglue.networks.lightglue import LightGlue
from sfm_lightglue.networks.lightglue_settings import LightGlueSettings

# Every format has the one weight of the position encoding once. The prefix of its name is the prefix of all names of the matcher.
_ANCHORS = ("posenc.Wr.weight", "positional_encoder.projector.weight")

# Keys that are ignored: thresholds computed from the settings (original, kornia), a factor that no code reads (DISK's weights),
# and the SuperPoint that Hugging Face stores with the matcher.
_UNUSED = re.compile(r"confidence_thresholds|log_assignment\.\d+\.r|keypoint_detector\..+")

_RENAMED = {
    # Old names of the original checkpoints.
    r"^(self|cross)_attn\.(\d+)\.": r"transformers.\2.\1_attn.",
    # Names of Hugging Face. `_join_projections` joins its q, k and v.
    r"^input_projection\.": "input_proj.",
    r"^positional_encoder\.projector\.": "posenc.Wr.",
    r"^match_assignment_layers\.(\d+)\.": r"log_assignment.\1.",
    r"\.final_projection\.": ".final_proj.",
    r"^(token_confidence\.\d+\.token)\.(weight|bias)$": r"\1.0.\2",
    r"^transformer_layers\.(\d+)\.(self|cross)_(?:attention|mlp)\.": r"transformers.\1.\2_attn.",
    r"\.self_attn\.o_proj\.": ".self_attn.out_proj.",
    r"\.cross_attn\.o_proj\.": ".cross_attn.to_out.",
    r"\.cross_attn\.v_proj\.": ".cross_attn.to_v.",
    r"_attn\.fc1\.": "_attn.ffn.0.",
    r"_attn\.layer_norm\.": "_attn.ffn.1.",
    r"_attn\.fc2\.": "_attn.ffn.3.",
}


def load_lightglue(state: Mapping[str, Any], settings: LightGlueSettings) -> LightGlue:
    """The network in evaluation mode, with weights in any known format.

    Raises: ValueError if keys are missing, unexpected or of another shape; the text names them.
    """
    network = LightGlue(settings)
    load_strictly(network, convert_state_dict(state))
    return network.eval()


def settings_from_state_dict(state: Mapping[str, Any]) -> LightGlueSettings:
    """The architecture of weights in any known format, with the default thresholds.

    Raises: ValueError if the weights are not LightGlue's, or belong to a variant with other inputs of the position encoding.
    """
    converted = convert_state_dict(state)
    needed = "posenc.Wr.weight", "log_assignment.0.final_proj.weight"
    if missing := [key for key in needed if key not in converted]:
        raise ValueError(f"these weights do not fit LightGlue: {', '.join(missing)} missing. Give weights of this network")
    num_frequencies, position_dim = converted[needed[0]].shape
    if position_dim not in (2, 4):
        raise ValueError(
            f"these weights encode {position_dim} numbers per position, expected 2 (x, y) or 4 (x, y, scale, orientation): "
            "give weights of another variant"
        )
    descriptor_dim = converted[needed[1]].shape[0]
    projection = converted.get("input_proj.weight")
    layers = {int(found[1]) for key in converted if (found := re.match(r"transformers\.(\d+)\.", key))}
    return LightGlueSettings(
        input_dim=descriptor_dim if projection is None else projection.shape[1],
        descriptor_dim=descriptor_dim,
        num_layers=len(layers),
        num_heads=max(1, descriptor_dim // (2 * num_frequencies)),  # a head rotates two channels by each frequency
        add_scale_orientation=position_dim == 4,
        project_input=projection is not None and tuple(projection.shape) == (descriptor_dim, descriptor_dim),
    )


def convert_state_dict(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights under the names of `LightGlue`, without the known keys that it does not use.

    Unknown keys stay as they are: strict loading then names them.

    Raises: ValueError if Hugging Face's cross attention has different projections for queries and keys. LightGlue has one.
    """
    matcher = _matcher_of(state)
    renamed = {rename_key(key, _RENAMED): value for key, value in matcher.items() if not _UNUSED.fullmatch(key)}
    return _join_projections(renamed)


def _matcher_of(state: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of the matcher, without the prefix of their names."""
    for key in ("model", "state_dict", "matcher"):
        if isinstance(nested := state.get(key), Mapping):
            return _matcher_of(nested)
    prefix = _prefix(state)
    return {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}


def _prefix(keys: Iterable[str]) -> str:
    return next((key[: -len(end)] for key in keys for end in _ANCHORS if key == end or key.endswith(f".{end}")), "")


def _join_projections(state: dict[str, Any]) -> dict[str, Any]:
    """The weights with Hugging Face's q_proj, k_proj and v_proj joined into the projections of the original.

    Hugging Face orders channels as (head, channel of the head), Wqkv as (head, channel of the head, one of q k v). In cross
    attention q_proj and k_proj are copies of the one projection to_qk.
    """
    joined = dict(state)
    for key in state:
        if not (found := re.fullmatch(r"(.+_attn\.)q_proj(\..+)", key)):
            continue
        names = [found.expand(rf"\1{part}_proj\2") for part in "qkv"]
        if ".cross_attn." in key:
            names.pop()
        if any(name not in state for name in names):
            continue  # strict loading then names them
        parts = [joined.pop(name) for name in names]
        if len(parts) == 3:
            joined[found.expand(r"\1Wqkv\2")] = torch.stack(parts, dim=1).flatten(0, 1)
        elif torch.equal(*parts):
            joined[found.expand(r"\1to_qk\2")] = parts[0]
        else:
            raise ValueError(
                f"{names[0]} differs from {names[1]}: in LightGlue one projection gives both queries and keys. "
                "Give weights of this network"
            )
    return joined
