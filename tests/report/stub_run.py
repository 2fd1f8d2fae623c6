"""Output folders of runs that never ran, of any size: photos, features, pairs, matches and models that fit together."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pycolmap
from PIL import Image

from sfm_lightglue.files import write_json
from sfm_lightglue.georeference import Georeference, Origin, Residual, write_georeference
from sfm_lightglue.pair_files import write_pairs, write_reasons
from sfm_lightglue.products import Features, Matches, Pair, TwoViewGeometry
from sfm_lightglue.run_folder import RunFolder
from sfm_lightglue.storage import ShardStore, features_to_group, geometry_to_group, match_key, matches_to_group

SIZE = (320, 240)
FOCAL = 300.0
SEEN = 60
"""Points that a photo sees."""
STEP = 6
"""New points from one photo to the next."""
REACH = 6
"""Photos that follow within this distance are pairs."""


class StubScene:
    """Cameras on a large circle that look outward at a wall. Photo i sees the points i * STEP to i * STEP + SEEN."""

    def __init__(self, names: Sequence[str]) -> None:
        generator = np.random.default_rng(0)
        self.names = sorted(names)
        count = len(names)
        radius = max(60.0, count * 0.3 / 2 / np.pi)
        angles = np.arange(count * STEP + SEEN) * 0.05 / radius
        depth = radius + 4 + generator.uniform(-0.5, 0.5, len(angles))
        self.points = np.stack([depth * np.sin(angles), generator.uniform(-1, 1, len(angles)), depth * np.cos(angles)], axis=1)
        self.poses = [_outward((0.3 * index + 1.5) / radius, radius) for index in range(count)]
        self._noise = generator.normal(0, 0.4, (256, SEEN, 2))

    def seen(self, index: int) -> range:
        """Numbers of the points of a photo, in the order of its keypoints."""
        return range(index * STEP, index * STEP + SEEN)

    def keypoints(self, index: int) -> np.ndarray:
        """float32 (SEEN, 2): noisy projections, px."""
        pose = self.poses[index]
        points = self.points[index * STEP : index * STEP + SEEN] @ pose[:, :3].T + pose[:, 3]
        pixels = FOCAL * points[:, :2] / points[:, 2:] + np.array(SIZE) / 2 - 0.5 + self._noise[index % 256]
        return pixels.clip(0, np.array(SIZE) - 1).astype(np.float32)

    def model(self, registered: range) -> pycolmap.Reconstruction:
        """The model of these photos."""
        model = pycolmap.Reconstruction()
        params = [FOCAL, SIZE[0] / 2, SIZE[1] / 2, 0.0]
        camera = pycolmap.Camera(model="SIMPLE_RADIAL", width=SIZE[0], height=SIZE[1], params=params, camera_id=1)
        model.add_camera_with_trivial_rig(camera)
        for index in registered:
            keypoints = self.keypoints(index).astype(np.float64) + 0.5
            image = pycolmap.Image(
                self.names[index], pycolmap.Point2DList([pycolmap.Point2D(xy) for xy in keypoints]), 1, index + 1
            )
            rotation = pycolmap.Rotation3d(self.poses[index][:, :3])
            model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(rotation, self.poses[index][:, 3]))
        for number in range(registered.start * STEP, registered.stop * STEP + SEEN - STEP):
            first, last = max(registered.start, (number - SEEN) // STEP + 1), min(registered.stop - 1, number // STEP)
            elements = [pycolmap.TrackElement(index + 1, number - index * STEP) for index in range(first, last + 1)]
            if len(elements) > 1:
                color = np.array([60 + number * 7 % 190, 90 + number * 3 % 150, 200 - number % 120], np.uint8)
                model.add_point3D(self.points[number], pycolmap.Track(elements), color)
        return model


def make_run(
    folder: Path,
    names: Sequence[str],
    *,
    models: Sequence[range] | None = None,
    georeferenced: bool = False,
    num_pictures: int | None = None,
    reach: int = REACH,
) -> RunFolder:
    """Writes a finished run of photos with these names into `folder / "out"`.

    Args:
        folder: An empty folder. The photos go to `folder / "photos"`.
        names: Names of the photos.
        models: Numbers of the photos in each model; by default one model with all photos but the last.
        georeferenced: Whether the first model lies on the earth, and the photos have GPS positions, in a file.
        num_pictures: Number of different pictures; with many photos, several share one.
        reach: Photos that follow within this distance are pairs, verified if they share points.
    """
    scene, run = StubScene(names), RunFolder(folder / "out")
    run.path.mkdir(parents=True)
    _write_photos(folder / "photos", scene.names, num_pictures or len(names))
    with ShardStore(run.features, {}, shard_items=2000) as store:
        for index, name in enumerate(scene.names):
            scores, descriptors = np.linspace(1, 0.1, SEEN, dtype=np.float32), np.ones((SEEN, 4), np.float32)
            features = Features(scene.keypoints(index), scores, descriptors, SIZE, pixel_scale=2.0, name=name)
            store.add(name, features_to_group(features), "")
        store.merge()
    count = len(names)
    pairs = [(i, j) for i in range(count) for j in range(i + 1, min(i + 1 + reach, count))]
    listed = [Pair(scene.names[i], scene.names[j], f"sequential+{j - i}") for i, j in pairs]
    write_pairs(run.pairs, listed)
    write_reasons(run.pair_reasons, listed)
    chosen = [range(count - 1)] if models is None else models
    _write_matches(run, scene, pairs, {index for model in chosen for index in model})
    reports: list[dict[str, object]] = []
    for number, registered in enumerate(chosen):
        path = run.reconstruction / str(number)
        path.mkdir(parents=True)
        reports.append(_write_model(scene, registered, path))
    if georeferenced:
        residuals = {name: Residual(0.5, 0.2, True) for name in scene.names}
        origin = Origin(50.0, 8.0, 100.0)
        write_georeference(run.reconstruction / "0", Georeference(origin, 1.0, np.eye(3), np.zeros(3), residuals, 0.1))
        places = origin.to_geodetic([-pose[:, :3].T @ pose[:, 3] for pose in scene.poses])
        lines = [f"{name} {' '.join(f'{value:.9f}' for value in place)}" for name, place in zip(scene.names, places, strict=True)]
        (folder / "positions.txt").write_text("\n".join(lines), encoding="utf-8")
    _write_summary(run, folder / "photos", len(pairs), reports, scene.names)
    return run


def _outward(angle: float, radius: float) -> np.ndarray:
    """float64 (3, 4): cam_from_world of a camera on the circle that looks away from its middle."""
    sine, cosine = np.sin(angle), np.cos(angle)
    rotation = np.array([[cosine, 0, -sine], [0, 1, 0], [sine, 0, cosine]])
    return np.column_stack([rotation, -rotation @ (radius * np.array([sine, 0, cosine]))])


def _write_photos(folder: Path, names: Sequence[str], num_pictures: int) -> None:
    generator = np.random.default_rng(1)
    pictures = []
    for number in range(num_pictures):
        coarse = generator.integers(40, 220, (6, 8, 3), np.uint8)
        coarse[..., number % 3] //= 2
        stream = io.BytesIO()
        Image.fromarray(coarse).resize(SIZE, Image.Resampling.BICUBIC).save(stream, "JPEG", quality=85)
        pictures.append(stream.getvalue())
    for index, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(pictures[index % num_pictures])


def _write_matches(run: RunFolder, scene: StubScene, pairs: Sequence[tuple[int, int]], registered: set[int]) -> None:
    """Matches of all pairs. A pair is verified if both photos have a pose and share 12 points or more."""
    with ShardStore(run.matches, {}, shard_items=5000) as matches, ShardStore(run.verification, {}, shard_items=5000) as verified:
        for i, j in pairs:
            shift = (j - i) * STEP
            indices = np.stack([np.arange(shift, SEEN), np.arange(SEEN - shift)], axis=1).astype(np.int32)
            scores = np.linspace(0.95, 0.5 if {i, j} <= registered else 0.2, len(indices), dtype=np.float32)
            found = Matches(indices, scores, stop_layer=3 + (i + j) % 6)
            is_verified = {i, j} <= registered and len(indices) >= 12
            geometry = TwoViewGeometry(
                "CALIBRATED" if is_verified else "DEGENERATE",
                indices[: len(indices) - 3] if is_verified else np.zeros((0, 2), np.int32),
                len(indices),
                4.0,
                F=np.eye(3) if is_verified else None,
                rejected_because="" if is_verified else "few inliers",
            )
            key = match_key(scene.names[i], scene.names[j])
            matches.add(key, matches_to_group(found, SEEN), "")
            verified.add(key, geometry_to_group(geometry), "")
        matches.merge()
        verified.merge()


def _write_model(scene: StubScene, registered: range, path: Path) -> dict[str, object]:
    """Writes a model; returns its record in summary.json."""
    model = scene.model(registered)
    model.write(path)
    return {
        "folder": path.name,
        "num_images": len(registered),
        "num_points": model.num_points3D(),
        "num_observations": model.compute_num_observations(),
        "mean_track_length": model.compute_mean_track_length(),
        "mean_reprojection_error_px": 0.5,
        "registered": [scene.names[index] for index in registered],
    }


def _write_summary(
    run: RunFolder, photos: Path, num_pairs: int, models: Sequence[dict[str, object]], names: Sequence[str]
) -> None:
    seconds = {"extract": 12.5, "pairs": 0.1, "match": 80.0, "verify": 9.0, "database": 1.0, "reconstruct": 33.0, "plots": 2.0}
    stages: dict[str, dict[str, object]] = {
        name: {"seconds": value, "cpu_seconds": 2 * value, "peak_memory_mb": 500} for name, value in seconds.items()
    }
    stages["pairs"]["num_pairs"] = num_pairs
    largest = {*models[0]["registered"]} if models else set()  # type: ignore[misc]
    stages["reconstruct"] |= {
        "models": models,
        "largest": models[0]["folder"] if models else None,
        "num_images": len(names),
        "unregistered": [name for name in names if name not in largest],
    }
    positions = photos.parent / "positions.txt"
    dataset = {"images": str(photos), "positions": str(positions) if positions.exists() else None}
    content = {"stages": stages, "dataset": dataset, "versions": {"sfm_lightglue": "0.10.0"}}
    write_json(run.summary, json.loads(json.dumps(content)))
