"""The student's targets: ALIKED's keypoints of each photo, gathered over many views of it, and their descriptors.

Homographic adaptation (DeTone et al., arXiv:1712.07629, section 5): the photo is seen through random homographies, and a keypoint
counts as often as it is found again. Here the detector is ALIKED (arXiv:2304.03608).
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sfm_lightglue.download import sha256_once
from sfm_lightglue.features.aliked import TEMPERATURE
from sfm_lightglue.features.tensors import local_maxima
from sfm_lightglue.files import written_whole
from sfm_lightglue.images import UnreadableImage, load_image, resize_longest
from sfm_lightglue.networks.aliked import ALIKED, load_aliked
from sfm_lightglue.networks.heatmaps import expected_offsets, refined, windows
from sfm_lightglue.networks.weights import load_weights
from sfm_lightglue.settings import fingerprint
from sfm_lightglue.training.homographies import HomographyRange, invert, random_homography, shown_pixels, warp, warp_photos
from sfm_lightglue.training.photos import in_processes

SPREAD = 1.5
"""Standard deviation, px, of the positions at which the views find one keypoint."""
REACH = 4
"""Radius, px, within which detections are counted together."""


@dataclass(frozen=True)
class TeacherOptions:
    """Options; configs/training holds the values."""

    variant: str
    """Variant of ALIKED."""
    weights: str
    """Weights of ALIKED: a name or a file."""
    photo_size: int
    """Longest side of the photos, px. The student sees them at this size too."""
    max_keypoints: int
    detection_threshold: float
    nms_radius: int
    views: int
    """Number of homographies through which each photo is seen, besides the photo itself."""
    homographies: HomographyRange


@dataclass(frozen=True)
class TeacherTargets:
    """The teacher's keypoints and descriptors of one photo."""

    keypoints: np.ndarray
    """float32 (n, 2), px of the photo at `photo_size`."""
    repeatability: np.ndarray
    """float32 (n,), in 0..1: the share of the views in which the keypoint was found; highest first."""
    descriptors: np.ndarray
    """float16 (n, d), unit length, sampled in the photo itself."""


def prepare_targets(
    images: Path, names: Sequence[str], folder: Path, options: TeacherOptions, *, seed: int, processes: int, device: str
) -> dict[str, Path]:
    """The file of targets of each readable photo, by name. Files that are already in `folder` are not made again.

    A file's name depends on everything that decides its content: options, teacher, seed, and name and content of the photo.

    Args:
        images: Folder of the photos.
        names: Names of the readable photos, relative to that folder.
        folder: Folder of the files.
        options: Options of the teacher.
        seed: Seed of the random views.
        processes: Number of processes.
        device: Device of the teacher in each process.
    """
    folder.mkdir(parents=True, exist_ok=True)
    settings = [asdict(options), load_weights(options.weights)[1].sha256, seed]
    paths = {name: folder / f"{fingerprint([*settings, name, sha256_once(images / name)])[:24]}.npz" for name in names}
    jobs = [(name, paths[name]) for name in names if not paths[name].is_file()]
    in_processes(partial(_prepare_one, images, options, seed, device), jobs, "targets", processes)
    return {name: path for name, path in paths.items() if path.is_file()}


def read_targets(path: Path) -> TeacherTargets:
    """The targets in a file of `prepare_targets`."""
    with np.load(path, allow_pickle=False) as stored:
        return TeacherTargets(stored["keypoints"], stored["repeatability"].astype(np.float32), stored["descriptors"])


def teacher_targets(
    network: ALIKED, pixels: np.ndarray, options: TeacherOptions, rng: np.random.Generator, device: str = "cpu"
) -> TeacherTargets:
    """The targets of one photo, RGB uint8 (h, w, 3), from a network on `device`."""
    photo = torch.from_numpy(pixels).to(device).permute(2, 0, 1)[None].float() / 255
    height, width = pixels.shape[:2]
    size, sizes = (width, height), torch.tensor([[width, height]], device=device).expand(options.views, -1)
    random = [random_homography(rng, size, size, options.homographies) for _ in range(options.views)]
    homographies = torch.from_numpy(np.array(random).reshape(-1, 3, 3)).to(device)
    views, visible = warp_photos(photo.expand(options.views, -1, -1, -1), sizes, homographies, size)
    output = network(torch.cat([photo, views * visible[:, None]]))
    radius = options.nms_radius
    maxima = [local_maxima(scores, radius, options.detection_threshold) for scores in output.scores]
    detected = [refined(scores, pixels, radius, TEMPERATURE) for scores, pixels in zip(output.scores, maxima, strict=True)]
    found = torch.zeros(height, width, device=device)
    _splat(found, detected[0])
    # Detections at the edge of the photo inside a view are dropped.
    margin = F.max_pool2d(1 - visible[:, None].float(), 2 * REACH + 1, 1, REACH)[:, 0]
    to_photo = invert(homographies)
    for i in range(options.views):
        column, row = detected[i + 1].round().long().unbind(1)
        kept = detected[i + 1][margin[i, row, column] == 0]
        _splat(found, warp(to_photo[i : i + 1], kept[None].double())[0].float())
    seen = 1 + shown_pixels(to_photo, sizes, size).sum(dim=0)
    counts = _gather(found) / seen
    pixels_found = local_maxima(counts, radius, 0.5 / (options.views + 1))
    keypoints = pixels_found + expected_offsets(windows(found, pixels_found, 2) + 1e-6)
    column, row = pixels_found.unbind(1)
    repeatability = counts[row, column].clamp(max=1)
    order = repeatability.argsort(descending=True, stable=True)[: options.max_keypoints]
    keypoints = keypoints[order]
    descriptors = network.describe(output, 0, keypoints)
    return TeacherTargets(keypoints.cpu().numpy(), repeatability[order].cpu().numpy(), descriptors.half().cpu().numpy())


@torch.no_grad()
def describe_views(network: ALIKED, views: Tensor, points: Tensor) -> Tensor:
    """The teacher's descriptors float32 (b, n, d) of points (b, n, 2) px in grey views (b, 1, h, w)."""
    output = network(views.expand(-1, 3, -1, -1))
    return torch.stack([network.describe(output, i, some) for i, some in enumerate(points)])


def load_teacher(options: TeacherOptions, device: str) -> ALIKED:
    """The teacher on the device, loaded once per process."""
    return _network(options.variant, options.weights, device)


@functools.cache
def _network(variant: str, weights: str, device: str) -> ALIKED:
    return load_aliked(variant, load_weights(weights)[0]).to(device)


@torch.inference_mode()
def _prepare_one(images: Path, options: TeacherOptions, seed: int, device: str, job: tuple[str, Path]) -> str | None:
    """Writes the targets of one photo. Returns a message if the photo cannot be read."""
    name, path = job
    network = load_teacher(options, device)
    try:
        pixels = resize_longest(load_image(images, name).pixels, options.photo_size)
    except UnreadableImage as error:
        return f"{name} is left out: {error}"
    targets = teacher_targets(network, pixels, options, np.random.default_rng([seed, zlib.crc32(name.encode())]), device)
    repeatability = targets.repeatability.astype(np.float16)
    with written_whole(path) as temporary, temporary.open("wb") as stream:
        np.savez(stream, keypoints=targets.keypoints, repeatability=repeatability, descriptors=targets.descriptors)
    return None


def _splat(found: Tensor, points: Tensor) -> None:
    """Adds 1 at each point (n, 2), shared among the four pixels around it."""
    height, width = found.shape
    first = points.floor()
    for step in ((0, 0), (1, 0), (0, 1), (1, 1)):
        pixel = first + points.new_tensor(step)
        weight = (1 - (points - pixel).abs()).prod(dim=1)
        x, y = pixel.long().unbind(1)
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        found.index_put_((y[inside], x[inside]), weight[inside], accumulate=True)


def _gather(found: Tensor) -> Tensor:
    """For each pixel, the detections around it, weighted by a Gaussian of height 1."""
    step = torch.arange(-REACH, REACH + 1.0, device=found.device)
    weights = (-0.5 * (step / SPREAD) ** 2).exp()
    x = F.conv2d(found[None, None], weights.view(1, 1, 1, -1), padding=(0, REACH))
    return F.conv2d(x, weights.view(1, 1, -1, 1), padding=(REACH, 0))[0, 0]
