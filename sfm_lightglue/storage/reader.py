"""Reads features, matches and two-view geometries from HDF5 files: ours, and hloc's."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sfm_lightglue.products import Features, Matches, Pair, TwoViewGeometry
from sfm_lightglue.settings import fingerprint
from sfm_lightglue.storage.kinds import KINDS, PartOfFeatures, parts_of_features
from sfm_lightglue.storage.layout import (
    bare_features_from_group,
    explained_damage,
    features_from_group,
    geometry_from_group,
    has_matches,
    match_counts_from_group,
    match_key,
    matches_from_group,
    matrices_from_group,
    orientation_from_group,
    pair_keys,
    read_global_descriptors,
    required_dataset,
    stored_image_size,
    stored_pixel_scale,
)
from sfm_lightglue.storage.numbers import REASONS, ROW, GeometryNumbers, numbers_of, row_of
from sfm_lightglue.storage.safety import find_dataset
from sfm_lightglue.storage.sources import FileSource, SegmentSource, open_source
from sfm_lightglue.storage.values import check_features

_LAST_NUMBERS: list[tuple[object, tuple[Pair, ...], GeometryNumbers]] = []
"""What `geometry_numbers` read last from a single file: version of the file, pairs and numbers. The stages of a run ask for all
pairs seven times, and a pair takes 0.3 ms."""


class H5Reader:
    """A file of features, matches or two-view geometries, ours or hloc's, open for reading: a context manager.

    Several threads may read from one H5Reader.

    Raises: FileNotFoundError or ValueError when the block is entered, if the file is missing or not HDF5.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def __enter__(self) -> H5Reader:
        self._source = open_source(self.path)
        return self

    def __exit__(self, *exception: object) -> None:
        self._source.close()

    # --- the file ---

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the settings in the file. For a file of another program, its name and size are used instead."""
        if (found := self._source.attrs.get("fingerprint")) is not None:
            return str(found)
        return f"foreign {self.path.name} {self.path.stat().st_size}"

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that the file was written with; empty for files of other programs."""
        if not self._is_ours:  # others may use this name
            return {}
        with explained_damage(self.path):
            return dict(json.loads(self._source.attrs.get("settings", "{}") or "{}"))

    def names(self) -> list[str]:
        """Sorted keys of all groups: in a features file, the names of the images."""
        with explained_damage(self.path):
            return self._source.keys()

    def has(self, key: str) -> bool:
        """Whether the file has a group `key`: in a features file, the name of an image."""
        return self._source.find(key) is not None

    def check_links(self) -> None:
        """Checks all links and datasets, without reading the numbers. Raises: RefusedFile, see `safety.py`."""
        with explained_damage(self.path):
            self._source.check()

    def stamp(self, key: str) -> str:
        """Content id of a group: its stamp, or a hash of its datasets if another program wrote it. Empty if there is no group."""
        with explained_damage(self.path):
            group = self._source.find(key)
            return "" if group is None else _stamp_of(group)

    def stamps(self, keys: Sequence[str]) -> list[str]:
        """The `stamp` of each key."""
        if isinstance(self._source, SegmentSource):
            return self._source.index.texts(self._source.entries(keys), "stamp")
        return [self.stamp(key) for key in keys]

    # --- features ---

    def features(self, name: str, *, with_descriptors: bool = True, image_size: tuple[int, int] | None = None) -> Features:
        """Features of the image `name`. `with_descriptors=False` is faster and gives descriptors of shape (n, 0).

        Descriptors also have the shape (n, 0) if the file has none. `image_size` (width, height) px of the photo is taken if the
        file does not say. The numbers in files of other programs are checked, see `values.py`; of our files only the keypoints.

        Raises:
            KeyError: The file does not have the image (the message gives the closest name), or a dataset is missing.
            ValueError: The datasets do not fit together or to `image_size`, are damaged, or have numbers that are not finite or
                out of range.
        """
        with explained_damage(self.path, (OSError, RuntimeError)):
            group = self._image_group(name)
            features = features_from_group(group, name, with_descriptors=with_descriptors, image_size=image_size)
        if not self._is_ours:
            check_features(features, f"{self.path}: {name}")
        return features

    def bare_features(self, name: str) -> Features:
        """As `features`, but only what geometry needs: keypoints, size, scale and orientation. Scores are 1, and not read."""
        with explained_damage(self.path, (OSError, RuntimeError)):
            return bare_features_from_group(self._image_group(name), name)

    def keypoints(self, name: str) -> np.ndarray:
        """float32 (n, 2): keypoints of the image `name`, px, see `Features.keypoints`. Raises: as `features`."""
        return self.features(name, with_descriptors=False).keypoints

    def keypoints_are_half(self, name: str) -> bool:
        """Whether the file stores the keypoints of the image in half precision, as hloc does by default."""
        return bool(required_dataset(self._image_group(name), "keypoints", name).dtype == np.float16)

    def is_masked(self, name: str) -> bool:
        """Whether a part of the photo was masked out, by a mask or because it is transparent; False if the file does not say."""
        return bool(self._image_group(name).attrs.get("is_masked", False))

    def masked(self, names: Sequence[str]) -> list[str]:
        """Those of the images for which `is_masked` is True."""
        if isinstance(self._source, SegmentSource):
            entries = self._source.entries(names)
            if (entries >= 0).all() and not self._source.has_groups(entries):
                found = np.nan_to_num(self._source.numbers(entries, "is_masked", 0)) > 0
                return [name for name, is_masked in zip(names, found.tolist(), strict=True) if is_masked]
        return [name for name in names if self.is_masked(name)]

    def has_descriptors(self, name: str) -> bool:
        """Whether the file has descriptors of the image. Raises: KeyError if it does not have the image."""
        return find_dataset(self._image_group(name), "descriptors") is not None

    def num_keypoints(self, name: str) -> int:
        """Number of keypoints of the image, without reading them."""
        return int(required_dataset(self._image_group(name), "keypoints", name).shape[0])

    def num_keypoints_of(self, names: Sequence[str]) -> np.ndarray:
        """int64 (len(names),): the number of keypoints of each image. Raises: as `features`."""
        if isinstance(self._source, SegmentSource):
            found = self._source.lengths(self._source.entries(names), "keypoints")
            if (found >= 0).all():
                return found
        return np.array([self.num_keypoints(name) for name in names], np.int64)

    def image_size(self, name: str) -> tuple[int, int]:
        """(width, height) px of the photo, without reading its features. Raises: as `features`."""
        return stored_image_size(self._image_group(name), name)

    def orientation(self, name: str) -> int:
        """`Features.orientation` without reading the features. Raises: as `features`."""
        return orientation_from_group(self._image_group(name), name)

    def orientations(self, names: Iterable[str]) -> dict[str, int]:
        """`orientation` of those `names` that the file has."""
        return {name: orientation_from_group(self._image_group(name), name) for name in names if self.has(name)}

    def pixel_scale(self, name: str) -> float:
        """`Features.pixel_scale` without reading the features; 1 if the file does not say."""
        return stored_pixel_scale(required_dataset(self._image_group(name), "keypoints", name), f"{self.path}: {name}")

    def kinds(self, name: str) -> tuple[PartOfFeatures, ...]:
        """Where the keypoints of each kind of features of the image begin; empty if the file does not have several kinds."""
        return parts_of_features(str(self._image_group(name).attrs.get(KINDS, "")), f"{self.path}: {name}")

    def global_descriptors(self, names: Iterable[str]) -> np.ndarray:
        """float32 (n, d): hloc's `global_descriptor` of each image, in the order of `names`.

        Raises: KeyError if an image has none, ValueError if they are not finite, not equally long, or too large together.
        """
        names = list(names)
        groups = {name: self._source.find(name) for name in names}
        found = {name: None if group is None else find_dataset(group, "global_descriptor") for name, group in groups.items()}
        if missing := [name for name, dataset in found.items() if dataset is None]:
            raise KeyError(f"{self.path} has no global_descriptor of {len(missing)} images, the first is {missing[0]!r}")
        return read_global_descriptors(str(self.path), {name: dataset for name, dataset in found.items() if dataset is not None})

    def _image_group(self, name: str) -> Any:
        """The group of an image. Raises: KeyError that gives the closest name if the file does not have the image."""
        if (group := self._source.find(name)) is not None:
            return group
        close = difflib.get_close_matches(name, self.names(), n=1)
        hint = f", did you mean {close[0]!r}?" if close else f"; it holds {len(self.names())} images"
        raise KeyError(f"{self.path} has no features of image {name!r}{hint}")

    @functools.cached_property
    def _is_ours(self) -> bool:
        return "fingerprint" in self._source.attrs

    def without_global_descriptor(self, names: Iterable[str]) -> list[str]:
        """Those of `names` that have no `global_descriptor` in the file, in the same order."""
        groups = {name: self._source.find(name) for name in names}
        return [name for name, group in groups.items() if group is None or find_dataset(group, "global_descriptor") is None]

    # --- matches ---

    def find_matches(self, name0: str, name1: str) -> Matches | None:
        """Matches from image `name0` to `name1`, or None if the pair is not in the file.

        All four keys that versions of hloc use are tried. Matches that are stored from `name1` to `name0` are reversed.

        Raises: ValueError if indices are repeated or cannot be indices of keypoints, or if scores are not in 0..1.
        """
        group, flipped = self._find_pair(name0, name1)
        if group is None:
            return None
        with explained_damage(self.path, (OSError, RuntimeError)):
            matches = matches_from_group(group)
        return _flip(matches) if flipped else matches

    def match_counts(self, name0: str, name1: str) -> tuple[int, int] | None:
        """Number of matches of a pair, and `Matches.stop_layer`, without reading them; None if the pair is not in the file.

        The matches are read if the file is from version 0.10 or from another program. Raises: as `find_matches`.
        """
        group, _ = self._find_pair(name0, name1)
        if group is None:
            return None
        with explained_damage(self.path, (OSError, RuntimeError)):
            return match_counts_from_group(group)

    def match_stamp(self, name0: str, name1: str) -> str:
        """The `stamp` of the matches that `find_matches` returns; empty if it returns None."""
        group, _ = self._find_pair(name0, name1)
        with explained_damage(self.path):
            return "" if group is None else _stamp_of(group)

    def match_counts_of(self, pairs: Sequence[Pair]) -> np.ndarray:
        """int32 (len(pairs), 2): the number of matches of each pair, and `Matches.stop_layer`; -1 if the pair is not in the file.

        Raises: as `find_matches`.
        """
        counts = np.full((len(pairs), 2), -1, np.int32)
        todo = np.ones(len(pairs), bool)
        if isinstance(self._source, SegmentSource):
            entries = self._source.pair_entries(pairs)
            found = np.stack([self._source.numbers(entries, name, -1) for name in ("num_matches", "stop_layer")], axis=1)
            todo = (entries < 0) | ~np.isfinite(found).all(axis=1)
            counts[~todo] = found[~todo]
        for i in np.flatnonzero(todo).tolist():
            counts[i] = self.match_counts(pairs[i].name0, pairs[i].name1) or (-1, -1)
        return counts

    def num_guided(self, pairs: Sequence[Pair]) -> int:
        """The number of pairs whose matches come from those of the strongest keypoints (`Matches.is_guided`)."""
        if isinstance(self._source, SegmentSource):
            return int((self._source.numbers(self._source.pair_entries(pairs), "guided", 0) == 1).sum())
        groups = (self._find_pair(pair.name0, pair.name1)[0] for pair in pairs)
        return sum(group is not None and int(group.attrs.get("guided", 0)) == 1 for group in groups)

    def match_stamps(self, pairs: Sequence[Pair]) -> list[str]:
        """The `match_stamp` of each pair."""
        if not isinstance(self._source, SegmentSource):
            return [self.match_stamp(pair.name0, pair.name1) for pair in pairs]
        stamps = self._source.index.texts(self._source.pair_entries(pairs), "stamp")
        return [stamp or self.match_stamp(pair.name0, pair.name1) for stamp, pair in zip(stamps, pairs, strict=True)]

    def num_inliers_of(self, pairs: Sequence[Pair]) -> np.ndarray:
        """int64 (len(pairs),): the `num_inliers` of each pair. Raises: as `geometry`."""
        if isinstance(self._source, SegmentSource):
            found = self._source.lengths(self._source.pair_entries(pairs), "inlier_matches")
            if (found >= 0).all():
                return found
        return np.array([self.num_inliers(pair.name0, pair.name1) for pair in pairs], np.int64)

    def _find_pair(self, name0: str, name1: str) -> tuple[Any | None, bool]:
        """The group of the pair, None if it is not in the file, and True if the stored matches go from `name1` to `name0`."""
        for key, flipped in pair_keys(name0, name1):
            if (group := self._source.find(key)) is not None and has_matches(group):
                return group, flipped
        return None, False

    # --- two-view geometries ---

    def geometry(self, name0: str, name1: str) -> TwoViewGeometry:
        """The verified or rejected pair, with `name0` < `name1` as in `Pair`. Raises: KeyError if it was not verified."""
        with explained_damage(self.path, (OSError, RuntimeError)):
            return geometry_from_group(self._geometry_group(name0, name1))

    def inlier_matches(self, name0: str, name1: str) -> np.ndarray:
        """int32 (k, 2): the verified matches of a pair, without the rest of its geometry. Raises: as `geometry`."""
        with explained_damage(self.path, (OSError, RuntimeError)):
            found: np.ndarray = required_dataset(self._geometry_group(name0, name1), "inlier_matches", name0)[()]
            return found

    def with_arrays(self, geometry: TwoViewGeometry, name0: str, name1: str) -> TwoViewGeometry:
        """A geometry from `GeometryNumbers` with the inlier matches and the matrices of the pair. Raises: as `geometry`."""
        with explained_damage(self.path, (OSError, RuntimeError)):
            group = self._geometry_group(name0, name1)
            inliers = required_dataset(group, "inlier_matches", name0)[()]
            return dataclasses.replace(geometry, inlier_matches=inliers, **matrices_from_group(group))

    def find_geometry(self, name0: str, name1: str) -> TwoViewGeometry | None:
        """As `geometry`, but None if the pair was not verified, and faster: without inlier matches and matrices."""
        if (group := self._source.find(match_key(name0, name1))) is None:
            return None
        with explained_damage(self.path, (OSError, RuntimeError)):
            return geometry_from_group(group, with_arrays=False)

    def geometry_numbers(self, pairs: Sequence[Pair]) -> GeometryNumbers:
        """Numbers about the geometries of many pairs, without inlier matches and matrices."""
        if isinstance(self._source, FileSource):
            return self._numbers_of_file(self._source, pairs)
        assert isinstance(self._source, SegmentSource), "there is no third source"
        rows = np.zeros(len(pairs), ROW)
        rows["config"], rows["num_agreeing"], rows["num_needed"] = -1, -1, -1
        rows["mean_score"], rows["confirmed"] = np.nan, np.nan
        entries = self._source.pair_entries(pairs)
        for name in set(ROW.names or ()) - {"reason"}:
            found = self._source.numbers(entries, name, np.nan)
            known = np.isfinite(found)
            rows[name][known] = found[known]
        reasons = self._source.attribute_texts(entries, "rejected_because")
        rows["reason"] = [REASONS.index(reason) if reason in REASONS else 0 for reason in reasons]
        for i in np.flatnonzero((entries >= 0) & (rows["num_needed"] < 0)).tolist():  # version 0.10 did not store all
            rows[i] = row_of(self.find_geometry(pairs[i].name0, pairs[i].name1))
        return GeometryNumbers(rows)

    def _numbers_of_file(self, source: FileSource, pairs: Sequence[Pair]) -> GeometryNumbers:
        known = _LAST_NUMBERS[0] if _LAST_NUMBERS else None
        if known is None or known[:2] != (source.version, tuple(pairs)):
            read = numbers_of(self.find_geometry(pair.name0, pair.name1) for pair in pairs)
            known = source.version, tuple(pairs), read
            _LAST_NUMBERS[:] = [known]
        return GeometryNumbers(known[2].rows.copy())

    def num_inliers(self, name0: str, name1: str) -> int:
        """Number of verified matches of a pair, without reading them; 0 if it was rejected. Raises: as `geometry`."""
        return int(required_dataset(self._geometry_group(name0, name1), "inlier_matches", name0).shape[0])

    def _geometry_group(self, name0: str, name1: str) -> Any:
        if (group := self._source.find(match_key(name0, name1))) is None:
            raise KeyError(f"{self.path} has no geometry of {name0!r} and {name1!r}: run the stage verify first")
        return group


def _stamp_of(group: Any) -> str:
    if isinstance(stamp := group.attrs.get("stamp"), str) and stamp:
        return stamp
    return fingerprint({name: hashlib.sha256(data[()]).hexdigest() for name, data in group.numeric()})


def _flip(matches: Matches) -> Matches:
    """Matches from image 1 to image 0."""
    order = np.argsort(matches.indices[:, 1], kind="stable")
    return dataclasses.replace(matches, indices=matches.indices[order][:, ::-1].copy(), scores=matches.scores[order])
