"""Each photo with the photos whose cameras see the same part of space, if the poses of the cameras are known."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sfm_lightglue.pairs.collection import Collection
from sfm_lightglue.pairs.near_points import near_points
from sfm_lightglue.pairs.union import best_of
from sfm_lightglue.poses import PosedCamera
from sfm_lightglue.products import Pair
from sfm_lightglue.ranges import check_ranges

logger = logging.getLogger(__name__)

GRID = (1 / 8, 3 / 8, 5 / 8, 7 / 8)
"""Places in the photo, as shares of its width and height, whose rays are followed."""
DEPTHS = (0.7, 1.0, 1.4)
"""Depths at which overlap is measured, as factors of the depth that the user gives."""
BASELINES = (2.0, 4.0, 8.0, 16.0, 32.0)
"""The same as factors of the typical distance of neighbouring cameras, if the depth is not known."""
CANDIDATES = 5
"""Nearest cameras that are compared, as a factor of `num_neighbours`."""


@dataclass(frozen=True, kw_only=True)
class PosesOptions:
    """Options of `configs/pairs/poses.yaml`."""

    name: str
    num_neighbours: int
    """Number of photos with the largest overlap that each photo is paired with."""
    min_overlap: float
    """Smallest overlap of a pair, 0 to 1, see `overlaps`."""
    depth: float | None
    """Typical distance of the scene from the cameras, in the unit of the poses; None tries several depths."""
    max_angle_deg: float
    """A place counts as seen by both cameras only if they look at it from directions at most this far apart, degrees."""

    def __post_init__(self) -> None:
        check_ranges(self, "pairs", num_neighbours=">= 1", min_overlap="> 0, <= 1", depth="> 0", max_angle_deg="> 0, <= 180")


class PosesPairs:
    """Each photo with those whose view frustums overlap most."""

    def __init__(self, options: PosesOptions) -> None:
        self.options = options

    @classmethod
    def create(cls, options: PosesOptions) -> PosesPairs:
        """The source with these options."""
        return cls(options)

    def check(self, collection: Collection) -> None:
        """Raises: ValueError or FileNotFoundError if there are no poses of the photos."""
        _ = collection.poses

    def __call__(self, collection: Collection) -> list[Pair]:
        """See `overlapping_pairs`. The reasons are `poses#RANK`, the scores are overlaps."""
        options, poses = self.options, collection.poses
        if missing := len(collection.names) - len(poses):
            logger.warning(
                "%d of %d photos have no pose: they get no pairs; pairs=[poses,retrieval] also pairs them by retrieval",
                *(missing, len(collection.names)),
            )
        return overlapping_pairs(
            poses, options.num_neighbours, options.min_overlap, depth=options.depth, max_angle_deg=options.max_angle_deg
        )


def overlapping_pairs(
    poses: Mapping[str, PosedCamera], num_neighbours: int, min_overlap: float, *, depth: float | None, max_angle_deg: float
) -> list[Pair]:
    """Pairs of each photo with those of the largest overlap, sorted by name, with reasons `poses#RANK` and overlaps as scores.

    Only the `CANDIDATES * num_neighbours` nearest cameras of each camera are compared. At equal overlaps the nearer camera comes
    first. If two photos find each other, the pair is kept once, with the better rank.

    Args:
        poses: Camera by name, in any order.
        num_neighbours: Number of photos that each photo is paired with, at least 1.
        min_overlap: Smallest overlap, 0 to 1.
        depth: Typical depth of the scene, in the unit of the poses; None tries multiples of the distance of neighbouring cameras.
        max_angle_deg: See `overlaps`.
    """
    names = sorted(poses)
    cameras = _Cameras.of([poses[name] for name in names])
    near = {index: (others, gaps) for index, others, gaps in near_points(cameras.centers, CANDIDATES * num_neighbours)}
    if depth is not None:
        depths = np.array(DEPTHS) * depth
    else:
        nearest = [gaps[0] for _, gaps in near.values() if len(gaps) and gaps[0] > 0]
        depths = np.array(BASELINES) * (np.median(nearest) if nearest else 1.0)
    found = []
    for index in range(len(names)):
        others = near[index][0]
        shares = overlaps(cameras, index, others, depths, max_angle_deg)
        order = np.argsort(-shares, kind="stable")[:num_neighbours]
        chosen = [i for i in order if shares[i] >= min_overlap]
        found += [
            Pair(names[index], names[others[i]], f"poses#{rank}", round(float(shares[i]), 4)) for rank, i in enumerate(chosen, 1)
        ]
    return best_of(found)


@dataclass(frozen=True)
class _Cameras:
    """n cameras as arrays."""

    rotations: np.ndarray  # n 3 3, cam_from_world
    translations: np.ndarray  # n 3
    centers: np.ndarray  # n 3, in the world
    matrices: np.ndarray  # n 3 3
    sizes: np.ndarray  # n 2, px

    @classmethod
    def of(cls, cameras: list[PosedCamera]) -> _Cameras:
        return cls(
            np.array([camera.rotation for camera in cameras]).reshape(-1, 3, 3),
            np.array([camera.translation for camera in cameras]).reshape(-1, 3),
            np.array([camera.center for camera in cameras]).reshape(-1, 3),
            np.array([camera.camera_matrix for camera in cameras]).reshape(-1, 3, 3),
            np.array([camera.size for camera in cameras], np.float64).reshape(-1, 2),
        )


def overlaps(cameras: _Cameras, index: int, others: np.ndarray, depths: np.ndarray, max_angle_deg: float) -> np.ndarray:
    """float64 (m,): overlap of the view frustums of the camera `index` with those of `others` (m,), 0 to 1.

    Rays of a grid of pixels are followed from one camera to each of `depths`. The overlap is the share of these places that the
    other camera has in its picture and looks at from a direction at most `max_angle_deg` apart; the smaller one of both ways.
    """
    own = np.full(len(others), index)
    ways = [_seen(cameras, source, target, depths, max_angle_deg) for source, target in ((own, others), (others, own))]
    smaller: np.ndarray = np.minimum(*ways)
    return smaller


def _seen(cameras: _Cameras, sources: np.ndarray, targets: np.ndarray, depths: np.ndarray, max_angle_deg: float) -> np.ndarray:
    """float64 (m,): share of the places in front of each source that its target sees."""
    x, y = (grid.ravel() for grid in np.meshgrid(GRID, GRID))
    pixels = np.stack([x, y], axis=1) * cameras.sizes[sources][:, None]  # m g 2
    matrices = cameras.matrices[sources][:, None]
    offsets = (pixels - matrices[..., :2, 2]) / np.stack([matrices[..., 0, 0], matrices[..., 1, 1]], axis=-1)
    rays = np.concatenate([offsets, np.ones_like(offsets[..., :1])], axis=2)  # m g 3
    in_source = (rays[:, :, None] * depths[:, None]).reshape(len(sources), -1, 3)  # m k 3, with k = g x depths
    in_world = (in_source - cameras.translations[sources][:, None]) @ cameras.rotations[sources]
    in_target = in_world @ cameras.rotations[targets].transpose(0, 2, 1) + cameras.translations[targets][:, None]
    depth = in_target[..., 2]
    projected = in_target @ cameras.matrices[targets].transpose(0, 2, 1)
    inside = (projected[..., :2] >= 0) & (projected[..., :2] <= depth[..., None] * cameras.sizes[targets][:, None])
    ray0, ray1 = in_world - cameras.centers[sources][:, None], in_world - cameras.centers[targets][:, None]
    cosine = (ray0 * ray1).sum(axis=2) / np.maximum(np.linalg.norm(ray0, axis=2) * np.linalg.norm(ray1, axis=2), 1e-300)
    seen = (depth > 0) & inside.all(axis=2) & (cosine >= np.cos(np.radians(max_angle_deg)))
    share: np.ndarray = seen.mean(axis=1)
    return share
