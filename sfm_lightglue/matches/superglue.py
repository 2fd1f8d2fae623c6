"""Matching by SuperGlue (arXiv:1911.11763), for the features of SuperPoint."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sfm_lightglue.networks.superglue import SuperGlue, SuperGlueSettings
from sfm_lightglue.networks.superglue_checkpoints import load_superglue
from sfm_lightglue.networks.weights import WeightsRecord, load_weights
from sfm_lightglue.orientation import upright_features
from sfm_lightglue.products import Features, Matches


@dataclass(frozen=True)
class SuperGlueOptions:
    """Options. Their default values are in configs/matches/superglue.yaml."""

    name: str
    weights: str | None
    """A name, or a file with the keys of the original code or of Hugging Face. None is refused: there is no free default."""
    sinkhorn_iterations: int
    match_threshold: float
    """Smallest matching score, 0..1."""

    def __post_init__(self) -> None:
        if self.sinkhorn_iterations < 1:
            raise ValueError(f"matches.sinkhorn_iterations must be at least 1, found {self.sinkhorn_iterations}")
        if not 0 <= self.match_threshold < 1:
            raise ValueError(f"matches.match_threshold must lie in 0..1, found {self.match_threshold}")


class SuperGlueMatcher:
    """Runs the network on one pair at a time. Several threads may call it at the same time."""

    def __init__(self, options: SuperGlueOptions, network: SuperGlue, device: str, weights: WeightsRecord) -> None:
        self.options, self.network, self.device, self.weights = options, network.to(device), device, (weights,)

    @classmethod
    def create(cls, options: SuperGlueOptions, device: str) -> SuperGlueMatcher:
        """The matcher with its weights loaded.

        Raises: FileNotFoundError if the weights cannot be found or downloaded, ValueError if none are named or they are not
            SuperGlue's.
        """
        if options.weights is None:
            raise ValueError(
                "SuperGlue's published weights are for noncommercial research only and must be requested by name: "
                "matches.weights=superglue-outdoor-official or superglue-indoor-official, or a file of your own; "
                "matches=lightglue needs no name"
            )
        settings = SuperGlueSettings(sinkhorn_iterations=options.sinkhorn_iterations, match_threshold=options.match_threshold)
        state, record = load_weights(options.weights)
        return cls(options, load_superglue(state, settings), device, record)

    @torch.inference_mode()
    def __call__(self, features0: Features, features1: Features) -> Matches:
        """The matches of two images.

        Raises: ValueError if the descriptors have another size than SuperPoint's.
        """
        features0, features1 = upright_features(features0), upright_features(features1)
        result = self.network.match(
            self._tensor(features0.keypoints),
            self._tensor(features1.keypoints),
            self._descriptors(features0),
            self._descriptors(features1),
            self._tensor(features0.scores),
            self._tensor(features1.scores),
            features0.image_size,
            features1.image_size,
        )
        return Matches.from_dense(result.matches0.cpu().numpy(), result.scores0.cpu().numpy(), result.num_layers)

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.as_tensor(array.astype(np.float32), device=self.device)

    def _descriptors(self, features: Features) -> Tensor:
        expected = self.network.settings.descriptor_dim
        if features.descriptors.shape[1] != expected:
            raise ValueError(
                f"the features of {features.name!r} have {features.descriptors.shape[1]}-d descriptors, SuperGlue needs "
                f"SuperPoint's, which are {expected}-d: choose features=superpoint, or another matcher"
            )
        return self._tensor(features.descriptors)
