"""Objects in the courtyard: the fountain, plants in pots, barrels, boxes and benches."""

from __future__ import annotations

import numpy as np
from mesh import CLAY, DARK, GREEN, OCHRE, PALE, STONE, TEAL, UP, Builder, turned
from textures import noise, rgb


def fountain(builder: Builder) -> None:
    for radius, z in ((2.3, 0.13), (1.98, 0.26)):
        step = [(radius, -0.1), (radius, z - 0.02), (radius - 0.02, z), (0.5, z)]
        builder.lathe((0, 0, 0), step, "stone", STONE * 0.85, 64, detail=0.2)
    wall = [(1.66, 0.26), (1.66, 0.34), (1.56, 0.4), (1.54, 0.46), (1.6, 0.72), (1.6, 0.78), (1.7, 0.82), (1.72, 0.9),
            (1.68, 0.93), (1.42, 0.93), (1.42, 0.5)]  # fmt: skip
    builder.lathe((0, 0, 0), wall, "stone", PALE, 720, _reliefs, 0.015)
    builder.lathe((0, 0, 0), [(1.5, 0.8), (0.05, 0.8)], "water", rgb("ffffff"), 64, detail=0.2)
    stem = [
        (0.42, 0.6),
        (0.42, 0.95),
        (0.3, 1.02),
        (0.2, 1.1),
        (0.17, 1.2),
        (0.24, 1.38),
        (0.24, 1.45),
        (0.14, 1.52),
        (0.16, 1.62),
    ]
    builder.lathe((0, 0, 0), stem, "stone", STONE, 96, lambda a, z: 0.02 * np.cos(8 * a) * (z > 1.05), 0.03)
    bowl = [(0.1, 1.58), (0.35, 1.64), (0.62, 1.76), (0.82, 1.94), (0.86, 2.0), (0.8, 2.01), (0.6, 1.9), (0.1, 1.88)]
    builder.lathe((0, 0, 0), bowl, "stone", PALE, 192, lambda a, z: 0.035 * np.cos(14 * a) * (z - 1.56), 0.03)
    finial = [(0.16, 1.85), (0.16, 2.1), (0.22, 2.14), (0.12, 2.2), (0.1, 2.26), (0.2, 2.34)]
    builder.lathe((0, 0, 0), finial, "stone", STONE, 64)
    cone = [(0.14, 2.33), (0.24, 2.42), (0.27, 2.55), (0.24, 2.72), (0.15, 2.9), (0.05, 3.02), (0.005, 3.05)]
    builder.lathe((0, 0, 0), cone, "stone", rgb("b99a64"), 192, _scales, 0.012)


def _reliefs(angle: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Carved panels around the basin: garlands, rosettes and flutes, none like another."""
    band = np.clip((z - 0.46) / 0.04, 0, 1) * np.clip((0.72 - z) / 0.04, 0, 1)
    part = angle / (2 * np.pi) * 14
    panel, x = np.floor(part), (part % 1) - 0.5
    y = (z - 0.59) / 0.26
    radius, turn = np.hypot(2.2 * x, 1.6 * y), np.arctan2(1.6 * y, 2.2 * x)
    rosette = np.clip(1 - 2.2 * np.abs(radius - 0.38 - 0.1 * np.cos((3 + panel % 5) * turn + panel)), 0, 1)
    flutes = np.cos((10 + 3 * (panel % 4)) * np.pi * x + (panel % 3) * 3 * y)
    garland = np.clip(1 - 9 * np.abs(y + 0.25 - 1.6 * x * x + 0.05 * np.cos(31 * x + panel)), 0, 1)
    pattern = np.where(panel % 3 == 0, rosette, np.where(panel % 3 == 1, 0.5 + 0.5 * flutes, garland + 0.4 * rosette))
    border = np.clip((0.47 - np.abs(x)) / 0.03, 0, 1)
    return 0.045 * band * border * pattern - 0.02 * band * border


def _scales(angle: np.ndarray, z: np.ndarray) -> np.ndarray:
    """The scales of a pine cone."""
    row = (z - 2.33) / 0.075
    shift = 0.5 * (np.floor(row) % 2)
    across, up = (angle * 11 / (2 * np.pi) + shift) % 1 - 0.5, row % 1
    return 0.035 * np.clip(1 - 1.6 * np.hypot(across * 1.3, 0.75 * (1 - up)), 0, 1) * np.clip((3.03 - z) / 0.1, 0, 1)


def furniture(builder: Builder) -> None:
    for seed, (x, y) in enumerate(((-3.55, 3.9), (3.2, 4.0), (-7.6, 2.6), (7.6, -2.2))):
        _lemon_tree(builder, x, y, seed)
    pots = ((-2.3, 4.2, 0.26), (-2.75, 3.75, 0.19), (2.2, 4.25, 0.24), (6.9, 3.6, 0.3), (6.4, 4.1, 0.22), (-8.3, 0.9, 0.3),
            (-8.2, 0.3, 0.2), (2.35, -0.95, 0.2), (-2.5, 0.5, 0.22), (-8.2, -4.0, 0.28), (7.9, 1.2, 0.24))  # fmt: skip
    blooms = ("d2344a", "f0b030", "e88ab0", "f4f0e8", "8d4fb0", "e8503a")
    for i, (x, y, radius) in enumerate(pots):
        plant(builder, np.array([x, y, 0.0]), radius, 1.5 * radius, 80 + i, rgb(blooms[i % 6]))
    _barrel(builder, -5.3, 4.15)
    _barrel(builder, -4.75, 4.4)
    for x, y, z, size, angle, tint in (
        (4.75, 4.2, 0.25, 0.5, 12, DARK * 2), (5.35, 4.3, 0.22, 0.44, -20, OCHRE * 0.7), (4.95, 4.25, 0.68, 0.36, 40, TEAL),
        (-7.9, -1.6, 0.3, 0.6, 8, DARK * 2.4),
    ):  # fmt: skip
        builder.box((x, y, z), (size * 1.25, size, size), "wood", tint, turned(angle))
    _bench(builder, np.array([-6.4, 4.3, 0]), 0)
    _bench(builder, np.array([5.6, 0.9, 0]), 62)
    _bench(builder, np.array([-5.4, 0.6, 0]), -55)


def _lemon_tree(builder: Builder, x: float, y: float, seed: int) -> None:
    generator, centre = np.random.default_rng(seed), np.array([x, y, 0.0])
    height = 2.1 + 0.3 * generator.random()
    profile = [(0.3, 0), (0.32, 0.05), (0.36, 0.35), (0.42, 0.5), (0.47, 0.52), (0.47, 0.64), (0.4, 0.64), (0.38, 0.55)]
    builder.lathe(centre, profile, "pot", CLAY * 1.1, 48, lambda a, z: 0.012 * np.cos(12 * a) * (np.abs(z - 0.3) < 0.12), 0.04)
    builder.lathe(centre, [(0.4, 0.58), (0.01, 0.6)], "paving", DARK, 12)
    lean = 0.12 * generator.standard_normal(2)
    trunk = [(0.06, 0.55), (0.045, 1.0), (0.05, height)]
    builder.lathe(centre, trunk, "wood", DARK * 1.4, 12, lambda a, z: 0.008 * np.cos(3 * a + 6 * z), 0.1)
    crown = centre + np.array([*lean, height])
    directions = generator.standard_normal((4200, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    lobes = noise(3 * directions[:, 0] + 9 * seed, 3 * directions[:, 2])[0]
    radius = (0.72 + 0.13 * lobes) * generator.random(len(directions)) ** 0.25
    builder.leaves(crown + directions * radius[:, None], directions + 0.4 * UP, 0.12, GREEN * 0.85, generator)
    for direction in directions[:26]:
        at, tint = crown + direction * (0.74 + 0.05 * generator.random()), rgb("f2c230") * (0.8 + 0.4 * generator.random())
        builder.lathe(
            at, [(0.005, -0.06), (0.04, -0.03), (0.045, 0.015), (0.02, 0.05), (0.005, 0.06)], "pot", tint * 1.3, 10, detail=0.02
        )


def plant(builder: Builder, centre: np.ndarray, radius: float, height: float, seed: int, bloom: np.ndarray) -> None:
    """A terracotta pot with a bush."""
    r, generator = radius, np.random.default_rng(seed)
    profile = [
        (0.7 * r, 0),
        (0.95 * r, height),
        (1.08 * r, height),
        (1.08 * r, 1.25 * height),
        (0.9 * r, 1.25 * height),
        (0.9 * r, height),
    ]
    builder.lathe(centre, profile, "pot", CLAY * (0.8 + 0.1 * (seed % 5)), 40, detail=0.05)
    builder.lathe(centre, [(0.9 * r, 1.1 * height), (0.01, 1.12 * height)], "paving", DARK, 12)
    for count, tint, size in ((700, GREEN * (0.8 + 0.1 * (seed % 4)), 0.45 * r), (160, bloom, 0.3 * r)):
        offsets = generator.standard_normal((count, 3)) * (0.6 * r, 0.6 * r, 0.62 * r) + (0, 0, 1.25 * height + 0.75 * r)
        offsets[:, 2] = np.maximum(offsets[:, 2], 0.9 * height)
        builder.leaves(centre + offsets, offsets - (0, 0, 1.2 * height), size, tint, generator)


def urn(builder: Builder, centre: np.ndarray, seed: int) -> None:
    profile = [
        (0.14, 0),
        (0.14, 0.05),
        (0.05, 0.1),
        (0.05, 0.14),
        (0.2, 0.3),
        (0.23, 0.42),
        (0.17, 0.5),
        (0.22, 0.56),
        (0.2, 0.56),
    ]
    builder.lathe(centre, profile, "stone", STONE, 32, lambda a, z: 0.012 * np.cos(9 * a) * (z > 0.15) * (z < 0.5))
    generator = np.random.default_rng(seed)
    offsets = generator.standard_normal((260, 3)) * (0.14, 0.14, 0.16) + (0, 0, 0.66)
    builder.leaves(centre + offsets, offsets - (0, 0, 0.5), 0.11, GREEN * 0.9, generator)


def _barrel(builder: Builder, x: float, y: float) -> None:
    builder.lathe(
        (x, y, 0),
        [(0.27, 0), (0.33, 0.2), (0.35, 0.45), (0.33, 0.7), (0.27, 0.9), (0.25, 0.9), (0.01, 0.86)],
        "wood",
        DARK * 1.8,
        40,
    )
    for z, radius in ((0.12, 0.318), (0.28, 0.346), (0.62, 0.346), (0.78, 0.318)):
        builder.lathe(
            (x, y, z), [(radius, 0), (radius + 0.008, 0.005), (radius + 0.008, 0.045), (radius, 0.05)], "iron", segments=40
        )


def _bench(builder: Builder, at: np.ndarray, degrees: float) -> None:
    turn = turned(degrees)
    for x in (-0.6, 0.6):
        builder.box(at + turn @ (x, 0, 0.21), (0.2, 0.4, 0.44), "stone", STONE, turn)
    builder.box(at + turn @ (0, 0, 0.47), (1.6, 0.46, 0.09), "stone", PALE, turn)
