"""A synthetic room, seen by cameras of any of COLMAP's models: photos, features and matches with known poses and cameras."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pycolmap
from known_scene import MAPPER_OPTIONS
from PIL import ExifTags
from PIL import Image as PILImage

from sfm_lightglue.database import BuildReport, build_database
from sfm_lightglue.geometries.verification import VerificationOptions
from sfm_lightglue.model_files import read_model
from sfm_lightglue.products import Features, Matches, Pair
from sfm_lightglue.reconstruction import reconstruct
from sfm_lightglue.reconstruction.models import ReconstructionReport
from sfm_lightglue.storage import ShardStore, features_to_group, match_key, matches_to_group

VERIFICATION = VerificationOptions(
    max_error_px=2.0,
    min_num_inliers=20,
    min_mean_score=0.0,
    confidence=0.9999,
    max_num_trials=300,
    seed=0,
    stationary_max_error_px=None,
    min_confirmed=1.0,
)
MAPPING = dataclasses.replace(
    MAPPER_OPTIONS,
    refine_intrinsics=True,
    refine_principal_point="auto",
    find_camera_model=True,
    adjustment_scale_px=0.5,
    adjustment_max_error_px=2.5,
    min_model_size=3,
)
"""The options of a run, for keypoints whose errors are 0.4 px."""


def camera(model: str, *params: float, size: tuple[int, int] = (1600, 1200)) -> pycolmap.Camera:
    """A camera of one of COLMAP's models."""
    return pycolmap.Camera(model=model, width=size[0], height=size[1], params=list(params))


@dataclass(frozen=True)
class Room:
    """Photos of a room of 10 x 5 x 10 units. The photos have the cameras in turn."""

    folder: Path
    names: list[str]
    poses: list[np.ndarray]
    """float64 (3, 4) cam_from_world of each photo."""
    pairs: list[Pair]

    def build(self, intrinsics: str = "auto", camera_model: str = "auto") -> BuildReport:
        """Verifies the pairs and writes the database."""
        files = [self.folder / name for name in ("images", "features.h5", "matches.h5")]
        output = self.folder / "database.db"
        return build_database(*files, self.pairs, output, VERIFICATION, intrinsics=intrinsics, camera_model=camera_model)

    def reconstruct(self, **options: object) -> tuple[ReconstructionReport, pycolmap.Reconstruction]:
        """Maps the database; the largest model."""
        mapping = dataclasses.replace(MAPPING, **options)
        report = reconstruct(self.folder / "database.db", self.folder / "images", self.folder / "reconstruction", mapping)
        return report, read_model(self.folder / "reconstruction" / "0")

    def errors(self, model: pycolmap.Reconstruction) -> np.ndarray:
        """float64 (n,): distance of each registered camera from the truth after the best similarity, in units of the room."""
        names = [name for name in self.names if model.find_image_with_name(name) is not None]
        poses = dict(zip(self.names, self.poses, strict=True))
        centers = np.array([-poses[name][:, :3].T @ poses[name][:, 3] for name in names])
        found = pycolmap.align_reconstruction_to_locations(model, names, centers, 3, pycolmap.RANSACOptions(max_error=1))
        moved = [found * model.find_image_with_name(name).projection_center() for name in names]
        return np.asarray(np.linalg.norm(np.array(moved) - centers, axis=1))


def make_room(
    folder: Path,
    cameras: Sequence[pycolmap.Camera],
    num_photos: int = 10,
    num_points: int = 700,
    *,
    noise_px: float = 0.4,
    wrong: float = 0.1,
    seed: int = 0,
    tags: Sequence[Mapping[str, object]] = ({},),
) -> Room:
    """Writes black photos, features, and matches of all pairs, of which the share `wrong` is wrong.

    The photos have the EXIF tags of `tags` in turn, by name; none by default.
    """
    generator = np.random.default_rng(seed)
    is_wide = any(camera.is_spherical() or camera.is_perspective_fisheye() for camera in cameras)
    points = _walls(num_points, generator, is_wide=is_wide)
    poses = [_pose(generator, is_wide=is_wide) for _ in range(num_photos)]
    names, seen = [f"{index:02d}.jpg" for index in range(num_photos)], []
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "images").mkdir(parents=True)
    with ShardStore(folder / "features.h5", {}) as store:
        for index, (name, pose) in enumerate(zip(names, poses, strict=True)):
            camera = cameras[index % len(cameras)]
            pixels, visible = _project(camera, points @ pose[:, :3].T + pose[:, 3])
            found = generator.permutation(np.flatnonzero(visible & (generator.random(num_points) > 0.25)))
            keypoints = pixels[found] - 0.5 + noise_px * generator.standard_normal((len(found), 2))
            ones = np.ones((len(found), 4), np.float32)
            features = Features(keypoints.astype(np.float32), ones[:, 0], ones, (camera.width, camera.height), name=name)
            store.add(name, features_to_group(features), "")
            PILImage.new("L", (camera.width, camera.height)).save(folder / "images" / name, exif=_exif(tags[index % len(tags)]))
            seen.append(found)
        store.merge()
    pairs = [Pair(names[first], names[second]) for first in range(num_photos) for second in range(first + 1, num_photos)]
    by_name = dict(zip(names, seen, strict=True))
    with ShardStore(folder / "matches.h5", {}) as store:
        for pair in pairs:
            found0, found1 = by_name[pair.name0], by_name[pair.name1]
            _, indices0, indices1 = np.intersect1d(found0, found1, return_indices=True)
            is_wrong = generator.random(len(indices0)) < wrong
            indices1[is_wrong] = generator.permutation(indices1[is_wrong])
            matches = Matches(np.column_stack([indices0, indices1]).astype(np.int32), np.ones(len(indices0), np.float32))
            store.add(match_key(pair.name0, pair.name1), matches_to_group(matches, len(found0)), "")
        store.merge()
    return Room(folder, names, poses, pairs)


def _exif(tags: Mapping[str, object]) -> PILImage.Exif:
    """EXIF with tags by name: make and model in the main directory, the others in the Exif directory."""
    exif = PILImage.Exif()
    for name, value in tags.items():
        (exif if name in ("Make", "Model") else exif.get_ifd(ExifTags.IFD.Exif))[ExifTags.Base[name].value] = value
    return exif


def _walls(num_points: int, generator: np.random.Generator, *, is_wide: bool) -> np.ndarray:
    """float64 (num_points, 3): points near five of the six sides of the room; for ordinary lenses of the half that they see."""
    side = generator.integers(0, 5, num_points)
    points = generator.uniform(-1, 1, (num_points, 3))
    if not is_wide:
        points[:, 2] = (points[:, 2] + 1) / 2
    points[np.arange(num_points), side % 3] = np.where(side < 3, 1, -1) + generator.uniform(-0.15, 0.15, num_points)
    return points * (5, 2.5, 5)


def _pose(generator: np.random.Generator, *, is_wide: bool) -> np.ndarray:
    """float64 (3, 4): cam_from_world of a camera in the room. Wide lenses look anywhere, others to one end of the room."""
    center = generator.uniform(-1, 1, 3) * (3, 1, 1.5) - ((0, 0, 0) if is_wide else (0, 0, 2.5))
    target = generator.uniform(-2, 2), 0, 4
    yaw = generator.uniform(-np.pi, np.pi) if is_wide else np.arctan2(center[0] - target[0], target[2] - center[2])
    angles = yaw, generator.uniform(-0.25, 0.25), generator.choice([0, 0, np.pi / 2, -0.2])
    rotation = np.eye(3)
    for axis, angle in zip(((0, 1, 0), (1, 0, 0), (0, 0, 1)), angles, strict=True):
        rotation = pycolmap.Rotation3d(np.array(axis, float) * angle).matrix() @ rotation
    return np.column_stack([rotation, -rotation @ center])


def _project(camera: pycolmap.Camera, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels float64 (n, 2) of points in the frame of the camera, and which of them it sees, bool (n,)."""
    if camera.is_spherical():
        visible = np.ones(len(points), bool)
    elif camera.is_perspective_fisheye():
        visible = points[:, 2] / np.linalg.norm(points, axis=1) > np.cos(np.deg2rad(85))
    else:
        visible = points[:, 2] > 0.3
    pixels = np.full((len(points), 2), -1.0)
    pixels[visible] = np.nan_to_num(camera.img_from_cam(points[visible]), nan=-1)
    return pixels, visible & (pixels > 0).all(axis=1) & (pixels < (camera.width, camera.height)).all(axis=1)
