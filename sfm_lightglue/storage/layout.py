"""The content of one HDF5 group: conversion of features, matches and two-view geometries, and the keys of pairs."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from sfm_lightglue.orientation import check_orientation
from sfm_lightglue.products import Features, Matches, TwoViewGeometry
from sfm_lightglue.storage.record import GroupData, Record
from sfm_lightglue.storage.safety import MAX_DESCRIPTOR_SIZE, RefusedFile, find_dataset, has_member, max_bytes
from sfm_lightglue.storage.values import (
    check_keypoints,
    check_match_scores,
    checked_image_size,
    checked_matches0,
    checked_pixel_scale,
    checked_whole_number,
    matches_from_list,
)

CONFIGURATIONS = (
    "UNDEFINED",
    "DEGENERATE",
    "CALIBRATED",
    "UNCALIBRATED",
    "PLANAR",
    "PANORAMIC",
    "PLANAR_OR_PANORAMIC",
    "WATERMARK",
    "MULTIPLE",
    "CALIBRATED_RIG",
)
"""COLMAP's names of two-view geometries. The index is COLMAP's number, which is stored as the attribute `config`."""


# --- features ------------------------------------------------------------------------------------------------------------


def features_to_group(features: Features) -> GroupData:
    """hloc's layout: keypoints float32 (n, 2), scores float16 (n,), descriptors float16 (d, n), image_size int64 (2,).

    The attribute `uncertainty` of the keypoints is hloc's name for `Features.pixel_scale`. The group has the attribute
    `orientation` if the photo was turned.
    """
    datasets: dict[str, np.ndarray] = {
        "keypoints": features.keypoints.astype(np.float32),
        "scores": features.scores.astype(np.float16),
        "image_size": np.asarray(features.image_size, np.int64),
    }
    if features.descriptors.shape[1]:  # imported keypoints may have none
        datasets["descriptors"] = np.ascontiguousarray(features.descriptors.T.astype(np.float16))
    if features.scales is not None and features.orientations is not None:
        datasets |= {"scales": features.scales.astype(np.float32), "oris": features.orientations.astype(np.float32)}
    of_group = {"": {"orientation": features.orientation}} if features.orientation != 1 else {}
    return GroupData(datasets, {"keypoints": {"uncertainty": float(features.pixel_scale)}, **of_group})


def features_from_group(
    group: h5py.Group, name: str, *, with_descriptors: bool = True, image_size: tuple[int, int] | None = None
) -> Features:
    """Features of one image, from our layout, from hloc's older ones, or with keypoints only.

    Keypoints may have half precision, and 4 or 6 columns as in COLMAP: the columns after x and y are not used. Scores may be
    called `keypoint_scores` or `score`. Missing scores and a missing `uncertainty` count as 1. Descriptors are float32 (n, 0) if
    they are missing, or with `with_descriptors=False`, which does not read them. `image_size` (width, height) of the photo
    replaces a missing one.

    Raises: KeyError if a dataset is missing, ValueError if the shapes of the datasets do not fit together, or if keypoints are
    not finite or not in the image.
    """
    place = f"{group.file.filename}: {name}"
    keypoints, descriptors = required_dataset(group, "keypoints", name), find_dataset(group, "descriptors")
    size = _size_of(group, name, image_size)
    scores = first_dataset(group, "scores", "keypoint_scores", "score")
    count = _check_shapes(keypoints, scores, descriptors, place)
    features = Features(
        keypoints=_float32(keypoints[()][:, :2]),
        scores=np.ones(count, np.float32) if scores is None else _float32(scores[()]),
        descriptors=np.zeros((count, 0), np.float32)
        if descriptors is None or not with_descriptors
        else _float32(descriptors[()]).T,
        image_size=size,
        pixel_scale=stored_pixel_scale(keypoints, place),
        scales=_optional_array(group, "scales", count),
        orientations=_optional_array(group, "oris", count),
        name=name,
        orientation=orientation_from_group(group, name),
    )
    check_keypoints(features.keypoints, features.image_size, features.pixel_scale, place)
    return features


def bare_features_from_group(group: h5py.Group, name: str) -> Features:
    """As `features_from_group`, but without descriptors, scales and angles; all scores are 1."""
    place = f"{group.file.filename}: {name}"
    keypoints = required_dataset(group, "keypoints", name)
    count = _check_shapes(keypoints, None, None, place)
    features = Features(
        keypoints=_float32(keypoints[()][:, :2]),
        scores=np.broadcast_to(np.float32(1), (count,)),
        descriptors=np.zeros((count, 0), np.float32),
        image_size=stored_image_size(group, name),
        pixel_scale=stored_pixel_scale(keypoints, place),
        name=name,
        orientation=orientation_from_group(group, name),
    )
    check_keypoints(features.keypoints, features.image_size, features.pixel_scale, place)
    return features


def required_dataset(group: h5py.Group, key: str, name: str) -> h5py.Dataset:
    """The dataset `key` of the image or pair `name`. Raises: KeyError if it is missing."""
    if (dataset := find_dataset(group, key)) is None:
        raise KeyError(f"{group.file.filename}: {name} has no dataset {key!r}, only {sorted(group)}")
    return dataset


def _size_of(group: h5py.Group, name: str, photo_size: tuple[int, int] | None) -> tuple[int, int]:
    """The stored size, or `photo_size` if there is none. Raises: KeyError without either, ValueError if they differ."""
    if photo_size is not None and not has_member(group, "image_size"):
        return photo_size
    size = stored_image_size(group, name)
    if photo_size not in (None, size):
        raise ValueError(f"{group.file.filename}: {name} has image_size {size}, the photo has {photo_size}")
    return size


def first_dataset(group: h5py.Group, *keys: str) -> h5py.Dataset | None:
    """The first of the datasets `keys` that a group has; None if it has none of them."""
    return next((dataset for key in keys if (dataset := find_dataset(group, key)) is not None), None)


def stored_image_size(group: h5py.Group, name: str) -> tuple[int, int]:
    """(width, height) px. Raises: KeyError if it is not stored, ValueError if it is not valid."""
    return checked_image_size(required_dataset(group, "image_size", name)[()], f"{group.file.filename}: {name}")


def stored_pixel_scale(keypoints: h5py.Dataset, place: str) -> float:
    """`Features.pixel_scale`; 1 if the file does not say. Raises: ValueError if it is not a number."""
    return checked_pixel_scale(keypoints.attrs.get("uncertainty", 1.0), place)


def _check_shapes(keypoints: h5py.Dataset, scores: h5py.Dataset | None, descriptors: h5py.Dataset | None, place: str) -> int:
    """The number of keypoints. Raises: ValueError if the shapes do not fit together."""
    count = keypoints.shape[0] if keypoints.shape else 0
    shapes = (
        keypoints.shape,
        (0, count) if descriptors is None else descriptors.shape,
        (count,) if scores is None else scores.shape,
    )
    size = shapes[1][0] if shapes[1] else 0
    if shapes not in [((count, columns), (size, count), (count,)) for columns in (2, 4, 6)]:
        raise ValueError(f"{place} has keypoints, descriptors, scores of shapes {shapes}, expected (n, 2), (d, n), (n,)")
    return int(count)


def _optional_array(group: h5py.Group, key: str, count: int) -> np.ndarray | None:
    """float32 (count,), or None if the dataset is missing. Raises: ValueError if it has another shape."""
    if (dataset := find_dataset(group, key)) is None:
        return None
    if dataset.shape != (count,):
        raise ValueError(f"{group.file.filename}: {group.name[1:]} has {key} of shape {dataset.shape}, expected ({count},)")
    return _float32(dataset[()])


def _float32(array: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # too large numbers become infinite, which is refused
        return array.astype(np.float32)


def read_global_descriptors(path: str, datasets: Mapping[str, h5py.Dataset]) -> np.ndarray:
    """float32 (n, d): the global descriptor of each image. Raises: ValueError if they are too large, unequal or not finite."""
    shapes = {name: dataset.shape for name, dataset in datasets.items()}
    size = next((dataset.size for dataset in datasets.values()), 0)
    for name, shape in shapes.items():
        if shape not in ((size,), (1, size)) or not 0 < size <= MAX_DESCRIPTOR_SIZE:
            raise ValueError(
                f"{path}: {name} has a global_descriptor of shape {shape}, expected ({size},) as the first image has"
            )
    if len(shapes) * size * 4 > max_bytes():
        raise ValueError(f"{path}: {len(shapes)} global descriptors of {size} values do not fit into the memory")
    descriptors = np.empty((len(shapes), size), np.float32)
    for row, (name, dataset) in enumerate(datasets.items()):
        descriptors[row] = _float32(dataset[()]).reshape(size)
        if not np.isfinite(descriptors[row]).all():
            raise ValueError(f"{path}: {name} has a global_descriptor with numbers that are not finite (NaN or infinite)")
    return descriptors


def _whole_number(group: h5py.Group, key: str, default: int | None = None) -> int:
    """The attribute `key`. Raises: ValueError if it is no whole number, or missing without a `default`."""
    return checked_whole_number(group.attrs.get(key, default), f"{group.file.filename}: {group.name[1:]}: {key}")


def orientation_from_group(group: h5py.Group, name: str) -> int:
    """`Features.orientation` of one image; 1 if the file does not say. Raises: ValueError if it is no EXIF code."""
    orientation = _whole_number(group, "orientation", 1)
    try:
        check_orientation(orientation)
    except ValueError as error:
        raise ValueError(f"{group.file.filename}: {name}: {error}") from error
    return orientation


# --- matches -------------------------------------------------------------------------------------------------------------


def matches_to_group(matches: Matches, num_keypoints0: int) -> GroupData:
    """hloc's layout: `matches0` (n0,) and `matching_scores0` (n0,), one entry per keypoint of image 0, -1 for no match.

    Indices are int16 if all fit, else int32; scores are float16.
    """
    matches0 = matches.matches0(num_keypoints0)
    dtype = np.int16 if matches0.max(initial=-1) <= np.iinfo(np.int16).max else np.int32
    scores0 = matches.matching_scores0(num_keypoints0).astype(np.float16)
    attributes = {"stop_layer": matches.stop_layer, "num_matches": len(matches)}
    if matches.is_guided:  # otherwise files are as those of earlier versions
        attributes["guided"] = 1
    return GroupData({"matches0": matches0.astype(dtype), "matching_scores0": scores0}, {"": attributes})


def matches_from_group(group: h5py.Group) -> Matches:
    """Matches of one pair, from `matches0` or from a list of index pairs `matches` (k, 2). Missing scores count as 1.

    Raises: ValueError if indices are no whole numbers, negative (except -1 in `matches0`), repeated or too large, or if scores
    are not in 0..1.
    """
    place = f"{group.file.filename}: {group.name[1:]}"
    if isinstance(group, Record) and (rows := group.matches()) is not None:
        found = matches_from_list(*rows, place)
        check_match_scores(found.scores, place)
        return _with_origin(found, group)
    matches0, scores = find_dataset(group, "matches0"), find_dataset(group, "matching_scores0")
    if matches0 is not None:
        if scores is not None and scores.shape != matches0.shape:
            raise ValueError(f"{place} has matches0, matching_scores0 of shapes {matches0.shape}, {scores.shape}, expected (n0,)")
        values = np.ones(matches0.shape) if scores is None else scores[()]
        found = _with_origin(Matches.from_dense(checked_matches0(matches0[()], place), values.astype(np.float32)), group)
    else:
        rows = required_dataset(group, "matches", group.name[1:])
        scores = first_dataset(group, "scores", "matching_scores", "matching_scores0")
        found = matches_from_list(rows[()], None if scores is None else scores[()], place)
    check_match_scores(found.scores, place)
    return found


def _with_origin(matches: Matches, group: h5py.Group) -> Matches:
    """The matches with how they were found."""
    layer = _whole_number(group, "stop_layer", 0)
    return dataclasses.replace(matches, stop_layer=layer, is_guided=_whole_number(group, "guided", 0) == 1)


def match_counts_from_group(group: h5py.Group) -> tuple[int, int]:
    """Number of matches of one pair, and `Matches.stop_layer`. The matches are read only if the file does not have the number."""
    if "num_matches" in group.attrs:
        return _whole_number(group, "num_matches"), _whole_number(group, "stop_layer", 0)
    matches = matches_from_group(group)
    return len(matches), matches.stop_layer


def has_matches(group: h5py.Group) -> bool:
    """Whether a group holds the matches of a pair."""
    return has_member(group, "matches0") or has_member(group, "matches")


# --- two-view geometries -------------------------------------------------------------------------------------------------


def geometry_to_group(geometry: TwoViewGeometry) -> GroupData:
    """`inlier_matches` int32 (k, 2), and `E`, `F`, `H` float64 (3, 3) if they are known; the rest as attributes of the group.

    Pairs that are rejected for their scores alone have `unsure_matches` too.
    """
    matrices = {"E": geometry.E, "F": geometry.F, "H": geometry.H, "unsure_matches": geometry.unsure_matches}
    datasets = {"inlier_matches": np.asarray(geometry.inlier_matches, np.int32)}
    datasets |= {name: matrix for name, matrix in matrices.items() if matrix is not None}
    attributes = {
        "num_matches": geometry.num_matches,
        "max_error_px": geometry.max_error_px,
        "config": CONFIGURATIONS.index(geometry.configuration),
        "rejected_because": geometry.rejected_because,
    }
    evidence: dict[str, Any] = {"num_stationary": geometry.num_stationary or None, "judged_with": geometry.judged_with or None}
    if geometry.unsure_configuration:
        evidence["unsure_config"] = CONFIGURATIONS.index(geometry.unsure_configuration)
    evidence |= {name: getattr(geometry, name) for name in EVIDENCE}
    attributes |= {name: value for name, value in evidence.items() if value is not None}
    return GroupData(datasets, {"": attributes})


EVIDENCE = ("num_agreeing", "num_needed", "mean_score", "confirmed")
"""Fields of a two-view geometry that version 0.10 did not store."""


def geometry_from_group(group: h5py.Group, *, with_arrays: bool = True) -> TwoViewGeometry:
    """The geometry of one pair. `rejected_because` is empty for files of earlier versions, which do not store it.

    `with_arrays=False` is faster and gives no inlier matches and no matrices.
    """
    attributes: dict[str, Any] = dict(group.attrs)
    is_former = "num_needed" not in attributes  # without arrays, the number of inliers would be lost
    inliers = required_dataset(group, "inlier_matches", group.name[1:]) if with_arrays or is_former else None
    num_inliers = int(inliers.shape[0]) if inliers is not None and not with_arrays else 0
    matrices = matrices_from_group(group, "E", "F", "H", "unsure_matches") if with_arrays else {}

    def number(key: str) -> int:
        return checked_whole_number(attributes.get(key), f"{group.file.filename}: {group.name[1:]}: {key}")

    return TwoViewGeometry(
        configuration=CONFIGURATIONS[number("config")],
        inlier_matches=inliers[()] if inliers is not None and with_arrays else np.zeros((0, 2), np.int32),
        num_matches=number("num_matches"),
        max_error_px=float(attributes["max_error_px"]),
        rejected_because=str(attributes.get("rejected_because", "")),
        num_stationary=number("num_stationary") if "num_stationary" in attributes else 0,
        num_agreeing=number("num_agreeing") if "num_agreeing" in attributes else num_inliers or None,
        num_needed=number("num_needed") if "num_needed" in attributes else None,
        mean_score=float(attributes["mean_score"]) if "mean_score" in attributes else None,
        confirmed=float(attributes["confirmed"]) if "confirmed" in attributes else None,
        unsure_configuration=CONFIGURATIONS[number("unsure_config")] if "unsure_config" in attributes else "",
        judged_with=str(attributes.get("judged_with", "")),
        **matrices,
    )


def matrices_from_group(group: h5py.Group, *names: str) -> dict[str, Any]:
    """The arrays of a pair by name, by default E, F and H; None for those that were not estimated."""
    found = {name: find_dataset(group, name) for name in names or ("E", "F", "H")}
    return {name: None if dataset is None else dataset[()] for name, dataset in found.items()}


# --- keys ----------------------------------------------------------------------------------------------------------------


def match_key(name0: str, name1: str) -> str:
    """The key of a pair of image names, as hloc builds it."""
    return f"{name0.replace('/', '-')}/{name1.replace('/', '-')}"


def pair_keys(name0: str, name1: str) -> Iterator[tuple[str, bool]]:
    """The four keys that versions of hloc use for a pair, each with True if its matches go from image 1 to image 0."""
    for separator in ("/", "_"):
        for first, second, flipped in ((name0, name1, False), (name1, name0, True)):
            yield f"{first.replace('/', '-')}{separator}{second.replace('/', '-')}", flipped


def check_match_keys(names: Iterable[str]) -> None:
    """Raises: ValueError if two images would share a key (`a/b.jpg` and `a-b.jpg`)."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(name.replace("/", "-"), name)
        if other != name:
            raise ValueError(f"images {other!r} and {name!r} have the same key {match_key(other, name)!r}: rename one of them")


# --- groups --------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def explained_damage(path: Path, errors: tuple[type[Exception], ...] = (Exception,)) -> Iterator[None]:
    """Turns the errors that h5py raises for a damaged file into a ValueError that says what to do.

    h5py raises OSError, RuntimeError, KeyError or others, depending on which bytes are damaged.
    """
    try:
        yield
    except RefusedFile:
        raise
    except errors as error:
        raise ValueError(f"{path} is not a readable HDF5 file ({error}): delete it to compute it again") from error


def read_group(group: h5py.Group) -> GroupData:
    """All datasets and attributes of a group. Raises: RefusedFile if a dataset is not in the file itself."""
    datasets = {name: dataset for name in group if (dataset := find_dataset(group, name)) is not None}
    attributes: dict[str, dict[str, Any]] = {name: dict(dataset.attrs) for name, dataset in datasets.items()}
    return GroupData({name: dataset[()] for name, dataset in datasets.items()}, {"": dict(group.attrs), **attributes})
