"""The content of one HDF5 group: conversion of features, matches and two-view geometries, and the keys of pairs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from sfm_lightglue.orientation import check_orientation
from sfm_lightglue.products import Features, Matches, TwoViewGeometry

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


@dataclass(frozen=True)
class GroupData:
    """The content of one HDF5 group."""

    datasets: Mapping[str, np.ndarray]
    """Arrays by name."""
    attributes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Attributes by name. The key "" has the attributes of the group, and the name of a dataset has its attributes."""


# --- features ------------------------------------------------------------------------------------------------------------


def features_to_group(features: Features) -> GroupData:
    """hloc's layout: keypoints float32 (n, 2), scores float16 (n,), descriptors float16 (d, n), image_size int64 (2,).

    The attribute `uncertainty` of the keypoints is hloc's name for `Features.pixel_scale`. The group has the attribute
    `orientation` if the photo was turned.
    """
    datasets: dict[str, np.ndarray] = {
        "keypoints": features.keypoints.astype(np.float32),
        "scores": features.scores.astype(np.float16),
        "descriptors": np.ascontiguousarray(features.descriptors.T.astype(np.float16)),
        "image_size": np.asarray(features.image_size, np.int64),
    }
    if features.scales is not None and features.orientations is not None:
        datasets |= {"scales": features.scales.astype(np.float32), "oris": features.orientations.astype(np.float32)}
    of_group = {"": {"orientation": features.orientation}} if features.orientation != 1 else {}
    return GroupData(datasets, {"keypoints": {"uncertainty": float(features.pixel_scale)}, **of_group})


def features_from_group(group: h5py.Group, name: str, *, with_descriptors: bool = True) -> Features:
    """Features of one image, from our layout or from hloc's older ones.

    Keypoints may have half precision, scores may be called `keypoint_scores` or `score`. Missing scores and a missing
    `uncertainty` count as 1. `with_descriptors=False` does not read the descriptors: they are float32 (n, 0) then.

    Raises: KeyError if a dataset is missing, ValueError if the shapes of the datasets do not fit together.
    """
    for required in ("keypoints", "descriptors", "image_size"):
        if required not in group:
            raise KeyError(f"{group.file.filename}: {name} has no dataset {required!r}, only {sorted(group)}")
    keypoints, descriptors = group["keypoints"], group["descriptors"]
    count = keypoints.shape[0]
    scores = next((group[key] for key in ("scores", "keypoint_scores", "score") if key in group), None)
    shapes = keypoints.shape, descriptors.shape, (count,) if scores is None else scores.shape
    if shapes != ((count, 2), (descriptors.shape[0], count), (count,)):
        raise ValueError(
            f"{group.file.filename}: {name} has keypoints, descriptors, scores of shapes {shapes}, expected (n, 2), (d, n), (n,)"
        )
    return Features(
        keypoints=keypoints[()].astype(np.float32),
        scores=np.ones(count, np.float32) if scores is None else scores[()].astype(np.float32),
        descriptors=descriptors[()].astype(np.float32).T if with_descriptors else np.zeros((count, 0), np.float32),
        image_size=(int(group["image_size"][0]), int(group["image_size"][1])),
        pixel_scale=float(keypoints.attrs.get("uncertainty", 1.0)),
        scales=group["scales"][()].astype(np.float32) if "scales" in group else None,
        orientations=group["oris"][()].astype(np.float32) if "oris" in group else None,
        name=name,
        orientation=orientation_from_group(group, name),
    )


def orientation_from_group(group: h5py.Group, name: str) -> int:
    """`Features.orientation` of one image; 1 if the file does not say. Raises: ValueError if it is no code of EXIF."""
    orientation = int(group.attrs.get("orientation", 1))
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
    attributes = {"": {"stop_layer": matches.stop_layer}}
    return GroupData({"matches0": matches0.astype(dtype), "matching_scores0": scores0}, attributes)


def matches_from_group(group: h5py.Group) -> Matches:
    """Matches of one pair; missing scores count as 1."""
    matches0 = group["matches0"][()].astype(np.int64)
    scores = group["matching_scores0"][()] if "matching_scores0" in group else np.ones(len(matches0))
    return Matches.from_dense(matches0, scores.astype(np.float32), int(group.attrs.get("stop_layer", 0)))


# --- two-view geometries -------------------------------------------------------------------------------------------------


def geometry_to_group(geometry: TwoViewGeometry) -> GroupData:
    """`inlier_matches` int32 (k, 2), and `E`, `F`, `H` float64 (3, 3) if they are known; the rest as attributes of the group."""
    matrices = {"E": geometry.E, "F": geometry.F, "H": geometry.H}
    datasets = {"inlier_matches": np.asarray(geometry.inlier_matches, np.int32)}
    datasets |= {name: matrix for name, matrix in matrices.items() if matrix is not None}
    attributes = {
        "num_matches": geometry.num_matches,
        "max_error_px": geometry.max_error_px,
        "config": CONFIGURATIONS.index(geometry.configuration),
        "rejected_because": geometry.rejected_because,
    }
    return GroupData(datasets, {"": attributes})


def geometry_from_group(group: h5py.Group) -> TwoViewGeometry:
    """The geometry of one pair. `rejected_because` is empty for files of earlier versions, which do not store it."""
    matrices = {name: group[name][()] if name in group else None for name in "EFH"}
    return TwoViewGeometry(
        configuration=CONFIGURATIONS[int(group.attrs["config"])],
        inlier_matches=group["inlier_matches"][()],
        num_matches=int(group.attrs["num_matches"]),
        max_error_px=float(group.attrs["max_error_px"]),
        rejected_because=str(group.attrs.get("rejected_because", "")),
        **matrices,
    )


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
    except errors as error:
        raise ValueError(f"{path} is not a readable HDF5 file ({error}): delete it to compute it again") from error


def leaf_groups(group: h5py.Group, prefix: str = "") -> Iterator[str]:
    """Keys of all groups that contain datasets."""
    for name, child in group.items():
        if isinstance(child, h5py.Dataset):
            yield prefix.rstrip("/")
            return
        yield from leaf_groups(child, f"{prefix}{name}/")


def read_group(group: h5py.Group) -> GroupData:
    """All datasets and attributes of a group."""
    datasets = dict(group.items())
    attributes = {name: dict(dataset.attrs) for name, dataset in datasets.items()}
    return GroupData({name: dataset[()] for name, dataset in datasets.items()}, {"": dict(group.attrs), **attributes})


def write_group(file: h5py.File, key: str, content: GroupData) -> None:
    """Creates the group `key`. Datasets are written in the order of their names, so that equal content gives equal bytes."""
    group = file.require_group(key)
    for name in sorted(content.datasets):
        array = content.datasets[name]
        # gzip makes matches (mostly -1) three times smaller and takes 0.2 ms a pair. Features would become 7 % smaller and take
        # 33 ms an image.
        options = {"compression": 1} if name in ("matches0", "matching_scores0") and array.size > 64 else {}
        group.create_dataset(name, data=array, **options)
    for target, values in content.attributes.items():
        (group[target] if target else group).attrs.update(values)
