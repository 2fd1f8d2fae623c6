"""Steps of `scale.py` before the pairs: the stage extract with a stub extractor on many tiny photos.

`photos` makes the photos, `extract` extracts all of them, `extract_again` has nothing to do, `extract_more` has two new photos.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image as PILImage

from sfm_lightglue.execution.threads import ThreadExecutor
from sfm_lightglue.features.stage import extract_features
from sfm_lightglue.products import Features, Image

STEPS = ("photos", "extract", "extract_again", "extract_more")
SIZE = (64, 48)


@dataclass(frozen=True)
class StubOptions:
    """Options of the stub."""

    name: str
    num_keypoints: int


class StubExtractor:
    """Gives the same random features for each photo, at once."""

    weights = ()

    def __init__(self, num_keypoints: int) -> None:
        self.options, generator = StubOptions("random features", num_keypoints), np.random.default_rng(0)
        self.keypoints = generator.uniform(0, (SIZE[0] - 1, SIZE[1] - 1), (num_keypoints, 2)).astype(np.float32)
        self.scores = np.sort(generator.random(num_keypoints).astype(np.float32))[::-1]
        self.descriptors = generator.normal(size=(num_keypoints, 128)).astype(np.float32)

    def __call__(self, image: Image) -> Features:
        return Features(self.keypoints, self.scores, self.descriptors, image.size)


def run_step(step: str, folder: Path, names: Sequence[str], num_keypoints: int) -> dict[str, float]:
    """Runs one step and returns what it measured."""
    photos, features = folder / "photos", folder / "features.h5"
    added = ["walk/new/0.jpg", "walk/new/1.jpg"] if step == "extract_more" else []
    if step == "photos" or added:
        save_photos(photos, added or names)
    if step == "photos":
        return {}
    start = time.perf_counter()
    report = extract_features(photos, features, StubExtractor(num_keypoints), names=[*names, *added], executor=ThreadExecutor(1))
    files = [path for path in (features, *folder.glob("features.h5.shards/*")) if path.exists()]
    return {
        "num_computed": report.num_computed,
        "photos_per_s": report.num_computed / (time.perf_counter() - start),
        "num_files": len(files),
        "kb_a_photo": sum(path.stat().st_size for path in files) / report.num_images / 1000,
    }


def save_photos(folder: Path, names: Sequence[str]) -> None:
    """Photos of noise. A thousand names at a time are links to one file."""
    generator = np.random.default_rng(len(names))
    for number, name in enumerate(names):
        path = folder / name
        if number % 1000 == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
            source = path
            PILImage.fromarray(generator.integers(0, 256, (SIZE[1], SIZE[0], 3), np.uint8)).save(source)
        else:
            os.link(source, path)
