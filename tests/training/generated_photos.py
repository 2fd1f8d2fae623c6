"""Photos for the tests of training: random corners and blobs from a seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image as PILImage
from PIL import ImageDraw


def picture(size: tuple[int, int], seed: int) -> np.ndarray:
    """uint8 (h, w, 3): rectangles, triangles and discs of many colours on a smooth background, `size` = (width, height)."""
    rng = np.random.default_rng(seed)
    width, height = size
    ground = PILImage.fromarray(rng.integers(60, 196, (4, 5, 3), np.uint8)).resize(size, PILImage.Resampling.BICUBIC)
    drawing = ImageDraw.Draw(ground)
    for i in range(width * height // 300):
        colour = tuple(int(value) for value in rng.integers(0, 256, 3))
        x, y = (float(value) for value in rng.uniform((0, 0), size))
        radius = float(rng.uniform(3, 14))
        around = rng.uniform(0, 2 * np.pi) + np.arange(3) * 2 * np.pi / 3
        box = (x - radius, y - 0.6 * radius, x + radius, y + 0.6 * radius)
        if i % 3 == 0:
            drawing.rectangle(box, fill=colour)
        elif i % 3 == 1:
            drawing.polygon([(x + radius * np.cos(angle), y + radius * np.sin(angle)) for angle in around], fill=colour)
        else:
            drawing.ellipse(box, fill=colour)
    return np.array(ground)


def write_photos(folder: Path, number: int, size: tuple[int, int] = (160, 120)) -> list[str]:
    """Writes `0.png`, `1.png`, ... to the folder. Returns their names."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(number):
        PILImage.fromarray(picture(size, i)).save(folder / f"{i}.png")
    return [f"{i}.png" for i in range(number)]


def gaussian_blobs(centres: np.ndarray, size: tuple[int, int], sigma: float) -> np.ndarray:
    """float32 (h, w): Gaussian blobs of height 1 at `centres` (x, y) (n, 2), on black."""
    rows, columns = np.mgrid[: size[1], : size[0]]
    blobs = [np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * sigma**2)) for x, y in centres]
    return np.sum(blobs, axis=0).astype(np.float32)


def centre_of_mass(picture: np.ndarray, near: np.ndarray, radius: int) -> np.ndarray:
    """(2,): the centre of mass (x, y) of the values (h, w) in the square around the pixel nearest to `near`."""
    x, y = np.rint(near).astype(int)
    rows, columns = np.mgrid[y - radius : y + radius + 1, x - radius : x + radius + 1]
    weights = picture[rows, columns]
    return np.array([(columns * weights).sum(), (rows * weights).sum()]) / weights.sum()
