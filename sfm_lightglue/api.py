"""The Python API: extractors and matchers by name, two photos matched in one call, the whole pipeline in one call.

Defaults are those of configs/*.yaml, as on the command line.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
from PIL import Image as PILImage

from sfm_lightglue import database as database_stage
from sfm_lightglue import images as photos
from sfm_lightglue import reconstruction
from sfm_lightglue.cameras import Camera
from sfm_lightglue.config import bind, bind_pairs, compose_config
from sfm_lightglue.database import DatabaseReport
from sfm_lightglue.execution.devices import default_device
from sfm_lightglue.features import EXTRACTORS
from sfm_lightglue.features.extractor import Extractor
from sfm_lightglue.geometries.verification import VerificationOptions
from sfm_lightglue.matches import MATCHERS
from sfm_lightglue.matches.matcher import Matcher
from sfm_lightglue.pairs import planner
from sfm_lightglue.pipeline import DatabaseOptions, Run, create_plugin, locked, run_all, select_open_lightglue
from sfm_lightglue.products import Features, Image, Matches, Pair
from sfm_lightglue.reconstruction import ReconstructionOptions, ReconstructionReport

Photo = str | Path | np.ndarray | PILImage.Image
"""A file, a uint8 array (h, w, 3) RGB or (h, w) grey, or a PIL image."""


def create_extractor(name: str = "superpoint", *, device: str = "auto", **options: Any) -> Extractor:
    """The extractor `name` with its weights; `options` as in configs/features/<name>.yaml."""
    config = compose_config([f"features={name}", *_overrides("features", options)])
    return create_plugin(config.features, EXTRACTORS, "features", default_device(device))


def create_matcher(name: str = "lightglue", *, device: str = "auto", **options: Any) -> Matcher:
    """The matcher `name` with its weights; `options` as in configs/matches/<name>.yaml, such as `trained_for="disk"`.

    LightGlue is by default the network for the default features, the open SuperPoint; `trained_for="superpoint"` is the network
    for the original SuperPoint.
    """
    config = compose_config([f"matches={name}", *_overrides("matches", options)])
    if "trained_for" not in options:
        select_open_lightglue(config)
    return create_plugin(config.matches, MATCHERS, "matches", default_device(device))


def load_image(image: Photo, name: str = "image") -> Image:
    """The photo as a record. Raises: UnreadableImage for a file that cannot be decoded."""
    if isinstance(image, (str, Path)):
        path = Path(image)
        try:
            return photos.load_image(path.parent, path.name)
        except photos.UnreadableImage as error:
            raise photos.UnreadableImage(f"{path}: {error}") from error
    pixels = photos.to_rgb(image) if isinstance(image, PILImage.Image) else np.asarray(image)
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=2)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f"expected uint8 pixels (h, w, 3) or (h, w), found {pixels.dtype} {pixels.shape}")
    return Image(name, pixels)


@dataclass(frozen=True)
class ImageMatches:
    """Two matched images, n0 and n1 keypoints, k matches. Keypoints are (x, y) px of their own image, first pixel at (0, 0)."""

    matched_keypoints0: np.ndarray
    """float32 (k, 2)."""
    matched_keypoints1: np.ndarray
    """float32 (k, 2), row by row the partners of `matched_keypoints0`."""
    scores: np.ndarray
    """float32 (k,), matching scores in 0..1."""
    keypoints0: np.ndarray
    """float32 (n0, 2)."""
    keypoints1: np.ndarray
    """float32 (n1, 2)."""
    matches0: np.ndarray
    """int64 (n0,): index into `keypoints1`, -1 for none."""
    matches1: np.ndarray
    """int64 (n1,): index into `keypoints0`, -1 for none."""
    matching_scores0: np.ndarray
    """float32 (n0,), 0 for none."""
    matching_scores1: np.ndarray
    """float32 (n1,), 0 for none."""


@overload
def match_images(
    image0: Photo,
    image1: Photo,
    *,
    threshold: float | None = ...,
    extractor: Extractor | None = ...,
    matcher: Matcher | None = ...,
    device: str = ...,
) -> ImageMatches: ...
@overload
def match_images(
    image0: list[Photo],
    image1: list[Photo],
    *,
    threshold: float | None = ...,
    extractor: Extractor | None = ...,
    matcher: Matcher | None = ...,
    device: str = ...,
) -> list[ImageMatches]: ...
def match_images(
    image0: Any,
    image1: Any,
    *,
    threshold: float | None = None,
    extractor: Extractor | None = None,
    matcher: Matcher | None = None,
    device: str = "auto",
) -> Any:
    """Matches of two photos, or of each pair of two equally long sequences of photos of any sizes.

    `threshold` drops matches with a lower score; None keeps the matcher's own. Give `extractor` and `matcher`
    (`create_extractor`, `create_matcher`) for others than the defaults. Each pair's result is the same alone and in a batch.
    """
    extractor = extractor or _default_plugin(create_extractor, device)
    matcher = matcher or _default_plugin(create_matcher, device)
    if isinstance(image0, (list, tuple)):
        if len(image0) != len(image1):
            raise ValueError(f"{len(image0)} first and {len(image1)} second images: each first needs its second")
        return [_match_one(first, second, threshold, extractor, matcher) for first, second in zip(image0, image1, strict=True)]
    return _match_one(image0, image1, threshold, extractor, matcher)


def select_pairs(
    names: Sequence[str],
    pairs: str | Sequence[str] = "exhaustive",
    *,
    features: Path | str | None = None,
    images: Path | str | None = None,
    poses: Path | str | None = None,
    **options: Any,
) -> list[Pair]:
    """The pairs of images that are worth matching: each once, sorted by name, with the reason for each pair.

    Args:
        names: The images, as paths below the image folder.
        pairs: Name of a pair source in configs/pairs or in your own folder of configurations, or a list of names. A list gives
            the union of their pairs.
        features: HDF5 file of local features, which `retrieval` and loop closure need.
        images: Folder of the photos, for sources that use their GPS positions.
        poses: File of camera poses, for sources that use them.
        options: Options of the source as in its YAML file, such as `num_neighbours=10`. If `pairs` is a list, options of each
            source as a dict: `select_pairs(names, ["sequential", "retrieval"], sequential={"overlap": 5})`.

    Raises:
        ValueError: An unknown source or option; the message names the closest one. Or the source needs a file that is not given.
    """
    chosen = pairs if isinstance(pairs, str) else f"[{','.join(pairs)}]"
    source = create_source(bind_pairs(compose_config([f"pairs={chosen}", *_overrides("pairs", options)]).pairs))
    with Collection(names, features=features, images=images, poses=poses) as collection:
        return find_pairs(source, collection)


def build_database(
    images: Path | str,
    features: Path | str,
    matches: Path | str,
    pairs: Iterable[Pair],
    output: Path | str,
    *,
    known_cameras: Mapping[str, Camera] | None = None,
    **options: Any,
) -> BuildReport:
    """The COLMAP database `output` with verified pairs; the two-view geometries are in `verification.h5` beside it.

    `options` as in configs/geometries and configs/database, such as `min_num_inliers=30` or `intrinsics="single"`.
    `known_cameras` by image name are used with `intrinsics="poses"`.
    """
    ours = {field.name for field in dataclasses.fields(DatabaseOptions)}
    of_group = {key: "database" if key in ours else "geometries" for key in options}
    config = compose_config([f"{of_group[key]}.{key}={_quote(value)}" for key, value in options.items()])
    cameras = bind(DatabaseOptions, config.database, "database")
    return database_stage.build_database(
        images,
        features,
        matches,
        pairs,
        output,
        bind(VerificationOptions, config.geometries, "geometries"),
        intrinsics=cameras.intrinsics,
        camera_model=cameras.camera_model,
        known_cameras=known_cameras,
    )


def reconstruct(
    database: Path | str,
    images: Path | str,
    output: Path | str,
    mapper: str = "incremental",
    *,
    features: Path | str | None = None,
    known_poses: Mapping[str, np.ndarray] | None = None,
    **options: Any,
) -> ReconstructionReport:
    """COLMAP models in `output/0` ... `output/n`; `mapper` and `options` as in configs/reconstruction.

    Intrinsics are refined unless `refine_intrinsics=False`. `features`, the file that the database was built from, says how
    thresholds in pixels are scaled: by default `features.h5` beside it. `known_poses` for the mapper `triangulation`: float64
    (3, 4) cam_from_world by image name.
    """
    config = compose_config([f"reconstruction={mapper}", *_overrides("reconstruction", options)])
    bound = bind(ReconstructionOptions, config.reconstruction, "reconstruction")
    return reconstruction.reconstruct(database, images, output, bound, features=features, known_poses=known_poses)


def run(images: Path | str, output: Path | str, *overrides: str) -> dict[str, Any]:
    """All stages over the folder `images`; returns what `output/summary.json` holds.

    `overrides` are written as on the command line: `run("photos", "out", "features=disk", "matches.filter_threshold=0.2")`.
    """
    quoted = [f"dataset.images={_quote(images)}", f"output={_quote(output)}"]
    configured = Run(compose_config(["dataset=folder", *quoted, *overrides]))
    with locked(configured.output):
        return run_all(configured)


@functools.cache
def _default_plugin(create: Callable[..., Any], device: str) -> Any:
    return create(device=device)


def _match_one(image0: Photo, image1: Photo, threshold: float | None, extractor: Extractor, matcher: Matcher) -> ImageMatches:
    features0, features1 = extractor(load_image(image0, "image0")), extractor(load_image(image1, "image1"))
    return join_matches(features0, features1, matcher(features0, features1), threshold)


def join_matches(features0: Features, features1: Features, matches: Matches, threshold: float | None = None) -> ImageMatches:
    """Matches with their keypoints; those with a score below `threshold` are dropped."""
    keep = matches.scores >= (0 if threshold is None else threshold)
    indices, scores = matches.indices[keep], matches.scores[keep]
    return ImageMatches(
        features0.keypoints[indices[:, 0]],
        features1.keypoints[indices[:, 1]],
        scores,
        features0.keypoints,
        features1.keypoints,
        _scatter(len(features0), indices[:, 0], indices[:, 1], -1, np.int64),
        _scatter(len(features1), indices[:, 1], indices[:, 0], -1, np.int64),
        _scatter(len(features0), indices[:, 0], scores, 0, np.float32),
        _scatter(len(features1), indices[:, 1], scores, 0, np.float32),
    )


def _scatter(size: int, index: np.ndarray, values: np.ndarray, empty: float, dtype: type) -> np.ndarray:
    array: np.ndarray = np.full(size, empty, dtype)
    array[index] = values
    return array


def _overrides(group: str, options: dict[str, Any]) -> list[str]:
    overrides = []
    for key, value in options.items():
        nested = isinstance(value, Mapping)
        overrides += _overrides(f"{group}.{key}", dict(value)) if nested else [f"{group}.{key}={_quote(value)}"]
    return overrides


def _quote(value: Any) -> str:
    """The value in Hydra's grammar: within quotes, backslashes are doubled only where a quote follows."""
    if value is None:
        return "null"
    if isinstance(value, (bool, int, float)):
        return str(value).lower()
    text = re.sub(r"(\\*)'", r"\1\1\\'", str(value))
    return "'" + re.sub(r"(\\+)$", r"\1\1", text) + "'"
