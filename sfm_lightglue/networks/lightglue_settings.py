"""Sizes and thresholds of LightGlue networks, and the settings of the published ones."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LightGlueSettings:
    """The size of the network, and the three thresholds of inference with their published defaults."""

    input_dim: int
    """Size of the input descriptors."""
    descriptor_dim: int = 256
    """Size of the states inside the network."""
    num_layers: int = 9
    num_heads: int = 4
    add_scale_orientation: bool = False
    """The position encoding also reads the scale and orientation of each keypoint (SIFT-like detectors)."""
    project_input: bool = False
    """A linear layer makes the first states from the descriptors even if both have the same size. The original code has no
    layer there."""
    depth_confidence: float = 0.95
    """Stop after the layer at which more than this fraction of the points of both images is confident. -1: always all layers."""
    width_confidence: float = 0.99
    """Drop confident points with a matchability of at most 1 - this. If depth_confidence is -1, all points count as confident.
    -1: keep all."""
    filter_threshold: float = 0.1
    """A match has a score above this."""

    def __post_init__(self) -> None:
        if self.descriptor_dim % (2 * self.num_heads):
            raise ValueError(
                f"descriptor_dim={self.descriptor_dim} must be a multiple of 2 x num_heads={self.num_heads}: "
                "each head rotates pairs of channels"
            )


PUBLISHED_SETTINGS: dict[str, LightGlueSettings] = {
    "superpoint": LightGlueSettings(input_dim=256),
    "superpoint-open": LightGlueSettings(input_dim=128),  # ALIKED's: the descriptors are in the space of ALIKED's
    "aliked": LightGlueSettings(input_dim=128),
    "raco": LightGlueSettings(input_dim=128),  # LightGlue+: another training, the same network
    "disk": LightGlueSettings(input_dim=128),
    "sift": LightGlueSettings(input_dim=128, add_scale_orientation=True),
    "doghardnet": LightGlueSettings(input_dim=128, add_scale_orientation=True),
    # LighterGlue is published for use with all layers. Points are then dropped by matchability alone.
    "xfeat": LightGlueSettings(64, descriptor_dim=96, num_layers=6, num_heads=1, depth_confidence=-1, width_confidence=0.95),
}
"""Published architectures, by the kind of feature they were trained for."""
