"""A synthetic scene with exactly known cameras, points and matches."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image as PILImage

from sfm_lightglue.database import build_database
from sfm_lightglue.geometries.verification import VerificationOptions
from sfm_lightglue.products import Features, Matches, Pair
from sfm_lightglue.reconstruction import ReconstructionOptions
from sfm_lightglue.storage import ShardStore, features_to_group, match_key, matches_to_group

SIZE = (640, 480)
FOCAL = 700.0
"""Focal length, px, of a pinhole camera with the principal point in the middle."""
COLOR = (200, 100, 50)
"""RGB of all pixels in the photos."""
MAPPER_OPTIONS = ReconstructionOptions(
    name="incremental",
    refine_intrinsics=False,
    refine_principal_point="false",
    find_camera_model=False,
    adjustment_scale_px=None,
    adjustment_max_error_px=1.25,
    join=True,
    min_model_size=2,
    min_num_matches=15,
    max_error_px=4.0,
    position_priors="none",
    position_std=None,
    align="gps",
    extract_colors=False,
    num_threads=1,
    seed=0,
    max_cluster_size=150,
    cluster_overlap=20,
)
"""Options that give the same model of the scene in every run."""


class KnownScene:
    """Points in a box and cameras on an arc around it. The order of the keypoints differs between the images."""

    def __init__(self, num_images: int = 8, num_points: int = 150) -> None:
        generator = np.random.default_rng(0)
        self.points = generator.uniform((-1.5, -1, -1.5), (1.5, 1, 1.5), (num_points, 3))
        """float64 (num_points, 3) in world."""
        self.names = [f"{index:02d}.jpg" for index in range(num_images)]
        self.poses = [_look_at_center(0.12 * (index - num_images / 2), -0.5 + 0.1 * index) for index in range(num_images)]
        """float64 (3, 4) cam_from_world of each image."""
        self._orders = [generator.permutation(num_points) for _ in self.names]

    def features(self, index: int) -> Features:
        """Features of one image: one keypoint for each point, as all points are visible."""
        pose, count = self.poses[index], len(self.points)
        points_in_cam = self.points[self._orders[index]] @ pose[:, :3].T + pose[:, 3]
        keypoints = FOCAL * points_in_cam[:, :2] / points_in_cam[:, 2:] + np.array(SIZE) / 2 - 0.5
        ones = np.ones((count, 4), np.float32)
        return Features(keypoints.astype(np.float32), ones[:, 0], ones, SIZE, name=self.names[index])

    def matches(self, index0: int, index1: int) -> Matches:
        """All true matches of two images."""
        keypoint1_of_point = np.argsort(self._orders[index1])
        count = len(self.points)
        indices = np.column_stack([np.arange(count), keypoint1_of_point[self._orders[index0]]])
        return Matches(indices.astype(np.int32), np.ones(count, np.float32))


def _look_at_center(angle: float, height: float) -> np.ndarray:
    """float64 (3, 4): cam_from_world of a camera 6 units from the centre, at `angle` (radians) around the vertical axis."""
    center = np.array([6 * np.sin(angle), height, -6 * np.cos(angle)])
    forward = -center / np.linalg.norm(center)
    right = np.cross([0, 1, 0], forward)
    right /= np.linalg.norm(right)
    rotation = np.stack([right, np.cross(forward, right), forward])
    return np.column_stack([rotation, -rotation @ center])


def make_database(
    folder: Path,
    scene: KnownScene,
    images: Iterable[int],
    pairs: Iterable[tuple[int, int]],
    *,
    focal: float = FOCAL,
    noise_px: float = 0.0,
) -> Path:
    """Writes photos, features, matches, geometries and `folder/database.db` of some images and pairs of the scene.

    The camera is a pinhole camera with this focal length. Returns the path of the database.
    """
    images, pairs, generator = list(images), list(pairs), np.random.default_rng(0)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    with ShardStore(folder / "features.h5", {}) as store:
        for index in images:
            features = scene.features(index)
            noise = noise_px * generator.standard_normal(features.keypoints.shape).astype(np.float32)
            noisy = dataclasses.replace(features, keypoints=features.keypoints + noise)
            store.add(scene.names[index], features_to_group(noisy), "")
            PILImage.new("RGB", SIZE, COLOR).save(folder / "images" / scene.names[index], quality=95)
        store.merge()
    with ShardStore(folder / "matches.h5", {}) as store:
        for first, second in pairs:
            item = matches_to_group(scene.matches(first, second), len(scene.features(first)))
            store.add(match_key(scene.names[first], scene.names[second]), item, "")
        store.merge()
    build_database(
        folder / "images",
        folder / "features.h5",
        folder / "matches.h5",
        [Pair(scene.names[first], scene.names[second]) for first, second in pairs],
        folder / "database.db",
        VerificationOptions(
            max_error_px=2.0,
            min_num_inliers=15,
            min_mean_score=0.0,
            confidence=0.9999,
            max_num_trials=200,
            seed=0,
            stationary_max_error_px=None,
            min_confirmed=1.0,
        ),
        intrinsics=f"SIMPLE_PINHOLE:{focal}:{SIZE[0] / 2}:{SIZE[1] / 2}",
        camera_model="SIMPLE_RADIAL",
    )
    return folder / "database.db"
