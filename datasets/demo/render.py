"""Draws the demo dataset: photos of an imaginary courtyard with exact poses.

`python datasets/demo/render.py` writes images/ and poses.txt beside itself; --width, --views and --out give quick previews. The
scene is a triangle mesh (courtyard.py) with procedural textures (textures.py). Each photo is drawn in samples finer than its
pixels. A sample gets the texture of its nearest triangle, sunlight with a shadow map, and sky light from a dome of shadow maps.
Then the photo gets a camera's vignetting, noise and tone curve.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL.Image
from courtyard import build
from mesh import MATERIALS, Mesh
from textures import TEXTURES, Surface, rgb, sky

from sfm_lightglue.poses import Pose, PosedCamera, write_poses

NUM_VIEWS = 16
WIDTH, HEIGHT = 800, 600
F35 = 28  # mm; the EXIF tag holds whole numbers only, so the focal length is derived from it
FOCAL = F35 / np.hypot(36, 24) * np.hypot(WIDTH, HEIGHT)  # px; a 35 mm equivalent refers to the diagonal
CENTRE = (401.0, 299.25)  # px, with the centre of the top-left pixel at (0.5, 0.5)
SUN = np.array([-0.50, -0.62, 0.60])
SUNLIGHT, SKYLIGHT, BOUNCE = 2.7 * rgb("fff3e4"), 1.15 * rgb("c4d8f2"), 0.45 * rgb("ecd6ba")


def view(index: int) -> Pose:
    """Camera `index` on an arc around the fountain. Height, distance, aim and roll vary as in hand-held photos."""
    generator = np.random.default_rng(100 + index)
    azimuth = np.radians(-60 + 8 * index + generator.uniform(-1, 1))
    distance = 8.1 + 1.0 * np.sin(1.7 * index) + generator.uniform(-0.2, 0.2)
    height = 2.0 + 0.75 * np.cos(2.3 * index) + generator.uniform(-0.15, 0.15)
    centre = np.array([distance * np.sin(azimuth), -distance * np.cos(azimuth), height])
    forward = np.array([0.0, 1.2, 2.35]) + generator.uniform(-0.35, 0.35, 3) - centre
    forward /= np.linalg.norm(forward)
    right = np.cross(forward, [0, 0, 1])
    right /= np.linalg.norm(right)
    down = np.cross(forward, right)
    roll = np.radians(generator.uniform(-1.5, 1.5))
    right, down = np.cos(roll) * right + np.sin(roll) * down, np.cos(roll) * down - np.sin(roll) * right
    rotation = np.stack([right, down, forward])
    return Pose(rotation, -rotation @ centre)


def rasterize(
    points: np.ndarray, nearness: np.ndarray, triangles: np.ndarray, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest triangle of each sample, int64 (height, width), or -1, and its nearness there, float64 (height, width).

    points (v, 2) are in samples; the centre of the first sample is at (0.5, 0.5). nearness (v,) must be linear on the image. For
    a pinhole camera it is 1 / depth; values of 0 and below are behind the camera. For a parallel projection it is minus the
    depth, shifted to be positive.
    """
    width, height = size
    corners = points[triangles]  # t 3 2
    low = np.clip(np.ceil(corners.min(axis=1) - 0.5), 0, size).astype(np.int64)
    high = np.clip(np.floor(corners.max(axis=1) - 0.5) + 1, 0, size).astype(np.int64)
    extent = np.maximum(high - low, 0)
    a, b, c = corners[:, 0], corners[:, 1], corners[:, 2]
    area = (b[:, 0] - a[:, 0]) * (c[:, 1] - a[:, 1]) - (b[:, 1] - a[:, 1]) * (c[:, 0] - a[:, 0])
    drawn = np.flatnonzero((extent.prod(axis=1) > 0) & (np.abs(area) > 1e-9) & (nearness[triangles] > 0).all(axis=1))
    a, b, c, area, low, extent = a[drawn], b[drawn], c[drawn], area[drawn], low[drawn], extent[drawn]
    # Barycentric weights and nearness are linear in the sample's position, with three coefficients each.
    weight_b = np.stack([c[:, 1] - a[:, 1], a[:, 0] - c[:, 0]], 1) / area[:, None]
    weight_c = np.stack([a[:, 1] - b[:, 1], b[:, 0] - a[:, 0]], 1) / area[:, None]
    near = nearness[triangles[drawn]]
    slope = weight_b * (near[:, 1] - near[:, 0])[:, None] + weight_c * (near[:, 2] - near[:, 0])[:, None]
    nearest, owner = np.zeros(width * height), np.full(width * height, -1)
    counts = extent.prod(axis=1)
    for start, end in _chunks(counts, 2_000_000):
        tri = np.repeat(np.arange(start, end), counts[start:end])
        within = np.arange(len(tri)) - np.repeat(np.cumsum(counts[start:end]) - counts[start:end], counts[start:end])
        x, y = low[tri, 0] + within % extent[tri, 0], low[tri, 1] + within // extent[tri, 0]
        dx, dy = x + 0.5 - a[tri, 0], y + 0.5 - a[tri, 1]
        wb = weight_b[tri, 0] * dx + weight_b[tri, 1] * dy
        wc = weight_c[tri, 0] * dx + weight_c[tri, 1] * dy
        inside = (wb >= -1e-9) & (wc >= -1e-9) & (wb + wc <= 1 + 1e-9)
        tri, sample = tri[inside], (y * width + x)[inside]
        value = near[tri, 0] + slope[tri, 0] * dx[inside] + slope[tri, 1] * dy[inside]
        np.maximum.at(nearest, sample, value)
        winner = value == nearest[sample]
        owner[sample[winner]] = drawn[tri[winner]]
    return owner.reshape(height, width), nearest.reshape(height, width)


def _chunks(counts: np.ndarray, limit: int) -> Iterator[tuple[int, int]]:
    """Consecutive ranges whose counts sum to about `limit`."""
    total = np.cumsum(counts)
    bounds = np.searchsorted(total, np.arange(limit, total[-1] + limit, limit), side="left") + 1
    bounds = np.unique(np.concatenate([[0], np.minimum(bounds, len(counts))]))
    yield from zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)


class ShadowMap:
    """A shadow map for parallel light: how far the scene reaches towards the light at each place."""

    def __init__(self, mesh: Mesh, direction: np.ndarray, resolution: int) -> None:
        helper = np.eye(3)[np.abs(direction).argmin()]
        across = np.cross(direction, helper)
        across /= np.linalg.norm(across)
        self.axes = np.stack([across, np.cross(direction, across), direction]).astype(np.float32)
        projected = mesh.points @ self.axes.T.astype(np.float64)
        self._low = projected.min(axis=0) - 0.5
        self.texel = float((projected[:, :2].max(axis=0) - self._low[:2]).max() + 0.5) / resolution
        self._resolution = resolution
        plane = (projected - self._low) / (self.texel, self.texel, 1)
        self._reach = rasterize(plane[:, :2], plane[:, 2], mesh.triangles, (resolution, resolution))[1].astype(np.float32).ravel()

    def lit(self, points: np.ndarray, bias: float) -> np.ndarray:
        """bool (n,): True for points (n, 3) without a surface more than `bias` metres above them towards the light."""
        x, y, reach = ((points @ axis - np.float32(low)) for axis, low in zip(self.axes, self._low, strict=True))
        column = np.clip(x / self.texel, 0, self._resolution - 1).astype(np.int32)
        row = np.clip(y / self.texel, 0, self._resolution - 1).astype(np.int32)
        return self._reach[row * self._resolution + column] <= reach + np.float32(bias)


class Renderer:
    """Draws the scene with its light."""

    def __init__(self, mesh: Mesh, sun_resolution: int, sky_resolution: int, num_sky: int) -> None:
        self.mesh = mesh
        self.sun_direction = (SUN / np.linalg.norm(SUN)).astype(np.float32)
        self.sun = ShadowMap(mesh, self.sun_direction, sun_resolution)
        self.sky_directions = dome(num_sky)
        self.sky = [ShadowMap(mesh, direction, sky_resolution) for direction in self.sky_directions]

    def photo(self, view: Pose, width: int, samples: int, seed: int) -> np.ndarray:
        """uint8 (height, width, 3): the photo of a view, with `samples` x `samples` samples per pixel."""
        scale = width / WIDTH
        size = (round(WIDTH * scale) * samples, round(HEIGHT * scale) * samples)
        focal, centre = FOCAL * scale * samples, np.asarray(CENTRE) * scale * samples
        in_camera = self.mesh.points @ view.rotation.T + view.translation
        depth = np.where(in_camera[:, 2] > 0.1, in_camera[:, 2], -1.0)
        projected = in_camera[:, :2] / depth[:, None] * focal + centre
        owner, nearness = rasterize(projected, 1 / depth, self.mesh.triangles, size)
        radiance = np.empty((size[1], size[0], 3), np.float32)
        rows = max(200_000 // size[0] // samples, 1) * samples
        for top in range(0, size[1], rows):
            band = slice(top, top + rows)
            y, x = np.mgrid[top : min(top + rows, size[1]), 0 : size[0]]
            rays = np.stack([(x + 0.5 - centre[0]) / focal, (y + 0.5 - centre[1]) / focal, np.ones(x.shape)], -1).reshape(-1, 3)
            group = ((y % samples) * samples + x % samples).ravel()
            colours = self._band(
                view, rays, owner[band].ravel(), nearness[band].ravel(), projected, 1 / depth, (x, y), focal, group
            )
            radiance[band] = colours.reshape(*x.shape, 3)
        radiance = radiance.reshape(size[1] // samples, samples, size[0] // samples, samples, 3).mean(axis=(1, 3))
        return develop(radiance, focal / samples, centre / samples, seed)

    def _band(
        self, view: Pose, rays: np.ndarray, owner: np.ndarray, nearness: np.ndarray, projected: np.ndarray, inverse: np.ndarray,
        grid: tuple[np.ndarray, np.ndarray], focal: float, group: np.ndarray,
    ) -> np.ndarray:  # fmt: skip
        """float32 (n, 3) radiance of n samples."""
        world_rays = rays @ view.rotation
        directions = (world_rays / np.linalg.norm(world_rays, axis=1, keepdims=True)).astype(np.float32)
        colours = np.empty((len(rays), 3), np.float32)
        hit = owner >= 0
        colours[~hit] = sky(directions[~hit])
        corners = self.mesh.triangles[owner[hit]]
        position = np.stack([grid[0].ravel()[hit] + 0.5, grid[1].ravel()[hit] + 0.5], 1)
        weights = barycentric(projected[corners], position) * inverse[corners]
        weights = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
        distance = (np.linalg.norm(rays[hit], axis=1) / nearness[hit]).astype(np.float32)
        points = (view.center + world_rays[hit] / nearness[hit][:, None]).astype(np.float32)
        colours[hit] = self._shade(points, directions[hit], owner[hit], weights, distance / np.float32(focal), group[hit])
        return colours

    def _shade(
        self, points: np.ndarray, directions: np.ndarray, owner: np.ndarray, weights: np.ndarray, footprint: np.ndarray,
        group: np.ndarray,
    ) -> np.ndarray:  # fmt: skip
        mesh, corners = self.mesh, self.mesh.triangles[owner]
        normal, tangent, uv = (
            np.einsum("nk,nkd->nd", weights, values[corners]) for values in (mesh.normals, mesh.tangents, mesh.uv)
        )
        a, b, c = (mesh.points[corners[:, k]] for k in range(3))
        flat = unit(np.cross(b - a, c - a)).astype(np.float32)
        flat *= -np.sign(np.sum(flat * directions, axis=1, keepdims=True))
        normal = unit(normal)
        tangent = unit(tangent - normal * np.sum(normal * tangent, axis=1, keepdims=True))
        bitangent = np.cross(normal, tangent)
        normal *= np.where(np.sum(flat * normal, axis=1, keepdims=True) < 0, np.float32(-1), np.float32(1))
        grazing = np.clip(-np.sum(flat * directions, axis=1), 0.3, 1)
        albedo, slopes, gloss, through = self._look(points, owner, uv, footprint / np.sqrt(grazing))
        bumped = unit(normal - slopes[:, :1] * tangent - slopes[:, 1:] * bitangent)
        light = self._light(points + 0.015 * flat, bumped, flat, through, group)
        half = unit(self.sun_direction - directions)
        shine = gloss * np.clip(np.sum(half * bumped, axis=1), 0, 1) ** 50
        return albedo * light[0] + shine[:, None] * light[1]

    def _look(
        self, points: np.ndarray, owner: np.ndarray, uv: np.ndarray, footprint: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Colour (n, 3), slopes (n, 2), gloss (n,) and translucency (n,) of the points, texture by texture."""
        n, materials = len(points), self.mesh.materials[owner]
        albedo, slopes = np.zeros((n, 3), np.float32), np.zeros((n, 2), np.float32)
        gloss, through = np.zeros(n, np.float32), np.zeros(n, np.float32)
        for index in np.unique(materials):
            at = np.flatnonzero(materials == index)
            tints, seeds = self.mesh.tints[owner[at]], self.mesh.seeds[owner[at]]
            look = TEXTURES[MATERIALS[index]](Surface(uv[at, 0], uv[at, 1], points[at, 2], tints, seeds, footprint[at]))
            albedo[at], slopes[at, 0], slopes[at, 1] = np.clip(look.albedo, 0.01, 0.85), look.slope_u, look.slope_v
            gloss[at], through[at] = look.gloss, look.translucency
        return albedo, np.clip(slopes, -1.2, 1.2), gloss, through

    def _light(
        self, points: np.ndarray, normal: np.ndarray, flat: np.ndarray, through: np.ndarray, group: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """(light on a matt surface, sunlight alone), (n, 3) each. The samples of a pixel share the directions of the sky."""
        facing = normal @ self.sun_direction
        open_to_sun = np.zeros(len(points), np.float32)
        for k in range(4):
            turn = 2.4 * (group * 4 + k)
            offset = np.float32(0.02 * np.sqrt((k + 0.5) / 4))
            shift = np.cos(turn)[:, None] * self.sun.axes[0] + np.sin(turn)[:, None] * self.sun.axes[1]
            open_to_sun += 0.25 * self.sun.lit((points + offset * shift).astype(np.float32), 0.02)
        sunlight = (open_to_sun * (np.maximum(facing, 0) + through * np.maximum(-facing, 0)))[:, None] * SUNLIGHT
        direct, total, seen = (np.zeros(len(points), np.float32) for _ in range(3))
        num_groups = int(group.max()) + 1
        for index, (direction, shadow) in enumerate(zip(self.sky_directions, self.sky, strict=True)):
            at = np.flatnonzero(group == index % num_groups) if num_groups > 1 else slice(None)
            weight = np.maximum(normal[at] @ direction, 0) + 1e-4
            visible = shadow.lit(points[at], 1.2 * shadow.texel)
            total[at] += weight
            direct[at] += weight * visible
            seen[at] += visible / len(self.sky_directions) * num_groups
        open_share = direct / np.maximum(total, 1e-6)
        upward = 0.5 + 0.5 * normal[:, 2]
        ambient = (upward * open_share)[:, None] * SKYLIGHT
        bounce = ((1 - open_share) * upward * 0.9 + (1 - upward)) * (0.35 + 0.65 * np.sqrt(np.clip(seen * 2, 0, 1)))
        return sunlight + ambient + bounce[:, None] * BOUNCE, open_to_sun[:, None] * SUNLIGHT


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)


def barycentric(corners: np.ndarray, points: np.ndarray) -> np.ndarray:
    """float64 (n, 3) weights of the corners (n, 3, 2) at the points (n, 2)."""
    a, b, c = corners[:, 0], corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    d = points - a
    area = b[:, 0] * c[:, 1] - b[:, 1] * c[:, 0]
    wb, wc = (d[:, 0] * c[:, 1] - d[:, 1] * c[:, 0]) / area, (b[:, 0] * d[:, 1] - b[:, 1] * d[:, 0]) / area
    return np.stack([1 - wb - wc, wb, wc], 1)


def dome(count: int) -> np.ndarray:
    """float32 (count, 3) directions spread evenly over the sky, in an order that mixes them."""
    z = (np.arange(count) + 0.5) / count * 0.97 + 0.03
    angle = np.arange(count) * np.pi * (3 - np.sqrt(5))
    directions = np.stack([np.sqrt(1 - z * z) * np.cos(angle), np.sqrt(1 - z * z) * np.sin(angle), z], 1)
    return directions.astype(np.float32)


def develop(radiance: np.ndarray, focal: float, centre: np.ndarray, seed: int) -> np.ndarray:
    """The uint8 photo of a radiance map, with vignetting, exposure, sensor noise and a tone curve."""
    y, x = np.mgrid[0 : radiance.shape[0], 0 : radiance.shape[1]]
    tangent2 = ((x + 0.5 - centre[0]) ** 2 + (y + 0.5 - centre[1]) ** 2) / focal**2
    exposed = 0.62 * radiance / (1 + 0.55 * tangent2)[..., None]
    exposed = exposed + np.random.default_rng(seed).standard_normal(exposed.shape) * 0.008 * np.sqrt(exposed + 0.02)
    x = np.maximum(exposed, 0)
    tone = x * (2.51 * x + 0.03) / (x * (2.43 * x + 0.59) + 0.14)  # a filmic curve: soft shoulder, more contrast
    return np.clip(255 * np.clip(tone, 0, 1) ** (1 / 2.2) + 0.5, 0, 255).astype(np.uint8)


def save(pixels: np.ndarray, path: Path, quality: int) -> None:
    image = PIL.Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x010F], exif[0x0110] = "Synthetic", "Courtyard"  # Make, Model
    exif.get_ifd(0x8769).update({0x920A: float(F35), 0xA405: F35})  # FocalLength, FocalLengthIn35mmFilm
    image.save(path, quality=quality, optimize=True, exif=exif)


def main() -> None:
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=here, help="folder that images/ and poses.txt are written to")
    parser.add_argument("--views", type=int, nargs="*", default=range(NUM_VIEWS), help="indices of the photos to draw")
    parser.add_argument("--width", type=int, default=WIDTH, help="px; the height and the focal length follow")
    parser.add_argument("--samples", type=int, default=3, help="samples along each side of a pixel")
    parser.add_argument("--sun", type=int, default=4096, help="resolution of the sun's shadow map")
    parser.add_argument("--sky", type=int, default=72, help="number of directions that sky light comes from")
    parser.add_argument("--quality", type=int, default=84, help="JPEG quality")
    options = parser.parse_args()
    if options.sky < options.samples**2:
        parser.error(f"--sky must be at least {options.samples**2}: each of a pixel's samples needs a direction of its own")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    (options.out / "images").mkdir(parents=True, exist_ok=True)
    renderer = Renderer(build(), options.sun, options.sun // 4, options.sky)
    logging.info("%d triangles", len(renderer.mesh.triangles))
    for index in options.views:
        path = options.out / "images" / f"{index:02d}.jpg"
        save(renderer.photo(view(index), options.width, options.samples, index), path, options.quality)
        logging.info("%s", path)
    camera_matrix = np.array([[FOCAL, 0, CENTRE[0]], [0, FOCAL, CENTRE[1]], [0, 0, 1]])
    cameras = {}
    for index in range(NUM_VIEWS):
        pose = view(index)
        cameras[f"{index:02d}.jpg"] = PosedCamera(pose.rotation, pose.translation, camera_matrix, (WIDTH, HEIGHT))
    write_poses(options.out / "poses.txt", cameras)


if __name__ == "__main__":
    main()
