"""The demo scene: an old courtyard with a palace front, a garden wall, an arcade, a fountain and plants.

Units are metres: x along the front, y into it, z up. The fountain stands at the origin.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from furniture import fountain, furniture, plant, urn
from mesh import (
    BLUE,
    CLAY,
    DARK,
    GREEN,
    OCHRE,
    OXBLOOD,
    PALE,
    ROSE,
    STONE,
    TEAL,
    UP,
    Builder,
    Hole,
    Mesh,
    Wall,
    scatter_on_wall,
    turned,
)
from textures import noise, rgb


def build() -> Mesh:
    builder = Builder()
    front = Wall(builder, np.array([-9.0, 5.0, 0.0]), np.array([1.0, 0, 0]), np.array([0, 1.0, 0]))
    garden = Wall(builder, np.array([-9.0, -9.0, 0.0]), np.array([0, 1.0, 0]), np.array([-1.0, 0, 0]))
    arcade = Wall(builder, np.array([9.0, 5.0, 0.0]), np.array([0, -1.0, 0]), np.array([1.0, 0, 0]))
    _ground(builder)
    _front(front)
    _garden_wall(garden)
    _arcade(arcade)
    fountain(builder)
    furniture(builder)
    _background(builder)
    return builder.mesh()


def _ground(builder: Builder) -> None:
    x, y = np.meshgrid(np.linspace(-9, 11.6, 104), np.linspace(-10, 5, 76), indexing="ij")
    dip = 0.012 * noise(x / 1.7, y / 1.7)[0] + 0.006 * noise(x / 0.6, y / 0.6)[0]
    calm = np.clip(np.minimum(np.hypot(x, y) - 2.1, 5 - y) / 0.6, 0, 1)
    builder.patch(np.stack([x, y, dip * calm - 0.02], -1), np.stack([x, y], -1), "paving", rgb("c8beb0"))


def _front(wall: Wall) -> None:
    door = Hole(8.0, 10.0, 0.0, 2.05, arched=True)
    low = [Hole(u - 0.55, u + 0.55, 1.05, 2.3) for u in (2.6, 5.5, 12.5, 15.4)]
    high = [Hole(u - 0.52, u + 0.52, 4.1, 5.75) for u in (2.6, 5.5, 12.5, 15.4)] + [Hole(8.4, 9.6, 3.55, 5.5, arched=True)]
    wall.face((0, 18), (-0.2, 3.35), [door, *low], 0.35, "ashlar", STONE)
    wall.face((0, 18), (3.35, 7.1), high, 0.28, "plaster", OCHRE)
    wall.moulding((0, 18), 0, [(0.14, -0.2), (0.14, 0.42), (0.08, 0.5), (0, 0.5)], STONE)
    wall.moulding((0, 18), 3.2, [(0, 0), (0.06, 0.04), (0.06, 0.12), (0.16, 0.2), (0.16, 0.28), (0, 0.34)], PALE)
    _eaves(wall)
    _door(wall, door)
    for i, hole in enumerate(low):
        _barred_window(wall, hole, i)
    for i, hole in enumerate(high):
        _shuttered_window(wall, hole, i)
    _balcony(wall)
    for u, z, size, seed in ((6.45, 4.3, (1.1, 1.15), 3), (10.85, 1.15, (0.7, 0.95), 5), (10.72, 4.3, (0.9, 1.15), 12)):
        _fresco(wall, u, z, size, seed)
    for u in (7.3, 10.7):
        _lantern(wall, u, 2.55)
    for u in (0.35, 17.65):
        for k in range(9):
            wall.block(u, 3.75 + 0.4 * k, (0.75 - 0.25 * (k % 2), 0.12, 0.385), "stone", STONE)


def _fresco(wall: Wall, u: float, z: float, size: tuple[float, float], seed: int) -> None:
    wall.panel(u, z, size, "picture", out=0.02, seed=seed)
    wall.frame(Hole(u, u + size[0], z, z + size[1]), 0.08, 0.03, STONE)
    wall.block(u + size[0] / 2, z - 0.04, (size[0] + 0.2, 0.1, 0.08), "stone", STONE)


def _eaves(wall: Wall) -> None:
    profile = [(0, 0), (0.1, 0.06), (0.1, 0.2), (0.3, 0.34), (0.3, 0.42), (0.36, 0.48), (0.36, 0.54), (0, 0.54)]
    wall.moulding((-0.1, 18.1), 6.75, profile, PALE)
    for u in np.arange(0.1, 18, 0.36):
        wall.block(u, 6.85, (0.16, 0.5, 0.17), "stone", PALE)
    _roof(wall, (-0.3, 18.3), 7.2, 0.62, (2.2, 0.95))


def _roof(wall: Wall, span: tuple[float, float], z: float, overhang: float, slope: tuple[float, float]) -> None:
    """Barrel tiles on a roof rising `slope` = (in, up) from its eaves."""
    along, across = np.linspace(*span, int((span[1] - span[0]) / 0.0325)), np.linspace(0, 1, 49)
    u, t = np.meshgrid(along, across, indexing="ij")
    rows = slope[0] / 0.36
    lip = 0.03 * ((t * rows) % 1) + 0.015 * noise(u / 0.26, t * rows)[0]
    height = z + slope[1] * t + 0.075 * np.abs(np.sin(np.pi * u / 0.26)) - lip
    inward = slope[0] * t - overhang
    points = wall.start + u[..., None] * wall.along + inward[..., None] * wall.inward + height[..., None] * UP
    wall.builder.patch(points, np.stack([u, t * slope[0]], -1), "terracotta", CLAY)


def _door(wall: Wall, hole: Hole) -> None:
    wall.frame(hole, 0.3, 0.07, PALE)
    wall.block(9.0, 3.16, (0.34, 0.3, 0.5), "stone", PALE)
    for side in (-1, 1):
        for k in range(6):
            wall.block(9 + side * (1.42 + 0.06 * (k % 2)), 0.2 + 0.4 * k, (0.34 + 0.12 * (k % 2), 0.16, 0.37), "stone", STONE)
    for left in (8.0, 9.02):
        wall.panel(left, 0, (0.98, 3.1), "wood", TEAL, out=-0.3)
        for z, height in ((0.25, 0.55), (0.95, 0.6), (1.7, 0.5)):
            wall.block(left + 0.49, z + height / 2, (0.66, 0.07, height), "wood", TEAL * 0.8, out=-0.3)
    wall.block(8.93, 1.25, (0.05, 0.12, 0.16), "iron", out=-0.26)
    for step, (width, depth) in enumerate(((3.1, 0.95), (2.6, 0.55))):
        wall.block(9.0, 0.08 + 0.15 * step, (width, 2 * depth, 0.16), "stone", STONE * 0.9)


def _barred_window(wall: Wall, hole: Hole, index: int) -> None:
    width, height = hole.right - hole.left, hole.top - hole.bottom
    wall.panel(hole.left, hole.bottom, (width, height), "glass", PALE, out=-0.3)
    wall.frame(hole, 0.16, 0.04, PALE)
    wall.block((hole.left + hole.right) / 2, hole.bottom - 0.06, (width + 0.5, 0.36, 0.11), "stone", PALE)
    for u in np.linspace(hole.left, hole.right, 6)[1:-1]:
        wall.block(u, hole.bottom + height / 2, (0.028, 0.028, height), "iron", out=-0.05)
    for z in np.linspace(hole.bottom, hole.top, 4 + index % 2)[1:-1]:
        wall.block((hole.left + hole.right) / 2, z, (width, 0.024, 0.03), "iron", out=-0.05)
    if index in (1, 2):
        _flower_box(wall, hole, (rgb("d2344a"), rgb("8d4fb0"))[index - 1], 50 + index)


def _shuttered_window(wall: Wall, hole: Hole, index: int) -> None:
    width, height, middle = hole.right - hole.left, hole.crown - hole.bottom, (hole.left + hole.right) / 2
    colour = (OXBLOOD, TEAL, BLUE, GREEN * 0.8, TEAL)[index]
    wall.panel(hole.left, hole.bottom, (width, height), "glass", (PALE, ROSE, PALE, BLUE, OCHRE)[index], out=-0.22)
    for u in (hole.left + 0.03, middle, hole.right - 0.03):
        wall.block(u, hole.bottom + height / 2, (0.06, 0.06, height), "wood", PALE, out=-0.2)
    for z in np.linspace(hole.bottom, hole.crown, 4):
        wall.block(middle, z, (width, 0.05, 0.045), "wood", PALE, out=-0.2)
    wall.frame(hole, 0.15, 0.05, PALE)
    wall.block(middle, hole.bottom - 0.05, (width + 0.55, 0.4, 0.1), "stone", PALE)
    if index < 4:
        for side, angle in zip((-1, 1), ((12, 8), (35, 5), (6, 70), (20, 50))[index], strict=True):
            _shutter(wall, hole, side, angle, colour)
        _pediment(wall, middle, hole.crown + 0.24, width + 0.5, index)
    if index in (0, 2, 3):
        _flower_box(wall, hole, (rgb("e8503a"), rgb("f0c040"), rgb("e88ab0"), rgb("f4f0e8"))[index], 60 + index)


def _shutter(wall: Wall, hole: Hole, side: int, angle: float, colour: np.ndarray) -> None:
    """A louvred leaf hinged beside the window, swung `angle` degrees off the wall."""
    half = (hole.right - hole.left) / 2
    hinge = hole.left - 0.02 if side < 0 else hole.right + 0.02
    cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    middle, out = hinge + side * half / 2 * cos, 0.09 + half / 2 * sin
    height, z, turn = hole.top - hole.bottom, (hole.top + hole.bottom) / 2, -side * angle
    along = np.cos(np.radians(angle)) * side * wall.along - sin * wall.inward
    for offset in (-half / 2 + 0.04, half / 2 - 0.04):
        centre = wall.at(middle, z, out) + offset * along
        wall.builder.box(centre, (0.075, 0.05, height), "wood", colour, wall.turn() @ turned(turn))
    for k, at in enumerate(np.linspace(-height / 2 + 0.05, height / 2 - 0.05, 22)):
        size = (half - 0.12, 0.055, 0.012) if k % 10 else (half - 0.12, 0.05, 0.09)
        tilt = turned(35 if k % 10 else 0, 0)
        wall.builder.box(wall.at(middle, z + at, out), size, "wood", colour, wall.turn() @ turned(turn) @ tilt)


def _pediment(wall: Wall, u: float, z: float, width: float, index: int) -> None:
    wall.block(u, z, (width, 0.3, 0.09), "stone", PALE)
    if index % 2:
        angle = np.radians(np.linspace(150, 30, 15))
        path_u, path_z = u + 0.56 * width * np.cos(angle), z - 0.2 + 0.5 * width * np.sin(angle)
    else:
        path_u, path_z = u + width * np.array([-0.5, 0, 0.5]), z + np.array([0.06, 0.36, 0.06])
    path = wall.start + path_u[:, None] * wall.along + path_z[:, None] * UP
    profile = [(0, 0), (0.12, 0), (0.17, 0.05), (0.17, 0.1), (0, 0.1)]
    wall.builder.sweep(path, np.broadcast_to(-wall.inward, path.shape), UP, profile, "stone", PALE)


def _flower_box(wall: Wall, hole: Hole, colour: np.ndarray, seed: int) -> None:
    generator = np.random.default_rng(seed)
    middle, width = (hole.left + hole.right) / 2, hole.right - hole.left
    wall.block(middle, hole.bottom + 0.1, (width, 0.2, 0.2), "pot", CLAY, out=0.13)
    for count, tint, size in ((420, GREEN, 0.08), (150, colour, 0.065)):
        offset = generator.standard_normal((count, 3)) * (0.27 * width, 0.075, 0.085)
        hang = -0.22 * np.abs(generator.standard_normal(count)) * (generator.random(count) < 0.35)
        local = offset @ np.stack([wall.along, wall.inward, UP]) + hang[:, None] * UP
        centres = wall.at(middle, hole.bottom + 0.27, 0.15) + local - 0.25 * np.abs(hang)[:, None] * wall.inward
        wall.builder.leaves(centres, UP - 0.6 * wall.inward + 0 * centres, size, tint, generator)


def _balcony(wall: Wall) -> None:
    wall.block(9.0, 3.5, (2.6, 1.6, 0.12), "stone", PALE)
    for u in (8.0, 10.0):
        wall.block(u, 3.3, (0.18, 1.1, 0.28), "stone", PALE)
    rail = [(7.75, 0.06), (7.75, 0.75), (10.25, 0.75), (10.25, 0.06)]
    for (u0, out0), (u1, out1) in pairwise(rail):
        steps = int(np.hypot(u1 - u0, out1 - out0) / 0.115)
        for t in np.linspace(0, 1, steps + 1):
            wall.block(u0 + t * (u1 - u0), 4.02, (0.022, 0.022, 0.92), "iron", out=out0 + t * (out1 - out0))
        size = (abs(u1 - u0) + 0.04, abs(out1 - out0) + 0.04, 0.045)
        for z in (4.49, 3.66):
            wall.block((u0 + u1) / 2, z, size, "iron", out=(out0 + out1) / 2)
    for i, u in enumerate((7.98, 9.55, 10.0)):
        plant(wall.builder, wall.at(u, 3.56, 0.5), 0.16, 0.2, 70 + i, (GREEN, GREEN * 0.8, rgb("d2344a"))[i])
    for i, (u, tint) in enumerate(((8.3, rgb("e8e0d0")), (8.75, rgb("b03a48")), (9.2, rgb("4a78a8")))):
        wall.panel(u, 3.95 - 0.12 * (i % 2), (0.36, 0.56 + 0.12 * (i % 2)), "cloth", tint, out=0.79)


def _lantern(wall: Wall, u: float, z: float) -> None:
    wall.block(u, z + 0.34, (0.03, 0.5, 0.03), "iron", out=0.2)
    centre = wall.at(u, z, 0.4)
    wall.builder.lathe(centre, [(0.05, 0), (0.11, 0.24), (0.13, 0.25), (0.03, 0.34), (0.02, 0.36)], "iron", segments=6)
    wall.builder.lathe(centre, [(0.055, 0.02), (0.1, 0.22)], "glass", rgb("f0d890") * 3, segments=6)


def _garden_wall(wall: Wall) -> None:
    door = Hole(9.3, 10.4, 0.0, 1.75, arched=True)
    niche = Hole(5.1, 6.1, 0.9, 1.9, arched=True)
    wall.face((0, 14), (-0.2, 3.5), [door, niche], 0.4, "bricks", rgb("fff0e4"))
    for hole in (door, niche):
        wall.frame(hole, 0.2, 0.05, STONE)
    wall.panel(9.3, 0, (1.1, 2.4), "wood", BLUE, out=-0.3)
    wall.panel(5.1, 0.9, (1.0, 1.6), "picture", out=-0.38, seed=21)
    wall.moulding((0, 14), 3.5, [(-0.5, 0), (0.1, 0), (0.1, 0.09), (-0.2, 0.2), (-0.5, 0.09)], STONE)
    wall.moulding((0, 14), 0, [(0.1, -0.2), (0.1, 0.3), (0, 0.36)], STONE)
    for u in (3.2, 7.6, 12.1):
        wall.block(u, 1.75, (0.5, 0.3, 3.5), "ashlar", STONE)
        wall.block(u, 3.72, (0.62, 0.5, 0.14), "stone", PALE)
        urn(wall.builder, wall.at(u, 3.78), int(10 * u))
    for u, z, size, seed in ((8.05, 1.1, (0.75, 1.05), 31), (10.75, 1.2, (0.85, 0.85), 32), (4.0, 1.3, (0.6, 0.85), 33)):
        _fresco(wall, u, z, size, seed)
    generator = np.random.default_rng(40)
    for span, top, count, seed in (((10.9, 14), 3.6, 9000, 1), ((6.0, 9.0), 3.6, 8000, 2), ((0.5, 5.0), 3.4, 7000, 3)):
        centres = scatter_on_wall(wall, span, top, count, seed)
        wall.builder.leaves(centres, -wall.inward + 0.3 * UP + 0 * centres, 0.085, GREEN * (0.8 + 0.2 * seed), generator)


def _arcade(wall: Wall) -> None:
    bays = [Hole(0.75 + 2.7 * k, 2.85 + 2.7 * k, 0.0, 2.35, arched=True) for k in range(5)]
    wall.face((0, 14), (-0.2, 4.3), bays, 0.5, "plaster", ROSE)
    back = Wall(wall.builder, wall.at(0, 0, -2.5), wall.along, wall.inward)
    door = Hole(4.0, 5.1, 0, 2.1)
    back.face((0, 14), (-0.2, 3.9), [door], 0.2, "plaster", rgb("d8cdb8"))
    back.frame(door, 0.15, 0.04, PALE)
    back.panel(4.0, 0, (1.1, 2.1), "wood", OXBLOOD, out=-0.15)
    for u, seed in ((1.3, 41), (6.4, 42), (9.2, 43)):
        _fresco(back, u, 1.1, (1.2, 1.2), seed)
    for y in (5.0, -9.0):
        wall.builder.quad((9, y, 0), (2.5, 0, 0), (0, 0, 4.3), "plaster", ROSE)
    wall.builder.quad(wall.at(0, 3.9, 0), 14 * wall.along, 2.5 * wall.inward, "wood", DARK)
    for k, bay in enumerate(bays):
        wall.frame(bay, 0.17, 0.04, STONE)
        wall.block((bay.left + bay.right) / 2, 3.5, (0.24, 0.16, 0.4), "stone", PALE)
        _column(wall, bay.left - 0.3, k)
    wall.moulding((0, 14), 3.95, [(0, 0), (0.06, 0.05), (0.06, 0.12), (0.2, 0.25), (0.2, 0.33), (0, 0.35)], PALE)
    _roof(wall, (0, 14), 4.24, 0.35, (3.2, 1.2))


def _column(wall: Wall, u: float, seed: int) -> None:
    profile = [(0.24, 0.25), (0.24, 0.32), (0.19, 0.38), (0.19, 0.42), (0.175, 0.45), (0.18, 1.2), (0.15, 2.05), (0.18, 2.08),
               (0.18, 2.12), (0.155, 2.14), (0.155, 2.2), (0.26, 2.34)]  # fmt: skip
    wall.builder.lathe(wall.at(u, 0, 0.2), profile, "stone", PALE, 32, seed=300 + seed)
    wall.block(u, 0.12, (0.56, 0.56, 0.26), "stone", STONE, out=0.2)
    wall.block(u, 2.4, (0.58, 0.58, 0.13), "stone", PALE, out=0.2)


def _background(builder: Builder) -> None:
    """Beyond the walls: a bell tower and cypresses."""
    tower = Wall(builder, np.array([-6.2, 11.0, 0.0]), np.array([1.0, 0, 0]), np.array([0, 1.0, 0]))
    side = Wall(builder, np.array([-3.0, 11.0, 0.0]), np.array([0, 1.0, 0]), np.array([-1.0, 0, 0]))
    for wall in (tower, side):
        bell = Hole(0.95, 2.25, 11.2, 12.9, arched=True)
        wall.face((0, 3.2), (5, 14.4), [bell], 0.5, "bricks", rgb("ffe4c8"))
        wall.frame(bell, 0.2, 0.06, PALE)
        wall.panel(0.9, 11, (1.4, 2.8), "wood", DARK * 0.3, out=-0.5)
        for z in (10.6, 14.2):
            wall.moulding((-0.15, 3.35), z, [(0, 0), (0.15, 0.1), (0.15, 0.2), (0, 0.3)], PALE)
        wall.panel(0.9, 8.3, (1.4, 1.4), "picture", out=0.03, seed=51)
    builder.lathe((-4.6, 12.6, 14.4), [(2.5, 0), (0.02, 1.6)], "terracotta", CLAY, 4, detail=0.2)
    generator = np.random.default_rng(90)
    for x, y, height, width in (
        (-11.2, 1.8, 8.5, 0.85),
        (-12.0, -1.4, 7.2, 0.8),
        (-11.0, -4.6, 6.6, 0.75),
        (12.9, 2.0, 9.5, 0.9),
        (2.5, 13, 12, 1.1),
    ):
        t, angle = generator.random(5200) ** 0.8, 2 * np.pi * generator.random(5200)
        radius = width * np.minimum(1, 5 * t) * (1 - t) ** 0.6 * (0.85 + 0.12 * noise(3 * angle, 9 * t + x)[0])
        outward = np.stack([np.cos(angle), np.sin(angle), 0.4 + 0 * angle], 1)
        centres = np.stack([x + radius * np.cos(angle), y + radius * np.sin(angle), 1 + (height - 1) * t], 1)
        builder.leaves(centres, outward, 0.22, rgb("3c5a30"), generator)
        core = [(0.1, 1), (0.8 * width, 1 + 0.2 * height), (0.6 * width, 0.6 * height), (0.02, 0.95 * height)]
        builder.lathe((x, y, 0), core, "leaf", rgb("18241a"), 16, detail=0.4)
