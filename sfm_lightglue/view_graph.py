"""Focal lengths from the two-view geometries of all pairs, and which photos without EXIF share a camera.

Each fundamental matrix constrains the focal lengths of its two photos. COLMAP's view-graph calibration solves for all of them
together (GLOMAP, arXiv:2407.20219, section 3.1). Photos of one camera must get similar focal lengths.
"""

from __future__ import annotations

import dataclasses
import logging
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pycolmap

from sfm_lightglue.cameras import Camera, CameraAssignment
from sfm_lightglue.colmap import colmap_log
from sfm_lightglue.focal_search import search_focal_lengths
from sfm_lightglue.products import Pair
from sfm_lightglue.storage import H5Reader

logger = logging.getLogger(__name__)

MAX_PAIRS_PER_PHOTO = 20
"""A photo's focal length comes from this many of its pairs at most: those with most inliers."""
PLAUSIBLE = (0.3, 6.0)
"""Smallest and largest focal length that is believed, as multiples of the longest side: fields of view of 118 to 10 degrees."""
MIN_PHOTOS = 3
"""Fewer photos of equal size keep the guess: nothing shows how precise their focal lengths are (ten tourist photos of ten sizes,
SIFT: 4 of 10 registered with focal lengths from the pairs, 10 of 10 with the guess)."""
MIN_GAP = 0.1
"""Photos have different cameras if a gap of at least this size divides the logarithms of their focal lengths, and ..."""
MIN_GAP_FEW = 0.35
"""... the gap is this large if a camera has fewer than three photos, which do not show how precise their focal lengths are (five
photos of one camera with weak pairs gave 0.88 to 1.14 times the longest side), and ..."""
MIN_GAP_FACTOR = 3.0
"""... the gap is at least this many standard deviations of the photos of one camera. Measured deviations: 0.006 (fountain,
kitti) to 0.012 (Herz-Jesu)."""

MAX_STEP = 0.2
"""If COLMAP moves the logarithm of a focal length more than this from the one of the search, the latter counts: the photo has few
or weak pairs (a photo of a zoom of 1700 px: 1742 px by the search, 2577 px by COLMAP)."""
MAX_SPREAD = 0.15
"""If the logarithms of the focal lengths of one camera deviate more than this (standard deviation), they are not used: the pairs
show planes or hardly any parallax, as photos of the ground from a drone."""


def calibrate(cameras: CameraAssignment, geometries: Path | str, pairs: Iterable[Pair]) -> tuple[CameraAssignment, list[str]]:
    """The cameras with focal lengths from the pairs for the photos in `cameras.unsure`, and a sentence about each group.

    A group whose photos have different focal lengths is split. Photos whose pairs say nothing take the focal length of their
    group if it stays whole, else each has a camera of its own. All other cameras are returned as they are.

    Args:
        cameras: the cameras that the pairs were verified with.
        geometries: file of two-view geometries; every pair must be in it.
        pairs: the pairs of the run.
    """
    unsure = {name for name in cameras.unsure if cameras.cameras[name].to_colmap().is_perspective()}
    focal = estimate_focal_lengths(cameras, unsure, geometries, pairs) if unsure else {}
    groups: dict[str, list[str]] = defaultdict(list)
    for name in sorted(unsure):
        groups[cameras.groups[name].rpartition(" (")[0]].append(name)  # photos that were turned by 90 degrees too
    chosen, group_of, notes = dict(cameras.cameras), dict(cameras.groups), list[str]()
    for names in groups.values():
        known = {name: focal[name] / max(cameras.cameras[name].size) for name in names if name in focal}
        parts = split_by_focal_length(known)
        if len(known) < MIN_PHOTOS or _spread(parts, known) > MAX_SPREAD:
            known, parts = {}, [[]]
        rest = [name for name in names if name not in known]
        parts = [[*parts[0], *rest]] if len(parts) == 1 else [*parts, *([name] for name in rest)]
        for number, part in enumerate(parts):
            factors = [known[name] for name in part if name in known]
            for name in part:
                group_of[name] += f" {number}" if len(parts) > 1 else ""
                chosen[name] = _with_focal_length(chosen[name], float(np.median(factors))) if factors else chosen[name]
        notes += _describe(parts, known)
    for note in notes:
        logger.info("%s", note)
    return dataclasses.replace(cameras, cameras=chosen, groups=group_of), notes


def split_by_focal_length(factors: Mapping[str, float]) -> list[list[str]]:
    """Names by camera, from the focal length of each photo / its longest side; the shortest focal length first.

    The largest gaps divide the photos, as many of them as are clear, see MIN_GAP. There must be two photos for each camera on
    average: single photos do not show how precise their focal lengths are. One list of names without clear gaps.
    """
    names = sorted(factors, key=lambda name: (factors[name], name))
    logs = np.log([factors[name] for name in names])
    gaps = np.diff(logs)
    for count in range(len(names) // 2 - 1, 0, -1):
        cuts = np.sort(np.argsort(-gaps, kind="stable")[:count])
        parts = np.split(logs, cuts + 1)
        spread = np.sqrt(sum(np.sum((part - part.mean()) ** 2) for part in parts) / (len(logs) - len(parts)))
        min_gap = MIN_GAP if min(map(len, parts)) >= 3 else MIN_GAP_FEW
        if spread <= MAX_SPREAD / 3 and gaps[cuts].min() >= max(min_gap, MIN_GAP_FACTOR * spread):
            return [[str(name) for name in part] for part in np.split(np.array(names), cuts + 1)]
    return [names]


def _spread(parts: list[list[str]], factors: Mapping[str, float]) -> float:
    """Standard deviation of the logarithms around the means of their parts; 0 if each part has one photo."""
    logs = [np.log([factors[name] for name in part]) for part in parts if part]
    count = sum(map(len, logs)) - len(logs)
    return float(np.sqrt(sum(np.sum((part - part.mean()) ** 2) for part in logs) / count)) if count else 0.0


def estimate_focal_lengths(
    cameras: CameraAssignment, unsure: Iterable[str], geometries: Path | str, pairs: Iterable[Pair]
) -> dict[str, float]:
    """Focal length, px, of each photo in `unsure` that its pairs determine. The other photos keep theirs.

    Each photo counts as a camera of its own. Planar pairs and pairs without parallax say nothing. Equal input gives equal output.
    """
    unsure = set(unsure)
    with H5Reader(geometries) as reader, tempfile.TemporaryDirectory() as folder, colmap_log(None):
        used = _strongest_pairs([pair for pair in pairs if {pair.name0, pair.name1} & unsure], reader)
        ids = {
            name: number for number, name in enumerate(sorted({name for pair in used for name in (pair.name0, pair.name1)}), 1)
        }
        path = Path(folder) / "view_graph.db"
        with pycolmap.Database.open(path) as database, pycolmap.DatabaseTransaction(database):
            fundamentals = _write_geometries(database, ids, used, reader)
            starts = _starting_values({name: cameras.cameras[name] for name in ids}, unsure, fundamentals)
            for name, number in ids.items():
                camera = starts[name].to_colmap()
                camera.camera_id = number
                database.write_camera(camera, use_camera_id=True)
                database.write_image(pycolmap.Image(name=name, camera_id=number, image_id=number), use_image_id=True)
        options = pycolmap.ViewGraphCalibrationOptions()
        options.random_seed, options.reestimate_relative_pose, options.cross_validate_prior_focal_lengths = 0, False, False
        if not ids or not pycolmap.calibrate_view_graph(path, options):
            return {}
        with pycolmap.Database.open(path) as database:
            found = {camera.camera_id: camera for camera in database.read_all_cameras()}
    # The last digits depend on the number of threads.
    focal = {name: round(found[ids[name]].mean_focal_length(), 2) for name in ids if name in unsure}
    for name in focal:
        start = starts[name].to_colmap().mean_focal_length()
        focal[name] = focal[name] if abs(np.log(focal[name] / start)) < MAX_STEP else start
    return {
        name: focal_px
        for name, focal_px in focal.items()
        if found[ids[name]].has_prior_focal_length and PLAUSIBLE[0] < focal_px / max(cameras.cameras[name].size) < PLAUSIBLE[1]
    }


def _write_geometries(
    database: pycolmap.Database, ids: Mapping[str, int], pairs: Iterable[Pair], reader: H5Reader
) -> dict[Pair, tuple[np.ndarray, int]]:
    """Writes the geometries of pairs. Returns the fundamental matrices of those without intrinsics, and their inliers' number."""
    fundamentals = {}
    for pair in pairs:
        geometry, record = reader.geometry(pair.name0, pair.name1), pycolmap.TwoViewGeometry()
        record.config = pycolmap.TwoViewGeometryConfiguration.__members__[geometry.configuration]
        record.inlier_matches = np.ascontiguousarray(geometry.inlier_matches, np.uint32)
        if geometry.F is not None:
            record.F = geometry.F
            if geometry.configuration == "UNCALIBRATED":
                fundamentals[pair] = geometry.F, len(geometry.inlier_matches)
        database.write_two_view_geometry(ids[pair.name0], ids[pair.name1], record)
    return fundamentals


def _starting_values(
    cameras: Mapping[str, Camera], unsure: Iterable[str], fundamentals: Mapping[Pair, tuple[np.ndarray, int]]
) -> dict[str, Camera]:
    """The cameras with rough focal lengths, still guesses, for photos in `unsure`, see `focal_search`."""
    names, unsure = list(cameras), set(unsure)
    numbers = {name: number for number, name in enumerate(names)}
    matrices, photos, num_inliers = [], [], []
    for pair, (matrix, count) in fundamentals.items():
        if all(cameras[name].to_colmap().is_perspective() for name in (pair.name0, pair.name1)):
            matrices.append(matrix)
            photos.append((numbers[pair.name0], numbers[pair.name1]))
            num_inliers.append(count)
    units = np.array([_unit(cameras[name], name in unsure) for name in names]).reshape(-1, 3, 3)
    is_known = np.array([name not in unsure for name in names], bool)
    both = np.array(matrices).reshape(-1, 3, 3), np.array(photos, int).reshape(-1, 2)
    factors = search_focal_lengths(*both, np.array(num_inliers), units, is_known)
    return {
        name: dataclasses.replace(_with_focal_length(camera, factor), has_prior_focal_length=False) if name in unsure else camera
        for (name, camera), factor in zip(cameras.items(), factors.tolist(), strict=True)
    }


def _unit(camera: Camera, is_unsure: bool) -> np.ndarray:
    """float64 (3, 3): intrinsics of a camera whose focal length is the longest side if it is not known."""
    colmap = camera.to_colmap()
    if not colmap.is_perspective():
        return np.eye(3)
    return np.asarray((_with_focal_length(camera, 1.0).to_colmap() if is_unsure else colmap).calibration_matrix())


def _strongest_pairs(pairs: Iterable[Pair], reader: H5Reader) -> list[Pair]:
    """The verified pairs with a fundamental matrix, at most MAX_PAIRS_PER_PHOTO of the photo that has fewer; in sorted order."""
    ordered = sorted(set(pairs))
    counts = dict(zip(ordered, reader.num_inliers_of(ordered).tolist(), strict=True))
    taken: Counter[str] = Counter()
    used = []
    for pair in sorted(counts, key=lambda pair: (-counts[pair], pair)):
        if counts[pair] and min(taken[pair.name0], taken[pair.name1]) < MAX_PAIRS_PER_PHOTO:
            used.append(pair)
            taken.update((pair.name0, pair.name1))
    return sorted(used)


def _with_focal_length(camera: Camera, factor: float) -> Camera:
    """The camera with a focal length of `factor` times its longest side."""
    colmap, focal_px = camera.to_colmap(), factor * max(camera.size)
    params = list(camera.params)
    for index in colmap.focal_length_idxs():
        params[index] = round(focal_px, 2)
    return dataclasses.replace(camera, params=tuple(params), has_prior_focal_length=True)


def _describe(parts: list[list[str]], known: Mapping[str, float]) -> list[str]:
    """A sentence about the photos of equal size in `parts`; none about a single photo without a result."""
    total, factors = sum(map(len, parts)), [known[name] for part in parts for name in part if name in known]
    if not factors:
        return [f"{total} photos without EXIF share a camera by their size; its focal length is a guess"] if total > 1 else []
    said = f"focal lengths of {min(factors):.2f} to {max(factors):.2f} times the longest side"
    if len(parts) > 1:
        return [f"{total} photos without EXIF have {len(parts)} cameras, although their sizes are equal: the pairs give {said}"]
    if total > 1:
        return [f"{total} photos without EXIF share a camera: their sizes are equal, and the pairs give {said}"]
    return []
