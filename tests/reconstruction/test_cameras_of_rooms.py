"""Cameras of many kinds are found from the photos of a room whose truth is known."""

from __future__ import annotations

from pathlib import Path

from rooms import camera, make_room

from sfm_lightglue.report.model_statistics import measure_residuals, residual_maps
from sfm_lightglue.report.scene_data import scene_of


def test_panoramas_are_reconstructed_and_reported(tmp_path: Path) -> None:
    room = make_room(tmp_path / "room", [camera("EQUIRECTANGULAR", 800, 400, size=(800, 400))], 5, 150)
    assert room.build(camera_model="EQUIRECTANGULAR").num_verified_pairs == 10
    _, model = room.reconstruct()
    assert model.num_reg_images() == 5 and room.errors(model).max() < 0.01
    numbers = {name: number for number, name in enumerate(room.names)}
    scene = scene_of("0", model, room.folder / "reconstruction" / "0", numbers, {}, {})
    assert scene["name"] == "0"
    (shown,) = residual_maps(measure_residuals(model, lambda name: 1.0), model)
    assert "EQUIRECTANGULAR, 800 x 400 px" in shown["title"] and "focal length" not in shown["note"]
