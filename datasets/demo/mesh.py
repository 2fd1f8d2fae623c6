"""Triangle meshes from patches, mouldings, turned bodies, walls and leaves. Units are metres, z is up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from textures import TEXTURES, noise, rgb

MATERIALS = tuple(TEXTURES)
Vector = Sequence[float] | np.ndarray  # (3,)
UP = np.array([0.0, 0.0, 1.0])
STONE, PALE, CLAY, GREEN = rgb("c9b795"), rgb("ddd0b4"), rgb("b8673f"), rgb("5d7f34")
TEAL, OXBLOOD, BLUE, OCHRE, ROSE = rgb("5d8a82"), rgb("8e4a42"), rgb("557aa0"), rgb("e2c091"), rgb("d9ab94")
DARK = rgb("6b4a30")


@dataclass(frozen=True)
class Mesh:
    """Triangles with the attributes that the textures need."""

    points: np.ndarray
    """float64 (v, 3)."""
    normals: np.ndarray
    """float32 (v, 3), unit length; they may point to either side."""
    tangents: np.ndarray
    """float32 (v, 3), direction in which u grows."""
    uv: np.ndarray
    """float32 (v, 2), metres."""
    triangles: np.ndarray
    """int64 (t, 3)."""
    materials: np.ndarray
    """int64 (t,), index into MATERIALS."""
    tints: np.ndarray
    """float32 (t, 3), linear RGB."""
    seeds: np.ndarray
    """int64 (t,)."""


class Builder:
    """Collects patches. Each is a grid of points, so normals and tangents follow from differences of neighbours."""

    def __init__(self) -> None:
        self._parts: list[tuple[np.ndarray, ...]] = []
        self._num_points = 0
        self._num_objects = 0

    def mesh(self) -> Mesh:
        return Mesh(*(np.concatenate(column) for column in zip(*self._parts, strict=True)))

    def _add(
        self, points: np.ndarray, normals: np.ndarray, tangents: np.ndarray, uv: np.ndarray, triangles: np.ndarray,
        material: str, tints: np.ndarray, seeds: np.ndarray,
    ) -> None:  # fmt: skip
        materials = np.full(len(triangles), MATERIALS.index(material))
        shaded = (_unit(normals).astype(np.float32), _unit(tangents).astype(np.float32), uv.astype(np.float32))
        self._parts.append((points, *shaded, triangles + self._num_points, materials, tints.astype(np.float32), seeds))
        self._num_points += len(points)

    def patch(self, points: np.ndarray, uv: np.ndarray, material: str, tint: np.ndarray = PALE, seed: int | None = None) -> None:
        """A smooth surface through a grid of points (a, b, 3) with texture coordinates (a, b, 2); u grows along axis 0."""
        self._num_objects += 1
        a, b = points.shape[:2]
        along, across = np.gradient(points, axis=0), np.gradient(points, axis=1)
        corner = (np.arange(a - 1)[:, None] * b + np.arange(b - 1)).ravel()
        halves = [np.stack([corner, corner + b, corner + 1], 1), np.stack([corner + b, corner + b + 1, corner + 1], 1)]
        triangles = np.concatenate(halves)
        seeds = np.full(len(triangles), self._num_objects if seed is None else seed)
        normals, flat = np.cross(along, across).reshape(-1, 3), uv.reshape(-1, 2)
        tints = np.broadcast_to(tint, (len(triangles), 3))
        self._add(points.reshape(-1, 3), normals, along.reshape(-1, 3), flat, triangles, material, tints, seeds)

    def quad(
        self, corner: Vector, side_u: Vector, side_v: Vector, material: str,
        tint: np.ndarray = PALE, origin: tuple[float, float] = (0, 0), cell: float = 0.3, seed: int | None = None,
    ) -> None:  # fmt: skip
        """A parallelogram cut into cells of at most `cell` metres; `origin` is (u, v) of its corner."""
        length_u, length_v = np.linalg.norm(side_u), np.linalg.norm(side_v)
        s = np.linspace(0, 1, int(np.ceil(length_u / cell)) + 1)[:, None]
        t = np.linspace(0, 1, int(np.ceil(length_v / cell)) + 1)[None]
        points = np.asarray(corner) + s[..., None] * np.asarray(side_u) + t[..., None] * np.asarray(side_v)
        uv = np.stack(np.broadcast_arrays(origin[0] + s * length_u, origin[1] + t * length_v), -1)
        self.patch(points, uv, material, tint, seed)

    def box(
        self, centre: Vector, size: Sequence[float], material: str, tint: np.ndarray = PALE,
        turn: np.ndarray | None = None, seed: int | None = None,
    ) -> None:  # fmt: skip
        """A box with edges `size`, turned by a rotation (3, 3) about its centre; texture v runs along z on the sides."""
        self._num_objects += 1
        seed = self._num_objects if seed is None else seed
        axes = np.eye(3) if turn is None else turn.T
        x, y, z = (axis * length for axis, length in zip(axes, size, strict=True))
        low, shift = np.asarray(centre) - (x + y + z) / 2, 3.7 * (seed % 50)
        for corner, u, v in ((low, x, z), (low + y, x, z), (low, y, z), (low + x, y, z), (low, x, y), (low + z, x, y)):
            self.quad(corner, u, v, material, tint, (shift, float(corner[2])), 0.4, seed)

    def sweep(
        self, path: np.ndarray, side: np.ndarray, lift: np.ndarray, profile: Sequence[tuple[float, float]],
        material: str, tint: np.ndarray = PALE, seed: int | None = None,
    ) -> None:  # fmt: skip
        """A moulding: `profile` points (side, lift) carried along a path (m, 3); its corners stay sharp."""
        self._num_objects += 1
        seed = self._num_objects if seed is None else seed
        along = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(path, axis=0), axis=1))])
        start = 0.0
        for (a0, b0), (a1, b1) in pairwise(profile):
            ends = [path + side * a + lift * b for a, b in ((a0, b0), (a1, b1))]
            width = float(np.hypot(a1 - a0, b1 - b0))
            uv = np.stack([np.stack([along, np.full_like(along, v)], 1) for v in (start, start + width)], 1)
            self.patch(np.stack(ends, 1), uv, material, tint, seed)
            start += width

    def lathe(
        self, centre: Vector, profile: Sequence[tuple[float, float]], material: str, tint: np.ndarray = PALE,
        segments: int = 48, carve: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
        detail: float = 0.06, seed: int | None = None,
    ) -> None:  # fmt: skip
        """A turned body: `profile` of (radius, height); `carve(angle, height)` adds to the radius."""
        self._num_objects += 1
        seed = self._num_objects if seed is None else seed
        angle = np.linspace(0, 2 * np.pi, segments + 1)
        for part in _smooth_parts(np.asarray(profile, float), detail):
            radius, height = part[:, 0] + np.zeros((segments + 1, 1)), part[:, 1] + np.zeros((segments + 1, 1))
            if carve is not None:
                radius = radius + carve(angle[:, None], height)
            ring = np.stack([radius * np.cos(angle)[:, None], radius * np.sin(angle)[:, None], height], -1)
            length = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(part, axis=0), axis=1))]) + part[0, 1]
            u = angle[:, None] * max(part[:, 0].mean(), 0.05)
            self.patch(ring + np.asarray(centre), np.stack(np.broadcast_arrays(u, length), -1), material, tint, seed)

    def leaves(
        self, centres: np.ndarray, normals: np.ndarray, size: float, tint: np.ndarray, generator: np.random.Generator
    ) -> None:
        """Folded diamonds at (n, 3) centres, facing about along their normals."""
        n = len(centres)
        facing = _unit(normals + 0.55 * generator.standard_normal((n, 3)))
        tip = _unit(np.cross(facing, generator.standard_normal((n, 3))))
        across, length = np.cross(facing, tip), size * (0.6 + 0.8 * generator.random((n, 1)))
        fold = 0.12 * length * facing
        corners = [-tip * length / 2, across * length * 0.38 + fold, tip * length / 2, -across * length * 0.38 + fold]
        points = np.stack([centres + corner for corner in corners], 1).reshape(-1, 3)
        uv = np.tile([[0, 0], [1, 0.5], [0, 1], [-1, 0.5]], (n, 1))
        first = 4 * np.arange(n)[:, None]
        triangles = (first[..., None] + np.array([[0, 1, 2], [0, 2, 3]])).reshape(-1, 3)
        tilt = np.repeat(facing, 4, 0) - np.tile([[0], [0.35], [0], [-0.35]], (n, 1)) * np.repeat(across, 4, 0)
        seeds = np.repeat(np.arange(n), 2) + 7919 * len(self._parts)
        tints = np.broadcast_to(tint, (2 * n, 3))
        self._add(points, tilt, np.repeat(across, 4, 0), uv, triangles, "leaf", tints, seeds)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def _smooth_parts(profile: np.ndarray, detail: float) -> list[np.ndarray]:
    """A polyline cut at its sharp corners, each part resampled to steps of at most `detail`."""
    step = _unit(np.diff(profile, axis=0))
    sharp = np.flatnonzero(np.sum(step[:-1] * step[1:], axis=1) < 0.75) + 1
    bounds = [0, *sharp.tolist(), len(profile) - 1]
    parts = []
    for start, end in pairwise(bounds):
        piece = profile[start : end + 1]
        at = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(piece, axis=0), axis=1))])
        fine = np.linspace(0, at[-1], max(int(np.ceil(at[-1] / detail)) + 1, len(piece)))
        parts.append(np.stack([np.interp(fine, at, piece[:, k]) for k in (0, 1)], 1))
    return parts


def turned(degrees: float, axis: int = 2) -> np.ndarray:
    """(3, 3) rotation about a coordinate axis."""
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn = np.eye(3)
    i, j = (axis + 1) % 3, (axis + 2) % 3
    turn[[i, j], [i, j]], turn[i, j], turn[j, i] = cos, -sin, sin
    return turn


@dataclass(frozen=True)
class Hole:
    """An opening of a wall: left, right, bottom, and the height at which the arch or lintel begins. The top is arched or flat."""

    left: float
    right: float
    bottom: float
    top: float
    arched: bool = False

    @property
    def crown(self) -> float:
        return self.top + (self.right - self.left) / 2 * self.arched


@dataclass(frozen=True)
class Wall:
    """A vertical plane: `start` on the ground, `along` and `inward` horizontal unit vectors."""

    builder: Builder
    start: np.ndarray
    along: np.ndarray
    inward: np.ndarray

    def at(self, u: float, z: float, out: float = 0.0) -> np.ndarray:
        """The point u along the wall, z up, `out` metres in front of it."""
        return self.start + u * self.along + z * UP - out * self.inward

    def turn(self) -> np.ndarray:
        """Rotation whose columns are along, outward, up: boxes turned by it lie flush with the wall."""
        return np.stack([self.along, -self.inward, UP], 1)

    def face(
        self, span: tuple[float, float], heights: tuple[float, float], holes: Sequence[Hole], depth: float,
        material: str, tint: np.ndarray, reveal: str = "stone",
    ) -> None:  # fmt: skip
        """The wall between u = span and z = heights with openings `depth` metres deep."""
        us = sorted({*span, *(h.left for h in holes), *(h.right for h in holes)})
        for left, right in pairwise(us):
            column = sorted((h for h in holes if h.left <= left and right <= h.right), key=lambda h: h.bottom)
            z = heights[0]
            for bottom, top in [*((h.bottom, h.crown) for h in column), (heights[1], heights[1])]:
                if bottom > z:
                    sides = (right - left) * self.along, (bottom - z) * UP
                    self.builder.quad(self.at(left, z), *sides, material, tint, (left, z))
                z = top
        for hole in holes:
            self._reveal(hole, depth, reveal)
            if hole.arched:
                self._spandrels(hole, material, tint)

    def outline(self, hole: Hole) -> tuple[np.ndarray, np.ndarray]:
        """Points (m, 3) up the left side of an opening, over and down, and their outward directions (m, 3)."""
        if hole.arched:
            angle = np.linspace(np.pi, 0, 25)
            radius = (hole.right - hole.left) / 2
            u = (hole.left + hole.right) / 2 + radius * np.cos(angle)
            us, zs = np.r_[hole.left, u, hole.right], np.r_[hole.bottom, hole.top + radius * np.sin(angle), hole.bottom]
            side_u, side_z = np.r_[-1, np.cos(angle), 1], np.r_[0, np.sin(angle), 0]
        else:
            us, zs = np.array([hole.left] * 2 + [hole.right] * 2), np.array([hole.bottom, hole.top, hole.top, hole.bottom])
            side_u, side_z = np.array([-1, -1, 1, 1]), np.array([0, 1, 1, 0])
        path = self.start + us[:, None] * self.along + zs[:, None] * UP
        return path, side_u[:, None] * self.along + side_z[:, None] * UP

    def _reveal(self, hole: Hole, depth: float, material: str) -> None:
        path, side = self.outline(hole)
        self.builder.sweep(path, side, self.inward, [(0, 0), (0, depth / 2), (0, depth)], material, PALE)
        sides = (hole.right - hole.left) * self.along, depth * self.inward
        self.builder.quad(self.at(hole.left, hole.bottom), *sides, material, PALE)

    def _spandrels(self, hole: Hole, material: str, tint: np.ndarray) -> None:
        angle, radius, middle = np.linspace(np.pi, 0, 33), (hole.right - hole.left) / 2, (hole.left + hole.right) / 2
        u, low = middle + radius * np.cos(angle), hole.top + radius * np.sin(angle)
        z = low[:, None] + (hole.crown - low)[:, None] * np.linspace(0, 1, 4)
        uu = np.broadcast_to(u[:, None], z.shape)
        points = self.start + uu[..., None] * self.along + z[..., None] * UP
        self.builder.patch(points, np.stack([uu, z], -1), material, tint)

    def frame(self, hole: Hole, width: float, out: float, tint: np.ndarray = PALE) -> None:
        """A moulded stone surround."""
        path, side = self.outline(hole)
        profile = [(0, 0), (0, out), (0.35 * width, out), (0.45 * width, 1.5 * out), (width, 1.5 * out), (width, 0)]
        self.builder.sweep(path, side, -self.inward, profile, "stone", tint)

    def moulding(self, span: tuple[float, float], z: float, profile: Sequence[tuple[float, float]], tint: np.ndarray) -> None:
        """A horizontal moulding; profile points are (out, up)."""
        us = np.linspace(*span, int((span[1] - span[0]) / 0.4) + 2)
        path = self.start + us[:, None] * self.along + z * UP
        self.builder.sweep(path, np.broadcast_to(-self.inward, path.shape), UP, profile, "stone", tint)

    def block(
        self, u: float, z: float, size: tuple[float, float, float], material: str = "stone", tint: np.ndarray = PALE,
        out: float = 0.0, roll: float = 0.0, yaw: float = 0.0,
    ) -> None:  # fmt: skip
        """A box of (length, depth, height) whose middle stands `out` in front of the wall."""
        turn = self.turn() @ turned(yaw) @ turned(roll, 1)
        self.builder.box(self.at(u, z, out), size, material, tint, turn)

    def panel(
        self, u: float, z: float, size: tuple[float, float], material: str, tint: np.ndarray = PALE, out: float = 0.0,
        seed: int | None = None,
    ) -> None:  # fmt: skip
        """A flat rectangle with its lower left corner at (u, z)."""
        self.builder.quad(self.at(u, z, out), size[0] * self.along, size[1] * UP, material, tint, seed=seed)


def scatter_on_wall(wall: Wall, span: tuple[float, float], top: float, count: int, seed: int) -> np.ndarray:
    """(n, 3) points of ivy on a wall: thick at the foot, in tongues higher up."""
    generator = np.random.default_rng(seed)
    u, z = span[0] + (span[1] - span[0]) * generator.random(count), top * generator.random(count)
    coarse, fine = noise(u / 1.1 + seed, z / 1.6)[0], noise(u / 0.35, z / 0.5 + seed)[0]
    edge = np.minimum(u - span[0], span[1] - u)
    kept = coarse + 0.5 * fine + 0.9 - 1.1 * z / top - 0.9 * np.exp(-edge / 0.3) > 0.25
    return (
        wall.start
        + u[kept, None] * wall.along
        + z[kept, None] * UP
        - (0.02 + 0.1 * generator.random((kept.sum(), 1))) * wall.inward
    )
