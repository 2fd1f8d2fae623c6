"""Procedural textures of the demo scene: colour and relief of a surface at a point, without light.

A texture maps surface coordinates (u, v) in metres to colour (linear RGB) and relief (the slope of the surface along u and v).
Every pattern fades out if the camera cannot resolve it. `footprint` is the size of a sample on the surface in metres.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

_LATTICE = np.random.default_rng(7).standard_normal((1024, 1024)).astype(np.float32)
_UNIFORM = np.random.default_rng(8).random((1024, 1024)).astype(np.float32)


@dataclass(frozen=True)
class Surface:
    """The n visible points that a texture colours."""

    u: np.ndarray
    """float32 (n,), metres along the surface."""
    v: np.ndarray
    """float32 (n,), metres along the surface, upwards on walls."""
    height: np.ndarray
    """float32 (n,), metres above the ground."""
    tint: np.ndarray
    """float32 (n, 3), colour of the object."""
    seed: np.ndarray
    """int64 (n,), a random seed for each object."""
    footprint: np.ndarray
    """float32 (n,), metres."""


@dataclass(frozen=True)
class Look:
    """Colour and relief of n points."""

    albedo: np.ndarray
    """float32 (n, 3)."""
    slope_u: np.ndarray | float = 0.0
    slope_v: np.ndarray | float = 0.0
    gloss: float = 0.0
    """Strength of the highlight."""
    translucency: float = 0.0
    """Share of the light that comes through from behind."""


def rgb(text: str) -> np.ndarray:
    """float32 (3,) linear colour of an sRGB hex code like "c8a070"."""
    srgb = np.array([int(text[i : i + 2], 16) for i in (0, 2, 4)]) / 255.0
    return (srgb**2.2).astype(np.float32)


def smoothstep(low: np.ndarray | float, high: np.ndarray | float, x: np.ndarray) -> np.ndarray:
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def mix(a: np.ndarray, b: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """a where weight (n,) is 0, b where it is 1; colours (n, 3) or (3,)."""
    return a + (b - a) * weight[:, None]


def hashed(*keys: np.ndarray | int) -> np.ndarray:
    """float32 in 0..1, one fixed random number for each combination of whole numbers."""
    row: np.ndarray | np.int64 = np.int64(17)
    column: np.ndarray | np.int64 = np.int64(5)
    for i, key in enumerate(keys):
        row, column = row * 31 + key * (7 + 12 * i), column * 17 + key * (131 + 6 * i)
    return _UNIFORM[(row + (column >> 10)) % 1024, (column + (row >> 10)) % 1024]


def noise(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Smooth noise of unit wavelength with its derivatives along x and y."""
    i, j = np.floor(x), np.floor(y)
    fx, fy = x - i, y - j
    i, j = i.astype(np.int64) % 1024, j.astype(np.int64) % 1024
    i1, j1 = (i + 1) % 1024, (j + 1) % 1024
    n00, n10, n01, n11 = _LATTICE[j, i], _LATTICE[j, i1], _LATTICE[j1, i], _LATTICE[j1, i1]
    wx, wy = fx * fx * (3 - 2 * fx), fy * fy * (3 - 2 * fy)
    low, high = n00 + (n10 - n00) * wx, n01 + (n11 - n01) * wx
    slope_x = ((n10 - n00) * (1 - wy) + (n11 - n01) * wy) * 6 * fx * (1 - fx)
    return low + (high - low) * wy, slope_x, (high - low) * 6 * fy * (1 - fy)


def fractal(
    s: Surface, wavelength: float, octaves: int, seed: int, stretch: float = 1.0, gain: float = 0.55
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Noise summed over octaves, about unit variance, with its slopes; `stretch` lengthens it along v."""
    total = np.zeros_like(s.u)
    slope_u, slope_v = np.zeros_like(s.u), np.zeros_like(s.u)
    for octave in range(octaves):
        size, angle = wavelength * 0.47**octave, 0.0 if stretch != 1 else 0.6 + 1.9 * octave
        cos, sin = np.cos(angle), np.sin(angle)
        u, v = s.u / size, s.v / (size * stretch)
        offset = 37.7 * seed + 91.3 * octave
        value, dx, dy = noise(cos * u - sin * v + offset, sin * u + cos * v - 1.7 * offset)
        amplitude = gain**octave * smoothstep(0.7, 2.0, size / s.footprint)
        total += amplitude * value
        slope_u += amplitude / size * (cos * dx + sin * dy)
        slope_v += amplitude / (size * stretch) * (cos * dy - sin * dx)
    return total * 1.4, slope_u, slope_v


@dataclass(frozen=True)
class Cells:
    """Blocks laid with joints: the block of each point and its distance to the joint."""

    row: np.ndarray
    column: np.ndarray
    edge: np.ndarray
    """float32 (n,), metres to the nearest joint's centre."""
    slope_u: np.ndarray
    slope_v: np.ndarray
    """Direction away from the nearest joint."""


def masonry(s: Surface, length: float, height: float, seed: int, jitter: float = 0.5) -> Cells:
    """Courses of blocks of uneven lengths, every course shifted by its own amount."""
    row = np.floor(s.v / height).astype(np.int64)
    below = s.v - row * height
    u = s.u / length + 13.7 * hashed(row, seed)
    column = np.floor(u).astype(np.int64)

    def joint(k: np.ndarray) -> np.ndarray:
        return k + jitter * (hashed(row, k, seed + 1) - 0.5)

    column = column + (u > joint(column + 1)) - (u < joint(column))
    left, right = (u - joint(column)) * length, (joint(column + 1) - u) * length
    distances = np.stack([left, right, below, height - below])
    nearest = distances.argmin(axis=0)
    sign = np.where(nearest % 2 == 0, 1.0, -1.0)
    return Cells(row, column, distances.min(axis=0), sign * (nearest < 2), sign * (nearest >= 2))


def pebbles(s: Surface, size: float, seed: int) -> Cells:
    """Voronoi cells around jittered grid points; `edge` is the distance to the neighbouring cell's border."""
    x, y = s.u / size, s.v / size
    i, j = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    first, second = np.full(len(x), 9.0, np.float32), np.full(len(x), 9.0, np.float32)
    nearest = [np.zeros_like(x) for _ in range(4)]
    row, column = i.copy(), j.copy()
    for di in (-1, 0, 1):
        for dj in (-1, 0, 1):
            px = i + di + 0.5 + 0.8 * (hashed(i + di, j + dj, seed) - 0.5)
            py = j + dj + 0.5 + 0.8 * (hashed(i + di, j + dj, seed + 1) - 0.5)
            distance = np.hypot(x - px, y - py).astype(np.float32)
            closer = distance < first
            runner_up = ~closer & (distance < second)
            second = np.where(closer, first, np.where(runner_up, distance, second))
            nearest[2] = np.where(closer, nearest[0], np.where(runner_up, px, nearest[2]))
            nearest[3] = np.where(closer, nearest[1], np.where(runner_up, py, nearest[3]))
            nearest[0], nearest[1] = np.where(closer, px, nearest[0]), np.where(closer, py, nearest[1])
            row, column = np.where(closer, i + di, row), np.where(closer, j + dj, column)
            first = np.where(closer, distance, first)
    across_u, across_v = nearest[0] - nearest[2], nearest[1] - nearest[3]
    length = np.maximum(np.hypot(across_u, across_v), 1e-3)
    edge = (second**2 - first**2) / (2 * length) * size
    return Cells(row, column, edge, across_u / length, across_v / length)


def joints(cells: Cells, width: float, s: Surface, bevel: float = 0.012) -> tuple[np.ndarray, np.ndarray]:
    """(share of joint in each sample, slope of the bevel beside it)."""
    soft = np.maximum(s.footprint, 0.002)
    share = 1 - smoothstep(width / 2 - soft / 2, width / 2 + soft, cells.edge)
    visible = np.clip(bevel / s.footprint - 0.4, 0, 1)
    slope = 0.9 * (1 - smoothstep(width / 2, width / 2 + bevel, cells.edge)) * visible
    return share, slope


def paving(s: Surface) -> Look:
    """Worn flagstones in courses, in rings around the fountain at the origin, with moss in the joints."""
    warp_u, _, _ = fractal(s, 1.3, 3, 1)
    warp_v, _, _ = fractal(s, 1.3, 3, 2)
    radius, angle = np.hypot(s.u, s.v), np.arctan2(s.v, s.u)
    rings = radius < 3.55
    u = np.where(rings, angle * 2.9, 0.96 * s.u + 0.28 * s.v + 0.035 * warp_u)
    v = np.where(rings, radius, 0.96 * s.v - 0.28 * s.u + 0.035 * warp_v + 40)
    laid = Surface(u + 0.012 * warp_u, v + 0.012 * warp_v, s.height, s.tint, s.seed, s.footprint)
    cells = masonry(laid, 0.62, 0.415, 3, 0.7)
    share, bevel = joints(cells, 0.02, s, 0.025)
    tone = 0.68 + 0.58 * hashed(cells.row, cells.column, 21) - 0.12 * rings
    warm = hashed(cells.row, cells.column, 22)
    stone = mix(s.tint * rgb("e4e4e8"), s.tint * rgb("ffdcb8"), warm) * tone[:, None]
    rough, slope_u, slope_v = fractal(s, 0.3, 6, 3)
    stone = stone * np.clip(1 + 0.13 * rough, 0.4, 1.6)[:, None]
    patches, _, _ = fractal(s, 2.3, 5, 4)
    stone = mix(stone, stone * rgb("a8a294"), smoothstep(-0.1, 1.5, patches))
    gap = mix(np.broadcast_to(rgb("6a5e48"), s.tint.shape), rgb("6c7848"), smoothstep(-0.3, 0.9, -patches + 0.4 * rough))
    gap = gap * np.clip(0.75 + 0.25 * rough, 0.3, 1.5)[:, None]
    bump = 0.008 * (1 - share)
    return Look(mix(stone, gap, share), bump * slope_u + cells.slope_u * bevel, bump * slope_v + cells.slope_v * bevel, 0.05)


def bricks(s: Surface) -> Look:
    """Old bricks, each with its own colour."""
    cells = masonry(s, 0.25, 0.072, 11, 0.35)
    share, bevel = joints(cells, 0.011, s, 0.006)
    kind, tone = hashed(cells.row, cells.column, 31), hashed(cells.row, cells.column, 32)
    colour = mix(np.broadcast_to(rgb("a5583c"), s.tint.shape), rgb("c98a60"), smoothstep(0.35, 0.9, kind))
    colour = mix(colour, rgb("6a3a32"), smoothstep(0.8, 0.98, tone)) * (0.55 + 0.8 * tone)[:, None] * s.tint
    rough, slope_u, slope_v = fractal(s, 0.11, 5, 12)
    washed, _, _ = fractal(s, 1.4, 5, 13)
    colour = colour * np.clip(1 + 0.2 * rough, 0.4, 1.7)[:, None]
    colour = mix(colour, rgb("cfc2ae"), smoothstep(0.5, 1.9, washed) * 0.6)
    colour = mix(colour, colour * rgb("707858"), smoothstep(0.9, 0.0, s.height + 0.3 * washed))
    mortar = rgb("b8ab98") * np.clip(0.8 + 0.2 * rough, 0.3, 1.4)[:, None]
    bump = 0.006
    return Look(mix(colour, mortar, share), bump * slope_u + cells.slope_u * bevel, bump * slope_v + cells.slope_v * bevel)


def plaster(s: Surface) -> Look:
    """Limewash in the object's tint with stains, cracks and places where it fell off the bricks."""
    cloud, _, _ = fractal(s, 1.9, 6, 41)
    grain, grain_u, grain_v = fractal(s, 0.09, 5, 42)
    streaks, _, _ = fractal(s, 0.16, 4, 43, stretch=9.0)
    colour = s.tint * np.clip(1 + 0.13 * cloud + 0.05 * grain, 0.5, 1.5)[:, None]
    colour = mix(colour, colour * rgb("e8c9a0"), smoothstep(-0.2, 1.4, cloud))
    colour = mix(colour, colour * rgb("b0a898"), smoothstep(0.2, 2.0, streaks + 0.6 * cloud) * 0.9)
    crack, _, _ = fractal(s, 1.1, 5, 44, gain=0.62)
    where, _, _ = fractal(s, 2.7, 2, 45)
    width = 0.012 + 1.2 * s.footprint
    line = (1 - smoothstep(0.3 * width, width, np.abs(crack))) * smoothstep(0.3, 0.9, where) * np.clip(0.012 / width, 0, 1)
    colour = mix(colour, colour * rgb("5a4c40"), line)
    damage, du, dv = fractal(s, 1.5, 6, 46)
    low = 0.9 * smoothstep(1.3, 0.0, s.height)
    level = damage + low - 1.28
    fallen = smoothstep(-0.012, 0.012 + 0.9 * s.footprint, level)
    rim = np.exp(-((level / 0.06) ** 2))
    colour = mix(colour, rgb("d9cbb4") * np.clip(1 + 0.2 * grain, 0.5, 1.5)[:, None], rim * (level < 0.03))
    under = bricks(s)
    edge = -0.05 * rim
    slope_u = np.where(level > 0, under.slope_u, 0.0045 * grain_u) + edge * du
    slope_v = np.where(level > 0, under.slope_v, 0.0045 * grain_v) + edge * dv
    return Look(mix(colour, under.albedo * 0.9, fallen), slope_u, slope_v)


def stone(s: Surface) -> Look:
    """Dressed stone with veins, pits and rain streaks, no joints."""
    own = Surface(s.u + 1.7 * (s.seed % 97), s.v + 2.3 * (s.seed % 89), s.height, s.tint, s.seed, s.footprint)
    rough, slope_u, slope_v = fractal(own, 0.14, 6, 51)
    cloud, _, _ = fractal(own, 0.7, 6, 52)
    streaks, _, _ = fractal(own, 0.09, 3, 53, stretch=7.0)
    tone = 0.85 + 0.25 * hashed(s.seed, 54)
    colour = s.tint * (tone * np.clip(1 + 0.12 * cloud + 0.07 * rough, 0.4, 1.6))[:, None]
    colour = mix(colour, colour * rgb("b4aea4"), smoothstep(0.0, 2.4, streaks + 0.7 * cloud) * 0.9)
    lichen, _, _ = fractal(own, 0.34, 5, 55)
    colour = mix(colour, colour * rgb("e4d2a4"), smoothstep(0.9, 2.4, lichen) * 0.7)
    colour = mix(colour, colour * rgb("98a080"), smoothstep(0.4, 0.0, s.height + 0.15 * cloud) * 0.7)
    pits = smoothstep(1.5, 3.0, rough)
    return Look(mix(colour, colour * rgb("a09684"), pits), 0.005 * slope_u, 0.005 * slope_v, 0.03)


def ashlar(s: Surface) -> Look:
    """Large stone blocks with wide bevelled joints."""
    cells = masonry(s, 0.85, 0.44, 61, 0.6)
    share, bevel = joints(cells, 0.014, s, 0.03)
    base = stone(s)
    tone = 0.72 + 0.55 * hashed(cells.row, cells.column, 62)
    warm = hashed(cells.row, cells.column, 63)
    colour = mix(base.albedo * rgb("f2f0f0"), base.albedo * rgb("ffe0b8"), warm) * tone[:, None]
    slope_u, slope_v = base.slope_u + cells.slope_u * bevel, base.slope_v + cells.slope_v * bevel
    return Look(mix(colour, colour * rgb("706858"), share), slope_u, slope_v, 0.03)


def wood(s: Surface) -> Look:
    """Painted boards, running along v, with the paint worn off here and there."""
    board = np.floor(s.u / 0.11 + 0.37).astype(np.int64)
    inside = s.u / 0.11 + 0.37 - board
    gap = 1 - smoothstep(0.03, 0.03 + 0.02 + s.footprint / 0.11, np.minimum(inside, 1 - inside))
    shifted = Surface(s.u + 3.1 * board + 0.7 * s.seed, s.v, s.height, s.tint, s.seed, s.footprint)
    grain, slope_u, _ = fractal(shifted, 0.02, 4, 71, stretch=22.0)
    worn, _, _ = fractal(shifted, 0.12, 5, 72, stretch=3.0)
    paint = s.tint * ((0.8 + 0.4 * hashed(board, s.seed, 73)) * np.clip(1 + 0.12 * grain, 0.5, 1.5))[:, None]
    bare = rgb("8c7257") * np.clip(0.9 + 0.25 * grain, 0.3, 1.6)[:, None]
    colour = mix(paint, bare, smoothstep(0.75, 1.25, worn))
    return Look(mix(colour, colour * 0.25, gap), 0.002 * slope_u, 0.0, 0.06)


def terracotta(s: Surface) -> Look:
    """Fired clay with pale bloom; roof tiles vary one by one along u."""
    tile = np.floor(s.u / 0.26).astype(np.int64) + 57 * np.floor(s.v / 0.36).astype(np.int64)
    rough, slope_u, slope_v = fractal(s, 0.09, 5, 81)
    bloom, _, _ = fractal(s, 0.5, 5, 82)
    colour = s.tint * ((0.7 + 0.6 * hashed(tile, s.seed, 83)) * np.clip(1 + 0.16 * rough, 0.4, 1.6))[:, None]
    colour = mix(colour, rgb("d8c4a8"), smoothstep(0.4, 1.9, bloom) * 0.55)
    return Look(mix(colour, colour * rgb("606050"), smoothstep(0.5, 1.8, -bloom) * 0.8), 0.008 * slope_u, 0.008 * slope_v)


def pot(s: Surface) -> Look:
    """Terracotta of one piece."""
    whole = Surface(s.u * 0.5 + 31.0 * s.seed, s.v * 0.3, s.height, s.tint, s.seed, s.footprint * 0.5)
    return terracotta(whole)


def leaf(s: Surface) -> Look:
    """A leaf with a pale midrib; u runs across it, from -1 to 1."""
    own = hashed(s.seed, 91)
    colour = s.tint * (0.55 + 0.9 * own)[:, None]
    colour = mix(colour, colour * rgb("fff0a0") + 0.02, smoothstep(0.75, 1.0, hashed(s.seed, 92)) * 0.8)
    rib = 1 - smoothstep(0.06, 0.2, np.abs(s.u))
    return Look(mix(colour, colour * 1.5 + 0.02, rib * 0.7), gloss=0.12, translucency=0.35)


def cloth(s: Surface) -> Look:
    """Woven cloth in the object's tint with stripes of its own."""
    stripes = np.floor(s.u / 0.06 + 9 * hashed(s.seed, 101)).astype(np.int64)
    light = hashed(stripes, s.seed, 102) > 0.6
    weave, _, _ = fractal(s, 0.05, 3, 103)
    colour = mix(s.tint, 0.5 * s.tint + 0.4, light.astype(np.float32)) * np.clip(1 + 0.08 * weave, 0.6, 1.4)[:, None]
    return Look(colour, translucency=0.3)


def iron(s: Surface) -> Look:
    """Wrought iron with rust."""
    rust, slope_u, slope_v = fractal(s, 0.08, 4, 111)
    colour = mix(np.broadcast_to(rgb("2c2b2b"), s.tint.shape), rgb("7a4a2c"), smoothstep(0.2, 1.4, rust))
    return Look(colour * s.tint, 0.004 * slope_u, 0.004 * slope_v, 0.15)


def glass(s: Surface) -> Look:
    """A window: a dark room with a pale curtain behind the pane."""
    folds, _, _ = fractal(s, 0.07, 3, 121, stretch=12.0)
    cloud, _, _ = fractal(s, 0.6, 4, 122)
    open_at = 0.25 + 0.5 * hashed(s.seed, 123)
    drawn = smoothstep(0.0, 0.03, np.abs(s.u - np.round(s.u) - open_at + 0.5) - 0.2 + 0.02 * folds)
    room = rgb("2e3336") * np.clip(1 + 0.3 * cloud, 0.2, 2)[:, None]
    curtain = s.tint * np.clip(0.32 + 0.09 * folds, 0.05, 1)[:, None]
    return Look(mix(room, curtain, drawn * (hashed(s.seed, 124) > 0.35)), gloss=0.5)


def water(s: Surface) -> Look:
    """Shallow green water over a pebbled floor."""
    cells = pebbles(s, 0.12, 131)
    share, _ = joints(cells, 0.02, s)
    cloud, _, _ = fractal(s, 0.5, 5, 132)
    tone = 0.35 + 0.9 * hashed(cells.row, cells.column, 133)
    colour = mix(rgb("54786e") * tone[:, None], rgb("2a4038"), share) * np.clip(1 + 0.3 * cloud, 0.3, 1.8)[:, None]
    _, slope_u, slope_v = fractal(s, 0.22, 3, 134)
    return Look(colour * s.tint, 0.012 * slope_u, 0.012 * slope_v, 0.6)


def picture(s: Surface) -> Look:
    """A painting of random shapes, one for each seed; (u, v) from the lower left corner."""
    albedo = np.zeros((len(s.u), 3), np.float32)
    for seed in np.unique(s.seed):
        inside = s.seed == seed
        albedo[inside] = _shapes(s.u[inside], s.v[inside], s.footprint[inside], int(seed))
    faded, slope_u, slope_v = fractal(s, 0.35, 6, 141)
    colour = mix(albedo * np.clip(1 + 0.12 * faded, 0.5, 1.5)[:, None], rgb("d8ccb4"), smoothstep(0.2, 2.2, faded) * 0.8)
    return Look(colour * s.tint, 0.005 * slope_u, 0.005 * slope_v, 0.04)


def _shapes(u: np.ndarray, v: np.ndarray, footprint: np.ndarray, seed: int) -> np.ndarray:
    """float32 (n, 3): discs, rings, bars and lines of writing over a ground, spread over about 1.2 m."""
    generator = np.random.default_rng(seed)
    palette = np.stack([rgb(c) for c in ("e6d8ba", "4a6486", "a8564a", "cfa25a", "5f8068", "4a4240", "8f6476", "8fa9b2")])
    colour = np.broadcast_to(palette[generator.integers(4)], (len(u), 3)).astype(np.float32)
    for _ in range(22):
        cx, cy, size = generator.random() * 1.2, generator.random() * 1.2, 0.05 + 0.2 * generator.random() ** 2
        angle, kind, paint = generator.random() * 6.3, generator.integers(4), palette[generator.integers(8)]
        x = np.cos(angle) * (u - cx) + np.sin(angle) * (v - cy)
        y = np.cos(angle) * (v - cy) - np.sin(angle) * (u - cx)
        radius = np.hypot(x, y)
        distance = (
            radius - size,
            np.abs(radius - size) - 0.2 * size,
            np.maximum(np.abs(x) - size, np.abs(y) - 0.4 * size),
            np.maximum(
                np.maximum(np.abs(x) - size, np.abs(y) - size), np.abs((y / size * 3) % 1 - 0.5) * size / 3 - 0.25 * size / 3
            ),
        )[kind]
        colour = mix(colour, paint, 1 - smoothstep(-0.5 * footprint, 0.7 * footprint, distance))
    return colour


def sky(direction: np.ndarray) -> np.ndarray:
    """float32 (n, 3) radiance of the sky along unit directions (n, 3), z up."""
    up = np.maximum(direction[:, 2], 0)
    colour = mix(np.broadcast_to(rgb("d3e0ea"), direction.shape), rgb("4f86c4"), up**0.55)
    flat = direction[:, :2] / (up + 0.28)[:, None]
    s = Surface(flat[:, 0], flat[:, 1], up, colour, np.zeros(len(up), np.int64), np.full(len(up), 1e-3, np.float32))
    cloud, _, _ = fractal(s, 0.55, 7, 151, gain=0.6)
    return (mix(colour, rgb("fbf6ee"), smoothstep(0.15, 1.9, cloud) * 0.9) * 1.25).astype(np.float32)


TEXTURES: dict[str, Callable[[Surface], Look]] = {
    texture.__name__: texture
    for texture in (
        paving, bricks, plaster, stone, ashlar, wood, terracotta, pot, leaf, cloth, iron, glass, water, picture,
    )
}  # fmt: skip
