"""Real photos of tourists: the mapper starts several times and leaves parts, which a run puts together."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pycolmap
import pytest
from PIL import Image as PILImage

from sfm_lightglue import pipeline
from sfm_lightglue.colmap import colmap_log
from sfm_lightglue.config import compose_config
from sfm_lightglue.reconstruction import ReconstructionOptions
from sfm_lightglue.reconstruction.mappers import run_mapper
from sfm_lightglue.reconstruction.models import model_folders
from sfm_lightglue.run_context import Run

PHOTOS = Path(__file__).parents[2] / ".." / "shared" / "data" / "sacre_coeur10" / "images"
SIZES = {
    "02928139_3448003521": 240,
    "17295357_9106075285": 480,
    "44120379_8371960244": 480,
    "51091044_3486849416": 480,
    "60584745_2207571072": 1000,
    "71295362_4051449754": 1000,
    "93341989_396310999": 480,
}
"""px of the longest side."""
SHORT = (
    *("features=sift", "features.resize_max=1024", "features.max_keypoints=1024", "features.orientation=stored"),
    *("matches=nearest_neighbor", "database.intrinsics=per_image", "geometries.max_num_trials=500", "reconstruction.seed=1"),
)


@pytest.mark.slow
@pytest.mark.skipif(not PHOTOS.is_dir(), reason="needs the shared photos")
def test_a_first_attempt_of_two_photos_does_not_hide_the_model_of_all_seven(tmp_path: Path) -> None:
    """COLMAP leaves a model of two photos in `0` and one of all seven in `1`; a run joins them in `0`."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for name, size in SIZES.items():
        photo = PILImage.open(PHOTOS / f"{name}.jpg").convert("RGB")
        scale = size / max(photo.size)
        small = photo.resize((round(photo.width * scale), round(photo.height * scale)), PILImage.Resampling.LANCZOS)
        small.save(photos / f"{name[:8]}_{size}.jpg", quality=92)
    config = compose_config(["+dataset=folder", f"dataset.images={photos}", f"output={tmp_path / 'out'}", *SHORT])
    run = Run.create(config)
    models = pipeline.run_all(run)["stages"]["reconstruct"]["models"]
    assert [(model["folder"], model["num_images"]) for model in models] == [("0", 7)]
    assert pycolmap.Reconstruction(tmp_path / "out" / "reconstruction" / "0").num_reg_images() == 7

    alone = tmp_path / "alone"
    alone.mkdir()
    options: ReconstructionOptions = dataclasses.replace(run.options.reconstruction, max_error_px=2.5)
    with colmap_log(None):
        run_mapper(tmp_path / "out" / "database.db", alone, options, {})
    assert [pycolmap.Reconstruction(folder).num_reg_images() for folder in model_folders(alone)] == [2, 7]


@pytest.mark.slow
@pytest.mark.skipif(not PHOTOS.is_dir(), reason="needs the shared photos")
def test_parts_of_four_and_three_photos_become_a_model_of_all_ten(tmp_path: Path) -> None:
    """With few keypoints the mapper stops twice: no photo has 30 matches with points that fit.

    How far it gets depends on the seed (6 to 10 photos), so keypoints stay as they were when this was found.
    """
    short = ("features=sift", "features.resize_max=640", "features.max_keypoints=1024", "features.orientation=stored")
    short += ("refinement=none", "reconstruction.seed=4")
    options = [*short, "matches=nearest_neighbor", f"dataset.images={PHOTOS}", "+dataset=folder", f"output={tmp_path}"]
    result = pipeline.run_all(Run.create(compose_config(options)))["stages"]["reconstruct"]
    assert [model["num_images"] for model in result["models"]] == [10]
    assert any("a model of 3 images was continued: 10 images" in note for note in result["joining"]), result["joining"]
