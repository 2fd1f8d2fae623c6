"""Training examples across light: two clean views of a photo, or of two photos of an aligned series, with everything to learn.

An aligned series is a folder of photos that show the same view under different light, pixel by pixel. An example is made once,
because the teacher and the network whose keypoints are learnt see the clean views. Each step changes their light anew
(`hard_light.py`).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path, PurePosixPath

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from sfm_lightglue.download import sha256_once
from sfm_lightglue.files import written_whole
from sfm_lightglue.images import load_image, resize_longest, to_grey
from sfm_lightglue.networks.heatmaps import detect_keypoints
from sfm_lightglue.networks.precision import network_dtype
from sfm_lightglue.networks.superpoint import CELL, SuperPoint, load_superpoint
from sfm_lightglue.networks.weights import load_weights
from sfm_lightglue.settings import fingerprint
from sfm_lightglue.training.homographies import HomographyRange, random_homography, warp, warp_photos
from sfm_lightglue.training.photos import in_processes, read_index, row_of
from sfm_lightglue.training.teacher import TeacherOptions, load_teacher

DETECTION = {"threshold": 0.0005, "nms_radius": 4, "max_keypoints": 700, "border": CELL, "subpixel": True}
"""How keypoints are found."""


@dataclass(frozen=True)
class LightPairOptions:
    """Options; configs/training holds the values."""

    width: int
    """Width of a view, px, a multiple of 8."""
    height: int
    examples: int
    """Number of examples that are made."""
    pairs: int
    """Examples of a batch."""
    max_points: int
    """Maximum number of points of an example at which descriptors are compared."""
    series: str
    """Pattern of the folders of aligned series, such as `*/aligned/*`; no other folder is a series."""
    series_share: float
    """Share of the examples with two photos of a series. All pairs of photos of a series are as likely."""
    homographies: HomographyRange
    """Of both views of a photo. The two photos of a series are seen through the same one."""

    def __post_init__(self) -> None:
        if self.width % CELL or self.height % CELL:
            raise ValueError(f"training.views needs sides that are multiples of {CELL} px, found {self.width} x {self.height}")

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of a view, px."""
        return self.width, self.height


@dataclass(frozen=True)
class ExampleRecipe:
    """Everything that decides the content of an example, except the photos."""

    images: Path
    teacher: TeacherOptions
    keypoints: str
    """Weights whose keypoints are learnt."""
    views: LightPairOptions
    seed: int


def choose_photos(names: Sequence[str], options: LightPairOptions, seed: int) -> list[tuple[str, str]]:
    """The photos of each example: the same photo twice, or two photos of a series."""
    folders: dict[str, list[str]] = {}
    for name in sorted(names):
        folder = PurePosixPath(name).parent
        if PurePosixPath("/", folder).match(options.series):
            folders.setdefault(str(folder), []).append(name)
    series = [(a, b) for photos in folders.values() for a in photos for b in photos if a != b]
    singles = [(name, name) for name in sorted(names)]
    number = round(options.series_share * options.examples) if series else 0
    kinds = [(series, number, 4), (singles, options.examples - number, 5)]
    return [pairs[row_of(len(pairs), place, seed + salt)] for pairs, count, salt in kinds for place in range(count)]


def prepare_examples(chosen: Sequence[tuple[str, str]], recipe: ExampleRecipe, folder: Path, processes: int) -> list[Path]:
    """The files of the examples. Files that are already in `folder` are not made again."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = [
        *(str(recipe.teacher), load_weights(recipe.teacher.weights)[1].sha256, load_weights(recipe.keypoints)[1].sha256),
        *(recipe.views.width, recipe.views.height, recipe.views.max_points, str(recipe.views.homographies), recipe.seed),
    ]
    jobs = []
    for number, names in enumerate(chosen):
        hashes = [sha256_once(recipe.images / name) for name in names]
        jobs.append((number, names, folder / f"{fingerprint([*settings, number, *names, *hashes])[:24]}.npz"))
    in_processes(partial(_prepare_one, recipe), [job for job in jobs if not job[2].is_file()], "examples", processes)
    return [path for *_, path in jobs]


@torch.inference_mode()
def _prepare_one(recipe: ExampleRecipe, job: tuple[int, tuple[str, str], Path]) -> str | None:
    """Writes one example."""
    number, names, path = job
    rng = np.random.default_rng([recipe.seed, 6, number])
    options, is_series = recipe.views, names[0] != names[1]
    photos = [resize_longest(load_image(recipe.images, name).pixels, recipe.teacher.photo_size) for name in names]
    size = photos[0].shape[1], photos[0].shape[0]
    first = random_homography(rng, size, options.size, options.homographies)
    second = first if is_series else random_homography(rng, size, options.size, options.homographies)
    homographies = torch.from_numpy(np.array([first, second]))
    stacked = torch.from_numpy(np.stack(photos)).permute(0, 3, 1, 2).float() / 255
    views, visible = warp_photos(stacked, torch.tensor([size] * 2), homographies, options.size)
    grey = torch.from_numpy(np.stack([to_grey((view * 255).round().byte().permute(1, 2, 0).numpy()) for view in views]))[:, None]
    logits = _keypoint_network(recipe.keypoints).keypoint_logits(grey)
    scores = F.pixel_shuffle(logits.softmax(dim=1)[:, :-1], CELL)[:, 0] * visible
    points = common_points(scores, homographies, visible, options.max_points, rng)
    teacher = load_teacher(recipe.teacher, "cpu")
    output = teacher(views)
    descriptors = [teacher.describe(output, i, points[i]) for i in (0, 1)]
    cells = visible.unflatten(1, (-1, CELL)).unflatten(3, (-1, CELL)).all(dim=4).all(dim=2)
    with written_whole(path) as temporary, temporary.open("wb") as stream:
        np.savez(
            stream,
            views=(grey * 255).round().byte().numpy(),
            cells=cells.numpy(),
            logits=logits.half().numpy(),
            points=points.numpy(),
            teacher=torch.stack(descriptors).half().numpy(),
            is_series=np.array(is_series),
        )
    return None


def common_points(scores: Tensor, homographies: Tensor, visible: Tensor, max_points: int, rng: np.random.Generator) -> Tensor:
    """float32 (2, n, 2): the keypoints of two heat maps (2, h, w) that both views show, half of them from each view.

    Row i of both views is the same point of the photo, which the homographies (2, 3, 3) map to the views.
    """
    found: list[Tensor] = []
    height, width = visible.shape[1:]
    for i in (0, 1):
        keypoints, _ = detect_keypoints(scores[i], **DETECTION)  # type: ignore[arg-type]
        between = homographies[1 - i] @ torch.linalg.inv(homographies[i])
        others = warp(between[None], keypoints[None].double())[0].float()
        x, y = others.round().long().unbind(1)
        inside = (x >= CELL) & (x < width - CELL) & (y >= CELL) & (y < height - CELL)
        inside &= visible[1 - i, y.clamp(0, height - 1), x.clamp(0, width - 1)]
        kept = torch.from_numpy(rng.permutation(torch.nonzero(inside)[:, 0].numpy())[: max_points // 2])
        pair = keypoints[kept], others[kept]
        found.append(torch.stack(pair if i == 0 else pair[::-1]))
    return torch.cat(found, dim=1)


@functools.cache
def _keypoint_network(weights: str) -> SuperPoint:
    """The network with the published keypoint head, loaded once per process, in 16 bits if that is faster."""
    network = load_superpoint({key: value.float() for key, value in load_weights(weights)[0].items()})
    network.lower(network_dtype("low", "cpu"))
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


class LightPairs(Dataset[dict[str, Tensor]]):
    """Item `step` holds the examples of that step's batch, b = 2 * pairs views: the first views of all, then their partners.

    views     uint8 (b, 1, h, w)
    cells     bool (b, hc, wc): True for cells that show the photo
    logits    float16 (b, 65, hc, wc): of the network whose keypoints are learnt
    points    float32 (b, n, 2) px of the view; row i of a view and of its partner show one point
    teacher   float16 (b, n, d): the teacher's descriptors of the points in the view
    is_point  bool (pairs, n): False for rows that only fill the array
    is_series bool (pairs,): True for two photos of a series
    """

    def __init__(self, index: Path, options: LightPairOptions, seed: int) -> None:
        self.index, self.options, self.seed = index, options, seed

    @cached_property
    def files(self) -> list[list[Path]]:
        """Each row holds the file of an example."""
        return read_index(self.index)

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        places = range(step * self.options.pairs, (step + 1) * self.options.pairs)
        examples = []
        for place in places:
            with np.load(self.files[row_of(len(self.files), place, self.seed)][0], allow_pickle=False) as stored:
                examples.append({key: stored[key] for key in stored.files})
        batch = {key: _stack([example[key] for example in examples]) for key in ("views", "cells", "logits")}
        batch |= {
            key: _stack([_filled(example[key], self.options.max_points) for example in examples]) for key in ("points", "teacher")
        }
        counts = torch.tensor([example["points"].shape[1] for example in examples])
        batch["is_point"] = torch.arange(self.options.max_points) < counts[:, None]
        batch["is_series"] = torch.tensor([bool(example["is_series"]) for example in examples])
        return batch


def _stack(arrays: Sequence[np.ndarray]) -> Tensor:
    """(2 n, ...) from n arrays (2, ...): the first views of all, then their partners."""
    return torch.from_numpy(np.stack(arrays, axis=1)).flatten(0, 1)


def _filled(array: np.ndarray, number: int) -> np.ndarray:
    """The array (2, n, ...) with zeros up to (2, number, ...)."""
    return np.pad(array, [(0, 0), (0, number - array.shape[1])] + [(0, 0)] * (array.ndim - 2))
