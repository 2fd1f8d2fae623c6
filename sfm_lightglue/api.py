"""The Python API: extractors and matchers by name, stages, and whole runs. Defaults come from configs/*.yaml, as in commands."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from PIL import Image as PILImage

from sfm_lightglue import database as database_stage
from sfm_lightglue import images as photos
from sfm_lightglue import pipeline, reconstruction
from sfm_lightglue.cameras import Camera
from sfm_lightglue.config import bind, compose_config
from sfm_lightglue.database import BuildReport, DatabaseOptions
from sfm_lightglue.execution.devices import default_device
from sfm_lightglue.features.extractor import Extractor, extract_upright
from sfm_lightglue.geometries.verification import VerificationOptions
from sfm_lightglue.image_matches import ImageMatches, image_matches
from sfm_lightglue.matches.matcher import Matcher
from sfm_lightglue.orientation import upright_features
from sfm_lightglue.overrides import literal, overrides_of
from sfm_lightglue.pairs.budget import limit_pairs
from sfm_lightglue.pairs.collection import Collection
from sfm_lightglue.pairs.stage import select_pairs as find_pairs
from sfm_lightglue.products import Image, Pair
from sfm_lightglue.reconstruction import ReconstructionOptions, ReconstructionReport
from sfm_lightglue.renames import REMOVED_OPTIONS
from sfm_lightglue.run_context import Run
from sfm_lightglue.run_options import choose_lightglue, choose_plugin, selection_options
from sfm_lightglue.summary import Summary

Photo = str | Path | np.ndarray | PILImage.Image
"""A file, a uint8 array (h, w, 3) RGB or (h, w) grey, or a PIL image."""


def create_extractor(name: str = "superpoint", *, device: str = "auto", **options: Any) -> Extractor:
    """The feature extractor `name` with its weights.

    Args:
        name: A file in configs/features without its ending: `superpoint`, `aliked`, `raco`, `disk`, `xfeat`, `sift`, or one of
            your own in the folder SFM_LIGHTGLUE_CONFIGS.
        device: Where networks run: `cpu`, `cuda`, `cuda:1`, `mps` (Apple); `auto` takes an NVIDIA GPU if torch sees one.
        options: Keys of the YAML file, such as `max_keypoints=4096`; the others have the values of the file.

    Returns:
        A function from an `Image` to its `Features`; threads may share it.

    Raises:
        ValueError: For an unknown name, option or device.
        sfm_lightglue.download.FetchError: If the weights cannot be downloaded.

    Example:
        >>> extractor = create_extractor("superpoint", max_keypoints=256)
        >>> features = extractor(load_image(photos / "00.jpg"))
        >>> features.keypoints.shape, features.descriptors.shape
        ((256, 2), (256, 128))
    """
    if "orientation" in options:
        raise ValueError(
            "an extractor has no option 'orientation', because it takes pixels as they are: give it to extract_features, "
            "match_images or run"
        )
    config = compose_config([f"features={name}", *overrides_of("features", options)])
    extractor: Extractor = choose_plugin(config.features, "features").create(default_device(device))
    return extractor


def create_matcher(name: str = "lightglue", *, device: str = "auto", **options: Any) -> Matcher:
    """The matcher `name` with its weights.

    Args:
        name: A file in configs/matches without its ending: `lightglue`, `nearest_neighbor`, `superglue`, or one of your own.
        device: Where networks run, as for `create_extractor`.
        options: Keys of the YAML file. `trained_for="disk"` selects the LightGlue for DISK's features, and
            `trained_for="superpoint"` the one for the original SuperPoint. The default is the one for the default features.

    Returns:
        A function from two `Features` to their `Matches`; threads may share it.

    Raises:
        ValueError: For an unknown name, option or device.
        sfm_lightglue.download.FetchError: If the weights cannot be downloaded.

    Example:
        >>> matcher = create_matcher("lightglue", trained_for="superpoint-open", filter_threshold=0.3)
        >>> matcher.options.filter_threshold
        0.3
    """
    config = compose_config([f"matches={name}", *overrides_of("matches", options)])
    if not {"trained_for", "head"} & options.keys():
        choose_lightglue(config.features, config.matches)
    matcher: Matcher = choose_plugin(config.matches, "matches").create(default_device(device))
    return matcher


def load_image(image: Photo, name: str = "image") -> Image:
    """One photo as a record for an extractor.

    Args:
        image: A file, a uint8 array (h, w, 3) RGB or (h, w) grey, or a PIL image.
        name: Name of the record; not used if `image` is a file, which gives its own name.

    Returns:
        The decoded photo as it is stored. Its `orientation` is the code by which EXIF turns it upright. Transparent parts are
        masked out.

    Raises:
        UnreadableImage: If the file cannot be decoded.
        ValueError: If an array has another shape or type.

    Example:
        >>> image = load_image(photos / "00.jpg")
        >>> image.name, image.size, image.pixels.shape
        ('00.jpg', (800, 600), (600, 800, 3))
    """
    if isinstance(image, (str, Path)):
        path = Path(image)
        try:
            return photos.load_image(path.parent, path.name)
        except photos.UnreadableImage as error:
            raise photos.UnreadableImage(f"{path}: {error}") from error
    if isinstance(image, PILImage.Image):
        pixels = photos.to_rgb(image)
        return Image(name, pixels, photos.opaque_parts(image), orientation=photos.exif_orientation(image))
    pixels = np.asarray(image)
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=2)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f"expected uint8 pixels (h, w, 3) or (h, w), found {pixels.dtype} {pixels.shape}")
    return Image(name, pixels)


@overload
def match_images(  # type: ignore[overload-overlap]  # a str is a sequence too; it is one photo
    image0: Photo,
    image1: Photo,
    *,
    threshold: float | None = ...,
    extractor: Extractor | None = ...,
    matcher: Matcher | None = ...,
    orientation: str = ...,
    device: str = ...,
) -> ImageMatches: ...
@overload
def match_images(
    image0: Sequence[Photo],
    image1: Sequence[Photo],
    *,
    threshold: float | None = ...,
    extractor: Extractor | None = ...,
    matcher: Matcher | None = ...,
    orientation: str = ...,
    device: str = ...,
) -> list[ImageMatches]: ...
def match_images(
    image0: Any,
    image1: Any,
    *,
    threshold: float | None = None,
    extractor: Extractor | None = None,
    matcher: Matcher | None = None,
    orientation: str = "exif",
    device: str = "auto",
) -> Any:
    """Matches of two photos, or of each pair from two lists of photos.

    Args:
        image0: A file, an array or a PIL image as for `load_image`, or a list or tuple of photos. Photos may differ in size.
        image1: The other photo, or a list of the same length.
        threshold: Matches with a lower score are dropped; None keeps all that the matcher returns.
        extractor: From `create_extractor`, or your own; None is the default SuperPoint.
        matcher: From `create_matcher`, or your own; None is the default LightGlue.
        orientation: `exif` turns photos upright before detection as EXIF says, `stored` does not. Keypoints are always px of the
            photos as they are stored.
        device: Where the default extractor and matcher run, as for `create_extractor`.

    Returns:
        One `ImageMatches`, or a list of them. The result of a pair does not depend on the other pairs of the list.

    Raises:
        UnreadableImage: If a file cannot be decoded.
        ValueError: If only one argument is a list, the lists differ in length, or an array has another shape or type.

    Example:
        >>> result = match_images(photos / "00.jpg", photos / "01.jpg", threshold=0.5)
        >>> result.matched_keypoints0.shape == result.matched_keypoints1.shape == (len(result.scores), 2)
        True
    """
    if orientation not in ("exif", "stored"):
        raise ValueError(f"orientation={orientation!r} does not exist: expected exif or stored")
    are_many = [isinstance(images, Sequence) and not isinstance(images, str) for images in (image0, image1)]
    if any(are_many) and not all(are_many):
        raise ValueError("found one image and a list of images: give two images, or two lists of the same length")
    if all(are_many) and len(image0) != len(image1):
        raise ValueError(f"image0 has {len(image0)} photos, image1 has {len(image1)}: expected lists of the same length")
    extractor = extractor or _default_plugin(create_extractor, device)
    matcher = matcher or _default_plugin(create_matcher, device)
    match = functools.partial(_match_one, threshold, extractor, matcher, orientation == "exif")
    return [*map(match, image0, image1)] if all(are_many) else match(image0, image1)


def select_pairs(
    names: Sequence[str],
    pairs: str | Sequence[str] = "auto",
    *,
    features: Path | str | None = None,
    images: Path | str | None = None,
    poses: Path | str | None = None,
    positions: Path | str | None = None,
    **options: Any,
) -> list[Pair]:
    """Pairs of images that are worth matching.

    Args:
        names: Names of the images, as `list_images` gives them.
        pairs: A file in configs/pairs without its ending: `auto`, `exhaustive`, `sequential`, `retrieval`, `spatial`, `poses`,
            `covisibility`, `list`, or one of your own. A list of names gives the union of their pairs.
        features: File of features; retrieval and loop closure need it.
        images: Folder of the photos; sources that use GPS positions need it.
        poses: File of camera poses; sources that use poses need it.
        positions: File of GPS positions, in place of those in EXIF.
        options: Keys of the YAML file, such as `num_neighbours=10`, and the budgets `max_pairs` and `max_pairs_per_image`. For a
            list of sources each option of a source is in a dictionary: `sequential={"overlap": 5}`.

    Returns:
        Each pair once, sorted by names, with the reason why it was chosen.

    Raises:
        ValueError: For an unknown name or option, or if the source needs a file that is not given.

    Example:
        >>> [(pair.name0, pair.name1) for pair in select_pairs(["a", "b", "c"], "sequential", overlap=1)]
        [('a', 'b'), ('b', 'c')]
    """
    chosen = pairs if isinstance(pairs, str) else f"[{','.join(pairs)}]"
    config = compose_config([f"pairs={chosen}", *overrides_of("pairs", options)])
    source = choose_plugin(config.pairs, "pairs").create()
    limits = selection_options(config.pairs)
    if limits.rounds > 1:
        raise ValueError(f"rounds={limits.rounds}: further rounds need verified pairs, so only run has this option")
    with Collection(names, images=images, features=features, poses=poses, positions=positions) as collection:
        return limit_pairs(find_pairs(source, collection), limits.max_pairs, limits.max_pairs_per_image)


def build_database(
    images: Path | str,
    features: Path | str,
    matches: Path | str,
    pairs: Iterable[Pair],
    output: Path | str,
    *,
    known_cameras: Mapping[str, Camera] | None = None,
    positions: Path | str | None = None,
    **options: Any,
) -> BuildReport:
    """Verifies the matches of each pair and writes them to the COLMAP database `output`.

    Args:
        images: Folder of the photos; their EXIF gives focal lengths.
        features: File of features, ours or hloc's.
        matches: File of matches, ours or hloc's.
        pairs: The pairs to import; each must have matches.
        output: The database, replaced if it exists. `verification.h5` beside it keeps the geometries.
        known_cameras: Camera by image name, used with `intrinsics="poses"`. Cameras are in COLMAP's pixels: the centre of the
            top-left pixel is at (0.5, 0.5).
        positions: File of GPS positions, in place of those in EXIF. They become COLMAP's pose priors.
        options: Keys of configs/database and configs/geometries, such as `intrinsics="single"` or `max_error_px=1`.

    Returns:
        The numbers of images, cameras and verified pairs.

    Raises:
        KeyError: If an image of a pair has no features, or a pair has no matches.
        ValueError: For an unknown option, a wrong camera, or matches of other features.

    Example:
        >>> pairs = select_pairs(list_images(photos), "sequential", overlap=2)
        >>> report = build_database(photos, out / "features.h5", out / "matches.h5", pairs, out / "database.db")
        >>> report.num_images, report.num_pairs
        (4, 5)
    """
    database_keys = {field.name for field in dataclasses.fields(DatabaseOptions)}
    database_keys |= {key for key in options if f"database.{key}" in REMOVED_OPTIONS}
    groups = {key: "database" if key in database_keys else "geometries" for key in options}
    config = compose_config([override for key in options for override in overrides_of(groups[key], {key: options[key]})])
    bound = bind(DatabaseOptions, config.database, "database")
    return database_stage.build_database(
        images,
        features,
        matches,
        pairs,
        output,
        bind(VerificationOptions, config.geometries, "geometries"),
        intrinsics=bound.intrinsics,
        camera_model=bound.camera_model,
        known_cameras=known_cameras,
        positions=positions,
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
    """Reconstructs the scene from a database of verified matches.

    Args:
        database: COLMAP database, ours or another program's.
        images: Folder of the photos; points get their colours.
        output: Folder of the models `0` ... `n`, each as COLMAP's binary and text files and `points.ply`. It is kept if it holds
            the models of this database and these options, and replaced otherwise.
        mapper: A file in configs/reconstruction: `incremental`, `auto`, `clusters`, `global`, `hierarchical` or
            `triangulation`.
        features: File of features from which the database was built; None means `features.h5` beside it. It gives the size of
            a detection pixel; pixel thresholds are multiplied by this size.
        known_poses: float64 (3, 4) cam_from_world by image name, for the mapper `triangulation`.
        options: Keys of the YAML file. Intrinsics are refined unless `refine_intrinsics=False`.

    Returns:
        Statistics of each model, and the images that are in none.

    Raises:
        FileNotFoundError: If the database does not exist.
        ValueError: For an unknown mapper or option.

    Example:
        >>> report = reconstruct(out / "database.db", photos, out / "reconstruction")
        >>> report.models[0].num_images
        4
    """
    config = compose_config([f"reconstruction={mapper}", *overrides_of("reconstruction", options)])
    bound = bind(ReconstructionOptions, config.reconstruction, "reconstruction")
    return reconstruction.reconstruct(database, images, output, bound, features=features, known_poses=known_poses)


def run(images: Path | str, output: Path | str, *overrides: str) -> Summary:
    """Runs all stages over a folder of photos, as `python -m sfm_lightglue run` does.

    Args:
        images: Folder of the photos, searched recursively.
        output: Folder for all results. An interrupted run continues there; results of unchanged photos are kept.
        overrides: Written as on the command line: `"features=disk"`, `"matches.filter_threshold=0.2"`.

    Returns:
        What each stage did. Its `folder` opens features, matches, geometries and models. If nothing was reconstructed, `failure`
        says why; the command then ends with status 1.

    Raises:
        ValueError: For all mistakes that can be known before the first stage, or if another run works in the output folder.
        SettingsChanged: If `output` holds features or matches made with other settings.
        FileNotFoundError: If a folder does not exist.

    Example:
        >>> summary = run(photos, out / "run", "features.max_keypoints=512", "features.enlarge_max=1")
        >>> summary.reconstruction.models[0].num_images
        4
    """
    given = [f"dataset.images={literal(images)}", f"output={literal(output)}"]
    return pipeline.run_all(Run.checked(compose_config(["dataset=folder", *given, *overrides])))


@functools.cache
def _default_plugin(create: Callable[..., Any], device: str) -> Any:
    return create(device=device)


def _match_one(
    threshold: float | None, extractor: Extractor, matcher: Matcher, turns: bool, image0: Photo, image1: Photo
) -> ImageMatches:
    """The matches of two photos. `turns` says whether EXIF turns them upright."""
    images = load_image(image0, "image0"), load_image(image1, "image1")
    features0, features1 = (extract_upright(extractor, image) if turns else extractor(image) for image in images)
    matches = matcher(upright_features(features0), upright_features(features1))
    return image_matches(features0, features1, matches, threshold)
