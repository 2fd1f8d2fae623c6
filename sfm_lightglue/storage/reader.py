"""Reads features, matches and two-view geometries from HDF5 files: ours, and hloc's."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from sfm_lightglue.products import Features, Matches, TwoViewGeometry
from sfm_lightglue.settings import fingerprint
from sfm_lightglue.storage.layout import (
    explained_damage,
    features_from_group,
    geometry_from_group,
    leaf_groups,
    match_key,
    matches_from_group,
    orientation_from_group,
    pair_keys,
)


class H5Reader:
    """A file of features, matches or two-view geometries, ours or hloc's, open for reading: a context manager.

    Several threads may read from one H5Reader.

    Raises: FileNotFoundError or ValueError when the block is entered, if the file is missing or not HDF5.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def __enter__(self) -> H5Reader:
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.path} does not exist: run the stage that writes it first")
        with explained_damage(self.path):
            self._file = h5py.File(self.path, "r")
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    # --- the file ---

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the settings in the file. For a file of another program, its name and size are used instead."""
        return str(self._file.attrs.get("fingerprint", f"foreign {self.path.name} {self.path.stat().st_size}"))

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that the file was written with; empty for files of other programs."""
        return dict(json.loads(self._file.attrs.get("settings", "{}")))

    def names(self) -> list[str]:
        """Sorted keys of all groups: in a features file, the names of the images."""
        with explained_damage(self.path):
            return sorted(leaf_groups(self._file))

    def has(self, key: str) -> bool:
        """Whether the file has a group `key`: in a features file, the name of an image."""
        return key in self._file

    def stamp(self, key: str) -> str:
        """Content id of a group: its stamp, or a hash of its datasets if another program wrote it. Empty if there is no group."""
        if key not in self._file:
            return ""
        with explained_damage(self.path):
            if stamp := self._file[key].attrs.get("stamp"):
                return str(stamp)
            return fingerprint({name: hashlib.sha256(data[()]).hexdigest() for name, data in self._file[key].items()})

    # --- features ---

    def features(self, name: str, *, with_descriptors: bool = True) -> Features:
        """Features of the image `name`. `with_descriptors=False` is faster and gives descriptors of shape (n, 0).

        Raises:
            KeyError: The file does not have the image (the message gives the closest name), or a dataset is missing.
            ValueError: The datasets do not fit together or are damaged.
        """
        if name not in self._file:
            close = difflib.get_close_matches(name, self.names(), n=1)
            hint = f", did you mean {close[0]!r}?" if close else f"; it holds {len(self.names())} images"
            raise KeyError(f"{self.path} has no features of image {name!r}{hint}")
        with explained_damage(self.path, (OSError, RuntimeError)):
            return features_from_group(self._file[name], name, with_descriptors=with_descriptors)

    def keypoints(self, name: str) -> np.ndarray:
        """float32 (n, 2): keypoints of the image `name`, px, see `Features.keypoints`. Raises: as `features`."""
        return self.features(name, with_descriptors=False).keypoints

    def keypoints_are_half(self, name: str) -> bool:
        """Whether the file stores the keypoints of the image in half precision, as hloc does by default."""
        return bool(self._file[name]["keypoints"].dtype == np.float16)

    def image_size(self, name: str) -> tuple[int, int]:
        """(width, height) px of the photo, without reading its features."""
        width, height = self._file[name]["image_size"][()]
        return int(width), int(height)

    def orientation(self, name: str) -> int:
        """`Features.orientation` without reading the features. Raises: ValueError if the file has no valid code."""
        return orientation_from_group(self._file[name], name)

    def pixel_scale(self, name: str) -> float:
        """`Features.pixel_scale` without reading the features; 1 if the file does not say."""
        return float(self._file[name]["keypoints"].attrs.get("uncertainty", 1.0))

    def global_descriptors(self, names: Iterable[str]) -> np.ndarray:
        """float32 (n, d): hloc's `global_descriptor` of each image, in the order of `names`.

        Raises: KeyError if an image has none.
        """
        names = list(names)
        missing = [name for name in names if name not in self._file or "global_descriptor" not in self._file[name]]
        if missing:
            raise KeyError(f"{self.path} has no global_descriptor of {len(missing)} images, the first is {missing[0]!r}")
        return np.stack([self._file[name]["global_descriptor"][()].astype(np.float32) for name in names])

    # --- matches ---

    def find_matches(self, name0: str, name1: str) -> Matches | None:
        """Matches from image `name0` to `name1`, or None if the pair is not in the file.

        All four keys that versions of hloc use are tried. Matches that are stored from `name1` to `name0` are reversed.
        """
        key, flipped = self._find_pair(name0, name1)
        if not key:
            return None
        with explained_damage(self.path, (OSError, RuntimeError)):
            matches = matches_from_group(self._file[key])
        return _flip(matches) if flipped else matches

    def match_stamp(self, name0: str, name1: str) -> str:
        """The `stamp` of the matches that `find_matches` returns; empty if it returns None."""
        key, _ = self._find_pair(name0, name1)
        return self.stamp(key) if key else ""

    def _find_pair(self, name0: str, name1: str) -> tuple[str, bool]:
        """The key of the pair, empty if it is not in the file, and True if the stored matches go from `name1` to `name0`."""
        for key, flipped in pair_keys(name0, name1):
            if key in self._file and "matches0" in self._file[key]:
                return key, flipped
        return "", False

    # --- two-view geometries ---

    def geometry(self, name0: str, name1: str) -> TwoViewGeometry:
        """The verified or rejected pair, with `name0` < `name1` as in `Pair`. Raises: KeyError if it was not verified."""
        with explained_damage(self.path, (OSError, RuntimeError)):
            return geometry_from_group(self._geometry_group(name0, name1))

    def num_inliers(self, name0: str, name1: str) -> int:
        """Number of verified matches of a pair, without reading them; 0 if it was rejected. Raises: as `geometry`."""
        return int(self._geometry_group(name0, name1)["inlier_matches"].shape[0])

    def _geometry_group(self, name0: str, name1: str) -> h5py.Group:
        key = match_key(name0, name1)
        if key not in self._file:
            raise KeyError(f"{self.path} has no geometry of {name0!r} and {name1!r}: run the stage verify first")
        return self._file[key]


def _flip(matches: Matches) -> Matches:
    """Matches from image 1 to image 0."""
    order = np.argsort(matches.indices[:, 1], kind="stable")
    return Matches(matches.indices[order][:, ::-1].copy(), matches.scores[order], matches.stop_layer)
