"""Pictures of a whole sphere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image as PILImage


def directions(width: int) -> np.ndarray:
    """float64 (width / 2, width, 3): unit rays of the pixels of a panorama; y points down, and z to the middle of the picture."""
    longitude = (np.arange(width) + 0.5) / width * 2 * np.pi - np.pi
    latitude = (np.arange(width // 2) + 0.5) / width * 2 * np.pi - np.pi / 2
    longitude, latitude = np.meshgrid(longitude, latitude)
    rays = np.cos(latitude) * np.sin(longitude), np.sin(latitude), np.cos(latitude) * np.cos(longitude)
    return np.stack(rays, axis=2)


def write_panorama(path: Path, width: int) -> None:
    """Writes a panorama of a pattern of waves that covers the sphere."""
    waves = np.random.default_rng(0).normal(0, 4, (3, 20))
    grey = 128 + 20 * np.cos(directions(width) @ waves + 3 * np.arange(20)).sum(axis=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    PILImage.fromarray(grey.clip(0, 255).astype(np.uint8)).save(path, quality=95)
