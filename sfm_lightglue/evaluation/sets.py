"""Sets of image pairs with ground truth, as people have them on disk: our own layout, and those of public benchmarks.

Homographies and camera matrices are read as they are and taken for COLMAP's pixels, as glue-factory does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image as PILImage

from sfm_lightglue.evaluation.pairs import posed_pairs, read_homographies
from sfm_lightglue.images.resizing import resized_to
from sfm_lightglue.poses import Pose, PosedCamera, read_poses


@dataclass(frozen=True)
class Resize:
    """The size at which a protocol shows photos: their longest or shortest side becomes `px`."""

    side: str
    """`long` or `short`."""
    px: int

    def size_of(self, size: tuple[int, int]) -> tuple[int, int]:
        """(width, height) px of the resized photo of `size`."""
        scale = self.px / (max(size) if self.side == "long" else min(size))
        return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))

    def __str__(self) -> str:
        return f"{self.side}:{self.px}"


@dataclass(frozen=True)
class TruePair:
    """Two images and the true relation between them: a homography, or cameras in one world."""

    name0: str
    name1: str
    homography: np.ndarray | None = None
    """float64 (3, 3), x1 ~ H x0 in COLMAP's pixels."""
    cameras: tuple[PosedCamera, PosedCamera] | None = None


@dataclass(frozen=True)
class BenchmarkSet:
    """Pairs of images with ground truth of one kind."""

    name: str
    layout: str
    """Whose layout the files have, for the table."""
    images: Path
    """Folder of the images; names are relative to it."""
    pairs: tuple[TruePair, ...]
    resize: Resize | None = None
    """The size of the published protocol; None is the size of the files."""

    @property
    def is_planar(self) -> bool:
        """Whether the ground truth are homographies."""
        return bool(self.pairs) and self.pairs[0].homography is not None

    @property
    def names(self) -> list[str]:
        """Sorted names of all images."""
        return sorted({name for pair in self.pairs for name in (pair.name0, pair.name1)})


Loader = Callable[[Path], tuple[Path, list[TruePair]]]
"""Folder of a set -> folder of its images, and its pairs."""


def posed_camera(path: Path, camera_matrix: np.ndarray, pose: Pose) -> PosedCamera:
    """The camera of an image file, whose header gives the size. Raises: FileNotFoundError if the image is missing."""
    try:
        with PILImage.open(path) as image:
            size = image.size
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path} does not exist, but the ground truth names it: is the set complete?") from error
    return PosedCamera(pose.rotation, pose.translation, np.asarray(camera_matrix, np.float64), size)


def pose_of(matrix: np.ndarray) -> Pose:
    """The pose of a matrix cam_from_world (3, 4) or (4, 4)."""
    matrix = np.asarray(matrix, np.float64)
    return Pose(matrix[:3, :3], matrix[:3, 3])


IDENTITY = Pose(np.eye(3), np.zeros(3))


def own_homographies(folder: Path) -> tuple[Path, list[TruePair]]:
    """`images/` and `homographies.txt`."""
    found = read_homographies(folder / "homographies.txt")
    return folder / "images", [TruePair(*names, homography=homography) for names, homography in found.items()]


def own_poses(folder: Path) -> tuple[Path, list[TruePair]]:
    """`images/`, `pairs.txt` and `poses.txt`."""
    cameras = read_poses(folder / "poses.txt")
    pairs = posed_pairs(folder / "pairs.txt", cameras)
    return folder / "images", [TruePair(*names, cameras=(cameras[names[0]], cameras[names[1]])) for names in pairs]


def resized_set(opened: BenchmarkSet, resize: Resize | None, folder: Path) -> BenchmarkSet:
    """The set with all images at the size of a protocol: PNG copies in `folder`, and ground truth in px of the copies.

    The scale of each axis comes from the rounded sizes, so pixels and ground truth agree exactly. Copies that exist are kept.
    """
    if resize is None:
        return replace(opened, resize=None)
    scales = {name: _copy(opened.images / name, folder / f"{name}.png", resize) for name in opened.names}
    pairs = [_scaled(pair, scales[pair.name0], scales[pair.name1]) for pair in opened.pairs]
    return replace(opened, images=folder, resize=resize, pairs=tuple(pairs))


def _copy(source: Path, target: Path, resize: Resize) -> np.ndarray:
    """Writes the resized photo; returns the scales (2,) of x and y."""
    with PILImage.open(source) as photo:
        size = resize.size_of(photo.size)
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            part = target.with_name(f"{target.name}.part")
            PILImage.fromarray(resized_to(np.asarray(photo.convert("RGB")), size)).save(part, format="PNG")
            part.replace(target)
        return np.array(size) / np.array(photo.size)


def _scaled(pair: TruePair, scale0: np.ndarray, scale1: np.ndarray) -> TruePair:
    """The pair with ground truth in px of the copies; in COLMAP's pixels a change of size is a pure scaling."""
    names = f"{pair.name0}.png", f"{pair.name1}.png"
    matrix0, matrix1 = (np.diag([*scale, 1.0]) for scale in (scale0, scale1))
    if pair.homography is not None:
        return TruePair(*names, homography=matrix1 @ pair.homography @ np.linalg.inv(matrix0))
    assert pair.cameras is not None
    cameras = [
        replace(camera, camera_matrix=matrix @ camera.camera_matrix, size=_rounded(camera.size, scale))
        for camera, matrix, scale in zip(pair.cameras, (matrix0, matrix1), (scale0, scale1), strict=True)
    ]
    return TruePair(*names, cameras=(cameras[0], cameras[1]))


def _rounded(size: tuple[int, int], scale: np.ndarray) -> tuple[int, int]:
    return round(size[0] * scale[0]), round(size[1] * scale[1])


def first_of(folders: Iterable[Path]) -> Path | None:
    """The first folder or file that exists."""
    return next((path for path in folders if path.exists()), None)
