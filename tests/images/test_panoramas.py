"""Panoramas of the whole sphere are recognised; ordinary photos of the same shape are not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage
from spheres import write_panorama

from sfm_lightglue.images.panoramas import MAX_LOOKED_AT, find_panoramas, is_panorama


def test_a_panorama_is_recognised_by_its_edges(tmp_path: Path) -> None:
    write_panorama(tmp_path / "a.jpg", 512)
    assert is_panorama(tmp_path / "a.jpg")


def test_a_part_of_a_panorama_is_none(tmp_path: Path) -> None:
    """Half of it: the edges do not meet. Its middle: they meet, but the first row is not one point."""
    write_panorama(tmp_path / "a.png", 512)
    with PILImage.open(tmp_path / "a.png") as whole:
        whole.crop((100, 0, 356, 128)).save(tmp_path / "b.png")
        whole.crop((0, 64, 512, 192)).resize((512, 256)).save(tmp_path / "c.png")
        whole.resize((512, 300)).save(tmp_path / "d.png")
    assert not any(is_panorama(tmp_path / f"{name}.png") for name in "bcd")


def test_edges_of_one_colour_say_nothing(tmp_path: Path) -> None:
    """Two fisheye circles side by side have black edges."""
    pixels = np.zeros((128, 256), np.uint8)
    pixels[20:100, 20:100] = pixels[20:100, 150:230] = np.random.default_rng(0).integers(0, 256, (80, 80))
    PILImage.fromarray(pixels).save(tmp_path / "a.png")
    assert not is_panorama(tmp_path / "a.png")


@pytest.mark.parametrize("said, expected", [("equirectangular", True), ("cylindrical", False)])
def test_xmp_decides(tmp_path: Path, said: str, expected: bool) -> None:
    xmp = f'<rdf:Description GPano:ProjectionType="{said}"/>'.encode()
    PILImage.new("L", (128, 64)).save(tmp_path / "a.jpg", xmp=xmp)
    write_panorama(tmp_path / "b.png", 128)
    PILImage.open(tmp_path / "b.png").save(tmp_path / "b.jpg", xmp=xmp)
    assert is_panorama(tmp_path / "a.jpg") == is_panorama(tmp_path / "b.jpg") == expected


def test_one_photo_that_looks_like_a_panorama_does_not_decide_for_all(tmp_path: Path) -> None:
    names = [f"{number:02d}.jpg" for number in range(2 * MAX_LOOKED_AT)]
    write_panorama(tmp_path / names[0], 256)
    generator = np.random.default_rng(0)
    for name in names[1:]:
        PILImage.fromarray(generator.integers(0, 256, (128, 256), np.uint8)).save(tmp_path / name)
    assert find_panoramas(tmp_path, dict.fromkeys(names, (256, 128))) == []
    assert find_panoramas(tmp_path, {names[0]: (256, 128)}) == [names[0]]
    assert find_panoramas(tmp_path, {"missing.jpg": (256, 128), "turned.jpg": (128, 256)}) == []
