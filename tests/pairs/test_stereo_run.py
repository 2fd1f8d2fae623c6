"""A stereo set on real pixels: the demo scene, with every second view in the folder of the other camera."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from sfm_lightglue import pipeline
from sfm_lightglue.config import compose_config
from sfm_lightglue.run_context import Run

DEMO = Path(__file__).parents[2] / "datasets" / "demo" / "images"
SHORT = (
    *("pairs=sequential", "pairs.overlap=1", "pairs.quadratic_overlap=false", "database.intrinsics=single", "features=sift"),
    *("features.max_keypoints=1024", "features.resize_max=640", "matches=nearest_neighbor", "matches.max_ratio=0.85"),
)


@pytest.mark.slow
def test_the_cameras_of_a_stereo_set_come_into_one_model(tmp_path: Path) -> None:
    """With `across_folders=false` there are two models of 8 photos each."""
    for i, photo in enumerate(sorted(DEMO.glob("*.jpg"))):
        folder = tmp_path / "photos" / ("left", "right")[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy2(photo, folder / f"{i // 2:04d}.jpg")
    options = ["+dataset=folder", f"dataset.images={tmp_path / 'photos'}", f"output={tmp_path / 'out'}", *SHORT]
    summary = pipeline.run_all(Run.create(compose_config(options)))
    assert [model["num_images"] for model in summary["stages"]["reconstruct"]["models"]] == [16]
