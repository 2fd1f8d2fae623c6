"""Matching by LightGlue (arXiv 2306.13643), adaptive in depth and width for each pair."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from sfm_lightglue.lookup import closest
from sfm_lightglue.networks.lightglue import HEADS, LightGlue
from sfm_lightglue.networks.lightglue_checkpoints import load_lightglue
from sfm_lightglue.networks.weights import WeightsRecord, load_weights
from sfm_lightglue.products import Features, Matches

HEAD_WEIGHTS = {head: f"{head}-lightglue" for head in HEADS} | {"xfeat": "xfeat-lighterglue"}
"""Published weights of each head."""


@dataclass(frozen=True)
class LightGlueOptions:
    """Options; the values stand in configs/matches."""

    name: str
    head: str
    """Which features the network was trained for."""
    weights: str | None
    """A name or a file; None for the published ones of the head."""
    depth_confidence: float | None
    """Share of confident points at which to stop, -1 = always all layers; None as published with the head."""
    width_confidence: float | None
    """How sure it must be that a point has no match to drop it, -1 = keep all; None as published with the head."""
    filter_threshold: float

    def __post_init__(self) -> None:
        if self.head not in HEADS:
            raise ValueError(f"LightGlue has no weights for matches.head={self.head!r}. {closest(self.head, HEADS)}")
        for key in ("depth_confidence", "width_confidence"):
            if (value := getattr(self, key)) not in (None, -1) and not 0 <= value <= 1:
                raise ValueError(f"matches.{key} must lie in 0..1, or be -1 to switch it off, found {value}")
        if not 0 <= self.filter_threshold < 1:
            raise ValueError(f"matches.filter_threshold must lie in 0..1, found {self.filter_threshold}")


class LightGlueMatcher:
    """Runs the network on one pair at a time; safe to call from several threads."""

    def __init__(self, options: LightGlueOptions, network: LightGlue, device: str, weights: WeightsRecord) -> None:
        self.options, self.network, self.device, self.weights = options, network.to(device), device, (weights,)

    @classmethod
    def create(cls, options: LightGlueOptions, device: str) -> LightGlueMatcher:
        """The matcher with its weights loaded. Raises: FileNotFoundError where they are not at hand."""
        state, record = load_weights(options.weights or HEAD_WEIGHTS[options.head])
        thresholds = {key: getattr(options, key) for key in ("depth_confidence", "width_confidence", "filter_threshold")}
        settings = replace(HEADS[options.head], **{key: value for key, value in thresholds.items() if value is not None})
        return cls(options, load_lightglue(state, settings), device, record)

    @torch.inference_mode()
    def __call__(self, features0: Features, features1: Features) -> Matches:
        """Raises: ValueError where the descriptors are not those of the head."""
        result = self.network.match(
            self._tensor(features0.keypoints),
            self._tensor(features1.keypoints),
            self._descriptors(features0),
            self._descriptors(features1),
            features0.image_size,
            features1.image_size,
            self._scales_orientations(features0),
            self._scales_orientations(features1),
        )
        return Matches.from_dense(result.matches0.cpu().numpy(), result.scores0.cpu().numpy(), int(result.stop_layer))

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.as_tensor(array.astype(np.float32), device=self.device)

    def _descriptors(self, features: Features) -> Tensor:
        expected = self.network.settings.input_dim
        if features.descriptors.shape[1] != expected:
            raise ValueError(
                f"the features of {features.name!r} have {features.descriptors.shape[1]}-d descriptors, "
                f"LightGlue's head {self.options.head!r} takes {expected}-d ones: choose matches.head for these features"
            )
        return self._tensor(features.descriptors)

    def _scales_orientations(self, features: Features) -> Tensor | None:
        """float32 (n, 2) where the head wants them."""
        if not self.network.settings.add_scale_orientation:
            return None
        if features.scales is None or features.orientations is None:
            raise ValueError(f"LightGlue's head {self.options.head!r} needs scales and orientations, {features.name!r} has none")
        return self._tensor(np.stack([features.scales, features.orientations], axis=1))
